//! What the kernel tells of sockets: what they are, whom they are connected with.

use super::{proc, unix_diag};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// A socket of some process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Socket {
    /// The number that it has in every process that holds it: `socket:[4711]` in `/proc`.
    pub inode: u64,
    /// `tcp`, `udp`, `unix stream` and the like.
    pub kind: String,
    /// Its own address. Empty if it has none.
    pub local: String,
    /// The address that it is connected with. Empty if there is none, or the other end has no name.
    pub peer: String,
    /// The other end, if it is a socket of this machine.
    pub peer_inode: Option<u64>,
    /// What can be done with it.
    pub state: SocketState,
}

/// Whether a socket leads anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SocketState {
    /// Whoever holds it can talk on it, or hear. With the kernel's name for the state: `ESTABLISHED`, `CLOSE_WAIT`.
    Connected(&'static str),
    /// It waits for connections. Prefork servers share these, and rightly so.
    Listening,
    /// It is not connected, or no longer.
    Unconnected,
    /// It is of a family that is not looked into.
    Unknown,
}

impl Socket {
    /// Whether bytes of two processes could mix on it.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, SocketState::Connected(_))
    }

    fn unnamed(inode: u64, kind: String, state: SocketState) -> Self {
        Self { inode, kind, local: String::new(), peer: String::new(), peer_inode: None, state }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if !self.local.is_empty() {
            write!(f, " {}", self.local)?;
        }
        match (&self.peer, self.peer_inode, self.is_connected()) {
            (peer, ..) if !peer.is_empty() => write!(f, " -> {peer}")?,
            (_, Some(inode), _) => write!(f, " -> socket {inode}")?,
            (.., true) => f.write_str(" -> an unnamed socket")?,
            _ => {}
        }
        match self.state {
            SocketState::Connected(state) => write!(f, " {state}")?,
            SocketState::Listening => f.write_str(" LISTEN")?,
            SocketState::Unconnected => f.write_str(" not connected")?,
            SocketState::Unknown => {}
        }
        write!(f, " (socket {})", self.inode)
    }
}

/// The sockets in the network namespaces of some processes, at one moment.
#[derive(Debug, Default)]
pub(super) struct Sockets(BTreeMap<u64, Socket>);

impl Sockets {
    /// A process may hold a socket of a namespace that it has left, so those of all are put together.
    pub(super) fn around(pids: impl IntoIterator<Item = u32>) -> Self {
        let mut sockets = Self::default();
        let mut seen = BTreeSet::<PathBuf>::new();
        for pid in pids {
            let process = proc::folder_of(pid);
            // Without leave to see which one it is, it is looked into anyway.
            let namespace = fs::read_link(format!("{process}/ns/net")).unwrap_or_else(|_| process.clone().into());
            if seen.insert(namespace) {
                sockets.add_namespace_of(&process);
            }
        }
        sockets
    }

    /// A socket that a process holds as this descriptor.
    pub(super) fn get(&self, inode: u64, pid: u32, fd: i32) -> Socket {
        let unlisted = || match protocol(Path::new(&format!("{}/fd/{fd}", proc::folder_of(pid)))).as_deref() {
            // The tables have all of these that are bound, connected or listening.
            Some(kind @ ("TCP" | "TCPv6" | "UDP" | "UDPv6" | "UNIX" | "UNIX-STREAM")) => {
                Socket::unnamed(inode, kind.to_lowercase(), SocketState::Unconnected)
            }
            kind => Socket::unnamed(inode, kind.unwrap_or("socket").to_lowercase(), SocketState::Unknown),
        };
        self.0.get(&inode).cloned().unwrap_or_else(unlisted)
    }

    fn add_namespace_of(&mut self, process: &str) {
        let read = |table: &str| fs::read_to_string(format!("{process}/net/{table}")).unwrap_or_default();
        let mut internet = Vec::new();
        for table in ["tcp", "tcp6", "udp", "udp6"] {
            internet.extend(read(table).lines().skip(1).filter_map(|line| internet_socket(table, line)));
        }
        let by_ends: BTreeMap<_, _> =
            internet.iter().map(|socket| ((&socket.kind, &socket.local, &socket.peer), socket.inode)).collect();
        let peers: Vec<_> = internet
            .iter()
            .map(|socket| by_ends.get(&(&socket.kind, &socket.peer, &socket.local)).copied())
            .map(|inode| inode.filter(|inode| *inode != 0))
            .collect();
        for (mut socket, peer) in internet.into_iter().zip(peers) {
            socket.peer_inode = peer;
            self.0.insert(socket.inode, socket);
        }
        let mut unix: BTreeMap<u64, Socket> =
            read("unix").lines().skip(1).filter_map(unix_socket).map(|socket| (socket.inode, socket)).collect();
        // Without them it is known what is connected, and not with whom.
        for (inode, end) in unix_diag::ends(process).unwrap_or_default() {
            let name = end.peer.and_then(|peer| unix.get(&peer)).map(|peer| peer.local.clone());
            let Some(socket) = unix.get_mut(&inode) else { continue };
            socket.peer_inode = end.peer;
            socket.peer = name.unwrap_or_default();
            if socket.is_connected() && end.is_shut_down {
                socket.state = SocketState::Unconnected;
            }
        }
        self.0.append(&mut unix);
    }
}

