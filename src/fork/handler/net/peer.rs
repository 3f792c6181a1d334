//! Where a connection leads.

use super::calls::{self, Address};
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::RawFd;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::fork) enum Peer {
    Tcp(SocketAddr),
    /// A TCP socket of which another thread of the parent is making a connection, or whose connection is over.
    NotConnected,
    Udp(SocketAddr),
    Unix(Path),
}

/// Of a unix socket. An abstract name begins with `@` here, and with a zero byte in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::fork) struct Path {
    bytes: [u8; Self::ROOM],
    length: usize,
}

impl Path {
    pub(super) const ROOM: usize = 108;

    pub(super) fn new(bytes: &[u8]) -> Self {
        let mut path = Self { bytes: [0; Self::ROOM], length: bytes.len().min(Self::ROOM) };
        for (to, from) in path.bytes.iter_mut().zip(bytes) {
            *to = *from;
        }
        path
    }

    pub(in crate::fork) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Peer {
    /// Of a TCP socket that this side connects.
    pub(super) fn tcp(fd: RawFd) -> Self {
        calls::peer_address(fd).as_ref().and_then(ip).map_or(Self::NotConnected, Self::Tcp)
    }

    /// Of another socket, if it is one of those that a net can take: a UDP socket with a peer, a unix socket that is a stream, or as
    /// good as one, with a peer that has a name. (Who accepts such a connection, and both ends of a pair, have a peer without.) And TCP
    /// of which the kernel may say nothing more.
    pub(super) fn other(fd: RawFd) -> Option<Self> {
        let address = calls::peer_address(fd)?;
        match (libc::c_int::from(address.0.ss_family), calls::kind(fd)?) {
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM) => ip(&address).map(Self::Tcp),
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_DGRAM) => ip(&address).map(Self::Udp),
            (libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_SEQPACKET) => unix(&address).map(Self::Unix),
            _ => None,
        }
    }
}

fn ip((address, _): &Address) -> Option<SocketAddr> {
    match libc::c_int::from(address.ss_family) {
        libc::AF_INET => {
            // SAFETY: a storage has room for, and the alignment of, every kind of address, and its family says which it is.
            let v4 = unsafe { &*(&raw const *address).cast::<libc::sockaddr_in>() };
            let host = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(host, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*(&raw const *address).cast::<libc::sockaddr_in6>() };
            let host = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(host, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// The name of a unix socket, if it has one.
pub(super) fn unix((address, size): &Address) -> Option<Path> {
    const NAME: usize = mem::offset_of!(libc::sockaddr_un, sun_path);
    let length = size.checked_sub(NAME)?.min(Path::ROOM);
    // SAFETY: a storage is larger than that, and all of it was zeroed before the kernel wrote into it.
    let name = unsafe { std::slice::from_raw_parts((&raw const *address).cast::<u8>().add(NAME), length) };
    match *name.first()? {
        0 if length > 1 => {
            let mut path = Path::new(name);
            path.bytes[0] = b'@';
            Some(path)
        }
        0 => None,
        _ => Some(Path::new(name.split(|&byte| byte == 0).next().unwrap_or_default())),
    }
}
