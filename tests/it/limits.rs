//! Bad input, dead servers, full tables: each a clear error in time, and the pool usable afterwards. Row 24 and 25.

use crate::kit::{self, Door, ask};
use crate::redis_fake::{Fake, Says, says};
use crate::servers::Server;
use forksafe::fork::Descriptors;
use forksafe::testing::{self, PrivateRedis, Witness, WitnessClient, WitnessManager, clean_process};
use forksafe::{Error, ManageConnection, Pool, PooledConnection};
use std::collections::BTreeSet;
use std::error::Error as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

fn redis_pool(url: &str) -> Pool<redis::Client> {
    kit::tested().build(redis::Client::open(url).unwrap()).unwrap()
}

/// The error of a get within `timeout`; generous, but far from the next thing that could end it.
#[track_caller]
fn fails_within(pool: &Pool<redis::Client>, timeout: Duration) -> Error {
    let begin = Instant::now();
    let error = pool.get_timeout(timeout).unwrap_err();
    let took = begin.elapsed();
    assert!(took < timeout + Duration::from_secs(2), "{took:?} for a timeout of {timeout:?}: {error}");
    error
}

fn open_descriptors() -> BTreeSet<i32> {
    testing::descriptors(std::process::id()).into_keys().collect()
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let client = || redis::Client::open("redis://127.0.0.1/").unwrap();
    let refused = |builder: forksafe::Builder<redis::Client>| {
        let error = builder.build(client()).unwrap_err();
        assert!(error.is_config());
        error.to_string()
    };
    let builder = || Pool::<redis::Client>::builder();
    assert!(refused(builder().max_size(0)).contains("max_size is 0"));
    assert!(refused(builder().max_size(u32::MAX)).contains("more than 65536"));
    assert!(
        refused(builder().max_size(2).min_idle(Some(3))).contains("min_idle is 3, which is more than max_size (2)")
    );
    assert!(refused(builder().max_lifetime(Some(Duration::ZERO))).contains("max_lifetime is 0"));
    assert!(refused(builder().idle_timeout(Some(Duration::ZERO))).contains("idle_timeout is 0"));
    let panics = std::panic::catch_unwind(|| builder().max_size(0).build_unchecked(client()));
    assert!(panics.is_err());
    let enormous = builder().max_lifetime(Some(Duration::MAX)).idle_timeout(Some(Duration::MAX));
    enormous.connection_timeout(Duration::MAX).build(client()).unwrap();
    assert!(redis::Client::open("not a url").is_err());
}

#[test]
fn an_enormous_timeout_works_and_a_zero_one_only_lends_what_is_idle() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = kit::tested().connection_timeout(Duration::MAX).build(redis.manager()).unwrap();
        assert!(pool.get_timeout(Duration::ZERO).unwrap_err().is_timeout(), "nothing is idle");
        let session = PrivateRedis::session(&pool);
        let mut idle = pool.get_timeout(Duration::ZERO).unwrap();
        assert_eq!(PrivateRedis::ask(&mut idle), session);
    });
}

#[test]
fn a_wrong_password_is_told_at_once_and_leaves_nothing() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--requirepass", "secret"]);
        let admin = redis_pool(&format!("redis://:secret@{}/", redis.address()));
        let before = (open_descriptors(), ());
        for url in [
            format!("redis://:wrong@{}/", redis.address()),
            format!("redis://somebody:wrong@{}/", redis.address()),
            format!("redis://:wrong@{}/3", redis.address()),
            format!("redis://:wrong@{}/?protocol=resp3", redis.address()),
            format!("redis://{}/3", redis.address()),
        ] {
            let pool = redis_pool(&url);
            for _ in 0..3 {
                let error = fails_within(&pool, Duration::from_secs(10));
                assert!(error.is_connect(), "{url}: {error}");
                let source = error.source().unwrap().to_string();
                assert!(
                    ["WRONGPASS", "invalid username-password", "NOAUTH", "Authentication required", "uthentication"]
                        .iter()
                        .any(|word| source.contains(word)),
                    "{url}: {source}"
                );
            }
            assert_eq!(pool.state().connections, 0);
        }
        assert_eq!(open_descriptors(), before.0, "descriptors");
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut *admin.get().unwrap()).unwrap();
        assert_eq!(list.lines().count(), 1, "sessions: {list}");
    });
}

