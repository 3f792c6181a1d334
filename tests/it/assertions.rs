//! The kit's assertions: each is seen to hold, and to fail with a message that says where to look.

use crate::kit::ways;
use forksafe::Pool;
use forksafe::testing::{self, Snapshot, Steps, Tap, Witness, clean_process};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

/// What it panics with.
fn failure(assertion: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(assertion)).expect_err("it should not hold");
    *panic.downcast::<String>().unwrap()
}

#[test]
fn a_shared_connection_is_named_with_its_ends_and_its_holders() {
    clean_process(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let me = std::process::id();
        // The parent's alone, the child's alone, and one that two children of one parent have.
        let child = testing::child(thread::park);
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        testing::assert_nothing_shared(&[me, child.pid()]);
        let siblings = [(); 2].map(|()| testing::child(thread::park));
        let [one, other] = siblings.each_ref().map(testing::Child::pid);
        testing::assert_nothing_shared(&[one, child.pid()]);
        for pair in [[me, one], [one, other]] {
            let text = failure(|| testing::assert_nothing_shared(&pair));
            let (here, there) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            assert!(text.starts_with("connections are shared between processes:\n"), "{text}");
            assert!(text.contains(&format!("\n  tcp {here} -> {there} ESTABLISHED (socket ")), "{text}");
            for pid in pair {
                assert!(text.contains(&format!("\n    held by process {pid} (it-")), "{text}");
            }
            assert_eq!(text.matches(&format!(" as descriptor {}", client.as_raw_fd())).count(), 2, "{text}");
        }
        siblings.into_iter().chain([child]).for_each(testing::Child::kill);
        let gone = failure(|| testing::assert_nothing_shared(&[one]));
        assert!(gone.starts_with(&format!("no process {one} is to be seen here")), "{gone}");
    });
}

/// Its first thread has ended, and `/proc` shows nothing of it there.
#[test]
fn a_process_whose_first_thread_has_ended_is_looked_into_all_the_same() {
    clean_process(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let before = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let child = testing::child(|| {
            thread::spawn(thread::park);
            // SAFETY: ends this thread alone, with all that is on its stack.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        });
        let ended = || std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap().contains(") Z ");
        testing::wait_until("its first thread has ended", ended);
        let text = failure(|| testing::assert_nothing_shared(&[std::process::id(), child.pid()]));
        assert!(text.contains(&format!("tcp {} -> ", before.local_addr().unwrap())), "{text}");
        assert!(text.contains(&format!("held by process {} (it-", child.pid())), "{text}");
        assert!(testing::descriptors(child.pid()).len() > 3);
        child.kill();
    });
}

/// The parent may come to the assertion before the child comes out of its fork.
#[test]
fn a_child_that_is_just_being_born_has_a_moment_to_drop_what_it_inherited() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = Pool::builder().max_size(1).build(witness.manager()).unwrap();
        let _lent = pool.get().unwrap();
        for _ in 0..100 {
            let child = testing::child(thread::park);
            testing::assert_nothing_shared(&[std::process::id(), child.pid()]);
            child.kill();
        }
    });
}

/// What the kit itself holds in the process of the test is not the business of the test.
#[test]
fn the_kits_own_ends_and_standard_streams_are_not_counted() {
    clean_process(|| {
        for witness in [Witness::start(), Witness::start_unix()] {
            let tap = Tap::before(witness.place().clone());
            let before = Snapshot::of(std::process::id());
            let pool = Pool::builder().max_size(2).build(testing_manager(&tap)).unwrap();
            let guard = pool.get().unwrap();
            for way in ways().filter(|way| *way != testing::Way::SharedFds) {
                let steps = Steps::new(&["protected", "the end"]);
                let child = way.child(|| {
                    forksafe::fork::enter();
                    steps.take("protected");
                    steps.wait_for("the end");
                });
                steps.wait_for("protected");
                testing::assert_nothing_shared(&[std::process::id(), child.pid()]);
                steps.take("the end");
                child.join();
            }
            drop((guard, pool));
            before.assert_nothing_leaked();
        }

        let (one, _other) = UnixStream::pair().unwrap();
        // SAFETY: takes numbers. Nothing is read here.
        assert_eq!(unsafe { libc::dup2(one.as_raw_fd(), 0) }, 0);
        drop(one);
        let child = testing::child(thread::park);
        let text = failure(|| testing::assert_nothing_shared(&[std::process::id(), child.pid()]));
        child.kill();
        assert_eq!(text.matches(" -> ").count(), 1, "the other end only: {text}");
    });
}

fn testing_manager(tap: &Tap) -> testing::WitnessManager {
    match tap.address() {
        testing::Address::Tcp(address) => testing::WitnessManager::at(*address),
        testing::Address::Unix(path) => testing::WitnessManager::at_path(path),
        _ => unreachable!(),
    }
}

#[test]
fn a_leak_is_named_in_this_process_and_in_others() {
    clean_process(|| {
        testing::unsafe_share(); // For a short patience.
        let steps = Steps::new(&["snapshot", "leaked", "the end"]);
        let child = testing::child(|| {
            steps.wait_for("snapshot");
            let _leaks = TcpListener::bind("127.0.0.1:0").unwrap();
            steps.take("leaked");
            thread::park();
        });
        let (here, there) = (Snapshot::of(std::process::id()), Snapshot::of(child.pid()));
        here.assert_nothing_leaked();
        there.assert_nothing_leaked();
        steps.take("snapshot");
        steps.wait_for("leaked");
        let text = failure(|| there.assert_nothing_leaked());
        assert!(text.starts_with(&format!("process {} (it-", child.pid())), "{text}");
        assert!(
            text.contains(") has leaked descriptors:\n  descriptor ") && text.contains(": tcp 127.0.0.1:"),
            "{text}"
        );
        child.kill();

        here.assert_nothing_leaked();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(here.leaked(), [format!("descriptor {}: /dev/null", file.as_raw_fd())]);
        // Something else at a number that was open before.
        let before = Snapshot::of(std::process::id());
        let zero = std::fs::File::open("/dev/zero").unwrap();
        // SAFETY: takes numbers, both ours.
        assert!(unsafe { libc::dup2(zero.as_raw_fd(), file.as_raw_fd()) } >= 0);
        drop(zero);
        assert_eq!(before.leaked(), [format!("descriptor {}: /dev/zero", file.as_raw_fd())]);
    });
}

/// What a thread is about to close is no leak.
#[test]
fn what_is_being_closed_is_waited_for() {
    clean_process(|| {
        let before = Snapshot::of(std::process::id());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(before.leaked().len(), 1);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::yield_now();
                drop(file);
            });
            before.assert_nothing_leaked();
        });
    });
}

#[test]
fn what_was_not_kept_is_told_with_both_values() {
    let mut session = 7;
    let kept = testing::assert_kept("the session", &mut session, |session| *session, |_| "the result");
    assert_eq!(kept, "the result");
    let text =
        failure(|| testing::assert_kept("the session", &mut session, |session| *session, |session| *session = 8));
    assert!(text.starts_with("the session was not kept: it was 7 and is 8 (in process "), "{text}");
}

#[test]
fn a_count_may_take_its_time_but_not_for_ever() {
    clean_process(|| {
        testing::unsafe_share(); // For a short patience.
        let mut sessions = 10;
        testing::assert_comes_to("sessions", 3, || {
            sessions -= 1;
            sessions
        });
        let text = failure(|| testing::assert_comes_to("sessions", 5, || 3));
        assert_eq!(text, "sessions: should come to be 5 and is still 3");
    });
}
