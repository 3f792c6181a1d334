//! The registry of descriptors: growth, reuse, tables that are full.

use crate::kit::Door;
use forksafe::fork::{self, Descriptors, Guarded, Registration};
use forksafe::testing::{self, Witness, clean_process};
use forksafe::{Attempt, ManageConnection};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

fn limit_descriptors(soft: u64) -> u64 {
    // SAFETY: plain numbers of ours.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = limit.rlim_cur;
        limit.rlim_cur = soft.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}

/// Grows past any size; in the child every one of them is dead and in the parent every one is alive.
#[test]
fn thousands_of_registered_descriptors_are_all_dead_in_the_child() {
    clean_process(|| {
        limit_descriptors(8192);
        let mut pairs: Vec<_> = (0..1500)
            .map(|_| {
                let (near, far) = UnixStream::pair().unwrap();
                (Guarded::new(near, Descriptors::of).unwrap(), far)
            })
            .collect();
        // By number, past the guard: what a driver that kept its own reference would do.
        let numbers: Vec<i32> = pairs.iter().map(|(near, _)| near.as_raw_fd()).collect();
        let alive = || numbers.iter().filter(|&&fd| can_write(fd)).count();
        assert_eq!(testing::child(alive).join(), 0);
        assert_eq!(alive(), 1500);
        for (near, far) in &mut pairs {
            near.write_all(b"here").unwrap();
            let mut said = [0; 5];
            far.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"xhere");
        }
    });
}

fn can_write(fd: i32) -> bool {
    // SAFETY: one byte of a static; MSG_NOSIGNAL makes a dead peer an error.
    unsafe { libc::send(fd, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) == 1 }
}

/// A registration names a socket, not a number: what took the number since is left alone.
#[test]
fn a_descriptor_that_is_not_the_registered_one_is_never_touched() {
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let number = near.as_raw_fd();
        let registration = Registration::publish(Descriptors::of(&near)).unwrap();
        drop(near);
        // Somebody who closes first and withdraws later, and in between the number is another's.
        let (other, mut peer) = UnixStream::pair().unwrap();
        assert_eq!(other.as_raw_fd(), number, "the lowest free number");
        testing::child(|| {
            (&other).write_all(b"from the child").unwrap();
        })
        .join();
        drop(registration);
        // And withdrawn.
        testing::child(|| {
            (&other).write_all(b"from the child").unwrap();
        })
        .join();
        drop(other);
        let mut said = String::new();
        peer.read_to_string(&mut said).unwrap();
        assert_eq!(said, "from the childfrom the child");
    });
}

/// Its owner may go on using what is no longer registered, on both sides of a fork.
#[test]
fn a_descriptor_that_was_withdrawn_is_left_alone() {
    clean_process(|| {
        let (near, mut far) = UnixStream::pair().unwrap();
        drop(Registration::publish(Descriptors::of(&near)).unwrap());
        testing::child(|| (&near).write_all(b"from the child").unwrap()).join();
        drop(near);
        let mut said = String::new();
        far.read_to_string(&mut said).unwrap();
        assert_eq!(said, "from the child");
    });
}

#[test]
fn publishing_a_closed_descriptor_is_an_error() {
    clean_process(|| {
        struct Closed;
        impl std::os::fd::AsFd for Closed {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                // SAFETY: not a descriptor at all; only its number is looked at.
                unsafe { std::os::fd::BorrowedFd::borrow_raw(123_456) }
            }
        }
        let error = Registration::publish(Descriptors::of(&Closed)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    });
}

