//! A point in time up to which somebody is ready to wait.

use crate::sync::{Condvar, MutexGuard};
use std::os::fd::RawFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// A point in time up to which a caller is ready to wait. It goes unchanged from `get` through connecting and validating
/// to the driver, so that all the steps together take no longer than the caller allowed.
///
/// ```
/// use forksafe::Deadline;
/// use std::time::Duration;
///
/// assert!(Deadline::after(Duration::from_secs(60)).remaining() <= Duration::from_secs(60));
/// assert!(Deadline::after(Duration::ZERO).is_over());
/// assert_eq!(Deadline::after(Duration::MAX).remaining(), Duration::MAX);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Option<Instant>,
    /// The socket of the connection that a pool asks its manager about: some drivers do not show it.
    socket: Option<RawFd>,
}

impl Deadline {
    /// This long from now. More than the clock can hold means never.
    pub fn after(time: Duration) -> Self {
        Self { at: Instant::now().checked_add(time), socket: None }
    }

    pub(crate) fn never() -> Self {
        Self { at: None, socket: None }
    }

    pub(crate) fn now() -> Self {
        Self::after(Duration::ZERO)
    }

    /// What is left: zero once it is over, [`Duration::MAX`] when it never ends.
    pub fn remaining(&self) -> Duration {
        self.at.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.remaining().is_zero()
    }

    /// `None` if it never comes.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for drivers with timers of their own"))]
    pub(crate) fn instant(&self) -> Option<Instant> {
        self.at
    }

    /// This one, or so long from now if that is sooner.
    pub(crate) fn or_sooner(self, time: Duration) -> Self {
        let other = Self::after(time);
        if self.remaining() < other.remaining() { self } else { other }
    }

    pub(crate) fn on(self, socket: Option<RawFd>) -> Self {
        Self { socket, ..self }
    }

    #[cfg_attr(
        not(any(feature = "postgres", feature = "redis")),
        allow(dead_code, reason = "drivers that hide their socket ask for it")
    )]
    pub(crate) fn socket(&self) -> Option<RawFd> {
        self.socket
    }

    /// Waits on a condition until it is signalled (or, now and then, for no reason) or the deadline is over.
    pub(crate) fn wait<'a, T>(&self, on: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        match self.at {
            None => on.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Some(_) => {
                let (guard, _) = on.wait_timeout(guard, self.remaining()).unwrap_or_else(PoisonError::into_inner);
                guard
            }
        }
    }
}
