//! What a pool counts and says of itself: numbers, leaks, and errors for the person who reads them at night.

use crate::kit;
use forksafe::event::{AcquireEvent, CheckinEvent, CheckoutEvent, HandleEvent, LeakEvent, ReleaseEvent};
use forksafe::fork::{self, Descriptors};
use forksafe::testing::{self, Witness, advance_clock, clean_process};
use forksafe::{Closed, ErrorKind, Fault, ManageConnection, Pool, PooledConnection, Statistics};
use std::error::Error as _;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

/// A server that may be away, and connections that may have broken.
#[derive(Default)]
struct Server {
    is_away: AtomicBool,
    is_full: AtomicBool,
    is_silent: AtomicBool,
    is_broken: AtomicBool,
}

impl ManageConnection for Server {
    type Connection = ();
    type Error = io::Error;
    fn connect(&self) -> io::Result<()> {
        match () {
            () if self.is_away.load(SeqCst) => Err(io::Error::other("nobody is there")),
            () if self.is_full.load(SeqCst) => Err(io::Error::other("no room")),
            () => Ok(()),
        }
    }
    fn classify(&self, error: &(dyn std::error::Error + 'static)) -> Fault {
        if error.to_string() == "no room" { Fault::NoRoom } else { Fault::Unknown }
    }
    fn is_valid(&self, _: &mut ()) -> io::Result<()> {
        if self.is_silent.load(SeqCst) { Err(io::Error::other("no answer")) } else { Ok(()) }
    }
    fn has_broken(&self, _: &mut ()) -> bool {
        self.is_broken.load(SeqCst)
    }
    fn descriptors(&self, _: &()) -> Descriptors {
        Descriptors::none()
    }
}

fn statistics<M: ManageConnection>(pool: &Pool<M>) -> Statistics {
    pool.statistics().expect("it has been used here")
}

#[test]
fn nothing_is_known_before_the_first_use() {
    let pool = Pool::new(Server::default()).unwrap();
    assert_eq!(pool.statistics(), None);
    assert!(pool.try_get().is_none());
    let all = statistics(&pool);
    assert_eq!((all.lent, all.timed_out, all.closed.total()), (0, 0, 0), "to try is no failure");
    assert_eq!(all.generation, fork::generation());
}

#[test]
fn each_thing_that_happens_is_counted_once() {
    let pool = kit::tested().max_size(1).build(Server::default()).unwrap();
    let server = pool.manager();
    server.is_away.store(true, SeqCst);
    assert!(pool.get().is_err());
    server.is_away.store(false, SeqCst);
    for _ in 0..3 {
        drop(pool.get().unwrap());
    }
    let all = statistics(&pool);
    assert_eq!((all.failed, all.created, all.lent, all.tested, all.waited), (1, 1, 3, 2, 0));

    let held = pool.get().unwrap();
    assert!(pool.get_timeout(Duration::from_millis(500)).is_err());
    let all = statistics(&pool);
    assert_eq!((all.timed_out, all.waited, all.lent), (1, 0, 4));
    assert!(!all.wait_time.is_zero(), "also what was waited in vain");

    thread::scope(|scope| {
        scope.spawn(|| drop(pool.get().unwrap()));
        testing::wait_until("somebody waits", || pool.state().waiting == 1);
        drop(held);
    });
    let all = statistics(&pool);
    assert_eq!((all.waited, all.lent), (1, 5));

    // To try is not to wait.
    let _held = pool.get().unwrap();
    assert!(pool.try_get().is_none() && pool.get_timeout(Duration::ZERO).is_err());
    assert_eq!(statistics(&pool).wait_time, all.wait_time);
}

/// Whoever panics about a connection: it is counted out, and its slot is free.
#[test]
fn what_a_panic_closes_is_counted_as_well() {
    #[derive(Debug)]
    struct Panics(&'static str);
    impl Panics {
        fn at(&self, name: &str) {
            if self.0 == name {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
        }
    }
    impl HandleEvent for Panics {
        fn handle_acquire(&self, _: AcquireEvent) {
            self.at("acquire");
        }
        fn handle_checkout(&self, _: CheckoutEvent) {
            self.at("checkout");
        }
        fn handle_checkin(&self, _: CheckinEvent) {
            self.at("checkin");
        }
        fn handle_release(&self, _: ReleaseEvent) {
            self.at("release");
        }
    }
    for at in ["acquire", "checkout", "checkin", "release", "before acquire", "after release", "before close"] {
        let hook = |name: &'static str| {
            move |(): &mut (), _| {
                Panics(at).at(name);
                Ok(())
            }
        };
        let pool = Pool::builder()
            .max_size(1)
            .event_handler(Box::new(Panics(at)))
            .before_acquire(hook("before acquire"))
            .after_release(hook("after release"))
            .before_close(move |(), _| Panics(at).at("before close"))
            .build(Server::default())
            .unwrap();
        let uses: [fn(&Pool<Server>); 3] = [
            |pool| drop(pool.get()),
            |pool| PooledConnection::discard(pool.get().unwrap()),
            |pool| drop(PooledConnection::detach(pool.get().unwrap())),
        ];
        for use_it in uses {
            let _ = catch_unwind(AssertUnwindSafe(|| use_it(&pool)));
            // What is still there is idle.
            let state = pool.state();
            assert_eq!(state.connections, state.idle_connections, "{at}");
        }
        let _ = catch_unwind(AssertUnwindSafe(|| pool.close()));
        pool.close_timeout(testing::patience()).unwrap();
        let all = statistics(&pool);
        assert_eq!(all.created, all.closed.total(), "{at}: {all:?}");
        drop(catch_unwind(AssertUnwindSafe(|| drop(pool))));
    }
}

/// It is between its holder's look and its slot when all are evicted.
#[test]
fn what_was_evicted_is_lent_to_nobody() {
    static POOL: OnceLock<Pool<Evicts>> = OnceLock::new();
    struct Evicts(AtomicU32, AtomicBool);
    impl ManageConnection for Evicts {
        type Connection = u32;
        type Error = io::Error;
        fn connect(&self) -> io::Result<u32> {
            Ok(self.0.fetch_add(1, SeqCst))
        }
        fn is_valid(&self, _: &mut u32) -> io::Result<()> {
            Ok(())
        }
        fn has_broken(&self, _: &mut u32) -> bool {
            if self.1.swap(false, SeqCst) {
                POOL.get().unwrap().evict();
            }
            false
        }
    }
    let pool = POOL.get_or_init(|| Pool::new(Evicts(AtomicU32::new(0), AtomicBool::new(false))).unwrap());
    // Until it is lent without a look at the clock, and by one.
    for _ in 0..3 {
        let before = *pool.get().unwrap();
        pool.manager().1.store(true, SeqCst);
        drop(pool.get().unwrap());
        assert_ne!(*pool.get().unwrap(), before);
    }
    pool.manager().1.store(true, SeqCst);
    drop(pool.get().unwrap());
    pool.maintain();
    assert_eq!(pool.state().connections, 0, "nor is it kept");
}

#[test]
fn closed_connections_are_counted_by_reason() {
    clean_process(|| {
        let day = Duration::from_secs(24 * 3600);
        let pool = kit::tested()
            .max_lifetime(Some(day * 10))
            .idle_timeout(Some(day))
            .max_size(2)
            .build(Server::default())
            .unwrap();
        let server = pool.manager();
        let mut expected = Vec::new();
        let mut check = |why: Closed| {
            expected.push(why);
            let closed = statistics(&pool).closed;
            assert_eq!(closed.total(), expected.len() as u64, "after {why}: {closed:?}");
            let times = expected.iter().filter(|other| **other == why).count();
            assert_eq!(closed.of(why), times as u64, "{why}: {closed:?}");
            assert_eq!(pool.state().connections, 0, "after {why}");
        };
        PooledConnection::discard(pool.get().unwrap());
        check(Closed::Discarded);
        let _detached = PooledConnection::detach(pool.get().unwrap()).unwrap();
        check(Closed::Detached);
        let conn = pool.get().unwrap();
        server.is_broken.store(true, SeqCst);
        drop(conn);
        server.is_broken.store(false, SeqCst);
        check(Closed::Broken);
        drop(pool.get().unwrap());
        pool.disconnect();
        check(Closed::Disconnected);
        drop(pool.get().unwrap());
        pool.evict();
        check(Closed::Evicted);
        let conn = pool.get().unwrap();
        pool.evict();
        assert_eq!(pool.state().connections, 1, "lent ones are left alone until they come back");
        drop(conn);
        check(Closed::Evicted);
        drop(pool.get().unwrap());
        advance_clock(day * 2);
        pool.maintain();
        check(Closed::Idle);
        let conn = pool.get().unwrap();
        advance_clock(day * 20);
        drop(conn);
        pool.maintain();
        check(Closed::Expired);
        let panicked = thread::scope(|scope| {
            scope
                .spawn(|| {
                    let _conn = pool.get().unwrap();
                    std::panic::resume_unwind(Box::new("on purpose"));
                })
                .join()
        });
        assert!(panicked.is_err());
        check(Closed::Panicked);
        drop([pool.get().unwrap(), pool.get().unwrap()]);
        pool.resize(1).unwrap();
        server.is_silent.store(true, SeqCst);
        server.is_away.store(true, SeqCst);
        assert!(pool.get().is_err());
        let closed = statistics(&pool).closed;
        assert_eq!((closed.of(Closed::Surplus), closed.of(Closed::Invalid)), (1, 1), "{closed:?}");
        server.is_silent.store(false, SeqCst);
        server.is_away.store(false, SeqCst);
        drop(pool.get().unwrap());
        pool.close();
        let closed = statistics(&pool).closed;
        assert_eq!((closed.of(Closed::PoolClosed), closed.total()), (1, 12), "{closed:?}");
        assert_eq!(statistics(&pool).created, 12, "as many as were opened");
    });
}

#[test]
fn a_child_counts_from_zero_and_knows_what_it_inherited() {
    let witness = Witness::start();
    let pool = kit::tested().build(witness.manager()).unwrap();
    let held = [pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
    kit::ask(&pool);
    let parent = statistics(&pool);
    assert_eq!((parent.created, parent.lent, parent.inherited), (4, 4, 0));
    let child = testing::child(|| {
        let before = pool.statistics().is_none();
        kit::ask(&pool);
        drop(held);
        let all = statistics(&pool);
        let grandchild = testing::child(|| {
            kit::ask(&pool);
            (statistics(&pool).inherited, statistics(&pool).created)
        });
        (before, all.created, all.lent, all.inherited, all.generation > parent.generation, grandchild.join())
    });
    assert_eq!(child.join(), (true, 1, 1, 4, true, (1, 1)));
    assert_eq!(statistics(&pool), parent, "the parent's are what they were");
}

#[test]
fn a_connection_is_lent_max_uses_times_and_one_keeps_none() {
    for uses in [1, 3] {
        let pool = Pool::builder().max_uses(Some(uses)).build(Server::default()).unwrap();
        for turn in 1..=7 {
            drop(pool.get().unwrap());
            let used_up = u64::from(turn / uses);
            assert_eq!(statistics(&pool).closed.of(Closed::Used), used_up, "{uses} uses, turn {turn}");
            assert_eq!(pool.state().connections, u32::from(turn % uses != 0));
        }
    }
}

#[test]
fn who_would_wait_behind_too_many_is_turned_away_at_once() {
    let pool = Pool::builder().name("web").max_size(1).max_waiting(Some(1)).build(Server::default()).unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| drop(pool.get().unwrap()));
        testing::wait_until("somebody waits", || pool.state().waiting == 1);
        let error = pool.get().unwrap_err();
        assert!(error.is_queue_full() && !error.is_timeout());
        assert_eq!(error.kind(), ErrorKind::QueueFull);
        let text = error.to_string();
        let begins =
            "pool \"web\" turned away, for no more may wait: 1 of 1 in use, 1 others waiting; held longest: for ";
        assert!(text.starts_with(begins), "{text}");
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WouldBlock);
        drop(held);
    });
    assert_eq!(statistics(&pool).turned_away, 1);

    // A full server is waited for all the same, by one who had his turn already; and the reason is told.
    let pool = Pool::builder().max_size(2).max_waiting(Some(0)).build(Server::default()).unwrap();
    let held = pool.get().unwrap();
    pool.manager().is_full.store(true, SeqCst);
    thread::scope(|scope| {
        let waits = scope.spawn(|| pool.get().is_ok());
        testing::wait_until("it waits", || pool.state().waiting == 1);
        // Unless it is his turn to try the server again.
        testing::wait_until("one is turned away", || {
            let error = pool.get_timeout(Duration::from_millis(1)).unwrap_err();
            assert!(error.source().unwrap().to_string().ends_with("no room"), "{error:#}");
            error.is_queue_full()
        });
        drop(held);
        assert!(waits.join().unwrap());
    });

    // Nobody waits, but who finds one is served.
    let pool = Pool::builder().max_size(1).max_waiting(Some(0)).build(Server::default()).unwrap();
    let held = pool.get().unwrap();
    assert!(pool.get().unwrap_err().is_queue_full());
    drop(held);
    assert!(pool.get().is_ok());
}

