//! Row 28: what a program wants done in each child.

use crate::kit::{self, ask};
use crate::servers::Server;
use forksafe::Pool;
use forksafe::fork::{self, PerProcess};
use forksafe::testing::{self, Way, Witness, clean_process};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn hooks_run_once_per_child_in_order_before_the_first_use_is_served() {
    static RAN: Mutex<Vec<&str>> = Mutex::new(Vec::new());
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.pool();
        ask(&pool);
        fork::on_child(|| RAN.lock().unwrap().push("first"));
        fork::on_child(|| RAN.lock().unwrap().push("second"));
        let ran = || RAN.lock().unwrap().clone();
        assert!(ran().is_empty(), "not in the process that registers them");
        for way in crate::kit::ways().filter(|way| *way != Way::ReusedPid) {
            let (before, after, again, nested) = way
                .child(|| {
                    let before: Vec<String> = ran().into_iter().map(String::from).collect();
                    ask(&pool);
                    let after = ran().len();
                    fork::enter();
                    ask(&pool);
                    let again = ran().len();
                    let nested = testing::child(|| {
                        fork::enter();
                        ran().len()
                    });
                    (before, after, again, nested.join())
                })
                .join();
            assert_eq!((before.len(), after, again, nested), (0, 2, 2, 4), "{way}");
        }
        let in_order = testing::child(|| {
            static VALUE: PerProcess<u32> = PerProcess::new(|| 1);
            assert_eq!(*VALUE, 1);
            ran() == ["first", "second"]
        });
        assert!(in_order.join(), "a PerProcess is a use as well");
        assert!(ran().is_empty());
    });
}

#[test]
fn a_hook_may_use_the_pool_panic_register_hooks_and_start_threads() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    static LATER: AtomicU32 = AtomicU32::new(0);
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.builder().max_size(2).build(witness.manager()).unwrap();
        let here = ask(&pool);
        let (used, threaded) = (pool.clone(), pool.clone());
        fork::on_child(move || {
            assert_ne!(ask(&used), here, "served at once inside the hook");
            RUNS.fetch_add(1, SeqCst);
        });
        fork::on_child(|| panic!("a hook on purpose"));
        fork::on_child(|| {
            fork::on_child(|| {
                LATER.fetch_add(1, SeqCst);
            });
            RUNS.fetch_add(1, SeqCst);
        });
        fork::on_child(move || {
            let threaded = threaded.clone();
            let begin = Instant::now();
            let refused =
                thread::spawn(move || threaded.get_timeout(Duration::from_millis(200)).map(drop)).join().unwrap();
            assert!(refused.unwrap_err().is_timeout(), "other threads wait for the hooks, within their deadlines");
            assert!(begin.elapsed() >= Duration::from_millis(200));
            RUNS.fetch_add(1, SeqCst);
        });
        let (runs, later, nested_later) = testing::child(|| {
            let other = pool.clone();
            ask(&pool);
            thread::spawn(move || ask(&other)).join().unwrap();
            let nested = testing::child(|| {
                fork::enter();
                LATER.load(SeqCst)
            });
            (RUNS.load(SeqCst), LATER.load(SeqCst), nested.join())
        })
        .join();
        assert_eq!((runs, later, nested_later), (3, 0, 1));
        assert_eq!(ask(&pool), here);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// In a process that is a child itself and had no hooks to run until then.
#[test]
fn a_hook_is_not_run_in_the_process_that_registers_it() {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.pool();
        ask(&pool);
        let (here, nested) = testing::child(|| {
            fork::on_child(|| {
                RUNS.fetch_add(1, SeqCst);
            });
            ask(&pool);
            fork::enter();
            let nested = testing::child(|| {
                ask(&pool);
                RUNS.load(SeqCst)
            });
            (RUNS.load(SeqCst), nested.join())
        })
        .join();
        assert_eq!((here, nested), (0, 1));
    });
}

