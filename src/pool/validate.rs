//! Whether an idle connection may be lent.
//!
//! One that was proved alive a moment ago may. Another is looked at, which costs no round trip: its peer may have ended it, or
//! something may lie unread in it. Only then the server is asked. All that a call asks has one budget.

use super::asked;
use super::clock::Coarse;
use super::connection::Connection;
use super::error::Source;
use super::shared::{Call, Local, Shared};
use super::{Closed, Fault, ManageConnection, Unread};
use crate::Deadline;
use crate::fork::{self, peek};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

pub(super) enum Validity {
    Fit,
    /// It is to be closed; with what was said of it, if anything was.
    Unfit(Closed, Option<Source>),
    /// There is not enough time to find out, and it may be in order.
    NoTime,
    /// Its caller is not in a place to find out, and it may be in order.
    NotHere(Source),
}

/// A suspect has this part of the usual time to answer.
const SUSPECT: u32 = 10;

impl<M: ManageConnection> Shared<M> {
    pub(super) fn validate(&self, local: &Local<M>, conn: &mut Connection<M>, call: &Call) -> Validity {
        let now = Coarse::now();
        if conn.epoch != local.epoch.load(Relaxed) {
            return Validity::Unfit(Closed::Evicted, None);
        }
        if conn.times.has_expired(now) {
            return Validity::Unfit(Closed::Expired, None);
        }
        self.begin_sweep(local, conn, now);
        let is_stale = conn.times.is_stale(now);
        if is_stale && local.bag.slots.idle() >= self.min_idle() {
            return Validity::Unfit(Closed::Idle, None);
        }
        if !is_stale && conn.times.is_proved(now, &self.limits) {
            conn.times = conn.times.looked_at(now, &self.limits);
            return Validity::Fit;
        }
        conn.client.registration().lend();
        if !conn.client.registration().is_current() && !conn.republish() {
            return Validity::Unfit(Closed::Invalid, None);
        }
        let is_in_doubt = match self.look(conn) {
            Unread::Fine => false,
            Unread::Test => true,
            Unread::Discard => return Validity::Unfit(Closed::Invalid, None),
        };
        if self.config.test_on_check_out || is_in_doubt {
            return self.test(local, conn, call);
        }
        conn.times = conn.times.proved(now, &self.limits);
        Validity::Fit
    }

    /// Looks at the socket without waiting.
    fn look(&self, conn: &mut Connection<M>) -> Unread {
        let Some(socket) = conn.client.registration().first() else { return Unread::Fine };
        let mut bytes = [0; 64];
        match peek::unread(socket, &mut bytes) {
            Ok(None) => Unread::Fine,
            Ok(Some(0)) | Err(_) => Unread::Discard,
            Ok(Some(number)) => self.manager.on_unread(conn.client.value_mut(), &bytes[..number]),
        }
    }

    /// Asks the server.
    fn test(&self, local: &Local<M>, conn: &mut Connection<M>, call: &Call) -> Validity {
        let here = fork::generation();
        if conn.client.generation() != here {
            return Validity::Unfit(Closed::Invalid, None); // The look forked, and this is the child.
        }
        let Some(until) = self.time_to_test(local, conn, call) else { return Validity::NoTime };
        let begun = Instant::now();
        let socket = conn.client.registration().first();
        let until = until.on(socket);
        let answer = asked::until(until, || self.manager.is_valid_within(conn.client.value_mut(), until));
        let took = begun.elapsed();
        if fork::generation() != here {
            std::mem::forget(answer);
            return Validity::Unfit(Closed::Invalid, None);
        }
        self.tested(local, took);
        let fault = match answer {
            Ok(()) => None,
            Err(why) => {
                let fault = self.manager.classify(&why);
                if fork::generation() != here {
                    std::mem::forget(why);
                    return Validity::Unfit(Closed::Invalid, None);
                }
                (fault != Fault::Harmless).then_some((fault, why))
            }
        };
        match fault {
            None => {
                local.test_time.note(took);
                let now = Coarse::now();
                conn.times = conn.times.proved(now, &self.limits).renewed(now, &self.limits);
                Validity::Fit
            }
            Some((Fault::Caller, why)) => Validity::NotHere(Box::new(why)),
            Some((fault, why)) => {
                if until.is_over() {
                    local.suspect_before.fetch_max(conn.times.proved_at.as_nanos(), Relaxed);
                }
                if fault == Fault::Server {
                    self.condemn_all(local, conn.epoch, call.budget(self.config.test_timeout));
                    if fork::generation() != here {
                        std::mem::forget(why);
                        return Validity::Unfit(Closed::Evicted, None);
                    }
                }
                Validity::Unfit(Closed::Invalid, Some(self.hooks.tell_error(why, self.may_tell(local))))
            }
        }
    }

    /// Until when a test may last; `None` if there is not the time to begin one.
    fn time_to_test(&self, local: &Local<M>, conn: &Connection<M>, call: &Call) -> Option<Deadline> {
        let usual = self.config.test_timeout;
        let budget = call.budget(usual);
        let is_suspect = conn.times.proved_at.as_nanos() <= local.suspect_before.load(Relaxed);
        let short = usual / SUSPECT;
        let until = match () {
            // Another that had rested as long was silent.
            () if is_suspect => budget.or_sooner(short),
            () if budget.is_over() && !call.timeout.is_zero() => {
                Deadline::after(short.min(call.deadline.remaining() / 2))
            }
            () => budget,
        };
        if call.timeout.is_zero() {
            return (!budget.is_over()).then_some(until);
        }
        // What the server usually needs it should have; otherwise connections in order would be closed.
        let needs = local.test_time.time() * 2;
        let left = call.deadline.remaining();
        match () {
            () if left.is_zero() => None,
            () if left >= needs => Some(Deadline::after(until.remaining().max(needs)).sooner(call.deadline)),
            () => local.test_time.is_to_be_doubted().then_some(until),
        }
    }

    /// The server of a connection of this epoch is not what it was: idle connections are closed now, lent ones and those that
    /// are being opened when they come back, and the name is looked up anew. If the epoch has ended already, others have been opened
    /// since, and nothing is said of those.
    #[cold]
    pub(super) fn condemn_all(&self, local: &Local<M>, of: u64, by: Deadline) {
        if local.epoch.compare_exchange(of, of + 1, Relaxed, Relaxed).is_ok() {
            self.addresses.doubt();
            self.close_before(local, of + 1, by);
        }
    }

    /// Closes idle connections of earlier epochs. Lent ones are when they come back.
    pub(super) fn close_before(&self, local: &Local<M>, epoch: u64, by: Deadline) {
        let here = fork::generation();
        for (slot, place) in local.bag.slots.iter() {
            let Some(conn) = place.take_idle() else { continue };
            if conn.epoch < epoch {
                conn.end_by(by, slot, Closed::Evicted);
            } else {
                self.check_in_by(by, slot, conn);
            }
            if fork::generation() != here {
                return;
            }
        }
    }

    pub(super) fn min_idle(&self) -> usize {
        self.config.min_idle.unwrap_or(0) as usize
    }
}
