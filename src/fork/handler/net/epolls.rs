//! Event loops that watch what was disowned: the child gets one of its own under the same number.
//!
//! An epoll is inherited itself and not copied. A child that goes on with it takes its parent's events; and what it opens anew, in the
//! place of what is dead, it has its parent's epoll watch, by a token that means something to the child only. (tokio's are addresses: a
//! parent that is told one of its child's looks there, and crashes.) So an epoll that watches a disowned connection is
//! replaced by a new one, which watches the same under the same tokens: what is dead hangs up there at once, and the rest is told to both
//! processes. The parent's is not touched, and whoever has it for other things shares it as before.
//!
//! What an epoll watches is in `/proc`, a line for each, at 2 µs; so it is asked first, by `kcmp`, whether something disowned is among it.
//! One epoll may lie under several numbers, and there is no harmless question whether two are one; those that watch the same by the same
//! tokens are taken for it.

use super::calls;
use super::found;
use super::numbers;
use crate::fork::handler::disown::Birth;
use crate::fork::handler::sys::{self, Watched};
use std::fmt::{self, Write};
use std::os::fd::RawFd;

/// What is no socket, and so may be an epoll: noted in the walk through all, so that there need not be another.
pub(super) struct Candidates {
    numbers: [RawFd; 128],
    count: usize,
}

impl Candidates {
    pub(super) fn new() -> Self {
        Self { numbers: [-1; 128], count: 0 }
    }

    pub(super) fn note(&mut self, fd: RawFd) {
        if let Some(place) = self.numbers.get_mut(self.count) {
            *place = fd;
        }
        self.count = self.count.saturating_add(1);
    }

    /// `dead` is what lies now under the numbers of what was disowned.
    pub(super) fn replace(&self, birth: Birth, dead: RawFd) {
        let Some(open) = sys::look(dead) else { return };
        let dead_inode = open.identity.inode;
        let mut made = Made::default();
        let mut look = |fd| {
            let is_epoll = calls::is_epoll(fd, dead);
            if is_epoll == Some(true) && may_watch_disowned(fd, dead) {
                made.put_over(fd, birth, dead_inode);
            }
            is_epoll.is_some()
        };
        match self.numbers.get(..self.count) {
            Some(all) => all.iter().for_each(|&fd| _ = look(fd)),
            None => numbers::each_open(birth, look),
        }
    }
}

/// True if nobody may ask, or if there are more than are known by their numbers.
fn may_watch_disowned(epoll: RawFd, any: RawFd) -> bool {
    let all_known = found::all().count() as u64 == found::total();
    !all_known || found::all().any(|one| calls::watches_number(epoll, one.fd, any) != Some(false))
}

/// So many are remembered, in case that there is another number of them.
const REMEMBERED: usize = 16;

/// Those that were put over inherited ones: what they watch, and a number under which each lies.
#[derive(Default)]
struct Made {
    all: [Option<(u64, RawFd)>; REMEMBERED],
    next: usize,
}

impl Made {
    fn put_over(&mut self, fd: RawFd, birth: Birth, dead_inode: u64) {
        // In a full table the inherited one stays.
        let Some(new) = sys::epoll() else { return };
        if let Some(what) = copy(fd, new, birth, dead_inode) {
            let closes_on_exec = calls::closes_on_exec(fd);
            let known = self.all.iter().flatten().find(|(watched, _)| *watched == what);
            let is_there = sys::replace(known.map_or(new, |&(_, number)| number), fd);
            if known.is_none() && is_there {
                // Of many the first are forgotten.
                if let Some(place) = self.all.get_mut(self.next % REMEMBERED) {
                    *place = Some((what, fd));
                    self.next += 1;
                }
            }
            if is_there && !closes_on_exec {
                calls::keep_on_exec(fd);
            }
        }
        sys::close(new);
    }
}

/// Has a new epoll watch what an inherited one does. Returns what that is, in a number: the kernel lists it in the same order each time.
/// `None` if it cannot be known, or if nothing of it was disowned. (What the registry has made of a client's loop watches what is dead as such.)
fn copy(from: RawFd, to: RawFd, birth: Birth, dead_inode: u64) -> Option<u64> {
    let mut watches_disowned = false;
    let mut what = 0_u64;
    let is_known = each_registration(from, birth, |Registration { watched, inode }| {
        for word in [u64::from(watched.fd.unsigned_abs()), watched.events.into(), watched.token, inode] {
            what = (what ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
        let lies_there = sys::look(watched.fd).map(|open| open.identity.inode);
        watches_disowned |= inode != dead_inode && lies_there == Some(dead_inode);
        // A number that is another file's by now is watched under it no more.
        if lies_there == Some(inode) || lies_there == Some(dead_inode) {
            sys::watch(to, watched);
        }
    });
    (is_known && watches_disowned).then_some(what)
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