/// A thread that comes while the hooks run waits for them, and is then served.
#[test]
fn other_threads_are_served_when_the_hooks_are_through() {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    static THROUGH: AtomicU32 = AtomicU32::new(0);
    clean_process(|| {
        let witness = Witness::start();
        let pool: &'static Pool<_> = Box::leak(Box::new(witness.pool()));
        fork::on_child(|| {
            STARTED.fetch_add(1, SeqCst);
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_millis(100) {
                thread::yield_now();
            }
            THROUGH.store(1, SeqCst);
        });
        testing::child(|| {
            let runner = thread::spawn(fork::enter);
            while STARTED.load(SeqCst) == 0 {
                thread::yield_now();
            }
            ask(pool);
            assert_eq!(THROUGH.load(SeqCst), 1);
            runner.join().unwrap();
            assert_eq!(STARTED.load(SeqCst), 1, "and does not run them again");
        })
        .join();
    });
}

/// Without the test an idle connection is lent on a shorter way; it is as closed while the hooks run.
#[test]
fn other_threads_wait_for_the_hooks_even_when_a_connection_is_idle() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.builder().test_on_check_out(false).build(witness.manager()).unwrap();
        ask(&pool);
        let used = pool.clone();
        fork::on_child(move || {
            ask(&used);
            assert_eq!(used.state().idle_connections, 1);
            let other = used.clone();
            let refused =
                thread::spawn(move || other.get_timeout(Duration::from_millis(100)).map(drop)).join().unwrap();
            // A panic here would only be reported.
            WAITED.store(u32::from(refused.is_err_and(|error| error.is_timeout())), SeqCst);
        });
        static WAITED: AtomicU32 = AtomicU32::new(0);
        let waited = testing::child(|| {
            ask(&pool);
            WAITED.load(SeqCst)
        });
        assert_eq!(waited.join(), 1);
    });
}

/// `try_get` is a use as `get` is.
#[test]
fn a_fallible_per_process_value_runs_the_hooks_as_well() {
    static RAN: AtomicU32 = AtomicU32::new(0);
    static VALUE: PerProcess<u32, fn() -> Result<u32, ()>> = PerProcess::new(|| Ok(RAN.load(SeqCst)));
    clean_process(|| {
        fork::on_child(|| {
            RAN.fetch_add(1, SeqCst);
        });
        assert_eq!(testing::child(|| PerProcess::try_get(&VALUE).copied()).join(), Ok(1), "before the value is made");
    });
}

/// What a hook panics with may be anything. Each hook runs once all the same.
#[test]
fn a_panic_that_panics_when_it_is_dropped_does_not_run_the_hooks_again() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("the payload, on purpose");
        }
    }
    static RUNS: AtomicU32 = AtomicU32::new(0);
    clean_process(|| {
        fork::on_child(|| {
            RUNS.fetch_add(1, SeqCst);
        });
        fork::on_child(|| std::panic::panic_any(Bomb));
        fork::on_child(|| {
            RUNS.fetch_add(10, SeqCst);
        });
        let runs = testing::child(|| {
            fork::enter();
            fork::enter();
            RUNS.load(SeqCst)
        });
        assert_eq!(runs.join(), 11);
    });
}

/// Two hooks that each fork a helper, which uses the crate itself: each helper runs the hooks that it is not in the middle of.
#[test]
fn hooks_that_fork_do_not_run_without_end() {
    static DEPTH: AtomicU32 = AtomicU32::new(0);
    fn helper(told: &kit::Door) {
        let child = kit::fork().unwrap_or_else(|| {
            kit::leave(|| {
                told.open();
                assert!(DEPTH.fetch_add(1, SeqCst) < 5, "hooks within hooks within hooks");
                fork::enter();
            })
        });
        assert_eq!(kit::exit_code(child), 0);
    }
    clean_process(|| {
        let told: &'static kit::Door = Box::leak(Box::new(kit::Door::new()));
        let failed: &'static AtomicU32 = Box::leak(Box::new(AtomicU32::new(0)));
        for _ in 0..2 {
            fork::on_child(move || {
                failed.fetch_add(1, SeqCst);
                helper(told);
                failed.fetch_sub(1, SeqCst);
            });
        }
        let nested = testing::child(|| {
            fork::enter();
            failed.load(SeqCst)
        });
        assert_eq!(nested.join(), 0, "a helper failed");
        // A helper of each hook, and in each of those a helper of the other.
        (0..4).for_each(|_| told.pass());
        assert_eq!(told.waiting(), 0, "more helpers than that");
    });
}
