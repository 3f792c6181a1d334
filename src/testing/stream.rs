//! Streams over tcp and over unix sockets, as one.

use super::proc::inode;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering::*};
use std::time::Duration;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Unix(path)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A connection, over tcp or a unix socket.
#[derive(Debug)]
#[non_exhaustive]
pub enum Stream {
    /// Over tcp, without delay.
    Tcp(TcpStream),
    /// Over a unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Of the socket.
    pub fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(address) => Self::tcp(TcpStream::connect(address)?),
            Address::Unix(path) => Ok(Self::Unix(UnixStream::connect(path)?)),
        }
    }

    fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// How long a read may wait.
    ///
    /// # Errors
    ///
    /// Of the socket.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_read_timeout(timeout),
            Self::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// How long a write may wait.
    ///
    /// # Errors
    ///
    /// Of the socket.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_write_timeout(timeout),
            Self::Unix(stream) => stream.set_write_timeout(timeout),
        }
    }

    pub(super) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nonblocking(true),
            Self::Unix(stream) => stream.set_nonblocking(true),
        }
    }

    /// The other end, over tcp.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => {
                stream.peer_addr().ok().map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()))
            }
            Self::Unix(_) => None,
        }
    }

    /// Tells the other side now that all has been received, and not some time later.
    pub(super) fn acknowledge(&self) {
        if let Self::Tcp(stream) = self {
            let yes: libc::c_int = 1;
            // SAFETY: the pointer and the size are those of a number of ours. If it fails, it comes later.
            unsafe {
                let size = size_of_val(&yes) as libc::socklen_t;
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_QUICKACK,
                    (&raw const yes).cast(),
                    size,
                );
            }
        }
    }

    /// For all processes that hold it.
    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(bytes),
            Self::Unix(stream) => stream.read(bytes),
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
        Ok(())
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

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// A server's socket at an address of its own: a free loopback port, or a path in the folder for temporary files.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(super) fn tcp() -> io::Result<(Self, Address)> {
        Self::tcp_at((Ipv4Addr::LOCALHOST, 0).into())
    }

    pub(super) fn tcp_at(address: SocketAddr) -> io::Result<(Self, Address)> {
        super::environment::obey();
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        own(&listener);
        Ok((Self::Tcp(listener), address.into()))
    }

    pub(super) fn unix() -> io::Result<(Self, Address)> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        super::environment::obey();
        let name = format!("forksafe-{}-{}.sock", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = std::env::temp_dir().join(name);
        // Left by one that was killed, and had this pid.
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        own(&listener);
        Ok((Self::Unix(listener), path.into()))
    }

    pub(super) fn accept(&self) -> io::Result<Stream> {
        let stream = match self {
            Self::Tcp(listener) => Stream::tcp(listener.accept()?.0)?,
            Self::Unix(listener) => Stream::Unix(listener.accept()?.0),
        };
        own(&stream);
        Ok(stream)
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Tcp(listener) => listener.as_raw_fd(),
            Self::Unix(listener) => listener.as_raw_fd(),
        }
    }
}

/// Notes that a socket belongs to a server of the kit: it is in the process of the test, children inherit it, and nobody
/// but the server's thread ever uses it.
pub(super) fn own(socket: &impl AsFd) {
    OWN.add(inode(socket.as_fd().as_raw_fd()));
}

/// Whether a socket belongs to a server of the kit, in this process or in one that it was forked from.
pub(super) fn is_own(inode: u64) -> bool {
    OWN.has(inode)
}

static OWN: Own = Own(AtomicPtr::new(ptr::null_mut()));

/// A list that only grows, and that a child can look through whatever its parent's threads were at.
struct Own(AtomicPtr<Node>);

struct Node {
    inode: u64,
    next: *const Node,
}

impl Own {
    fn add(&self, inode: u64) {
        let node = Box::into_raw(Box::new(Node { inode, next: ptr::null() }));
        let mut first = self.0.load(Acquire);
        loop {
            // SAFETY: made above, and nobody else's before the exchange has succeeded.
            unsafe { (*node).next = first };
            match self.0.compare_exchange(first, node, AcqRel, Acquire) {
                Ok(_) => return,
                Err(other) => first = other,
            }
        }
    }

    fn has(&self, inode: u64) -> bool {
        let mut next = self.0.load(Acquire).cast_const();
        // SAFETY: nodes are published whole, never changed and never freed.
        while let Some(node) = unsafe { next.as_ref() } {
            if node.inode == inode {
                return true;
            }
            next = node.next;
        }
        false
    }
}