#[test]
fn a_refused_port_and_an_unknown_host_are_told_with_their_source() {
    clean_process(|| {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = redis_pool(&format!("redis://{free}/"));
        let error = fails_within(&refused, Duration::from_secs(5));
        assert!(error.is_connect() && format!("{error:#}").to_lowercase().contains("refused"), "{error}");
        let unknown = redis_pool("redis://no-such-host.invalid/");
        let error = unknown.get().unwrap_err();
        assert!(error.is_connect() && error.source().is_some(), "{error}");
        assert_eq!(unknown.state().connections, 0);
    });
}

/// Row 24: the server is away between the fork and the first use, and comes back.
#[test]
fn a_server_that_is_away_at_first_is_an_error_in_time_and_then_works() {
    clean_process(|| {
        let mut redis = PrivateRedis::start_with(&["--maxclients", "100"]);
        let pool = redis_pool(redis.url());
        PrivateRedis::session(&pool);
        redis.kill();
        let away = testing::child(|| {
            let error = fails_within(&pool, Duration::from_secs(5));
            assert!(error.is_connect(), "{error}");
            assert_eq!(pool.state().connections, 0);
            redis.restart();
            PrivateRedis::session(&pool)
        });
        assert!(away.join() > 0);
        let error = fails_within(&pool, Duration::from_secs(5));
        assert!(error.is_connect(), "the parent's idle connection is found dead, and no other is to be had: {error}");
    });
}

/// Accepts, and then each connection is `serve`d on a thread of its own.
pub(crate) fn server(serve: impl Fn(std::net::TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), std::sync::Arc::clone(&serve));
            thread::spawn(move || serve(stream));
        }
    });
    address.to_string()
}

/// Reads, never writes.
fn silent() -> String {
    server(|mut stream| while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {})
}

/// A byte of the reply every 100 ms, for ever.
fn dripping(reply: &'static [u8]) -> String {
    server(move |mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        for byte in reply.iter().chain(std::iter::repeat(&b'a')) {
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
    })
}

/// Row 25, in the parent and in a child.
#[test]
fn a_silent_server_is_given_up_in_time() {
    clean_process(|| {
        let address = silent();
        let timeout = Duration::from_millis(500);
        for url in [
            format!("redis://{address}/"),
            format!("redis://:password@{address}/"),
            format!("redis://:password@{address}/7"),
            format!("redis://user:password@{address}/7?protocol=resp3"),
        ] {
            let pool = redis_pool(&url);
            let before = open_descriptors();
            let error = fails_within(&pool, timeout);
            assert!(error.is_connect(), "{url}: {error}");
            assert_eq!(pool.state().connections, 0);
            assert!(open_descriptors().len() <= before.len() + 1, "the server's side of it may still be open");
            testing::child(|| {
                fails_within(&pool, timeout);
            })
            .join();
        }
    });
}

#[test]
fn a_dripping_server_is_given_up_in_time() {
    clean_process(|| {
        for (reply, url) in [
            (&b"+OK"[..], "redis://"),
            (b"-ERR a very long story", "redis://:password@"),
            // The first of two is whole.
            (b"+OK\r\n+", "redis://:password@"),
        ] {
            let address = dripping(reply);
            let pool = redis_pool(&format!("{url}{address}/"));
            let error = fails_within(&pool, Duration::from_millis(500));
            assert!(error.is_connect(), "{error}");
        }
    });
}

/// A server that behaves until it has to prove that it is alive.
#[test]
fn a_connection_that_drips_or_falls_silent_fails_its_test_in_time() {
    clean_process(|| {
        for drips in [false, true] {
            // The first connection behaves until it is tested, and no other ever does.
            let fake = Fake::start(move |connection, command, words| match (connection, words[0].as_str()) {
                (0, _) if command < 4 => Says::Usual,
                (0, "UNWATCH") if drips => says("$100\r\n"),
                (0, _) if drips => {
                    thread::sleep(Duration::from_millis(50));
                    says("a")
                }
                _ => Says::Silence,
            });
            let pool = kit::tested().build(fake.client()).unwrap();
            drop(pool.get().unwrap());
            let error = fails_within(&pool, Duration::from_millis(500));
            assert!(error.is_timeout() || error.is_connect(), "{error}");
            assert!(error.source().is_some(), "and what was wrong is said: {error}");
        }
    });
}

/// It ends in the middle of its reply: that is no reason to wait for the rest.
#[test]
fn a_server_that_dies_in_the_middle_of_a_reply_is_given_up_at_once() {
    clean_process(|| {
        let address = server(|mut stream| {
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"+O");
        });
        let pool = kit::tested().connection_timeout(Duration::MAX);
        let pool = pool.build(redis::Client::open(format!("redis://{address}/")).unwrap()).unwrap();
        let begin = Instant::now();
        assert!(pool.get().unwrap_err().is_connect());
        assert!(begin.elapsed() < Duration::from_secs(10));
    });
}

