//! What programs see of [`Cell`]: an initialiser that belongs to the value, and the hooks of a child before it.

use super::cell::Cell;
use super::{Generation, NotMadeHere, generation, hooks};
use std::convert::Infallible;
use std::fmt;
use std::ops::Deref;

/// A value that each process makes for itself, exactly once, when it is first asked for.
///
/// In a forked child the parent's value is not used and not dropped: it is abandoned, and the child makes its own. Many
/// Rust libraries hang in forked workers for want of this: a tokio runtime has no threads there, an HTTP client's pool
/// holds shared sockets, a random generator repeats its sibling's numbers.
///
/// It does not *release* what the parent's value holds: the sockets of an abandoned client stay open in the child until it ends,
/// and the server sees the parent's sessions end only then. What is to be released has to be registered:
/// a [`Guarded`](super::Guarded) client, a [`Registration`](super::Registration), or a [`Pool`](crate::Pool). Or the [net](super::net)
/// is set, which releases what nobody has registered.
///
/// Its functions are associated (`PerProcess::get(&VALUE)`), so that they do not hide the value's own: `POOL.get()` is the
/// pool's.
///
/// ```
/// use forksafe::fork::PerProcess;
///
/// static PID: PerProcess<u32> = PerProcess::new(std::process::id);
///
/// assert_eq!(*PID, std::process::id());
/// // SAFETY: the child reads a value and leaves.
/// match unsafe { libc::fork() } {
///     0 => unsafe { libc::_exit(i32::from(*PID != std::process::id())) },
///     child => {
///         let mut status = 0;
///         unsafe { libc::waitpid(child, &mut status, 0) };
///         assert_eq!(status, 0, "the child made its own");
///     }
/// }
/// ```
///
/// A fallible initialiser goes with [`try_get`](Self::try_get):
///
/// ```
/// use forksafe::fork::PerProcess;
/// use std::fs::File;
///
/// static NULL: PerProcess<File, fn() -> std::io::Result<File>> = PerProcess::new(|| File::open("/dev/null"));
/// let file: &File = PerProcess::try_get(&NULL)?;
/// # let _ = file;
/// # std::io::Result::Ok(())
/// ```
///
/// # When the initialiser misbehaves
///
/// If it fails or panics, nothing is made and the next caller tries again. If it forks, the child starts over with a
/// call of its own. If it asks for the very value that it is making, that is a panic with a message, not a hang; two
/// threads whose initialisers wait for each other's values do hang, as with any lazy value.
///
/// When it is dropped, so is the value of this process. Those of its ancestors are leaked: dropping them is what must never
/// happen.
pub struct PerProcess<T, F = fn() -> T> {
    cell: Cell<T>,
    make: F,
}

impl<T, F> PerProcess<T, F> {
    /// Nothing is made yet. In a `static`, a closure that captures nothing goes for the default `F`.
    pub const fn new(make: F) -> Self {
        Self { cell: Cell::new(), make }
    }

    /// The value, if this process has made it.
    ///
    /// ```
    /// use forksafe::fork::PerProcess;
    ///
    /// static ONE: PerProcess<u32> = PerProcess::new(|| 1);
    /// assert_eq!(PerProcess::existing(&ONE), None);
    /// assert_eq!(PerProcess::get(&ONE), &1);
    /// assert_eq!(PerProcess::existing(&ONE), Some(&1));
    /// ```
    #[inline]
    pub fn existing(this: &Self) -> Option<&T> {
        Self::existing_in(this, generation())
    }

    /// For a caller that has just asked which process this is.
    #[inline]
    pub(crate) fn existing_in(this: &Self, here: Generation) -> Option<&T> {
        this.cell.existing_in(here)
    }

    /// Those of a child, before it makes its value.
    fn run_hooks(this: &Self) {
        if Self::existing(this).is_none() {
            hooks::run_due();
        }
    }

    /// The value of this process, made by `make` if there is none. Runs no child hooks.
    pub(crate) fn get_with<E>(this: &Self, make: impl FnMut() -> Result<T, E>) -> Result<&T, E> {
        this.cell.get_with(make)
    }
}

