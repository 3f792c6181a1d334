//! A pool that is full, whose server is full, or whose callers have little time (row 37).

use forksafe::fork::Descriptors;
use forksafe::testing::{advance_clock, clean_process, patience};
use forksafe::{Deadline, Fault, ManageConnection, Pool};
use std::cell::Cell;
use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// A server with room for so many; connecting and testing take their time.
#[derive(Default)]
struct Server {
    room: u32,
    connects: AtomicU32,
    attempts: AtomicU32,
    away: AtomicBool,
    takes: Takes,
    tests: Takes,
}

/// For how long something is done, in microseconds.
#[derive(Default)]
struct Takes(AtomicU64);

impl Takes {
    fn of(time: Duration) -> Self {
        Self(AtomicU64::new(time.as_micros() as u64))
    }
    fn now(&self, time: Duration) {
        self.0.store(time.as_micros() as u64, SeqCst);
    }
    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(SeqCst))
    }
}

struct Session<'a>(&'a AtomicU32);

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Only as much of it as there is time for, as a driver would.
fn work(time: Duration, deadline: Deadline) -> io::Result<()> {
    thread::sleep(time.min(deadline.remaining()));
    if deadline.is_over() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
}

impl ManageConnection for &'static Server {
    type Connection = Session<'static>;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Self::Connection> {
        unreachable!("connect_within is what is called")
    }
    fn connect_within(&self, at: &mut forksafe::Attempt) -> io::Result<Self::Connection> {
        self.attempts.fetch_add(1, SeqCst);
        at.own(Descriptors::none());
        if self.away.load(SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        work(self.takes.get(), at.deadline())?;
        if self.connects.fetch_add(1, SeqCst) >= self.room {
            self.connects.fetch_sub(1, SeqCst);
            return Err(io::Error::other("no room"));
        }
        Ok(Session(&self.connects))
    }
    fn is_valid(&self, _: &mut Self::Connection) -> io::Result<()> {
        unreachable!("is_valid_within is what is called")
    }
    fn is_valid_within(&self, _: &mut Self::Connection, deadline: Deadline) -> io::Result<()> {
        work(self.tests.get(), deadline)
    }
    fn has_broken(&self, _: &mut Self::Connection) -> bool {
        false
    }
    fn classify(&self, error: &(dyn Error + 'static)) -> Fault {
        if error.to_string() == "no room" { Fault::NoRoom } else { Fault::Unknown }
    }
}

fn server(server: Server) -> &'static Server {
    Box::leak(Box::new(server))
}

/// Requests of so many threads for a while; how many were served, and the last error.
fn load(
    pool: &Pool<&'static Server>,
    threads: u32,
    time: Duration,
    job: Duration,
) -> (u32, u32, Option<forksafe::Error>) {
    let (served, failed, until) = (AtomicU32::new(0), AtomicU32::new(0), Instant::now() + time);
    let last = std::sync::Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while Instant::now() < until {
                    match pool.get() {
                        Ok(_held) => {
                            thread::sleep(job);
                            served.fetch_add(1, SeqCst);
                        }
                        Err(error) => {
                            failed.fetch_add(1, SeqCst);
                            *last.lock().unwrap() = Some(error);
                        }
                    }
                }
            });
        }
    });
    (served.into_inner(), failed.into_inner(), last.into_inner().unwrap())
}

/// What is served does not fall with the number of those who wait, though each is about to give up: nobody begins a test or a
/// connect that it has no time to finish, and so destroys what others could have used.
#[test]
fn overload_with_timeouts_does_not_turn_into_reconnecting() {
    clean_process(|| {
        let millis = Duration::from_millis;
        let server = server(Server {
            room: 100,
            takes: Takes::of(millis(20)),
            tests: Takes::of(millis(5)),
            ..Server::default()
        });
        let pool = Pool::builder()
            .max_size(4)
            .connection_timeout(millis(60))
            .test_after(Duration::ZERO)
            .build(server)
            .unwrap();
        let time = Duration::from_secs(2);
        let (served, _, _) = load(&pool, 64, time, millis(10));
        let attempts = server.attempts.load(SeqCst);
        // Each takes 15 ms of one of 4 connections: 533 at best in 2 s. On a busy machine less, but each has to be worth it.
        assert!(attempts * 4 < served.max(40), "{attempts} connects for {served} that were served");
        assert!(served > 100, "{served} served");
    });
}

