//! Row 10: however a child ends, its parent's sessions do not notice.

use crate::servers::scenarios;
use forksafe::testing::{self, Outcome};

scenarios! {
    fn however_a_child_ends_the_parents_sessions_go_on<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let mut held = Some(pool.get().unwrap());
        let lent = S::ask(held.as_mut().unwrap());
        let idle = S::session(&pool);
        for uses_it in [false, true] {
            for end in ["return", "exit", "_exit", "panic", "abort", "kill", "segv"] {
                let child = testing::child(|| {
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
                        _ => 0,
                    };
                    drop((guard, own));
                });
                match (end, child.outcome()) {
                    ("return", Outcome::Returned(())) => {}
                    ("exit" | "_exit", Outcome::Exited(3)) => {}
                    ("panic", Outcome::Panicked { .. }) => {}
                    ("abort", Outcome::Killed { signal: libc::SIGABRT }) => {}
                    ("kill", Outcome::Killed { signal: libc::SIGKILL }) => {}
                    ("segv", Outcome::Killed { signal: libc::SIGSEGV }) => {}
                    (end, other) => panic!("{end}: {other:?}"),
                }
                assert_eq!(S::ask(held.as_mut().unwrap()), lent, "{end}");
                assert_eq!(S::session(&pool), idle, "{end}");
            }
        }
        server.wait_until("the children's connections have ended", |open| open.len() == 2);
        server.judge();
    }
}
