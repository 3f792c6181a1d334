//! Who is told what happens in a pool.
//!
//! In a child nobody is told anything until the hooks of [`on_child`](crate::fork::on_child) are through: what those who listen
//! lock may have been locked at the fork.

use super::event::{AcquireEvent, CheckinEvent, CheckoutEvent, HandleEvent, LeakEvent, ReleaseEvent, TimeoutEvent};
use super::shared::{Call, Local, Shared};
use super::statistics::{add, add_time};
use super::{Closed, Holder, ManageConnection};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

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

    /// A connection was opened. Returns which one it is.
    pub(super) fn opened(&self, local: &Local<M>, duration: Duration) -> u64 {
        self.open.fetch_add(1, Relaxed);
        add_time(&local.counters.connect_nanos, duration);
        let id = local.counters.created.fetch_add(1, Relaxed);
        self.tell(local, |events| events.handle_acquire(AcquireEvent { id, duration }));
        id
    }

    /// One could not be.
    pub(super) fn not_opened(&self, local: &Local<M>) {
        add(&local.counters.failed, 1);
    }

    /// A server was asked whether it is there.
    pub(super) fn tested(&self, local: &Local<M>, took: Duration) {
        add(&local.counters.tested, 1);
        add_time(&local.counters.test_nanos, took);
    }

    /// A connection leaves the pool.
    pub(super) fn ended(&self, local: &Local<M>, id: u64, opened_at: Instant, why: Closed) {
        self.open.fetch_sub(1, Relaxed);
        local.counters.closed(why);
        self.tell(local, |events| events.handle_release(ReleaseEvent { id, age: opened_at.elapsed(), why }));
    }

    /// A connection is lent.
    pub(super) fn lent(&self, local: &Local<M>, id: u64, call: &Call) {
        self.tell(local, |events| events.handle_checkout(CheckoutEvent { id, duration: call.begun.elapsed() }));
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
    }

    /// A call has not been served in time.
    pub(super) fn ran_out(&self, local: &Local<M>, timeout: Duration) {
        add(&local.counters.timed_out, 1);
        self.tell(local, |events| events.handle_timeout(TimeoutEvent { timeout }));
    }

    /// A connection has been lent for very long.
    pub(super) fn leaks(&self, local: &Local<M>, holder: Holder) {
        self.tell(local, |events| events.handle_leak(LeakEvent { holder }));
    }
}
