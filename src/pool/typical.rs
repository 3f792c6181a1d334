//! How long something takes, most of the time: a running mean, kept without a lock. Of two notes that overlap one may be lost.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

#[derive(Default)]
pub(super) struct Typical(AtomicU64);

impl Typical {
    pub(super) fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let before = self.0.load(Relaxed);
        self.0.store(if before == 0 { took } else { before - before / 4 + took / 4 }, Relaxed);
    }

    /// Zero until it is known.
    pub(super) fn time(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }
}