/// Row 22, while disowning: the table is full, so there is no room for the dead socket, and the numbers stay taken all the
/// same. And with the limit lowered below the numbers in use, where nothing can be opened.
#[test]
fn a_full_descriptor_table_does_not_keep_a_child_from_disowning() {
    clean_process(|| {
        for how in ["full", "lowered"] {
            let witness = Witness::start();
            let pool = forksafe::Pool::new(witness.manager()).unwrap();
            let mut held = [pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
            let sessions = held.each_mut().map(|conn| conn.ask("before").unwrap().connection);
            let names: BTreeSet<String> = held.iter().map(|conn| testing::socket_of(conn.stream())).collect();
            let numbers = held.each_ref().map(|conn| conn.stream().as_raw_fd());
            let (ready, go) = (Door::new(), Door::new());
            let mut fill: Vec<OwnedFd> = Vec::new();
            let before;
            if how == "full" {
                before = limit_descriptors(64);
                while let Ok(more) = File::open("/dev/null") {
                    fill.push(more.into());
                }
            } else {
                before = limit_descriptors(4);
            }
            // By hand: the kit needs descriptors, too.
            let child = crate::kit::fork();
            if child.is_none() {
                crate::kit::leave(|| {
                    ready.open();
                    go.pass();
                });
            }
            drop(fill);
            limit_descriptors(before);
            ready.pass();
            let child = child.unwrap();
            let there = testing::descriptors(child as u32);
            let shared = there.values().filter(|name| names.contains(*name)).count();
            assert_eq!(shared, 0, "{how}: sockets that the child still shares");
            if how == "full" {
                let dead = |number| there.get(number).is_some_and(|name| name.starts_with("socket:"));
                assert!(numbers.iter().all(dead), "{numbers:?} are to stay taken: {there:?}");
            }
            go.open();
            assert_eq!(crate::kit::exit_code(child), 0);
            assert_eq!(held.each_mut().map(|conn| conn.ask("after").unwrap().connection), sessions, "{how}");
            assert_eq!(witness.violations(), Vec::<String>::new());
        }
    });
}

fn is_open(fd: i32) -> bool {
    // SAFETY: takes numbers.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Puts another descriptor of the same thing at this number, whatever was there.
fn put_at(thing: &impl AsRawFd, number: i32) -> OwnedFd {
    // SAFETY: takes numbers; the new descriptor is ours alone, or takes the place of one that the caller gave up.
    unsafe {
        assert_eq!(libc::dup2(thing.as_raw_fd(), number), number);
        OwnedFd::from_raw_fd(number)
    }
}

/// A number that no test comes to by opening things.
const FAR: i32 = 500;

/// Row 22: there is room for a dead socket, but the limit was lowered below the number that it should be put over.
#[test]
fn a_socket_that_no_dead_one_can_be_put_over_is_closed() {
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let _guarded = Guarded::new(put_at(&near, FAR), Descriptors::of).unwrap();
        limit_descriptors(100);
        assert!(!testing::child(|| is_open(FAR)).join(), "the child still shares it");
        assert!(is_open(FAR));
    });
}

/// The connect or close of another thread was between the table and the memory: the object is there, the socket is not.
/// Its number is kept from everybody else.
#[test]
fn a_number_that_the_table_lacks_is_taken_by_a_dead_socket() {
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let there = put_at(&near, FAR);
        let registration = Registration::publish(Descriptors::of(&there)).unwrap();
        drop(there);
        let name = testing::child(|| testing::descriptors(std::process::id()).get(&FAR).cloned()).join();
        assert!(name.is_some_and(|name| name.starts_with("socket:")), "whoever thinks that {FAR} is his finds it dead");
        assert!(!is_open(FAR), "and here nothing was opened");
        drop(registration);
    });
}

/// The descriptor table is copied before memory: a child may have the socket although its memory says that it was closed.
#[test]
fn a_child_whose_table_is_older_than_its_memory_closes_what_had_been_closed() {
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let guarded = Guarded::new(put_at(&near, FAR), Descriptors::of).unwrap();
        drop(guarded);
        // As it was before the close.
        let earlier = put_at(&near, FAR);
        assert!(!testing::child(|| is_open(FAR)).join(), "the child keeps a copy of a socket that was closed");
        drop(earlier);
        // And something else that has the number by now is not touched.
        let guarded = Guarded::new(put_at(&near, FAR), Descriptors::of).unwrap();
        drop(guarded);
        let other = put_at(&File::open("/dev/null").unwrap(), FAR);
        let name = testing::child(|| testing::descriptors(std::process::id()).get(&FAR).cloned()).join();
        assert_eq!(name.as_deref(), Some("/dev/null"));
        drop(other);
    });
}

/// An idle connection whose driver closed the socket without a word; the number is another's by now.
#[test]
fn the_number_of_an_idle_connection_that_is_anothers_by_now_is_left_alone() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.manager();
        let pool = forksafe::Pool::new(pool).unwrap();
        let number = pool.get().unwrap().stream().as_raw_fd();
        let other = put_at(&File::open("/dev/null").unwrap(), number);
        let name = testing::child(|| testing::descriptors(std::process::id()).get(&number).cloned()).join();
        assert_eq!(name.as_deref(), Some("/dev/null"));
        // The connection thinks that it is its own, and there is only one to close.
        std::mem::forget(other);
        drop(pool);
    });
}

