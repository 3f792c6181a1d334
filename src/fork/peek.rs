//! A look at what lies unread in a socket, without waiting and without taking it.

use std::io;
use std::os::fd::RawFd;

/// How many bytes lie unread, up to the length of `into`, which they are copied to. `None` when there is nothing, and for a descriptor
/// that is no socket; zero when the peer has ended the stream.
///
/// # Errors
///
/// The socket's: the connection was reset, say.
pub(crate) fn unread(socket: RawFd, into: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the pointer and the length are those of a slice that is ours; a wrong number is an error.
        let there = unsafe { libc::recv(socket, into.as_mut_ptr().cast(), into.len(), flags) };
        if let Ok(there) = usize::try_from(there) {
            return Ok(Some(there));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::ENOTSOCK) => return Ok(None),
            _ => return Err(error),
        }
    }
}
