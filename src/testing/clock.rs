//! The clock of the pools, to be moved by tests.

use std::time::Duration;

/// Moves the clock by which pools judge age and rest, in this process and in children forked from it later: a test of
/// [`max_lifetime`](crate::Builder::max_lifetime), [`idle_timeout`](crate::Builder::idle_timeout),
/// [`test_after`](crate::Builder::test_after) or [`dns_ttl`](crate::Builder::dns_ttl) need not wait. Deadlines are not moved.
///
/// ```
/// use forksafe::testing::advance_clock;
/// use std::time::Duration;
///
/// advance_clock(Duration::from_secs(3600)); // every idle connection has expired
/// ```
pub fn advance_clock(time: Duration) {
    crate::pool::advance(time);
}