/// The server has room for three of our eight: those three serve everybody.
#[test]
fn a_full_server_fails_nobody_while_connections_come_back() {
    clean_process(|| {
        let server = server(Server { room: 3, ..Server::default() });
        let pool = Pool::builder().max_size(8).connection_timeout(patience()).build(server).unwrap();
        let (served, failed, last) = load(&pool, 16, Duration::from_secs(1), Duration::from_millis(2));
        assert_eq!(failed, 0, "{last:?}");
        assert!(served > 50, "{served}");
        let attempts = server.attempts.load(SeqCst);
        assert!(attempts < 60, "and the server is not stormed: {attempts} attempts");
    });
}

/// With nothing to wait for it is told at once; and who waits in vain is told why.
#[test]
fn a_full_server_is_told_when_there_is_nothing_to_wait_for() {
    clean_process(|| {
        let none = server(Server::default());
        let pool = Pool::builder().max_size(8).connection_timeout(patience()).build(none).unwrap();
        let error = pool.get().unwrap_err();
        assert!(error.is_connect(), "{error:#}");
        let one = server(Server { room: 1, ..Server::default() });
        let pool = Pool::builder().max_size(8).connection_timeout(Duration::from_millis(300)).build(one).unwrap();
        let held = pool.get().unwrap();
        let error = pool.get().unwrap_err();
        assert!(error.is_timeout() && format!("{error:#}").ends_with("no room"), "{error:#}");
        drop(held);
        drop(pool.get().unwrap());
    });
}

/// A server that is away for a moment: reported at once, or tried again if that is set, without a storm.
#[test]
fn a_failed_connect_is_tried_again_only_if_asked() {
    clean_process(|| {
        for retries in [false, true] {
            let away = server(Server { room: 9, away: AtomicBool::new(true), ..Server::default() });
            let pool =
                Pool::builder().max_size(4).connection_timeout(patience()).retry_connect(retries).build(away).unwrap();
            thread::scope(|scope| {
                let asks: Vec<_> = (0..4).map(|_| scope.spawn(|| pool.get().map(drop))).collect();
                if retries {
                    while away.attempts.load(SeqCst) < 4 {
                        thread::yield_now();
                    }
                    away.away.store(false, SeqCst);
                }
                for ask in asks {
                    let told = ask.join().unwrap();
                    assert_eq!(told.is_ok(), retries, "{told:?}");
                    assert!(told.err().is_none_or(|error| error.is_connect()));
                }
            });
            let attempts = away.attempts.load(SeqCst);
            assert!(attempts <= if retries { 16 } else { 4 }, "{attempts}");
        }
        let away = server(Server { away: AtomicBool::new(true), ..Server::default() });
        let pool =
            Pool::builder().connection_timeout(Duration::from_millis(200)).retry_connect(true).build(away).unwrap();
        let error = pool.get().unwrap_err();
        assert!(error.is_timeout() && error.source().is_some(), "the last failure is the source: {error:#}");
        assert!(away.attempts.load(SeqCst) > 1);
    });
}

