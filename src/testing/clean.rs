//! A process of its own for a test.

use super::environment;
use std::any::type_name;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Which test a process was started for.
const INSIDE: &str = "FORKSAFE_TEST";
/// Who started it.
const BY: &str = "FORKSAFE_TEST_BY";
const DEADLINE: Duration = Duration::from_secs(180);
/// In a control run a hang is one of the ways to fail.
const DEADLINE_OF_CONTROL: Duration = Duration::from_secs(60);

/// Runs the body of a test in a fresh process of the same test program, with only the harness's two threads in it.
///
/// Descriptors, limits, signals and child processes belong to a process, and tests of one program share theirs. Call it
/// from a `#[test]` function, with the whole body as a closure; it runs the program again for that test alone. What the
/// test leaves behind is ended with it; and so is all of it with the process that runs the test, should that be killed.
///
/// A test that `#[should_panic]` may use it: what its body panics with is part of what this panics with.
///
/// With `FORKSAFE_CONTROL` set in the environment the [protection is off](super::unsafe_share) in the body, as wherever
/// the kit is used; with `FORKSAFE_WITHOUT_PAGE` it runs [without the page](super::without_page).
///
/// # Panics
///
/// When the body panics, with all that it printed; or when it takes longer than three minutes, one in a control run.
#[track_caller]
pub fn clean_process<F: FnOnce()>(body: F) {
    let name = test_of::<F>();
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        end_with_the_parent();
        environment::obey();
        if environment::is_without_page() {
            super::without_page();
        }
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            // Not by the harness, to which a test that should panic has then passed: it is for the process outside to panic.
            let _ = std::io::stdout().flush();
            // SAFETY: ends the process, at once: what the test has registered to run at the exit might fail in its turn.
            unsafe { libc::_exit(101) };
        }
        return;
    }
    let (status, output) = run_again(&name);
    match status {
        Some(status) if status.success() => {}
        Some(status) => panic!("the process of {name} failed ({status}):\n{output}"),
        None => panic!("the process of {name} took longer than {:?} and was ended:\n{output}", deadline()),
    }
}

fn deadline() -> Duration {
    if environment::is_control() { DEADLINE_OF_CONTROL } else { DEADLINE }
}

/// Whoever ends this process with its descendants may be killed before that. Then this process does it, told by a signal
/// that nobody else uses. They are in one group, but for those that have left it.
fn end_with_the_parent() {
    extern "C" fn end(_: libc::c_int) {
        // SAFETY: takes numbers, and is allowed in a handler. The group is this process's own.
        unsafe { libc::kill(0, libc::SIGKILL) };
    }
    // Somebody may have started it by hand.
    let Some(parent) = std::env::var(BY).ok().and_then(|parent| parent.parse::<libc::pid_t>().ok()) else { return };
    // SAFETY: takes numbers, and a handler that makes one system call.
    unsafe {
        if libc::getpgrp() != libc::getpid() {
            return;
        }
        // The last is valgrind's.
        let signal = libc::SIGRTMAX() - 1;
        libc::signal(signal, end as extern "C" fn(libc::c_int) as libc::sighandler_t);
        libc::prctl(libc::PR_SET_PDEATHSIG, signal, 0, 0, 0);
        if parent != libc::getppid() {
            end(0);
        }
    }
}

/// A closure in `program::path::to::test` is called `program::path::to::test::{{closure}}`.
fn test_of<F>() -> String {
    let name = type_name::<F>();
    let name = name.split_once("::{{closure}}").map_or(name, |(test, _)| test);
    name.split_once("::").map_or(name, |(_program, test)| test).to_owned()
}

fn run_again(name: &str) -> (Option<ExitStatus>, String) {
    let program = std::env::current_exe().expect("the path of the test program");
    let mut output = unnamed_file();
    let mut command = Command::new(program);
    command
        .args([name, "--exact", "--nocapture", "--test-threads=1", "--include-ignored"])
        .env(INSIDE, name)
        .env(BY, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a descriptor"))
        .stderr(output.try_clone().expect("a descriptor"))
        .process_group(0);
    let mut test = command.spawn().expect("starting the test program again");
    let group = test.id() as libc::pid_t;
    let until = Instant::now() + deadline();
    let status = loop {
        match test.try_wait().expect("waiting for the test") {
            None if Instant::now() > until => break None,
            None => thread::sleep(Duration::from_millis(2)),
            ended => break ended,
        }
    };
    // SAFETY: takes numbers. The group is the one made above; it ends with its last process.
    unsafe { libc::kill(-group, libc::SIGKILL) };
    if status.is_none() {
        let _ = test.wait();
    }
    let mut text = String::new();
    let _ = output.rewind().and_then(|()| output.read_to_string(&mut text));
    (status, text)
}

/// A file and not a pipe: it is never full, and whoever lives on with a copy of it holds up nobody.
pub(super) fn unnamed_file() -> File {
    use std::os::fd::FromRawFd;
    // SAFETY: a C string; the descriptor is new and ours.
    unsafe {
        let fd = libc::memfd_create(c"output".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    }
}
