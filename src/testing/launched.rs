//! A child that was made, until its end: waited for, or killed.

use super::proc::Process;
use super::way::Way;
use std::mem;
use std::os::fd::RawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// How many children of this process share its descriptor table: whose a descriptor in it is, nobody can tell.
pub(super) static SHARING: AtomicU32 = AtomicU32::new(0);

pub(super) fn somebody_shares_the_table() -> bool {
    SHARING.load(Relaxed) > 0
}

/// A child and who is to be waited for. It is killed when this is dropped before its end.
#[derive(Debug)]
pub(super) struct Launched {
    /// The process that runs the closure.
    pub(super) runs: libc::pid_t,
    /// The child of ours that ends when that one does, and as it does.
    waits: libc::pid_t,
    made_by: u32,
    way: Way,
    /// It has been waited for, or nobody will: its numbers may be another's.
    is_over: bool,
}

impl Launched {
    pub(super) fn new(runs: libc::pid_t, waits: libc::pid_t, way: Way) -> Self {
        Self { runs, waits, made_by: std::process::id(), way, is_over: false }
    }

    /// From here on it is nobody's to wait for, or to kill.
    pub(super) fn let_go(&mut self) {
        self.is_over = true;
    }

    fn has_been_waited_for(&mut self) {
        self.is_over = true;
        if self.way == Way::SharedFds {
            SHARING.fetch_sub(1, Relaxed);
        }
    }

    /// Waits until `fd` is readable (true) or the child has ended (false). `None` when the time is over.
    pub(super) fn readable_or_ended(&self, fd: RawFd, until: Instant) -> Option<bool> {
        loop {
            // Looked at first: what it said before its end is then there to be read.
            let ended = self.has_ended();
            let mut ask = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, ours.
            if unsafe { libc::poll(&raw mut ask, 1, if ended { 0 } else { 2 }) } > 0 {
                return Some(true);
            }
            if ended {
                return Some(false);
            }
            if Instant::now() >= until {
                return None;
            }
        }
    }

    /// Without waiting for it: its status is still to be had.
    fn has_ended(&self) -> bool {
        // SAFETY: all zeros is a valid siginfo, and it is ours.
        unsafe {
            let mut info: libc::siginfo_t = mem::zeroed();
            let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            libc::waitid(libc::P_PID, self.waits as libc::id_t, &raw mut info, options) != 0 || info.si_pid() != 0
        }
    }

    /// How it ended, or `None` when it has not by then.
    pub(super) fn wait(&mut self, until: Instant) -> Option<ExitStatus> {
        loop {
            let mut status = 0;
            // SAFETY: `status` is ours.
            let ended = unsafe { libc::waitpid(self.waits, &raw mut status, libc::WNOHANG) };
            if ended != 0 {
                self.has_been_waited_for();
                return Some(ExitStatus::from_raw(status));
            }
            if Instant::now() >= until {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// With its descendants. Nothing is done to one that has been waited for.
    pub(super) fn kill(&mut self) {
        if self.is_over {
            return;
        }
        let mut all = vec![self.waits];
        if !self.has_ended() {
            let descendants = Process::tree(self.runs as u32).unwrap_or_default();
            // The first is the root of the tree, if that is still there.
            let descendants = descendants.iter().skip(1).map(|process| process.pid as libc::pid_t);
            all.extend([self.runs].into_iter().filter(|runs| *runs != self.waits).chain(descendants));
            for &pid in &all {
                // SAFETY: takes numbers. The two have not been waited for, and the others were there a moment ago.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        // Each after its parent: by then it is this process's, if this one adopts orphans, or somebody else's to wait for.
        all.into_iter().for_each(reap);
        self.has_been_waited_for();
    }

    /// A child has a copy of what its parent knew of its siblings. They are not its own children, even where it has its
    /// parent's pid.
    fn is_ours(&self) -> bool {
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: takes numbers; what there is to know is not asked for.
        let is_child = unsafe { libc::waitid(libc::P_PID, self.waits as libc::id_t, ptr::null_mut(), options) == 0 };
        is_child && self.made_by == std::process::id()
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if !self.is_over && self.is_ours() {
            self.kill();
        }
    }
}

pub(super) fn reap(pid: libc::pid_t) {
    // SAFETY: takes numbers, and no status.
    unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
}
