//! Which process is this.

use super::handler::{BUSY, birth, disown};
use std::fmt;
use std::num::NonZeroU64;

/// Names one process among its ancestors: newer (greater) than all that came before it in its line.
///
/// Siblings may have equal generations; nothing travels between them by fork, so nothing is ever compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub(super) NonZeroU64);

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

/// The generation of this process. About a nanosecond: one load from a page that the kernel wipes in a child.
///
/// The first call in a child that was made without libc's `fork` drops the inherited descriptors. It runs no
/// [`on_child`](super::on_child) hooks: [`enter`](super::enter), the pool and [`PerProcess`](super::PerProcess) do.
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
    Generation(birth::known().unwrap_or_else(birth::find_out))
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
