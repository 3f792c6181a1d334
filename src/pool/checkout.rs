//! How a connection is checked out: an idle one that is in order, or a new one, or the next that comes back.
//!
//! What can fork is every callback: connect, validate, `has_broken`, reset, and the goodbye of a client. In the child such a
//! callback returns into a frame of the parent's, with the parent's slots and half of the parent's connection in hand.
//! So after each of them the generation is compared; what is in hand is then forgotten, and the child starts over.

use super::bag::{Refusal, Taken, Wish};
use super::clock::{Coarse, Second};
use super::connect::Connected;
use super::connection::Connection;
use super::shared::{Call, Local, Shared};
use super::validate::Validity;
use super::{Error, ManageConnection, PooledConnection};
use crate::Deadline;
use crate::fork::{self, Generation};
use std::cell::Cell;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

thread_local! {
    /// The slot that this thread had last: its connection is warm, and no other thread is likely to be after it.
    static LAST_SLOT: Cell<usize> = const { Cell::new(0) };
}

impl<M: ManageConnection> Shared<M> {
    #[inline]
    pub(super) fn check_out(self: &Arc<Self>, timeout: Duration) -> Result<PooledConnection<M>, Error> {
        let mut idle = None;
        if let Some(local) = self.ready()
            && let Some((slot, conn)) = local.bag.slots.take_idle(LAST_SLOT.get())
        {
            if conn.times.is_fresh(Second::now) {
                return Ok(self.lend_fresh(conn, slot));
            }
            let now = Coarse::now();
            if conn.times.is_trusted(now) {
                return Ok(self.lend(conn, slot, now));
            }
            idle = Some((slot, conn));
        }
        self.check_out_slowly(timeout, idle)
    }

    #[inline]
    fn lend(&self, mut conn: Box<Connection<M>>, slot: usize, now: Coarse) -> PooledConnection<M> {
        if conn.times.may_be_fresh(now) {
            conn.times.begin_second(now, Second::now_and_left(), &self.limits);
        } else {
            conn.times.checked_out(now, &self.limits);
        }
        self.lend_fresh(conn, slot)
    }

    #[inline]
    fn lend_fresh(&self, conn: Box<Connection<M>>, slot: usize) -> PooledConnection<M> {
        conn.client.registration().lend();
        LAST_SLOT.set(slot);
        PooledConnection::new(conn, slot)
    }

