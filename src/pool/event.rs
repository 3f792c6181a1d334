//! What can be told of a pool as it happens. The names are r2d2's, and so is the module's.

use super::Closed;
use std::fmt;
use std::panic::Location;
use std::time::Duration;

/// Is told what happens in a pool, on the thread to which it happens and before that goes on. Set by
/// [`Builder::event_handler`](crate::Builder::event_handler).
///
/// It has to be quick, and must not use the pool that it is told of. In a child it is told nothing before the hooks of
/// [`on_child`](crate::fork::on_child) are through: what it locks may have been locked at the fork, and is for a hook to renew.
pub trait HandleEvent: fmt::Debug + Send + Sync + 'static {
    /// A connection was opened.
    fn handle_acquire(&self, event: AcquireEvent) {
        let _ = event;
    }

    /// A connection was closed, or left the pool.
    fn handle_release(&self, event: ReleaseEvent) {
        let _ = event;
    }

    /// A connection was lent.
    fn handle_checkout(&self, event: CheckoutEvent) {
        let _ = event;
    }

    /// Nothing became free in time.
    fn handle_timeout(&self, event: TimeoutEvent) {
        let _ = event;
    }

    /// A connection came back, in whatever state.
    fn handle_checkin(&self, event: CheckinEvent) {
        let _ = event;
    }

    /// A connection has been lent for longer than [`leak_threshold`](crate::Builder::leak_threshold): told once of each loan, by
    /// [`maintain`](crate::Pool::maintain) and when a `get` times out.
    fn handle_leak(&self, event: LeakEvent) {
        let _ = event;
    }
}

/// Is told everything and does nothing.
#[derive(Clone, Copy, Debug)]
pub struct NopEventHandler;

impl HandleEvent for NopEventHandler {}

/// A connection was opened.
#[derive(Debug)]
pub struct AcquireEvent {
    pub(super) id: u64,
    pub(super) duration: Duration,
}

impl AcquireEvent {
    /// Which one: see [`PooledConnection::id`](crate::PooledConnection::id).
    pub fn connection_id(&self) -> u64 {
        self.id
    }

    /// How long it took to open.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// A connection was closed, or left the pool.
#[derive(Debug)]
pub struct ReleaseEvent {
    pub(super) id: u64,
    pub(super) age: Duration,
    pub(super) why: Closed,
}

impl ReleaseEvent {
    /// Which one.
    pub fn connection_id(&self) -> u64 {
        self.id
    }

    /// How long ago it was opened.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Why.
    pub fn why(&self) -> Closed {
        self.why
    }
}

/// A connection was lent.
#[derive(Debug)]
pub struct CheckoutEvent {
    pub(super) id: u64,
    pub(super) duration: Duration,
}

impl CheckoutEvent {
    /// Which one.
    pub fn connection_id(&self) -> u64 {
        self.id
    }

    /// How long `get` took.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// Nothing became free in time.
#[derive(Debug)]
pub struct TimeoutEvent {
    pub(super) timeout: Duration,
}

impl TimeoutEvent {
    /// The time that the call had.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// A connection came back.
#[derive(Debug)]
pub struct CheckinEvent {
    pub(super) id: u64,
    pub(super) duration: Duration,
}

impl CheckinEvent {
    /// Which one.
    pub fn connection_id(&self) -> u64 {
        self.id
    }

    /// For how long it was lent.
    pub fn duration(&self) -> Duration {
        self.duration
    }
}

/// A connection has been lent for very long.
#[derive(Debug)]
pub struct LeakEvent {
    pub(super) holder: Holder,
}

impl LeakEvent {
    /// The line that asked for it, and for how long it has been lent.
    pub fn holder(&self) -> Holder {
        self.holder
    }
}

/// Who has a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Holder {
    /// For how long, at least: measured to a second.
    pub held_for: Duration,
    /// The line that called `get`.
    pub location: &'static Location<'static>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for {:.1?}, by {}", self.held_for, self.location)
    }
}