/// What is known of how long a test takes does not keep the next one from being made: nothing else would correct it.
#[test]
fn one_slow_test_is_not_the_last() {
    clean_process(|| {
        let millis = Duration::from_millis;
        let server = server(Server { room: 9, ..Server::default() });
        let pool = Pool::builder()
            .max_size(1)
            .connection_timeout(millis(800))
            .test_after(Duration::ZERO)
            .build(server)
            .unwrap();
        drop(pool.get().unwrap());
        for slow in [380, 500] {
            server.tests.now(millis(slow));
            let _ = pool.get();
        }
        server.tests.now(Duration::ZERO);
        // It may take a second until somebody tries.
        wait_until(|| pool.get().is_ok());
        assert_eq!(server.attempts.load(SeqCst), 1, "and the connection was in order all the time");
    });
}

/// Nor does a slow connect keep a pool from growing.
#[test]
fn one_slow_connect_is_not_the_last() {
    clean_process(|| {
        let millis = Duration::from_millis;
        let server = server(Server { room: 9, takes: Takes::of(millis(2100)), ..Server::default() });
        let pool = Pool::builder().max_size(2).connection_timeout(millis(3000)).build(server).unwrap();
        let _held = pool.get_timeout(patience()).unwrap();
        server.takes.now(Duration::ZERO);
        drop(pool.get().expect("there is room for another"));
    });
}

/// Who waits for what comes back, having no time to connect, connects all the same when there is nothing left that could.
#[test]
fn who_has_little_time_connects_if_nothing_else_can_come() {
    clean_process(|| {
        let millis = Duration::from_millis;
        let server = server(Server { room: 9, takes: Takes::of(millis(2000)), ..Server::default() });
        let pool = Pool::builder().max_size(1).connection_timeout(millis(3000)).build(server).unwrap();
        let held = pool.get_timeout(patience()).unwrap();
        server.takes.now(Duration::ZERO);
        thread::scope(|scope| {
            let begun = Instant::now();
            let waits = scope.spawn(|| pool.get().map(drop));
            // It has less than half of its time left then, and less than a connect used to take.
            thread::sleep(millis(1700).saturating_sub(begun.elapsed()));
            forksafe::PooledConnection::discard(held);
            waits.join().unwrap().expect("a connection of its own");
        });
    });
}

/// Connects as it is told, one after the other.
struct Script {
    begun: AtomicU32,
    go: AtomicBool,
}

impl ManageConnection for &'static Script {
    type Connection = ();
    type Error = io::Error;

    fn connect(&self) -> io::Result<()> {
        match self.begun.fetch_add(1, SeqCst) {
            0 => Ok(()),
            1 => Err(io::Error::other("no room")),
            2 => {
                wait_until(|| self.go.load(SeqCst));
                Err(io::Error::other("in trouble"))
            }
            3 => Err(io::Error::other("in trouble")),
            _ => Ok(()),
        }
    }
    fn is_valid(&self, (): &mut ()) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
    fn descriptors(&self, (): &()) -> Descriptors {
        Descriptors::none()
    }
    fn classify(&self, error: &(dyn Error + 'static)) -> Fault {
        if error.to_string() == "no room" { Fault::NoRoom } else { Fault::Unknown }
    }
}

fn wait_until(mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience();
    while !there() {
        assert!(Instant::now() < deadline, "waited in vain");
        thread::yield_now();
    }
}

/// A full server lets one try at a time. When that one fails for another reason, and the next as well, whoever is left in
/// line is not forgotten beside the vacant slot.
#[test]
fn who_waits_behind_a_full_server_is_not_forgotten() {
    clean_process(|| {
        let script: &'static Script =
            Box::leak(Box::new(Script { begun: AtomicU32::new(0), go: AtomicBool::new(false) }));
        let pool = Pool::builder().max_size(2).connection_timeout(patience()).build(script).unwrap();
        let _held = pool.get().unwrap();
        thread::scope(|scope| {
            let first = scope.spawn(|| pool.get().map(drop));
            wait_until(|| script.begun.load(SeqCst) == 3);
            // Whatever had been shut for some time is open again.
            advance_clock(Duration::from_secs(2));
            let others: Vec<_> = (0..2).map(|_| scope.spawn(|| pool.get_timeout(patience() / 4).map(drop))).collect();
            wait_until(|| pool.state().waiting == 2);
            script.go.store(true, SeqCst);
            assert!(first.join().unwrap().unwrap_err().is_connect());
            let served: Vec<_> = others.into_iter().map(|other| other.join().unwrap()).collect();
            assert_eq!(served.iter().filter(|told| told.is_ok()).count(), 1, "{served:?}");
            let failed = served.into_iter().find_map(Result::err).unwrap();
            assert!(failed.is_connect(), "{failed:#}");
        });
    });
}

