//! A socket that is not waited for past a deadline, though its driver knows of none.

use crate::Deadline;
use std::mem;
use std::os::fd::RawFd;
use std::time::Duration;

const BOTH: [libc::c_int; 2] = [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO];

/// While it lives, no read and no write on the socket blocks past the deadline as it was when this was made: a driver that
/// blocks in the kernel sees an error then. Each of them: an answer that drips in takes longer. One that polls does not notice.
#[derive(Debug)]
pub(crate) struct Impatient {
    fd: RawFd,
    /// As the driver had set them.
    before: [libc::timeval; 2],
}

impl Impatient {
    /// `None`: it is no socket, or nothing is left of the time.
    pub(crate) fn until(deadline: Deadline) -> Option<Self> {
        let fd = deadline.socket()?;
        let left = deadline.socket_timeout().ok()?;
        let before = [get(fd, BOTH[0])?, get(fd, BOTH[1])?];
        for (which, before) in BOTH.into_iter().zip(&before) {
            set(fd, which, sooner(before, left));
        }
        Some(Self { fd, before })
    }
}

impl Drop for Impatient {
    fn drop(&mut self) {
        for (which, before) in BOTH.into_iter().zip(self.before) {
            set(self.fd, which, before);
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
