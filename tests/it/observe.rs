//! `Attempt::observe`: drivers that hide their descriptors, and exactly theirs.

use crate::churn::sockets_to;
use crate::kit::{self, StopOnDrop, TakesNumbers, deny, hide_proc};
use forksafe::fork::{Descriptors, Unobserved};
use forksafe::testing::{self, Answer, Witness, WitnessClient, clean_process};
use forksafe::{Attempt, Deadline, ManageConnection, Pool, PooledConnection};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A manager whose client shows nothing.
struct Hidden(SocketAddr);

impl ManageConnection for Hidden {
    type Connection = WitnessClient;
    type Error = io::Error;

    fn connect(&self) -> io::Result<WitnessClient> {
        WitnessClient::connect(self.0)
    }
    fn connect_within(&self, at: &mut Attempt) -> io::Result<WitnessClient> {
        at.observe(|| self.connect()).unwrap_or_else(|why| Err(io::Error::other(why)))
    }
    fn is_valid(&self, client: &mut WitnessClient) -> io::Result<()> {
        client.ask("valid?").map(drop)
    }
    fn has_broken(&self, _: &mut WitnessClient) -> bool {
        false
    }
}

fn attempt() -> Attempt {
    Attempt::new(Deadline::after(testing::patience()))
}

/// Of an observation that has to fail.
fn unobserved<T: Send>(connect: impl FnOnce() -> io::Result<T> + Send) -> Unobserved {
    match attempt().observe(connect) {
        Err(why) => why,
        Ok(_) => panic!("it was observed"),
    }
}

fn who_am_i(pool: &Pool<Hidden>) -> Answer {
    pool.get().unwrap().ask("who am I to you").unwrap()
}

/// A server that keeps whatever connects.
fn server() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (keep, kept) = mpsc::channel();
    let address = listener.local_addr().unwrap();
    // An error: the table was full when it began to wait for the next.
    thread::spawn(move || listener.incoming().flatten().try_for_each(|stream| keep.send(stream)));
    (address, kept)
}

/// What the kernel calls this socket, and nobody else.
fn cookie(stream: &TcpStream) -> u64 {
    let (mut cookie, mut size) = (0_u64, 8);
    let (fd, into) = (stream.as_raw_fd(), (&raw mut cookie).cast());
    // SAFETY: `cookie` is ours and `size` says how large.
    assert_eq!(unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, into, &raw mut size) }, 0);
    cookie
}

/// Without listing them, which would add one.
fn open_numbers() -> Vec<RawFd> {
    // SAFETY: takes numbers.
    (0..1024).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).collect()
}

fn limit_descriptors(limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: `limit` is ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

/// Of 800 each is exactly its own; and what other threads have opened meanwhile is nobody's.
#[test]
fn of_eight_threads_that_connect_at_once_each_gets_exactly_its_own() {
    clean_process(|| {
        limit_descriptors(8192);
        let (address, kept) = server();
        let stop = AtomicBool::new(false);
        let connected: Mutex<Vec<(Attempt, TcpStream)>> = Mutex::default();
        let others: Mutex<Vec<TcpStream>> = Mutex::default();
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            let _takes_numbers = TakesNumbers::begin();
            for _ in 0..2 {
                scope.spawn(|| {
                    let (address, kept) = server();
                    while !stop.load(SeqCst) {
                        let other = TcpStream::connect(address).unwrap();
                        let theirs = kept.recv().unwrap();
                        drop(UnixStream::pair().unwrap());
                        let mut others = others.lock().unwrap();
                        if others.len() < 500 {
                            others.extend([other, theirs]);
                        }
                    }
                });
            }
            let connecting = (0..8).map(|_| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let at = attempt();
                        let connect = || TcpStream::connect(address).map(|stream| (cookie(&stream), stream));
                        let (there, stream) = at.observe(connect).unwrap().unwrap();
                        assert_eq!(cookie(&stream), there, "another socket is under its number");
                        assert_eq!(stream.peer_addr().unwrap(), address);
                        connected.lock().unwrap().push((at, stream));
                    }
                })
            });
            let connecting: Vec<_> = connecting.collect();
            connecting.into_iter().for_each(|thread| thread.join().unwrap());
        });
        let (connected, others) = (connected.into_inner().unwrap(), others.into_inner().unwrap());
        let (owned, live) = testing::child(|| {
            let owned = connected.iter().filter(|(_, stream)| stream.peer_addr().is_err()).count();
            (owned, others.iter().filter(|other| other.peer_addr().is_ok()).count())
        })
        .join();
        assert_eq!((owned, live), (800, others.len()));
        let kept: Vec<TcpStream> = kept.try_iter().collect();
        assert_eq!(kept.len(), 800);
        drop(connected);
        for mut stream in kept {
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "somebody still has a copy");
        }
    });
}

