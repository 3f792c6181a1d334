//! `Attempt::observe`: drivers that hide their descriptors, and exactly theirs.

use crate::churn::sockets_to;
use crate::kit::{self, StopOnDrop, TakesNumbers};
use forksafe::fork::Unobserved;
use forksafe::testing::{self, Answer, Witness, WitnessClient, clean_process};
use forksafe::{Attempt, Deadline, ManageConnection, Pool, PooledConnection};
use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
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

pub(crate) fn attempt() -> Attempt {
    Attempt::new(Deadline::after(testing::patience()))
}

/// Of an observation that has to fail.
pub(crate) fn unobserved<T: Send>(connect: impl FnOnce() -> io::Result<T> + Send) -> Unobserved {
    match attempt().observe(connect) {
        Err(why) => why,
        Ok(_) => panic!("it was observed"),
    }
}

pub(crate) fn limit_descriptors(limit: u64) {
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: `limit` is ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

fn who_am_i(pool: &Pool<Hidden>) -> Answer {
    pool.get().unwrap().ask("who am I to you").unwrap()
}

/// A server that keeps whatever connects.
pub(crate) fn server() -> (SocketAddr, mpsc::Receiver<TcpStream>) {
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
pub(crate) fn open_numbers() -> Vec<RawFd> {
    // SAFETY: takes numbers.
    (0..1024).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0).collect()
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
