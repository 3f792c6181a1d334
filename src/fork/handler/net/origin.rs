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
//! A 1 is certain. But what this machine could not even queue (a full qdisc, a lost route) is counted in `bytes_sent` once more when
//! it is sent again, so a 0 may be a 1 less one byte, and what is below says nothing; nor do kernels before 4.19 and emulators. For
//! that there are [`witnesses`](super::witnesses).

use super::calls::{self, Socket, TcpInfo};
use std::mem;
use std::os::fd::RawFd;

/// What the kernel's counts say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Counts {
    Accepted,
    /// As accepted, or connected and miscounted by one.
    PerhapsAccepted,
    Connected,
    Nothing,
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

/// Listening sockets count as accepted, and so do those that have a port and have never sent or received anything: they are about to
/// listen. One that has neither is about to connect: by another thread of the parent, whose memory we have not.
pub(super) fn count(fd: RawFd, info: &TcpInfo) -> Counts {
    match info.state {
        SYN_SENT => Counts::Connected,
        LISTEN => Counts::Accepted,
        CLOSE if calls::local_port(fd) == Some(0) => Counts::Connected,
        // Where a connection has failed, or was given up to make another, or a listener was shut down, the kernel goes on with other
        // numbers, as if something were to be sent.
        CLOSE if info.segs_out == 0 && info.notsent_bytes > 0 => Counts::PerhapsAccepted,
        CLOSE if info.segs_out == 0 => Counts::Accepted,
        CLOSE => when_over(info),
        ESTABLISHED | CLOSE_WAIT | FIN_WAIT_1 | FIN_WAIT_2 | LAST_ACK | CLOSING => reckon(fd, *info),
        _ => Counts::Nothing,
    }
}

fn reckon(fd: RawFd, mut before: TcpInfo) -> Counts {
    if before.unacked == 0 {
        return by_counts(&before, 0);
    }
    for _ in 0..TRIES {
        let unacknowledged = calls::unacknowledged(fd);
        let Socket::Tcp(after) = calls::look(fd) else { return Counts::Nothing };
        if counts(&before) == counts(&after) {
            let under_way = unacknowledged.map(|bytes| bytes.wrapping_sub(u64::from(after.notsent_bytes)));
            return under_way.map_or(Counts::Nothing, |under_way| by_counts(&after, under_way));
        }
        before = after;
    }
    Counts::Nothing
}

fn counts(info: &TcpInfo) -> (u8, u64, u32, u64, u64) {
    (info.state, info.bytes_acked, info.notsent_bytes, info.bytes_sent, info.bytes_retrans)
}

/// What was under way is lost, and the end of the stream was acknowledged or not.
fn when_over(info: &TcpInfo) -> Counts {
    match surplus(info, 0) {
        Some(2) => Counts::Connected,
        Some(0 | 1) => Counts::PerhapsAccepted,
        _ => Counts::Nothing,
    }
}

fn by_counts(info: &TcpInfo, under_way: u64) -> Counts {
    let end_is_acknowledged = info.state == FIN_WAIT_2;
    match surplus(info, under_way).map(|surplus| surplus.wrapping_sub(end_is_acknowledged.into())) {
        Some(0) => Counts::PerhapsAccepted,
        Some(1) => Counts::Connected,
        _ => Counts::Nothing,
    }
}

/// How many bytes more were acknowledged than were sent: the SYN, and the end of the stream.
fn surplus(info: &TcpInfo, under_way: u64) -> Option<u64> {
    // An emulator that counts nothing would have it that everything was accepted.
    if info.filled < mem::offset_of!(TcpInfo, filled) || info.segs_in == 0 {
        return None;
    }
    let end_is_under_way =
        matches!(info.state, FIN_WAIT_1 | LAST_ACK | CLOSING) && under_way > 0 && info.notsent_bytes == 0;
    let data_under_way = under_way.wrapping_sub(end_is_under_way.into());
    let data_acked = info.bytes_sent.wrapping_sub(info.bytes_retrans).wrapping_sub(data_under_way);
    Some(info.bytes_acked.wrapping_sub(data_acked))
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
        for (stream, told) in [(&made, Counts::Connected), (&accepted, Counts::PerhapsAccepted)] {
            let Socket::Tcp(info) = calls::look(stream.as_raw_fd()) else { panic!("it is TCP") };
            assert_eq!(count(stream.as_raw_fd(), &info), told);
            let (mut old, mut emulated, mut sent_again) = (info, info, info);
            (old.filled, emulated.segs_in, sent_again.bytes_sent) = (192, 0, info.bytes_sent + 2);
            for info in [old, emulated, sent_again] {
                assert_eq!(count(stream.as_raw_fd(), &info), Counts::Nothing);
            }
        }
    }
}
