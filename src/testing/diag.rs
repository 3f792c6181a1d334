//! Asking the kernel of sockets by `sock_diag`, as `ss` does.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// From linux/sock_diag.h, which libc does not have.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const HEADER: usize = mem::size_of::<libc::nlmsghdr>();

/// Where it is asked: of the sockets of one network namespace.
#[derive(Debug)]
pub(super) struct Diag(OwnedFd);

impl Diag {
    /// In this thread's namespace.
    ///
    /// # Errors
    ///
    /// When the kernel was built without it.
    pub(super) fn here() -> io::Result<Self> {
        // SAFETY: takes numbers; the descriptor is new and ours.
        unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(OwnedFd::from_raw_fd(fd))) }
        }
    }

    /// In that of a process, whose files are in this folder of `/proc`. A socket stays in the namespace that it was made
    /// in, so this thread need only be there for a moment.
    ///
    /// # Errors
    ///
    /// When it may not be entered; and as [`here`](Self::here).
    pub(super) fn of(process: &str) -> io::Result<Self> {
        let (here, there) = (File::open("/proc/thread-self/ns/net")?, File::open(format!("{process}/ns/net"))?);
        if is_same(&here, &there)? {
            return Self::here();
        }
        // SAFETY: takes numbers.
        let enter = |namespace: &File| match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        enter(&there)?;
        let diag = Self::here();
        enter(&here).expect("the way back to this thread's own network namespace");
        diag
    }

    /// Sends a request, and shows each answer without its header. `flags`: `NLM_F_DUMP` for all there is; otherwise there
    /// is one answer.
    ///
    /// # Errors
    ///
    /// What the kernel answers.
    pub(super) fn ask(&self, request: &[u8], flags: i32, mut hear: impl FnMut(&[u8])) -> io::Result<()> {
        // SAFETY: all zeros is a valid header.
        let mut header: libc::nlmsghdr = unsafe { mem::zeroed() };
        header.nlmsg_len = (HEADER + request.len()) as u32;
        header.nlmsg_type = SOCK_DIAG_BY_FAMILY;
        header.nlmsg_flags = (libc::NLM_F_REQUEST | flags) as u16;
        let header: *const libc::nlmsghdr = &raw const header;
        let part = |base: *const libc::c_void, iov_len| libc::iovec { iov_base: base.cast_mut(), iov_len };
        let parts = [part(header.cast(), HEADER), part(request.as_ptr().cast(), request.len())];
        // SAFETY: the parts are a header of ours without padding, and a slice; both are only read.
        if unsafe { libc::writev(self.0.as_raw_fd(), parts.as_ptr(), parts.len() as i32) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut answer = vec![0_u8; 1 << 16];
        loop {
            // SAFETY: the pointer and the length are those of a vector of ours.
            let n = unsafe { libc::recv(self.0.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
            let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
            let is_whole = read_messages(&answer[..n], &mut hear)?;
            if n == 0 || is_whole || flags & libc::NLM_F_DUMP == 0 {
                return Ok(());
            }
        }
    }
}

impl AsFd for Diag {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// True after the last one.
fn read_messages(mut bytes: &[u8], hear: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    while bytes.len() >= HEADER {
        let length = number(bytes, 0).clamp(HEADER as u32, bytes.len() as u32) as usize;
        let (kind, message) = (half(bytes, 4), &bytes[HEADER..length]);
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => return Err(io::Error::from_raw_os_error((number(message, 0) as i32).wrapping_neg())),
            _ => hear(message),
        }
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(false)
}

/// 0 where there is none.
pub(super) fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

pub(super) fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn is_same(one: &File, other: &File) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}
