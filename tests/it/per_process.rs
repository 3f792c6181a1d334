//! `PerProcess`, in one process and across forks.

use forksafe::fork::PerProcess;
use forksafe::testing::{self, Outcome, clean_process};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;

#[test]
fn racing_threads_make_one_value() {
    clean_process(|| {
        for _ in 0..200 {
            let made = AtomicU32::new(0);
            let value = PerProcess::new(|| made.fetch_add(1, SeqCst));
            let start = Barrier::new(4);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        start.wait();
                        assert_eq!(*value, 0);
                    });
                }
            });
            assert_eq!(made.load(SeqCst), 1);
        }
    });
}

#[test]
fn a_failing_or_panicking_initialiser_is_tried_again() {
    let calls = AtomicU32::new(0);
    let value = PerProcess::new(|| match calls.fetch_add(1, SeqCst) {
        0 => Err("first"),
        1 => panic!("second"),
        n => Ok(n),
    });
    assert_eq!(PerProcess::try_get(&value), Err("first"));
    assert!(catch_unwind(AssertUnwindSafe(|| PerProcess::try_get(&value))).is_err());
    assert_eq!(PerProcess::existing(&value), None);
    assert_eq!(PerProcess::try_get(&value), Ok(&2));
    assert_eq!(PerProcess::try_get(&value), Ok(&2));
}

#[test]
fn an_initialiser_that_asks_for_itself_is_told_so() {
    clean_process(|| {
        static SELF: PerProcess<u32> = PerProcess::new(|| *SELF + 1);
        match testing::child(|| *SELF).outcome() {
            Outcome::Panicked { message, .. } => {
                assert!(message.contains("asked for the value it is making"), "{message}")
            }
            other => panic!("{other:?}"),
        }
        // And the value is still to be had by one who can make it.
        let depth = AtomicU32::new(0);
        let cell: PerProcess<u32, _> = PerProcess::new(|| depth.fetch_add(1, SeqCst));
        assert_eq!(*cell, 0);
    });
}

/// A thread of the parent is inside the initialiser when the fork comes: the child does not wait for it.
#[test]
fn a_child_does_not_wait_for_its_parents_initialiser() {
    clean_process(|| {
        let (inside, leave) = (crate::kit::Door::new(), crate::kit::Door::new());
        let here = std::process::id();
        let value = PerProcess::new(|| {
            if std::process::id() == here {
                inside.open();
                leave.pass();
            }
            std::process::id()
        });
        thread::scope(|scope| {
            let maker = scope.spawn(|| *value);
            inside.pass();
            let child = testing::child(|| *value);
            let pid = child.pid();
            assert_eq!(child.join(), pid);
            leave.open();
            assert_eq!(maker.join().unwrap(), here);
        });
    });
}

#[test]
fn an_inherited_value_is_never_dropped_and_ones_own_is() {
    clean_process(|| {
        struct Counts(Arc<AtomicU32>);
        impl Drop for Counts {
            fn drop(&mut self) {
                self.0.fetch_add(1, SeqCst);
            }
        }
        let dropped = Arc::new(AtomicU32::new(0));
        let mut value = Some(PerProcess::new(|| Counts(Arc::clone(&dropped))));
        assert!(PerProcess::existing(value.as_ref().unwrap()).is_none());
        PerProcess::get(value.as_ref().unwrap());
        let drops = testing::child(|| {
            let value = value.take().unwrap();
            assert!(PerProcess::existing(&value).is_none(), "what exists is the parent's");
            drop(value);
            let unused = dropped.load(SeqCst);
            (unused, 0)
        });
        assert_eq!(drops.join(), (0, 0));
        let drops = testing::child(|| {
            let value = value.take().unwrap();
            PerProcess::get(&value);
            drop(value);
            dropped.load(SeqCst)
        });
        assert_eq!(drops.join(), 1, "the child's own");
        drop(value);
        assert_eq!(dropped.load(SeqCst), 1);
    });
}

#[test]
fn a_tokio_runtime_per_process_works_on_both_sides_of_a_fork() {
    static RT: PerProcess<tokio::runtime::Runtime> = PerProcess::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap()
    });
    fn twice(n: u32) -> u32 {
        RT.block_on(async move {
            let spawned = tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                n * 2
            });
            spawned.await.unwrap()
        })
    }
    clean_process(|| {
        assert_eq!(twice(1), 2);
        for n in 0..20 {
            assert_eq!(
                testing::child(|| (twice(n), testing::child(|| twice(n + 1)).join())).join(),
                (n * 2, n * 2 + 2)
            );
        }
        assert_eq!(twice(4), 8, "the parent's own runtime goes on");
    });
}

/// Pools, agents and the like have a `get` of their own; none of it is hidden.
#[test]
fn the_values_own_methods_are_not_hidden() {
    struct Target;
    impl Target {
        fn get(&self) -> &str {
            "the target's get"
        }
        fn try_get(&self) -> &str {
            "the target's try_get"
        }
        fn existing(&self) -> &str {
            "the target's existing"
        }
    }
    static TARGET: PerProcess<Target> = PerProcess::new(|| Target);
    assert_eq!(TARGET.get(), "the target's get");
    assert_eq!(TARGET.try_get(), "the target's try_get");
    assert_eq!(TARGET.existing(), "the target's existing");
    assert_eq!(PerProcess::get(&TARGET).get(), "the target's get");
}
