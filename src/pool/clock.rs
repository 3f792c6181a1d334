//! Time for expiry: coarse (a few milliseconds) and cheap (a few nanoseconds).

use nix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Nanoseconds on a clock that only goes forward. `u64::MAX` is never.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Coarse(u64);

impl Coarse {
    pub(super) const NEVER: Self = Self(u64::MAX);

    #[inline]
    pub(super) fn now() -> Self {
        clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
            .map_or(Self(0), |time| Self(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64))
    }

    pub(super) fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This long after; more than the clock can hold is never.
    #[inline]
    pub(super) fn plus(self, time: Span) -> Self {
        Self(self.0.saturating_add(time.0))
    }
}

/// A length of time on that clock, worked out once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span(u64);

impl Span {
    /// No limit is for ever, and so is more than the clock can hold.
    pub(super) fn of(time: Option<Duration>) -> Self {
        Self(time.and_then(|time| u64::try_from(time.as_nanos()).ok()).unwrap_or(u64::MAX))
    }
}
