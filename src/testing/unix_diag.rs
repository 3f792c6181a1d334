//! The other ends of unix sockets. `/proc` does not tell them; the kernel's `sock_diag` does, as `ss` asks it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// From linux/sock_diag.h and linux/unix_diag.h, which libc does not have.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_SHUTDOWN: u16 = 6;

/// What is connected with a socket.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    pub(super) peer: Option<u64>,
    /// In both directions, by either side.
    pub(super) is_shut_down: bool,
}

#[repr(C)]
struct Request {
    header: libc::nlmsghdr,
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

/// The unix sockets in the network namespace of a process, by inode.
///
/// # Errors
///
/// When the kernel does not tell, or its namespace may not be entered.
pub(super) fn ends(pid: u32) -> io::Result<BTreeMap<u64, End>> {
    let kernel = netlink_in_namespace_of(pid)?;
    // SAFETY: all zeros is a valid header.
    let mut header: libc::nlmsghdr = unsafe { mem::zeroed() };
    header.nlmsg_len = mem::size_of::<Request>() as u32;
    header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
    header.nlmsg_flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let (family, states) = (libc::AF_UNIX as u8, u32::MAX);
    let request =
        Request { header, family, protocol: 0, pad: 0, states, inode: 0, show: UDIAG_SHOW_PEER, cookie: [0; 2] };
    // SAFETY: a struct of plain numbers without padding, and its size.
    let sent = unsafe {
        libc::send(kernel.as_raw_fd(), (&raw const request).cast(), mem::size_of_val(&request), libc::MSG_NOSIGNAL)
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut ends = BTreeMap::new();
    let mut answer = vec![0_u8; 1 << 16];
    loop {
        // SAFETY: the pointer and the length are those of a vector of ours.
        let n = unsafe { libc::recv(kernel.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        if n == 0 || read_messages(&answer[..n], &mut ends)? {
            return Ok(ends);
        }
    }
}

/// True after the last one.
fn read_messages(mut bytes: &[u8], ends: &mut BTreeMap<u64, End>) -> io::Result<bool> {
    const HEADER: usize = mem::size_of::<libc::nlmsghdr>();
    while bytes.len() >= HEADER {
        let length = number(bytes, 0).clamp(HEADER as u32, bytes.len() as u32) as usize;
        let (kind, message) = (half(bytes, 4), &bytes[HEADER..length]);
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => return Err(io::Error::from_raw_os_error((number(message, 0) as i32).wrapping_neg())),
            _ if message.len() >= 16 => {
                // Family, type, state and a byte of nothing; the inode; a cookie of two words; attributes.
                ends.insert(number(message, 4).into(), end(&message[16..]));
            }
            _ => {}
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(false)
}

fn end(mut attributes: &[u8]) -> End {
    let mut end = End::default();
    while attributes.len() >= 4 {
        let length = usize::from(half(attributes, 0)).clamp(4, attributes.len());
        let (kind, value) = (half(attributes, 2), &attributes[4..length]);
        match kind {
            UNIX_DIAG_PEER if value.len() >= 4 => end.peer = Some(number(value, 0).into()).filter(|inode| *inode != 0),
            UNIX_DIAG_SHUTDOWN => end.is_shut_down = value.first() == Some(&3),
            _ => {}
        }
        attributes = &attributes[length.next_multiple_of(4).min(attributes.len())..];
    }
    end
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

/// A socket stays in the namespace that it was made in, so this thread need only be there for a moment.
fn netlink_in_namespace_of(pid: u32) -> io::Result<OwnedFd> {
    let (here, there) = (File::open("/proc/thread-self/ns/net")?, File::open(format!("/proc/{pid}/ns/net"))?);
    if is_same(&here, &there)? {
        return netlink();
    }
    // SAFETY: takes numbers.
    let enter = |namespace: &File| match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    enter(&there)?;
    let kernel = netlink();
    enter(&here).expect("the way back to this thread's own network namespace");
    kernel
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn netlink() -> io::Result<OwnedFd> {
    // SAFETY: takes numbers; the descriptor is new and ours.
    unsafe {
        let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}
