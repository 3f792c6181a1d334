//! What the net found in this process.

use crate::fork::generation;
use crate::fork::handler::net::{found, peer};
use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// What this process has inherited that its [`Policy`](super::Policy) names. Of [`inherited`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Inheritance {
    /// The first 128 of them, by their numbers.
    pub connections: Vec<Connection>,
    /// How many there are in all.
    pub total: u64,
    /// The process that they were inherited from, and that goes on using them. 0 where nothing was inherited.
    pub parent: u32,
}

/// One connection that was inherited.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Connection {
    /// Where it leads.
    pub peer: Peer,
    /// Its number, in the parent and here.
    pub descriptor: RawFd,
    /// Whether it is dead here. It is not in a [mode](super::Mode) that only tells.
    pub disowned: bool,
}

/// Where a connection leads.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Peer {
    /// To a TCP server.
    Tcp(SocketAddr),
    /// A TCP socket that was about to be connected, or being connected, or whose connection is over.
    NotConnected,
    /// To a UDP server.
    Udp(SocketAddr),
    /// To a unix socket. An abstract name begins with `@`.
    Unix(PathBuf),
}

/// What this process has inherited that its [`Policy`](super::Policy) names. Empty where there is no policy, and in the process that
/// has set it.
///
/// ```
/// use forksafe::fork::{self, net::{Peer, Policy}};
/// use std::net::{TcpListener, TcpStream};
///
/// Policy::tcp().set()?;
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let _client = TcpStream::connect(server.local_addr()?)?;
/// let leads_to = Peer::Tcp(server.local_addr()?);
/// // SAFETY: the child has one thread, as its parent has.
/// if unsafe { libc::fork() } == 0 {
///     let there = fork::inherited();
///     let is_right = there.total == 1 && there.connections[0].peer == leads_to && there.connections[0].disowned;
///     unsafe { libc::_exit(i32::from(!is_right)) }
/// }
/// # let mut status = 0;
/// # unsafe { libc::wait(&mut status) };
/// # assert_eq!(status, 0);
/// assert_eq!(fork::inherited().total, 0);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub fn inherited() -> Inheritance {
    generation(); // In a child that was made without handlers, this is when they are found.
    let connections: Vec<_> = found::all().map(Connection::from).collect();
    let parent = if connections.is_empty() { 0 } else { found::parent() };
    Inheritance { connections, total: found::total(), parent }
}

impl From<found::Found> for Connection {
    fn from(found: found::Found) -> Self {
        let peer = match found.peer {
            peer::Peer::Tcp(address) => Peer::Tcp(address),
            peer::Peer::NotConnected => Peer::NotConnected,
            peer::Peer::Udp(address) => Peer::Udp(address),
            peer::Peer::Unix(path) => Peer::Unix(PathBuf::from(OsStr::from_bytes(path.bytes()))),
        };
        Self { peer, descriptor: found.fd, disowned: found.disowned }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp {address}"),
            Self::NotConnected => f.write_str("tcp, not connected"),
            Self::Udp(address) => write!(f, "udp {address}"),
            Self::Unix(path) => write!(f, "unix {}", path.display()),
        }
    }
}
