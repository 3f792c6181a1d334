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
//! a child. So it does not see children of `_Fork`, raw `clone`, `vfork` and `posix_spawn`: what these execute gets what
//! is not close-on-exec. The loader ignores it in a program that is setuid, and has nothing to do with one that is linked statically.

use forksafe::fork::net::Policy;
use std::io::{self, Write};

/// Called by the loader, before the program's `main`.
///
/// A wrong setting is said, and nothing is done: half a net would be taken for a whole one.
extern "C" fn load() {
    let done = Policy::from_env().and_then(|policy| policy.map_or(Ok(()), Policy::set));
    if let Err(error) = done {
        // Where nobody listens it cannot be said; that is no reason to end the program.
        let _ = writeln!(io::stderr(), "forksafe: nothing is protected: {error}");
    }
}

// SAFETY: the loader calls what it finds in this section once, with arguments that a C function may ignore; by then libc, which
// the library depends on, is ready, and `load` neither panics nor unwinds.
#[used]
#[unsafe(link_section = ".init_array")]
static LOAD: extern "C" fn() = load;
