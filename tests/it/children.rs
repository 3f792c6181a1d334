//! The kit itself: what becomes of a child is told, whatever becomes of it.

use crate::kit::{self, ways};
use forksafe::testing::{self, Child, Outcome, Steps, Way, clean_process};
use std::any::Any;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// A deadline for what is to hang.
const SOON: Duration = Duration::from_millis(300);

#[test]
fn every_end_of_a_child_is_told_whatever_made_it() {
    clean_process(|| {
        for way in ways() {
            let child = |end: &'static str| {
                way.child(move || match end {
                    "panic" => panic!("on {}", "purpose"),
                    // SAFETY: ends this process, which is what is tried.
                    "exit" => unsafe { libc::_exit(3) },
                    "park" => {
                        thread::park();
                        4
                    }
                    _ => 5,
                })
            };
            assert!(matches!(child("return").outcome(), Outcome::Returned(5)), "{way}");
            assert!(matches!(child("exit").outcome(), Outcome::Exited(3)), "{way}");
            let killed = child("park");
            kit::kill(killed.pid(), libc::SIGKILL);
            assert!(matches!(killed.outcome(), Outcome::Killed { signal: libc::SIGKILL }), "{way}");
            let Outcome::Panicked { message, location } = child("panic").outcome() else { panic!("{way}") };
            assert_eq!(message, "on purpose", "{way}");
            assert!(location.starts_with("tests/it/children.rs:"), "{way}: {location}");
            // Each of these is ended in a way of its own; and to look takes a while.
            if !matches!(way, Way::Fork | Way::NewPidNamespace | Way::ReusedPid) {
                continue;
            }
            let Outcome::Hung { at } = child("park").deadline(SOON).outcome() else { panic!("{way}") };
            assert!(at.contains("asleep in futex: "), "{way}: {at}");
        }
    });
}

/// A name to be found in a backtrace.
#[inline(never)]
fn waits_for_what_never_comes() {
    // SAFETY: takes nothing.
    unsafe { libc::pause() };
    std::hint::black_box(());
}

#[test]
fn a_hang_is_shown_where_it_is_and_ended_with_all_that_hangs_with_it() {
    clean_process(|| {
        let (mut pids, mut tell) = io::pipe().unwrap();
        let child = testing::child(|| {
            let grandchild = testing::child(waits_for_what_never_comes).deadline(Duration::from_secs(1000));
            tell.write_all(&grandchild.pid().to_ne_bytes()).unwrap();
            grandchild.join();
        });
        let (pid, mut grandchild) = (child.pid(), [0; 4]);
        pids.read_exact(&mut grandchild).unwrap();
        let grandchild = u32::from_ne_bytes(grandchild);
        let Outcome::Hung { at } = child.deadline(SOON).outcome() else { panic!("it did not hang") };
        println!("{at}");
        assert!(at.starts_with(&format!("process {pid} (")), "{at}");
        assert!(at.contains(&format!("\nprocess {grandchild} (")), "{at}");
        assert!(at.contains(&format!(" in system call {}", libc::SYS_pause)), "{at}");
        if std::fs::exists("/usr/bin/gdb").unwrap() {
            assert!(at.contains("    it::children::waits_for_what_never_comes at tests/it/children.rs:"), "{at}");
            // Of the one that waits for it, the line that does.
            assert!(at.contains("    it::children::a_hang_is_shown"), "{at}");
        } else {
            assert!(at.contains("with gdb installed"), "{at}");
        }
        testing::wait_until("the grandchild has ended", || kit::has_ended(grandchild));
    });
}

/// A test that fails drops what it has.
#[test]
fn a_child_that_is_dropped_is_killed_and_waited_for_with_its_descendants() {
    clean_process(|| {
        for way in ways() {
            let (mut pids, mut tell) = io::pipe().unwrap();
            let failed = catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _child = way.child(|| {
                    let grandchild = testing::child(thread::park);
                    tell.write_all(&grandchild.pid().to_ne_bytes()).unwrap();
                    thread::park();
                });
                let mut grandchild = [0; 4];
                pids.read_exact(&mut grandchild).unwrap();
                resume_unwind(Box::new((_child.pid(), u32::from_ne_bytes(grandchild))));
            }));
            let (child, grandchild) = *failed.unwrap_err().downcast::<(u32, u32)>().unwrap();
            if way != Way::NewPidNamespace {
                testing::wait_until("the grandchild has ended", || !is_running(grandchild));
            }
            assert!(!kit::is_alive(child), "{way}: it is there, or was not waited for");
        }
    });
}

/// It may be dead and not waited for: it was its parent's to do so.
pub(crate) fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !matches!(stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next()), None | Some('Z' | 'X'))
}

