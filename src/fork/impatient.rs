//! A socket that is not waited for past a deadline, though its driver knows of none.

use super::handler::sys::{self, Identity};
use crate::Deadline;
use std::mem;
use std::os::fd::RawFd;
use std::time::Duration;

const BOTH: [libc::c_int; 2] = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO];

/// While it lives, no read and no write on the socket blocks for longer than was left of the time when this was made: a driver that
/// blocks in the kernel sees an error then. Each of them: an answer that drips in takes longer. One that polls does not notice.
///
/// What the driver does with its socket meanwhile stays as the driver had it.
#[derive(Debug)]
pub(crate) struct Impatient {
    fd: RawFd,
    socket: Identity,
    changed: [Option<Changed>; 2],
}

#[derive(Debug)]
struct Changed {
    which: libc::c_int,
    /// As the driver had set it.
    before: libc::timeval,
    /// As it is here: the kernel rounds what is set.
    ours: libc::timeval,
}

impl Impatient {
    /// `None`: it is no socket, or nothing is left of the time.
    pub(crate) fn until(deadline: Deadline) -> Option<Self> {
        let fd = deadline.socket()?;
        let left = deadline.socket_timeout().ok()?;
        let socket = sys::look(fd)?.identity;
        let changed = BOTH.map(|which| {
            let before = get(fd, which)?;
            set(fd, which, sooner(&before, left));
            Some(Changed { which, before, ours: get(fd, which)? })
        });
        Some(Self { fd, socket, changed })
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        if !sys::is(self.fd, self.socket) {
            return;
        }
        for Changed { which, before, ours } in self.changed.iter().flatten() {
            if get(self.fd, *which).is_some_and(|now| now == *ours) {
                set(self.fd, *which, *before);
            }
        }
    }
}

/// Zero is for ever.
fn sooner(set: &libc::timeval, left: Duration) -> libc::timeval {
    let is_never = set.tv_sec == 0 && set.tv_usec == 0;
    let own = Duration::new(set.tv_sec as u64, set.tv_usec as u32 * 1000);
    let time = if is_never { left } else { left.min(own) };
    libc::timeval { tv_sec: time.as_secs() as libc::time_t, tv_usec: time.subsec_micros() as libc::suseconds_t }
}

fn get(fd: RawFd, which: libc::c_int) -> Option<libc::timeval> {
    let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
    let mut size = mem::size_of_val(&time) as libc::socklen_t;
    // SAFETY: `time` is ours and `size` says how large; a wrong descriptor is an error.
    let failed = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, which, (&raw mut time).cast(), &raw mut size) };
    (failed == 0).then_some(time)
}

fn set(fd: RawFd, which: libc::c_int, time: libc::timeval) {
    let size = mem::size_of_val(&time) as libc::socklen_t;
    // SAFETY: `time` is ours and `size` says how large; a wrong descriptor is an error.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, which, (&raw const time).cast(), size) };
}
