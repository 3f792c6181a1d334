//! How a connection is checked out: an idle one that is in order, or a new one, or the next that comes back.
//!
//! What can fork is every callback: connect, validate, `has_broken`, reset, and the goodbye of a client. In the child such a
//! callback returns into a frame of the parent's, with the parent's slots and half of the parent's connection in hand.
//! So after each of them the generation is compared; what is in hand is then forgotten, and the child starts over.

use super::asked;
use super::bag::{Acquired, Refusal, Taken, Wish};
use super::clock::{Coarse, Second};
use super::connect::Connected;
use super::connection::Connection;
use super::error::Source;
use super::holders::{LAST_SLOT, this_thread};
use super::shared::{Call, Local, Shared};
use super::validate::Validity;
use super::{Closed, Error, ManageConnection, PooledConnection};
use crate::Deadline;
use crate::fork::{self, Generation};
use std::mem;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

impl<M: ManageConnection> Shared<M> {
    /// `None`: an idle connection now, if there is one. `place` is the line that asks.
    #[inline]
    pub(super) fn check_out(
        self: &Arc<Self>,
        timeout: Option<Duration>,
        place: &'static Location<'static>,
    ) -> Result<PooledConnection<M>, Error> {
        if fork::is_apart() {
            return Err(Error::in_an_observation());
        }
        let mut idle = None;
        if let Some(local) = self.ready()
            && let Some((slot, conn)) = local.bag.slots.take_idle(LAST_SLOT.get())
        {
            let is_current = conn.epoch == local.epoch.load(Relaxed);
            if is_current && conn.times.is_fresh(Second::now) {
                let since = conn.times.fresh_until();
                return Ok(Self::lend_since(local, conn, slot, since, place));
            }
            let now = Coarse::now();
            if is_current && conn.times.is_trusted(now) && !self.watches_loans {
                return Ok(self.lend(local, conn, slot, now, place));
            }
            idle = Some((slot, conn));
        }
        self.check_out_slowly(timeout, place, idle)
    }

    #[inline]
    fn lend(
        &self,
        local: &Local<M>,
        mut conn: Box<Connection<M>>,
        slot: usize,
        now: Coarse,
        place: &'static Location<'static>,
    ) -> PooledConnection<M> {
        if conn.times.may_be_fresh(now) && !self.watches_loans {
            conn.times.begin_second(now, Second::now_and_left(), &self.limits);
        } else {
            conn.times.checked_out(now, &self.limits);
        }
        Self::lend_since(local, conn, slot, now, place)
    }

    #[inline]
    fn lend_since(
        local: &Local<M>,
        conn: Box<Connection<M>>,
        slot: usize,
        since: Coarse,
        place: &'static Location<'static>,
    ) -> PooledConnection<M> {
        conn.client.registration().lend();
        local.bag.slots.meter(slot).lend(place, since.as_nanos(), this_thread());
        LAST_SLOT.set(slot);
        PooledConnection::new(conn, slot)
    }

    /// Lends one that is in order to who has called for it. `None` in a child, if somebody who was told of it forked.
    fn hand_over(
        &self,
        local: &Local<M>,
        mut conn: Box<Connection<M>>,
        slot: usize,
        call: &Call,
    ) -> Option<PooledConnection<M>> {
        let (id, here) = (conn.member.id, fork::generation());
        if self.watches_loans {
            conn.lent_at = Instant::now();
        }
        let lent = self.lend(local, conn, slot, Coarse::now(), call.place);
        self.lent(local, id, call);
        (fork::generation() == here).then_some(lent)
    }

