//! The pool in one process: who is served, what is closed when, what is counted.

use crate::kit::{WhenDropped, ask, tested};
use forksafe::fork::Descriptors;
use forksafe::testing::{self, Witness, clean_process};
use forksafe::{ManageConnection, Pool, PooledConnection};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// Numbers its connections; says no when it is told to.
#[derive(Default)]
struct Numbers {
    made: AtomicU32,
    closed: Arc<AtomicU32>,
    /// The number of the connection that is no longer valid.
    invalid: AtomicU32,
    broken: AtomicU32,
    /// How many connects fail from now on.
    failures: AtomicU32,
}

#[derive(Debug)]
struct Number(u32, Arc<AtomicU32>);

impl Drop for Number {
    fn drop(&mut self) {
        self.1.fetch_add(1, SeqCst);
    }
}

impl ManageConnection for Numbers {
    type Connection = Number;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Number> {
        let fails = self.failures.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
        if fails {
            return Err(io::Error::other("the server is away"));
        }
        Ok(Number(self.made.fetch_add(1, SeqCst) + 1, Arc::clone(&self.closed)))
    }
    fn is_valid(&self, conn: &mut Number) -> io::Result<()> {
        if conn.0 == self.invalid.load(SeqCst) { Err(io::Error::other("gone stale")) } else { Ok(()) }
    }
    fn has_broken(&self, conn: &mut Number) -> bool {
        conn.0 == self.broken.load(SeqCst)
    }
    fn descriptors(&self, _: &Number) -> Descriptors {
        Descriptors::none()
    }
}

const SOON: Duration = Duration::from_millis(20);

#[test]
fn building_a_pool_opens_nothing_unless_min_idle_asks_for_it() {
    let pool = Pool::new(Numbers::default()).unwrap();
    assert_eq!(pool.state().connections, 0);
    let pool = Pool::builder().max_size(5).min_idle(Some(3)).build(Numbers::default()).unwrap();
    assert_eq!((pool.state().connections, pool.state().idle_connections), (3, 3));
    let pool = Pool::builder().min_idle(Some(3)).build_unchecked(Numbers::default());
    assert_eq!(pool.state().connections, 0);
    pool.maintain();
    assert_eq!(pool.state().idle_connections, 3);
}

#[test]
fn a_returned_connection_is_lent_again() {
    let pool = Pool::new(Numbers::default()).unwrap();
    for _ in 0..10 {
        assert_eq!(pool.get().unwrap().0, 1);
    }
    assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1));
}

#[test]
fn never_more_than_max_size_are_open() {
    let pool = Pool::builder().max_size(2).build(Numbers::default()).unwrap();
    let held = [pool.get().unwrap(), pool.get().unwrap()];
    let error = pool.get_timeout(SOON).unwrap_err();
    assert!(error.is_timeout() && !error.is_connect());
    let text = error.to_string();
    assert!(text.starts_with("timed out after 20ms: 2 of 2 in use, 0 others waiting; held longest: for "), "{text}");
    assert!(pool.try_get().is_none());
    drop(held);
    assert!(pool.try_get().is_some());
    assert_eq!(pool.manager().made.load(SeqCst), 2);
}

#[test]
fn waiters_are_served_first_come_first_served() {
    clean_process(|| {
        let pool = Pool::builder().max_size(1).build(Numbers::default()).unwrap();
        let order = std::sync::Mutex::new(Vec::new());
        let held = pool.get().unwrap();
        thread::scope(|scope| {
            for n in 0..6 {
                let (pool, order) = (&pool, &order);
                scope.spawn(move || {
                    let conn = pool.get().unwrap();
                    order.lock().unwrap().push(n);
                    drop(conn);
                });
                while pool.state().waiting <= n {
                    thread::yield_now();
                }
            }
            drop(held);
        });
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
    });
}

#[test]
fn a_waiter_gets_the_slot_of_a_connection_that_broke() {
    let pool = Pool::builder().max_size(1).build(Numbers::default()).unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().unwrap().0);
        while pool.state().waiting == 0 {
            thread::yield_now();
        }
        pool.manager().broken.store(1, SeqCst);
        drop(held);
        assert_eq!(waiter.join().unwrap(), 2);
    });
    assert_eq!(pool.manager().closed.load(SeqCst), 1);
}