/// In the child it is a copy of what its parent knows of a sibling.
#[test]
fn a_copy_that_a_sibling_drops_ends_nobody_and_neither_does_leaving_it() {
    clean_process(|| {
        let steps = Steps::new(&["the end"]);
        let mut elder = Some(testing::child(|| steps.wait_for("the end")));
        // What shares the table would close what it is heard by.
        for way in ways().filter(|way| *way != Way::SharedFds) {
            way.child(|| drop(elder.take())).join();
        }
        assert!(is_running(elder.as_ref().unwrap().pid()));
        let pid = elder.unwrap().leave();
        assert!(is_running(pid));
        steps.take("the end");
        kit::wait(pid as i32);
    });
}

#[test]
fn the_panic_of_another_thread_is_part_of_the_story() {
    clean_process(|| {
        let Outcome::Hung { at } = testing::child(|| {
            let _ = thread::spawn(|| panic!("the reason")).join();
            thread::park();
        })
        .deadline(SOON)
        .outcome() else {
            panic!("it did not hang")
        };
        assert!(at.contains("before that: thread \"without a name\" panicked at tests/it/children.rs:"), "{at}");
        assert!(at.ends_with(": the reason"), "{at}");

        let joined = catch_unwind(|| {
            let child = testing::child(|| {
                let joined = thread::spawn(|| panic!("the other reason")).join();
                joined.unwrap_or_else(|_: Box<dyn Any + Send>| panic!("a thread failed"))
            });
            Child::<()>::join(child);
        });
        let text = *joined.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains(": a thread failed\n") && text.ends_with(": the other reason"), "{text}");
    });
}

#[test]
fn a_panic_that_was_resumed_is_located_where_it_began() {
    clean_process(|| {
        let child = testing::child(|| -> () {
            let panic = thread::spawn(|| panic!("far from here")).join().unwrap_err();
            resume_unwind(panic)
        });
        let Outcome::Panicked { message, location } = child.outcome() else { panic!("it did not panic") };
        assert_eq!(message, "far from here");
        assert!(location.starts_with("tests/it/children.rs:"), "{location}");
    });
}

/// Forked inside the closure, without the kit: its frames are copies, and so it comes out of the closure as well.
#[test]
fn a_descendant_does_not_speak_for_the_child_but_its_panic_is_told() {
    clean_process(|| {
        let child = testing::child(|| match kit::fork() {
            None => "the descendant's".to_owned(),
            Some(descendant) => {
                kit::wait(descendant);
                "the child's".to_owned()
            }
        });
        assert_eq!(child.join(), "the child's");

        let child = testing::child(|| match kit::fork() {
            None => panic!("on purpose"),
            Some(descendant) => {
                kit::wait(descendant);
                descendant
            }
        });
        let Outcome::Panicked { message, location } = child.outcome() else { panic!("its panic was lost") };
        assert!(message.starts_with("in its descendant ") && message.ends_with(": on purpose"), "{message}");
        assert!(location.starts_with("tests/it/children.rs:"), "{location}");

        // One that is caught in the descendant is its own affair.
        let child = testing::child(|| match kit::fork() {
            None => kit::leave(|| assert!(catch_unwind(|| panic!("caught")).is_err())),
            Some(descendant) => kit::exit_code(descendant),
        });
        assert_eq!(child.join(), 0);
    });
}

/// More than the pipe takes at once, from many who write at the same time.
#[test]
fn what_several_processes_say_at_once_is_told_apart() {
    clean_process(|| {
        let begin = Steps::new(&["all are there"]);
        let long = |pid: u32| format!("{pid} ").repeat(50_000);
        let child = testing::child(|| {
            let descendants = [(); 4].map(|()| match kit::fork() {
                None => {
                    begin.meet("all are there", 5);
                    panic!("{}", long(std::process::id()));
                }
                Some(descendant) => descendant,
            });
            begin.meet("all are there", 5);
            let _ = catch_unwind(|| panic!("{}", long(std::process::id())));
            descendants.into_iter().for_each(kit::wait);
            long(0)
        });
        let Outcome::Panicked { message, .. } = child.outcome() else { panic!("nobody panicked") };
        let (pid, text) = message.trim_start_matches("in its descendant ").split_once(": ").unwrap();
        assert!(text == long(pid.parse().unwrap()), "from {pid} came {} bytes of a mixture", text.len());
    });
}

#[test]
fn a_value_that_cannot_be_sent_or_read_is_an_error_and_says_so() {
    clean_process(|| {
        let child = testing::child(|| BTreeMap::from([(vec![1], 2)]));
        let Outcome::Panicked { message, .. } = child.outcome() else { panic!("it was sent") };
        assert_eq!(message, "its value cannot be sent: key must be a string");
        let unread = catch_unwind(|| testing::child(|| f64::NAN).join());
        let text = *unread.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("reports cannot be read: "), "{text}");
    });
}

