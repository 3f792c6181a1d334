//! Whose a list of taken jobs is, and whether that process is gone.
//!
//! Two signs, because each is blind somewhere. On its own machine a process is looked up: that is exact and at once, but nobody can
//! look into another machine. There a lease counts: who has not been heard of for so long is held to be gone. That can be wrong (a
//! machine that was suspended, a network that was away), and may be: a job that two run is done once, see [`store`](crate::store).

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::fs;
use std::process;

/// A process, by a name that no other ever has: this boot of this machine and its namespace of pids, the pid, and the moment of its
/// start, which a reused pid does not share.
pub(crate) struct Owner {
    machine: String,
    pid: u32,
    start: String,
}

impl Owner {
    /// In a worker, after the fork: it is another one there.
    pub(crate) fn of_this_process() -> Self {
        let pid = process::id();
        let start = state_and_start(pid).map_or_else(|| "0".to_owned(), |(_, start)| start);
        Self { machine: machine(), pid, start }
    }

    /// The list of one of its threads.
    pub(crate) fn list_of(&self, thread: usize) -> String {
        format!("{}:{}:{}:{thread}", self.machine, self.pid, self.start)
    }

    /// Back from [`list_of`](Self::list_of).
    pub(crate) fn of_list(list: &str) -> Option<Self> {
        let mut parts = list.split(':');
        let (machine, pid, start) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next()?.to_owned());
        Some(Self { machine, pid, start })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// `None` if only its machine can tell.
    pub(crate) fn is_gone(&self) -> Option<bool> {
        if self.machine != machine() {
            return None;
        }
        if kill(Pid::from_raw(self.pid as i32), None) == Err(Errno::ESRCH) {
            return Some(true);
        }
        // One that nobody has waited for yet does nothing any more. If `/proc` hides it, it is there.
        let seen = state_and_start(self.pid);
        Some(seen.is_some_and(|(state, start)| matches!(state, 'Z' | 'X') || start != self.start))
    }
}

fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    // `pid:[4026531836]`
    let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let namespace: String = namespace.to_string_lossy().chars().filter(char::is_ascii_digit).collect();
    format!("{}-{namespace}", boot.get(..8).unwrap_or("unknown"))
}

fn state_and_start(pid: u32) -> Option<(char, String)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it is in parentheses, and may hold any.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.to_owned()))
}