#[test]
fn a_connect_that_fails_is_reported_at_once_and_loses_nothing() {
    let pool = Pool::builder().max_size(1).build(Numbers::default()).unwrap();
    pool.manager().failures.store(1, SeqCst);
    let begin = Instant::now();
    let error = pool.get().unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(10), "not after the timeout of 30 s");
    assert!(error.is_connect());
    assert_eq!(error.to_string(), "cannot connect");
    assert_eq!(format!("{error:#}"), "cannot connect: the server is away");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the server is away");
    assert_eq!(pool.state().connections, 0);
    assert_eq!(pool.get().unwrap().0, 1);
}

#[test]
fn a_panicking_manager_loses_no_slot() {
    struct Panics(AtomicU32);
    impl ManageConnection for Panics {
        type Connection = ();
        type Error = io::Error;
        fn connect(&self) -> io::Result<()> {
            if self.0.fetch_add(1, SeqCst) < 3 { panic!("in connect") } else { Ok(()) }
        }
        fn is_valid(&self, _: &mut ()) -> io::Result<()> {
            Ok(())
        }
        fn has_broken(&self, _: &mut ()) -> bool {
            false
        }
    }
    let pool = Pool::builder().max_size(1).build(Panics(AtomicU32::new(0))).unwrap();
    for _ in 0..3 {
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.get().map(drop)));
        assert!(panics.is_err());
    }
    pool.get().unwrap();
}

/// Where a manager panics that is not in `connect`.
#[test]
fn a_panic_while_returning_or_closing_loses_no_slot() {
    struct Panics(&'static str);
    struct Client(&'static str);
    impl Drop for Client {
        fn drop(&mut self) {
            if self.0 == "close" && !thread::panicking() {
                panic!("in the goodbye");
            }
        }
    }
    impl ManageConnection for Panics {
        type Connection = Client;
        type Error = io::Error;
        fn connect(&self) -> io::Result<Client> {
            Ok(Client(self.0))
        }
        fn is_valid(&self, _: &mut Client) -> io::Result<()> {
            if self.0 == "is_valid" { panic!("in is_valid") } else { Ok(()) }
        }
        fn has_broken(&self, _: &mut Client) -> bool {
            if self.0 == "has_broken" { panic!("in has_broken") } else { false }
        }
        fn descriptors(&self, _: &Client) -> Descriptors {
            Descriptors::none()
        }
    }
    for stage in ["is_valid", "has_broken", "close"] {
        let pool = tested().max_size(1).connection_timeout(Duration::from_secs(5)).build(Panics(stage)).unwrap();
        for _ in 0..3 {
            // Fresh or idle, there is one to be had each time; that the test of an idle one panics is a panic of `get`.
            let unwinds =
                |deed: &mut dyn FnMut()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(deed)).is_err();
            if stage == "is_valid" {
                drop(pool.get().unwrap());
                assert!(unwinds(&mut || drop(pool.get().unwrap())));
            } else {
                let mut conn = Some(pool.get().unwrap());
                assert!(unwinds(&mut || match stage {
                    "close" => PooledConnection::discard(conn.take().unwrap()),
                    _ => drop(conn.take()),
                }));
            }
        }
        assert!(pool.state().connections <= 1, "{stage}: and the slot was to be had each time");
    }
}

#[test]
fn with_no_time_the_next_idle_connection_is_tried_when_one_is_not_fit() {
    let pool = tested().max_size(3).build(Numbers::default()).unwrap();
    let held = [pool.get().unwrap(), pool.get().unwrap()];
    drop(held);
    pool.manager().invalid.store(2, SeqCst);
    assert_eq!(pool.try_get().unwrap().0, 1);
    assert_eq!(pool.get_timeout(Duration::ZERO).unwrap().0, 1);
}

#[test]
fn an_invalid_connection_is_replaced_before_it_is_lent() {
    let pool = tested().max_size(1).build(Numbers::default()).unwrap();
    drop(pool.get().unwrap());
    pool.manager().invalid.store(1, SeqCst);
    assert_eq!(pool.get().unwrap().0, 2);
    assert_eq!(pool.manager().closed.load(SeqCst), 1);
    // What was wrong with it is told when there is no other.
    pool.manager().invalid.store(2, SeqCst);
    pool.manager().failures.store(1, SeqCst);
    assert!(pool.get().unwrap_err().is_connect());
    let error = {
        drop(pool.get().unwrap());
        pool.manager().invalid.store(3, SeqCst);
        pool.try_get().is_none()
    };
    assert!(error);
}

#[test]
fn without_the_test_an_invalid_connection_is_lent() {
    let pool = Pool::builder().test_on_check_out(false).build(Numbers::default()).unwrap();
    drop(pool.get().unwrap());
    pool.manager().invalid.store(1, SeqCst);
    assert_eq!(pool.get().unwrap().0, 1);
}

#[test]
fn a_connection_whose_holder_panics_is_closed() {
    let pool = Pool::builder().max_size(1).build(Numbers::default()).unwrap();
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _held = pool.get().unwrap();
        panic!("in the middle of a conversation");
    }));
    assert!(unwound.is_err());
    assert_eq!(pool.manager().closed.load(SeqCst), 1);
    assert_eq!(pool.get().unwrap().0, 2);
}

