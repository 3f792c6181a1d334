//! Descriptors that go from one table to another over a socket (`SCM_RIGHTS`), each with a byte.

use std::io;
use std::mem;
use std::os::fd::RawFd;
use std::ptr;

/// Room for the one descriptor of a message. Aligned as the kernel's header is.
#[repr(C)]
union Room {
    header: libc::cmsghdr,
    bytes: [u8; SPACE],
}

const ONE: u32 = mem::size_of::<RawFd>() as u32;
// SAFETY: arithmetic.
const SPACE: usize = unsafe { libc::CMSG_SPACE(ONE) } as usize;

/// # Errors
///
/// The kernel's: too many descriptors of this user are on their way, or one is of a kind that cannot be sent.
pub(super) fn send(socket: RawFd, fd: RawFd) -> io::Result<()> {
    with_message(|message| {
        // SAFETY: the message has room for one header and one descriptor, as `with_message` says.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(ONE) as _;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast::<RawFd>(), fd);
            libc::sendmsg(socket, message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        }
    })
    .map(drop)
}

/// The next that was sent, under whatever number, close-on-exec. Does not wait.
///
/// # Errors
///
/// There is no room for it.
pub(super) fn receive(socket: RawFd) -> io::Result<RawFd> {
    let mut received = None;
    with_message(|message| {
        // SAFETY: the message is filled by the kernel, within the room that it has; what is read is what the header says is there.
        unsafe {
            let length = libc::recvmsg(socket, message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT);
            let header = libc::CMSG_FIRSTHDR(message);
            if length >= 0 && !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
                received = Some(ptr::read_unaligned(libc::CMSG_DATA(header).cast::<RawFd>()));
            }
            length
        }
    })?;
    received.ok_or_else(|| io::Error::from_raw_os_error(libc::EMFILE))
}

/// A message of one byte, with room for one descriptor.
fn with_message(call: impl FnOnce(*mut libc::msghdr) -> libc::ssize_t) -> io::Result<usize> {
    let mut byte = 0_u8;
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut room = Room { bytes: [0; SPACE] };
    // SAFETY: a message is numbers and pointers, and null ones are for what is not there.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut room).cast();
    message.msg_controllen = SPACE as _;
    usize::try_from(call(&raw mut message)).map_err(|_| io::Error::last_os_error())
}

/// Puts a descriptor over another number.
///
/// # Errors
///
/// A limit has been lowered below that number.
pub(super) fn put_over(fd: RawFd, over: RawFd, closes_on_exec: bool) -> io::Result<()> {
    let flags = if closes_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: takes numbers and no memory.
    if unsafe { libc::dup3(fd, over, flags) } == over { Ok(()) } else { Err(io::Error::last_os_error()) }
}
