//! Redis connections at their beginning: what fails, what overlaps a fork, what a manager of one's own makes of it.

use crate::churn;
use crate::kit::{self, Door, StopOnDrop, deny, exit_code, fork, leave};
use crate::redis_fake::{Fake, Says, says};
use crate::servers::Server;
use forksafe::redis::RedisManager;
use forksafe::testing::{self, PrivateRedis, clean_process};
use forksafe::{Attempt, Deadline, ManageConnection, PooledConnection};
use redis::{Connection, RedisResult};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// How many of this process's sockets lead to the server, so that words could still reach it.
pub(crate) fn live_to(server: SocketAddr) -> usize {
    let sockets = churn::sockets_to(server).into_iter();
    // No bytes at all: nothing on the wire of what may be the parent's, but an error on one that was shut down.
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: no bytes are read.
    sockets.filter(|&fd| unsafe { libc::send(fd, std::ptr::null(), 0, flags) } >= 0).count()
}

/// Children of a process of which two threads fail to connect all the while: none keeps a live connection of theirs.
fn failing_connects_leave_nothing(url: &str, server: SocketAddr, timeout: Duration) {
    let pool = kit::tested().max_size(4).build(redis::Client::open(url).unwrap()).unwrap();
    let (stop, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    assert!(pool.get_timeout(timeout).is_err(), "{url}");
                    failed.fetch_add(1, SeqCst);
                }
            });
        }
        let mut holders = 0;
        for _ in 0..10 {
            let children: Vec<_> = (0..10)
                .map(|_| {
                    fork().unwrap_or_else(|| {
                        leave(|| {
                            // What the parent shuts down is dead within moments; what it forgets stays.
                            let until = Instant::now() + testing::patience() / 2;
                            while live_to(server) > 0 {
                                assert!(Instant::now() < until, "a live connection of the parent's");
                                thread::yield_now();
                            }
                        })
                    })
                })
                .collect();
            holders += children.into_iter().filter(|&child| exit_code(child) != 0).count();
        }
        assert_eq!(holders, 0, "of 100 children, with {url}");
    });
    assert!(failed.load(SeqCst) > 0);
}

/// Row 32.
#[test]
fn a_refused_database_leaves_no_live_copy_in_any_child() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let url = format!("{}99", redis.url());
        failing_connects_leave_nothing(&url, redis.address().parse().unwrap(), testing::patience());
    });
}

#[test]
fn a_wrong_password_leaves_no_live_copy_in_any_child() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--requirepass", "secret"]);
        let server = redis.address().parse().unwrap();
        for path in ["", "5", "?protocol=resp3"] {
            let url = format!("redis://:wrong@{}/{path}", redis.address());
            failing_connects_leave_nothing(&url, server, testing::patience());
        }
    });
}

#[test]
fn a_refused_hello_leaves_no_live_copy_in_any_child() {
    clean_process(|| {
        let fake = Fake::start(|_, _, words| match words[0].as_str() {
            "HELLO" => says("-ERR unknown command 'HELLO'\r\n"),
            _ => Says::Usual,
        });
        let url = format!("{}?protocol=resp3", fake.url());
        failing_connects_leave_nothing(&url, fake.address.parse().unwrap(), testing::patience());
    });
}

#[test]
fn a_silent_server_leaves_no_live_copy_in_any_child() {
    clean_process(|| {
        let fake = Fake::start(|_, _, _| Says::Silence);
        for path in ["", "5?protocol=resp3"] {
            let url = format!("{}{path}", fake.url());
            failing_connects_leave_nothing(&url, fake.address.parse().unwrap(), Duration::from_millis(5));
        }
    });
}

/// The whole of a url is the driver's business afterwards, though it has said none of it.
#[test]
fn the_driver_remembers_what_it_did_not_say() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--requirepass", "secret"]);
        let url = format!("redis://:secret@{}/5?protocol=resp3", redis.address());
        let pool = kit::tested().build(redis::Client::open(url).unwrap()).unwrap();
        let mut conn = pool.get().unwrap();
        assert_eq!(redis::ConnectionLike::get_db(&*conn), 5);
        let (tells, told) = std::sync::mpsc::channel();
        conn.set_push_sender(tells);
        conn.subscribe_resp3("news").expect("the driver speaks RESP3");
        assert_eq!(redis::cmd("PUBLISH").arg("news").arg("!").query::<u32>(&mut *conn).unwrap(), 1);
        assert_eq!(told.recv().unwrap().kind, redis::PushKind::Subscribe);
        PooledConnection::discard(conn);
    });
}