/// `  0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 ...`
fn internet_socket(table: &str, line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, peer) = (address(fields.next()?)?, address(fields.next()?)?);
    let state = match u8::from_str_radix(fields.next()?, 16).ok()? {
        // What UDP calls established is an address to send to.
        0x1 => SocketState::Connected("ESTABLISHED"),
        0x2 => SocketState::Connected("SYN_SENT"),
        0x3 | 0xc => SocketState::Connected("SYN_RECV"),
        0x4 => SocketState::Connected("FIN_WAIT1"),
        0x5 => SocketState::Connected("FIN_WAIT2"),
        0x8 => SocketState::Connected("CLOSE_WAIT"),
        0x9 => SocketState::Connected("LAST_ACK"),
        0xb => SocketState::Connected("CLOSING"),
        0xa => SocketState::Listening,
        _ => SocketState::Unconnected,
    };
    // Of tx:rx, tr:tm->when, retransmits, uid and timeout nothing is wanted.
    let inode: u64 = fields.nth(5)?.parse().ok()?;
    let peer = if peer.port() == 0 { String::new() } else { peer.to_string() };
    // Those that no process holds have no number.
    let kind = table.trim_end_matches('6').to_owned();
    (inode != 0).then(|| Socket { inode, kind, local: local.to_string(), peer, peer_inode: None, state })
}

/// What is on its way to a server.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    /// Those who have written something that it has not received.
    pub(super) senders: BTreeSet<SocketAddr>,
    /// Whether a connection to it is half made.
    pub(super) is_knocking: bool,
}

/// To a server of this thread's network namespace.
pub(super) fn under_way_to(server: SocketAddr) -> UnderWay {
    let read = |table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
    let mut all = UnderWay::default();
    for line in ["tcp", "tcp6"].map(read).iter().flat_map(|table| table.lines().skip(1)) {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, local, peer, state, queues, ..] = fields[..] else { continue };
        let (Some(local), Some(peer)) = (address(local), address(peer)) else { continue };
        // It stays in the queue of its sender until it is acknowledged.
        if peer == server && !queues.starts_with("00000000:") {
            all.senders.insert(local);
        }
        all.is_knocking |= local == server && matches!(state, "03" | "0C");
    }
    all
}

/// The address is shown as the numbers that its bytes make on this machine, four at a time.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words = ip.as_bytes().chunks(8).map(|word| u32::from_str_radix(str::from_utf8(word).ok()?, 16).ok());
    let bytes: Vec<u8> = words.collect::<Option<Vec<_>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        // One of IPv4 in IPv6's clothes is shown as what it is, and found from its other end.
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// `0000000000000000: 00000003 00000000 00000000 0001 03 4711 /run/postgresql/.s.PGSQL.5432`
fn unix_socket(line: &str) -> Option<Socket> {
    const ACCEPTS: u32 = 0x1_0000;
    let mut fields = line.split_whitespace();
    let flags = u32::from_str_radix(fields.nth(3)?, 16).ok()?;
    let kind = match fields.next()? {
        "0001" => "unix stream",
        "0002" => "unix datagram",
        "0005" => "unix seqpacket",
        _ => "unix",
    };
    let state = match fields.next()? {
        _ if flags & ACCEPTS != 0 => SocketState::Listening,
        "02" => SocketState::Connected("CONNECTING"),
        "03" => SocketState::Connected("ESTABLISHED"),
        _ => SocketState::Unconnected,
    };
    let inode = fields.next()?.parse().ok()?;
    // A path may have spaces.
    let local = line.find(" /").or_else(|| line.find(" @")).map_or("", |at| &line[at + 1..]).to_owned();
    Some(Socket { local, ..Socket::unnamed(inode, kind.into(), state) })
}

/// The protocol of a socket that is in none of the tables: `NETLINK`, `MPTCP`, `AF_VSOCK`.
fn protocol(link: &Path) -> Option<String> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(link.as_os_str().as_bytes()).ok()?;
    let mut name = [0_u8; 64];
    // SAFETY: C strings, and the length of a buffer of ours.
    let n = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let name = name.get(..usize::try_from(n).ok()?)?;
    Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

/// The number in `socket:[4711]`.
pub(super) fn inode_of(name: &str) -> Option<u64> {
    name.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// A failure to look into a process that is not its end.
pub(super) fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_the_reader_has_no_room_for_is_on_its_way() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        let mut server = listener.accept().unwrap().0;
        let (here, senders) = (client.local_addr().unwrap(), || under_way_to(address).senders);
        assert!(senders().is_empty());
        client.set_nonblocking(true).unwrap();
        let mut written = 0;
        while let Ok(n) = client.write(&[0; 65536]) {
            written += n;
        }
        assert_eq!(senders(), [here].into());
        server.read_exact(&mut vec![0; written]).unwrap();
        crate::testing::wait_until("the last of it is acknowledged", || senders().is_empty());
    }
}
