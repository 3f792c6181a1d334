//! A fork of one's own, for a supervisor.

use std::io;

/// Forks. `None` in the child, which is as restricted as any child of a process with threads, if this one has more than one.
pub(crate) fn make_child() -> io::Result<Option<u32>> {
    // SAFETY: by itself it harms nothing; what a child of a process with threads may do is for the caller to see to.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Some(child as u32)),
    }
}
