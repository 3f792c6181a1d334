//! Rows 7 and 9: many threads, many children.

use crate::kit::StopOnDrop;
use crate::servers::{Server, scenarios};
use forksafe::fork::PerProcess;
use forksafe::testing;
use std::collections::BTreeSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::thread;

scenarios! {
    /// Row 7: the child's threads race for the first use.
    fn racing_threads_of_a_child_are_all_served_by_one_new_state<S: Server>() {
        static MADE: AtomicU32 = AtomicU32::new(0);
        static VALUE: PerProcess<u32> = PerProcess::new(|| MADE.fetch_add(1, SeqCst));
        let server = S::start();
        let pool = server.pool_of(3);
        let here = S::session(&pool);
        for _ in 0..20 {
            let sessions = testing::child(|| {
                let start = Barrier::new(8);
                let sessions = thread::scope(|scope| {
                    let threads: Vec<_> = (0..8)
                        .map(|_| {
                            scope.spawn(|| {
                                start.wait();
                                assert_eq!(*VALUE, 0);
                                (0..5).map(|_| S::session(&pool)).collect::<Vec<_>>()
                            })
                        })
                        .collect();
                    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect::<BTreeSet<u64>>()
                });
                assert_eq!(MADE.load(SeqCst), 1, "made exactly once");
                assert!(pool.state().connections <= 3);
                sessions
            })
            .join();
            assert!(sessions.len() <= 3 && !sessions.contains(&here), "{sessions:?}");
        }
        assert_eq!(S::session(&pool), here);
        server.judge();
    }

    /// Row 9 at 200 children.
    fn two_hundred_children_of_a_busy_parent<S: Server>() {
        let server = S::start();
        let pool = server.pool_of(8);
        let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut held = pool.get().unwrap();
        let session = S::ask(&mut held);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            for _ in 0..8 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        S::session(&pool);
                        asked.fetch_add(1, SeqCst);
                    }
                });
            }
            for _ in 0..50 {
                let children: Vec<_> = (0..4)
                    .map(|_| {
                        testing::child(|| {
                            let sessions = thread::scope(|scope| {
                                let threads: Vec<_> = (0..4)
                                    .map(|_| scope.spawn(|| [S::session(&pool), S::session(&pool)]))
                                    .collect();
                                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
                            });
                            sessions.into_iter().flatten().collect::<BTreeSet<u64>>()
                        })
                    })
                    .collect();
                let mut seen = BTreeSet::from([session]);
                for child in children {
                    let sessions = child.join();
                    assert!(seen.is_disjoint(&sessions), "{seen:?} and {sessions:?}");
                    seen.extend(sessions);
                }
            }
        });
        assert!(asked.load(SeqCst) > 200, "the parent was busy: {asked:?}");
        assert_eq!(S::ask(&mut held), session);
        drop(held);
        // No session is left behind by the children.
        server.wait_until("the children's connections have ended", |open| open.len() <= 8);
        server.judge();
    }
}

/// Row 7, at its sharpest: the first calls of a child that was made without handlers, from many threads at once.
#[test]
fn racing_threads_of_a_handlerless_child_take_stock_once() {
    testing::clean_process(|| {
        let witness = testing::Witness::start();
        let pool = witness.pool();
        let held = pool.get().unwrap();
        for way in crate::kit::ways().filter(|way| !way.runs_handlers() && *way != testing::Way::SharedFds) {
            let generations = way
                .child(|| {
                    let start = Barrier::new(8);
                    thread::scope(|scope| {
                        let threads: Vec<_> = (0..8)
                            .map(|_| {
                                scope.spawn(|| {
                                    start.wait();
                                    forksafe::fork::generation().to_string()
                                })
                            })
                            .collect();
                        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<BTreeSet<_>>()
                    })
                })
                .join();
            assert_eq!(generations.len(), 1, "{way}: {generations:?}");
            assert_ne!(generations.first().unwrap(), &forksafe::fork::generation().to_string(), "{way}");
        }
        drop(held);
        witness.judge();
    });
}
