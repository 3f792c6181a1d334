//! One bad connection does not spend the caller's time, and an error is an answer (row 35).

use forksafe::fork::Descriptors;
use forksafe::testing::{advance_clock, clean_process, patience};
use forksafe::{Deadline, Fault, ManageConnection, Pool, PooledConnection, Unread};
use std::error::Error;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Its connections are socket pairs, whose other ends it keeps. What a test says is up to the test.
#[derive(Default)]
struct Pairs {
    peers: Mutex<Vec<Option<UnixStream>>>,
    /// Connections with a number below this are silent: a test of them lasts as long as it may.
    silent_below: AtomicU32,
    tested: AtomicU32,
    /// What the next tests say.
    says: Mutex<Option<&'static str>>,
    goodbyes: AtomicU32,
    /// A goodbye lasts as long as it may.
    goodbyes_hang: AtomicU32,
    /// The longest that one of them had.
    goodbyes_had: Mutex<Duration>,
    /// Where a connect waits, once to begin and once to end.
    meeting: Mutex<Option<Arc<Barrier>>>,
}

struct Pair {
    number: u32,
    socket: UnixStream,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Says(&'static str);

fn wait_out(deadline: Deadline) {
    thread::sleep(deadline.remaining().min(patience()));
}

impl ManageConnection for Pairs {
    type Connection = Pair;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Pair> {
        let meeting = self.meeting.lock().unwrap().take();
        meeting.into_iter().for_each(|meeting| _ = (meeting.wait(), meeting.wait()));
        let (socket, peer) = UnixStream::pair()?;
        let mut peers = self.peers.lock().unwrap();
        peers.push(Some(peer));
        Ok(Pair { number: peers.len() as u32, socket })
    }
    fn is_valid(&self, _: &mut Pair) -> io::Result<()> {
        unreachable!("is_valid_within is what is called")
    }
    fn is_valid_within(&self, conn: &mut Pair, deadline: Deadline) -> io::Result<()> {
        self.tested.fetch_add(1, SeqCst);
        if conn.number <= self.silent_below.load(SeqCst) {
            wait_out(deadline);
            return Err(ErrorKind::TimedOut.into());
        }
        let says = *self.says.lock().unwrap();
        assert_ne!(says, Some("panic"));
        says.map_or(Ok(()), |what| Err(io::Error::other(Says(what))))
    }
    fn has_broken(&self, _: &mut Pair) -> bool {
        false
    }
    fn socket<'c>(&self, conn: &'c Pair) -> Option<BorrowedFd<'c>> {
        Some(conn.socket.as_fd())
    }
    fn goodbye(&self, conn: Pair, deadline: Deadline) {
        self.goodbyes.fetch_add(1, SeqCst);
        {
            let mut had = self.goodbyes_had.lock().unwrap();
            *had = deadline.remaining().max(*had);
        }
        if self.goodbyes_hang.load(SeqCst) > 0 {
            wait_out(deadline);
        }
        drop(conn);
    }
    fn on_unread(&self, _: &mut Pair, peeked: &[u8]) -> Unread {
        match peeked[0] {
            b'n' => Unread::Fine,
            b'?' => Unread::Test,
            _ => Unread::Discard,
        }
    }
    fn classify(&self, error: &(dyn Error + 'static)) -> Fault {
        match &*error.to_string() {
            "busy" => Fault::Harmless,
            "broken" => Fault::Connection,
            "read only" => Fault::Server,
            _ => Fault::Unknown,
        }
    }
}

fn pool_of(size: u32, timeout: Duration) -> Pool<Pairs> {
    Pool::builder()
        .max_size(size)
        .connection_timeout(timeout)
        .test_timeout(Duration::from_millis(500))
        .test_after(Duration::ZERO)
        .build(Pairs::default())
        .unwrap()
}

fn fall_silent(pool: &Pool<Pairs>) {
    let made = pool.manager().peers.lock().unwrap().len();
    pool.manager().silent_below.store(made as u32, SeqCst);
}

/// Idle connections that a firewall forgot: each get tests for no longer than its budget, then connects; and the first
/// silence makes the others suspects.
#[test]
fn a_silent_connection_costs_its_budget_and_no_more() {
    clean_process(|| {
        let pool = pool_of(8, Duration::from_secs(6));
        pool.warm_up(4).unwrap();
        fall_silent(&pool);
        let begun = Instant::now();
        drop(pool.get().unwrap());
        let first = begun.elapsed();
        assert!(first >= Duration::from_millis(400), "it was tested: {first:?}");
        assert!(first < Duration::from_secs(3), "and not for the whole timeout: {first:?}");
        let held: Vec<_> = (0..5).map(|_| pool.get().unwrap()).collect();
        let all = begun.elapsed() - first;
        assert!(all < Duration::from_millis(1500), "the other three are suspects, and are asked in short: {all:?}");
        drop(held);
    });
}

#[test]
fn threads_that_meet_silent_connections_at_once_are_all_served() {
    clean_process(|| {
        let pool = pool_of(8, Duration::from_secs(6));
        pool.warm_up(8).unwrap();
        fall_silent(&pool);
        let (start, begun) = (Barrier::new(8), Instant::now());
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    drop(pool.get().unwrap());
                });
            }
        });
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    });
}

