//! Where a cluster listens: bound once, in the master, and inherited by every worker on purpose.

use super::Error;
use super::legacy::Legacy;
use crate::fork::passed;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is asked for.
#[derive(Debug)]
pub(super) enum Bind {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// Those that the service manager passes: all, or those of a name.
    Passed(Option<String>),
    /// It listens already, and is the program's own.
    Own(Listener),
}

/// What the cluster listens on, and what the next program takes it for, if this one restarts by exec.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) listener: Listener,
    pub(super) kept: Kept,
}

#[derive(Debug)]
pub(super) enum Kept {
    /// Under the words in which it was asked for.
    As(String),
    /// Under its number, which the service manager's variables still say.
    Passed,
    /// The program makes it anew.
    No,
}

/// One of the sockets that a cluster listens on. Non-blocking: several threads of several processes wait for it, and only one of
/// them gets each client.
#[derive(Debug)]
#[non_exhaustive]
pub enum Listener {
    /// By address and port.
    Tcp(TcpListener),
    /// By path.
    Unix(UnixListener),
}

impl Bind {
    pub(super) fn bind(self, legacy: &mut Legacy) -> Result<Vec<Bound>, Error> {
        let on = self.to_string();
        let failed = |cause| Error::Listen { on: on.clone(), cause };
        if let Self::Passed(name) = self {
            return passed_by_systemd(name.as_deref()).map_err(failed);
        }
        if let Some(fd) = legacy.take_listener(&on) {
            let listener = Listener::of(fd).map_err(failed)?;
            return Ok(vec![Bound { listener, kept: Kept::As(on) }]);
        }
        let (listener, kept) = match self {
            Self::Tcp(address) => (TcpListener::bind(address).map_err(failed)?.into(), Kept::As(on.clone())),
            Self::Unix(path) => {
                remove_what_nobody_listens_at(&path).map_err(failed)?;
                (UnixListener::bind(path).map_err(failed)?.into(), Kept::As(on.clone()))
            }
            Self::Own(listener) => (listener, Kept::No),
            Self::Passed(_) => unreachable!("they were found above"),
        };
        listener.set_nonblocking().map_err(failed)?;
        Ok(vec![Bound { listener, kept }])
    }
}

/// Each once in the life of a program.
fn passed_by_systemd(name: Option<&str>) -> io::Result<Vec<Bound>> {
    let mut all = Vec::new();
    for (fd, passed_as) in sd_notify::listen_fds_with_names()? {
        if name.is_none_or(|name| name == passed_as)
            && let Some(fd) = passed::take(fd)?
        {
            all.push(Bound { listener: Listener::of(fd)?, kept: Kept::Passed });
        }
    }
    match name {
        Some(name) if all.is_empty() => {
            let none =
                format!("no socket of that name was passed (LISTEN_FDNAMES has none that is {name:?}, or it is taken)");
            Err(io::Error::new(io::ErrorKind::NotFound, none))
        }
        _ => Ok(all),
    }
}

impl Listener {
    /// Of a socket that somebody else has made.
    fn of(fd: OwnedFd) -> io::Result<Self> {
        if !getsockopt(&fd, sockopt::AcceptConn)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "what was passed does not listen"));
        }
        // Std asks the kernel for the address, and takes none of another family.
        let tcp = TcpListener::from(fd);
        let listener = match tcp.local_addr() {
            Ok(_) => Self::Tcp(tcp),
            Err(_) => Self::Unix(UnixListener::from(OwnedFd::from(tcp))),
        };
        listener.set_nonblocking()?;
        Ok(listener)
    }

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener) => listener.set_nonblocking(true),
        }
    }

    /// The next client, if one is there.
    pub(super) fn accept(&self) -> io::Result<Stream> {
        // On Linux it does not inherit that the listener does not block.
        Ok(match self {
            Self::Tcp(listener) => Stream::Tcp(listener.accept()?.0),
            Self::Unix(listener) => Stream::Unix(listener.accept()?.0),
        })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::Passed(None) => f.write_str("what systemd passes"),
            Self::Passed(Some(name)) => write!(f, "what systemd passes as {name:?}"),
            Self::Own(listener) => listener.fmt(f),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl fmt::Display for Listener {
    /// As a url, without a path for TCP.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "tcp://{address}"),
                Err(_) => f.write_str("tcp://?"),
            },
            Self::Unix(listener) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                write!(f, "unix://{}", path.unwrap_or(Path::new("?")).display())
            }
        }
    }
}

/// The socket of a server that has ended keeps the next one from listening there.
pub(super) fn remove_what_nobody_listens_at(path: &Path) -> io::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket lies there"));
    }
    match try_connect(path) {
        Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens there already")),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// Without waiting for somebody who listens and lets nobody in: none.
pub(super) fn try_connect(path: &Path) -> io::Result<Option<UnixStream>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let asks = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(asks.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(Some(asks.into())),
        Err(Errno::EAGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A client of the cluster's.
#[derive(Debug)]
#[non_exhaustive]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// How long a read may block. `None` is for ever.
    ///
    /// # Errors
    ///
    /// Zero is no time.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// How long a write may block. `None` is for ever.
    ///
    /// # Errors
    ///
    /// Zero is no time.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
            Self::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
        }
    }
}
