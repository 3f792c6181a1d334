//! A pool that becomes larger or smaller while it is used.

use crate::kit;
use forksafe::fork::Descriptors;
use forksafe::testing::{self, Witness, clean_process};
use forksafe::{Closed, Fault, ManageConnection, Pool};
use std::convert::Infallible;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// Counts how many there are at a time, and the most there ever were since it was asked.
#[derive(Default)]
struct Counted {
    open: std::sync::Arc<AtomicU32>,
    most: AtomicU32,
}

struct One(std::sync::Arc<AtomicU32>);

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl ManageConnection for Counted {
    type Connection = One;
    type Error = Infallible;
    fn connect(&self) -> Result<One, Infallible> {
        let open = self.open.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(open, SeqCst);
        Ok(One(std::sync::Arc::clone(&self.open)))
    }
    fn is_valid(&self, _: &mut One) -> Result<(), Infallible> {
        Ok(())
    }
    fn has_broken(&self, _: &mut One) -> bool {
        false
    }
    fn descriptors(&self, _: &One) -> Descriptors {
        Descriptors::none()
    }
}

const SOON: Duration = Duration::from_millis(5);

#[test]
fn a_pool_that_grows_lends_more_and_one_that_shrinks_less() {
    let pool = Pool::builder().max_size(2).build(Counted::default()).unwrap();
    let mut held = vec![pool.get().unwrap(), pool.get().unwrap()];
    assert!(pool.get_timeout(SOON).is_err());
    for size in [3, 5, 100, 200] {
        pool.resize(size).unwrap();
        assert_eq!(pool.max_size(), size);
        while held.len() < size as usize {
            held.push(pool.get().unwrap());
        }
        let text = pool.get_timeout(SOON).unwrap_err().to_string();
        assert!(text.contains(&format!("{size} of {size} in use")), "{text}");
        assert_eq!(pool.state().connections, size);
    }
    // Lent ones are closed when they come back, as many as are too many.
    pool.resize(150).unwrap();
    assert_eq!(pool.state().connections, 200);
    held.truncate(150);
    assert_eq!(pool.state().connections, 150);
    held.truncate(100);
    assert_eq!((pool.state().connections, pool.state().idle_connections), (150, 50));
    // Of idle ones first.
    pool.resize(60).unwrap();
    assert_eq!((pool.state().connections, pool.state().idle_connections), (100, 0));
    held.truncate(61);
    assert_eq!((pool.state().connections, pool.state().idle_connections), (61, 0));
    held.truncate(59);
    assert_eq!((pool.state().connections, pool.state().idle_connections), (60, 1));
    // And back again, into slots that were shut.
    pool.resize(70).unwrap();
    while held.len() < 70 {
        held.push(pool.get().unwrap());
    }
    assert!(pool.get_timeout(SOON).is_err());
    drop(held);
    let closed = pool.statistics().unwrap().closed;
    assert_eq!(closed.of(Closed::Surplus), closed.total(), "{closed:?}");
    assert_eq!(pool.manager().open.load(SeqCst), 70);
    drop(pool);
}

/// The goodbyes of what was too much take their time: until they are said their slots are not used again.
#[test]
fn a_pool_that_shrinks_and_grows_never_has_too_many() {
    let (say, said) = (Barrier::new(2), Barrier::new(2));
    let barriers: &'static (Barrier, Barrier) = Box::leak(Box::new((say, said)));
    let pool = Pool::builder()
        .max_size(2)
        .connection_timeout(testing::patience())
        .before_close(move |_: &mut One, _| {
            barriers.0.wait();
            barriers.1.wait();
        })
        .build(Counted::default())
        .unwrap();
    drop([pool.get().unwrap(), pool.get().unwrap()]);
    pool.manager().most.store(0, SeqCst);
    thread::scope(|scope| {
        scope.spawn(|| pool.resize(1).unwrap());
        barriers.0.wait();
        pool.resize(2).unwrap();
        let held = pool.get().unwrap();
        let waits = scope.spawn(|| drop(pool.get().unwrap()));
        testing::wait_until("one waits for what is leaving", || pool.state().waiting == 1);
        assert_eq!(pool.state().connections, 2);
        barriers.1.wait();
        waits.join().unwrap();
        drop(held);
    });
    assert_eq!(pool.manager().most.load(SeqCst), 2);
    assert_eq!(pool.statistics().unwrap().created, 3);
    thread::scope(|scope| {
        scope.spawn(|| pool.close());
        for _ in 0..2 {
            barriers.0.wait();
            barriers.1.wait();
        }
    });
}