impl<T, F: Fn() -> T> PerProcess<T, F> {
    /// The value of this process. Makes it if this is the first call here.
    ///
    /// In a child this first runs the [`on_child`](super::on_child) hooks, if nobody has.
    ///
    /// # Panics
    ///
    /// When the initialiser panics, or asks for the value that it is making.
    #[inline]
    pub fn get(this: &Self) -> &T {
        Self::existing(this).unwrap_or_else(|| Self::make_it(this))
    }

    /// As [`get`](Self::get), for what cannot be had both before a fork and after it: an error in a child of which an ancestor has
    /// made the value, or has begun to, also in vain. So a library says at once what would be a hang later.
    ///
    /// It is the same error however often one asks there, also where [`get`](Self::get) has made the child a value of its own. Asking
    /// for what is [`existing`](Self::existing) begins nothing.
    ///
    /// ```
    /// use forksafe::fork::PerProcess;
    ///
    /// static THREADS: PerProcess<Vec<u32>> = PerProcess::new(|| vec![1, 2, 3]);
    /// let here = std::process::id();
    /// assert!(PerProcess::get_unless_inherited(&THREADS).is_ok(), "the first use, before the fork");
    /// // SAFETY: the child compares and leaves.
    /// match unsafe { libc::fork() } {
    ///     0 => {
    ///         let refused = PerProcess::get_unless_inherited(&THREADS).unwrap_err();
    ///         unsafe { libc::_exit(i32::from(refused.pid != here)) }
    ///     }
    ///     child => {
    ///         let mut status = 0;
    ///         unsafe { libc::waitpid(child, &mut status, 0) };
    ///         assert_eq!(status, 0, "the child was told whose it is");
    ///     }
    /// }
    /// ```
    ///
    /// # Errors
    ///
    /// [`NotMadeHere`] names the ancestor that began first.
    ///
    /// # Panics
    ///
    /// As [`get`](Self::get).
    pub fn get_unless_inherited(this: &Self) -> Result<&T, NotMadeHere> {
        Self::run_hooks(this);
        this.cell.get_unless_inherited(|| Ok((this.make)()))
    }

    #[cold]
    fn make_it(this: &Self) -> &T {
        hooks::run_due();
        let Ok(value) = Self::get_with(this, || Ok::<_, Infallible>((this.make)()));
        value
    }
}

impl<T, E, F: Fn() -> Result<T, E>> PerProcess<T, F> {
    /// The value of this process. Makes it if there is none here.
    ///
    /// In a child this first runs the [`on_child`](super::on_child) hooks, if nobody has.
    ///
    /// # Errors
    ///
    /// The initialiser's. Nothing is kept of a failure: the next call tries again.
    ///
    /// # Panics
    ///
    /// When the initialiser panics, or asks for the value that it is making.
    pub fn try_get(this: &Self) -> Result<&T, E> {
        if let Some(value) = Self::existing(this) {
            return Ok(value);
        }
        hooks::run_due();
        Self::get_with(this, &this.make)
    }

    /// As [`get_unless_inherited`](PerProcess::get_unless_inherited), with an initialiser that may fail. A failure of an ancestor
    /// counts: it had begun.
    ///
    /// ```
    /// use forksafe::fork::PerProcess;
    /// use std::error::Error;
    /// use std::fs::File;
    ///
    /// type Opened = Result<File, Box<dyn Error>>;
    /// static NULL: PerProcess<File, fn() -> Opened> = PerProcess::new(|| Ok(File::open("/dev/null")?));
    /// let file: &File = PerProcess::try_get_unless_inherited(&NULL)?;
    /// # let _ = file;
    /// # Ok::<_, Box<dyn Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The initialiser's, and [`NotMadeHere`].
    ///
    /// # Panics
    ///
    /// As [`try_get`](Self::try_get).
    pub fn try_get_unless_inherited(this: &Self) -> Result<&T, E>
    where
        E: From<NotMadeHere>,
    {
        Self::run_hooks(this);
        this.cell.get_unless_inherited(&this.make)
    }
}

impl<T, F: Fn() -> T> Deref for PerProcess<T, F> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        Self::get(self)
    }
}

impl<T: fmt::Debug, F> fmt::Debug for PerProcess<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerProcess").field("value", &Self::existing(self)).finish_non_exhaustive()
    }
}
