//! Between the net of a program and the one that is preloaded: two copies of this crate in one process, which know nothing of each other.
//!
//! The program knows more: what it keeps, what it has registered, what is wanted of it. So with a policy of its own it has the other
//! copy stand down, by the one symbol that the preloaded library exports.

use crate::fork::handler::net::{output, rules};
use std::mem;

/// What the preloaded library calls it.
const STAND_DOWN: &std::ffi::CStr = c"forksafe_preload_stand_down";

/// There is a policy here now. Within the preloaded library itself, which looks for its own symbol then, it does nothing.
pub(super) fn have_the_other_stand_down() {
    // SAFETY: a C string; looks into tables of the loader's.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, STAND_DOWN.as_ptr()) };
    if !found.is_null() {
        // SAFETY: nobody else has a function of that name, and it takes and gives nothing.
        let stand_down = unsafe { mem::transmute::<*mut libc::c_void, extern "C" fn()>(found) };
        stand_down();
    }
}

/// For the preloaded library: the policy that is set here is as good as none from here on.
#[doc(hidden)]
pub fn stand_down() {
    rules::stand_down();
}

/// For the preloaded library: a line on standard error, from inside of somebody else's program. It waits for nobody, and ends nobody.
#[doc(hidden)]
pub fn say(line: &str) {
    output::say(format!("{line}\n").as_bytes());
}