/// A pool that never waits still tests its connections, and does not destroy them by that.
#[test]
fn a_pool_without_patience_keeps_its_connections() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = kit::tested().connection_timeout(Duration::ZERO).build(redis.manager()).unwrap();
        let session = PrivateRedis::ask(&mut pool.get_timeout(Duration::from_secs(10)).unwrap());
        for _ in 0..5 {
            assert_eq!(PrivateRedis::session(&pool), session);
        }
    });
}

/// Row 22: the table is full while connecting, in the parent and in a child.
#[test]
fn a_full_descriptor_table_is_an_error_and_not_a_leak() {
    clean_process(|| {
        let witness = Witness::start();
        let redis = PrivateRedis::start();
        let (pool, other) = (redis.pool(), witness.pool());
        let session = PrivateRedis::session(&pool);
        let full = |pool: &Pool<redis::Client>| {
            let before = open_descriptors();
            let mut fill = Vec::new();
            while let Ok(more) = File::open("/dev/null") {
                fill.push(more);
            }
            let error = fails_within(pool, Duration::from_secs(5));
            // Room for the socket and nothing else is enough.
            fill.pop();
            PooledConnection::discard(pool.get_timeout(Duration::from_secs(5)).unwrap());
            drop(fill);
            assert!(error.is_connect() && error.source().is_some(), "{error}");
            assert_eq!(open_descriptors(), before);
            PrivateRedis::session(pool)
        };
        let fresh = redis.pool();
        full(&fresh);
        let child = testing::child(|| full(&pool));
        assert_ne!(child.join(), session);
        assert_eq!(PrivateRedis::session(&pool), session);
        ask(&other);
        witness.judge();
    });
}

/// The driver waits for each reply anew: a server that takes its time for the first has less for the second.
#[test]
fn a_server_that_is_slow_to_answer_the_first_of_two_questions_is_given_up_in_time() {
    clean_process(|| {
        let timeout = Duration::from_secs(4);
        let address = server(move |mut stream| {
            let mut asked = [0; 1024];
            let _ = stream.read(&mut asked);
            thread::sleep(timeout * 7 / 8);
            let _ = stream.write_all(b"+OK\r\n");
            while stream.read(&mut asked).is_ok_and(|n| n > 0) {}
        });
        let error = fails_within(&redis_pool(&format!("redis://:password@{address}/7")), timeout);
        assert!(error.is_connect(), "{error}");
    });
}

/// A server that waits for a word from the test before it answers. Says when it was asked, is told when to answer, and
/// says when the stream has ended.
fn told(answer: &'static [u8]) -> (SocketAddr, Arc<(Door, Door)>, mpsc::Receiver<()>) {
    let (ends, ended) = mpsc::channel();
    let doors = Arc::new((Door::new(), Door::new()));
    let (listener, theirs) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::clone(&doors));
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        theirs.0.open();
        theirs.1.pass();
        stream.write_all(answer).unwrap();
        // Whatever else comes, until the end of the stream.
        while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {}
        let _ = ends.send(());
    });
    (address, doors, ended)
}

fn copy_of_the_socket_to(address: SocketAddr) -> OwnedFd {
    let sockets = crate::churn::sockets_to(address);
    assert_eq!(sockets.len(), 2, "the driver's, and the one to end it with");
    // SAFETY: it is open while the thread that connects waits for the server.
    unsafe { BorrowedFd::borrow_raw(sockets[0]) }.try_clone_to_owned().unwrap()
}

/// A child that another thread forks has a copy of the socket that its memory does not name yet: it ends with the attempt.
#[test]
fn a_connect_that_fails_leaves_no_live_copy_of_its_socket() {
    clean_process(|| {
        let (address, doors, ended) = told(b"-WRONGPASS no\r\n+OK\r\n");
        let pool = redis_pool(&format!("redis://:password@{address}/"));
        thread::scope(|scope| {
            let connects = scope.spawn(|| pool.get().map(drop));
            doors.0.pass();
            let copy = copy_of_the_socket_to(address);
            doors.1.open();
            assert!(connects.join().unwrap().unwrap_err().is_connect());
            ended.recv_timeout(testing::patience()).expect("the server sees the end");
            drop(copy);
        });
    });
}