/// A stray copy is shut down at the close even when there is no room for the second descriptor that it takes.
#[test]
fn a_close_with_a_full_descriptor_table_leaves_no_live_copy() {
    clean_process(|| {
        let (near, mut far) = UnixStream::pair().unwrap();
        let _stray = near.try_clone().unwrap();
        let guarded = Guarded::new(near, Descriptors::of).unwrap();
        let before = limit_descriptors(64);
        let mut fill = Vec::new();
        while let Ok(more) = File::open("/dev/null") {
            fill.push(more);
        }
        drop(guarded);
        drop(fill);
        limit_descriptors(before);
        far.set_nonblocking(true).unwrap();
        assert_eq!(far.read(&mut [0]).expect("the end of the stream"), 0);
    });
}

/// Makes its socket, tells of it in a full table, and fails.
struct GivesUp {
    /// Told to forget it while it is there.
    forgets: bool,
    /// The other end, and a stray copy.
    sockets: Mutex<Vec<UnixStream>>,
}

impl ManageConnection for GivesUp {
    type Connection = UnixStream;
    type Error = io::Error;

    fn connect(&self) -> io::Result<UnixStream> {
        unreachable!("it is asked within an attempt")
    }

    fn is_valid(&self, _: &mut UnixStream) -> io::Result<()> {
        Ok(())
    }

    fn has_broken(&self, _: &mut UnixStream) -> bool {
        false
    }

    fn connect_within(&self, at: &mut Attempt) -> io::Result<UnixStream> {
        let (near, far) = UnixStream::pair()?;
        self.sockets.lock().unwrap().extend([far, near.try_clone()?]);
        let before = limit_descriptors(64);
        let mut fill = Vec::new();
        while let Ok(more) = File::open("/dev/null") {
            fill.push(more);
        }
        at.own(Descriptors::of(&near));
        drop(fill);
        limit_descriptors(before);
        if self.forgets {
            at.forget_all();
        }
        drop(near);
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

/// There is no room for the second descriptor by which a stray copy is shut down later.
#[test]
fn a_connect_that_is_given_up_in_a_full_descriptor_table_leaves_a_live_copy_unless_it_is_forgotten_first() {
    clean_process(|| {
        for forgets in [true, false] {
            let pool = forksafe::Pool::new(GivesUp { forgets, sockets: Mutex::default() }).unwrap();
            assert!(pool.get().unwrap_err().is_connect());
            let sockets = pool.manager().sockets.lock().unwrap();
            sockets[0].set_nonblocking(true).unwrap();
            let has_ended = (&sockets[0]).read(&mut [0]).is_ok_and(|read| read == 0);
            assert_eq!(has_ended, forgets);
        }
    });
}

/// A driver that closed its socket by itself and goes on: what took the number is not shut down with the connection.
#[test]
fn a_close_ends_the_registered_socket_and_no_other() {
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let guarded = Guarded::new(put_at(&near, FAR), Descriptors::of).unwrap();
        let (other, mut peer) = UnixStream::pair().unwrap();
        std::mem::forget(put_at(&other, FAR));
        drop(guarded);
        (&other).write_all(b"alive").unwrap();
        let mut said = [0; 5];
        peer.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"alive");
    });
}

/// The second descriptor that a close makes is not inherited by a program that is started in the middle of it.
#[test]
fn a_program_started_during_a_close_gets_no_copy_of_the_socket() {
    struct Lists(UnixStream, Arc<Mutex<String>>);
    impl Drop for Lists {
        fn drop(&mut self) {
            let listed = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
            *self.1.lock().unwrap() = String::from_utf8(listed.stdout).unwrap();
        }
    }
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let listed = Arc::new(Mutex::new(String::new()));
        drop(Guarded::new(Lists(near, Arc::clone(&listed)), |lists| Descriptors::of(&lists.0)).unwrap());
        let listed = listed.lock().unwrap();
        assert!(listed.contains(" 1 ->") && !listed.contains("socket:"), "{listed}");
    });
}

/// The entry that an inherited registration names was given up at birth and may be the child's own by now.
#[test]
fn an_inherited_registration_withdraws_nothing() {
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut inherited = Some(Registration::publish(Descriptors::of(&near)).unwrap());
        // Its number is another's when the child looks: nothing in the child needs the entry.
        let (other, _peer) = UnixStream::pair().unwrap();
        let _somebody_elses = put_at(&other, near.into_raw_fd());
        let survives = testing::child(|| {
            let (own, _peer) = UnixStream::pair().unwrap();
            // The end of a registration has the next search for a free entry begin at the first.
            drop(Registration::publish(Descriptors::of(&own)).unwrap());
            let _kept = Registration::publish(Descriptors::of(&own)).unwrap();
            drop(inherited.take());
            let number = own.as_raw_fd();
            testing::child(|| can_write(number)).join()
        });
        assert!(!survives.join(), "the child's own socket is live in its child");
    });
}