#[test]
fn who_has_no_time_spends_no_more_than_the_budget() {
    clean_process(|| {
        let pool = pool_of(8, Duration::from_secs(30));
        pool.warm_up(4).unwrap();
        fall_silent(&pool);
        let begun = Instant::now();
        assert!(pool.try_get().is_none());
        assert!(begun.elapsed() < Duration::from_secs(3), "try_get: {:?}", begun.elapsed());
        let begun = Instant::now();
        assert!(pool.get_timeout(Duration::ZERO).unwrap_err().is_timeout());
        assert!(begun.elapsed() < Duration::from_secs(3), "get_timeout(0): {:?}", begun.elapsed());
    });
}

/// A call has one deadline: closing what has expired is within it.
#[test]
fn goodbyes_are_within_the_callers_deadline() {
    clean_process(|| {
        let pool = pool_of(3, Duration::from_secs(30));
        let expire = || {
            pool.warm_up(3).unwrap();
            pool.manager().goodbyes_hang.store(1, SeqCst);
            advance_clock(Duration::from_secs(3600));
            Instant::now()
        };
        let begun = expire();
        drop(pool.get_timeout(Duration::from_secs(4)).unwrap());
        assert!(begun.elapsed() < Duration::from_secs(3), "get: {:?}", begun.elapsed());
        let begun = expire();
        assert!(pool.try_get().is_none());
        assert!(begun.elapsed() < Duration::from_secs(3), "try_get: {:?}", begun.elapsed());
        assert!(pool.manager().goodbyes.load(SeqCst) >= 2);
    });
}

/// All goodbyes of one call share five seconds, and others can use the slots that are free meanwhile.
#[test]
fn disconnect_close_and_drop_have_one_time_for_all_goodbyes() {
    clean_process(|| {
        type Ends = fn(Pool<Pairs>);
        let ends: [(&str, Ends); 3] =
            [("disconnect", |pool| pool.disconnect()), ("close", |pool| pool.close()), ("drop", drop)];
        thread::scope(|scope| {
            for (name, end) in ends {
                scope.spawn(move || {
                    let pool = pool_of(4, Duration::from_secs(30));
                    pool.warm_up(4).unwrap();
                    pool.manager().goodbyes_hang.store(1, SeqCst);
                    let begun = Instant::now();
                    end(pool);
                    assert!(begun.elapsed() < Duration::from_secs(9), "{name}: {:?}", begun.elapsed());
                });
            }
        });
    });
}

/// A server in trouble is alive and in step: to reconnect would only add to it.
#[test]
fn an_error_that_is_an_answer_keeps_the_connection() {
    clean_process(|| {
        let pool = pool_of(2, patience());
        let number = pool.get().unwrap().number;
        *pool.manager().says.lock().unwrap() = Some("busy");
        assert_eq!(pool.get().unwrap().number, number);
        *pool.manager().says.lock().unwrap() = Some("broken");
        assert_ne!(pool.get().unwrap().number, number);
    });
}

