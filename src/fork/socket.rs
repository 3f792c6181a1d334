//! For drivers that hide their socket: how to find it, and how to wait on it.

use crate::Deadline;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;

/// The number that the next descriptor of this process will get, if no other thread is faster. `None`: the table is full.
pub(crate) fn next_number() -> Option<RawFd> {
    let next = super::sys::unconnected_socket();
    next.inspect(|&fd| super::sys::close(fd))
}

/// Whether it is a socket whose receive timeout is exactly that many seconds.
pub(crate) fn has_receive_timeout(fd: RawFd, seconds: u64) -> bool {
    timeout(fd, libc::SO_RCVTIMEO) == Some(Duration::from_secs(seconds))
}

/// The descriptors of this process whose receive timeout is exactly that many seconds. Reads `/proc/self/fd`.
pub(crate) fn with_receive_timeout(seconds: u64) -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let fd = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        found.extend(fd.filter(|&fd| has_receive_timeout(fd, seconds)));
    }
    Ok(found)
}

/// How long a receive and a send may block; `None` is for ever.
pub(crate) fn timeouts(fd: RawFd) -> (Option<Duration>, Option<Duration>) {
    (timeout(fd, libc::SO_RCVTIMEO), timeout(fd, libc::SO_SNDTIMEO))
}

fn timeout(fd: RawFd, which: libc::c_int) -> Option<Duration> {
    // SAFETY: a timeval is plain numbers.
    let mut time: libc::timeval = unsafe { mem::zeroed() };
    let mut size = mem::size_of_val(&time) as libc::socklen_t;
    // SAFETY: `time` is ours and `size` says how large; a wrong descriptor is an error.
    let failed = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, which, (&raw mut time).cast(), &raw mut size) };
    if failed != 0 || (time.tv_sec == 0 && time.tv_usec == 0) {
        return None;
    }
    Some(Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000))
}

/// Whether the peer has ended the stream, and all that it said has been read.
pub(crate) fn has_ended(fd: RawFd) -> bool {
    let mut byte = 0_u8;
    // SAFETY: one byte of ours; a wrong descriptor is an error.
    unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) == 0 }
}

/// Waits until `is_whole` accepts the bytes that lie unread in the socket, or the stream has ended. The bytes stay.
///
/// # Errors
///
/// `TimedOut` when the deadline is over first, however many bytes have dripped in by then.
pub(crate) fn await_whole(fd: RawFd, deadline: Deadline, mut is_whole: impl FnMut(&[u8]) -> bool) -> io::Result<()> {
    let mut unread = [0_u8; 4096];
    let mut seen = 0;
    loop {
        // Whoever reads what is there before the end of the stream comes upon the end himself.
        let ended = wait_readable(fd, deadline)?;
        let there = peek(fd, &mut unread)?;
        if ended || there == 0 || there == unread.len() || is_whole(&unread[..there]) {
            return Ok(());
        }
        if there == seen {
            // Readable, but with nothing new: poll cannot wait for more than that.
            thread::sleep(deadline.remaining().min(Duration::from_millis(1)));
        }
        seen = there;
    }
}

/// True when nothing more will come than what is there.
fn wait_readable(fd: RawFd, deadline: Deadline) -> io::Result<bool> {
    loop {
        let left = deadline.remaining();
        // Rounded up: a poll that ends before the deadline would only be repeated.
        let millis = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let mut ask = libc::pollfd { fd, events: libc::POLLIN | libc::POLLRDHUP, revents: 0 };
        // SAFETY: one pollfd, and it is ours.
        match unsafe { libc::poll(&raw mut ask, 1, millis) } {
            0 if deadline.is_over() => return Err(io::ErrorKind::TimedOut.into()),
            0 => {}
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            _ if deadline.is_over() => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Ok(ask.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0),
        }
    }
}

fn peek(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a slice that is ours.
    let got = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}
