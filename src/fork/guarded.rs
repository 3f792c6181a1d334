//! One client and its registration, bound together: used here, refused in a child.

use super::{Descriptors, Generation, Origin, Registration, disown, generation, registry};
use crate::{Deadline, Error};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread;

/// Any client that one owns, together with the [`Registration`] of its descriptors.
///
/// A child finds a dead socket under it; use there is an error (or a panic, through `Deref`), and dropping it there
/// abandons it without a word on the wire. In its own process dropping it closes it, and shuts the socket down for any
/// child that was forked in the middle of that (and so for clones of the descriptor that you made).
///
/// ```
/// use forksafe::fork::{Descriptors, Guarded};
/// use std::io::Write;
/// use std::net::{TcpListener, TcpStream};
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let mut client = Guarded::new(TcpStream::connect(server.local_addr()?)?, |c| Descriptors::of(c))?;
/// client.write_all(b"from the process that opened it")?;
/// # std::io::Result::Ok(())
/// ```
pub struct Guarded<T> {
    /// `None` only while it is dropped.
    inner: Option<(T, Registration)>,
    origin: Origin,
    goodbye: Option<Arc<dyn Goodbye<T>>>,
    /// When the goodbye has to be said, if somebody waits.
    by: Option<Deadline>,
}

/// Ends a connection of this process. Without one it is dropped.
pub(crate) trait Goodbye<T>: Send + Sync {
    /// Before the deadline.
    fn say(&self, value: T, deadline: Deadline);
}

impl<T> Guarded<T> {
    /// Takes a client and publishes the descriptors that it is made of. Best right after it was connected: a child that
    /// another thread forks in between holds a copy of the socket that it does not know of.
    ///
    /// # Errors
    ///
    /// `EBADF` when one of the descriptors is not open; the client is dropped then. An error in a child that was forked
    /// by `descriptors`, where the client is its parent's; it is abandoned then.
    pub fn new(value: T, descriptors: impl FnOnce(&T) -> Descriptors) -> io::Result<Self> {
        let here = generation();
        let found = descriptors(&value);
        if generation() != here {
            registry::make_dead(found);
            std::mem::forget(value);
            return Err(io::Error::other("the client belongs to the parent of this process"));
        }
        Ok(Self::from_parts(value, Registration::publish(found)?, None))
    }

    pub(crate) fn from_parts(value: T, registration: Registration, goodbye: Option<Arc<dyn Goodbye<T>>>) -> Self {
        let origin = Origin { pid: disown::pid(), generation: registration.generation() };
        Self { inner: Some((value, registration)), origin, goodbye, by: None }
    }

    /// The process that made it.
    #[inline]
    pub fn origin(this: &Self) -> Origin {
        this.origin
    }

    /// Whether an ancestor of this process made it.
    #[inline]
    pub fn is_inherited(this: &Self) -> bool {
        this.origin.generation != generation()
    }

    /// The client, unless it is inherited.
    ///
    /// # Errors
    ///
    /// [`Error::is_inherited`].
    pub fn try_ref(this: &Self) -> Result<&T, Error> {
        this.check()?;
        Ok(&this.inner().0)
    }

    /// The client, unless it is inherited.
    ///
    /// # Errors
    ///
    /// [`Error::is_inherited`].
    pub fn try_mut(this: &mut Self) -> Result<&mut T, Error> {
        this.check()?;
        Ok(&mut this.inner_mut().0)
    }

    #[inline]
    fn check(&self) -> Result<(), Error> {
        if Self::is_inherited(self) { Err(Error::inherited(self.origin)) } else { Ok(()) }
    }

    /// What `Deref` does. A panic while panicking aborts the process; then the object on its dead socket is handed out
    /// instead, and its next use is the driver's own error.
    #[cold]
    #[track_caller]
    fn refuse(&self) {
        let harmless = self.registration().is_known() && !disown::shares_table();
        if !(thread::panicking() && harmless) {
            panic!("forksafe: {}", Error::inherited(self.origin));
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.origin.generation
    }

    /// Somebody waits for the end of it.
    pub(crate) fn goodbye_by(&mut self, by: Deadline) {
        self.by = Some(by);
    }

    #[inline]
    pub(crate) fn registration(&self) -> &Registration {
        &self.inner().1
    }

    /// The client whether inherited or not, for callers that have checked.
    #[inline]
    pub(crate) fn value_mut(&mut self) -> &mut T {
        &mut self.inner_mut().0
    }

    #[inline]
    fn inner(&self) -> &(T, Registration) {
        self.inner.as_ref().expect("present until dropped")
    }

    #[inline]
    fn inner_mut(&mut self) -> &mut (T, Registration) {
        self.inner.as_mut().expect("present until dropped")
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    /// # Panics
    ///
    /// When it is inherited; [`try_ref`](Self::try_ref) returns the error instead.
    #[inline]
    #[track_caller]
    fn deref(&self) -> &T {
        if Self::is_inherited(self) {
            self.refuse();
        }
        &self.inner().0
    }
}

impl<T> DerefMut for Guarded<T> {
    /// # Panics
    ///
    /// When it is inherited; [`try_mut`](Self::try_mut) returns the error instead.
    #[inline]
    #[track_caller]
    fn deref_mut(&mut self) -> &mut T {
        if Self::is_inherited(self) {
            self.refuse();
        }
        &mut self.inner_mut().0
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let inherited = Self::is_inherited(self);
        match self.inner.take() {
            Some(inner) if inherited => std::mem::forget(inner),
            Some((value, registration)) => registry::close(value, registration, self.goodbye.as_deref(), self.by),
            None => {}
        }
    }
}

impl<T> fmt::Debug for Guarded<T> {
    /// Of the client itself nothing is shown: not every driver's can be, and an inherited one had better be let alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("origin", &self.origin).finish_non_exhaustive()
    }
}