/// Pools that are built while their server still starts wait for it, if that is what one asks for.
#[test]
fn a_pool_that_is_built_before_its_server_is_there_waits_if_asked() {
    clean_process(|| {
        for waits in [false, true] {
            let server = server(Server { room: 9, away: AtomicBool::new(true), ..Server::default() });
            let builder =
                Pool::builder().min_idle(Some(2)).connection_timeout(patience()).retry_connect(waits).max_size(4);
            thread::scope(|scope| {
                let builds = scope.spawn(|| builder.build(server).map(|pool| pool.state().idle_connections));
                if waits {
                    wait_until(|| server.attempts.load(SeqCst) > 2);
                    server.away.store(false, SeqCst);
                }
                match builds.join().unwrap() {
                    Ok(idle) => assert!(waits && idle == 2, "{idle}"),
                    Err(error) => assert!(!waits && error.is_connect(), "{error:#}"),
                }
            });
        }
    });
}

/// Its connections are of use only on threads that are in the right place.
#[derive(Default)]
struct Particular(AtomicU32);

thread_local! {
    static IN_PLACE: Cell<bool> = const { Cell::new(false) };
}

fn must_be_in_place() -> io::Result<()> {
    if IN_PLACE.get() { Ok(()) } else { Err(io::Error::other("not here")) }
}

impl ManageConnection for Particular {
    type Connection = u32;
    type Error = io::Error;

    fn connect(&self) -> io::Result<u32> {
        let number = self.0.fetch_add(1, SeqCst);
        must_be_in_place().map(|()| number)
    }
    fn is_valid(&self, _: &mut u32) -> io::Result<()> {
        must_be_in_place()
    }
    fn has_broken(&self, _: &mut u32) -> bool {
        false
    }
    fn descriptors(&self, _: &u32) -> Descriptors {
        Descriptors::none()
    }
    fn classify(&self, _: &(dyn Error + 'static)) -> Fault {
        Fault::Caller
    }
}

/// What is the caller's own fault is told at once, is not tried again, and keeps nobody else from connecting.
#[test]
fn what_is_the_callers_own_fault_is_told_at_once_and_costs_nobody_else() {
    clean_process(|| {
        let builder = Pool::builder().max_size(2).connection_timeout(patience()).retry_connect(true);
        let pool = builder.test_after(Duration::ZERO).build(Particular::default()).unwrap();
        let begun = Instant::now();
        for attempt in 1..=20 {
            let error = pool.get().unwrap_err();
            assert!(error.is_connect() && format!("{error:#}").ends_with("not here"), "{error:#}");
            assert_eq!(pool.manager().0.load(SeqCst), attempt);
        }
        assert!(pool.warm_up(1).unwrap_err().is_connect());
        IN_PLACE.set(true);
        assert_eq!(*pool.get().unwrap(), 21);
        assert!(begun.elapsed() < patience() / 4, "{:?}", begun.elapsed());
        // A test that cannot be made here says nothing of the connection.
        IN_PLACE.set(false);
        for _ in 0..3 {
            let error = pool.get().unwrap_err();
            assert!(error.is_connect() && format!("{error:#}").ends_with("not here"), "{error:#}");
            assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1));
        }
        IN_PLACE.set(true);
        assert_eq!(*pool.get().unwrap(), 21, "it is still there");
    });
}
