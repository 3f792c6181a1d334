//! Event loops that watch what was disowned: the child gets one of its own under the same number.
//!
//! An epoll is inherited itself and not copied. A child that goes on with it takes its parent's events; and what it opens anew, in the
//! place of what is dead, it has its parent's epoll watch, by a token that means something to the child only. (tokio's are addresses: a
//! parent that is told one of its child's looks there, and crashes.) So an epoll that watches a disowned connection is
//! replaced by a new one, which watches the same under the same tokens: what is dead hangs up there at once, and the rest is told to both
//! processes. What is dead there is a socket of its own under each number: a registration ends with the last number of its file, and
//! whoever closes a number relies on that.
//!
//! What an epoll watches is in `/proc`, a line for each, at 2 µs; so it is asked first, by `kcmp`, whether something disowned is among it.
//! To watch a file is to poll it, which is innocent for sockets, pipes and what is made of no file (eventfds, timers, signals). An epoll that
//! watches anything else is left as it is, and so is one that watches another that is replaced, and one of which not all could be watched anew.

use super::calls;
use super::numbers;
use crate::fork::handler::disown::Birth;
use crate::fork::handler::sys::{self, Watched};
use std::fmt::{self, Write};
use std::os::fd::RawFd;

/// So many are known; of more connections and more files the others are left out.
const ROOM: usize = 128;

/// What a walk through all descriptors has found that matters here.
pub(super) struct Loops {
    /// What is no socket, and so may be an epoll.
    candidates: List<RawFd>,
    disowned: List<Disowned>,
}

#[derive(Clone, Copy, Default)]
struct Disowned {
    fd: RawFd,
    /// Of the connection that was there.
    inode: u64,
    /// What lies there is under no other number.
    is_alone: bool,
}

impl Loops {
    pub(super) fn new() -> Self {
        Self { candidates: List::new(), disowned: List::new() }
    }

    pub(super) fn note(&mut self, no_socket: RawFd) {
        self.candidates.push(no_socket);
    }

    /// Before it is.
    pub(super) fn will_disown(&mut self, fd: RawFd) {
        if let Some(inode) = inode_of(fd) {
            self.disowned.push(Disowned { fd, inode, is_alone: false });
        }
    }

    /// `any` is an open number that no inherited epoll watches.
    pub(super) fn replace(mut self, birth: Birth, any: RawFd) {
        if self.disowned.all().is_empty() {
            return;
        }
        let epolls = self.watchers(birth, any);
        if epolls.all().is_empty() {
            return;
        }
        let Some(innocent) = Innocent::learn() else { return };
        // Those of the highest numbers first: what watches another was made before it, or in any case is told of it then.
        let mut to_come = epolls;
        let mut replaced = List::<RawFd>::new();
        while let Some(fd) = to_come.pop() {
            // The other numbers of the same, while it can be told.
            let mut numbers = List::<RawFd>::new();
            let mut others = List::<RawFd>::new();
            numbers.push(fd);
            for &other in to_come.all() {
                let is_same = self.are_one(fd, other, birth);
                if is_same { numbers.push(other) } else { others.push(other) }
            }
            to_come = others;
            let Some(new) = sys::epoll() else { return };
            if self.copy(fd, new, birth, &innocent, &Others { to_come: &to_come, replaced: &replaced }) {
                for &number in numbers.all() {
                    if calls::keeping_flags(number, || sys::replace(new, number)) {
                        replaced.push(number);
                    }
                }
            }
            sys::close(new);
        }
    }

    /// The epolls that watch something disowned.
    fn watchers(&self, birth: Birth, any: RawFd) -> List<RawFd> {
        let mut epolls = List::new();
        let mut look = |fd| {
            if calls::is_epoll(fd, any) && self.are_watched_by(fd, birth, any) {
                epolls.push(fd);
            }
        };
        if self.candidates.is_full() {
            numbers::each_open(birth, |fd| {
                look(fd);
                calls::is_open(fd)
            });
        } else {
            self.candidates.all().iter().copied().for_each(look);
        }
        epolls
    }

    fn are_watched_by(&self, epoll: RawFd, birth: Birth, any: RawFd) -> bool {
        let mut is_unknown = false;
        for one in self.disowned.all() {
            match calls::watches_number(epoll, one.fd, any) {
                Some(true) => return true,
                Some(false) => {}
                None => is_unknown = true,
            }
        }
        is_unknown && self.fingerprint(epoll, birth).is_some()
    }

    /// Whether two numbers are of one epoll.
    fn are_one(&self, one: RawFd, other: RawFd, birth: Birth) -> bool {
        calls::are_one(one, other).unwrap_or_else(|| {
            let what = self.fingerprint(one, birth);
            what.is_some() && what == self.fingerprint(other, birth)
        })
    }