/// A manager with two hosts, of which the first lets nobody in.
struct TwoHosts {
    first: SocketAddr,
    second: WitnessManager,
    /// Of the first one's socket: what a child has that another thread forks in the middle.
    copy: Mutex<Option<TcpStream>>,
}

impl ManageConnection for TwoHosts {
    type Connection = WitnessClient;
    type Error = io::Error;

    fn connect(&self) -> io::Result<WitnessClient> {
        self.second.connect()
    }
    fn connect_within(&self, at: &mut forksafe::Attempt) -> io::Result<WitnessClient> {
        let refused = TcpStream::connect(self.first)?;
        at.own(Descriptors::of(&refused));
        *self.copy.lock().unwrap() = Some(refused.try_clone()?);
        at.forget_all();
        drop(refused);
        let client = self.connect()?;
        at.own(self.descriptors(&client));
        Ok(client)
    }
    fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
        self.second.is_valid(conn)
    }
    fn has_broken(&self, conn: &mut WitnessClient) -> bool {
        self.second.has_broken(conn)
    }
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        self.second.descriptors(conn)
    }
}

/// What was published of the first is ended for whoever has a copy, and is the connection's no more.
#[test]
fn a_host_that_was_given_up_leaves_nothing_of_itself() {
    clean_process(|| {
        let (ends, ended) = mpsc::channel();
        let first = server(move |mut stream| {
            let _ = ends.send(stream.read(&mut [0; 1024]).map(|n| n == 0));
        });
        let witness = Witness::start();
        let (first, second) = (first.parse().unwrap(), witness.manager());
        let pool = kit::tested().build(TwoHosts { first, second, copy: Mutex::default() }).unwrap();
        let mut held = Some(pool.get().unwrap());
        let here = held.as_mut().unwrap().ask("here").unwrap().connection;
        let end = ended.recv_timeout(testing::patience()).expect("the first host sees the end");
        assert!(end.unwrap(), "a clean one");
        // The copy has a number of its own, and is nobody's connection: a child does not touch it.
        let copy = pool.manager().copy.lock().unwrap().take().unwrap();
        let there = testing::child(|| {
            drop(held.take());
            let is_there = testing::socket_of(&copy);
            (is_there, pool.get().unwrap().ask("there").unwrap().connection)
        });
        let there = there.join();
        assert_eq!(there.0, testing::socket_of(&copy));
        assert_ne!(there.1, here);
        assert_eq!(held.as_mut().unwrap().ask("still").unwrap().connection, here);
        witness.judge();
    });
}

/// Row 25: one who waits is held up until his deadline is over, and only then sees that the connection had come to him. A
/// test in no time at all would destroy it.
#[test]
fn a_connection_that_comes_with_the_last_moment_is_given_back_untested() {
    static DOORS: OnceLock<(Door, Door)> = OnceLock::new();
    extern "C" fn is_held_up(_: libc::c_int) {
        let (held_up, go_on) = DOORS.get().unwrap();
        held_up.open();
        go_on.pass();
    }
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = redis.pool_of(1);
        let (held_up, go_on) = DOORS.get_or_init(|| (Door::new(), Door::new()));
        // SAFETY: the handler makes only system calls.
        unsafe { libc::signal(libc::SIGUSR1, is_held_up as extern "C" fn(libc::c_int) as libc::sighandler_t) };
        let mut held = pool.get().unwrap();
        let session = PrivateRedis::ask(&mut held);
        thread::scope(|scope| {
            let (tells, told) = mpsc::channel();
            let pool = &pool;
            let waits = scope.spawn(move || {
                // SAFETY: takes nothing.
                tells.send(unsafe { libc::pthread_self() }).unwrap();
                pool.get_timeout(Duration::from_secs(1)).map(drop)
            });
            let waiter = told.recv().unwrap();
            while pool.state().waiting == 0 {
                thread::yield_now();
            }
            // In line, and a moment later asleep.
            thread::sleep(Duration::from_millis(100));
            // SAFETY: the thread is there: it waits for its connection.
            assert_eq!(unsafe { libc::pthread_kill(waiter, libc::SIGUSR1) }, 0);
            held_up.pass();
            thread::sleep(Duration::from_millis(1000));
            drop(held);
            assert_eq!(pool.state().waiting, 0, "it is the waiter's");
            go_on.open();
            let late = waits.join().unwrap();
            assert!(late.is_err_and(|error| error.is_timeout()));
        });
        assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1));
        assert_eq!(PrivateRedis::session(&pool), session);
    });
}
