//! Row 30: what a container or a bare chroot denies. It works by other means, or is refused with a clear error.

use crate::kit::{TakesNumbers, deny, hide_proc, ways};
use crate::servers::{Server, scenarios};
use forksafe::testing::{self, PrivateRedis, Way, clean_process};
use std::io;

scenarios! {
    /// Without the page it is the pid and the handlers that tell a child.
    fn where_madvise_is_forbidden_every_way_is_protected_all_the_same<S: Server>() {
        // The server is not to be denied anything.
        let server = S::start();
        deny(libc::SYS_madvise, None, libc::EPERM);
        // SAFETY: no memory at all.
        let denied = unsafe { libc::madvise(std::ptr::null_mut(), 0, libc::MADV_WIPEONFORK) } != 0;
        assert!(denied && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM));
        let pool = server.pool();
        let mut held = Some(pool.get().unwrap());
        let (lent, idle) = (S::ask(held.as_mut().unwrap()), S::session(&pool));
        for way in ways() {
            let there = way.child(|| {
                let own = S::session(&pool);
                drop(held.take());
                [own, S::session(&pool)]
            })
            .join();
            assert!(there[0] == there[1] && ![lent, idle].contains(&there[0]), "{way}: {there:?}");
            assert_eq!((S::ask(held.as_mut().unwrap()), S::session(&pool)), (lent, idle), "{way}");
        }
        server.judge();
    }
}

/// A system call, and the argument that makes it the one in question.
type Call = (libc::c_long, Option<(u32, u32)>);
const UNSHARE: Call = (libc::SYS_unshare, None);
const CLOSE_RANGE: Call = (libc::SYS_close_range, Some((2, libc::CLOSE_RANGE_UNSHARE)));
const KCMP: Call = (libc::SYS_kcmp, None);

/// What is denied, whether `/proc` is there, and which of the children without handlers are served all the same.
type Case = (&'static [Call], bool, fn(Way) -> bool);

/// `kcmp` asks about the parent, by its pid. That one may be in another namespace.
fn knows_its_parent(way: Way) -> bool {
    way != Way::NewPidNamespace
}

/// A child without handlers may have its parent's very descriptors. It is served if it can part from them, or can be seen
/// to have its own; otherwise it is told why not, and touches nothing.
#[test]
fn a_child_whose_descriptors_may_be_its_parents_is_refused_and_touches_nothing() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let ways: Vec<Way> = ways().collect();
        let (with_proc, without_proc) = (true, false);
        let all = |_| true;
        let known = |way| way != Way::SharedFds && knows_its_parent(way);
        let none = |_| false;
        let cases: [Case; 8] = [
            (&[], without_proc, all),
            (&[UNSHARE], with_proc, all),
            (&[KCMP], with_proc, all),
            (&[UNSHARE, KCMP], with_proc, all),
            // Whether there are threads is to be seen in /proc alone.
            (&[UNSHARE], without_proc, known),
            (&[UNSHARE, CLOSE_RANGE], with_proc, known),
            (&[UNSHARE, KCMP], without_proc, none),
            (&[UNSHARE, CLOSE_RANGE, KCMP], with_proc, none),
        ];
        for (number, (calls, proc_is_there, is_served)) in cases.into_iter().enumerate() {
            let process = testing::child(|| {
                let pool = redis.pool();
                let mut held = pool.get().unwrap();
                let mut session = || [PrivateRedis::ask(&mut held), PrivateRedis::session(&pool)];
                let before = session();
                if !proc_is_there {
                    hide_proc();
                }
                for &(call, only) in calls {
                    deny(call, only, libc::EPERM);
                }
                for &way in &ways {
                    let got = way.child(|| match pool.get() {
                        Ok(mut conn) => Ok(PrivateRedis::ask(&mut conn)),
                        Err(error) => Err((error.is_unprotected(), error.to_string())),
                    });
                    match got.join() {
                        Ok(own) if way.runs_handlers() || is_served(way) => {
                            assert!(!before.contains(&own), "case {number}, {way}");
                        }
                        Err((is_unprotected, why)) if !way.runs_handlers() && !is_served(way) => {
                            assert!(is_unprotected && why.contains("descriptor table"), "case {number}, {way}: {why}");
                        }
                        other => panic!("case {number}, {way}: {other:?}"),
                    }
                    assert_eq!(session(), before, "case {number}, {way}: the parent's sessions");
                }
            });
            process.deadline(testing::patience() * 2).join();
        }
    });
}

/// Nothing needs `/proc` as long as a connection's socket is where it is expected.
#[test]
fn without_proc_redis_works_in_parent_and_child() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        testing::child(|| {
            hide_proc();
            let pool = redis.pool();
            let mut held = pool.get().unwrap();
            let sessions = [PrivateRedis::ask(&mut held), PrivateRedis::session(&pool)];
            let there = testing::child(|| PrivateRedis::session(&pool)).join();
            assert!(!sessions.contains(&there));
            assert_eq!([PrivateRedis::ask(&mut held), PrivateRedis::session(&pool)], sessions);
        })
        .join();
    });
}

/// Another thread was faster, and the search is not possible.
#[test]
fn without_proc_a_socket_that_is_not_where_it_was_expected_is_refused() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        testing::child(|| {
            hide_proc();
            let pool = redis.pool();
            let takes_numbers = TakesNumbers::begin();
            let mut refused = None;
            testing::wait_until("the expected number is another thread's", || {
                match pool.get() {
                    Ok(conn) => forksafe::PooledConnection::discard(conn),
                    Err(error) => refused = Some(error),
                }
                refused.is_some()
            });
            drop(takes_numbers);
            let error = refused.unwrap();
            assert!(error.is_unprotected() && error.to_string().contains("/proc/thread-self/fd"), "{error}");
            assert_eq!(pool.state().connections, 0);
            redis.wait_until("the refused session has ended", |open| open.is_empty());
            PrivateRedis::session(&pool);
        })
        .join();
    });
}

#[test]
fn what_is_refused_for_a_container_is_not_put_down_to_threads() {
    clean_process(|| {
        let witness = testing::Witness::start();
        let pool = witness.pool();
        testing::Witness::session(&pool);
        deny(libc::SYS_unshare, None, libc::EPERM);
        deny(libc::SYS_close_range, None, libc::EPERM);
        deny(libc::SYS_kcmp, None, libc::EPERM);
        let why = Way::Clone.child(|| pool.get().map(drop).unwrap_err().to_string()).join();
        assert!(why.contains("unshare") && why.contains("kcmp"), "{why}");
    });
}
