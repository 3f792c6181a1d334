//! What a service manager is told, if one asks to be (`Type=notify`, `notify-reload`, `WatchdogSec`): see sd_notify(3).

use super::board::millis;
use super::say;
use sd_notify::{NotifyState, notify, watchdog_enabled};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct ServiceManager {
    /// How often it wants to hear that all is well.
    watchdog: Option<Duration>,
    fed_at: u64,
    status: String,
    is_deaf: bool,
}

impl ServiceManager {
    pub(super) fn new() -> Self {
        // Twice as often as it has to be.
        Self { watchdog: watchdog_enabled().map(|limit| limit / 2), fed_at: 0, status: String::new(), is_deaf: false }
    }

    /// All workers serve; or what was to be loaded anew is.
    pub(super) fn ready(&mut self) {
        self.tell(&[NotifyState::Ready]);
    }

    pub(super) fn reloading(&mut self) {
        // Without the moment it would wait for one that comes later.
        let now = NotifyState::monotonic_usec_now();
        self.tell(&[NotifyState::Reloading, now.unwrap_or(NotifyState::MonotonicUsec(0))]);
    }

    pub(super) fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// Now and then: how the cluster stands, when that has changed, and that all is well, if it is.
    pub(super) fn hears(&mut self, status: String, all_is_well: bool, now: u64) {
        if status != self.status {
            self.status = status;
            self.tell(&[NotifyState::Status(&self.status.clone())]);
        }
        if let Some(limit) = self.watchdog
            && all_is_well
            && now >= self.fed_at + millis(limit)
        {
            self.fed_at = now;
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    fn tell(&mut self, what: &[NotifyState<'_>]) {
        if let Err(error) = notify(what)
            && !std::mem::replace(&mut self.is_deaf, true)
        {
            say(&format!("cannot tell the service manager: {error}"));
        }
    }
}
