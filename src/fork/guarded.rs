//! One client and its registration, bound together: used here, refused in a child.

use super::forks::{self, Watch};
use super::handler::disown;
use super::{Descriptors, Generation, Origin, Registration, ending, generation, make_dead};
use crate::Deadline;
use std::fmt;
use std::io;
use std::mem;
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

/// Why a client must not be used here: an ancestor of this process made it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub struct Inherited {
    /// The process that made it.
    pub owner: Origin,
    /// The process that asked.
    pub here: Origin,
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owner, here } = self;
        write!(
            f,
            "this connection belongs to {owner} and was inherited by {here}: a fork does not share connections, open \
             or check out one in this process"
        )
    }
}

impl std::error::Error for Inherited {}

/// A connect that overlapped a fork is made again this many times at most. After that the connection is kept: no process
/// but this one can name it, but a child that was forked in the middle of it keeps a copy of the socket while it lives.
const CONNECTS: u32 = 8;

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
            make_dead(found);
            mem::forget(value);
            return Err(io::Error::other("the client belongs to the parent of this process"));
        }
        Ok(Self::from_parts(value, Registration::publish(found)?, None))
    }

    /// Opens a client so that no child is left with a live copy of its socket, as a pool does it. A child that another
    /// thread forks during `open` may have the socket in its descriptor table without knowing of it. So a client whose making
    /// overlapped a fork is closed, and its socket shut down, and `open` is called again: eight times at most, and not
    /// after the deadline; then the client is kept. A fork that is in progress is waited for first, for a second at most.
    ///
    /// In a child that is forked inside `open`, what it returns there is forgotten, and it is called again.
    ///
    /// ```
    /// use forksafe::Deadline;
    /// use forksafe::fork::{Descriptors, Guarded};
    /// use std::net::{TcpListener, TcpStream};
    /// use std::time::Duration;
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let address = server.local_addr()?;
    /// let deadline = Deadline::after(Duration::from_secs(5));
    /// let client = Guarded::open(
    ///     deadline,
    ///     || TcpStream::connect_timeout(&address, deadline.socket_timeout()?),
    ///     |client| Descriptors::of(client),
    /// )?;
    /// assert_eq!(client.peer_addr()?, address);
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of `open`, and of [`Registration::publish`]; the client is dropped then.
    pub fn open<E: From<io::Error>>(
        deadline: Deadline,
        mut open: impl FnMut() -> Result<T, E>,
        descriptors: impl Fn(&T) -> Descriptors,
    ) -> Result<Self, E> {
        loop {
            let opened = Self::apart_from_forks::<E>(deadline, || {
                let here = generation();
                let opened = open();
                if generation() != here {
                    mem::forget(opened);
                    return Ok(None);
                }
                match Self::new(opened?, &descriptors) {
                    Err(_) if generation() != here => Ok(None),
                    guarded => Ok(Some(guarded?)),
                }
            })?;
            if let Some(opened) = opened {
                return Ok(opened);
            }
        }
    }

    /// Makes a connection, and makes it again as long as its making overlaps a fork: see [`open`](Self::open). `connect`
    /// publishes it as soon as it can.
    ///
    /// `None` in a child that was forked in the middle: start over. It is `connect` that notices first; it forgets what it
    /// has in hand then, and returns `None`.
    pub(crate) fn apart_from_forks<E>(
        deadline: Deadline,
        mut connect: impl FnMut() -> Result<Option<Self>, E>,
    ) -> Result<Option<Self>, E> {
        let here = generation();
        let patience = forks::patience(deadline); // All of them together: the fork may not end.
        for again in (0..CONNECTS).rev() {
            let watch = Watch::start(patience);
            let Some(mut client) = connect()? else { return Ok(None) };
            if !watch.overlapped() || again == 0 || deadline.is_over() {
                return Ok(Some(client));
            }
            client.goodbye_by(deadline);
            drop(client); // Closed, and shut down for the child that has a copy.
            if generation() != here {
                return Ok(None);
            }
        }
        unreachable!("bug: the last connect is kept")
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

    /// Takes the client out. Its descriptors are not registered from then on: a child inherits them as it does any other.
    ///
    /// # Errors
    ///
    /// The guard itself, when it is inherited.
    pub fn into_inner(mut this: Self) -> Result<T, Self> {
        if Self::is_inherited(&this) {
            return Err(this);
        }
        let (value, registration) = this.inner.take().expect("present until dropped");
        drop(registration);
        Ok(value)
    }

    /// Registers the client anew, after another has been put in its place through the guard (`*guard = other`), or after it has
    /// connected anew by itself. Until then a child inherits the new socket alive.
    ///
    /// ```
    /// use forksafe::fork::{Descriptors, Guarded};
    /// use std::os::unix::net::UnixStream;
    ///
    /// let (client, _) = UnixStream::pair()?;
    /// let (other, _) = UnixStream::pair()?;
    /// let mut client = Guarded::new(client, |c| Descriptors::of(c))?;
    /// *client = other;
    /// Guarded::republish(&mut client, |c| Descriptors::of(c))?;
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Registration::replace`].
    pub fn republish(this: &mut Self, descriptors: impl FnOnce(&T) -> Descriptors) -> io::Result<()> {
        let found = descriptors(&this.inner().0);
        this.registration_mut().replace(found)
    }

    /// The client, unless it is inherited.
    ///
    /// # Errors
    ///
    /// [`Inherited`] says whose it is.
    pub fn try_ref(this: &Self) -> Result<&T, Inherited> {
        this.check()?;
        Ok(&this.inner().0)
    }

    /// The client, unless it is inherited.
    ///
    /// # Errors
    ///
    /// [`Inherited`] says whose it is.
    pub fn try_mut(this: &mut Self) -> Result<&mut T, Inherited> {
        this.check()?;
        Ok(&mut this.inner_mut().0)
    }

    #[inline]
    fn check(&self) -> Result<(), Inherited> {
        if Self::is_inherited(self) { Err(self.inherited()) } else { Ok(()) }
    }

    #[cold]
    fn inherited(&self) -> Inherited {
        Inherited { owner: self.origin, here: Origin::current() }
    }

    /// What `Deref` does. A panic while panicking aborts the process; then the object on its dead socket is handed out
    /// instead, and its next use is the driver's own error.
    #[cold]
    #[track_caller]
    fn refuse(&self) {
        let harmless = self.registration().is_known() && !disown::shares_table();
        if !(thread::panicking() && harmless) {
            panic!("forksafe: {}", self.inherited());
        }
    }

    pub(crate) fn generation(&self) -> Generation {
        self.origin.generation
    }

    /// How it is ended from here on.
    pub(crate) fn set_goodbye(&mut self, goodbye: Arc<dyn Goodbye<T>>) {
        self.goodbye = Some(goodbye);
    }

    /// Somebody waits for the end of it.
    pub(crate) fn goodbye_by(&mut self, by: Deadline) {
        self.by = Some(by);
    }

    #[inline]
    pub(crate) fn registration(&self) -> &Registration {
        &self.inner().1
    }

    /// To publish anew, after the client has been replaced through the guard.
    pub(crate) fn registration_mut(&mut self) -> &mut Registration {
        &mut self.inner_mut().1
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
            Some((value, registration)) if inherited => {
                mem::forget(value);
                registration.abandon();
            }
            Some((value, registration)) => ending::close(value, registration, self.goodbye.as_deref(), self.by),
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
