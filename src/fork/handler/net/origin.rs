//! Who made a connection: this side, by connecting, or the other, and this side accepted it.
//!
//! Accepted connections are handed to children on purpose. The kernel keeps no word of it, but it can be reckoned from
//! what it counts: who connects sends a SYN, whose acknowledgement is counted in `bytes_acked` and not in `bytes_sent`. So, of a
//! connection on which nothing is under way,
//!
//! ```text
//! bytes_acked - (bytes_sent - bytes_retrans) = 1, if this side has connected, and 0, if it has accepted.
//! ```
//!
//! If something is under way, its bytes are known, too: what is written and not acknowledged, less what is not sent. That takes a second
//! call, and the connection may be in use by the parent meanwhile; so the counts have to be the same before and after.
//!
//! The end of the stream counts as a byte everywhere but in `bytes_sent`.
//!
//! Where that gives neither 0 nor 1 (kernels before 4.19, emulators, a connection that is in use each time) its local port decides: if this process has a listening socket of that port, it was accepted.

use super::calls::{self, Socket, TcpInfo};
use super::numbers;
use crate::fork::handler::disown::Birth;
use std::mem;
use std::os::fd::RawFd;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Accepted {
    Yes,
    No,
    Unknown,
}

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT_1: u8 = 4;
const FIN_WAIT_2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;

/// A parent that uses the connection while we look is looked at again, so often.
const TRIES: usize = 4;

/// Listening sockets count as accepted, and so do those that have a port and no connection: they are about to listen. One that has
/// neither is about to connect: by another thread of the parent, whose memory we have not.
pub(super) fn of(fd: RawFd, info: &TcpInfo) -> Accepted {
    match info.state {
        SYN_SENT => Accepted::No,
        LISTEN => Accepted::Yes,
        CLOSE if calls::local_port(fd) == Some(0) => Accepted::No,
        CLOSE => Accepted::Yes,
        ESTABLISHED | CLOSE_WAIT | FIN_WAIT_1 | FIN_WAIT_2 | LAST_ACK | CLOSING => reckon(fd, *info),
        _ => Accepted::Unknown,
    }
}

fn reckon(fd: RawFd, mut before: TcpInfo) -> Accepted {
    // An emulator that counts nothing would have it that everything was accepted.
    if before.filled < mem::offset_of!(TcpInfo, filled) || before.segs_in == 0 {
        return Accepted::Unknown;
    }
    if before.unacked == 0 {
        return by_counts(&before, 0);
    }
    for _ in 0..TRIES {
        let unacknowledged = calls::unacknowledged(fd);
        let Socket::Tcp(after) = calls::look(fd) else { return Accepted::Unknown };
        if counts(&before) == counts(&after) {
            let under_way = unacknowledged.map(|bytes| bytes.wrapping_sub(u64::from(after.notsent_bytes)));
            return under_way.map_or(Accepted::Unknown, |under_way| by_counts(&after, under_way));
        }
        before = after;
    }
    Accepted::Unknown
}

fn counts(info: &TcpInfo) -> (u8, u64, u32, u64, u64) {
    (info.state, info.bytes_acked, info.notsent_bytes, info.bytes_sent, info.bytes_retrans)
}

fn by_counts(info: &TcpInfo, under_way: u64) -> Accepted {
    let end_is_under_way =
        matches!(info.state, FIN_WAIT_1 | LAST_ACK | CLOSING) && under_way > 0 && info.notsent_bytes == 0;
    let end_is_acknowledged = info.state == FIN_WAIT_2;
    let data_under_way = under_way.wrapping_sub(end_is_under_way.into());
    let data_acked = info.bytes_sent.wrapping_sub(info.bytes_retrans).wrapping_sub(data_under_way);
    match info.bytes_acked.wrapping_sub(data_acked).wrapping_sub(end_is_acknowledged.into()) {
        0 => Accepted::Yes,
        1 => Accepted::No,
        _ => Accepted::Unknown,
    }
}

/// The ports on which this process listens, looked for when they are first asked for.
pub(super) struct Listeners {
    birth: Birth,
    known: bool,
    /// As many as a process has, as a rule.
    ports: [u16; 64],
    count: usize,
}

impl Listeners {
    pub(super) fn new(birth: Birth) -> Self {
        Self { birth, known: false, ports: [0; 64], count: 0 }
    }

    /// True if there are more than we have room for: then it may be one of them.
    pub(super) fn have(&mut self, port: u16) -> bool {
        if !self.known {
            self.known = true;
            self.find();
        }
        self.count > self.ports.len() || self.ports.iter().take(self.count).any(|&one| one == port)
    }

    fn find(&mut self) {
        numbers::each_open(self.birth, |fd| {
            let socket = calls::look(fd);
            if matches!(socket, Socket::Tcp(_) | Socket::Unknown)
                && calls::is_listening(fd)
                && let Some(port) = calls::local_port(fd)
                && !self.ports.iter().take(self.count).any(|&one| one == port)
            {
                if let Some(place) = self.ports.get_mut(self.count) {
                    *place = port;
                }
                self.count = (self.count + 1).min(self.ports.len() + 1);
            }
            !matches!(socket, Socket::Closed)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn where_the_kernel_counts_too_little_nothing_is_reckoned() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let made = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let accepted = listener.accept().unwrap().0;
        for (stream, told) in [(&made, Accepted::No), (&accepted, Accepted::Yes)] {
            let Socket::Tcp(info) = calls::look(stream.as_raw_fd()) else { panic!("it is TCP") };
            assert_eq!(of(stream.as_raw_fd(), &info), told);
            let (mut old, mut emulated) = (info, info);
            (old.filled, emulated.segs_in) = (192, 0);
            assert_eq!(of(stream.as_raw_fd(), &old), Accepted::Unknown);
            assert_eq!(of(stream.as_raw_fd(), &emulated), Accepted::Unknown);
        }
    }
}