/// A goodbye that panics keeps no other from being said, and loses no slot.
#[test]
fn a_panicking_goodbye_of_a_pool_that_shrinks_loses_nothing() {
    static SAID: AtomicU32 = AtomicU32::new(0);
    let pool = Pool::builder()
        .max_size(3)
        .before_close(|_: &mut One, _| {
            if SAID.fetch_add(1, SeqCst) == 0 {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
        })
        .build(Counted::default())
        .unwrap();
    drop([pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()]);
    let resized = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.resize(1)));
    assert!(resized.is_err());
    assert_eq!((SAID.load(SeqCst), pool.state().connections, pool.max_size()), (2, 1, 1));
    pool.resize(3).unwrap();
    drop([pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()]);
    pool.close_timeout(testing::patience()).unwrap();
}

/// The server has no room for the second, so nobody connects for a while; the pool shrinks and grows meanwhile.
#[test]
fn who_waits_behind_a_shut_gate_hears_of_a_pool_that_grows() {
    #[derive(Debug, thiserror::Error)]
    #[error("no room")]
    struct NoRoom;
    struct Full(AtomicU32);
    impl ManageConnection for Full {
        type Connection = ();
        type Error = NoRoom;
        fn connect(&self) -> Result<(), NoRoom> {
            let is_full = self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err();
            if is_full { Err(NoRoom) } else { Ok(()) }
        }
        fn is_valid(&self, (): &mut ()) -> Result<(), NoRoom> {
            Ok(())
        }
        fn has_broken(&self, (): &mut ()) -> bool {
            false
        }
        fn classify(&self, _: &(dyn std::error::Error + 'static)) -> Fault {
            Fault::NoRoom
        }
    }
    let pool =
        Pool::builder().max_size(2).connection_timeout(testing::patience()).build(Full(AtomicU32::new(1))).unwrap();
    let held = pool.get().unwrap();
    for _ in 0..5 {
        // Shuts the gate, for longer each time.
        assert!(pool.get_timeout(Duration::from_millis(30)).is_err());
    }
    pool.resize(1).unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| pool.get().is_ok());
        testing::wait_until("one waits", || pool.state().waiting == 1);
        pool.manager().0.store(1, SeqCst);
        pool.resize(2).unwrap();
        assert!(waits.join().unwrap(), "though nothing comes back");
    });
    drop(held);
}

/// What was to leave stays, if there is room for it again before it has come back.
#[test]
fn a_pool_that_changes_its_mind_closes_nothing() {
    let pool = Pool::builder().max_size(3).build(Counted::default()).unwrap();
    let held = [pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
    pool.resize(1).unwrap();
    pool.resize(3).unwrap();
    drop(held);
    assert_eq!(pool.state().idle_connections, 3);
    assert_eq!(pool.statistics().unwrap().closed.total(), 0);
}

#[test]
fn a_size_that_makes_no_sense_changes_nothing() {
    let pool = Pool::builder().max_size(5).min_idle(Some(2)).build_unchecked(Counted::default());
    for size in [0, 1, 1 << 17] {
        assert!(pool.resize(size).unwrap_err().is_config(), "{size}");
    }
    assert_eq!(pool.max_size(), 5);
    pool.resize(2).unwrap();
}

#[test]
fn who_waits_is_served_when_the_pool_grows() {
    let pool = Pool::builder().max_size(1).connection_timeout(testing::patience()).build(Counted::default()).unwrap();
    let held = pool.get().unwrap();
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| pool.get().unwrap())).collect();
        testing::wait_until("all wait", || pool.state().waiting == 3);
        pool.resize(4).unwrap();
        let got: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
        assert_eq!(got.len(), 3);
    });
    drop(held);
}