#[derive(Debug, Default)]
struct Leaks(Mutex<Vec<u32>>);

impl HandleEvent for &'static Leaks {
    fn handle_leak(&self, event: LeakEvent) {
        self.0.lock().unwrap().push(event.holder().location.line());
    }
}

#[test]
fn what_is_held_for_too_long_is_named_with_its_line() {
    clean_process(|| {
        let leaks: &'static Leaks = Box::leak(Box::default());
        let told = || std::mem::take(&mut *leaks.0.lock().unwrap());
        let pool = Pool::builder()
            .max_size(2)
            .leak_threshold(Some(Duration::from_secs(60)))
            .event_handler(Box::new(leaks))
            .build(Server::default())
            .unwrap();
        let (leaked, line) = (pool.get().unwrap(), line!());
        pool.maintain();
        assert_eq!((told(), pool.state().leaks), (vec![], vec![]));

        advance_clock(Duration::from_secs(70));
        let state = pool.state();
        assert_eq!(state.leaks.len(), 1);
        assert_eq!((state.leaks[0].location.file(), state.leaks[0].location.line()), (file!(), line));
        assert!(state.leaks[0].held_for >= Duration::from_secs(68), "{state:?}");
        pool.maintain();
        pool.maintain();
        assert_eq!(told(), [line], "once");

        let (_other, other_line) = (pool.get().unwrap(), line!());
        assert!(pool.get_timeout(Duration::from_millis(1)).is_err());
        assert!(told().is_empty());
        advance_clock(Duration::from_secs(70));
        assert!(pool.get_timeout(Duration::from_millis(1)).is_err());
        assert_eq!(told(), [other_line], "also by one who waits in vain");

        drop(leaked);
        assert_eq!(pool.state().leaks.len(), 1);
        let (_again, again_line) = (pool.get().unwrap(), line!());
        advance_clock(Duration::from_secs(70));
        pool.maintain();
        assert_eq!(told(), [again_line], "each loan anew");
    });
}

