//! When a connection is too old, has been idle for too long, and has to be looked at again. Arithmetic only: whoever asks says
//! what time it is.

use super::builder::Config;
use super::clock::{Coarse, Second, Span};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The limits of a pool, worked out once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    max_lifetime: Span,
    idle_timeout: Span,
    test_after: Span,
    /// How often ordinary traffic looks for connections that have been idle for too long.
    pub(super) sweep_every: Span,
}

/// A lifetime ends up to a tenth early, so that connections which were opened together are not all replaced together.
const JITTER_PER_MILLE: u64 = 100;

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        let idle_timeout = Span::of(config.idle_timeout);
        Self {
            max_lifetime: Span::of(config.max_lifetime),
            idle_timeout,
            test_after: Span::of(Some(config.test_after)),
            sweep_every: idle_timeout.part(125).clamp(Duration::from_millis(5), Duration::from_secs(60)),
        }
    }

    /// For a connection that is opened now. `chance` is what siblings differ in.
    pub(super) fn born(&self, now: Coarse, chance: u64) -> Times {
        let lifetime = if self.max_lifetime.is_endless() {
            self.max_lifetime
        } else {
            self.max_lifetime.less_a_part_of(JITTER_PER_MILLE, chance)
        };
        let expires_at = now.plus(lifetime);
        let idle_until = now.plus(self.idle_timeout);
        Times {
            expires_at,
            idle_until,
            proved_at: now,
            trusted_until: now,
            is_fresh: false,
            second: Second::NONE,
            ask_again_at: now,
        }
        .proved(now, self)
    }
}

/// The times of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    expires_at: Coarse,
    /// Set at each checkout, from when on nobody knows for how long it is lent.
    idle_until: Coarse,
    /// When it was last known to be alive.
    pub(super) proved_at: Coarse,
    /// Until then it is lent as it is: the soonest of all that has to be asked about it.
    trusted_until: Coarse,
    /// Whether it is trusted all through this second; and when that may change.
    is_fresh: bool,
    second: Second,
    ask_again_at: Coarse,
}

impl Times {
    /// Whether it may be lent without even asking for the time, but for the second.
    #[inline]
    pub(super) fn is_fresh(&self, second: impl FnOnce() -> Second) -> bool {
        self.is_fresh && self.second == second()
    }

    /// While it is fresh: the end of the second.
    #[inline]
    pub(super) fn fresh_until(&self) -> Coarse {
        self.ask_again_at
    }

    /// Whether it may have become fresh since that was worked out.
    #[inline]
    pub(super) fn may_be_fresh(&self, now: Coarse) -> bool {
        now >= self.ask_again_at
    }

    /// It is lent at `now`, in a second that lasts for as long as `left`. If it is fresh until the end of it, nobody notes when it is
    /// lent until then: an idle timeout begins there.
    pub(super) fn begin_second(&mut self, now: Coarse, (second, left): (Second, Duration), limits: &Limits) {
        let end = now.plus_duration(left);
        self.second = second;
        self.is_fresh = end <= self.trusted_until;
        self.ask_again_at = end;
        self.checked_out(if self.is_fresh { end } else { now }, limits);
    }

    /// Whether it may be lent without another look.
    #[inline]
    pub(super) fn is_trusted(&self, now: Coarse) -> bool {
        now < self.trusted_until
    }

    pub(super) fn has_expired(&self, now: Coarse) -> bool {
        now >= self.expires_at
    }

    /// Whether it has been idle for too long.
    pub(super) fn is_stale(&self, now: Coarse) -> bool {
        now >= self.idle_until
    }

    pub(super) fn is_proved(&self, now: Coarse, limits: &Limits) -> bool {
        now < self.proved_at.plus(limits.test_after)
    }

    /// It is known to be alive, by a round trip or by being new.
    pub(super) fn proved(mut self, now: Coarse, limits: &Limits) -> Self {
        self.proved_at = now;
        self.looked_at(now, limits)
    }

    /// It has been idle for long, but is wanted all the same.
    pub(super) fn renewed(mut self, now: Coarse, limits: &Limits) -> Self {
        self.checked_out(now, limits);
        self
    }

    /// It is lent.
    #[inline]
    pub(super) fn checked_out(&mut self, now: Coarse, limits: &Limits) {
        self.idle_until = now.plus(limits.idle_timeout);
    }

    /// Nothing speaks against it until some time has passed.
    pub(super) fn looked_at(mut self, now: Coarse, limits: &Limits) -> Self {
        let soonest = self.proved_at.plus(limits.test_after).min(now.plus(limits.sweep_every));
        self.is_fresh = false;
        self.ask_again_at = now;
        self.trusted_until = soonest.min(self.expires_at).min(now.plus(limits.idle_timeout));
        self
    }
}

/// What siblings differ in, though they are copies of one another: hardly anything that lies in memory.
pub(super) fn chance() -> u64 {
    let here = (crate::fork::Origin::current(), std::thread::current().id(), std::time::Instant::now());
    RandomState::new().hash_one(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    /// Whoever skips the clock for the rest of a second may not by that skip what is due in it.
    #[test]
    fn it_is_fresh_for_a_second_only_if_it_is_trusted_all_through_it() {
        let idle_timeout = Span::of(Some(MILLI * 60_000));
        let limits = Limits {
            max_lifetime: Span::of(None),
            idle_timeout,
            test_after: Span::of(Some(MILLI * 500)),
            sweep_every: Span::of(Some(MILLI * 10_000)),
        };
        let begin = Coarse::from_nanos(1_000_000_000_000);
        let second = Second::now();
        for (left, is_fresh) in [(400, true), (500, true), (501, false), (1000, false)] {
            let mut times = limits.born(begin, 0);
            assert!(!times.is_fresh(|| second), "nobody has worked it out");
            assert!(times.may_be_fresh(begin));
            times.begin_second(begin, (second, MILLI * left), &limits);
            assert_eq!(times.is_fresh(|| second), is_fresh, "{left} ms are left");
            assert!(!times.is_fresh(|| Second::NONE), "another second is another matter");
            let end = begin.plus_duration(MILLI * left);
            assert!(!times.may_be_fresh(begin) && times.may_be_fresh(end));
            let idle_since = if is_fresh { end } else { begin };
            assert!(!times.is_stale(begin.plus(idle_timeout)) || !is_fresh);
            assert!(times.is_stale(idle_since.plus(idle_timeout)));
            // What is found out anew has to be worked out anew.
            assert!(!times.looked_at(begin, &limits).is_fresh(|| second));
        }
    }
}
