//! `Attempt::observe` where it cannot be told what a driver has opened, or the driver fails: it says so, and leaves nothing behind.

use crate::kit::{deny, hide_proc};
use crate::observe::{attempt, limit_descriptors, open_numbers, server, unobserved};
use forksafe::Attempt;
use forksafe::fork::Descriptors;
use forksafe::testing::{self, clean_process};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;

#[test]
fn what_cannot_be_told_is_said_and_leaves_nothing_behind() {
    clean_process(|| {
        let (address, kept) = server();
        let connect = || TcpStream::connect(address);
        let before = open_numbers();
        let too_many = unobserved(|| (0..16).map(|_| connect()).collect::<io::Result<Vec<_>>>());
        assert!(too_many.is_lasting() && too_many.to_string().contains("more than 15"), "{too_many}");
        let just_enough = attempt().observe(|| (0..15).map(|_| connect()).collect::<io::Result<Vec<_>>>());
        assert_eq!(just_enough.unwrap().unwrap().len(), 15);
        let closed_again = attempt().observe(|| (0..50).map(|_| connect()).next_back().unwrap());
        assert!(closed_again.unwrap().is_ok());
        let none = unobserved(|| File::open("/dev/null"));
        assert!(none.is_lasting() && none.to_string().contains("no socket"), "{none}");
        let (end, ends) = mpsc::channel::<()>();
        let threads = unobserved(|| {
            thread::spawn(move || ends.recv());
            connect()
        });
        assert!(threads.is_lasting() && threads.to_string().contains("threads"), "{threads}");
        drop(end);
        let joined = attempt().observe(|| {
            thread::spawn(|| ()).join().unwrap();
            connect()
        });
        assert!(joined.unwrap().is_ok());
        let locked = unobserved(|| {
            let file = File::options().create(true).truncate(false).write(true).open(locked_file())?;
            lock(&file);
            Ok((file, connect()?))
        });
        assert!(locked.is_lasting() && locked.to_string().contains("lock"), "{locked}");
        let _ = std::fs::remove_file(locked_file());
        let failed = attempt().observe(|| connect().and_then(|_| Err::<(), _>(io::Error::other("refused"))));
        assert_eq!(failed.unwrap().unwrap_err().to_string(), "refused");
        // What is not kept is not kept alive, either.
        for mut stream in kept.try_iter() {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(open_numbers(), before);
    });
}

/// Nobody would close it, and its server would have a client that nobody asks anything.
#[test]
fn of_what_a_drivers_threads_hold_nothing_comes_into_the_process() {
    clean_process(|| {
        let (address, kept) = server();
        let before = open_numbers();
        let (end, ends) = mpsc::channel::<()>();
        let threads = unobserved(|| {
            let (stream, held) = (TcpStream::connect(address)?, TcpStream::connect(address)?);
            thread::spawn(move || (ends.recv(), held));
            Ok(stream)
        });
        assert!(threads.to_string().contains("threads"), "{threads}");
        let (mut one, mut other) = (kept.recv().unwrap(), kept.recv().unwrap());
        assert_eq!(open_numbers().len(), before.len() + 2, "those of the server, and no more");
        assert_eq!((one.read(&mut [0]).unwrap(), other.read(&mut [0]).unwrap()), (0, 0));
        drop(end);
    });
}

fn locked_file() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("forksafe-observe-{}", std::process::id()))
}

fn lock(file: &File) {
    // SAFETY: all zeros is valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as _;
    // SAFETY: `lock` is ours.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) }, 0);
}

