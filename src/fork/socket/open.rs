//! For drivers that open their socket themselves: one of ours in its place.
//!
//! Their own connect cannot be bounded, is not told of signals, and nobody can name its socket while it goes on. So a
//! driver is connected with a listener of this process, and its socket's number is then given another one, that is
//! published first and connected next.

use super::wait_for;
use crate::Deadline;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// Where a stream socket connects to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Peer<'a> {
    Tcp(SocketAddr),
    Unix(&'a Path),
}

/// What a driver may have set on its socket, and wants to find on the one in its place.
const OPTIONS: [(libc::c_int, libc::c_int); 7] = [
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_LINGER),
];

/// Puts a new socket, which is not connected, over the number of a driver's TCP socket. It has the same options.
///
/// # Errors
///
/// There is no room for another socket.
pub(crate) fn put_new_socket(over: RawFd, peer: Peer<'_>) -> io::Result<()> {
    let family = match peer {
        Peer::Tcp(SocketAddr::V4(_)) => libc::AF_INET,
        Peer::Tcp(SocketAddr::V6(_)) => libc::AF_INET6,
        Peer::Unix(_) => libc::AF_UNIX,
    };
    // SAFETY: takes numbers; what comes back is ours alone.
    let new = unsafe {
        let fd = libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    if let Peer::Tcp(_) = peer {
        for (level, option) in OPTIONS {
            copy_option(over, new.as_raw_fd(), level, option)?;
        }
    }
    // SAFETY: takes numbers. `over` is open, and its owner, the driver, goes on owning what is under it.
    while unsafe { libc::dup3(new.as_raw_fd(), over, libc::O_CLOEXEC) } < 0 {
        match io::Error::last_os_error() {
            error if is_passing(&error) => {}
            error => return Err(error),
        }
    }
    Ok(())
}

/// The kernel asks for another try.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY))
}

/// Each option is a number, or two (`linger`).
fn copy_option(from: RawFd, to: RawFd, level: libc::c_int, option: libc::c_int) -> io::Result<()> {
    let mut value = [0 as libc::c_int; 2];
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is ours and `size` says how large; wrong descriptors are errors.
    let failed = unsafe {
        libc::getsockopt(from, level, option, value.as_mut_ptr().cast(), &raw mut size) != 0
            || libc::setsockopt(to, level, option, value.as_ptr().cast(), size) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Connects a socket of [`put_new_socket`], which blocks from then on. Signals do not end it.
///
/// # Errors
///
/// `TimedOut` at the deadline, or what the kernel says.
pub(crate) fn connect(fd: RawFd, peer: Peer<'_>, deadline: Deadline) -> io::Result<()> {
    let (address, size) = match peer {
        Peer::Tcp(address) => tcp_address(address),
        Peer::Unix(path) => unix_address(path)?,
    };
    loop {
        // SAFETY: `address` is ours, and at least `size` bytes long.
        if unsafe { libc::connect(fd, (&raw const address).cast(), size) } == 0 {
            break;
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR | libc::EALREADY)) => {
                wait_for(fd, libc::POLLOUT, deadline)?;
                outcome(fd)?;
                break;
            }
            error if error.raw_os_error() == Some(libc::EISCONN) => break,
            // A unix socket's backlog is full, and nothing tells when it is not.
            error if error.kind() == io::ErrorKind::WouldBlock => match deadline.remaining() {
                Duration::ZERO => return Err(io::ErrorKind::TimedOut.into()),
                left => thread::sleep(left.min(Duration::from_millis(1))),
            },
            error => return Err(error),
        }
    }
    set_blocking(fd)
}

/// How a connect ended that was waited for.
fn outcome(fd: RawFd) -> io::Result<()> {
    let mut error: libc::c_int = 0;
    let mut size = mem::size_of_val(&error) as libc::socklen_t;
    // SAFETY: `error` is ours and `size` says how large.
    match unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut error).cast(), &raw mut size) } {
        0 if error == 0 => Ok(()),
        0 => Err(io::Error::from_raw_os_error(error)),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_blocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: takes numbers.
    let failed = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        flags < 0 || libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn tcp_address(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: addresses of sockets are plain numbers.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let size = match address {
        SocketAddr::V4(v4) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: a storage has room for, and the alignment of, every kind of address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(address) };
            mem::size_of_val(&address)
        }
        SocketAddr::V6(v6) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: v6.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(address) };
            mem::size_of_val(&address)
        }
    };
    (storage, size as libc::socklen_t)
}

fn unix_address(path: &Path) -> io::Result<(libc::sockaddr_storage, libc::socklen_t)> {
    // SAFETY: as in `tcp_address`.
    let (mut storage, mut address): (libc::sockaddr_storage, libc::sockaddr_un) = unsafe { mem::zeroed() };
    let path = path.as_os_str().as_bytes();
    if path.is_empty() || path.contains(&0) || path.len() >= address.sun_path.len() {
        let why = "the path of a unix socket is too long, empty, or has a zero byte in it";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, &from) in address.sun_path.iter_mut().zip(path) {
        *to = from as libc::c_char;
    }
    // SAFETY: as in `tcp_address`.
    unsafe { (&raw mut storage).cast::<libc::sockaddr_un>().write(address) };
    Ok((storage, mem::size_of_val(&address) as libc::socklen_t))
}

/// Its close will tell the other end at once, and leave nothing that waits in the kernel. An error is of no interest.
pub(crate) fn reset_when_closed(socket: &impl AsFd) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = mem::size_of_val(&linger) as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `linger` is ours and `size` says how large.
    unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
}

/// Wakes who waits for it to be connected with.
pub(crate) fn shut_down(listener: &impl AsFd) {
    crate::fork::sys::shutdown(listener.as_fd().as_raw_fd());
}
