//! Which descriptor is a connection's.
//!
//! The driver does not show it. A read timeout that nobody else has is set through the driver's own method, and the
//! descriptor that has it is the one.

use crate::fork::socket::{self, Timeouts};
use ::redis::{Connection, RedisResult};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The connection's one descriptor, or why it cannot be told. Leaves a read timeout behind.
///
/// It most likely has the number that was free just before the driver opened it: what is there now was opened since, and
/// if it has the mark it is the one. Otherwise all descriptors are looked at, which takes a new process some 4 µs for each
/// (`/proc` makes its entries when they are first asked for).
pub(super) fn socket_of(conn: &Connection, expected: Option<RawFd>) -> RedisResult<Result<RawFd, String>> {
    let mut hits = Vec::new();
    for _ in 0..3 {
        let mark = mark();
        conn.set_read_timeout(Some(Duration::from_secs(mark)))?;
        if let Some(fd) = expected.filter(|&fd| socket::has_receive_timeout(fd, mark)) {
            return Ok(Ok(fd));
        }
        hits = match socket::with_receive_timeout(mark) {
            Ok(hits) => hits,
            Err(why) => {
                return Ok(Err(format!("finding the socket of a redis connection needs /proc/thread-self/fd: {why}")));
            }
        };
        if let [fd] = hits[..] {
            return Ok(Ok(fd));
        }
    }
    Ok(Err(format!("{} descriptors could be the socket of a redis connection, not one: {hits:?}", hits.len())))
}

/// The same for a connection that is in use: its timeouts stay what they are, and are told.
///
/// # Errors
///
/// It cannot be told.
pub(super) fn with_timeouts(conn: &Connection) -> RedisResult<(RawFd, Timeouts)> {
    // Before the mark is set, which is a timeout itself.
    let before = socket::all_timeouts()?;
    let fd = socket_of(conn, None)?.map_err(io::Error::other)?;
    let timeouts = before.into_iter().find(|&(number, _)| number == fd).map(|(_, timeouts)| timeouts);
    let timeouts = timeouts.ok_or_else(|| io::Error::other("the connection was made meanwhile"))?;
    conn.set_read_timeout(timeouts.0)?;
    Ok((fd, timeouts))
}

/// Whether a number is this connection's. Leaves a read timeout behind.
pub(super) fn is_socket_of(conn: &Connection, fd: RawFd) -> RedisResult<bool> {
    let mark = mark();
    conn.set_read_timeout(Some(Duration::from_secs(mark)))?;
    Ok(socket::has_receive_timeout(fd, mark))
}

/// A number of seconds that no other socket has for a timeout. A child that holds a copy of its parent's unfinished
/// socket sees the parent's marks on it: the pid tells them apart.
fn mark() -> u64 {
    1_000_000_000 + (u64::from(std::process::id()) << 20) + unused_number() % (1 << 20)
}

/// Of this process. The number alone is inherited by children, and siblings would take the same.
pub(super) fn unused_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}
