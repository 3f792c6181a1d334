//! PostgreSQL in odd corners: numbers that were reused, full tables, ends that come at the wrong moment, hosts that were
//! given up.

use crate::churn::sockets_to;
use crate::kit::{self, Door, StopOnDrop, exit_code, leave};
use crate::servers::Server;
use forksafe::fork::{self, Descriptors, Registration};
use forksafe::postgres::{OnReturn, PostgresManager};
use forksafe::testing::{self, PrivatePostgres, clean_process};
use forksafe::{Pool, PooledConnection};
use postgres::fallible_iterator::FallibleIterator;
use postgres::tls::{MakeTlsConnect, NoTlsStream, TlsConnect};
use postgres::{Client, Config, NoTls, Socket};
use std::cell::RefCell;
use std::error::Error as StdError;
use std::fs::File;
use std::future::{Ready, ready};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

fn pool_of(config: Config) -> Pool<PostgresManager<NoTls>> {
    kit::tested().build(PostgresManager::new(config, NoTls)).unwrap()
}

fn session(client: &mut Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: takes numbers.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// In a full table the eventfd's number becomes free, and the driver goes on writing to it.
#[test]
fn in_a_full_table_the_drivers_waker_does_not_write_into_the_childs_files() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = pool_of(server.config());
        let before: Vec<RawFd> = testing::descriptors(std::process::id()).into_keys().collect();
        let mut held = pool.get().unwrap();
        session(&mut held);
        let mut made: Vec<RawFd> = testing::descriptors(std::process::id()).into_keys().collect();
        made.retain(|fd| !before.contains(fd) && is_open(*fd));
        let path = std::env::temp_dir().join(format!("forksafe-corners-{}", std::process::id()));
        let client: &mut Client = &mut held;
        let mut statement = Some(client.prepare("SELECT 1").unwrap());
        client.notifications().iter().next().unwrap(); // Its runtime comes to rest: the next to wake it has to write.
        let mut fill = Vec::new();
        while let Ok(more) = File::open("/dev/null") {
            fill.push(more);
        }
        let child = kit::fork().unwrap_or_else(|| {
            leave(|| {
                let free: Vec<RawFd> = made.iter().copied().filter(|fd| !is_open(*fd)).collect();
                let mut files = Vec::new();
                let opened = || File::options().append(true).create(true).open(&path).ok();
                files.extend(opened());
                files.extend(opened());
                println!("made {made:?}, free in the child {free:?}, its own files {files:?}");
                drop(statement.take()); // It tells its client, whose runtime is woken.
                let _ = client.batch_execute("SELECT 1");
                fill.clear();
                let written = std::fs::read(&path).unwrap_or_default();
                let _ = std::fs::remove_file(&path);
                assert_eq!(written, b"", "the driver wrote into a file of the child's");
                assert!(free.is_empty(), "{free:?}");
            })
        });
        drop(fill);
        assert_eq!(exit_code(child), 0);
    });
}

/// A number that memory names and the table lacks must not become another's; but the dead eventfd may lie there for a moment.
#[test]
fn a_number_at_which_the_dead_eventfd_was_made_stays_taken() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = pool_of(server.config());
        let _held = pool.get().unwrap();
        for place in 0..4 {
            let keeps_lower: Vec<File> = (0..place).map(|_| File::open("/dev/null").unwrap()).collect();
            let (named, _other) = UnixStream::pair().unwrap();
            let number = named.as_raw_fd();
            let registration = Registration::publish(Descriptors::of(&named)).unwrap();
            drop((named, _other, keeps_lower));
            // Not by the kit, which opens things of its own before it forks.
            let child = kit::fork().unwrap_or_else(|| leave(|| assert!(is_open(number), "number {number} is free")));
            assert_eq!(exit_code(child), 0, "free place {place}");
            drop(registration);
        }
    });
}

static CHILD: AtomicI32 = AtomicI32::new(0);
static SLOW_BIRTH: AtomicBool = AtomicBool::new(false);

