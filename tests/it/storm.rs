//! Rows 7 and 9: many threads, many children.

use crate::kit::{self, StopOnDrop, ways};
use crate::servers::{Server, scenarios};
use forksafe::fork::{Descriptors, Guarded, PerProcess, Registration};
use forksafe::testing::{self, Way, Witness};
use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Barrier, Mutex};
use std::thread;

scenarios! {
    /// Row 7: the child's threads race for the first use, whichever way it was made.
    fn racing_threads_of_a_child_are_all_served_by_one_new_state<S: Server>() {
        static MADE: AtomicU32 = AtomicU32::new(0);
        static VALUE: PerProcess<u32> = PerProcess::new(|| MADE.fetch_add(1, SeqCst));
        let server = S::start();
        let pool = server.pool_of(3);
        let here = S::session(&pool);
        for way in ways().cycle().take(20) {
            let sessions = way.child(|| {
                // With threads that come first, only a table that is seen not to be the parent's can be parted from.
                if matches!(way, Way::SharedFds | Way::NewPidNamespace | Way::ReusedPid) {
                    forksafe::fork::enter();
                }
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
            assert!(sessions.len() <= 3 && !sessions.contains(&here), "{way}: {sessions:?}");
            assert_eq!(S::session(&pool), here, "{way}");
        }
        server.judge();
    }

    /// Row 9. The parent goes on with the very sessions that it had, and each child has its own.
    fn a_storm_of_children_harms_neither_them_nor_their_parent<S: Server>() {
        const AT_ONCE: usize = 4;
        let server = S::start();
        let pool = server.pool_of(9);
        pool.warm_up(9).unwrap();
        let here: BTreeSet<u64> = server.open().into_iter().collect();
        assert_eq!(here.len(), 9);
        let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut held = pool.get().unwrap();
        let session = S::ask(&mut held);
        let begun = Barrier::new(9);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            let busy: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        begun.wait();
                        while !stop.load(SeqCst) {
                            let session = S::session(&pool);
                            assert!(here.contains(&session), "{session} instead of {here:?}");
                            asked.fetch_add(1, SeqCst);
                        }
                    })
                })
                .collect();
            // A thread that is just starting holds a lock of std's, which no thread of a child could start without.
            begun.wait();
            for _ in 0..S::STORM / AT_ONCE {
                let children: Vec<_> = (0..AT_ONCE)
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
                let mut seen = here.clone();
                for child in children {
                    let sessions = child.join();
                    assert!(seen.is_disjoint(&sessions), "{seen:?} and {sessions:?}");
                    seen.extend(sessions);
                }
                assert!(busy.iter().all(|thread| !thread.is_finished()), "a thread of the parent has failed");
            }
        });
        assert!(asked.load(SeqCst) > S::STORM as u64, "the parent was busy: {asked:?}");
        assert_eq!(S::ask(&mut held), session);
        drop(held);
        // No session is left behind by the children, and none of the parent's is lost.
        server.wait_until("only the parent's connections are left", |open| {
            open.iter().copied().collect::<BTreeSet<u64>>() == here
        });
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

/// Registered descriptors, so many that taking stock of them takes a child some milliseconds: time to meet it at it.
fn thousands() -> Vec<(Guarded<UnixStream>, UnixStream)> {
    // SAFETY: plain numbers of ours.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max.min(8192);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    let pairs = (0..1500).map(|_| UnixStream::pair().unwrap());
    pairs.map(|(near, far)| (Guarded::new(near, Descriptors::of).unwrap(), far)).collect()
}

