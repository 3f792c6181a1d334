//! What a closure of `Attempt::observe` finds where it runs, and what it may do there.

use crate::churn::sockets_to;
use crate::kit;
use crate::observe::{attempt, open_numbers, server};
use forksafe::fork::Descriptors;
use forksafe::testing::{self, clean_process};
use forksafe::{Attempt, Deadline, ManageConnection, Pool};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

#[test]
fn the_attempt_is_current_in_the_closure() {
    clean_process(|| {
        let (address, _kept) = server();
        let at = Attempt::new(Deadline::after(Duration::from_secs(7)));
        let left = at.observe(|| {
            let left = Attempt::current().map(|attempt| attempt.deadline().remaining());
            // One inside the other: the outer one sees it.
            let stream = at.observe(|| TcpStream::connect(address)).unwrap()?;
            Ok::<_, io::Error>((left, stream))
        });
        let (left, stream) = left.unwrap().unwrap();
        assert!(left.is_some_and(|left| left <= Duration::from_secs(7)), "{left:?}");
        assert!(testing::child(|| stream.peer_addr().is_err()).join());
    });
}

/// A manager of this crate inside, say. Nothing is published twice, and nothing stays.
#[test]
fn what_the_closure_publishes_itself_is_published_once() {
    clean_process(|| {
        let (address, kept) = server();
        let before = open_numbers();
        let at = attempt();
        let connect = || {
            let stream = TcpStream::connect(address)?;
            Attempt::current().unwrap().own(Descriptors::of(&stream));
            Ok::<_, io::Error>((stream, TcpStream::connect(address)?))
        };
        let (one, other) = at.observe(connect).unwrap().unwrap();
        let theirs = [kept.recv().unwrap(), kept.recv().unwrap()];
        assert!(testing::child(|| one.peer_addr().is_err() && other.peer_addr().is_err()).join());
        drop((one, other, at));
        for mut stream in theirs {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
        assert_eq!(open_numbers(), before);
    });
}

/// As a manager that has one of this crate's inside, and another client.
struct Both(SocketAddr);

impl ManageConnection for Both {
    type Connection = (TcpStream, TcpStream);
    type Error = io::Error;

    fn connect(&self) -> io::Result<(TcpStream, TcpStream)> {
        let stream = TcpStream::connect(self.0)?;
        Attempt::current().unwrap().own(Descriptors::of(&stream));
        Ok((stream, TcpStream::connect(self.0)?))
    }
    fn connect_within(&self, at: &mut Attempt) -> io::Result<(TcpStream, TcpStream)> {
        at.observe(|| self.connect()).unwrap_or_else(|why| Err(io::Error::other(why)))
    }
    fn is_valid(&self, _: &mut (TcpStream, TcpStream)) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut (TcpStream, TcpStream)) -> bool {
        false
    }
}

/// The attempt's second descriptor of what was published inside is opened in the closure, too, and closed afterwards.
#[test]
fn a_child_keeps_no_number_of_what_was_only_there_while_it_connected() {
    clean_process(|| {
        let (address, kept) = server();
        let pool = Pool::new(Both(address)).unwrap();
        let lent = pool.get().unwrap();
        let _theirs = [kept.recv().unwrap(), kept.recv().unwrap()];
        let here = open_numbers();
        match kit::fork() {
            None => kit::leave(|| {
                assert_eq!(open_numbers(), here);
                assert!(sockets_to(address).is_empty());
            }),
            Some(child) => assert_eq!(kit::exit_code(child), 0),
        }
        assert_eq!(lent.0.peer_addr().unwrap(), lent.1.peer_addr().unwrap());
    });
}

/// There the closure's child comes back into the closure, as from any connect: the pool abandons what it has.
#[test]
fn a_closure_that_forks_on_the_only_thread_goes_on_in_both() {
    clean_process(|| {
        let (address, _kept) = server();
        testing::child(|| {
            let at = attempt();
            let connect = || Ok::<_, io::Error>((TcpStream::connect(address)?, kit::fork()));
            match at.observe(connect).unwrap().unwrap() {
                (stream, None) => kit::leave(|| assert!(stream.peer_addr().is_err())),
                (stream, Some(child)) => assert_eq!((kit::exit_code(child), stream.peer_addr().is_ok()), (0, true)),
            }
        })
        .join();
    });
}

#[test]
fn a_closure_that_forks_harms_nobody() {
    clean_process(|| {
        let (address, kept) = server();
        let (at, child) = (attempt(), AtomicU64::new(0));
        let path = std::env::temp_dir().join(format!("forksafe-observe-said-{}", std::process::id()));
        let said = File::create(&path).unwrap();
        let mut stream = at
            .observe(|| {
                let stream = TcpStream::connect(address)?;
                match kit::fork() {
                    // SAFETY: takes numbers.
                    None => _ = unsafe { libc::dup2(said.as_raw_fd(), 2) },
                    Some(number) => child.store(number as u64, SeqCst),
                }
                Ok::<_, io::Error>(stream)
            })
            .unwrap()
            .unwrap();
        assert_eq!(kit::exit_code(child.load(SeqCst) as i32), -libc::SIGABRT);
        let said = std::fs::read_to_string(&path).unwrap();
        let _ = std::fs::remove_file(&path);
        assert!(said.contains("Attempt::observe has forked"), "{said}");
        stream.write_all(b"alive").unwrap();
        kept.recv().unwrap().read_exact(&mut [0; 5]).unwrap();
    });
}

