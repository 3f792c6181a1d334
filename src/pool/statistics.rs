//! What happened in one process's part of a pool, counted.

use crate::fork::Generation;
use std::array;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Why a connection was closed, or left its pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Closed {
    /// It was older than [`max_lifetime`](crate::Builder::max_lifetime).
    Expired,
    /// It had been idle for longer than [`idle_timeout`](crate::Builder::idle_timeout).
    Idle,
    /// It had been lent [`max_uses`](crate::Builder::max_uses) times.
    Used,
    /// It failed its test, or a look at its socket said that it had ended.
    Invalid,
    /// Its manager called it broken when it came back, an error that was reported condemned it, or it could not be reset.
    Broken,
    /// Its holder panicked.
    Panicked,
    /// Its holder [discarded](crate::PooledConnection::discard) it.
    Discarded,
    /// Its holder [took](crate::PooledConnection::detach) it. It lives on.
    Detached,
    /// It had been opened before its server was found to be not what it was, or before [`evict`](crate::Pool::evict).
    Evicted,
    /// The pool was asked to [`disconnect`](crate::Pool::disconnect).
    Disconnected,
    /// The pool has become [smaller](crate::Pool::resize).
    Surplus,
    /// A [hook](crate::Builder::before_acquire) refused it.
    Refused,
    /// The pool was closed.
    PoolClosed,
}

impl Closed {
    /// All that there are.
    pub const ALL: [Self; 13] = [
        Self::Expired,
        Self::Idle,
        Self::Used,
        Self::Invalid,
        Self::Broken,
        Self::Panicked,
        Self::Discarded,
        Self::Detached,
        Self::Evicted,
        Self::Disconnected,
        Self::Surplus,
        Self::Refused,
        Self::PoolClosed,
    ];

    /// In a word, as it is in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Idle => "idle",
            Self::Used => "used",
            Self::Invalid => "invalid",
            Self::Broken => "broken",
            Self::Panicked => "panicked",
            Self::Discarded => "discarded",
            Self::Detached => "detached",
            Self::Evicted => "evicted",
            Self::Disconnected => "disconnected",
            Self::Surplus => "surplus",
            Self::Refused => "refused",
            Self::PoolClosed => "pool closed",
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many connections were closed, for each [reason](Closed).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct ClosedCounts([u64; Closed::ALL.len()]);

impl ClosedCounts {
    /// For one reason.
    pub fn of(&self, why: Closed) -> u64 {
        self.0[why as usize]
    }

    /// For all of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl fmt::Debug for ClosedCounts {
    /// Of what there was any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = Closed::ALL.into_iter().map(|why| (why, self.of(why))).filter(|&(_, count)| count > 0);
        f.debug_map().entries(some).finish()
    }
}

/// What happened in this process's part of a pool since it began. A child begins at zero. Counted without stopping anybody: of what
/// happens meanwhile some numbers may tell already, and others not yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Statistics {
    /// Connections lent, all in all.
    pub lent: u64,
    /// Those of them that somebody had waited for in line; the others were lent directly, or opened for the caller.
    pub waited: u64,
    /// How long callers have waited in line, together, those that waited in vain included.
    pub wait_time: Duration,
    /// Calls that got a connection, but took longer than [`slow_threshold`](crate::Builder::slow_threshold).
    pub slow: u64,
    /// Calls that ended with a [timeout](crate::Error::is_timeout).
    pub timed_out: u64,
    /// Calls that were turned away because [so many](crate::Builder::max_waiting) waited already.
    pub turned_away: u64,
    /// Connections opened.
    pub created: u64,
    /// How long it took to open them, together.
    pub connect_time: Duration,
    /// Attempts to open one that failed.
    pub failed: u64,
    /// Connections whose server was asked whether it is there.
    pub tested: u64,
    /// How long that took, together.
    pub test_time: Duration,
    /// Connections closed, by reason.
    pub closed: ClosedCounts,
    /// Connections that ancestors of this process had open in this pool when it was forked; it dropped them.
    pub inherited: u64,
    /// Which process this is about.
    pub generation: Generation,
}

/// Numbers that are counted where nobody is in a hurry.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) waited: AtomicU64,
    pub(super) wait_nanos: AtomicU64,
    pub(super) slow: AtomicU64,
    pub(super) timed_out: AtomicU64,
    pub(super) turned_away: AtomicU64,
    pub(super) created: AtomicU64,
    pub(super) connect_nanos: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) tested: AtomicU64,
    pub(super) test_nanos: AtomicU64,
    closed: [AtomicU64; Closed::ALL.len()],
    /// How many are being opened at the moment.
    pub(super) connecting: AtomicU64,
    pub(super) inherited: u64,
}

impl Counters {
    pub(super) fn new(inherited: u64) -> Self {
        Self { inherited, ..Self::default() }
    }

    pub(super) fn closed(&self, why: Closed) {
        add(&self.closed[why as usize], 1);
    }

    pub(super) fn read(&self, lent: u64, generation: Generation) -> Statistics {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        let time = |nanos: &AtomicU64| Duration::from_nanos(nanos.load(Relaxed));
        Statistics {
            lent,
            waited: read(&self.waited),
            wait_time: time(&self.wait_nanos),
            slow: read(&self.slow),
            timed_out: read(&self.timed_out),
            turned_away: read(&self.turned_away),
            created: read(&self.created),
            connect_time: time(&self.connect_nanos),
            failed: read(&self.failed),
            tested: read(&self.tested),
            test_time: time(&self.test_nanos),
            closed: ClosedCounts(array::from_fn(|why| read(&self.closed[why]))),
            inherited: self.inherited,
            generation,
        }
    }
}

pub(super) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Relaxed);
}

pub(super) fn add_time(nanos: &AtomicU64, time: Duration) {
    add(nanos, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}