    /// What an epoll watches of what was disowned, in a number: for kernels before 6.10 in containers that forbid `kcmp`, where nobody says whether
    /// two epolls are one.
    fn fingerprint(&self, epoll: RawFd, birth: Birth) -> Option<u64> {
        let mut sum = None;
        each_registration(epoll, birth, |one| {
            if self.find(&one).is_some() {
                let so_far = sum.unwrap_or(0_u64) ^ one.watched.token;
                sum = Some((so_far ^ one.inode.rotate_left(32)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23));
            }
        });
        sum
    }

    fn find(&self, one: &Registration) -> Option<usize> {
        self.disowned.all().iter().position(|dead| dead.fd == one.watched.fd && dead.inode == one.inode)
    }

    /// Has a new epoll watch what an inherited one does. False if not all of it can be, or if nothing of it was disowned.
    fn copy(&mut self, from: RawFd, to: RawFd, birth: Birth, innocent: &Innocent, others: &Others<'_>) -> bool {
        let (mut watches_disowned, mut is_whole) = (false, true);
        let is_known = each_registration(from, birth, |one| {
            let fd = one.watched.fd;
            if let Some(dead) = self.find(&one).and_then(|place| self.disowned.all_mut().get_mut(place)) {
                watches_disowned = true;
                is_whole &= dead.be_alone() && sys::watch(to, one.watched);
            } else if others.replaced.all().contains(&fd) {
                is_whole &= sys::watch(to, one.watched);
            } else if others.to_come.all().contains(&fd) || !innocent.is(&one) {
                is_whole = false;
            } else if fd != to && is_still_there(from, &one) {
                is_whole &= sys::watch(to, one.watched);
            }
        });
        is_known && is_whole && watches_disowned
    }
}

/// Other epolls that watch something disowned.
struct Others<'a> {
    to_come: &'a List<RawFd>,
    replaced: &'a List<RawFd>,
}

impl Disowned {
    /// Puts a dead socket of its own under the number. False if there is no room for another.
    fn be_alone(&mut self) -> bool {
        if !self.is_alone
            && let Some(dead) = sys::dead_socket()
        {
            self.is_alone = calls::keeping_flags(self.fd, || sys::replace(dead, self.fd));
            sys::close(dead);
        }
        self.is_alone
    }
}

/// A number that is another file's by now is watched under it no more.
fn is_still_there(epoll: RawFd, one: &Registration) -> bool {
    let fd = one.watched.fd;
    calls::watches_file(epoll, fd).unwrap_or_else(|| inode_of(fd) == Some(one.inode))
}

fn inode_of(fd: RawFd) -> Option<u64> {
    sys::look(fd).map(|open| open.identity.inode)
}

/// The file systems of what may be polled: sockets, pipes, and what is made of no file.
struct Innocent([u64; 3]);

impl Innocent {
    fn learn() -> Option<Self> {
        let (socket, [pipe, other], nothing) = (sys::dead_socket()?, calls::pipe()?, sys::eventfd()?);
        let device = |fd| sys::look(fd).map(|open| open.identity.device);
        let devices = (device(socket), device(pipe), device(nothing));
        [socket, pipe, other, nothing].into_iter().for_each(sys::close);
        Some(Self([devices.0?, devices.1?, devices.2?]))
    }

    fn is(&self, one: &Registration) -> bool {
        self.0.contains(&one.device)
    }
}

/// As many as there is room for.
struct List<T> {
    all: [T; ROOM],
    count: usize,
}

impl<T: Copy + Default> List<T> {
    fn new() -> Self {
        Self { all: [T::default(); ROOM], count: 0 }
    }

    fn push(&mut self, one: T) {
        if let Some(place) = self.all.get_mut(self.count) {
            *place = one;
            self.count += 1;
        }
    }

    fn pop(&mut self) -> Option<T> {
        self.count = self.count.checked_sub(1)?;
        self.all.get(self.count).copied()
    }

    fn is_full(&self) -> bool {
        self.count == self.all.len()
    }

    fn all(&self) -> &[T] {
        self.all.get(..self.count).unwrap_or_default()
    }

    fn all_mut(&mut self) -> &mut [T] {
        self.all.get_mut(..self.count).unwrap_or_default()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Registration {
    watched: Watched,
    inode: u64,
    /// As `fstat` has it.
    device: u64,
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
    let mut hex_after =
        |name: &str| words.find_map(|word| word.strip_prefix(name)).map(|hex| u64::from_str_radix(hex, 16));
    let (inode, device) = (hex_after("ino:")?.ok()?, hex_after("sdev:")?.ok()?);
    // The kernel has twenty bits for the minor number, the system calls eight and twelve.
    let (major, minor) = (device >> 20, device & 0xf_ffff);
    let device = minor & 0xff | major << 8 | (minor & !0xff) << 12;
    Some(Registration { watched: Watched { fd, events, token }, inode, device })
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
        assert_eq!(registration(line), Some(Registration { watched, inode: 0x40e, device: 0x10 }));
        for other in ["", "flags:	02", "tfd: 27 events: 19 data: 1", "tfd: x events: 19 data: 1  pos:0 ino:1 sdev:1"] {
            assert_eq!(registration(other), None);
        }
    }
}