/// While a driver connects, what another thread closes is closed for whoever waits for that.
#[test]
fn what_other_threads_close_meanwhile_is_closed() {
    clean_process(|| {
        let (address, kept) = server();
        let ((mut end, ends), (mut near, far)) = (io::pipe().unwrap(), UnixStream::pair().unwrap());
        let tcp = TcpStream::connect(address).unwrap();
        let mut tcp_far = kept.recv().unwrap();
        let (connecting, go_on) = (mpsc::channel(), mpsc::channel::<()>());
        thread::scope(|scope| {
            scope.spawn(move || {
                let connect = move || {
                    connecting.0.send(()).unwrap();
                    go_on.1.recv().unwrap();
                    TcpStream::connect(address)
                };
                attempt().observe(connect).unwrap().unwrap();
            });
            connecting.1.recv().unwrap();
            drop((ends, far, tcp));
            let got = [end.read(&mut [0]).unwrap(), near.read(&mut [0]).unwrap(), tcp_far.read(&mut [0]).unwrap()];
            assert_eq!(got, [0; 3]);
            go_on.0.send(()).unwrap();
        });
    });
}

/// The files of the process are there in the closure, its signals are not handled there, and stderr is.
#[test]
fn a_closure_has_the_files_of_the_process_and_none_of_its_signals() {
    clean_process(|| {
        let (address, _kept) = server();
        let mut log = File::options().write(true).open("/dev/null").unwrap();
        extern "C" fn handle(_: libc::c_int) {}
        let handler = handle as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
        let at = attempt();
        let (mut stream, blocked) = at
            .observe(|| {
                log.write_all(b"connecting")?;
                // SAFETY: the set is filled by the first call.
                let blocked = unsafe {
                    let mut set = std::mem::zeroed();
                    libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
                    [libc::SIGTERM, libc::SIGUSR1, libc::SIGCHLD, libc::SIGSEGV].map(|s| libc::sigismember(&set, s))
                };
                Ok::<_, io::Error>((TcpStream::connect(address)?, blocked))
            })
            .unwrap()
            .unwrap();
        // What a program inherits that is started there can be ended.
        assert_eq!(blocked, [0, 1, 0, 0]);
        stream.write_all(b"x").unwrap();
    });
}

/// An epoll knows what it watches by the file and the number: both are as they were.
#[test]
fn an_epoll_of_the_driver_goes_on() {
    clean_process(|| {
        let (address, kept) = server();
        let at = attempt();
        let (epoll, mut stream) = at
            .observe(|| {
                let stream = TcpStream::connect(address)?;
                // SAFETY: takes numbers; the descriptor is new.
                let epoll = unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) };
                epoll_ctl(&epoll, libc::EPOLL_CTL_ADD, &stream)?;
                Ok::<_, io::Error>((epoll, stream))
            })
            .unwrap()
            .unwrap();
        kept.recv().unwrap().write_all(b"x").unwrap();
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let patience = testing::patience().as_millis() as i32;
        // SAFETY: `event` is ours.
        assert_eq!(unsafe { libc::epoll_wait(epoll.as_raw_fd(), &raw mut event, 1, patience) }, 1);
        stream.read_exact(&mut [0]).unwrap();
        epoll_ctl(&epoll, libc::EPOLL_CTL_DEL, &stream).unwrap();
        assert!(testing::child(|| stream.peer_addr().is_err()).join());
    });
}

/// The pool's descriptors are covered where other threads have theirs, and what is opened there for it is not in the process.
#[test]
fn another_pool_gives_nothing_in_a_closure() {
    clean_process(|| {
        let (address, _kept) = server();
        let other = Pool::new(Both(address)).unwrap();
        drop(other.get().unwrap());
        let at = attempt();
        let connect = || {
            let refused = [other.get().err(), other.warm_up(2).err()].map(Option::unwrap);
            assert!(other.try_get().is_none());
            other.evict();
            other.disconnect();
            other.maintain();
            Ok::<_, io::Error>((refused, TcpStream::connect(address)?))
        };
        let (refused, _stream) = at.observe(connect).unwrap().unwrap();
        assert!(
            refused.iter().all(|error| error.is_unprotected() && error.to_string().contains("observe")),
            "{refused:?}"
        );
        assert_eq!(other.statistics().unwrap().created, 1);
        let conn = other.get().unwrap();
        assert_eq!(other.statistics().unwrap().created, 1, "the idle one is as it was");
        conn.0.take_error().unwrap();
    });
}

fn epoll_ctl(epoll: &OwnedFd, what: i32, stream: &TcpStream) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
    // SAFETY: `event` is ours.
    match unsafe { libc::epoll_ctl(epoll.as_raw_fd(), what, stream.as_raw_fd(), &raw mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