/// A panic that is caught is worth a note, and no more than that.
#[test]
fn panics_that_are_caught_do_not_hold_up_a_child() {
    clean_process(|| {
        let steps = Steps::new(&["all are caught"]);
        let child = testing::child(|| {
            (0..2000).for_each(|_| assert!(catch_unwind(|| panic!("caught")).is_err()));
            steps.take("all are caught");
        });
        steps.wait_for("all are caught");
        child.join();
    });
}

#[test]
fn exit_handlers_run_only_where_they_are_asked_for() {
    static STEPS: OnceLock<Steps> = OnceLock::new();
    extern "C" fn handler() {
        STEPS.get().unwrap().take("an exit handler runs");
    }
    clean_process(|| {
        let steps = STEPS.get_or_init(|| Steps::new(&["an exit handler runs"]));
        // SAFETY: a function that stays.
        assert_eq!(unsafe { libc::atexit(handler) }, 0);
        for (way, number) in ways().zip(1..) {
            assert_eq!(way.child(|| 5).join(), 5, "{way}");
            assert!(catch_unwind(|| way.child(|| -> () { panic!("on purpose") }).join()).is_err(), "{way}");
            assert_eq!(steps.taken("an exit handler runs"), number - 1, "{way}");
            assert_eq!(way.child_then_exit(|| 6).join(), 6, "{way}");
            assert_eq!(steps.taken("an exit handler runs"), number, "{way}");
        }
    });
}

#[test]
fn an_exit_handler_that_fails_or_hangs_is_not_a_success() {
    clean_process(|| {
        extern "C" fn fails() {
            // SAFETY: ends this process.
            unsafe { libc::_exit(7) };
        }
        extern "C" fn hangs() {
            waits_for_what_never_comes();
        }
        for handler in [fails as extern "C" fn(), hangs] {
            let child = testing::child_then_exit(|| {
                // SAFETY: a function that stays.
                unsafe { libc::atexit(handler) };
            });
            match child.deadline(SOON).outcome() {
                Outcome::Exited(7) => {}
                Outcome::Hung { at } => assert!(at.starts_with("after its closure had ended:\nprocess "), "{at}"),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_child_reports_with_a_full_descriptor_table() {
    clean_process(|| {
        let child = testing::child(|| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: plain numbers of ours.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none) }, 0);
            "still here".to_owned()
        });
        assert_eq!(child.join(), "still here");
    });
}

/// It may close whatever it was born with, and open something else.
#[test]
fn a_report_goes_into_the_pipe_and_into_nothing_else() {
    clean_process(|| {
        let (here, mut there) = UnixStream::pair().unwrap();
        let child = testing::child(|| {
            // SAFETY: takes numbers; nothing of what they stood for is used any more.
            (3..64).filter(|fd| *fd != here.as_raw_fd()).for_each(|fd| _ = unsafe { libc::dup2(here.as_raw_fd(), fd) });
        });
        assert!(matches!(child.outcome(), Outcome::Exited(0)));
        drop(here);
        let mut heard = String::new();
        there.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "");
    });
}

#[test]
fn steps_are_taken_in_the_order_that_is_asked_for_by_all_ways() {
    clean_process(|| {
        for way in ways() {
            let steps = Steps::new(&["first", "second", "third", "all"]);
            let child = way.child(|| {
                steps.wait_for("first");
                assert_eq!((steps.taken("second"), steps.taken("third")), (0, 0));
                let grandchild = testing::child(|| {
                    steps.take("second");
                    steps.meet("all", 3);
                });
                steps.wait_for("third");
                steps.meet("all", 3);
                grandchild.join();
            });
            steps.take("first");
            steps.wait_for("second");
            assert_eq!(steps.taken("third"), 0);
            steps.take("third");
            steps.meet("all", 3);
            child.join();
            assert_eq!(["first", "second", "third", "all"].map(|step| steps.taken(step)), [1, 1, 1, 3], "{way}");
        }
    });
}

#[test]
fn a_step_that_nobody_takes_is_named() {
    clean_process(|| {
        // Patience is short then.
        testing::unsafe_share();
        let (steps, begun) = (Steps::new(&["taken", "never taken"]), Instant::now());
        steps.take("taken");
        let Outcome::Panicked { message, .. } =
            testing::child(|| steps.wait_for("never taken")).deadline(testing::patience() * 3).outcome()
        else {
            panic!("it did not panic")
        };
        assert!(begun.elapsed() >= testing::patience());
        assert_eq!(
            message,
            "waited in vain for step \"never taken\" (0 of 1 times); how often each was taken: \"taken\" 1, \"never \
             taken\" 0"
        );
        let unknown = *catch_unwind(|| steps.take("unheard of")).unwrap_err().downcast::<String>().unwrap();
        assert!(unknown.starts_with("there is no step \"unheard of\""), "{unknown}");
    });
}
