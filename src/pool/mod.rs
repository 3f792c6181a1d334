//! The pool: a fixed number of slots in each process, and connections that never leave the process that opened them.

mod addresses;
mod asked;
mod attempt;
mod bag;
mod builder;
mod checkout;
mod clock;
mod connect;
mod connection;
mod dial;
mod error;
mod expiry;
mod guard;
mod lookup;
mod maintenance;
mod manager;
#[cfg(all(test, forksafe_loom))]
mod model;
mod queue;
mod shared;
#[allow(unsafe_code, reason = "the array of slots is the one other place for it")]
mod slots;
mod typical;
mod validate;

#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) use asked::deadline as asked_until;
pub use attempt::Attempt;
pub use builder::Builder;
#[cfg(feature = "testing")]
pub(crate) use clock::advance;
pub use dial::{Dial, DialError, Target};
pub use error::Error;
pub use guard::PooledConnection;
pub use manager::{Fault, ManageConnection, Reset, Unread};

use crate::Deadline;
use builder::Config;
use shared::Shared;
use std::fmt;
use std::sync::atomic::Ordering::*;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A pool of connections that may be used on both sides of a fork.
///
/// A handle: clones are the same pool. In a forked child the same value works at once: the child has dropped what it
/// inherited and opens its own connections when it asks for them. Nothing has to be called.
///
/// When the last handle of a process goes, its idle connections are closed, and lent ones when they come back. A child
/// counts the handles that its parent's other threads had as well, so there call [`close`](Self::close) to be sure.
///
/// Build pools before threads are started, or in a [`PerProcess`](crate::fork::PerProcess): a `LazyLock<Pool>` that
/// another thread is filling while this one forks is locked for ever in the child.
///
/// ```
/// # use forksafe::{ManageConnection, Pool};
/// # struct Numbers;
/// # impl ManageConnection for Numbers {
/// #     type Connection = u32;
/// #     type Error = std::convert::Infallible;
/// #     fn connect(&self) -> Result<u32, Self::Error> { Ok(std::process::id()) }
/// #     fn is_valid(&self, _: &mut u32) -> Result<(), Self::Error> { Ok(()) }
/// #     fn has_broken(&self, _: &mut u32) -> bool { false }
/// #     fn descriptors(&self, _: &u32) -> forksafe::fork::Descriptors { forksafe::fork::Descriptors::none() }
/// # }
/// // `Numbers` opens "connections" that are the pid of their process.
/// let pool = Pool::new(Numbers)?;
/// assert_eq!(*pool.get()?, std::process::id()); // used in the master: the classic mistake
///
/// // SAFETY: the child uses the pool and leaves.
/// match unsafe { libc::fork() } {
///     0 => {
///         let mine = pool.get().is_ok_and(|conn| *conn == std::process::id());
///         unsafe { libc::_exit(i32::from(!mine)) }
///     }
///     child => {
///         let mut status = 0;
///         unsafe { libc::waitpid(child, &mut status, 0) };
///         assert_eq!(status, 0, "the child got a connection of its own");
///     }
/// }
/// # Ok::<_, forksafe::Error>(())
/// ```
pub struct Pool<M: ManageConnection>(Arc<Shared<M>>);

impl<M: ManageConnection> Pool<M> {
    /// A pool with the default [settings](Builder). Opens nothing.
    ///
    /// # Errors
    ///
    /// None with the default settings; the type is [`Builder::build`]'s.
    pub fn new(manager: M) -> Result<Self, Error> {
        Self::builder().build(manager)
    }

    /// Settings to build a pool with.
    pub fn builder() -> Builder<M> {
        Builder::default()
    }

    fn from_parts(config: Config, manager: M) -> Self {
        Self(Shared::new(config, manager))
    }

    /// Lends a connection: an idle one, or a new one if there is room, or the next that comes back. That goes to whoever is
    /// quicker, but who has waited for longer than a bound (up to 10 ms, by the length of the queue) is handed the next one, first
    /// come, first served. Waits for [`connection_timeout`](Builder::connection_timeout) at most, as far as the manager heeds the
    /// deadline.
    ///
    /// # Errors
    ///
    /// - [`Error::is_timeout`]: none came free in time. The message says how many are in use.
    /// - [`Error::is_connect`]: a new one could not be opened. Reported at once, not tried again until the timeout.
    ///   Also when the deadline came in the middle of it.
    /// - [`Error::is_closed`]: the pool was closed, here or in the parent before the fork.
    /// - [`Error::is_unprotected`]: the new connection's descriptors could not be found, so it was closed; or this is a
    ///   child that may share its parent's descriptor table (`CLONE_FILES`).
    #[inline]
    pub fn get(&self) -> Result<PooledConnection<M>, Error> {
        self.0.check_out(self.0.config.connection_timeout)
    }

    /// As [`get`](Self::get), with a timeout for this call. Zero: an idle connection now, or a timeout. (Then
    /// [tests](Builder::test_on_check_out) and the goodbyes of what fails them may still take up to
    /// [`test_timeout`](Builder::test_timeout) together: a test that may take no time would only destroy connections.)
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    #[inline]
    pub fn get_timeout(&self, timeout: Duration) -> Result<PooledConnection<M>, Error> {
        self.0.check_out(timeout)
    }