/// The parent's loop has let go of the socket before the child looks: nothing confirms the epoll, and the child waits on it.
fn the_parent_closes_before_the_child_takes_stock(way: fn() -> Option<i32>) {
    let server = PrivatePostgres::start();
    let mut config = server.config();
    let door = Arc::new(Door::new());
    let passes = Arc::clone(&door);
    config.notice_callback(move |_| match way() {
        Some(child) => CHILD.store(child, SeqCst),
        None => {
            CHILD.store(0, SeqCst);
            passes.pass();
            fork::enter();
        }
    });
    let pool = pool_of(config);
    let mut held = pool.get().unwrap();
    let query = "DO $$ BEGIN RAISE NOTICE 'now'; PERFORM pg_sleep(0.1); END $$";
    let client: &mut Client = &mut held;
    let ended = client.batch_execute(query);
    if PooledConnection::is_inherited(&held) {
        leave(|| assert!(ended.is_err(), "the query is the parent's"));
    }
    ended.unwrap();
    PooledConnection::discard(held);
    door.open();
    assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
}

#[test]
fn a_raw_child_in_a_query_whose_connection_the_parent_has_closed_does_not_hang() {
    clean_process(|| the_parent_closes_before_the_child_takes_stock(kit::raw_fork));
}

/// The same with libc's fork, where another library's child handler is slow.
#[test]
fn a_child_in_a_query_whose_connection_the_parent_has_closed_does_not_hang() {
    extern "C" fn slow() {
        if SLOW_BIRTH.load(SeqCst) {
            // SAFETY: takes a number.
            unsafe { libc::usleep(900_000) };
        }
    }
    clean_process(|| {
        // SAFETY: the handler only sleeps.
        unsafe { libc::pthread_atfork(None, None, Some(slow)) };
        SLOW_BIRTH.store(true, SeqCst);
        the_parent_closes_before_the_child_takes_stock(kit::fork);
    });
}

/// A TLS library that gives its stream up, and whose program then opens something else.
#[derive(Clone)]
struct GivesUp(Arc<Mutex<Vec<(UnixStream, UnixStream)>>>);

impl MakeTlsConnect<Socket> for GivesUp {
    type Stream = NoTlsStream;
    type TlsConnect = Self;
    type Error = std::convert::Infallible;
    fn make_tls_connect(&mut self, _: &str) -> Result<Self, Self::Error> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for GivesUp {
    type Stream = NoTlsStream;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Ready<Result<NoTlsStream, Self::Error>>;
    fn connect(self, stream: Socket) -> Self::Future {
        drop(stream);
        self.0.lock().unwrap().extend((0..4).map(|_| UnixStream::pair().unwrap()));
        ready(Err("no".into()))
    }
}

/// A server whose queue is full: what is said to it is never answered.
fn unreachable() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    // SAFETY: takes numbers; the descriptor is ours.
    let listener = unsafe {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(libc::listen(listener.as_raw_fd(), 0), 0);
        listener
    };
    let address = listener.local_addr().unwrap();
    let mut fill = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        fill.push(one);
    }
    (listener, fill, address)
}

/// The alarm of a host that was given up is still set while the driver connects to the next.
#[test]
fn the_alarm_of_a_host_that_was_given_up_ends_nobody_elses_socket() {
    clean_process(|| {
        let agrees = TcpListener::bind("127.0.0.1:0").unwrap();
        let first = agrees.local_addr().unwrap().port();
        thread::spawn(move || {
            for stream in agrees.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 8]);
                thread::sleep(Duration::from_millis(50));
                let _ = stream.write_all(b"S");
                let _ = stream.read(&mut [0; 8]);
            }
        });
        let (_listener, _fill, second) = unreachable();
        let tls = GivesUp(Arc::default());
        let pairs = Arc::clone(&tls.0);
        let text = format!("host=127.0.0.1,127.0.0.1 port={first},{} user=x sslmode=require", second.port());
        let pool = kit::tested().build(PostgresManager::new(text.parse().unwrap(), tls)).unwrap();
        let error = pool.get_timeout(Duration::from_secs(2)).map(drop).unwrap_err();
        println!("{error}");
        for (here, there) in pairs.lock().unwrap().iter_mut() {
            here.write_all(b"x").expect("shut down by somebody");
            assert_eq!(there.read(&mut [0]).unwrap(), 1, "shut down by somebody");
        }
    });
}