    #[cold]
    fn check_out_slowly(
        self: &Arc<Self>,
        timeout: Option<Duration>,
        place: &'static Location<'static>,
        mut idle: Option<(usize, Box<Connection<M>>)>,
    ) -> Result<PooledConnection<M>, Error> {
        let call = Call::new(timeout, place);
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
                // Unless it is the parent's: somebody forked on the way here, and this is the child.
                Some((slot, conn)) if conn.client.generation() == here => Taken::Idle(slot, conn),
                Some(_) => continue,
                None => match self.acquire(local, &call)? {
                    Some(taken) => taken,
                    None => continue,
                },
            };
            let vacancy = match taken {
                Taken::Vacant(slot) => Vacancy { local, slot, here },
                Taken::Idle(slot, conn) => match self.check(conn, Vacancy { local, slot, here }, &call)? {
                    Checked::Fit(conn, slot) => match self.hand_over(local, conn, slot, &call) {
                        Some(lent) => return Ok(lent),
                        None => continue,
                    },
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
            match self.connect(local, vacancy.slot, call.deadline) {
                Connected::Fit(conn) => match self.ask_before_acquire(conn, vacancy, &call) {
                    Checked::Fit(conn, slot) => {
                        if let Some(lent) = self.hand_over(local, conn, slot, &call) {
                            return Ok(lent);
                        }
                    }
                    Checked::Closed(vacancy) => {
                        drop(vacancy);
                        let why = call.take_last().expect("bug: refused without a reason");
                        if let Some(error) = self.cannot_connect(here, why) {
                            return Err(error);
                        }
                    }
                    Checked::Forked => {}
                },
                Connected::Forked => {}
                Connected::Refused(error) => return Err(error),
                Connected::Failed { why, waits } => {
                    if waits {
                        // The slot stays vacant; what comes back, or a later attempt, may serve this call. It keeps its place.
                        call.has_waited.set(true);
                        call.failed(why);
                    } else if let Some(error) = self.cannot_connect(here, why) {
                        return Err(error);
                    }
                }
            }
        }
    }

    /// `None` in a child, if somebody who was told of the wait forked.
    fn acquire(&self, local: &Local<M>, call: &Call) -> Result<Option<Taken<Connection<M>>>, Error> {
        let connect_by = self.connect_by(local, call);
        let max_waiting = match self.config.max_waiting {
            Some(max) if !call.has_waited.get() => max as usize,
            _ => usize::MAX,
        };
        let (near, since) = (LAST_SLOT.get(), call.begun);
        let wish = Wish { near, since, deadline: call.deadline, connect_by, max_waiting };
        let Acquired { outcome, waited } = local.bag.acquire(wish);
        let here = fork::generation();
        if let Some(time) = waited {
            let in_vain = outcome.is_err() || call.has_been_counted.replace(true);
            call.has_waited.set(true);
            self.waited(local, time, in_vain);
        }
        if fork::generation() != here {
            mem::forget(outcome);
            return Ok(None);
        }
        outcome.map(Some).map_err(|refusal| match refusal {
            Refusal::Closed => Error::closed(self.named()),
            Refusal::Full => self.turned_away(call, local),
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
        let why = match validity {
            Validity::Fit => return Ok(self.ask_before_acquire(conn, vacancy, call)),
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
            Validity::Unfit(why, error) => {
                call.failed(error);
                why
            }
        };
        Ok(self.close_unfit(conn, vacancy, why, call))
    }

    /// Closed before its slot is used again.
    fn close_unfit<'a>(
        &self,
        conn: Box<Connection<M>>,
        vacancy: Vacancy<'a, M>,
        why: Closed,
        call: &Call,
    ) -> Checked<'a, M> {
        let mut conn = conn; // Goes before the vacancy does, also by a panic.
        conn.member.leaves(why);
        conn.client.goodbye_by(call.budget(self.config.test_timeout));
        drop(conn);
        if fork::generation() == vacancy.here { Checked::Closed(vacancy) } else { Checked::Forked }
    }

    /// Whether the hook lets it be lent. If not, that is what went wrong last.
    fn ask_before_acquire<'a>(&self, conn: Box<Connection<M>>, vacancy: Vacancy<'a, M>, call: &Call) -> Checked<'a, M> {
        let mut conn = conn; // Goes before the vacancy does, also by a panic.
        let Some(ask) = &self.hooks.before_acquire else { return Checked::Fit(conn, vacancy.keep()) };
        // Who has no time to wait has time for this all the same, as for the test.
        let by = if call.timeout.is_zero() { call.budget(self.config.test_timeout) } else { call.deadline };
        let by = by.on(conn.client.registration().first());
        conn.client.registration().lend();
        let answer = asked::until(by, || ask(conn.client.value_mut(), by));
        if fork::generation() != vacancy.here {
            mem::forget(answer);
            return Checked::Forked;
        }
        let Err(why) = answer else { return Checked::Fit(conn, vacancy.keep()) };
        call.failed(Box::new(why) as Source);
        self.close_unfit(conn, vacancy, Closed::Refused, call)
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
        if conn.epoch != local.epoch.load(Relaxed) {
            return conn.end_by(by, slot, Closed::Evicted);
        }
        if let Some(conn) = local.bag.restore(slot, conn) {
            conn.end_by(by, slot, if self.is_closed() { Closed::PoolClosed } else { Closed::Surplus });
        }
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
