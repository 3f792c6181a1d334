//! A server that is away is waited for, and it is said once, not by every thread at every attempt.

use crate::say::{say, with_causes};
use forksafe::Deadline;
use forksafe::cluster::Shutdown;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

pub(crate) static REDIS: Outage = Outage::of("Redis");
pub(crate) static POSTGRES: Outage = Outage::of("PostgreSQL");

/// A plain atomic: whatever the master was about at the fork, nobody waits for it.
pub(crate) struct Outage {
    server: &'static str,
    is_known: AtomicBool,
}

impl Outage {
    const fn of(server: &'static str) -> Self {
        Self { server, is_known: AtomicBool::new(false) }
    }

    pub(crate) fn is_away(&self, why: &(dyn Error + 'static)) {
        if !self.is_known.swap(true, Relaxed) {
            say(&format!("{} is away, and waited for; no job is lost meanwhile: {}", self.server, with_causes(why)));
        }
    }

    pub(crate) fn is_there(&self) {
        // Read first: all threads come by here for each job.
        if self.is_known.load(Relaxed) && self.is_known.swap(false, Relaxed) {
            say(&format!("{} is back", self.server));
        }
    }
}

/// How long to wait before the next attempt.
pub(crate) struct BackOff(Duration);

impl BackOff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    pub(crate) fn new() -> Self {
        Self(Self::FIRST)
    }

    /// Shorter if the worker has to end: whether it has.
    pub(crate) fn wait(&mut self, shutdown: &Shutdown) -> bool {
        let jittered = self.0.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.0 = (self.0 * 2).min(Self::LONGEST);
        shutdown.wait(Deadline::after(jittered))
    }
}