/// What a driver sets on its socket is on the one in its place.
#[test]
fn the_settings_of_the_socket_are_kept() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let info = redis::IntoConnectionInfo::into_connection_info(redis.url()).unwrap();
        let settings = info.tcp_settings().clone().set_nodelay(true).set_user_timeout(Duration::from_millis(4321));
        let pool = kit::tested().build(redis::Client::open(info.set_tcp_settings(settings)).unwrap()).unwrap();
        let _conn = pool.get().unwrap();
        let socket = churn::sockets_to(redis.address().parse().unwrap())[0];
        for (option, value) in [(libc::TCP_NODELAY, 1), (libc::TCP_USER_TIMEOUT, 4321)] {
            let (mut is, mut size) = (0, size_of::<libc::c_int>() as libc::socklen_t);
            // SAFETY: `is` is ours and `size` says how large.
            let failed =
                unsafe { libc::getsockopt(socket, libc::IPPROTO_TCP, option, (&raw mut is).cast(), &raw mut size) };
            assert_eq!((failed, is), (0, value));
        }
    });
}

/// A pool has no sockets but those to its server: what the driver was connected with first is gone.
#[test]
fn nothing_is_left_of_the_stand_in() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        for path in ["", "5?protocol=resp3"] {
            let pool = kit::tested().build(redis::Client::open(format!("{}{path}", redis.url())).unwrap()).unwrap();
            let before = testing::descriptors(std::process::id()).len();
            let held: Vec<_> = (0..5).map(|_| pool.get().unwrap()).collect();
            assert_eq!(testing::descriptors(std::process::id()).len(), before + 5, "{path}");
            assert_eq!(live_to(redis.address().parse().unwrap()), 5);
            drop((held, pool));
        }
    });
}

/// Where there can be no listener the driver opens its socket itself.
#[test]
fn without_a_stand_in_the_driver_connects() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--requirepass", "secret"]);
        let server = redis.address().to_owned();
        testing::child(|| {
            deny(libc::SYS_listen, None, libc::EACCES);
            for path in ["", "5", "?protocol=resp3", "5?protocol=resp3"] {
                let url = format!("redis://:secret@{server}/{path}");
                let pool = kit::tested().build(redis::Client::open(url.as_str()).unwrap()).unwrap();
                let session = PrivateRedis::session(&pool);
                assert_eq!(PrivateRedis::session(&pool), session, "{url}");
                assert_ne!(testing::child(|| PrivateRedis::session(&pool)).join(), session, "{url}");
            }
        })
        .join();
    });
}

/// A unix socket whose backlog is full is given up in time.
#[test]
fn a_full_backlog_is_given_up_in_time() {
    clean_process(|| {
        let path = std::env::temp_dir().join(format!("forksafe-backlog-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let url = format!("redis+unix://{}", path.display());
        let pool = kit::tested().build(redis::Client::open(url).unwrap()).unwrap();
        // SAFETY: takes numbers. Room for one.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let _filled = UnixStream::connect(&path).unwrap();
        let begin = Instant::now();
        let error = pool.get_timeout(Duration::from_millis(500)).unwrap_err();
        assert!(error.is_connect(), "{error:?}");
        assert!(begin.elapsed() < testing::patience() / 4, "{:?}", begin.elapsed());
        let _ = std::fs::remove_file(&path);
    });
}

/// Row 33: as people write them who come from r2d2.
#[derive(Clone)]
struct Newtype(redis::Client);

impl ManageConnection for Newtype {
    type Connection = Connection;
    type Error = redis::RedisError;

    fn connect(&self) -> RedisResult<Connection> {
        let mut conn = ManageConnection::connect(&self.0)?;
        redis::cmd("CLIENT").arg("SETNAME").arg("mine").exec(&mut conn)?;
        Ok(conn)
    }
    fn is_valid(&self, conn: &mut Connection) -> RedisResult<()> {
        self.0.is_valid(conn)
    }
    fn has_broken(&self, conn: &mut Connection) -> bool {
        self.0.has_broken(conn)
    }
}

/// Connects by the driver's own method.
#[derive(Clone)]
struct ByDriver(redis::Client);

impl ManageConnection for ByDriver {
    type Connection = Connection;
    type Error = redis::RedisError;

    fn connect(&self) -> RedisResult<Connection> {
        self.0.get_connection()
    }
    fn is_valid(&self, conn: &mut Connection) -> RedisResult<()> {
        self.0.is_valid(conn)
    }
    fn has_broken(&self, conn: &mut Connection) -> bool {
        self.0.has_broken(conn)
    }
    fn descriptors(&self, conn: &Connection) -> forksafe::fork::Descriptors {
        self.0.descriptors(conn)
    }
}

fn is_protected<M: ManageConnection<Connection = Connection>>(manager: M, redis: &PrivateRedis) {
    let pool = kit::tested().max_size(2).build(manager).unwrap();
    let server = redis.address().parse().unwrap();
    let mut held = Some(pool.get().unwrap());
    let session = PrivateRedis::ask(held.as_mut().unwrap());
    let other = PrivateRedis::ask(&mut pool.get().unwrap());
    assert_eq!(live_to(server), 2);
    let child = testing::child(|| {
        assert_eq!(live_to(server), 0, "at birth");
        drop(held.take());
        PrivateRedis::ask(&mut pool.get().unwrap())
    });
    assert_ne!(child.join(), session);
    assert_eq!(PrivateRedis::ask(held.as_mut().unwrap()), session);
    drop(held);
    for _ in 0..3 {
        let next = PrivateRedis::ask(&mut pool.get().unwrap());
        assert!(next == session || next == other, "the test replaces neither");
    }
}

#[test]
fn a_manager_that_wraps_a_client_is_protected() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        is_protected(Newtype(redis.manager()), &redis);
    });
}

