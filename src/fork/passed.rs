//! Descriptors that this process was given by the program before it: over exec, by number.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

/// What has been taken: each number once.
static TAKEN: Mutex<Vec<RawFd>> = Mutex::new(Vec::new());

/// Takes a descriptor that the environment of this process names for it, for good. A program that this one starts does not get it.
/// None if it has been taken before.
///
/// Only if whoever wrote the environment meant this process: nobody else here has it then.
///
/// # Errors
///
/// It is not open.
pub(crate) fn take(fd: RawFd) -> io::Result<Option<OwnedFd>> {
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&fd) {
        return Ok(None);
    }
    set_flags(fd, libc::FD_CLOEXEC)?;
    taken.push(fd);
    // SAFETY: it is open; nobody has taken it from here, and by the contract of this function nobody else in this process owns it.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Whether the next program gets it, if this one execs. Of what is not open there is nothing to be kept.
pub(crate) fn keep_over_exec(fd: RawFd, keep: bool) {
    let _ = set_flags(fd, if keep { 0 } else { libc::FD_CLOEXEC });
}

fn set_flags(fd: RawFd, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: a number that is not open is an error.
    match unsafe { libc::fcntl(fd, libc::F_SETFD, flags) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