/// Coarse time goes in steps of a few milliseconds.
fn let_pass(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time + Duration::from_millis(20) {
        thread::yield_now();
    }
}

#[test]
fn an_old_connection_is_not_lent_again() {
    for test in [false, true] {
        let pool = Pool::builder()
            .max_lifetime(Some(Duration::from_millis(50)))
            .idle_timeout(None)
            .test_on_check_out(test)
            .build(Numbers::default())
            .unwrap();
        let held = pool.get().unwrap();
        let_pass(Duration::from_millis(50));
        assert_eq!(held.0, 1, "a lent one is left alone");
        drop(held);
        assert_eq!(pool.get().unwrap().0, 2);
        assert_eq!(pool.manager().closed.load(SeqCst), 1);
    }
}

#[test]
fn maintain_closes_what_has_expired_and_keeps_min_idle() {
    let pool = Pool::builder()
        .max_size(4)
        .min_idle(Some(1))
        .idle_timeout(Some(Duration::from_millis(50)))
        .build(Numbers::default())
        .unwrap();
    let held: Vec<_> = (0..4).map(|_| pool.get().unwrap()).collect();
    drop(held);
    pool.maintain();
    assert_eq!(pool.state().idle_connections, 4, "none has expired");
    let_pass(Duration::from_millis(50));
    pool.maintain();
    assert_eq!(pool.state().idle_connections, 1, "reaping never goes below min_idle");
    assert_eq!(pool.manager().made.load(SeqCst), 4, "and opens nothing in its stead");
}

#[test]
fn warm_up_opens_as_many_as_are_missing() {
    let pool = Pool::builder().max_size(3).build(Numbers::default()).unwrap();
    assert_eq!(pool.warm_up(2).unwrap(), 2);
    assert_eq!(pool.warm_up(2).unwrap(), 0);
    let held = pool.get().unwrap();
    assert_eq!(pool.warm_up(9).unwrap(), 1, "and no more than max_size");
    drop(held);
    assert_eq!(pool.state().idle_connections, 3);
    pool.disconnect();
    pool.manager().failures.store(1, SeqCst);
    assert!(pool.warm_up(1).unwrap_err().is_connect());
    assert_eq!(pool.state().connections, 0);
}

#[test]
fn disconnect_closes_idle_connections_and_the_pool_stays_usable() {
    let pool = Pool::builder().max_size(2).build(Numbers::default()).unwrap();
    let held = pool.get().unwrap();
    drop(pool.get().unwrap());
    pool.disconnect();
    assert_eq!(pool.state().connections, 1);
    assert_eq!(held.0, 1);
    drop(held);
    assert_eq!(pool.get().unwrap().0, 1);
}

#[test]
fn a_closed_pool_lends_nothing_and_takes_back_nothing() {
    let pool = Pool::builder().max_size(2).build(Numbers::default()).unwrap();
    let held = pool.get().unwrap();
    drop(pool.get().unwrap());
    let error = pool.close_timeout(SOON).unwrap_err();
    assert!(error.is_timeout());
    let text = error.to_string();
    let expected = "timed out after 20ms: 1 of 2 in use, 0 others waiting; held longest: for ";
    assert!(text.starts_with(&expected.replace("20ms", &elapsed(&error))), "{text}");
    assert!(pool.get().unwrap_err().is_closed());
    assert_eq!(pool.get().unwrap_err().to_string(), "the pool is closed");
    assert!(pool.try_get().is_none());
    assert!(pool.warm_up(1).unwrap_err().is_closed());
    assert!(pool.state().closed);
    drop(held);
    assert_eq!(pool.state().connections, 0);
    assert_eq!(pool.manager().closed.load(SeqCst), 2);
    pool.close_timeout(Duration::ZERO).unwrap();
}

