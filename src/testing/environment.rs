//! What the environment asks of a test.

use crate::fork;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Set for a control run: the protection is off, and the test has to fail.
const CONTROL: &CStr = c"FORKSAFE_CONTROL";
/// Set to have a test run on the fallback.
const WITHOUT_PAGE: &CStr = c"FORKSAFE_WITHOUT_PAGE";

/// Turns the protection off if this is a control run. Whatever of the kit a test uses first comes here, so that none
/// passes with the protection on for want of [`clean_process`](super::clean_process).
pub(super) fn obey() {
    static OBEYED: AtomicBool = AtomicBool::new(false);
    if OBEYED.swap(true, Relaxed) || fork::control::is_off() || !is_control() {
        return;
    }
    super::unsafe_share();
    // Past the harness, which keeps what a test prints and throws it away when the test passes; and past std's lock, for
    // this may be a child.
    let line = format!("forksafe: FORKSAFE_CONTROL is set: the protection is off in process {}\n", std::process::id());
    // SAFETY: the pointer and the length are those of a string.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
}

pub(super) fn is_control() -> bool {
    is_set(CONTROL)
}

pub(super) fn is_without_page() -> bool {
    is_set(WITHOUT_PAGE)
}

/// libc's own, which takes no lock.
fn is_set(name: &CStr) -> bool {
    // SAFETY: a C string. Nobody changes the environment meanwhile: who does so with other threads about has promised that
    // none of them looks.
    unsafe { !libc::getenv(name.as_ptr()).is_null() }
}
