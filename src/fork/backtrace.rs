//! Where a thread is that has got stuck, told by itself: it is interrupted, and writes its backtrace.
//!
//! That is not safe in a signal handler: whoever was interrupted in the middle of an allocation may wait for himself for ever. So it is
//! for processes that are about to be killed.

use std::backtrace::Backtrace;
use std::io;
use std::mem;
use std::ptr;
use std::thread;

/// Has threads of this process that get this signal write their backtrace to standard error, and go on.
///
/// # Errors
///
/// It cannot be caught.
pub(crate) fn answer(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: all zero is an action without flags and mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    let handler: extern "C" fn(libc::c_int) = write_backtrace;
    action.sa_sigaction = handler as libc::sighandler_t;
    // On the thread's own stack: the one that Rust keeps for overflows is too small to look names up.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the action is whole, and its handler lives as long as the program.
    match unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends it to one thread.
///
/// # Errors
///
/// It is gone.
pub(crate) fn ask(process: u32, thread: u64, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: takes numbers, and checks that the thread is the process's.
    match unsafe { libc::syscall(libc::SYS_tgkill, process as libc::c_long, thread as libc::c_long, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn write_backtrace(_: libc::c_int) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    super::write_stderr(&format!("thread {name:?} is here:\n{}\n", Backtrace::force_capture()));
}