/// A guard that was got where one may wait, and comes back where one may not.
#[test]
fn a_guard_that_is_dropped_in_async_code_does_not_panic() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let manager = PostgresManager::new(server.config(), NoTls).on_return(OnReturn::RollBack);
        let pool = kit::tested().build(manager).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let theirs = pool.clone();
            let conn = tokio::task::spawn_blocking(move || theirs.get().unwrap()).await.unwrap();
            drop(conn);
        });
    });
}

/// `get` never waits in this pool; `get_timeout` does.
#[test]
fn a_pool_without_a_timeout_keeps_the_connections_that_it_resets() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let port = far_away(server.port().unwrap(), Duration::ZERO, Duration::from_millis(20));
        let config = format!("host=127.0.0.1 port={port} user=postgres").parse().unwrap();
        let manager = PostgresManager::new(config, NoTls).on_return(OnReturn::RollBack);
        let pool = kit::tested().connection_timeout(Duration::ZERO).build(manager).unwrap();
        let first = session(&mut pool.get_timeout(Duration::from_secs(10)).unwrap());
        let second = session(&mut pool.get_timeout(Duration::from_secs(10)).unwrap());
        assert_eq!(first, second);
    });
}

#[test]
fn a_session_that_discards_all_keeps_no_news_for_the_next_holder() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let manager = PostgresManager::new(server.config(), NoTls).on_return(OnReturn::DiscardAll);
        let pool = kit::tested().max_size(1).build(manager).unwrap();
        let mut conn = pool.get().unwrap();
        conn.batch_execute("LISTEN news; NOTIFY news, 'for the first holder'").unwrap();
        drop(conn);
        let mut conn = pool.get().unwrap();
        let news = conn.notifications().iter().next().unwrap();
        assert!(news.is_none(), "{news:?}");
    });
}

/// A server that takes its time to let one in, and for each answer.
fn far_away(real: u16, first: Duration, each: Duration) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut client = stream.unwrap();
            thread::spawn(move || {
                thread::sleep(first);
                let mut server = TcpStream::connect(("127.0.0.1", real)).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = server.read(&mut bytes) {
                    thread::sleep(each);
                    if client.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    port
}

/// The first host refuses at once, so the second has nearly all of the time.
#[test]
fn the_last_host_has_the_time_that_the_others_did_not_take() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let real = server.port().unwrap();
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let port = far_away(real, Duration::from_millis(800), Duration::ZERO);
        let text = format!("host=127.0.0.1,127.0.0.1 port={nobody},{port} user=postgres");
        let pool = pool_of(text.parse().unwrap());
        let begin = Instant::now();
        let got = pool.get_timeout(Duration::from_secs(2));
        assert!(got.is_ok(), "after {:?}: {:?}", begin.elapsed(), got.map(drop));
    });
}

thread_local! {
    static MINE: RefCell<Option<PooledConnection<PostgresManager<NoTls>>>> = const { RefCell::new(None) };
}

/// As a thread ends its variables go one after the other, and tokio's may go first.
#[test]
fn a_guard_in_a_thread_local_may_outlive_tokios() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = pool_of(server.config());
        thread::scope(|scope| {
            scope.spawn(|| {
                MINE.with(|mine| drop(mine.borrow_mut().take()));
                let conn = pool.get().unwrap();
                MINE.with(|mine| *mine.borrow_mut() = Some(conn));
                pool.close();
            });
        });
        server.wait_until("it is closed", |open| open.is_empty());
    });
}

