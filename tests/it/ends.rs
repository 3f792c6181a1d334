//! Row 10: however a child ends, its parent's sessions do not notice.

use crate::kit::{self, ways};
use crate::servers::scenarios;
use forksafe::testing::{self, Outcome, Steps, Way};

/// A first process of its namespace hears no signal that it sends to itself. What a child with a reused pid dies of is told
/// by another process, which has std's handler for SIGSEGV.
fn is_possible(way: Way, end: &str) -> bool {
    match way {
        Way::NewPidNamespace => !["abort", "kill", "segv"].contains(&end),
        Way::ReusedPid => end != "segv",
        _ => true,
    }
}

scenarios! {
    fn however_a_child_ends_the_parents_sessions_go_on<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let mut held = Some(pool.get().unwrap());
        let lent = S::ask(held.as_mut().unwrap());
        let idle = S::session(&pool);
        let ends = ["return", "exit", "_exit", "panic", "abort", "kill", "segv", "killed by its parent"];
        for (way, end) in ways().flat_map(|way| ends.map(|end| (way, end))).filter(|(way, end)| is_possible(*way, end)) {
            for uses_it in [false, true] {
                let steps = Steps::new(&["it is ready"]);
                let child = way.child(|| {
                    let guard = held.take();
                    let mut own = None;
                    if uses_it {
                        own = Some(pool.get().unwrap());
                        S::ask(own.as_mut().unwrap());
                    }
                    match end {
                        "exit" => std::process::exit(3),
                        // SAFETY: ends this process, which is what is tried.
                        "_exit" => unsafe { libc::_exit(3) },
                        "panic" => panic!("on purpose"),
                        "abort" => std::process::abort(),
                        // SAFETY: as above.
                        "kill" => unsafe { libc::raise(libc::SIGKILL) },
                        // SAFETY: as above.
                        "segv" => unsafe {
                            // std has a handler that would only look at it.
                            libc::signal(libc::SIGSEGV, libc::SIG_DFL);
                            libc::raise(libc::SIGSEGV)
                        },
                        "killed by its parent" => loop {
                            steps.take("it is ready");
                            std::thread::sleep(testing::patience());
                        },
                        _ => 0,
                    };
                    drop((guard, own));
                });
                if end == "killed by its parent" {
                    steps.wait_for("it is ready");
                    kit::kill(child.pid(), libc::SIGKILL);
                }
                match (end, child.outcome()) {
                    ("return", Outcome::Returned(())) => {}
                    ("exit" | "_exit", Outcome::Exited(3)) => {}
                    ("panic", Outcome::Panicked { .. }) => {}
                    ("abort", Outcome::Killed { signal: libc::SIGABRT }) => {}
                    ("kill" | "killed by its parent", Outcome::Killed { signal: libc::SIGKILL }) => {}
                    ("segv", Outcome::Killed { signal: libc::SIGSEGV }) => {}
                    (end, other) => panic!("{way}, {end}: {other:?}"),
                }
                assert_eq!(S::ask(held.as_mut().unwrap()), lent, "{way}, {end}");
                assert_eq!(S::session(&pool), idle, "{way}, {end}");
            }
        }
        server.wait_until("the children's connections have ended", |open| open.len() == 2);
        server.judge();
    }
}
