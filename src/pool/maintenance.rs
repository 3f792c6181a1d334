//! What is done about connections that nobody asked for: they are opened ahead of time, closed when they have been idle for
//! too long, and closed when the pool is.

use super::checkout::Vacancy;
use super::clock::Coarse;
use super::connect::Connected;
use super::connection::Connection;
use super::error::Usage;
use super::shared::{Call, Local, Shared};
use super::validate::Validity;
use super::{Closed, Error, ManageConnection};
use crate::Deadline;
use crate::fork;
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{Ordering::*, fence};
use std::thread;
use std::time::Duration;

/// All goodbyes of one `disconnect`, `close` or sweep take no longer than this together.
const GOODBYES: Duration = Duration::from_secs(5);

impl<M: ManageConnection> Shared<M> {
    /// Opens connections until `wanted` are idle or the pool is full; says how many it opened.
    pub(super) fn warm_up(self: &Arc<Self>, wanted: u32, place: &'static Location<'static>) -> Result<u32, Error> {
        if fork::is_apart() {
            return Err(Error::in_an_observation());
        }
        let call = Call::new(Some(self.config.connection_timeout), place);
        let mut opened = 0;
        // Counted once; and once more after a wait, or in a child that was forked in the middle.
        'count: loop {
            if wanted == 0 {
                return Ok(0);
            }
            let local = self.local(&call)?;
            let here = fork::generation();
            for _ in local.bag.slots.idle()..wanted as usize {
                if call.deadline.is_over() && !call.timeout.is_zero() {
                    return Err(self.timed_out(&call, local));
                }
                let Some(slot) = local.bag.slots.take_vacant() else { break };
                let vacancy = Vacancy { local, slot, here };
                let by = if call.timeout.is_zero() { call.budget(GOODBYES) } else { call.deadline };
                match self.connect(local, slot, by) {
                    Connected::Fit(conn) => {
                        self.check_in_by(by, vacancy.keep(), conn);
                        opened += 1;
                        if fork::generation() != here {
                            opened = 0;
                            continue 'count; // It was closed, and its goodbye forked.
                        }
                    }
                    Connected::Forked => {
                        opened = 0;
                        continue 'count;
                    }
                    Connected::Refused(error) => return Err(error),
                    Connected::Failed { why, waits: true } if self.config.retry_connect && !call.deadline.is_over() => {
                        call.failed(why);
                        drop(vacancy);
                        thread::sleep(local.bag.gate_opens_in().min(call.deadline.remaining()));
                        continue 'count;
                    }
                    Connected::Failed { why, .. } => match self.cannot_connect(here, why) {
                        Some(error) => return Err(error),
                        None => {
                            opened = 0;
                            continue 'count;
                        }
                    },
                }
            }
            return Ok(opened);
        }
    }

    /// Closes what has expired, one connection at a time so that the others stay to be had. What `min_idle` keeps beyond its
    /// time is tested, so that it need not be replaced by who asks for it.
    pub(super) fn reap(&self, place: &'static Location<'static>) {
        let Some(local) = self.existing() else { return };
        let call = Call::new(Some(self.config.connection_timeout), place);
        self.close_expired(local, Deadline::after(GOODBYES), |conn| {
            let validity = self.validate(local, conn, &call);
            conn.client.generation() == fork::generation() && !matches!(validity, Validity::Unfit(..))
        });
    }

    /// From time to time one of those who check a connection out is to look for others that have expired, when it comes
    /// back.
    pub(super) fn begin_sweep(&self, local: &Local<M>, conn: &mut Connection<M>, now: Coarse) {
        let due = local.sweep_at.load(Relaxed);
        if due <= now.as_nanos() {
            let next = now.plus(self.limits.sweep_every).as_nanos();
            conn.sweeps |= local.sweep_at.compare_exchange(due, next, Relaxed, Relaxed).is_ok();
        }
    }

    #[cold]
    pub(super) fn sweep(&self) {
        const HURRIED: Duration = Duration::from_secs(1);
        if let Some(local) = self.existing() {
            self.close_expired(local, Deadline::after(HURRIED), |_| true);
        }
    }

    /// Closes idle connections that are too old, and those that have been idle for too long down to `min_idle`. Of the
    /// latter the rest is asked about.
    fn close_expired(&self, local: &Local<M>, by: Deadline, mut stays: impl FnMut(&mut Connection<M>) -> bool) {
        let now = Coarse::now();
        let here = fork::generation();
        let mut surplus = local.bag.slots.idle().saturating_sub(self.min_idle());
        for (slot, place) in local.bag.slots.iter() {
            let Some(taken) = place.take_idle() else { continue };
            // Made before `conn`: if the test panics, the slot is given back when the connection has been closed.
            let vacancy = Vacancy { local, slot, here };
            let mut conn = taken;
            let is_stale = conn.times.is_stale(now);
            let ends = match () {
                () if conn.epoch != local.epoch.load(Relaxed) => Some(Closed::Evicted),
                () if conn.times.has_expired(now) => Some(Closed::Expired),
                () if is_stale && surplus > 0 => Some(Closed::Idle),
                () if is_stale && !stays(&mut conn) => Some(Closed::Invalid),
                () => None,
            };
            if fork::generation() != here {
                std::mem::forget(conn);
                return; // The test forked, and this is the child: the slots are its parent's.
            }
            let slot = vacancy.keep();
            match ends {
                Some(why) => {
                    surplus = surplus.saturating_sub(1);
                    conn.end_by(by, slot, why);
                }
                None => self.check_in_by(by, slot, conn),
            }
            if fork::generation() != here {
                return; // A goodbye forked.
            }
        }
    }

    /// Closes idle connections, one at a time.
    pub(super) fn disconnect(&self) {
        let Some(local) = self.existing() else { return };
        let (by, here) = (Deadline::after(GOODBYES), fork::generation());
        for (slot, place) in local.bag.slots.iter() {
            if let Some(conn) = place.take_idle() {
                conn.end_by(by, slot, Closed::Disconnected);
            }
            if fork::generation() != here {
                return;
            }
        }
    }

    /// Whatever was opened before now goes: what is idle at once, what is lent when it comes back.
    pub(super) fn evict(&self) {
        let Some(local) = self.existing() else { return };
        let before = local.epoch.fetch_add(1, Relaxed);
        self.close_before(local, before + 1, Deadline::after(GOODBYES));
    }

    /// So many connections at most from here on.
    pub(super) fn resize(&self, max_size: u32) {
        self.max_size.store(max_size, SeqCst);
        // Either we see the part that another thread is making, or it sees the new size.
        fence(SeqCst);
        if let Some(local) = self.existing() {
            self.fit_size(local, Deadline::after(GOODBYES));
        }
    }

    /// Has as many slots as there should be.
    #[cold]
    pub(super) fn fit_size(&self, local: &Local<M>, by: Deadline) {
        let surplus = local.bag.resize(|| self.max_size.load(SeqCst) as usize);
        all_of(surplus, |(slot, conn)| conn.end_by(by, slot, Closed::Surplus));
    }

    /// By the deadline, if somebody waits for it.
    pub(super) fn close(&self, by: Deadline) {
        self.mark_closed();
        if let Some(local) = self.existing() {
            self.close_local(local, by.or_sooner(GOODBYES));
        }
    }

    /// Closes all that is idle.
    pub(super) fn close_local(&self, local: &Local<M>, by: Deadline) {
        all_of(local.bag.close(), |mut conn| {
            conn.client.goodbye_by(by);
            conn.member.leaves(Closed::PoolClosed);
            drop(conn);
        });
    }

    /// After [`close`](Self::close). False at the deadline.
    pub(super) fn wait_until_empty(&self, deadline: Deadline) -> Result<(), Usage> {
        match self.existing() {
            Some(local) if !local.bag.wait_until_empty(deadline) => Err(self.usage(local)),
            _ => Ok(()),
        }
    }
}

/// Closes all of them. A goodbye that panics keeps none of the others from being said: nobody comes back for them. The first panic goes
/// on when they are through.
fn all_of<T>(connections: Vec<T>, close: impl Fn(T)) {
    let mut first = None;
    for connection in connections {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| close(connection))) {
            first.get_or_insert(panic);
        }
    }
    if let Some(panic) = first {
        resume_unwind(panic);
    }
}