/// A goodbye that forks: the child comes out of the middle of it, and with it a second descriptor of the parent's socket.
#[test]
fn a_child_that_comes_out_of_a_goodbye_does_not_end_it() {
    struct Forks(UnixStream);
    impl Drop for Forks {
        fn drop(&mut self) {
            let Some(child) = crate::kit::fork() else { return };
            // The child is through with its part when this one goes on.
            assert_eq!(crate::kit::exit_code(child), 0);
            let _ = self.0.write_all(b"goodbye");
        }
    }
    clean_process(|| {
        let here = std::process::id();
        let (near, mut far) = UnixStream::pair().unwrap();
        drop(Guarded::new(Forks(near), |forks| Descriptors::of(&forks.0)).unwrap());
        if std::process::id() != here {
            crate::kit::leave(|| {});
        }
        let mut said = String::new();
        far.read_to_string(&mut said).unwrap();
        assert_eq!(said, "goodbye");
    });
}

/// A close has a second descriptor of the socket until the goodbye is said. A child that is made in between has neither, and
/// what it opens under their numbers it keeps.
#[test]
fn a_child_made_in_a_goodbye_has_no_copy_of_the_socket() {
    static COPIES: Mutex<Option<usize>> = Mutex::new(None);
    static OPENED: Mutex<Vec<File>> = Mutex::new(Vec::new());
    struct Forks(UnixStream);
    impl Drop for Forks {
        fn drop(&mut self) {
            let name = testing::socket_of(&self.0);
            let Some(child) = crate::kit::fork() else {
                let there = testing::descriptors(std::process::id());
                *COPIES.lock().unwrap() = Some(there.values().filter(|other| **other == name).count());
                OPENED.lock().unwrap().extend((0..8).map(|_| File::open("/dev/null").unwrap()));
                return;
            };
            assert_eq!(crate::kit::exit_code(child), 0);
        }
    }
    clean_process(|| {
        let here = std::process::id();
        let (near, _far) = UnixStream::pair().unwrap();
        drop(Guarded::new(Forks(near), |forks| Descriptors::of(&forks.0)).unwrap());
        if std::process::id() != here {
            crate::kit::leave(|| {
                assert_eq!(*COPIES.lock().unwrap(), Some(0));
                assert!(OPENED.lock().unwrap().iter().all(|file| is_open(file.as_raw_fd())));
            });
        }
    });
}

/// Row 29: each generation forks the next with a guard held.
#[test]
fn dozens_of_generations_do_not_fill_the_descriptor_table() {
    fn generation(pool: &forksafe::Pool<testing::WitnessManager>, left: u32) -> usize {
        let held = pool.get().unwrap();
        let idle = [pool.get().unwrap(), pool.get().unwrap()];
        drop(idle);
        let open = match left {
            0 => testing::descriptors(std::process::id()).len(),
            _ => testing::child(|| generation(pool, left - 1)).join(),
        };
        drop(held);
        open
    }
    clean_process(|| {
        let witness = Witness::start();
        let pool = forksafe::Pool::new(witness.manager()).unwrap();
        let open = generation(&pool, 40);
        // Each generation adds the pipe of its report, the dead socket under its guard, and the witness's side of what
        // had been accepted by then, which is the test's own doing.
        assert!(open < 40 * 8, "{open} descriptors after 40 generations");
    });
}

/// Threads publish and withdraw while others do; each entry is one thread's at a time.
#[test]
fn threads_that_publish_and_withdraw_do_not_meet() {
    clean_process(|| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let (a, b) = UnixStream::pair().unwrap();
                        let both = Registration::publish(Descriptors::of(&a).and(&b)).unwrap();
                        assert!(both.is_known());
                        drop(both);
                    }
                });
            }
        });
        let (mine, mut peer) = UnixStream::pair().unwrap();
        let kept = Registration::publish(Descriptors::of(&mine)).unwrap();
        let number = mine.as_raw_fd();
        assert!(!testing::child(|| can_write(number)).join());
        assert!(can_write(number));
        peer.read_exact(&mut [0]).unwrap();
        drop(kept);
        assert!(fork::generation().to_string() == "1");
    });
}
