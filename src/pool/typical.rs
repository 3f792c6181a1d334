//! How long something takes, most of the time: a running mean, kept without a lock. Of two notes that overlap one may be lost.

use super::clock::Coarse;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Typical {
    mean: AtomicU64,
    /// When it was noted last, or doubted.
    noted_at: AtomicU64,
}

/// After so long without news somebody may try what the mean speaks against.
const OLD: Duration = Duration::from_secs(1);

impl Typical {
    pub(super) fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.mean.load(Relaxed);
        self.mean.store(if before == 0 { took } else { before - before / 4 + took / 4 }, Relaxed);
        self.noted_at.store(Coarse::now().as_nanos(), Relaxed);
    }

    /// Zero until it is known.
    pub(super) fn time(&self) -> Duration {
        Duration::from_nanos(self.mean.load(Relaxed))
    }

    /// Whether it is old. Then the caller, and for some time nobody else, is to find out whether it still holds: an estimate that
    /// keeps everybody from trying would never be corrected.
    pub(super) fn is_to_be_doubted(&self) -> bool {
        let (noted, now) = (self.noted_at.load(Relaxed), Coarse::now());
        now.since(Coarse::from_nanos(noted)) >= OLD
            && self.noted_at.compare_exchange(noted, now.as_nanos(), Relaxed, Relaxed).is_ok()
    }
}
