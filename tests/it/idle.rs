//! Rows 1, 2, 8, 11, 12, 15: connections that lay idle when the fork came.

use crate::kit::{self, Door, nestable_ways, ways};
use crate::servers::{Server, scenarios};
use forksafe::testing::{self, Steps, Way};
use forksafe::{Pool, fork};
use std::collections::BTreeSet;

scenarios! {
    /// Row 1, for every way of making a child.
    fn a_child_opens_its_own_and_the_parent_keeps_its_session<S: Server>() {
        for way in ways() {
            let server = S::start();
            let pool = server.pool();
            let held = [pool.get().unwrap(), pool.get().unwrap()];
            let before: BTreeSet<u64> = held.into_iter().map(|mut conn| S::ask(&mut conn)).collect();
            let child = way.child(|| [S::session(&pool), S::session(&pool)]).join();
            assert!(child.iter().all(|id| !before.contains(id)), "{way}: {child:?} in the child, {before:?} here");
            let held = [pool.get().unwrap(), pool.get().unwrap()];
            let after: BTreeSet<u64> = held.into_iter().map(|mut conn| S::ask(&mut conn)).collect();
            assert_eq!(after, before, "{way}: the parent's sessions");
            server.judge();
        }
    }

    /// Row 1 with a parent of pid 1 and a child of pid 1: a pid tells nothing.
    fn pid_1_and_its_child_pid_1_are_told_apart<S: Server>() {
        if let Err(why) = Way::NewPidNamespace.available() {
            return println!("NOT RUN: {why}");
        }
        let server = S::start();
        let sessions = Way::NewPidNamespace.child(|| {
            let pool = server.pool();
            let before = S::session(&pool);
            let child = Way::NewPidNamespace.child(|| (std::process::id(), S::session(&pool))).join();
            (std::process::id(), child.0, before, child.1, S::session(&pool))
        });
        let (parent, child, before, childs, after) = sessions.join();
        assert_eq!((parent, child), (1, 1));
        assert_eq!(before, after);
        assert_ne!(before, childs);
        server.judge();
    }

    /// Row 1 with a grandchild that has the pid of the dead process that opened a connection.
    fn a_reused_pid_is_not_taken_for_its_former_owner<S: Server>() {
        if let Err(why) = Way::ReusedPid.available() {
            return println!("NOT RUN: {why}");
        }
        let server = S::start();
        let pool = server.pool();
        S::session(&pool);
        let used = pool.clone();
        // Runs in the process in between, and leaves an idle connection there, made under the pid in question.
        fork::on_child(move || { S::session(&used); });
        let here = S::session(&pool);
        let (pid, session, idle_at_first) = Way::ReusedPid.child(|| {
            let idle_at_first = pool.state().idle_connections;
            (std::process::id(), S::session(&pool), idle_at_first)
        }).join();
        assert_ne!(pid, std::process::id());
        assert_eq!(idle_at_first, 0, "the grandchild saw the dead process's idle connection as its own");
        assert_ne!(session, here);
        server.judge();
    }

    /// Row 2: by exit, by kill, and by a close while the parent lives on. Ways without handlers call `enter` first.
    fn an_idle_child_keeps_no_connection_of_its_parent_open<S: Server>() {
        for way in ways() {
            for end in ["exit", "kill", "close"] {
                let server = S::start();
                let (idles, stop) = (Door::new(), Door::new());
                let parent = testing::child(|| {
                    let pool = server.pool();
                    let session = S::session(&pool);
                    let idle = way.child(|| {
                        if !way.runs_handlers() {
                            fork::enter();
                        }
                        idles.open();
                        stop.pass();
                    });
                    idles.pass();
                    let pid = idle.leave();
                    match end {
                        "close" => {
                            pool.disconnect();
                            // Here, while both live.
                            server.wait_for_end(session);
                            assert!(kit::is_alive(pid));
                        }
                        "kill" => {
                            // The value cannot be sent any more; the server is asked below for all connections.
                            kit::kill(std::process::id(), libc::SIGKILL);
                        }
                        _ => {}
                    }
                    (session, pid)
                });
                match parent.outcome() {
                    testing::Outcome::Returned((session, pid)) => {
                        server.wait_for_end(session);
                        assert!(kit::is_alive(pid), "{way}, {end}: the idle child was to outlive its parent");
                    }
                    testing::Outcome::Killed { .. } if end == "kill" => {
                        server.wait_until("no connection is left", |open| open.is_empty());
                    }
                    other => panic!("{way}, {end}: {other:?}"),
                }
                stop.open();
            }
        }
    }

    /// Row 8: the grandchild is made before its parent used the pool, and after.
    fn grandchildren_are_protected_whenever_they_are_made<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let here = S::session(&pool);
        for way in nestable_ways() {
            let mut all = way.child(|| {
                let early = way.child(|| S::session(&pool)).join();
                let own = S::session(&pool);
                let late = way.child(|| S::session(&pool)).join();
                assert_eq!(S::session(&pool), own);
                vec![early, own, late]
            })
            .join();
            assert_eq!(S::session(&pool), here, "{way}");
            all.push(here);
            assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 4, "{way}: {all:?}");
        }
        server.judge();
    }

    /// Row 8: each generation, made another way, holds a guard while it makes the next; after the last, each still has its
    /// own.
    fn ten_generations_deep_each_has_its_own<S: Server>() {
        fn generation<S: Server>(pool: &Pool<S::Manager>, ways: &[Way], left: usize) -> Vec<u64> {
            let mut mine = pool.get().unwrap();
            let session = S::ask(&mut mine);
            let mut line = match left {
                0 => Vec::new(),
                _ => ways[left % ways.len()].child(|| generation::<S>(pool, ways, left - 1)).join(),
            };
            assert_eq!(S::ask(&mut mine), session, "the connection held across the fork");
            line.push(session);
            line
        }
        let server = S::start();
        let pool = server.pool();
        let all: Vec<Way> = ways().collect();
        for ways in [&[Way::Fork][..], &all] {
            let line = generation::<S>(&pool, ways, 10);
            assert_eq!(line.iter().collect::<BTreeSet<_>>().len(), 11, "{line:?}");
        }
        server.judge();
    }

    /// Row 11: the parent is gone before its child first uses the pool. (A daemon's is gone at once.) Until then its session
    /// must not live on in the child; ways without handlers call `enter` for that.
    fn an_orphan_goes_on<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let here = S::session(&pool);
        for way in ways() {
            let steps = Steps::new(&["the orphan is there", "its parent is gone", "it was served"]);
            let parents = testing::child(|| {
                let session = S::session(&pool);
                let orphan = way.child(|| {
                    if !way.runs_handlers() {
                        fork::enter();
                    }
                    steps.take("the orphan is there");
                    steps.wait_for("its parent is gone");
                    let own = [S::session(&pool), S::session(&pool)];
                    assert_eq!(own[0], own[1], "{way}");
                    assert!(own[0] != session && own[0] != here, "{way}");
                    steps.take("it was served");
                });
                steps.wait_for("the orphan is there");
                std::mem::forget(orphan);
                session
            })
            .join();
            server.wait_for_end(parents);
            steps.take("its parent is gone");
            steps.wait_for("it was served");
            assert_eq!(S::session(&pool), here, "{way}");
        }
        server.judge();
    }

    /// Row 12: two pools, and twenty.
    fn every_pool_is_protected<S: Server>() {
        let server = S::start();
        let pools: Vec<_> = (0..20).map(|_| server.pool()).collect();
        let here: Vec<u64> = pools.iter().map(S::session).collect();
        for way in ways() {
            let there = way.child(|| pools.iter().map(S::session).collect::<Vec<u64>>()).join();
            assert!(there.iter().all(|id| !here.contains(id)), "{way}");
            assert_eq!(pools.iter().map(S::session).collect::<Vec<u64>>(), here, "{way}");
        }
        server.judge();
    }

    /// Row 12.
    fn a_pool_made_only_in_the_child_works<S: Server>() {
        let server = S::start();
        for way in nestable_ways() {
            let (session, again) = way.child(|| {
                let pool = server.pool();
                let session = S::session(&pool);
                (session, way.child(|| S::session(&pool)).join())
            })
            .join();
            assert_ne!(session, again, "{way}");
        }
        server.judge();
    }

    /// Row 12: what the pool had closed before the fork is no business of the child's.
    fn a_pool_dropped_before_the_fork_leaves_nothing<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let session = S::session(&pool);
        drop(pool);
        server.wait_for_end(session);
        for way in ways() {
            let sockets = way.child(sockets_here);
            // Those of the witness's own side are this process's, and none of the pool's is among them.
            assert_eq!(sockets.join().difference(&sockets_here()).count(), 0, "{way}");
        }
        server.judge();
    }
}

fn sockets_here() -> BTreeSet<String> {
    let all = testing::descriptors(std::process::id()).into_values();
    all.filter(|name| name.starts_with("socket:")).collect()
}

/// Row 15, beyond what every way shows: after the child has dropped what it inherited the parent's descriptors are open.
#[test]
fn a_child_that_shares_the_table_does_not_close_its_parents_sockets() {
    testing::clean_process(|| {
        if let Err(why) = Way::SharedFds.available() {
            return println!("NOT RUN: {why}");
        }
        let witness = testing::Witness::start();
        let pool = witness.pool();
        let mut held = pool.get().unwrap();
        let (idle, session) = (kit::ask(&pool), held.ask("held").unwrap().connection);
        Way::SharedFds
            .child(|| {
                fork::enter();
            })
            .join();
        assert_eq!(held.ask("still").unwrap().connection, session);
        assert_eq!(kit::ask(&pool), idle);
        witness.judge();
    });
}
