//! What happens in a pool: it is counted, and told to those who want to know.
//!
//! In a child nobody is told anything until the hooks of [`on_child`](crate::fork::on_child) are through: what those who listen
//! lock may have been locked at the fork.

use super::error::Usage;
use super::event::{AcquireEvent, CheckinEvent, CheckoutEvent, HandleEvent, LeakEvent, ReleaseEvent, TimeoutEvent};
use super::shared::{Call, Local, Shared};
use super::statistics::{add, add_time};
use super::telemetry::Telemetry;
use super::{Closed, Holder, ManageConnection};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

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

    /// Without one of the features there is nobody to tell it to.
    fn report(&self, local: &Local<M>, what: impl FnOnce(Telemetry<'_>)) {
        if cfg!(any(feature = "tracing", feature = "metrics")) && self.may_tell(local) {
            what(Telemetry(self.config.name.as_ref()));
        }
    }

    /// This process uses the pool for the first time, and its hooks are through.
    pub(super) fn begun(&self, local: &Local<M>) {
        self.report(local, |to| to.begun(local.counters.inherited));
    }

    /// A connection is one of the pool's from here on. Returns which one it is.
    pub(super) fn joins(&self, local: &Local<M>) -> u64 {
        self.live.fetch_add(1, Relaxed);
        local.counters.created.fetch_add(1, Relaxed)
    }

    /// It was opened.
    pub(super) fn opened(&self, local: &Local<M>, id: u64, duration: Duration) {
        add_time(&local.counters.connect_nanos, duration);
        self.report(local, |to| to.opened(id, duration));
        self.tell(local, |events| events.handle_acquire(AcquireEvent { id, duration }));
    }

    /// One could not be.
    pub(super) fn not_opened(&self, local: &Local<M>, why: &str) {
        add(&local.counters.failed, 1);
        self.report(local, |to| to.not_opened(why));
    }

    /// A server was asked whether it is there.
    pub(super) fn tested(&self, local: &Local<M>, took: Duration) {
        add(&local.counters.tested, 1);
        add_time(&local.counters.test_nanos, took);
        self.report(local, |to| to.tested(took));
    }

    /// A connection is none of the pool's any more.
    pub(super) fn has_left(&self, local: &Local<M>, why: Closed) {
        self.live.fetch_sub(1, Relaxed);
        local.counters.closed(why);
    }

    /// It is closed, or somebody's own.
    pub(super) fn ended(&self, local: &Local<M>, id: u64, age: Duration, why: Closed) {
        self.report(local, |to| to.ended(id, age, why));
        self.tell(local, |events| events.handle_release(ReleaseEvent { id, age, why }));
    }

    /// A connection is lent, and not in the shortest way.
    pub(super) fn lent(&self, local: &Local<M>, id: u64, call: &Call) {
        let took = call.begun.elapsed();
        if took > self.config.slow_threshold {
            add(&local.counters.slow, 1);
            self.report(local, |to| to.slow(took, call.place));
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
        self.report(local, |to| to.waited(time));
    }

    /// A call has not been served in time.
    pub(super) fn ran_out(&self, local: &Local<M>, timeout: Duration, usage: &Usage) {
        add(&local.counters.timed_out, 1);
        self.report(local, |to| to.timed_out(timeout, usage));
        self.tell(local, |events| events.handle_timeout(TimeoutEvent { timeout }));
    }

    /// One has not even been allowed to wait.
    pub(super) fn refused_to_wait(&self, local: &Local<M>, usage: &Usage) {
        add(&local.counters.turned_away, 1);
        self.report(local, |to| to.turned_away(usage));
    }

    /// A connection has been lent for very long.
    pub(super) fn leaks(&self, local: &Local<M>, holder: Holder) {
        self.report(local, |to| to.leaks(holder));
        self.tell(local, |events| events.handle_leak(LeakEvent { holder }));
    }

    /// How it stands.
    pub(super) fn tell_state(&self, local: &Local<M>) {
        self.report(local, |to| to.state(&self.usage(local), local.bag.slots.all_loans()));
    }
}