/// A line is kept for as long as its loan, and no longer: neither while a connection rests nor while it is opened.
#[test]
fn only_who_has_a_connection_is_a_holder() {
    clean_process(|| {
        let pool = Pool::builder().leak_threshold(Some(Duration::from_secs(1))).build(Server::default()).unwrap();
        drop(pool.get().unwrap());
        let mut taken = vec![pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
        PooledConnection::discard(taken.pop().unwrap());
        let _detached = PooledConnection::detach(taken.pop().unwrap()).unwrap();
        drop(taken);
        advance_clock(Duration::from_secs(10));
        assert_eq!(pool.state().leaks, []);
    });
}

/// Its last holder is none while it is tested, which may take long.
#[test]
fn a_connection_that_is_tested_has_no_holder() {
    static POOL: OnceLock<Pool<Looks>> = OnceLock::new();
    static SEEN: AtomicU32 = AtomicU32::new(u32::MAX);
    struct Looks;
    impl ManageConnection for Looks {
        type Connection = ();
        type Error = io::Error;
        fn connect(&self) -> io::Result<()> {
            Ok(())
        }
        fn is_valid(&self, (): &mut ()) -> io::Result<()> {
            SEEN.store(POOL.get().unwrap().state().leaks.len() as u32, SeqCst);
            Ok(())
        }
        fn has_broken(&self, (): &mut ()) -> bool {
            false
        }
    }
    clean_process(|| {
        let builder = kit::tested().leak_threshold(Some(Duration::from_secs(1)));
        let pool = POOL.get_or_init(|| builder.build(Looks).unwrap());
        drop(pool.get().unwrap());
        advance_clock(Duration::from_secs(10));
        drop(pool.get().unwrap());
        assert_eq!(SEEN.load(SeqCst), 0);
    });
}

#[test]
fn an_exhausted_pool_says_all_that_is_known() {
    clean_process(|| {
        let pool = Pool::builder().name("sessions").max_size(2).build(Server::default()).unwrap();
        let (first, line) = (pool.get().unwrap(), line!());
        advance_clock(Duration::from_secs(90));
        let second = thread::scope(|scope| scope.spawn(|| pool.get().unwrap()).join().unwrap());
        let text = pool.get_timeout(Duration::from_millis(5)).unwrap_err().to_string();
        let place = |line| format!("{}:{line}:", file!());
        assert!(
            text.starts_with(
                "pool \"sessions\" timed out after 5ms: 2 of 2 in use, 0 others waiting; held longest: for "
            ),
            "{text}"
        );
        assert!(text.contains(&format!("s, by {}", place(line))), "{text}");
        assert!(text.contains("; this thread asked for one of them itself, at "), "{text}");
        drop(first);
        let third = thread::scope(|scope| scope.spawn(|| pool.get().unwrap()).join().unwrap());
        let text = pool.get_timeout(Duration::from_millis(5)).unwrap_err().to_string();
        assert!(!text.contains("this thread"), "{text}");
        drop((second, third));
    });
}

/// The one who waits has not tried to connect; another has, and knows why there is nothing.
#[test]
fn an_exhausted_pool_names_the_last_failure_of_others() {
    let pool = Pool::builder().max_size(2).build(Server::default()).unwrap();
    let _held = pool.get().unwrap();
    pool.manager().is_away.store(true, SeqCst);
    assert!(pool.get().unwrap_err().is_connect());
    pool.resize(1).unwrap();
    let error = pool.get_timeout(Duration::from_millis(5)).unwrap_err();
    assert!(error.is_timeout());
    let source = error.source().unwrap().to_string();
    assert!(source.starts_with("a connect failed ") && source.ends_with("s ago: nobody is there"), "{source}");

    // Until one succeeds.
    pool.resize(2).unwrap();
    pool.manager().is_away.store(false, SeqCst);
    let _other = pool.get().unwrap();
    assert!(pool.get_timeout(Duration::from_millis(5)).unwrap_err().source().is_none());
}

#[test]
fn the_name_is_in_errors_debug_and_at_hand() {
    let pool = Pool::builder().name("sessions").max_size(1).build(Server::default()).unwrap();
    assert_eq!(pool.name(), Some("sessions"));
    assert!(format!("{pool:?}").contains("sessions"));
    let _held = pool.get().unwrap();
    assert!(pool.get_timeout(Duration::ZERO).unwrap_err().to_string().starts_with("pool \"sessions\" "));
    assert_eq!(Pool::new(Server::default()).unwrap().name(), None);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let error = Pool::builder().max_uses(Some(0)).build(Server::default()).unwrap_err();
    assert!(error.is_config() && error.to_string().contains("max_uses is 0"), "{error}");
    let error = Pool::builder().leak_threshold(Some(Duration::ZERO)).build(Server::default()).unwrap_err();
    assert!(error.is_config() && error.to_string().contains("leak_threshold is 0"), "{error}");
}