/// Row 7: who knows the generation knows that nothing inherited is alive any more, whichever thread saw to it.
#[test]
fn a_thread_that_is_told_the_generation_finds_everything_dead() {
    testing::clean_process(|| {
        let pairs = thousands();
        let numbers: Vec<i32> = pairs.iter().map(|(near, _)| near.as_raw_fd()).collect();
        for _ in 0..5 {
            let alive = Way::Clone.child(|| {
                let start = Barrier::new(4);
                let look = || {
                    start.wait();
                    forksafe::fork::generation();
                    // From the end, which is dropped last.
                    // SAFETY: one byte of a static; MSG_NOSIGNAL makes a dead peer an error.
                    let can_write =
                        |fd: &&i32| unsafe { libc::send(**fd, c"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) == 1 };
                    numbers.iter().rev().filter(can_write).count()
                };
                thread::scope(|scope| {
                    let threads: Vec<_> = (0..4).map(|_| scope.spawn(look)).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
                })
            });
            assert_eq!(alive.join(), 0);
        }
    });
}

/// A handler that asks for the generation on the thread that is finding it out would wait for itself: signals are blocked
/// for so long.
#[test]
fn a_signal_handler_may_ask_for_the_generation_at_any_moment() {
    extern "C" fn asks(_: libc::c_int) {
        forksafe::fork::generation();
    }
    testing::clean_process(|| {
        let _pairs = thousands();
        // Two, because it may be a handler that is finding it out, and its own signal waits for it.
        let signals = [libc::SIGUSR1, libc::SIGUSR2];
        for signal in signals {
            // SAFETY: the handler makes only system calls.
            unsafe { libc::signal(signal, asks as extern "C" fn(libc::c_int) as libc::sighandler_t) };
        }
        for _ in 0..3 {
            let child = Way::Clone.child(|| {
                let (there, asking, known) = (AtomicBool::new(false), AtomicBool::new(false), AtomicBool::new(false));
                // libc does not know the id of this thread, which was made behind its back.
                // SAFETY: takes nothing.
                let me = unsafe { libc::syscall(libc::SYS_gettid) };
                thread::scope(|scope| {
                    scope.spawn(|| {
                        there.store(true, SeqCst);
                        while !asking.load(SeqCst) {
                            std::hint::spin_loop();
                        }
                        for signal in signals.into_iter().cycle() {
                            if known.load(SeqCst) {
                                break;
                            }
                            // SAFETY: takes numbers.
                            assert_eq!(unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), me, signal) }, 0);
                        }
                    });
                    while !there.load(SeqCst) {
                        thread::yield_now();
                    }
                    asking.store(true, SeqCst);
                    forksafe::fork::generation();
                    known.store(true, SeqCst);
                });
            });
            child.join();
        }
    });
}

/// The first question in a child makes system calls that fail, and nobody who asks needs to know.
#[test]
fn errno_is_as_it_was_after_taking_stock() {
    testing::clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        // A number that nothing else comes to, and that is not open any more when the child looks at it.
        // SAFETY: takes numbers; the new descriptor is ours alone.
        let far = unsafe { OwnedFd::from_raw_fd(libc::fcntl(near.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 500)) };
        let _registration = Registration::publish(Descriptors::of(&far)).unwrap();
        drop(far);
        let errno = Way::Clone.child(|| {
            // SAFETY: errno is this thread's own.
            unsafe {
                *libc::__errno_location() = libc::EXDEV;
                forksafe::fork::generation();
                *libc::__errno_location()
            }
        });
        assert_eq!(errno.join(), libc::EXDEV);
    });
}

/// Row 21: a raw child of a process of which a thread is taking stock copies a word that says so, and that thread is not
/// there to finish.
#[test]
fn a_child_does_not_wait_for_a_thread_of_its_parents_that_takes_stock() {
    testing::clean_process(|| {
        testing::without_page();
        let _pairs = thousands();
        let round = || {
            let (asking, known) = (AtomicBool::new(false), AtomicBool::new(false));
            thread::scope(|scope| {
                scope.spawn(|| {
                    asking.store(true, SeqCst);
                    forksafe::fork::generation();
                    known.store(true, SeqCst);
                });
                while !asking.load(SeqCst) {
                    std::hint::spin_loop();
                }
                let mut children = Vec::new();
                while !known.load(SeqCst) && children.len() < 20 {
                    // Not by the kit, which takes longer.
                    match crate::kit::raw_fork() {
                        None => crate::kit::leave(|| _ = forksafe::fork::generation()),
                        Some(child) => children.push(child),
                    }
                }
                children.into_iter().map(crate::kit::exit_code).collect::<Vec<_>>()
            })
        };
        // The thread that forks may come too late, on a busy machine.
        let grandchildren: Vec<_> =
            (0..10).flat_map(|_| Way::Clone.child(round).deadline(testing::patience() * 2).join()).collect();
        assert!(!grandchildren.is_empty());
        assert!(grandchildren.iter().all(|code| *code == 0), "{grandchildren:?}");
    });
}

/// Row 21: two of pid 1, parent and child. Without the page the handler of libc's fork tells them apart.
#[test]
fn without_the_page_a_handler_tells_a_child_with_its_parents_pid() {
    testing::clean_process(|| {
        if let Err(why) = Way::NewPidNamespace.available() {
            return println!("NOT RUN: {why}");
        }
        testing::without_page();
        let told = Way::NewPidNamespace.child(|| {
            let here = forksafe::fork::generation();
            // SAFETY: takes numbers. The next child is the first of a new namespace.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
            let there = testing::child(|| (std::process::id(), forksafe::fork::generation() > here)).join();
            (std::process::id(), there)
        });
        assert_eq!(told.join(), (1, (1, true)));
    });
}

/// Another library's child handler that comes before ours and uses this crate: what it makes is the child's own.
#[test]
fn what_an_earlier_child_handler_made_is_the_childs_own() {
    static MADE_IN: Mutex<Option<forksafe::fork::Generation>> = Mutex::new(None);
    extern "C" fn child() {
        *MADE_IN.lock().unwrap() = Some(forksafe::fork::generation());
    }
    testing::clean_process(|| {
        // SAFETY: a function that stays, and never unwinds. Child handlers run in the order of their registration.
        assert_eq!(unsafe { libc::pthread_atfork(None, None, Some(child)) }, 0);
        testing::without_page();
        let same = || testing::child(|| *MADE_IN.lock().unwrap() == Some(forksafe::fork::generation())).join();
        assert!(same(), "the child took stock twice");
    });
}

