//! For drivers that hide an event loop: how to find its descriptors, and how to end its socket.

use super::handler::sys::{self, Identity, Watched};
use std::io;
use std::mem;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Sees to it that so many more descriptors can be opened; returns the number that the first will get, if no other thread
/// is faster.
///
/// # Errors
///
/// `EMFILE`, `ENFILE`.
pub(crate) fn room_for(number: usize) -> io::Result<RawFd> {
    let one = sys::eventfd().ok_or_else(io::Error::last_os_error)?;
    // SAFETY: it was just made, and nobody else knows it.
    let one = unsafe { OwnedFd::from_raw_fd(one) };
    (1..number).map(|_| one.try_clone()).collect::<io::Result<Vec<OwnedFd>>>()?;
    Ok(one.as_raw_fd())
}

/// Which of these numbers are epolls that watch a descriptor. It must be of no interest to them: they forget what for.
pub(crate) fn epolls_that_watch(fd: RawFd, numbers: RangeInclusive<RawFd>) -> Vec<RawFd> {
    let watched = Watched { fd, events: 0, token: 0 };
    numbers.filter(|&epoll| sys::watches(epoll, watched)).collect()
}

/// What a descriptor can be to an event loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A socket that was connected to an address.
    Client,
    /// A socket of a pair.
    Anonymous,
    Other,
}

pub(crate) fn kind(fd: RawFd) -> Kind {
    match domain(fd) {
        None => Kind::Other,
        Some(libc::AF_UNIX) if !has_named_peer(fd) => Kind::Anonymous,
        Some(_) => Kind::Client,
    }
}

/// Of a socket.
fn domain(fd: RawFd) -> Option<libc::c_int> {
    let mut domain: libc::c_int = 0;
    let mut size = mem::size_of_val(&domain) as libc::socklen_t;
    // SAFETY: `domain` is ours and `size` says how large; a wrong descriptor is an error.
    let failed =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_DOMAIN, (&raw mut domain).cast(), &raw mut size) };
    (failed == 0).then_some(domain)
}

/// Of a unix socket. A name is what comes after the family.
fn has_named_peer(fd: RawFd) -> bool {
    // SAFETY: an address is plain numbers.
    let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
    let mut size = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is ours and `size` says how large; a wrong descriptor is an error.
    let failed = unsafe { libc::getpeername(fd, (&raw mut address).cast(), &raw mut size) };
    failed == 0 && size as usize > mem::size_of::<libc::sa_family_t>()
}

/// A socket, by more than its number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known(RawFd, Identity);

impl Known {
    pub(crate) fn of(socket: RawFd) -> Option<Self> {
        Some(Self(socket, sys::look(socket)?.identity))
    }

    /// Ends it for every process that holds a copy of it, if it is still there.
    pub(crate) fn shut_down(self) {
        if sys::is(self.0, self.1) {
            sys::shutdown(self.0);
        }
    }
}