/// The second descriptor of what a manager inside has published, above all: its number is another's by then.
#[test]
fn what_was_published_of_a_client_that_is_not_kept_is_taken_back() {
    clean_process(|| {
        let (address, kept) = server();
        let at = attempt();
        // Of more than are kept for it: what comes last has numbers that do not come into the process.
        let too_many = at.observe(|| {
            let streams = (0..20).map(|_| TcpStream::connect(address)).collect::<io::Result<Vec<_>>>()?;
            Attempt::current().unwrap().own(Descriptors::of(&streams[18]));
            at.own(Descriptors::of(&streams[19]));
            Ok::<_, io::Error>(streams)
        });
        assert!(too_many.unwrap_err().to_string().contains("more than 15"));
        let mut others: Vec<_> = (0..20).map(|_| UnixStream::pair().unwrap()).collect();
        at.forget_all();
        drop(at);
        for (near, far) in &mut others {
            near.write_all(b"hello").unwrap();
            far.read_exact(&mut [0; 5]).unwrap();
        }
        for mut stream in kept.try_iter() {
            stream.set_read_timeout(Some(testing::patience())).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
    });
}

/// A connection that a pool gives to another thread, say.
#[test]
fn a_number_that_another_thread_has_closed_meanwhile_is_not_put_over() {
    clean_process(|| {
        let (address, kept) = server();
        let (number, numbers) = mpsc::channel();
        let (opened, has_opened) = mpsc::channel();
        let other = thread::spawn(move || {
            let number = numbers.recv().unwrap();
            // SAFETY: nobody uses it but the observation, which has to notice.
            assert_eq!(unsafe { libc::close(number) }, 0);
            let file = File::open("/dev/null").unwrap();
            assert_eq!(file.as_raw_fd(), number);
            opened.send(()).unwrap();
            file
        });
        let lost = unobserved(move || {
            let stream = TcpStream::connect(address)?;
            number.send(stream.as_raw_fd()).unwrap();
            has_opened.recv().unwrap();
            // To close it would be to close that file.
            std::mem::forget(stream);
            Ok(())
        });
        assert!(!lost.is_lasting() && lost.to_string().contains("handed over"), "{lost}");
        let file = other.join().unwrap();
        assert!(file.metadata().unwrap().file_type().is_char_device(), "something else is under its number");
        drop(kept);
    });
}

/// What the closure says to a standard stream that the process has closed goes nowhere, and the connection is observed.
#[test]
fn closed_standard_streams_are_in_nobodys_way() {
    clean_process(|| {
        let (address, kept) = server();
        testing::child(|| {
            let other = thread::spawn(thread::park);
            // SAFETY: takes numbers.
            unsafe { (libc::close(0), libc::close(1), libc::close(2)) };
            let at = attempt();
            let stream = at.observe(|| {
                println!("to a stream that is closed");
                // SAFETY: bytes of a static.
                (0..3).for_each(|fd| _ = unsafe { libc::write(fd, b"x".as_ptr().cast(), 1) });
                TcpStream::connect(address)
            });
            assert!(stream.unwrap().unwrap().as_raw_fd() > 2);
            other.thread().unpark();
        })
        .join();
        drop(kept);
    });
}

/// Something that the program keeps is still there, under its number, when the connect has failed.
#[test]
fn what_outlives_a_failed_connect_is_where_it_was_left() {
    clean_process(|| {
        let log = Mutex::new(None);
        let failed = attempt().observe(|| {
            let (near, far) = UnixStream::pair()?;
            *log.lock().unwrap() = Some((near, far));
            Err::<(), _>(io::Error::other("no server"))
        });
        assert!(failed.unwrap().is_err());
        let (mut near, mut far) = log.into_inner().unwrap().unwrap();
        near.write_all(b"hello").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
    });
}

#[test]
fn where_a_thread_gets_no_table_of_its_own_it_says_so() {
    clean_process(|| {
        let (address, _kept) = server();
        let connect = || TcpStream::connect(address);
        deny(libc::SYS_unshare, None, libc::EPERM);
        assert!(attempt().observe(connect).unwrap().is_ok(), "there is another way");
        deny(libc::SYS_close_range, Some((2, libc::CLOSE_RANGE_UNSHARE)), libc::EPERM);
        let denied = unobserved(connect);
        assert!(denied.is_lasting() && denied.to_string().contains("table of its own"), "{denied}");
    });
}

/// An emulator, say. To take the process's table for a private one would be to close all that it has.
#[test]
fn a_kernel_that_pretends_is_found_out() {
    clean_process(|| {
        let (address, _kept) = server();
        deny(libc::SYS_unshare, None, 0);
        let before = open_numbers();
        let pretended = unobserved(|| TcpStream::connect(address));
        assert!(pretended.to_string().contains("table of its own"), "{pretended}");
        assert_eq!(open_numbers(), before);
    });
}

#[test]
fn without_proc_it_says_so() {
    clean_process(|| {
        let (address, _kept) = server();
        hide_proc();
        let before = open_numbers();
        let unseen = unobserved(|| TcpStream::connect(address));
        assert!(unseen.is_lasting() && unseen.to_string().contains("/proc"), "{unseen}");
        assert_eq!(open_numbers(), before);
    });
}

#[test]
fn a_full_table_is_an_error_and_half_of_what_is_left_is_left_to_others() {
    clean_process(|| {
        let (address, _kept) = server();
        limit_descriptors(64);
        let mut fill: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
        let full = unobserved(|| TcpStream::connect(address));
        assert!(!full.is_lasting() && full.to_string().contains("full"), "{full}");
        assert!(File::open("/dev/null").is_err(), "it was full before, and is now");
        fill.truncate(fill.len() - 20);
        let (at, taken) = (attempt(), AtomicU64::new(0));
        let observed = at.observe(|| {
            let free = (0..64).filter(|fd| std::fs::metadata(format!("/proc/self/fd/{fd}")).is_err()).count();
            taken.store(20 - free as u64, SeqCst);
            TcpStream::connect(address)
        });
        assert!(observed.unwrap().is_ok());
        assert!((2..=12).contains(&taken.load(SeqCst)), "{taken:?} of 20 were taken");
        let too_many = unobserved(|| (0..10).map(|_| TcpStream::connect(address)).collect::<io::Result<Vec<_>>>());
        assert!(!too_many.is_lasting() && too_many.to_string().contains("full"), "{too_many}");
    });
}

#[test]
fn a_panic_goes_on_in_the_caller_and_leaves_nothing_behind() {
    clean_process(|| {
        let (address, kept) = server();
        let before = open_numbers();
        let panicked = std::panic::catch_unwind(|| {
            let _ = attempt().observe(|| -> io::Result<()> {
                let _stream = TcpStream::connect(address)?;
                panic!("as a driver may");
            });
        });
        assert_eq!(panicked.unwrap_err().downcast_ref::<&str>(), Some(&"as a driver may"));
        assert_eq!(kept.recv().unwrap().read(&mut [0]).unwrap(), 0);
        assert_eq!(open_numbers(), before);
    });
}

/// What gets the number of something that the closure has closed is not one of those that are kept.
#[test]
fn a_driver_that_closes_what_it_did_not_open_is_not_observed() {
    clean_process(|| {
        let (address, _kept) = server();
        let mut other = Some(File::open("/dev/null").unwrap());
        let unseen = unobserved(|| {
            let number = other.as_ref().unwrap().as_raw_fd();
            drop(other.take());
            let stream = TcpStream::connect(address)?;
            assert_eq!(stream.as_raw_fd(), number);
            Ok(stream)
        });
        assert!(unseen.is_lasting() && unseen.to_string().contains("closes"), "{unseen}");
    });
}
