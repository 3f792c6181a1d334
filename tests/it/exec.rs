//! Rows 13 and 14: children that share memory, or that become another program.

use crate::servers::{Server, scenarios};
use forksafe::fork;
use forksafe::testing::{self, Spawn, Witness, clean_process};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::catch_unwind;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

scenarios! {
    /// Row 13: nothing was forked as far as this process is concerned.
    fn programs_started_without_a_fork_change_nothing<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let mut held = pool.get().unwrap();
        let (lent, idle) = (S::ask(&mut held), S::session(&pool));
        let generation = fork::generation();
        for _ in 0..20 {
            for spawn in spawns().filter(|spawn| !spawn.runs_handlers()) {
                assert!(spawn.run("true", &[]).status.success(), "{spawn}");
            }
            assert_eq!(clone_vm(generation), 0, "a child that shares memory took itself for a new process");
        }
        assert_eq!(fork::generation(), generation);
        assert_eq!((S::ask(&mut held), S::session(&pool)), (lent, idle));
        assert_eq!(pool.state().connections, 2);
        server.judge();
    }

    /// Row 14: these fork, so the handlers run; the parent does not notice.
    fn programs_started_with_a_fork_harm_nobody<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let mut held = pool.get().unwrap();
        let (lent, idle) = (S::ask(&mut held), S::session(&pool));
        for _ in 0..20 {
            for spawn in spawns().filter(|spawn| spawn.runs_handlers()) {
                assert!(spawn.run("true", &[]).status.success(), "{spawn}");
            }
            assert!(Command::new("/bin/true").uid(0).gid(0).status().unwrap().success());
            assert!(Command::new("true").env("PATH", "/bin:/usr/bin").status().unwrap().success());
        }
        assert_eq!((S::ask(&mut held), S::session(&pool)), (lent, idle));
        server.judge();
    }
}

/// Row 14: the program that is executed has none of our sockets, dead ones included.
#[test]
fn nothing_leaks_into_an_executed_program() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.pool();
        let _held = pool.get().unwrap();
        for spawn in spawns() {
            let listed = spawn.run("ls", &["-l", "/proc/self/fd"]);
            let listed = String::from_utf8(listed.stdout).unwrap();
            assert!(listed.contains(" 1 ->"), "{spawn}: {listed}");
            assert!(!listed.contains("socket:"), "{spawn}: {listed}");
        }
    });
}

/// A child that was forked while connections were lent can fork and execute, too.
#[test]
fn a_child_can_start_programs() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.pool();
        let _held = pool.get().unwrap();
        testing::child(|| {
            let _own = pool.get().unwrap();
            for spawn in spawns() {
                assert!(spawn.run("true", &[]).status.success(), "{spawn}");
            }
        })
        .join();
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// The kit's own claims about them.
#[test]
fn programs_are_started_with_what_they_are_given_and_without_what_they_are_not() {
    clean_process(|| {
        static FORKS: AtomicU32 = AtomicU32::new(0);
        extern "C" fn counts() {
            FORKS.fetch_add(1, SeqCst);
        }
        // SAFETY: a function that stays.
        assert_eq!(unsafe { libc::pthread_atfork(Some(counts), None, None) }, 0);
        for spawn in spawns() {
            let before = FORKS.load(SeqCst);
            let output = spawn.run("sh", &["-c", "cat; echo \"$0\"; echo no >&2; exit 7", "it's"]);
            assert_eq!(
                (output.status.code(), &*output.stdout, &*output.stderr),
                (Some(7), &b"it's\n"[..], &b"no\n"[..])
            );
            assert_eq!(FORKS.load(SeqCst) - before, u32::from(spawn.runs_handlers()), "{spawn}");
            let killed = spawn.run("sh", &["-c", "kill -9 $$"]);
            assert_eq!(killed.status.signal(), Some(9), "{spawn}");
            let missing = catch_unwind(|| spawn.run("/no/such/program", &[])).unwrap_err();
            let missing = missing.downcast::<String>().unwrap();
            assert_eq!(*missing, format!("/no/such/program by {spawn}: No such file or directory (os error 2)"));
            // Signals are blocked for a moment only, here and there.
            let blocked = spawn.run("grep", &["SigBlk", "/proc/self/status"]).stdout;
            assert_eq!(
                String::from_utf8(blocked).unwrap().trim_start_matches("SigBlk:").trim(),
                "0".repeat(16),
                "{spawn}"
            );
            let here = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(here.contains("SigBlk:\t0000000000000000"), "{spawn}: {here}");
        }
    });
}

fn spawns() -> impl Iterator<Item = Spawn> {
    Spawn::ALL.iter().copied().filter(|spawn| match spawn.available() {
        Ok(()) => true,
        Err(why) => {
            println!("NOT RUN: {why}");
            false
        }
    })
}

/// What vfork does: the parent waits, and the child runs in its memory.
fn clone_vm(generation: fork::Generation) -> i32 {
    extern "C" fn compare(expected: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the parent's own variable, and the parent waits.
        let expected = unsafe { *expected.cast::<fork::Generation>() };
        i32::from(fork::generation() != expected)
    }
    let mut stack = vec![0_u128; 4096];
    let mut expected = generation;
    // SAFETY: the stack is ours, aligned and outlives the child, which the parent waits for; the child calls one function
    // that neither allocates nor unwinds.
    unsafe {
        let top = stack.as_mut_ptr().add(stack.len()).cast();
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
        let pid = libc::clone(compare, top, flags, (&raw mut expected).cast());
        assert!(pid > 0);
        exit_status(pid)
    }
}

/// SAFETY: `pid` is a child of this process that nobody else waits for.
unsafe fn exit_status(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` is ours.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    status
}
