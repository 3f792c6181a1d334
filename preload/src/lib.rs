//! forksafe's net, for programs that cannot be changed:
//!
//! ```sh
//! LD_PRELOAD=/usr/lib/libforksafe_preload.so puma -C config/puma.rb
//! ```
//!
//! In each child that the program forks, every outgoing connection that it has inherited is dead; see `forksafe::fork::net` for
//! what is taken and what is left alone, and its `Policy::from_env` for the settings. `forksafe-run` sets all of it up.
//!
//! It interposes nothing: the constructor registers a fork handler, and that is all. It starts no thread, and opens nothing but in
//! a child. In programs that hand on what they connect ([`programs`]) it does nothing, nor in one that sets a policy of its own. So it does not see children of `_Fork`, raw `clone`, `vfork` and `posix_spawn`: what these execute gets what
//! is not close-on-exec. The loader ignores it in a program that is setuid, and has nothing to do with one that is linked statically.

mod programs;

use forksafe::fork::net::{self, Policy};
use std::sync::atomic::{AtomicBool, Ordering::*};

/// What follows is not about the policy that is set here.
static IS_LOADED: AtomicBool = AtomicBool::new(false);

/// Called by the loader, before the program's `main`.
///
/// A wrong setting is said, and nothing is done: half a net would be taken for a whole one.
extern "C" fn load() {
    let with_programs = |policy| programs::KEPT.into_iter().fold(policy, Policy::keep_program);
    let done = Policy::from_env().and_then(|policy| policy.map_or(Ok(()), |policy| with_programs(policy).set()));
    IS_LOADED.store(true, Release);
    if let Err(error) = done {
        // Where nobody listens it cannot be said; that is no reason to end the program.
        net::say(&format!("forksafe: nothing is protected: {error}"));
    }
}

/// Called by a program that has a copy of forksafe of its own, when it sets a policy: that one knows what the program keeps.
///
/// The only symbol that is exported.
#[unsafe(no_mangle)]
pub extern "C" fn forksafe_preload_stand_down() {
    // While the library is loaded it is this very copy that calls.
    if IS_LOADED.load(Acquire) {
        net::stand_down();
    }
}

// SAFETY: the loader calls what it finds in this section once, with arguments that a C function may ignore; by then libc, which
// the library depends on, is ready, and `load` neither panics nor unwinds.
#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;
