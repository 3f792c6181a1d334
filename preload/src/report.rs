//! Whether a report can be written. A child that cannot write its own says nothing, and nothing looks like nothing found.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// It is not made here: whoever finds something first makes it, perhaps as another user, who could not write into ours.
pub(crate) fn check(file: &Path) -> io::Result<()> {
    // `stderr`.
    let Some(folder) = file.parent().filter(|_| file.is_absolute()) else { return Ok(()) };
    // As the children do.
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
    match OpenOptions::new().append(true).custom_flags(flags).open(file) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => may_make_files(folder),
        // A pipe that nobody reads yet.
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(()),
        Err(error) => Err(error),
    }
}

fn may_make_files(folder: &Path) -> io::Result<()> {
    let folder = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: a C string.
    match unsafe { libc::faccessat(libc::AT_FDCWD, folder.as_ptr(), libc::W_OK | libc::X_OK, libc::AT_EACCESS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
