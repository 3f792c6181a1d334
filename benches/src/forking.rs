//! How long a fork takes, seen from either side.

use nix::libc;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// Forks; what `measure` says in the child. It is told when `fork` was called.
///
/// The time comes back over a pipe, which is made before the clock starts and written after it has stopped.
pub fn in_child(measure: impl FnOnce(Instant) -> Duration) -> Duration {
    let (mut from_child, mut to_parent) = std::io::pipe().expect("a pipe");
    let called = Instant::now();
    let Some(child) = call_fork() else {
        let time = measure(called).as_nanos() as u64;
        let sent = to_parent.write_all(&time.to_ne_bytes());
        leave(i32::from(sent.is_err()))
    };
    drop(to_parent);
    let mut time = [0; 8];
    from_child.read_exact(&mut time).expect("the child's time");
    waitpid(child, None).expect("the end of the child");
    Duration::from_nanos(u64::from_ne_bytes(time))
}

/// How long `fork` keeps the parent. The child ends at once.
pub fn in_parent() -> Duration {
    let called = Instant::now();
    let Some(child) = call_fork() else { leave(0) };
    let time = called.elapsed();
    waitpid(child, None).expect("the end of the child");
    time
}

/// `None` in the child.
fn call_fork() -> Option<Pid> {
    // SAFETY: a subject has only its main thread, so its child may do whatever the subject itself may.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => None,
        ForkResult::Parent { child } => Some(child),
    }
}

/// No destructor and no exit handler of the parent's runs in its child.
fn leave(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}