/// A look tells what a round trip is not needed for.
#[test]
fn what_lies_unread_in_an_idle_connection_is_judged_by_its_manager() {
    use std::io::Write;
    clean_process(|| {
        for (test, written, keeps, tested) in [
            (false, Some(b"notice"), true, 0),
            (false, Some(b"? what"), true, 1),
            (false, Some(b"farewl"), false, 0),
            (true, Some(b"notice"), true, 1),
            (true, Some(b"farewl"), false, 0),
            (false, None, false, 0),
            (true, None, false, 0),
        ] {
            let builder = Pool::builder().max_size(1).test_on_check_out(test).test_after(Duration::ZERO);
            let pool = builder.build(Pairs::default()).unwrap();
            drop(pool.get().unwrap());
            {
                let mut peers = pool.manager().peers.lock().unwrap();
                match written {
                    Some(bytes) => peers[0].as_mut().unwrap().write_all(bytes).unwrap(),
                    None => peers[0] = None, // The end of the stream.
                }
            }
            let what = format!("test {test}, {written:?}");
            assert_eq!(pool.get().unwrap().number == 1, keeps, "{what}");
            assert_eq!(pool.manager().tested.load(SeqCst), tested, "{what}");
        }
    });
}

/// One that was proved alive a moment ago is not asked again, nor looked at.
#[test]
fn a_connection_that_was_proved_alive_a_moment_ago_is_lent_as_it_is() {
    clean_process(|| {
        let pool = Pool::builder().max_size(1).test_after(Duration::from_secs(60)).build(Pairs::default()).unwrap();
        for _ in 0..3 {
            assert_eq!(pool.get().unwrap().number, 1);
        }
        assert_eq!(pool.manager().tested.load(SeqCst), 0, "it is new");
        advance_clock(Duration::from_secs(61));
        for _ in 0..3 {
            assert_eq!(pool.get().unwrap().number, 1);
        }
        assert_eq!(pool.manager().tested.load(SeqCst), 1, "after its rest, once");
    });
}

/// What a holder was told decides about the connection, and about its siblings.
#[test]
fn a_reported_error_condemns_what_its_manager_says_it_does() {
    clean_process(|| {
        let pool = pool_of(3, patience());
        let report = |what| {
            let mut conn = pool.get().unwrap();
            (conn.number, PooledConnection::report(&mut conn, &Says(what)))
        };
        let (first, fault) = report("duplicate key");
        assert_eq!(fault, Fault::Unknown);
        assert_eq!(report("busy"), (first, Fault::Harmless));
        assert_eq!(report("broken"), (first, Fault::Connection));
        let (second, _) = report("duplicate key");
        assert_ne!(first, second, "the broken one is closed");
        // The server is not what it was: idle and lent ones go, too.
        pool.warm_up(2).unwrap();
        let lent = pool.get().unwrap();
        assert_eq!(report("read only").1, Fault::Server);
        drop(lent);
        assert_eq!(pool.state().connections, 0);
    });
}

/// What is told late, of a connection to the server that was, says nothing of those that were made since.
#[test]
fn a_late_report_condemns_no_more_than_its_own_connection() {
    clean_process(|| {
        let pool = pool_of(3, patience());
        let (mut first, mut second) = (pool.get().unwrap(), pool.get().unwrap());
        PooledConnection::report(&mut first, &Says("read only"));
        drop(first);
        let new = pool.get().unwrap().number;
        assert_eq!(PooledConnection::report(&mut second, &Says("read only")), Fault::Server);
        drop(second);
        assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1));
        assert_eq!(pool.get().unwrap().number, new);
    });
}

/// It was dialled before anybody knew better.
#[test]
fn a_connection_that_is_being_opened_is_condemned_with_the_others() {
    clean_process(|| {
        type Opens = fn(&Pool<Pairs>);
        let opens: [Opens; 2] = [|pool| drop(pool.get().unwrap()), |pool| assert_eq!(pool.warm_up(1).unwrap(), 1)];
        for open in opens {
            let pool = pool_of(2, patience());
            let mut told = pool.get().unwrap();
            let meeting = Arc::new(Barrier::new(2));
            *pool.manager().meeting.lock().unwrap() = Some(Arc::clone(&meeting));
            thread::scope(|scope| {
                scope.spawn(|| open(&pool));
                meeting.wait();
                PooledConnection::report(&mut told, &Says("read only"));
                meeting.wait();
            });
            assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 0), "what is lent, and no more");
        }
    });
}