fn elapsed(error: &forksafe::Error) -> String {
    error.to_string().split(' ').nth(3).unwrap().trim_end_matches(':').to_owned()
}

#[test]
fn closing_ends_the_wait_of_those_in_line_and_waits_for_those_who_hold() {
    let pool = Pool::builder().max_size(1).build(Numbers::default()).unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.get().map(drop));
        while pool.state().waiting == 0 {
            thread::yield_now();
        }
        let closer = scope.spawn(|| pool.close_timeout(Duration::from_secs(20)));
        assert!(waiter.join().unwrap().unwrap_err().is_closed());
        drop(held);
        let begin = Instant::now();
        closer.join().unwrap().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10), "told at once, not at its deadline");
    });
}

#[test]
fn a_closed_pool_is_closed_in_children_as_well() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = Pool::new(witness.manager()).unwrap();
        ask(&pool);
        let closes = testing::child(|| {
            pool.close();
            pool.get().is_err_and(|error| error.is_closed())
        });
        assert!(closes.join());
        ask(&pool);
        pool.close();
        assert!(testing::child(|| pool.get().is_err_and(|error| error.is_closed())).join());
    });
}

#[test]
fn the_last_handle_closes_the_pool_and_a_lent_connection_outlives_it() {
    let closed = Arc::new(AtomicU32::new(0));
    let pool = Pool::new(Numbers { closed: Arc::clone(&closed), ..Numbers::default() }).unwrap();
    let weak = pool.downgrade();
    let (held, idle) = (pool.get().unwrap(), pool.get().unwrap());
    drop(idle);
    let other = pool.clone();
    drop(pool);
    assert_eq!(closed.load(SeqCst), 0);
    assert!(weak.upgrade().is_some());
    drop(other);
    assert_eq!(closed.load(SeqCst), 1, "the idle one");
    assert!(weak.upgrade().is_none());
    assert_eq!(held.0, 1);
    drop(held);
    assert_eq!(closed.load(SeqCst), 2);
}

#[test]
fn a_detached_connection_is_the_callers_and_its_slot_is_free() {
    let pool = Pool::builder().max_size(1).build(Numbers::default()).unwrap();
    let mine = PooledConnection::detach(pool.get().unwrap()).unwrap();
    assert_eq!(pool.get().unwrap().0, 2);
    assert_eq!(mine.0, 1);
    drop(mine);
    assert_eq!(pool.manager().closed.load(SeqCst), 1);
}

#[test]
fn discarding_closes_and_frees_the_slot() {
    let pool = Pool::builder().max_size(1).build(Numbers::default()).unwrap();
    PooledConnection::discard(pool.get().unwrap());
    assert_eq!(pool.manager().closed.load(SeqCst), 1);
    assert_eq!(pool.get().unwrap().0, 2);
}

#[test]
fn no_two_threads_ever_hold_one_connection() {
    clean_process(|| {
        let pool = Pool::builder().max_size(3).test_on_check_out(false).build(Numbers::default()).unwrap();
        let held: Vec<AtomicU32> = (0..4).map(|_| AtomicU32::new(0)).collect();
        let start = Barrier::new(6);
        thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..20_000 {
                        let conn = pool.get().unwrap();
                        assert_eq!(
                            held[conn.0 as usize].fetch_add(1, SeqCst),
                            0,
                            "connection {} is lent twice",
                            conn.0
                        );
                        held[conn.0 as usize].fetch_sub(1, SeqCst);
                    }
                });
            }
        });
        assert!(pool.manager().made.load(SeqCst) <= 3);
    });
}