#[test]
fn a_manager_that_has_the_driver_connect_is_protected() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        is_protected(ByDriver(redis.manager()), &redis);
    });
}

#[test]
fn the_manager_with_options_is_protected() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        is_protected(RedisManager::new(redis.manager()), &redis);
        is_protected(Arc::new(RedisManager::open(redis.url()).unwrap()), &redis);
    });
}

/// Row 33: a connect that a newtype passes on keeps the pool's deadline, and so does the test.
#[test]
fn a_manager_that_wraps_a_client_keeps_the_deadline() {
    clean_process(|| {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = redis::Client::open(format!("redis://{}/", silent.local_addr().unwrap())).unwrap();
        let pool = kit::tested().build(Newtype(client)).unwrap();
        let begin = Instant::now();
        assert!(pool.get_timeout(Duration::from_millis(300)).unwrap_err().is_connect());
        assert!(begin.elapsed() < testing::patience() / 4, "{:?}", begin.elapsed());
    });
}

/// The timeouts that a connection has are what they were, after somebody has looked for its descriptor.
#[test]
fn looking_for_the_descriptor_leaves_the_timeouts_alone() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let client = redis.manager();
        let conn = client.get_connection().unwrap();
        conn.set_read_timeout(Some(Duration::from_millis(1200))).unwrap();
        conn.set_write_timeout(Some(Duration::from_millis(5600))).unwrap();
        let known = forksafe::fork::Registration::publish(client.descriptors(&conn)).unwrap();
        assert!(known.is_known());
        let socket = churn::sockets_to(redis.address().parse().unwrap())[0];
        assert_eq!(crate::redis_session::timeouts(socket), [(1, 200_000), (5, 600_000)]);
        let mut conn = conn;
        client.is_valid(&mut conn).unwrap();
        assert_eq!(crate::redis_session::timeouts(socket), [(1, 200_000), (5, 600_000)]);
    });
}

/// A manager's connect can be tried without a pool.
#[test]
fn an_attempt_of_ones_own_is_connected_within() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let mut attempt = Attempt::new(Deadline::after(testing::patience()));
        let mut conn = redis.manager().connect_within(&mut attempt).unwrap();
        assert!(redis::cmd("PING").exec(&mut conn).is_ok());
        let there = testing::child(|| live_to(redis.address().parse().unwrap()));
        assert_eq!(there.join(), 0, "published");
    });
}

/// A child made in the middle of a connect, before the server has said a word, has a dead socket.
#[test]
fn a_fork_in_the_middle_of_a_connect_finds_the_socket() {
    clean_process(|| {
        for path in ["", "3", "?protocol=resp3"] {
            let (asked, answer) = (Arc::new(Door::new()), Arc::new(Door::new()));
            let (asks, answers) = (Arc::clone(&asked), Arc::clone(&answer));
            let fake = Fake::start(move |connection, command, _| {
                if (connection, command) == (0, 0) {
                    asks.open();
                    answers.pass();
                }
                Says::Usual
            });
            let server: SocketAddr = fake.address.parse().unwrap();
            let pool = kit::tested().build(redis::Client::open(format!("{}{path}", fake.url())).unwrap()).unwrap();
            thread::scope(|scope| {
                let connects = scope.spawn(|| pool.get().map(drop));
                asked.pass();
                let live = testing::child(|| live_to(server)).join();
                answer.open();
                connects.join().unwrap().unwrap();
                assert_eq!(live, 0, "{path}");
            });
        }
    });
}
