//! What happens in a pool: it is counted, and told to those who want to know.
//!
//! In a child nobody is told anything until the hooks of [`on_child`](crate::fork::on_child) are through: what those who listen
//! lock may have been locked at the fork.

use super::error::Usage;
use super::event::{AcquireEvent, CheckinEvent, CheckoutEvent, HandleEvent, LeakEvent, ReleaseEvent, TimeoutEvent};
use super::shared::{Call, Local, Shared};
use super::statistics::{add, add_time};
#[cfg(any(feature = "tracing", feature = "metrics"))]
use super::telemetry::Telemetry;
use super::{Closed, Holder, ManageConnection};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

/// Without one of those features there is nothing to tell it to.
macro_rules! telemetry {
    ($shared:ident, $local:ident, $tell:ident($($what:expr),*)) => {
        #[cfg(any(feature = "tracing", feature = "metrics"))]
        if $shared.may_tell($local) {
            Telemetry($shared.config.name.as_ref()).$tell($($what),*);
        }
    };
}

impl<M: ManageConnection> Shared<M> {
    /// Whether anybody may be told.
    pub(super) fn may_tell(&self, local: &Local<M>) -> bool {
        local.ready.load(Acquire)
    }

    fn tell(&self, local: &Local<M>, event: impl FnOnce(&dyn HandleEvent)) {
        if let Some(events) = &self.hooks.events
            && self.may_tell(local)
        {
            event(&**events);
        }
    }

    /// This process uses the pool for the first time, and its hooks are through.
    pub(super) fn begun(&self, local: &Local<M>) {
        telemetry!(self, local, begun(local.counters.inherited));
        let _ = local;
    }

    /// A connection was opened. Returns which one it is.
    pub(super) fn opened(&self, local: &Local<M>, duration: Duration) -> u64 {
        self.open.fetch_add(1, Relaxed);
        add_time(&local.counters.connect_nanos, duration);
        let id = local.counters.created.fetch_add(1, Relaxed);
        telemetry!(self, local, opened(id, duration));
        self.tell(local, |events| events.handle_acquire(AcquireEvent { id, duration }));
        id
    }

    /// One could not be.
    pub(super) fn not_opened(&self, local: &Local<M>, why: &str) {
        add(&local.counters.failed, 1);
        telemetry!(self, local, not_opened(why));
        let _ = why;
    }

    /// A server was asked whether it is there.
    pub(super) fn tested(&self, local: &Local<M>, took: Duration) {
        add(&local.counters.tested, 1);
        add_time(&local.counters.test_nanos, took);
        telemetry!(self, local, tested(took));
    }

    /// A connection leaves the pool.
    pub(super) fn ended(&self, local: &Local<M>, id: u64, opened_at: Instant, why: Closed) {
        self.open.fetch_sub(1, Relaxed);
        local.counters.closed(why);
        telemetry!(self, local, ended(id, opened_at.elapsed(), why));
        self.tell(local, |events| events.handle_release(ReleaseEvent { id, age: opened_at.elapsed(), why }));
    }

    /// A connection is lent, and not in the shortest way.
    pub(super) fn lent(&self, local: &Local<M>, id: u64, call: &Call) {
        let took = call.begun.elapsed();
        if took > self.config.slow_threshold {
            add(&local.counters.slow, 1);
            telemetry!(self, local, slow(took, call.place));
        }
        self.tell(local, |events| events.handle_checkout(CheckoutEvent { id, duration: took }));
    }

    /// It has come back.
    pub(super) fn returned(&self, local: &Local<M>, id: u64, duration: Duration) {
        self.tell(local, |events| events.handle_checkin(CheckinEvent { id, duration }));
    }

    /// Somebody has been in line.
    pub(super) fn waited(&self, local: &Local<M>, time: Duration, in_vain: bool) {
        add_time(&local.counters.wait_nanos, time);
        if !in_vain {
            add(&local.counters.waited, 1);
        }
        telemetry!(self, local, waited(time));
    }

    /// A call has not been served in time.
    pub(super) fn ran_out(&self, local: &Local<M>, timeout: Duration, usage: &Usage) {
        add(&local.counters.timed_out, 1);
        telemetry!(self, local, timed_out(timeout, usage));
        let _ = usage;
        self.tell(local, |events| events.handle_timeout(TimeoutEvent { timeout }));
    }

    /// One has not even been allowed to wait.
    pub(super) fn refused_to_wait(&self, local: &Local<M>, usage: &Usage) {
        add(&local.counters.turned_away, 1);
        telemetry!(self, local, turned_away(usage));
        let _ = usage;
    }

    /// A connection has been lent for very long.
    pub(super) fn leaks(&self, local: &Local<M>, holder: Holder) {
        telemetry!(self, local, leaks(holder));
        self.tell(local, |events| events.handle_leak(LeakEvent { holder }));
    }

    /// How it stands.
    pub(super) fn tell_state(&self, local: &Local<M>) {
        telemetry!(self, local, state(&self.usage(local), local.bag.slots.all_loans()));
        let _ = local;
    }
}
