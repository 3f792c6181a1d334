//! A point in time up to which somebody is ready to wait.

use crate::sync::{Condvar, MutexGuard};
use std::io;
use std::os::fd::RawFd;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// The bounds of [`Deadline::socket_timeout`].
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

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

    pub(crate) const NEVER: Self = Self { at: None, socket: None };

    /// A deadline that never comes: who has it waits for ever.
    pub fn never() -> Self {
        Self::NEVER
    }

    /// This point in time.
    ///
    /// ```
    /// use forksafe::Deadline;
    /// use std::time::{Duration, Instant};
    ///
    /// let soon = Deadline::at(Instant::now() + Duration::from_secs(1));
    /// assert!(!soon.is_over());
    /// assert!(Deadline::at(Instant::now()).is_over());
    /// ```
    pub fn at(at: Instant) -> Self {
        Self { at: Some(at), socket: None }
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

    /// What is left, as a timeout for a socket: at least a millisecond, because zero is refused by `set_read_timeout`
    /// and means "for ever" to the kernel, and at most a year, which every system's type can hold.
    ///
    /// ```
    /// use forksafe::Deadline;
    /// use std::io;
    /// use std::net::{TcpListener, TcpStream};
    /// use std::time::Duration;
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let deadline = Deadline::after(Duration::from_secs(5));
    /// let stream = TcpStream::connect_timeout(&server.local_addr()?, deadline.socket_timeout()?)?;
    /// stream.set_read_timeout(Some(deadline.socket_timeout()?))?;
    ///
    /// let over = Deadline::after(Duration::ZERO).socket_timeout();
    /// assert_eq!(over.unwrap_err().kind(), io::ErrorKind::TimedOut);
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`TimedOut`](io::ErrorKind::TimedOut) when nothing is left.
    pub fn socket_timeout(&self) -> io::Result<Duration> {
        match self.remaining() {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left.clamp(SHORTEST, LONGEST)),
        }
    }

    /// The sooner of the two. What the deadline is [for](Self::socket) is kept from the first.
    ///
    /// ```
    /// use forksafe::Deadline;
    /// use std::time::Duration;
    ///
    /// let both = Deadline::never().sooner(Deadline::after(Duration::from_secs(5)));
    /// assert!(both.remaining() <= Duration::from_secs(5));
    /// ```
    #[must_use]
    pub fn sooner(self, other: Self) -> Self {
        let at = match (self.at, other.at) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self { at, ..self }
    }

    /// `None` if it never comes.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for drivers with timers of their own"))]
    pub(crate) fn instant(&self) -> Option<Instant> {
        self.at
    }

    /// This one, or so long from now if that is sooner.
    pub(crate) fn or_sooner(self, time: Duration) -> Self {
        self.sooner(Self::after(time))
    }

    pub(crate) fn on(self, socket: Option<RawFd>) -> Self {
        Self { socket, ..self }
    }

    /// This long before.
    pub(crate) fn earlier_by(self, time: Duration) -> Self {
        Self { at: self.at.map(|at| at.checked_sub(time).unwrap_or(at)), ..self }
    }

    /// The number of the socket of the connection that this deadline is for, where a pool asks its manager about one (validation,
    /// reset, goodbye) and its descriptors are known. It is what was registered when the connection was made: for drivers
    /// that do not show their socket.
    pub fn socket(&self) -> Option<RawFd> {
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
