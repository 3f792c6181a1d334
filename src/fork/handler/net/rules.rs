//! What the net takes. Made once, never changed and never freed: a handler reads it without a lock.

use super::calls::{self, File};
use super::peer::Peer;
use std::ffi::CString;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::*};

/// What a child does about a connection that it has inherited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Mode {
    /// Puts a dead socket over it: reads end, writes fail, and the parent's session goes on. The default.
    #[default]
    Disown,
    /// Leaves it as it is, and says that it is there.
    Report,
    /// Ends the child at once, with exit status 86 and a line on standard error for each: for tests, which fail then.
    Deny,
}

/// Where the handler says what it has found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::fork) enum Report {
    #[default]
    Nowhere,
    StandardError,
    /// At its end.
    File(CString),
}

/// Hosts or paths.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::fork) enum Place {
    /// `None` is any.
    Ip { address: Option<IpAddr>, port: Option<u16> },
    /// `*` is any number of bytes, `?` is one. An abstract name begins with `@`.
    Unix(Box<[u8]>),
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::fork) struct Rules {
    pub(in crate::fork) tcp: bool,
    pub(in crate::fork) udp: bool,
    /// Patterns of paths.
    pub(in crate::fork) unix: Vec<Box<[u8]>>,
    pub(in crate::fork) kept: Vec<Place>,
    pub(in crate::fork) kept_numbers: Vec<RawFd>,
    /// Patterns of names.
    pub(in crate::fork) kept_programs: Vec<Box<[u8]>>,
    pub(in crate::fork) mode: Mode,
    pub(in crate::fork) report: Report,
    /// What standard input, output and error were when they were set.
    pub(in crate::fork) standard: [Option<File>; 3],
}

static RULES: AtomicPtr<Rules> = AtomicPtr::new(ptr::null_mut());
/// Another copy of this crate, in the same process, has rules of its own.
static STANDS_DOWN: AtomicBool = AtomicBool::new(false);

/// Not in a handler. False if there are some already.
pub(in crate::fork) fn set(mut rules: Rules) -> bool {
    rules.standard = [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO].map(calls::file);
    let rules = Box::into_raw(Box::new(rules));
    let is_first = RULES.compare_exchange(ptr::null_mut(), rules, AcqRel, Acquire).is_ok();
    if !is_first {
        // SAFETY: it was made here, and nobody else has seen it.
        drop(unsafe { Box::from_raw(rules) });
    }
    is_first
}

pub(in crate::fork) fn stand_down() {
    STANDS_DOWN.store(true, Release);
}

/// If there are some, and they want anything.
pub(in crate::fork) fn get() -> Option<&'static Rules> {
    // SAFETY: whatever is there was published complete, and is never changed or freed.
    let rules = unsafe { RULES.load(Acquire).as_ref() };
    rules.filter(|rules| rules.want_anything() && !STANDS_DOWN.load(Acquire))
}

impl Rules {
    fn want_anything(&self) -> bool {
        self.tcp || self.udp || !self.unix.is_empty()
    }

    /// Not in a handler.
    pub(in crate::fork) fn keep_program(&self, name: &[u8]) -> bool {
        self.kept_programs.iter().any(|pattern| matches(pattern, name))
    }

    pub(super) fn want(&self, peer: &Peer) -> bool {
        match peer {
            Peer::Tcp(_) | Peer::NotConnected => self.tcp,
            Peer::Udp(_) => self.udp,
            Peer::Unix(path) => self.unix.iter().any(|pattern| matches(pattern, path.bytes())),
        }
    }

    pub(super) fn keep(&self, fd: RawFd, peer: &Peer) -> bool {
        self.kept_numbers.contains(&fd) || self.kept.iter().any(|place| place.is(peer))
    }
}

impl Place {
    fn is(&self, peer: &Peer) -> bool {
        match (self, peer) {
            (Self::Ip { address, port }, Peer::Tcp(peer) | Peer::Udp(peer)) => {
                // `::ffff:10.0.0.5` is what a socket of both families says.
                address.is_none_or(|address| address.to_canonical() == peer.ip().to_canonical())
                    && port.is_none_or(|port| port == peer.port())
            }
            (Self::Unix(pattern), Peer::Unix(path)) => matches(pattern, path.bytes()),
            _ => false,
        }
    }
}

/// Goes back to the last `*` only: each other one has found its first place, which is as good as any.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut back = None;
    while let Some(&byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                back = Some((p, t));
            }
            Some(&one) if one == b'?' || one == byte => (p, t) = (p + 1, t + 1),
            _ => match back {
                Some((star, from)) => {
                    (p, t) = (star, from + 1);
                    back = Some((star, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_number_of_bytes_and_a_question_mark_is_one() {
        let yes = [("/run/pg/*", "/run/pg/.s.PGSQL.5432"), ("*", ""), ("*a*b?", "xxaayybz"), ("@x", "@x"), ("a*", "a")];
        let no = [("/run/pg/*", "/run/pgx/a"), ("?", ""), ("*a*b?", "xxaayyb"), ("", "a"), ("a", "ab"), ("ab", "a")];
        assert!(yes.iter().all(|(pattern, text)| matches(pattern.as_bytes(), text.as_bytes())));
        assert!(!no.iter().any(|(pattern, text)| matches(pattern.as_bytes(), text.as_bytes())));
    }
}