/// There may be a live socket under such a client, so it is not handed out to code that unwinds either.
#[test]
fn unknown_descriptors_are_refused_in_a_child_even_while_it_panics() {
    struct Opaque(Numbers, &'static str);
    impl ManageConnection for Opaque {
        type Connection = Number;
        type Error = io::Error;
        fn connect(&self) -> io::Result<Number> {
            self.0.connect()
        }
        fn connect_within(&self, at: &mut forksafe::Attempt) -> io::Result<Number> {
            let conn = self.connect()?;
            match self.1 {
                "in part" => {
                    at.own(Descriptors::none());
                    at.own(Descriptors::unknown());
                }
                "nothing said" => {}
                _ => at.own(self.descriptors(&conn)),
            }
            Ok(conn)
        }
        fn is_valid(&self, conn: &mut Number) -> io::Result<()> {
            self.0.is_valid(conn)
        }
        fn has_broken(&self, conn: &mut Number) -> bool {
            self.0.has_broken(conn)
        }
    }
    clean_process(|| {
        for how in ["unknown", "in part", "nothing said"] {
            let pool = Pool::new(Opaque(Numbers::default(), how)).unwrap();
            let held = pool.get().unwrap();
            let outcome = testing::child(|| {
                let own = pool.get().unwrap().0;
                assert_eq!(own, 2, "a child opens its own, whatever is known");
                let mut handed_out = None;
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    let _looks = WhenDropped(|| handed_out = Some(catch_unwind(AssertUnwindSafe(|| held.0)).is_ok()));
                    panic!("on purpose");
                }));
                assert!(unwound.is_err());
                handed_out
            });
            assert_eq!(outcome.join(), Some(false), "{how}");
            assert_eq!(held.0, 1);
        }
    });
}

/// A manager that cannot tell which socket is its own is not trusted with one.
#[test]
fn a_connection_whose_descriptors_were_refused_is_closed_and_reported() {
    struct Refuses(Numbers);
    impl ManageConnection for Refuses {
        type Connection = Number;
        type Error = io::Error;
        fn connect(&self) -> io::Result<Number> {
            self.0.connect()
        }
        fn connect_within(&self, at: &mut forksafe::Attempt) -> io::Result<Number> {
            at.refuse("it could be either");
            self.connect()
        }
        fn is_valid(&self, _: &mut Number) -> io::Result<()> {
            Ok(())
        }
        fn has_broken(&self, _: &mut Number) -> bool {
            false
        }
    }
    let pool = Pool::new(Refuses(Numbers::default())).unwrap();
    let error = pool.get().unwrap_err();
    assert!(error.is_unprotected() && error.to_string().contains("it could be either"), "{error}");
    assert_eq!(pool.manager().0.closed.load(SeqCst), 1);
    assert_eq!(pool.state().connections, 0);
}

/// A waiter whose time is over gives its place in line up, and what comes back later goes to others.
#[test]
fn what_comes_back_is_not_given_to_one_who_went_away() {
    let pool = Pool::builder().max_size(1).build(Numbers::default()).unwrap();
    let held = pool.get().unwrap();
    assert!(pool.get_timeout(SOON).unwrap_err().is_timeout());
    assert_eq!(pool.state().waiting, 0);
    drop(held);
    assert_eq!(pool.get_timeout(SOON).unwrap().0, 1);
}

/// The connection comes back while the one who waits for it gives up: it is either lent or back in its place.
#[test]
fn what_comes_back_at_a_waiters_deadline_is_not_lost() {
    clean_process(|| {
        let pool = Pool::builder().max_size(1).test_on_check_out(false).build(Numbers::default()).unwrap();
        let timeout = Duration::from_micros(200);
        for round in 0..3000 {
            let gave_up = AtomicU32::new(0);
            let held = pool.get().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| {
                    drop(pool.get_timeout(timeout));
                    gave_up.store(1, SeqCst);
                });
                while pool.state().waiting == 0 && gave_up.load(SeqCst) == 0 {
                    thread::yield_now();
                }
                // Around the deadline, now before it and now after it.
                let begin = Instant::now();
                while begin.elapsed() < timeout * (round % 100 + 50) / 100 {
                    std::hint::spin_loop();
                }
                drop(held);
            });
            assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1), "round {round}");
        }
    });
}

/// Somebody has just taken an idle connection, and has not looked at it yet, when the pool is closed: it is not lost.
#[test]
fn a_connection_that_is_taken_while_the_pool_closes_is_closed() {
    clean_process(|| {
        for round in 0..300 {
            let pool = Pool::builder().max_size(2).build(Numbers::default()).unwrap();
            pool.warm_up(2).unwrap();
            let begun = Barrier::new(3);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        begun.wait();
                        while pool.get().is_ok() {}
                    });
                }
                begun.wait();
                pool.close_timeout(testing::patience()).unwrap_or_else(|error| panic!("round {round}: {error}"));
            });
            assert_eq!(pool.state().connections, 0, "round {round}");
        }
    });
}
