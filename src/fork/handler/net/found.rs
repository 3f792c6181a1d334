//! What the net found in this process: a table of fixed size, written by the handler and read later.
//!
//! It is written before the generation is published, and read by those who have seen that; so the entries need no order of their own.

use super::peer::{Path, Peer};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::fork) struct Found {
    pub(in crate::fork) fd: RawFd,
    pub(in crate::fork) peer: Peer,
    pub(in crate::fork) disowned: bool,
}

/// Of more than these only the number is known.
const ROOM: usize = 128;

/// The first word has the number, the kind, the length of the name, and whether it is disowned. The others are the name.
type Entry = [AtomicU64; WORDS];
const WORDS: usize = 1 + Path::ROOM.div_ceil(8);

static TABLE: [Entry; ROOM] = [const { [const { AtomicU64::new(0) }; WORDS] }; ROOM];
/// Of this process: it begins anew in each.
static TOTAL: AtomicU64 = AtomicU64::new(0);
/// Who was last known in this line before this process.
static PARENT: AtomicU32 = AtomicU32::new(0);

const TCP: u8 = 1;
const NOT_CONNECTED: u8 = 2;
const UDP: u8 = 3;
const UNIX: u8 = 4;

pub(super) fn forget(parent: u32) {
    TOTAL.store(0, Relaxed);
    PARENT.store(parent, Relaxed);
}

pub(super) fn note(found: &Found) {
    let place = TOTAL.fetch_add(1, Relaxed);
    if let Some(entry) = usize::try_from(place).ok().and_then(|place| TABLE.get(place)) {
        write(entry, found);
    }
}

pub(in crate::fork) fn total() -> u64 {
    TOTAL.load(Relaxed)
}

pub(in crate::fork) fn parent() -> u32 {
    PARENT.load(Relaxed)
}

/// The first of them.
pub(in crate::fork) fn all() -> impl Iterator<Item = Found> {
    let there = usize::try_from(total()).unwrap_or(ROOM).min(ROOM);
    TABLE.iter().take(there).filter_map(read)
}

fn write(entry: &Entry, found: &Found) {
    let (kind, name) = match found.peer {
        Peer::Tcp(address) => (TCP, name_of(address)),
        Peer::NotConnected => (NOT_CONNECTED, Path::new(&[])),
        Peer::Udp(address) => (UDP, name_of(address)),
        Peer::Unix(path) => (UNIX, path),
    };
    let [number @ .., _, _, _, _] = i64::from(found.fd).to_le_bytes();
    let [a, b, c, d] = number;
    let length = u8::try_from(name.bytes().len()).unwrap_or(0);
    let first = u64::from_le_bytes([a, b, c, d, kind, length, u8::from(found.disowned), 0]);
    let [to_first, to_name @ ..] = entry;
    to_first.store(first, Relaxed);
    for (to, from) in to_name.iter().zip(name.bytes().chunks(8)) {
        let mut word = [0; 8];
        word.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        to.store(u64::from_le_bytes(word), Relaxed);
    }
}

fn read(entry: &Entry) -> Option<Found> {
    let [first, name @ ..] = entry;
    let [a, b, c, d, kind, length, disowned, _] = first.load(Relaxed).to_le_bytes();
    let mut bytes = [0; (WORDS - 1) * 8];
    for (to, from) in bytes.chunks_mut(8).zip(name) {
        to.iter_mut().zip(from.load(Relaxed).to_le_bytes()).for_each(|(to, from)| *to = from);
    }
    let name = bytes.get(..usize::from(length))?;
    let peer = match kind {
        TCP => Peer::Tcp(address_of(name)?),
        NOT_CONNECTED => Peer::NotConnected,
        UDP => Peer::Udp(address_of(name)?),
        UNIX => Peer::Unix(Path::new(name)),
        _ => return None,
    };
    Some(Found { fd: RawFd::from_le_bytes([a, b, c, d]), peer, disowned: disowned != 0 })
}

/// Address, port, scope, and whether it is of IPv6.
fn name_of(address: SocketAddr) -> Path {
    let (ip, scope, is_v6) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0, 0),
        SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id(), 1),
    };
    let mut name = [0; 23];
    let parts = ip.octets().into_iter().chain(address.port().to_be_bytes()).chain(scope.to_be_bytes()).chain([is_v6]);
    name.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    Path::new(&name)
}

fn address_of(name: &[u8]) -> Option<SocketAddr> {
    let (ip, rest) = name.split_first_chunk::<16>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let (scope, is_v6) = rest.split_first_chunk::<4>()?;
    let (ip, port) = (Ipv6Addr::from(*ip), u16::from_be_bytes(*port));
    match is_v6 {
        [0] => Some(SocketAddr::new(IpAddr::V4(ip.to_ipv4_mapped()?), port)),
        _ => Some(SocketAddrV6::new(ip, port, 0, u32::from_be_bytes(*scope)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        let peers = [
            Peer::Tcp("10.0.0.5:6379".parse().unwrap()),
            Peer::Udp("[fe80::1%7]:53".parse().unwrap()),
            Peer::Tcp("[::ffff:10.0.0.5]:1".parse().unwrap()),
            Peer::NotConnected,
            Peer::Unix(Path::new(&[b'x'; Path::ROOM])),
            Peer::Unix(Path::new(b"@abstract")),
        ];
        let entry = [const { AtomicU64::new(0) }; WORDS];
        for (fd, peer) in [3, 70_000, RawFd::MAX].into_iter().cycle().zip(peers) {
            let found = Found { fd, peer, disowned: fd == 3 };
            write(&entry, &found);
            assert_eq!(read(&entry), Some(found));
        }
    }
}