    #[cold]
    fn check_out_slowly(
        self: &Arc<Self>,
        timeout: Duration,
        mut idle: Option<(usize, Box<Connection<M>>)>,
    ) -> Result<PooledConnection<M>, Error> {
        let call = Call::new(timeout);
        loop {
            let local = match self.local(&call) {
                Ok(local) => local,
                Err(why) => {
                    // Closed since, perhaps: what was taken goes the way of all others.
                    let by = call.budget(self.config.test_timeout);
                    idle.into_iter().for_each(|(slot, conn)| self.check_in_by(by, slot, conn));
                    return Err(why);
                }
            };
            let here = fork::generation();
            let taken = match idle.take() {
                Some((slot, conn)) => Taken::Idle(slot, conn),
                None => self.acquire(local, &call)?,
            };
            let vacancy = match taken {
                Taken::Vacant(slot) => Vacancy { local, slot, here },
                Taken::Idle(slot, conn) => match self.check(conn, Vacancy { local, slot, here }, &call)? {
                    Checked::Fit(conn, slot) => return Ok(self.lend(conn, slot, Coarse::now())),
                    Checked::Closed(vacancy) if self.may_connect_at_once(local, &call) => vacancy,
                    Checked::Closed(_) => continue,
                    Checked::Forked => continue,
                },
            };
            if call.deadline.is_over() {
                drop(vacancy);
                local.bag.release_gate();
                if call.timeout.is_zero() && local.bag.slots.idle() > 0 && !call.budget_is_over() {
                    continue; // That one was not fit; the next may be.
                }
                return Err(self.timed_out(&call, local));
            }
            match self.connect(local, call.deadline) {
                Connected::Fit(conn) => return Ok(self.lend(conn, vacancy.keep(), Coarse::now())),
                Connected::Forked => {}
                Connected::Refused(error) => return Err(error),
                Connected::Failed { why, waits } => {
                    if waits {
                        // The slot stays vacant; what comes back, or a later attempt, may serve this call.
                        call.failed(why);
                    } else if let Some(error) = self.cannot_connect(here, why) {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn acquire(&self, local: &Local<M>, call: &Call) -> Result<Taken<Connection<M>>, Error> {
        let connect_by = self.connect_by(local, call);
        let wish = Wish { near: LAST_SLOT.get(), since: call.begun, deadline: call.deadline, connect_by };
        local.bag.acquire(wish).map_err(|refusal| match refusal {
            Refusal::Closed => Error::closed(self.named()),
            Refusal::Timeout => self.timed_out(call, local),
        })
    }

    /// Who has less time left than a connect takes does not begin one, and leaves it to those who have. Who has half of its
    /// time left may in any case: otherwise one slow connect would be the last.
    fn connect_by(&self, local: &Local<M>, call: &Call) -> Deadline {
        let typical = local.connect_time.time();
        call.deadline.earlier_by((typical + typical / 2).min(call.timeout / 2))
    }

    /// Whether who has closed a connection makes the next one in its place, or waits in line for its turn.
    fn may_connect_at_once(&self, local: &Local<M>, call: &Call) -> bool {
        call.deadline.is_over() || (local.bag.has_open_gate() && !self.connect_by(local, call).is_over())
    }

    /// Whether an idle connection may be lent. If not, it has been closed, and its slot may be used.
    fn check<'a>(
        &self,
        conn: Box<Connection<M>>,
        vacancy: Vacancy<'a, M>,
        call: &Call,
    ) -> Result<Checked<'a, M>, Error> {
        let mut conn = conn; // Goes before the vacancy does, also by a panic.
        let Vacancy { local, here, .. } = vacancy;
        let validity = self.validate(local, &mut conn, call);
        if fork::generation() != here {
            mem::forget(validity);
            return Ok(Checked::Forked);
        }
        match validity {
            Validity::Fit => return Ok(Checked::Fit(conn, vacancy.keep())),
            Validity::NoTime => {
                // It came with the last moment. To test it now would only destroy it.
                self.check_in_by(call.budget(self.config.test_timeout), vacancy.keep(), conn);
                let is_here = fork::generation() == here;
                return if is_here { Err(self.timed_out(call, local)) } else { Ok(Checked::Forked) };
            }
            Validity::NotHere(why) => {
                self.check_in_by(call.budget(self.config.test_timeout), vacancy.keep(), conn);
                return self.cannot_connect(here, why).map_or(Ok(Checked::Forked), Err);
            }
            Validity::Unfit(why) => call.failed(why),
        }
        // Closed before its slot is used again.
        conn.client.goodbye_by(call.budget(self.config.test_timeout));
        drop(conn);
        Ok(if fork::generation() == here { Checked::Closed(vacancy) } else { Checked::Forked })
    }

    /// A connection comes back that somebody waits for, or whose pool is closed.
    pub(super) fn check_in(&self, slot: usize, conn: Box<Connection<M>>) {
        self.check_in_by(Deadline::never(), slot, conn);
    }

    /// As [`check_in`](Self::check_in). If it has to be closed, because the pool is or because its server is not what it was,
    /// then by a deadline.
    pub(super) fn check_in_by(&self, by: Deadline, slot: usize, conn: Box<Connection<M>>) {
        conn.client.registration().rest();
        let Some(local) = self.existing() else { return };
        let is_current = conn.epoch == local.epoch.load(Relaxed);
        let refused = if is_current { local.bag.restore(slot, conn) } else { Some(conn) };
        refused.into_iter().for_each(|conn| conn.end_by(by, slot));
    }
}

enum Checked<'a, M: ManageConnection> {
    Fit(Box<Connection<M>>, usize),
    Closed(Vacancy<'a, M>),
    /// This is a child that was forked by a method of the manager's.
    Forked,
}

/// A slot of this process's pool that nobody else has, given back when dropped: an error or a panic on the way loses
/// nothing. In a child it belongs to the parent's pool and does nothing.
pub(super) struct Vacancy<'a, M: ManageConnection> {
    pub(super) local: &'a Local<M>,
    pub(super) slot: usize,
    pub(super) here: Generation,
}

impl<M: ManageConnection> Vacancy<'_, M> {
    /// The slot goes to the caller.
    pub(super) fn keep(self) -> usize {
        let slot = self.slot;
        mem::forget(self);
        slot
    }
}

impl<M: ManageConnection> Drop for Vacancy<'_, M> {
    fn drop(&mut self) {
        if self.here == fork::generation() {
            self.local.bag.vacate(self.slot);
        }
    }
}
