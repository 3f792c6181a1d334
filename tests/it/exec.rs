//! Rows 13 and 14: children that share memory, or that become another program.

use crate::servers::{Server, scenarios};
use forksafe::fork;
use forksafe::testing::{self, Witness, clean_process};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

scenarios! {
    /// Row 13: nothing was forked as far as this process is concerned.
    fn programs_started_without_a_fork_change_nothing<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let mut held = pool.get().unwrap();
        let (lent, idle) = (S::ask(&mut held), S::session(&pool));
        let generation = fork::generation();
        for _ in 0..20 {
            assert!(Command::new("/bin/true").status().unwrap().success());
            assert_eq!(posix_spawn_true(), 0);
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
            let mut with_pre_exec = Command::new("/bin/true");
            // SAFETY: does nothing.
            unsafe { with_pre_exec.pre_exec(|| Ok(())) };
            assert!(with_pre_exec.status().unwrap().success());
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
        let mut list = Command::new("ls");
        list.args(["-l", "/proc/self/fd"]);
        // SAFETY: does nothing but make Command fork.
        unsafe { list.pre_exec(|| Ok(())) };
        let listed = String::from_utf8(list.output().unwrap().stdout).unwrap();
        assert!(listed.contains(" 1 ->"), "{listed}");
        assert!(!listed.contains("socket:"), "{listed}");
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
            assert!(Command::new("/bin/true").status().unwrap().success());
            let mut with_pre_exec = Command::new("/bin/true");
            // SAFETY: does nothing.
            unsafe { with_pre_exec.pre_exec(|| Ok(())) };
            assert!(with_pre_exec.status().unwrap().success());
        })
        .join();
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

fn posix_spawn_true() -> i32 {
    let mut pid = 0;
    let argv = [c"true".as_ptr().cast_mut(), ptr::null_mut()];
    // SAFETY: C strings, a null-terminated list of them, and a place for the pid.
    unsafe {
        let failed = libc::posix_spawn(
            &raw mut pid,
            c"/bin/true".as_ptr(),
            ptr::null(),
            ptr::null(),
            argv.as_ptr(),
            [ptr::null_mut()].as_ptr(),
        );
        assert_eq!(failed, 0);
        exit_status(pid)
    }
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