    /// Lends an idle connection if there is one: waits for nobody and opens none.
    /// (With [`test_on_check_out`](Builder::test_on_check_out) it still asks the server, as [`get_timeout`](Self::get_timeout) of
    /// zero does.)
    #[inline]
    pub fn try_get(&self) -> Option<PooledConnection<M>> {
        self.0.check_out(Duration::ZERO).ok()
    }

    /// Opens connections until `n` are idle or the pool is full; returns how many it opened. For a worker that wants
    /// its connections before its first request.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get). What had been opened before the error stays.
    pub fn warm_up(&self, n: u32) -> Result<u32, Error> {
        self.0.warm_up(n)
    }

    /// Closes idle connections that have expired, and opens new ones up to [`min_idle`](Builder::min_idle). The pool
    /// runs no thread: expired connections are otherwise closed when somebody comes upon them. Errors of opening are
    /// left to the next [`get`](Self::get).
    pub fn maintain(&self) {
        self.0.reap();
        let _ = self.0.warm_up(self.0.config.min_idle.unwrap_or(0));
    }

    /// Closes the idle connections of this process. The pool stays usable. For a master that is about to fork and wants
    /// to have no sockets at all.
    pub fn disconnect(&self) {
        self.0.disconnect();
    }

    /// Closes the pool: idle connections now, lent ones when they come back. [`get`](Self::get) returns an error from
    /// here on, in this process and in the children forked from it later.
    pub fn close(&self) {
        self.0.close(Deadline::never());
    }

    /// [Closes](Self::close) the pool and waits until every connection has come back.
    ///
    /// # Errors
    ///
    /// [`Error::is_timeout`] when some are still lent then. The pool is closed all the same.
    pub fn close_timeout(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(timeout);
        self.0.close(deadline);
        self.0.wait_until_empty(deadline).map_err(|usage| Error::timeout(self.0.named(), timeout, usage, None))
    }

    /// What this process's part of the pool looks like at the moment.
    pub fn state(&self) -> State {
        let closed = self.0.is_closed();
        let nothing = State { connections: 0, idle_connections: 0, waiting: 0, unknown_descriptors: 0, closed };
        self.0.existing().map_or(nothing, |local| {
            let idle = local.bag.slots.idle();
            State {
                connections: local.bag.slots.occupied().max(idle) as u32,
                idle_connections: idle as u32,
                waiting: local.bag.waiting() as u32,
                unknown_descriptors: local.unknown.load(Relaxed),
                closed,
            }
        })
    }

    /// A handle that does not keep the pool open.
    pub fn downgrade(&self) -> WeakPool<M> {
        WeakPool(Arc::downgrade(&self.0))
    }

    /// The manager that the pool was built with.
    pub fn manager(&self) -> &M {
        &self.0.manager
    }

    /// See [`Builder::max_size`].
    pub fn max_size(&self) -> u32 {
        self.0.config.max_size
    }

    /// See [`Builder::min_idle`].
    pub fn min_idle(&self) -> Option<u32> {
        self.0.config.min_idle
    }

    /// See [`Builder::test_on_check_out`].
    pub fn test_on_check_out(&self) -> bool {
        self.0.config.test_on_check_out
    }

    /// See [`Builder::max_lifetime`].
    pub fn max_lifetime(&self) -> Option<Duration> {
        self.0.config.max_lifetime
    }

    /// See [`Builder::idle_timeout`].
    pub fn idle_timeout(&self) -> Option<Duration> {
        self.0.config.idle_timeout
    }

    /// See [`Builder::connection_timeout`].
    pub fn connection_timeout(&self) -> Duration {
        self.0.config.connection_timeout
    }
}

impl<M: ManageConnection> Clone for Pool<M> {
    fn clone(&self) -> Self {
        self.0.handles.fetch_add(1, Relaxed);
        Self(Arc::clone(&self.0))
    }
}

impl<M: ManageConnection> Drop for Pool<M> {
    fn drop(&mut self) {
        // The lent connections keep `Shared` alive but are not handles: the last of those closes.
        if self.0.handles.fetch_sub(1, AcqRel) == 1 {
            self.0.close(Deadline::never());
        }
    }
}

impl<M: ManageConnection> fmt::Debug for Pool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("state", &self.state()).field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// A handle that does not keep the pool open. See [`Pool::downgrade`].
pub struct WeakPool<M: ManageConnection>(Weak<Shared<M>>);

impl<M: ManageConnection> WeakPool<M> {
    /// The pool, unless its last handle is gone.
    pub fn upgrade(&self) -> Option<Pool<M>> {
        let shared = self.0.upgrade()?;
        let counted = shared.handles.fetch_update(AcqRel, Relaxed, |n| (n > 0).then_some(n + 1));
        counted.is_ok().then(|| Pool(shared))
    }
}

impl<M: ManageConnection> Clone for WeakPool<M> {
    fn clone(&self) -> Self {
        Self(Weak::clone(&self.0))
    }
}

impl<M: ManageConnection> fmt::Debug for WeakPool<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakPool")
    }
}

/// One process's part of a pool, counted without stopping anybody: numbers of the same moment, more or less.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct State {
    /// Connections that are idle, lent or being opened.
    pub connections: u32,
    /// Those of them that are idle.
    pub idle_connections: u32,
    /// Threads that wait for one.
    pub waiting: u32,
    /// Connections whose descriptors nobody knows: a child abandons them, but they stay open there. See
    /// [`Builder::require_known_descriptors`].
    pub unknown_descriptors: u32,
    /// Whether the pool is closed.
    pub closed: bool,
}
