//! Processes and descriptors: which process is this, what did it inherit, what may it touch. Knows no pool.
//!
//! Everything rests on the [generation](Generation): a number that is newer in a child than in all its ancestors.
//! libc's `fork` runs a `pthread_atfork` handler of ours, so a child made by it has dropped every registered descriptor
//! before `fork` returns. Children made by `_Fork`, raw `clone` or `clone3` run no handlers; they do the same in their
//! first call into this crate, for which [`enter`] is the shortest way.
//!
//! # In the handlers
//!
//! The prepare and parent handlers each add one to a counter. The child handler blocks signals, walks the registry of
//! descriptors with `fstat`, `close` and `dup3`, and `epoll_ctl` where there are event loops, and stores the new
//! generation. None of them allocates, locks, logs, panics or waits, and none uses a thread-local but `errno`, which is put back.

#[cfg(feature = "testing")]
pub(crate) mod control;
mod dead;
mod disown;
pub(crate) mod event_loop;
pub(crate) mod forks;
mod guarded;
pub(crate) mod hooks;
mod page;
pub(crate) mod peek;
mod per_process;
#[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for drivers that hide an event loop"))]
pub(crate) mod probe;
mod registry;
#[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for drivers that hide an event loop"))]
pub(crate) mod signal_pipe;
#[cfg(feature = "redis")]
pub(crate) mod socket;
mod sys;

pub(crate) use guarded::Goodbye;
pub use guarded::{Guarded, Inherited};
pub use hooks::on_child;
pub use per_process::PerProcess;
pub(crate) use registry::{Copies, make_dead};
pub use registry::{Descriptors, Registration};

use disown::Birth;
use page::{BUSY, Word};
use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// Names one process among its ancestors: newer (greater) than all that came before it in its line.
///
/// Siblings may have equal generations; nothing travels between them by fork, so nothing is ever compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(NonZeroU64);

impl fmt::Display for Generation {
    /// The first process that used this crate is 1.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.get() - BUSY)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Generation({self})")
    }
}

/// The process that made a thing. Decide on the generation, show the pid: pids are reused and namespaces repeat them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub struct Origin {
    /// The pid that the process had in its own namespace.
    pub pid: u32,
    /// Its generation.
    pub generation: Generation,
}

impl Origin {
    /// The process that this is.
    ///
    /// ```
    /// let here = forksafe::fork::Origin::current();
    /// assert_eq!(here.pid, std::process::id());
    /// assert_eq!(here.generation, forksafe::fork::generation());
    /// ```
    pub fn current() -> Self {
        let generation = generation();
        Self { pid: disown::pid(), generation }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} (generation {})", self.pid, self.generation)
    }
}

static NEWEST: AtomicU64 = AtomicU64::new(BUSY);
static HANDLERS: AtomicBool = AtomicBool::new(false);

/// The generation of this process. About a nanosecond: one load from a page that the kernel wipes in a child.
///
/// The first call in a child that was made without libc's `fork` drops the inherited descriptors. It runs no
/// [`on_child`] hooks: [`enter`], the pool and [`PerProcess`] do.
///
/// ```
/// let here = forksafe::fork::generation();
/// // SAFETY: the child only compares and leaves.
/// match unsafe { libc::fork() } {
///     0 => unsafe { libc::_exit(i32::from(forksafe::fork::generation() <= here)) },
///     child => {
///         let mut status = 0;
///         unsafe { libc::waitpid(child, &mut status, 0) };
///         assert_eq!(status, 0, "newer in the child");
///         assert_eq!(forksafe::fork::generation(), here, "unchanged in the parent");
///     }
/// }
/// ```
#[inline]
pub fn generation() -> Generation {
    match page::known() {
        Some(generation) => Generation(generation),
        None => find_out(),
    }
}

/// Takes possession of this process: drops what it inherited, and runs the [`on_child`] hooks if it is a child whose
/// hooks have not run.
///
/// Never needed after libc's `fork`, where the first is done at birth and the second on first use. Call it first thing
/// in a child made by `_Fork`, `clone` or `clone3`, or at the start of a worker to have the hooks run there.
///
/// When another thread is running the hooks, this does not wait for it.
pub fn enter() -> Generation {
    let generation = generation();
    hooks::run_due();
    generation
}

/// Why connections cannot be used safely in this process, if they cannot: its descriptor table may be its parent's own
/// (`CLONE_FILES`), so that nothing that it inherited could be dropped.
pub(crate) fn unprotected() -> Option<&'static str> {
    generation();
    disown::shares_table().then_some(
        "this process was made with a descriptor table that may be its parent's own (CLONE_FILES), and could not be given \
         another: either it had threads before its first use of forksafe (call forksafe::fork::enter() first thing in \
         such a child), or unshare, close_range and kcmp are forbidden here",
    )
}

#[cold]
fn find_out() -> Generation {
    if !page::is_installed() {
        // The handlers first: once a generation is known, every later child of libc's fork must be seen at birth.
        register_handlers();
        page::install();
    }
    loop {
        match page::look() {
            Word::Known(generation) => return Generation(generation),
            Word::Busy => sys::yield_now(),
            Word::New(expected) => take_stock(expected, Birth::FirstCall),
        }
    }
}

/// Makes this process one that we know. One thread of it wins; what it does takes microseconds and waits for nobody, so
/// the others only yield until the generation is there.
fn take_stock(expected: u64, birth: Birth) {
    let _quiet = sys::Quiet::begin();
    if !page::claim(expected) {
        return;
    }
    #[cfg(feature = "testing")]
    if control::is_off() && NEWEST.load(Relaxed) > BUSY {
        forks::born();
        return page::publish(NEWEST.load(Relaxed)); // The control run: a child takes itself for its parent.
    }
    // Inherited memory, so newer than any ancestor's. Taken before anything is stamped with it.
    let generation = NEWEST.fetch_add(1, Relaxed) + 1;
    forks::born();
    let parent = disown::record_pid();
    if generation > FIRST {
        disown::all(birth, parent);
    }
    page::publish(generation);
}

/// The generation of a process none of whose ancestors had used this crate.
const FIRST: u64 = BUSY + 1;

/// The child handler. It may come after another library's handler that has already called us, or even while a thread
/// that such a handler started is taking stock: then there is nothing left to do, and nothing to wait for.
extern "C" fn child() {
    if !page::is_installed() {
        return;
    }
    page::reset_fallback();
    match page::look() {
        Word::New(expected) => take_stock(expected, Birth::Handler),
        // Another library's handler asked before us, and it could not be shown then that the table is our own. It is.
        Word::Known(_) if disown::shares_table() => {
            let _quiet = sys::Quiet::begin();
            disown::all(Birth::Handler, disown::pid());
        }
        Word::Known(_) | Word::Busy => {}
    }
}

/// Threads that race here register twice, which is harmless: two equal counts, and a child handler that finds its work
/// done. A child whose parent was in between does it again.
fn register_handlers() {
    if HANDLERS.load(Acquire) {
        return;
    }
    // SAFETY: the handlers are `extern "C"` functions of this library and never unwind. They stay callable as long as
    // it is loaded; glibc removes them with it (a cdylib should be linked with `-z nodelete`, see the README).
    let failed = unsafe { libc::pthread_atfork(Some(forks::prepare), Some(forks::parent), Some(child)) };
    // Out of memory: the page still tells, from the first call on; and the next process tries again.
    HANDLERS.store(failed == 0, Release);
}

#[cfg(feature = "testing")]
pub(crate) fn is_fallback() -> bool {
    page::is_fallback()
}
