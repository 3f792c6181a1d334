//! Event loops that watch what was disowned: the child gets one of its own under the same number.
//!
//! An epoll is inherited itself and not copied. A child that goes on with it takes its parent's events; and what it opens anew, in the
//! place of what is dead, it has its parent's epoll watch, by a token that means something to the child only. (tokio's are addresses: a
//! parent that is told one of its child's looks there, and crashes.) So an epoll that watches a disowned connection is
//! replaced by a new one, which watches the same under the same tokens: what is dead hangs up there at once, and the rest is told to both
//! processes. The parent's is not touched, and whoever has it for other things shares it as before.
//!
//! What an epoll watches is in `/proc`, a line for each: 3 µs. One epoll may lie under several numbers, and there is no harmless question
//! whether two are one; those that watch the same by the same tokens are taken for it.

use super::calls;
use crate::fork::handler::disown::Birth;
use crate::fork::handler::sys::{self, Watched};
use std::fmt::{self, Write};
use std::os::fd::RawFd;

/// So many are remembered, in case that there is another number of them.
const REMEMBERED: usize = 16;

/// `dead` is what lies now under the numbers of what was disowned.
pub(super) fn replace(birth: Birth, dead: RawFd) {
    let Some(open) = sys::look(dead) else { return };
    let dead_inode = open.identity.inode;
    let mut made = Made::default();
    super::numbers::each_open(birth, |fd| match calls::is_epoll(fd, dead) {
        Some(true) => {
            if let Some(what) = interest(fd, birth, dead_inode) {
                made.put_over(fd, what, birth, dead_inode);
            }
            true
        }
        Some(false) => true,
        None => false,
    });
}

/// What an epoll watches, in a number. `None` if nothing of it was disowned; what the registry has made of a client's loop watches what is
/// dead as such.
fn interest(epoll: RawFd, birth: Birth, dead_inode: u64) -> Option<u64> {
    let mut watches_disowned = false;
    let mut sum = 0_u64;
    let is_known = each_registration(epoll, birth, |Registration { watched: Watched { fd, events, token }, inode }| {
        watches_disowned |= inode != dead_inode && inode_of(fd) == Some(dead_inode);
        // The kernel lists them in an order of its own, which is the same each time.
        for word in [u64::from(fd.unsigned_abs()), events.into(), token, inode] {
            sum = (sum ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    });
    (is_known && watches_disowned).then_some(sum)
}

fn inode_of(fd: RawFd) -> Option<u64> {
    sys::look(fd).map(|open| open.identity.inode)
}

/// Those that were put over inherited ones: what those watched, and a number under which it lies.
#[derive(Default)]
struct Made {
    all: [(u64, Option<RawFd>); REMEMBERED],
    next: usize,
}

impl Made {
    fn put_over(&mut self, fd: RawFd, what: u64, birth: Birth, dead_inode: u64) {
        let closes_on_exec = calls::closes_on_exec(fd);
        let known = self.all.iter().find_map(|&(watched, number)| number.filter(|_| watched == what));
        let is_there = match known {
            Some(known) => sys::replace(known, fd),
            None => {
                let is_there = put_new_over(fd, birth, dead_inode);
                if let Some(place) = self.all.get_mut(self.next % REMEMBERED).filter(|_| is_there) {
                    *place = (what, Some(fd));
                    self.next += 1;
                }
                is_there
            }
        };
        if is_there && !closes_on_exec {
            calls::keep_on_exec(fd);
        }
    }
}

/// False in a full table, where the inherited one stays.
fn put_new_over(fd: RawFd, birth: Birth, dead_inode: u64) -> bool {
    let Some(new) = sys::epoll() else { return false };
    each_registration(fd, birth, |Registration { watched, inode }| {
        // A number that is another file's by now is watched under it no more.
        if inode_of(watched.fd).is_some_and(|is| is == inode || is == dead_inode) {
            sys::watch(new, watched);
        }
    });
    let is_there = sys::replace(new, fd);
    sys::close(new);
    is_there
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Registration {
    watched: Watched,
    inode: u64,
}

/// False if it cannot be known: without `/proc`, or of a kernel before 4.12, which does not say which file it is.
fn each_registration(epoll: RawFd, birth: Birth, mut show: impl FnMut(Registration)) -> bool {
    let Some(file) = calls::open_info(birth, Path::of(epoll)) else { return false };
    let mut line = Line::default();
    let mut is_known = true;
    let mut chunk = [0; 1024];
    loop {
        match calls::read(file, &mut chunk) {
            Some(0) => break,
            Some(length) => {
                for &byte in chunk.iter().take(length) {
                    if let Some(line) = line.push(byte) {
                        match registration(line) {
                            Some(registration) => show(registration),
                            None => is_known &= !line.starts_with("tfd:"),
                        }
                    }
                }
            }
            None => {
                is_known = false;
                break;
            }
        }
    }
    sys::close(file);
    is_known
}

/// `tfd: 5 events: 19 data: 7  pos:0 ino:40e sdev:10`
fn registration(line: &str) -> Option<Registration> {
    let mut words = line.split_ascii_whitespace();
    let mut after = |name: &str| words.next().filter(|&word| word == name).and_then(|_| words.next());
    let fd = after("tfd:")?.parse().ok()?;
    let events = u32::from_str_radix(after("events:")?, 16).ok()?;
    let token = u64::from_str_radix(after("data:")?, 16).ok()?;
    let inode = words.find_map(|word| word.strip_prefix("ino:"))?;
    Some(Registration { watched: Watched { fd, events, token }, inode: u64::from_str_radix(inode, 16).ok()? })
}

/// What is longer than a line of an epoll is none.
struct Line {
    bytes: [u8; 128],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 128], length: 0 }
    }
}

impl Line {
    /// The line, when this ends it.
    fn push(&mut self, byte: u8) -> Option<&str> {
        if byte == b'\n' {
            let length = std::mem::take(&mut self.length);
            return self.bytes.get(..length).and_then(|line| std::str::from_utf8(line).ok());
        }
        if let Some(to) = self.bytes.get_mut(self.length) {
            *to = byte;
            self.length += 1;
        }
        None
    }
}

/// The name of a descriptor within a folder.
pub(super) struct Path {
    bytes: [u8; 16],
    length: usize,
}

impl Path {
    fn of(fd: RawFd) -> Self {
        let mut path = Self { bytes: [0; 16], length: 0 };
        let _has_room = write!(path, "{fd}");
        path
    }

    /// Ends with a zero byte: a number has eleven characters at most.
    pub(super) fn as_ptr(&self) -> *const libc::c_char {
        self.bytes.as_ptr().cast()
    }
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            // The last byte stays zero.
            let room = self.bytes.len() - 1;
            let Some(to) = self.bytes.get_mut(self.length).filter(|_| self.length < room) else {
                return Err(fmt::Error);
            };
            *to = byte;
            self.length += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_an_epoll_is_read_and_others_are_not() {
        let line = "tfd:       27 events: 80000019 data: 1234567890abce02  pos:0 ino:40e sdev:10";
        let watched = Watched { fd: 27, events: 0x8000_0019, token: 0x1234_5678_90ab_ce02 };
        assert_eq!(registration(line), Some(Registration { watched, inode: 0x40e }));
        for other in ["", "flags:	02", "tfd: 27 events: 19 data: 1", "tfd: x events: 19 data: 1  pos:0 ino:1 sdev:1"] {
            assert_eq!(registration(other), None);
        }
    }
}
