//! A value that only its maker may use.

use super::{Origin, generation};
use std::fmt;
use std::mem;

/// A value that only the process which made it may use. In a child it is an error, where the value itself would hang: a runtime
/// without its threads, a client without its runtime, a file that is locked for the parent.
///
/// What a child can make anew is better off in a [`PerProcess`](super::PerProcess), and a client whose descriptors are known in a
/// [`Guarded`](super::Guarded), which a child also releases. Descriptors in here stay open in a child.
///
/// Dropped in a child it is forgotten: its drop might wait for the parent's threads, or speak for the parent.
///
/// ```
/// use forksafe::fork::MadeHere;
/// use tokio::runtime::Runtime;
///
/// let runtime = MadeHere::new(Runtime::new()?);
/// runtime.get()?.block_on(async {});
/// // SAFETY: the child asks, and leaves.
/// match unsafe { libc::fork() } {
///     0 => unsafe { libc::_exit(i32::from(runtime.get().is_ok())) },
///     child => {
///         let mut status = 0;
///         unsafe { libc::waitpid(child, &mut status, 0) };
///         assert_eq!(status, 0, "refused in the child");
///         runtime.get()?.block_on(async {});
///     }
/// }
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct MadeHere<T> {
    /// `None` only while it is dropped.
    value: Option<T>,
    origin: Origin,
}

/// Why a value is not to be had here: an ancestor of this process made it, or had begun to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
#[non_exhaustive]
#[error(
    "this was first used in process {pid}, before the fork that led to this one, and does not work in its children: use it \
     only after the fork, in each process for itself"
)]
pub struct NotMadeHere {
    /// The process that made it, by the pid that it had in its own namespace.
    pub pid: u32,
}

impl NotMadeHere {
    pub(super) fn of(maker: Origin) -> Self {
        Self { pid: maker.pid }
    }
}

impl<T> MadeHere<T> {
    /// Of a value that this process has just made.
    pub fn new(value: T) -> Self {
        Self { value: Some(value), origin: Origin::current() }
    }

    /// The process that made it.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The value, in the process that made it. About a nanosecond.
    ///
    /// # Errors
    ///
    /// [`NotMadeHere`] in a child.
    #[inline]
    pub fn get(&self) -> Result<&T, NotMadeHere> {
        self.check()?;
        Ok(self.value.as_ref().expect("present until dropped"))
    }

    /// The value, in the process that made it.
    ///
    /// # Errors
    ///
    /// [`NotMadeHere`] in a child.
    #[inline]
    pub fn get_mut(&mut self) -> Result<&mut T, NotMadeHere> {
        self.check()?;
        Ok(self.value.as_mut().expect("present until dropped"))
    }

    /// The value, in the process that made it.
    ///
    /// # Errors
    ///
    /// [`NotMadeHere`] in a child, where the value is forgotten.
    pub fn into_inner(mut self) -> Result<T, NotMadeHere> {
        self.check()?;
        Ok(self.value.take().expect("present until dropped"))
    }

    #[inline]
    fn check(&self) -> Result<(), NotMadeHere> {
        if generation() == self.origin.generation { Ok(()) } else { Err(NotMadeHere::of(self.origin)) }
    }
}

impl<T> Drop for MadeHere<T> {
    fn drop(&mut self) {
        if self.check().is_err() {
            mem::forget(self.value.take());
        }
    }
}

impl<T> fmt::Debug for MadeHere<T> {
    /// Of the value itself nothing is shown: in a child it had better be let alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MadeHere").field("origin", &self.origin).finish_non_exhaustive()
    }
}
