//! Row 27: a program whose tokio handles signals, and whose children make runtimes, if only by connecting to PostgreSQL.

use forksafe::Pool;
use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, PrivatePostgres, clean_process, patience};
use postgres::NoTls;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

struct Listener(Runtime, Signal);

impl Listener {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let signal = runtime.block_on(async { signal(SignalKind::user_defined1()) }).unwrap();
        Self(runtime, signal)
    }

    fn hears(&mut self, within: Duration) -> bool {
        self.0.block_on(async { timeout(within, self.1.recv()).await.is_ok() })
    }
}

/// The handler has run when this returns.
fn raise() {
    // SAFETY: takes a number; tokio's handler is installed.
    assert_eq!(unsafe { libc::raise(libc::SIGUSR1) }, 0);
}

fn pool_of(server: &PrivatePostgres) -> Pool<PostgresManager<NoTls>> {
    Pool::new(PostgresManager::new(server.config(), NoTls)).unwrap()
}

fn asks(pool: &Pool<PostgresManager<NoTls>>) -> bool {
    pool.get().unwrap().query_one("SELECT 42", &[]).unwrap().get::<_, i32>(0) == 42
}

/// The child makes its runtime between the signal and the moment at which the parent looks.
#[test]
fn a_child_that_connects_takes_no_signal_from_its_parent() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let mut listener = Listener::new();
        let pool = pool_of(&server);
        assert!(asks(&pool));
        for n in 0..50 {
            let (mut told, mut tell) = pipe().unwrap();
            let child = testing::child(|| told.read_exact(&mut [0]).is_ok() && asks(&pool));
            raise();
            tell.write_all(b"x").unwrap();
            assert!(child.join());
            assert!(listener.hears(patience()), "signal {n} was taken by the child");
        }
    });
}

/// Both wait in their runtimes, and the child makes one after the other.
#[test]
fn three_hundred_signals_reach_a_parent_whose_children_connect() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let mut listener = Listener::new();
        let pool = pool_of(&server);
        assert!(asks(&pool));
        for n in 0..10 {
            let (told, mut tell) = pipe().unwrap();
            let child = testing::child(|| {
                while !is_told(&told) {
                    assert!(asks(&pool));
                    pool.disconnect();
                }
            });
            for _ in 0..30 {
                raise();
                assert!(listener.hears(patience()), "a signal was taken by child {n}");
            }
            tell.write_all(b"x").unwrap();
            child.join();
        }
    });
}

fn is_told(reader: &PipeReader) -> bool {
    let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
}

/// A child's signals are its own business, and so are those of its children.
#[test]
fn a_childs_own_signals_reach_it_and_nobody_else() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let mut listener = Listener::new();
        let pool = pool_of(&server);
        assert!(asks(&pool));
        let hears_itself = || {
            let mut own = Listener::new();
            let heard = (0..3).all(|_| {
                raise();
                own.hears(patience())
            });
            heard && asks(&pool)
        };
        assert!(testing::child(hears_itself).join());
        assert!(testing::child(|| hears_itself() && testing::child(hears_itself).join()).join());
        assert!(!listener.hears(Duration::from_millis(100)), "a child's signal");
        raise();
        assert!(listener.hears(patience()));
    });
}

/// The pair is looked for among others that look much like it.
#[test]
fn the_programs_other_socket_pairs_are_left_alone() {
    use std::os::unix::net::UnixStream;
    clean_process(|| {
        let server = PrivatePostgres::start();
        let mut pairs: Vec<(UnixStream, UnixStream)> = (0..4).map(|_| UnixStream::pair().unwrap()).collect();
        let mut listener = Listener::new();
        pairs.extend((0..4).map(|_| UnixStream::pair().unwrap()));
        pairs[5].0.write_all(b"unread").unwrap();
        let pool = pool_of(&server);
        assert!(asks(&pool));
        testing::child(|| {
            for (here, there) in &mut pairs {
                here.write_all(b"from the child").unwrap();
                let mut read = [0; 20];
                let length = there.read(&mut read).unwrap();
                assert!(read[..length].ends_with(b"from the child"));
            }
        })
        .join();
        raise();
        assert!(listener.hears(patience()));
    });
}

/// The master that only builds its pool, as is recommended, and whose workers connect.
#[test]
fn a_child_takes_no_signal_from_a_parent_that_has_not_connected_yet() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let mut listener = Listener::new();
        let pool = pool_of(&server);
        for n in 0..5 {
            let (mut told, mut tell) = pipe().unwrap();
            let child = testing::child(|| told.read_exact(&mut [0]).is_ok() && asks(&pool));
            raise();
            tell.write_all(b"x").unwrap();
            assert!(child.join());
            assert!(listener.hears(Duration::from_secs(5)), "signal {n} was taken by the child");
        }
    });
}

/// The search for the sender looks into everybody's socket pairs, and a look takes a socket's error away.
#[test]
fn the_programs_other_socket_pairs_keep_their_errors() {
    use std::os::unix::net::UnixStream;
    clean_process(|| {
        let server = PrivatePostgres::start();
        let (mut here, there) = UnixStream::pair().unwrap();
        let _listener = Listener::new();
        here.write_all(b"unread").unwrap();
        drop(there); // `here` has an error to tell: its peer went away with words unread.
        let pool = pool_of(&server);
        assert!(asks(&pool));
        let told = here.read(&mut [0]);
        assert!(told.is_err(), "{told:?}: the end of the stream, as if all had been read");
    });
}

/// No end of the pair, nor a client's copy of one, is shared by parent, child and grandchild.
#[test]
fn no_end_of_the_pair_is_shared() {
    use std::collections::BTreeSet;
    let names = || -> BTreeSet<String> {
        let all = testing::descriptors(std::process::id()).into_values();
        all.filter(|name| name.starts_with("socket:")).collect()
    };
    clean_process(|| {
        let server = PrivatePostgres::start();
        let others = names();
        let _listener = Listener::new();
        let pool = pool_of(&server);
        let held = [pool.get().unwrap(), pool.get().unwrap()];
        assert!(asks(&pool));
        for fd in testing::descriptors(std::process::id()).into_keys() {
            let mut unread: libc::c_int = 0;
            // SAFETY: `unread` is ours; what is no socket is an error.
            let told = unsafe { libc::ioctl(fd, libc::FIONREAD, &raw mut unread) };
            assert!(told != 0 || unread == 0 || fd < 3, "{unread} bytes were left in {fd}");
        }
        let here: BTreeSet<String> = names().difference(&others).cloned().collect();
        assert!(here.len() > 4, "{here:?}");
        let child = testing::child(|| {
            let shared: Vec<_> = names().intersection(&here).cloned().collect();
            assert!(shared.is_empty(), "{shared:?} in the child");
            let shared_with_grandchild = || {
                let there: BTreeSet<String> = names().difference(&others).cloned().collect();
                testing::child(|| -> Vec<String> { names().intersection(&there).cloned().collect() }).join()
            };
            let before = shared_with_grandchild();
            assert!(asks(&pool)); // What is not known of the pair is found again here.
            [before, shared_with_grandchild()]
        });
        for shared in child.join() {
            // The dead socket is no secret between a child and a grandchild.
            assert!(shared.len() <= 1, "{shared:?} in the grandchild");
        }
        drop(held);
    });
}