#[test]
fn who_waits_is_served_by_what_is_left_when_the_pool_shrinks() {
    let pool = Pool::builder().max_size(3).connection_timeout(testing::patience()).build(Counted::default()).unwrap();
    let mut held = vec![pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
    thread::scope(|scope| {
        let waiter = scope.spawn(|| drop(pool.get().unwrap()));
        testing::wait_until("it waits", || pool.state().waiting == 1);
        pool.resize(1).unwrap();
        held.pop();
        held.pop();
        assert_eq!(pool.state().connections, 1, "those are not for the waiter");
        assert!(!waiter.is_finished());
        held.pop();
        waiter.join().unwrap();
    });
    assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1));
}

/// Threads take and return while the size changes all the time: nobody hangs, nothing is lost, and when it has settled there are
/// never more than there may be.
#[test]
fn a_pool_may_be_resized_while_it_is_used() {
    let pool = Pool::builder().max_size(4).connection_timeout(testing::patience()).build(Counted::default()).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = kit::StopOnDrop(&stop);
        for _ in 0..6 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let held = pool.get().unwrap();
                    thread::yield_now();
                    drop(held);
                }
            });
        }
        let until = Instant::now() + Duration::from_secs(2);
        let mut turn = 0_u32;
        while Instant::now() < until {
            turn += 1;
            pool.resize([1, 7, 2, 4, 9, 1, 3][turn as usize % 7]).unwrap();
            thread::yield_now();
        }
    });
    pool.resize(3).unwrap();
    let held = [pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
    assert!(pool.get_timeout(SOON).is_err());
    assert_eq!(pool.state().connections, 3);
    assert_eq!(pool.manager().open.load(SeqCst), 3);
    pool.manager().most.store(0, SeqCst);
    drop(held);
    let together = Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                together.wait();
                for _ in 0..500 {
                    drop(pool.get().unwrap());
                }
            });
        }
    });
    assert!(pool.manager().most.load(SeqCst) <= 3);
    pool.close_timeout(testing::patience()).unwrap();
    assert_eq!(pool.manager().open.load(SeqCst), 0);
}

#[test]
fn a_closed_pool_may_be_resized_and_stays_closed() {
    let pool = Pool::builder().max_size(3).build(Counted::default()).unwrap();
    let held = pool.get().unwrap();
    pool.resize(1).unwrap();
    pool.close();
    pool.resize(5).unwrap();
    assert!(pool.get().unwrap_err().is_closed());
    drop(held);
    pool.close_timeout(testing::patience()).unwrap();
    assert_eq!(pool.manager().open.load(SeqCst), 0);
}

/// A child begins with the size of its parent, and neither's changes are the other's.
#[test]
fn a_child_has_a_size_of_its_own() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(1).build(witness.manager()).unwrap();
        kit::ask(&pool);
        pool.resize(3).unwrap();
        let child = testing::child(|| {
            let held = [pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
            let is_full = pool.get_timeout(SOON).is_err();
            pool.resize(4).unwrap();
            let one_more = pool.get().is_ok();
            drop(held);
            (is_full, one_more, pool.max_size())
        });
        assert_eq!(child.join(), (true, true, 4));
        assert_eq!(pool.max_size(), 3);
        // Before its first use there as well.
        let child = testing::child(|| {
            pool.resize(2).unwrap();
            let held = [pool.get().unwrap(), pool.get().unwrap()];
            let is_full = pool.get_timeout(SOON).is_err();
            drop(held);
            is_full
        });
        assert!(child.join());
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}