/// Row 26 with two hosts of which the first is a standby: its session is opened and given up at every connect.
#[test]
fn no_child_holds_a_session_of_a_host_that_was_given_up() {
    clean_process(|| {
        let servers = [PrivatePostgres::start(), PrivatePostgres::start()];
        let mut first = servers[0].config().connect(NoTls).unwrap();
        first.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").unwrap();
        first.batch_execute("SELECT pg_reload_conf()").unwrap();
        drop(first);
        thread::sleep(Duration::from_millis(500));
        let ports = servers.each_ref().map(|server| server.port().unwrap());
        let standby: SocketAddr = ([127, 0, 0, 1], ports[0]).into();
        // What makes the copying of memory take its time.
        let mut ballast = vec![0_u8; 200 << 20];
        ballast.iter_mut().step_by(4096).for_each(|page| *page = 1);
        let text = format!(
            "user=postgres host=127.0.0.1,127.0.0.1 port={},{} target_session_attrs=read-write",
            ports[0], ports[1]
        );
        let pool = pool_of(text.parse().unwrap());
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            for _ in 0..3 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        PooledConnection::discard(pool.get().unwrap());
                    }
                });
            }
            let mut strays = 0;
            let until = Instant::now() + Duration::from_secs(40);
            let mut forks = 0;
            while Instant::now() < until && strays == 0 {
                forks += 1;
                let child = testing::child(|| {
                    let inherited = sockets_to(standby);
                    inherited.into_iter().filter(|&fd| stays_live(fd)).count()
                });
                strays += child.deadline(Duration::from_secs(60)).join();
            }
            println!("{forks} forks");
            assert_eq!(strays, 0, "live sessions of the standby in a child, after {forks} forks");
        });
        drop(ballast);
    });
}

fn stays_live(fd: RawFd) -> bool {
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        // SAFETY: no bytes are read.
        if unsafe { libc::send(fd, std::ptr::null(), 0, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) } < 0 {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// What is idle can be reached after all: a statement (each `Row` has one) tells its client that it is dropped.
#[test]
fn a_statement_of_an_idle_client_does_not_write_into_the_childs_files() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = pool_of(server.config());
        let mut conn = pool.get().unwrap();
        let mut row = Some(conn.query_one("SELECT 42", &[]).unwrap());
        conn.notifications().iter().next().unwrap(); // Its runtime comes to rest: the next to wake it has to write.
        drop(conn);
        let path = std::env::temp_dir().join(format!("forksafe-corners-{}", std::process::id()));
        let child = kit::fork().unwrap_or_else(|| {
            leave(|| {
                let _files: Vec<File> =
                    (0..8).map(|_| File::options().append(true).create(true).open(&path).unwrap()).collect();
                drop(row.take());
                let written = std::fs::read(&path).unwrap();
                let _ = std::fs::remove_file(&path);
                assert_eq!(written, b"", "the driver wrote into a file of the child's");
            })
        });
        assert_eq!(exit_code(child), 0);
    });
}

struct Stopped(Vec<u32>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.iter().for_each(|&pid| kit::kill(pid, libc::SIGCONT));
    }
}

fn stopped(conns: &mut [PooledConnection<PostgresManager<NoTls>>]) -> Stopped {
    let pids: Vec<u32> = conns.iter_mut().map(|conn| session(conn) as u32).collect();
    pids.iter().for_each(|&pid| kit::kill(pid, libc::SIGSTOP));
    Stopped(pids)
}