/// Also those of connections that were condemned by another's test, or that come back to a pool which has been closed.
#[test]
fn the_goodbyes_of_a_call_are_within_its_time() {
    clean_process(|| {
        let timeout = Duration::from_secs(4);
        let pool = pool_of(3, timeout);
        pool.warm_up(3).unwrap();
        *pool.manager().says.lock().unwrap() = Some("read only");
        drop(pool.get().unwrap());
        assert_eq!(pool.manager().goodbyes.load(SeqCst), 3);
        let had = *pool.manager().goodbyes_had.lock().unwrap();
        assert!(had <= Duration::from_millis(500), "condemned: {had:?}");

        let pool = pool_of(1, timeout);
        let meeting = Arc::new(Barrier::new(2));
        *pool.manager().meeting.lock().unwrap() = Some(Arc::clone(&meeting));
        thread::scope(|scope| {
            scope.spawn(|| pool.warm_up(1));
            meeting.wait();
            pool.close();
            meeting.wait();
        });
        assert_eq!(pool.manager().goodbyes.load(SeqCst), 1);
        let had = *pool.manager().goodbyes_had.lock().unwrap();
        assert!(had <= timeout, "closed: {had:?}");
    });
}

/// A test that panics loses no slot, though nobody asked for the connection.
#[test]
fn a_panicking_test_inside_maintain_loses_no_slot() {
    clean_process(|| {
        let pool = Pool::builder().max_size(1).min_idle(Some(1)).build(Pairs::default()).unwrap();
        advance_clock(Duration::from_secs(15 * 60)); // Idle for too long, but not too old.
        *pool.manager().says.lock().unwrap() = Some("panic");
        assert!(catch_unwind(AssertUnwindSafe(|| pool.maintain())).is_err());
        assert_eq!((pool.state().connections, pool.manager().goodbyes.load(SeqCst)), (0, 1));
        assert_eq!(pool.get_timeout(patience()).unwrap().number, 2);
    });
}

/// Its goodbyes panic, and are counted.
struct Panics(Arc<AtomicU32>);

impl ManageConnection for Panics {
    type Connection = ();
    type Error = io::Error;

    fn connect(&self) -> io::Result<()> {
        Ok(())
    }
    fn is_valid(&self, _: &mut ()) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut ()) -> bool {
        false
    }
    fn descriptors(&self, _: &()) -> Descriptors {
        Descriptors::none()
    }
    fn goodbye(&self, _: (), _: Deadline) {
        panic!("in goodbye {}", self.0.fetch_add(1, SeqCst));
    }
}

fn pool_that_panics() -> (Pool<Panics>, Arc<AtomicU32>) {
    let goodbyes = Arc::<AtomicU32>::default();
    let pool = Pool::builder().max_size(4).build(Panics(Arc::clone(&goodbyes))).unwrap();
    pool.warm_up(4).unwrap();
    (pool, goodbyes)
}

/// A goodbye that panics loses no slot.
#[test]
fn a_panicking_goodbye_inside_disconnect_loses_no_slot() {
    let (pool, _) = pool_that_panics();
    for left in (0..4).rev() {
        assert!(catch_unwind(AssertUnwindSafe(|| pool.disconnect())).is_err());
        assert_eq!(pool.state().connections, left);
    }
    assert_eq!(pool.warm_up(4).unwrap(), 4, "all slots are to be had");
    std::mem::forget(pool);
}

/// A pool is closed once: so all goodbyes are said, whichever of them panic.
#[test]
fn panicking_goodbyes_of_a_pool_that_is_closed_are_all_said() {
    clean_process(|| {
        type Ends = fn(Pool<Panics>);
        let ends: [Ends; 2] = [|pool| pool.close(), drop];
        for end in ends {
            let (pool, goodbyes) = pool_that_panics();
            let panics = catch_unwind(AssertUnwindSafe(|| end(pool))).unwrap_err();
            assert_eq!(panics.downcast_ref::<String>().unwrap(), "in goodbye 0", "the first");
            assert_eq!(goodbyes.load(SeqCst), 4);
        }
    });
}