/// And where the kernel does not say that the table is the child's own, so that ours has to drop what was inherited.
#[test]
fn what_an_earlier_child_handler_registered_is_not_dropped_by_ours() {
    static MADE: Mutex<Option<(Guarded<UnixStream>, UnixStream)>> = Mutex::new(None);
    extern "C" fn child() {
        let (near, far) = UnixStream::pair().unwrap();
        *MADE.lock().unwrap() = Some((Guarded::new(near, Descriptors::of).unwrap(), far));
    }
    testing::clean_process(|| {
        // SAFETY: a function that stays, and never unwinds. Child handlers run in the order of their registration.
        assert_eq!(unsafe { libc::pthread_atfork(None, None, Some(child)) }, 0);
        let (near, _far) = UnixStream::pair().unwrap();
        let inherited = Guarded::new(near, Descriptors::of).unwrap();
        let number = inherited.as_raw_fd();
        for call in [libc::SYS_unshare, libc::SYS_close_range, libc::SYS_kcmp] {
            kit::deny(call, None, libc::EPERM);
        }
        let alive = testing::child(|| {
            // SAFETY: one byte of a static.
            let theirs = unsafe { libc::send(number, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) } == 1;
            let mut made = MADE.lock().unwrap();
            let ours = made.as_mut().unwrap().0.write_all(b"x").is_ok();
            (theirs, ours)
        });
        assert_eq!(alive.join(), (false, true));
        drop(inherited);
    });
}

/// Row 15: the table may be the parent's own, and with threads in the child there is no way to part from it.
#[test]
fn a_child_with_threads_that_shares_the_table_says_so_and_touches_nothing() {
    testing::clean_process(|| {
        if let Err(why) = Way::SharedFds.available() {
            return println!("NOT RUN: {why}");
        }
        let witness = testing::Witness::start();
        let pool = witness.pool();
        let held = Mutex::new(Some(pool.get().unwrap()));
        let session = held.lock().unwrap().as_mut().unwrap().ask("before").unwrap().connection;
        let idle = Witness::session(&pool);
        let child = Way::SharedFds.child(|| {
            let (begun, done) = (Barrier::new(2), Barrier::new(2));
            thread::scope(|scope| {
                scope.spawn(|| {
                    begun.wait();
                    done.wait();
                });
                begun.wait();
                let unprotected = pool.get().is_err_and(|error| error.is_unprotected());
                // Nor is what lies on a live socket handed out to code that unwinds.
                let handed_out = AtomicBool::new(false);
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    let _looks = crate::kit::WhenDropped(|| {
                        let held = held.lock().unwrap();
                        handed_out.store(
                            catch_unwind(AssertUnwindSafe(|| held.as_ref().map(|held| held.stream().as_raw_fd())))
                                .is_ok(),
                            SeqCst,
                        );
                    });
                    panic!("on purpose");
                }));
                assert!(unwound.is_err());
                done.wait();
                (unprotected, handed_out.into_inner())
            })
        });
        assert_eq!(child.join(), (true, false));
        assert_eq!(held.lock().unwrap().as_mut().unwrap().ask("after").unwrap().connection, session);
        assert_eq!(Witness::session(&pool), idle);
        witness.judge();
    });
}

/// With threads there is no unshare, but the table can be seen not to be the parent's.
#[test]
fn a_handlerless_child_with_threads_and_a_table_of_its_own_is_served() {
    testing::clean_process(|| {
        let witness = testing::Witness::start();
        let pool = witness.pool();
        let here = Witness::session(&pool);
        let (begun, done) = (Barrier::new(2), Barrier::new(2));
        let there = Way::Clone.child(|| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    begun.wait();
                    done.wait();
                });
                begun.wait();
                let session = pool.get().map(|mut conn| conn.ask("who").unwrap().connection);
                done.wait();
                session.map_err(|error| error.to_string())
            })
        });
        assert_ne!(there.join().unwrap(), here);
    });
}

/// An emulator that says yes to `madvise` and does nothing: the page would not be wiped, so it is not relied on.
#[test]
fn an_madvise_that_only_pretends_is_seen_through() {
    testing::clean_process(|| {
        for advice in [libc::MADV_WIPEONFORK, -1] {
            crate::kit::deny(libc::SYS_madvise, Some((2, advice as u32)), 0);
        }
        let here = forksafe::fork::generation();
        assert!(
            Way::Clone.child(|| forksafe::fork::generation() > here).join(),
            "the child takes itself for its parent"
        );
        assert!(testing::child(|| forksafe::fork::generation() > here).join());
    });
}