/// The goodbye to an expired connection has five seconds of its own, whatever `get` has.
#[test]
fn a_get_that_comes_upon_an_expired_connection_keeps_its_timeout() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let manager = PostgresManager::new(server.config(), NoTls);
        let pool = kit::tested().max_size(1).idle_timeout(Some(Duration::from_millis(100))).build(manager).unwrap();
        let mut conns = [pool.get().unwrap()];
        let _stopped = stopped(&mut conns);
        drop(conns);
        thread::sleep(Duration::from_millis(200));
        let begin = Instant::now();
        let got = pool.get_timeout(Duration::from_millis(500)).map(drop);
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?} for half a second: {got:?}", begin.elapsed());
    });
}

#[test]
fn a_pool_is_closed_within_the_timeout_that_was_given() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = pool_of(server.config());
        let mut conns = [pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
        let _stopped = stopped(&mut conns);
        drop(conns);
        let begin = Instant::now();
        let closed = pool.close_timeout(Duration::from_secs(1));
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?} for a second: {closed:?}", begin.elapsed());
    });
}

/// The numbers of an inherited loop that are somebody else's by now are left alone, whatever the socket says.
#[test]
fn numbers_of_a_loop_that_are_anothers_by_now_are_left_alone() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        for lent in [true, false] {
            let pool = pool_of(server.config());
            // What the look itself has open does not count.
            let open =
                || testing::descriptors(std::process::id()).into_iter().filter(|(_, name)| !name.starts_with("/proc/"));
            let before: Vec<RawFd> = open().map(|(fd, _)| fd).collect();
            let mut conn = pool.get().unwrap();
            session(&mut conn);
            let made: Vec<(RawFd, String)> = open().filter(|(fd, _)| !before.contains(fd)).collect();
            let of = |kind: &str| -> Vec<RawFd> {
                made.iter().filter(|(_, name)| name.contains(kind)).map(|(fd, _)| *fd).collect()
            };
            let (epolls, wakers) = (of("eventpoll"), of("eventfd"));
            assert_eq!((epolls.len(), wakers.len()), (2, 1), "{made:?}");
            let mut kept = None;
            if lent {
                kept = Some(conn)
            } else {
                drop(conn)
            }
            let taken = [epolls[1], wakers[0]];
            for fd in taken {
                // SAFETY: the client is never used again.
                unsafe { libc::close(fd) };
                let file = std::mem::ManuallyDrop::new(File::open("/dev/null").unwrap());
                assert_eq!(file.as_raw_fd(), fd);
            }
            let parent = std::process::id();
            let child = kit::fork().unwrap_or_else(|| {
                leave(|| taken.iter().for_each(|&fd| assert!(kit::is_same_file(parent, fd), "lent {lent}: {fd}")))
            });
            assert_eq!(exit_code(child), 0);
            std::mem::forget((kept, pool));
        }
    });
}

#[test]
fn the_lowest_free_number_stays_taken_if_memory_names_it() {
    clean_process(|| {
        let (named, other) = UnixStream::pair().unwrap();
        let number = named.as_raw_fd();
        let _registration = Registration::publish(Descriptors::of(&named)).unwrap();
        drop((named, other));
        let child = kit::fork().unwrap_or_else(|| leave(|| assert!(is_open(number), "number {number} is free")));
        assert_eq!(exit_code(child), 0);
    });
}

#[test]
fn a_wrong_configuration_is_told_in_the_drivers_own_words() {
    clean_process(|| {
        for wrong in [
            "user=x host=localhost,localhost,localhost port=1,2",
            "user=x host=localhost port=1,2",
            "user=x host=localhost,localhost hostaddr=127.0.0.1",
            "user=x",
        ] {
            let config: Config = wrong.parse().unwrap();
            let theirs = config.connect(NoTls).map(drop).unwrap_err();
            let ours = pool_of(config).get().map(drop).unwrap_err();
            let ours = ours.source().and_then(|error| error.downcast_ref::<forksafe::postgres::Error>()).unwrap();
            let forksafe::postgres::Error::Driver(ours) = ours else { panic!("{wrong}: {ours:?}") };
            assert_eq!(ours.to_string(), theirs.to_string(), "{wrong}");
            let source = |error: &postgres::Error| error.source().map(ToString::to_string);
            assert_eq!(source(ours), source(&theirs), "{wrong}");
        }
    });
}

