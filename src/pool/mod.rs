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
mod customize;
mod dial;
mod error;
pub mod event;
mod expiry;
mod extensions;
mod guard;
mod holders;
mod lookup;
mod maintenance;
mod manager;
#[cfg(all(test, forksafe_loom))]
mod model;
mod observer;
mod queue;
mod shared;
#[allow(unsafe_code, reason = "the array of slots is the one other place for it")]
mod slots;
mod statistics;
mod telemetry;
mod typical;
mod validate;

#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) use asked::deadline as asked_until;
pub use attempt::Attempt;
pub use builder::Builder;
#[cfg(feature = "testing")]
pub(crate) use clock::advance;
pub use customize::{CustomizeConnection, HandleError, LoggingErrorHandler, NopConnectionCustomizer, NopErrorHandler};
pub use dial::{Dial, DialError, Target};
pub use error::{Error, ErrorKind};
use event::Holder;
pub use extensions::Extensions;
pub use guard::PooledConnection;
pub use manager::{Fault, ManageConnection, Reset, Unread};
pub use statistics::{Closed, ClosedCounts, Statistics};

use crate::Deadline;
use builder::Config;
use customize::Hooks;
use shared::Shared;
use std::fmt;
use std::panic::Location;
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

    fn from_parts(config: Config, hooks: Hooks<M>, manager: M) -> Self {
        Self(Shared::new(config, hooks, manager))
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
    /// - [`Error::is_queue_full`]: none was free, and [as many as may](Builder::max_waiting) were waiting.
    /// - [`Error::is_closed`]: the pool was closed, here or in the parent before the fork.
    /// - [`Error::is_unprotected`]: the new connection's descriptors could not be found, so it was closed; or this is a
    ///   child that may share its parent's descriptor table (`CLONE_FILES`); or this is the closure of an
    ///   [observation](crate::Attempt::observe).
    #[inline]
    #[track_caller]
    pub fn get(&self) -> Result<PooledConnection<M>, Error> {
        self.0.check_out(Some(self.0.config.connection_timeout), Location::caller())
    }

    /// As [`get`](Self::get), with a timeout for this call. Zero: an idle connection now, or a timeout. (Then
    /// [tests](Builder::test_on_check_out) and the goodbyes of what fails them may still take up to
    /// [`test_timeout`](Builder::test_timeout) together: a test that may take no time would only destroy connections.)
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    #[inline]
    #[track_caller]
    pub fn get_timeout(&self, timeout: Duration) -> Result<PooledConnection<M>, Error> {
        self.0.check_out(Some(timeout), Location::caller())
    }

    /// Lends an idle connection if there is one: waits for nobody and opens none.
    /// (With [`test_on_check_out`](Builder::test_on_check_out) it still asks the server, as [`get_timeout`](Self::get_timeout) of
    /// zero does.)
    #[inline]
    #[track_caller]
    pub fn try_get(&self) -> Option<PooledConnection<M>> {
        self.0.check_out(None, Location::caller()).ok()
    }

    /// Opens connections until `n` are idle or the pool is full; returns how many it opened. For a worker that wants
    /// its connections before its first request.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get). What had been opened before the error stays.
    #[track_caller]
    pub fn warm_up(&self, n: u32) -> Result<u32, Error> {
        self.0.warm_up(n, Location::caller())
    }

    /// Closes idle connections that have expired, and opens new ones up to [`min_idle`](Builder::min_idle). The pool
    /// runs no thread: expired connections are otherwise closed when somebody comes upon them. Errors of opening are
    /// left to the next [`get`](Self::get). Tells the [event handler](Builder::event_handler) of connections that have been lent for
    /// [too long](Builder::leak_threshold).
    #[track_caller]
    pub fn maintain(&self) {
        if crate::fork::is_apart() {
            return;
        }
        let place = Location::caller();
        self.0.reap(place);
        let _ = self.0.warm_up(self.0.config.min_idle.unwrap_or(0), place);
        if let Some(local) = self.0.ready() {
            self.0.tell_leaks(local);
            self.0.tell_state(local);
        }
    }

    /// Closes what was opened before now (soft eviction): idle connections at once, lent ones when they come back. For a
    /// failover that you know of, or credentials that were revoked. The goodbyes of the idle ones take five seconds at most, together.
    pub fn evict(&self) {
        if !crate::fork::is_apart() {
            self.0.evict();
        }
    }

    /// Changes how many connections this process, and the children that it forks from now on, may have. If there are more,
    /// idle ones are closed now and lent ones as they come back. See [`Builder::max_size`].
    ///
    /// # Errors
    ///
    /// [`Error::is_config`] for a size that makes no sense; nothing is changed then.
    pub fn resize(&self, max_size: u32) -> Result<(), Error> {
        builder::check_size(max_size, self.0.config.min_idle)?;
        self.0.resize(max_size);
        Ok(())
    }

    /// Closes the idle connections of this process. The pool stays usable. For a master that is about to fork and wants
    /// to have no sockets at all.
    pub fn disconnect(&self) {
        if !crate::fork::is_apart() {
            self.0.disconnect();
        }
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
        let nothing = State {
            connections: 0,
            idle_connections: 0,
            connecting: 0,
            waiting: 0,
            unknown_descriptors: 0,
            leaks: Vec::new(),
            closed,
        };
        self.0.existing().map_or(nothing, |local| {
            let idle = local.bag.slots.idle();
            State {
                connections: local.bag.slots.occupied().max(idle) as u32,
                idle_connections: idle as u32,
                connecting: local.counters.connecting.load(Relaxed) as u32,
                waiting: local.bag.waiting() as u32,
                unknown_descriptors: local.unknown.load(Relaxed),
                leaks: self.0.held_too_long(local).map(|(.., holder)| holder).collect(),
                closed,
            }
        })
    }

    /// What has happened in this process's part of the pool. `None` before its first use here, and so in a child until it uses
    /// the pool.
    ///
    /// ```
    /// # use forksafe::{ManageConnection, Pool};
    /// # struct Numbers;
    /// # impl ManageConnection for Numbers {
    /// #     type Connection = u32;
    /// #     type Error = std::convert::Infallible;
    /// #     fn connect(&self) -> Result<u32, Self::Error> { Ok(7) }
    /// #     fn is_valid(&self, _: &mut u32) -> Result<(), Self::Error> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut u32) -> bool { false }
    /// # }
    /// use forksafe::Closed;
    ///
    /// let pool = Pool::builder().max_uses(Some(3)).build(Numbers)?;
    /// for _ in 0..4 {
    ///     pool.get()?;
    /// }
    /// let statistics = pool.statistics().unwrap();
    /// assert_eq!((statistics.lent, statistics.created), (4, 2));
    /// assert_eq!(statistics.closed.of(Closed::Used), 1);
    /// # Ok::<_, forksafe::Error>(())
    /// ```
    pub fn statistics(&self) -> Option<Statistics> {
        let local = self.0.existing()?;
        let lent = local.bag.slots.all_loans();
        Some(local.counters.read(lent, crate::fork::generation()))
    }

    /// See [`Builder::name`].
    pub fn name(&self) -> Option<&str> {
        self.0.config.name.as_deref()
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
        self.0.max_size.load(Relaxed)
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
        let mut shown = f.debug_struct("Pool");
        shown.field("state", &self.state()).field("statistics", &self.statistics());
        shown
            .field("max_size", &self.max_size())
            .field("config", &self.0.config)
            .field("hooks", &self.0.hooks)
            .finish_non_exhaustive()
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
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct State {
    /// Connections that are idle, lent or being opened.
    pub connections: u32,
    /// Those of them that are idle.
    pub idle_connections: u32,
    /// Those of them that are being opened.
    pub connecting: u32,
    /// Threads that wait for one.
    pub waiting: u32,
    /// Connections whose descriptors nobody knows: a child abandons them, but they stay open there. See
    /// [`Builder::require_known_descriptors`].
    pub unknown_descriptors: u32,
    /// Who has had a connection for longer than [`Builder::leak_threshold`], if that is set.
    pub leaks: Vec<Holder>,
    /// Whether the pool is closed.
    pub closed: bool,
}
