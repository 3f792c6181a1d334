//! Where a report goes: standard error, or a file. The child that says something is inside `fork`, with its signals blocked: so it waits
//! for nobody who does not read, and leaves no signal behind for what it could not write.

use super::calls::{self, File};
use crate::fork::handler::sys::{self, Quiet};
use std::ffi::CStr;
use std::os::fd::RawFd;

/// Standard error, or a file.
pub(super) struct Output {
    to: RawFd,
    way: Way,
    /// Opened here, and to be closed here.
    is_own: bool,
}

enum Way {
    /// A file on a disk, or what does not wait because it was opened so.
    Write,
    /// A socket: each send can be told not to wait.
    Send,
    /// Only if there is room. A pipe that others write into as well may be full after all by then, and a terminal may have room for half
    /// a line: so this is for those that cannot be opened once more.
    IfThereIsRoom,
}

impl Output {
    /// Standard error, if it is what it was, or a log; see [`Policy::report_to_stderr`](crate::fork::net::Policy::report_to_stderr).
    pub(super) fn standard_error(was: Option<File>) -> Option<Self> {
        let number = libc::STDERR_FILENO;
        let is = calls::file(number)?;
        if was != Some(is) && !(was.is_some() && is.kind == libc::S_IFREG && calls::is_log(number)) {
            return None;
        }
        let to = |to, way, is_own| Some(Self { to, way, is_own });
        match is.kind {
            libc::S_IFSOCK => to(number, Way::Send, false),
            libc::S_IFREG => to(number, Way::Write, false),
            libc::S_IFIFO | libc::S_IFCHR => {
                // To open another device once more may do something.
                let may_again = is.kind == libc::S_IFIFO || calls::is_terminal(number);
                match may_again.then(calls::open_standard_error).flatten() {
                    Some(again) => to(again, Way::Write, true),
                    None => to(number, Way::IfThereIsRoom, false),
                }
            }
            _ => None,
        }
    }

    /// The end of a file, or a named pipe that somebody reads, or a device. Not what a link points to: in a folder where everybody may
    /// write it is anybody's.
    pub(super) fn file(path: &CStr) -> Option<Self> {
        let output = Self { to: calls::open_to_append(path)?, way: Way::Write, is_own: true };
        let is = calls::file(output.to)?;
        matches!(is.kind, libc::S_IFREG | libc::S_IFIFO | libc::S_IFCHR).then_some(output)
    }

    /// False if not all of it was written: what does not fit is lost.
    pub(super) fn write(&self, text: &[u8]) -> bool {
        match self.way {
            Way::Write => calls::write(self.to, text),
            Way::Send => calls::send(self.to, text),
            Way::IfThereIsRoom => calls::has_room(self.to) && calls::write(self.to, text),
        }
    }
}

/// Not in a handler: a line on standard error, whatever that is, by the same means.
pub(in crate::fork) fn say(line: &[u8]) {
    let _quiet = Quiet::begin();
    if let Some(output) = Output::standard_error(calls::file(libc::STDERR_FILENO)) {
        output.write(line);
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_own {
            sys::close(self.to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The reader of a pipe may go between the look at it and the write.
    #[test]
    fn a_write_that_nobody_reads_leaves_no_signal_and_one_that_was_there_stays() {
        let mut ends = [-1; 2];
        // SAFETY: room for two descriptors.
        assert_eq!(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
        sys::close(ends[0]);
        let broken = Output { to: ends[1], way: Way::Write, is_own: true };
        let _quiet = Quiet::begin();
        let is_pending = || calls::pending_signals() & 1 << (libc::SIGPIPE - 1) != 0;
        assert!(!broken.write(b"x") && !is_pending());
        // SAFETY: takes numbers; the signal is blocked.
        unsafe { libc::syscall(libc::SYS_tgkill, sys::pid(), libc::gettid(), libc::SIGPIPE) };
        assert!(!broken.write(b"x") && is_pending());
    }
}