/// Whatever comes in between, also of those whose connect was in the middle.
#[test]
fn no_child_holds_a_live_socket_of_a_hidden_driver() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = Pool::builder().max_size(6).build(Hidden(witness.address())).unwrap();
        let (stop, churned) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut held = pool.get().unwrap();
        let session = held.ask("who").unwrap().connection;
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let mut conn = pool.get().unwrap();
                        conn.ask("am I my own?").unwrap();
                        PooledConnection::discard(conn);
                        churned.fetch_add(1, SeqCst);
                    }
                });
            }
            for n in (0..).take_while(|&n| n < 300 || churned.load(SeqCst) < 100) {
                let live = testing::child(|| {
                    let held = sockets_to(witness.address());
                    held.into_iter().filter(|&fd| stays_live(fd)).collect::<Vec<RawFd>>()
                });
                assert_eq!(live.join(), Vec::<RawFd>::new(), "child {n} holds what it did not make");
            }
        });
        assert_eq!(held.ask("who").unwrap().connection, session);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// The parent may be about to end it.
fn stays_live(fd: RawFd) -> bool {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while std::time::Instant::now() < until {
        // SAFETY: no bytes are read.
        if unsafe { libc::send(fd, std::ptr::null(), 0, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) } < 0 {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

#[test]
fn a_hidden_driver_in_a_pool_is_disowned_in_a_child() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = Pool::builder().require_known_descriptors(true).build(Hidden(witness.address())).unwrap();
        let (mut lent, idle) = (pool.get().unwrap(), pool.get().unwrap());
        let lent_there = lent.ask("who").unwrap().connection;
        drop(idle);
        assert_eq!(pool.state().unknown_descriptors, 0);
        let numbers = sockets_to(witness.address());
        assert_eq!(numbers.len(), 2);
        let child = testing::child(|| {
            let live = sockets_to(witness.address());
            (live, who_am_i(&pool).connection)
        });
        let (live, own) = child.join();
        assert_eq!(live, Vec::<RawFd>::new());
        assert_ne!(own, lent_there);
        assert_eq!(lent.ask("who").unwrap().connection, lent_there);
        // A child that lives on keeps nothing of it alive.
        let steps = testing::Steps::new(&["forked", "seen"]);
        let child = testing::child(|| {
            steps.take("forked");
            steps.wait_for("seen");
        });
        steps.wait_for("forked");
        PooledConnection::discard(lent);
        witness.wait_until("the session has ended", |all| all[&lent_there].ended_at.is_some());
        steps.take("seen");
        child.join();
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// Neither the half-made connection nor a placeholder.
#[test]
fn a_child_that_is_forked_while_the_driver_connects_has_nothing_of_it() {
    clean_process(|| {
        let (address, kept) = server();
        let (connecting, go_on) = (mpsc::channel(), mpsc::channel());
        let before = open_numbers();
        let stream = thread::scope(|scope| {
            let observing = scope.spawn(move || {
                let connect = move || {
                    let stream = TcpStream::connect(address)?;
                    connecting.0.send(()).unwrap();
                    go_on.1.recv().unwrap();
                    Ok::<_, io::Error>(stream)
                };
                let at = attempt();
                (at.observe(connect).unwrap().unwrap(), at)
            });
            connecting.1.recv().unwrap();
            drop(kept.recv().unwrap());
            // A child of the kit's would have a pipe, too.
            match kit::fork() {
                None => kit::leave(|| assert_eq!(open_numbers(), before)),
                Some(child) => assert_eq!(kit::exit_code(child), 0),
            }
            go_on.0.send(()).unwrap();
            observing.join().unwrap()
        });
        // The socket, and the second descriptor of an attempt that is not over.
        assert_eq!(open_numbers().len(), before.len() + 2);
        drop(stream);
        assert_eq!(open_numbers(), before);
    });
}

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
        let (address, _kept) = server();
        let pool = Pool::new(Both(address)).unwrap();
        let lent = pool.get().unwrap();
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

/// There is nobody whose descriptors they could be. To start a thread in such a child could hang.
#[test]
fn in_a_process_with_one_thread_none_is_started() {
    clean_process(|| {
        let (address, _kept) = server();
        testing::child(|| {
            let at = attempt();
            let connect = || Ok::<_, io::Error>((thread::current().id(), TcpStream::connect(address)?));
            let (there, stream) = at.observe(connect).unwrap().unwrap();
            assert_eq!(there, thread::current().id());
            assert!(testing::child(|| stream.peer_addr().is_err()).join());
            assert!(stream.peer_addr().is_ok());
            let none = unobserved(|| File::open("/dev/null"));
            assert!(none.to_string().contains("no socket"), "{none}");
            let other = File::open("/dev/null").unwrap();
            let number = other.as_raw_fd();
            let (at, mut other) = (attempt(), Some(other));
            let connect = || {
                drop(other.take());
                TcpStream::connect(address)
            };
            let stream = at.observe(connect).unwrap().unwrap();
            assert_eq!(stream.as_raw_fd(), number, "it has not got the number of what was closed");
            assert!(testing::child(|| stream.peer_addr().is_err()).join());
            let (end, ends) = mpsc::channel::<()>();
            let threads = unobserved(|| {
                thread::spawn(move || ends.recv());
                TcpStream::connect(address)
            });
            assert!(threads.to_string().contains("threads"), "{threads}");
            drop(end);
        })
        .join();
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
        assert_eq!(blocked, [1, 1, 1, 0]);
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

fn epoll_ctl(epoll: &OwnedFd, what: i32, stream: &TcpStream) -> io::Result<()> {
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
    // SAFETY: `event` is ours.
    match unsafe { libc::epoll_ctl(epoll.as_raw_fd(), what, stream.as_raw_fd(), &raw mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
