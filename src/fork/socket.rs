//! For drivers that hide their socket: how to find it, and how to wait on it.

mod open;

pub(crate) use open::{Peer, connect, put_new_socket, reset_when_closed, shut_down};

use crate::Deadline;
use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::thread;
use std::time::Duration;

/// How long a receive and a send may block; `None` is for ever.
pub(crate) type Timeouts = (Option<Duration>, Option<Duration>);

/// The number that the next descriptor of this process will get, if no other thread is faster. `None`: the table is full.
pub(crate) fn next_number() -> Option<RawFd> {
    let next = super::sys::unconnected_socket();
    next.inspect(|&fd| super::sys::close(fd))
}

/// Whether it is a socket whose receive timeout is exactly that many seconds.
pub(crate) fn has_receive_timeout(fd: RawFd, seconds: u64) -> bool {
    timeout(fd, libc::SO_RCVTIMEO) == Some(Duration::from_secs(seconds))
}

/// The descriptors of this process whose receive timeout is exactly that many seconds.
///
/// # Errors
///
/// `/proc` is not there.
pub(crate) fn with_receive_timeout(seconds: u64) -> io::Result<Vec<RawFd>> {
    let mut found = open_numbers()?;
    found.retain(|&fd| has_receive_timeout(fd, seconds));
    Ok(found)
}

/// The timeouts of all sockets of this process.
///
/// # Errors
///
/// `/proc` is not there.
pub(crate) fn all_timeouts() -> io::Result<Vec<(RawFd, Timeouts)>> {
    Ok(open_numbers()?.into_iter().map(|fd| (fd, timeouts(fd))).collect())
}

/// Of this thread's table, not of `/proc/self`: that is the first thread's, and it may have ended.
fn open_numbers() -> io::Result<Vec<RawFd>> {
    let numbers = std::fs::read_dir("/proc/thread-self/fd")?
        .map(|entry| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok())));
    Ok(numbers.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
}

pub(crate) fn timeouts(fd: RawFd) -> Timeouts {
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

/// What the bytes that lie unread in a socket say to one who waits for an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// There is more to come.
    Part,
    /// There is more to come, and all of it so far is what a server says of its own accord.
    News,
    /// All that was asked for is there.
    Whole,
    /// Enough is there, but it does not look like the answer. That one may follow at once, or never.
    TooEarly,
    /// This is not an answer.
    Nonsense,
}

/// How long the answer may stay out after another that came before it.
const GRACE: Duration = Duration::from_millis(100);

/// No answer that is waited for has as many bytes.
const ROOM: usize = 4096;

/// But this many there may be of what a server says of its own accord.
const ROOM_FOR_NEWS: usize = 1 << 20;

/// So much of it may fill the socket, for nobody has read it.
const MUCH_NEWS: usize = 32 << 10;

/// Waits until `listen` says of the bytes that lie unread in the socket that they are whole, or the stream has ended. The
/// bytes stay where they are.
///
/// # Errors
///
/// `TimedOut` when the deadline is over first, however many bytes have dripped in by then. `InvalidData` when what is there
/// cannot become the answer: it is more than any answer has, or nonsense.
pub(crate) fn await_whole(fd: RawFd, deadline: Deadline, mut listen: impl FnMut(&[u8]) -> Heard) -> io::Result<()> {
    let (mut small, mut large) = ([0_u8; ROOM], Vec::new());
    let mut unread: &mut [u8] = &mut small;
    let mut seen = None;
    let mut until = deadline;
    loop {
        let ended = match wait_for(fd, libc::POLLIN | libc::POLLRDHUP, until) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut && !deadline.is_over() => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            other => other? & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0,
        };
        let there = match peek(fd, unread) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            other => other?,
        };
        let heard = if seen == Some(there) { Heard::Part } else { listen(&unread[..there]) };
        match heard {
            Heard::Whole => return Ok(()),
            Heard::Nonsense => return Err(io::ErrorKind::InvalidData.into()),
            Heard::News if there == unread.len() && there < ROOM_FOR_NEWS => {
                large.resize(there * 4, 0);
                unread = &mut large;
                continue;
            }
            // Whoever reads what is there before the end of the stream comes upon the end himself.
            _ if ended || there == 0 => return Ok(()),
            _ if there == unread.len() => return Err(io::ErrorKind::InvalidData.into()),
            Heard::TooEarly => until = deadline.or_sooner(GRACE),
            // The answer may find no room behind it.
            Heard::News if there >= MUCH_NEWS => until = deadline.or_sooner(GRACE),
            Heard::Part | Heard::News => acknowledge(fd),
        }
        if seen == Some(there) {
            // Readable, but with nothing new: poll cannot wait for more than that.
            thread::sleep(until.remaining().min(Duration::from_millis(1)));
        }
        seen = Some(there);
    }
}

/// Tells the peer at once that its bytes have come: one that sends its replies one by one may wait for that with the next,
/// and the kernel for something to say. An error (a unix socket) is of no interest.
fn acknowledge(fd: RawFd) {
    let yes: libc::c_int = 1;
    let size = mem::size_of_val(&yes) as libc::socklen_t;
    // SAFETY: `yes` is ours and `size` says how large.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_QUICKACK, (&raw const yes).cast(), size) };
}

/// Waits until some hundred bytes can be sent without waiting.
///
/// # Errors
///
/// `TimedOut` when the deadline is over first: the peer does not read.
pub(crate) fn wait_writable(fd: RawFd, deadline: Deadline) -> io::Result<()> {
    wait_for(fd, libc::POLLOUT, deadline).map(drop)
}

/// Waits until there is something to read or to accept, or the stream has ended.
///
/// # Errors
///
/// `TimedOut` when the deadline is over first.
pub(crate) fn wait_readable(fd: RawFd, deadline: Deadline) -> io::Result<()> {
    wait_for(fd, libc::POLLIN, deadline).map(drop)
}

/// What has become of it. Interrupted waits go on.
fn wait_for(fd: RawFd, events: libc::c_short, deadline: Deadline) -> io::Result<libc::c_short> {
    loop {
        let left = deadline.remaining();
        // Rounded up: a poll that ends before the deadline would only be repeated.
        let millis = i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
        let mut ask = libc::pollfd { fd, events, revents: 0 };
        // SAFETY: one pollfd, and it is ours.
        match unsafe { libc::poll(&raw mut ask, 1, millis) } {
            0 if deadline.is_over() => return Err(io::ErrorKind::TimedOut.into()),
            0 => {}
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(io::Error::last_os_error()),
            _ if deadline.is_over() => return Err(io::ErrorKind::TimedOut.into()),
            _ => return Ok(ask.revents),
        }
    }
}

/// How much lies unread, as far as there is room for it. 0: the stream has ended.
fn peek(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length are those of a slice that is ours.
    let got = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// What lies unread in the socket, or the beginning of it. Nothing, if it is silent.
///
/// # Errors
///
/// `UnexpectedEof` when the stream has ended.
pub(crate) fn look(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    match peek(fd, into) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}
