//! Processes and descriptors: which process is this, what did it inherit, what may it touch. Knows no pool.
//!
//! Everything rests on the [generation](Generation): a number that is newer in a child than in all its ancestors.
//! libc's `fork` runs a `pthread_atfork` handler of ours, so a child made by it has dropped every registered descriptor
//! before `fork` returns. Children made by `_Fork`, raw `clone` or `clone3` run no handlers; they do the same in their
//! first call into this crate, for which [`enter`] is the shortest way.
//!
//! # In the handlers
//!
//! The prepare and parent handlers each change one word. The child handler blocks signals, walks the table of
//! descriptors with `fstat`, `close` and `dup3`, and `epoll_ctl` where there are event loops, and stores the new
//! generation. None of them allocates, locks, logs, panics or waits, and none uses a thread-local but `errno`, which is put
//! back. All that they reach is in one folder, `handler`, which can be checked by reading.

#[cfg(not(target_pointer_width = "64"))]
compile_error!(
    "forksafe supports 64-bit systems so far: the kernel's types (of stat, of time) are others on 32-bit ones, and nobody \
     has measured there"
);
#[cfg(any(target_arch = "mips64", target_arch = "mips64r6"))]
compile_error!("forksafe does not support MIPS so far: its set of signals has 128 bits, and here they are 64");

#[cfg(feature = "cluster")]
pub(crate) mod backtrace;
mod cell;
mod ending;
pub(crate) mod forks;
mod generation;
mod guarded;
mod handler;
pub(crate) mod hooks;
#[cfg(feature = "cluster")]
pub(crate) mod ignored;
#[cfg(feature = "r2d2")]
pub(crate) mod impatient;
mod made_here;
#[cfg(feature = "cluster")]
pub(crate) mod make;
#[cfg(feature = "net")]
pub mod net;
mod observe;
#[cfg(feature = "cluster")]
pub(crate) mod passed;
pub(crate) mod peek;
mod per_process;
#[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for drivers that hide an event loop"))]
pub(crate) mod probe;
mod registration;
#[cfg(feature = "cluster")]
pub(crate) mod shared;
#[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for drivers that hide an event loop"))]
pub(crate) mod signal_pipe;
#[cfg(feature = "redis")]
pub(crate) mod socket;
mod turnstile;

pub(crate) use ending::Copies;
pub(crate) use generation::unprotected;
pub use generation::{Generation, Origin, generation};
pub(crate) use guarded::Goodbye;
pub use guarded::{Guarded, Inherited};
#[cfg_attr(not(feature = "postgres"), allow(unused_imports, reason = "for drivers that hide an event loop"))]
pub(crate) use handler::event_loop;
#[allow(unused_imports, reason = "for drivers, whose features may be off")]
use handler::sys;
#[cfg(feature = "testing")]
pub(crate) use handler::{control, is_fallback};
pub use hooks::{enter, on_child};
pub use made_here::{MadeHere, NotMadeHere};
#[cfg(feature = "net")]
pub use net::{inherited, keep};
pub use observe::Unobserved;
pub(crate) use observe::{is_apart, observe};
pub use per_process::PerProcess;
pub(crate) use registration::make_dead;
pub use registration::{Descriptors, Registration};
pub(crate) use sys::wall_second;

/// At once, and without a lock: that of standard error may have been held at the fork.
pub(crate) fn write_stderr(text: &str) {
    sys::write_stderr(text.as_bytes());
}
