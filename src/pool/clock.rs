//! Time for expiry: coarse (a few milliseconds) and cheap (a few nanoseconds).

use crate::fork;
use nix::time::{ClockId, clock_gettime};
#[cfg(feature = "testing")]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Nanoseconds on a clock that only goes forward, and that parent and child share. `u64::MAX` is never.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Coarse(u64);

/// What a test has moved the clock by.
#[cfg(feature = "testing")]
static AHEAD: AtomicU64 = AtomicU64::new(0);

/// Moves the clock of all pools of this process, and of its later children.
#[cfg(feature = "testing")]
pub(crate) fn advance(time: Duration) {
    AHEAD.fetch_add(nanos(time), Relaxed);
}

impl Coarse {
    /// The clock goes in steps of at most this (`CONFIG_HZ` of 100).
    pub(super) const RESOLUTION: Duration = Duration::from_millis(10);

    #[inline]
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
            .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64);
        #[cfg(feature = "testing")]
        let now = now + AHEAD.load(Relaxed);
        Self(now)
    }

    pub(super) fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub(super) fn as_nanos(self) -> u64 {
        self.0
    }

    pub(super) fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This long after; more than the clock can hold is never.
    #[inline]
    pub(super) fn plus(self, time: Span) -> Self {
        Self(self.0.saturating_add(time.0))
    }

    pub(super) fn plus_duration(self, time: Duration) -> Self {
        self.plus(Span(nanos(time)))
    }

    /// Zero if the other is later.
    pub(super) fn since(self, other: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(other.0))
    }
}

/// A second of the wall clock. Which one it is costs a third of a look at the coarse clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Second(i64);

impl Second {
    /// No second that is now.
    pub(super) const NONE: Self = Self(i64::MIN);

    #[inline]
    pub(super) fn now() -> Self {
        Self::of(fork::wall_second())
    }

    /// This second, and how long it will last.
    pub(super) fn now_and_left() -> (Self, Duration) {
        let Ok(time) = clock_gettime(ClockId::CLOCK_REALTIME_COARSE) else { return (Self::NONE, Duration::ZERO) };
        (Self::of(time.tv_sec()), Duration::from_nanos(1_000_000_000 - time.tv_nsec() as u64))
    }

    #[inline]
    fn of(second: i64) -> Self {
        // When a test moves the clock, it is another second for sure.
        #[cfg(feature = "testing")]
        let second = second.wrapping_add(AHEAD.load(Relaxed) as i64);
        Self(second)
    }
}

/// A length of time on that clock, worked out once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Span(u64);

impl Span {
    /// No limit is for ever, and so is more than the clock can hold.
    pub(super) fn of(time: Option<Duration>) -> Self {
        Self(time.map_or(u64::MAX, nanos))
    }

    pub(super) fn is_endless(self) -> bool {
        self.0 == u64::MAX
    }

    /// This part of it: `per_mille` thousandths.
    pub(super) fn part(self, per_mille: u64) -> Self {
        let part = u128::from(self.0) * u128::from(per_mille) / 1000;
        Self(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// Shorter by up to so many thousandths, as chance will have it.
    pub(super) fn less_a_part_of(self, per_mille: u64, chance: u64) -> Self {
        let most = u128::from(self.part(per_mille).0);
        Self(self.0 - ((most * u128::from(chance)) >> 64) as u64)
    }

    pub(super) fn clamp(self, shortest: Duration, longest: Duration) -> Self {
        Self(self.0.clamp(nanos(shortest), nanos(longest)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