/// The first of two hosts never answers: before TCP is connected, or after.
#[test]
fn a_silent_host_leaves_time_for_the_next() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let port = server.port().unwrap();
        let (_listener, _fill, away) = unreachable();
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        for first in [away, silent.local_addr().unwrap()] {
            let text = format!("host=127.0.0.1,127.0.0.1 port={},{port} user=postgres", first.port());
            let pool = pool_of(text.parse().unwrap());
            let begin = Instant::now();
            session(&mut pool.get_timeout(Duration::from_secs(4)).unwrap());
            assert!(begin.elapsed() < Duration::from_secs(4));
        }
    });
}

/// A statement that was dropped is closed with the next word: the goodbye waits for the answer.
#[test]
fn a_goodbye_that_is_not_answered_is_given_up_in_time() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = pool_of(server.config());
        let mut conns = vec![pool.get().unwrap()];
        let _stopped = stopped(&mut conns);
        let begin = Instant::now();
        conns.drain(..).for_each(PooledConnection::discard);
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    });
}

/// What was closed by the pool is known by number and identity, too: the number is somebody else's by now.
#[test]
fn a_number_of_a_closed_connection_that_is_anothers_by_now_is_left_alone() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = pool_of(server.config());
        let mut conn = pool.get().unwrap();
        session(&mut conn);
        let sockets = || sockets_to(([127, 0, 0, 1], server.port().unwrap()).into());
        let number = sockets()[0];
        PooledConnection::discard(conn);
        let pairs: Vec<_> = (0..4).map(|_| UnixStream::pair().unwrap()).collect();
        assert!(pairs.iter().any(|(a, b)| a.as_raw_fd() == number || b.as_raw_fd() == number), "{number}: {pairs:?}");
        let parent = std::process::id();
        let child = kit::fork().unwrap_or_else(|| leave(|| assert!(kit::is_same_file(parent, number))));
        assert_eq!(exit_code(child), 0);
    });
}

/// A connection that says what was done with it.
struct Counts(AtomicI32, AtomicI32);

static GOODBYES: AtomicI32 = AtomicI32::new(0);

impl forksafe::ManageConnection for Counts {
    type Connection = i32;
    type Error = std::convert::Infallible;
    fn connect(&self) -> Result<i32, Self::Error> {
        Ok(self.0.fetch_add(1, SeqCst))
    }
    fn is_valid(&self, _: &mut i32) -> Result<(), Self::Error> {
        Ok(())
    }
    fn has_broken(&self, _: &mut i32) -> bool {
        false
    }
    fn descriptors(&self, _: &i32) -> Descriptors {
        Descriptors::none()
    }
    fn resets(&self) -> bool {
        true
    }
    fn reset(&self, conn: &mut i32, _: forksafe::Deadline) -> Result<forksafe::Reset, Self::Error> {
        self.1.fetch_add(1, SeqCst);
        Ok(if *conn == 0 { forksafe::Reset::Discard } else { forksafe::Reset::Keep })
    }
    fn goodbye(&self, _: i32, _: forksafe::Deadline) {
        GOODBYES.fetch_add(1, SeqCst);
    }
}

#[test]
fn a_manager_behind_an_arc_resets_discards_and_says_goodbye() {
    clean_process(|| {
        let manager = Arc::new(Counts(AtomicI32::new(0), AtomicI32::new(0)));
        let pool = kit::tested().max_size(1).build(Arc::clone(&manager)).unwrap();
        assert_eq!(*pool.get().unwrap(), 0);
        assert_eq!(GOODBYES.load(SeqCst), 1, "the first is discarded");
        assert_eq!(*pool.get().unwrap(), 1);
        assert_eq!(*pool.get().unwrap(), 1, "the second is kept");
        assert_eq!(manager.1.load(SeqCst), 3);
    });
}
