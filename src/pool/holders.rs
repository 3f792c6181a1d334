//! Who has the connections of a pool, for those who are told that there are none left.

use super::clock::Coarse;
use super::error::{Source, Usage};
use super::shared::{Call, Local, Shared};
use super::slots::Loan;
use super::{Error, Holder, ManageConnection};
use crate::fork;
use std::cell::Cell;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

thread_local! {
    /// The slot that this thread had last: its connection is warm, and no other thread is likely to be after it.
    pub(super) static LAST_SLOT: Cell<usize> = const { Cell::new(0) };
    /// Zero until it is asked for.
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

/// What no other thread has, nor will have.
#[inline]
pub(super) fn this_thread() -> u64 {
    match NUMBER.get() {
        0 => number_this_thread(),
        number => number,
    }
}

#[cold]
fn number_this_thread() -> u64 {
    static THREADS: AtomicU64 = AtomicU64::new(1);
    let number = THREADS.fetch_add(1, Relaxed);
    NUMBER.set(number);
    number
}

impl Holder {
    fn of(loan: &Loan, now: Coarse) -> Self {
        Self { held_for: now.since(Coarse::from_nanos(loan.since)), location: loan.place }
    }
}

impl<M: ManageConnection> Shared<M> {
    /// How full it is, and who has what.
    pub(super) fn usage(&self, local: &Local<M>) -> Usage {
        let slots = &local.bag.slots;
        let (now, this_thread) = (Coarse::now(), this_thread());
        let idle = slots.idle();
        let mut usage = Usage {
            in_use: slots.occupied().saturating_sub(idle) as u32,
            idle: idle as u32,
            connecting: local.counters.connecting.load(Relaxed) as u32,
            max_size: self.max_size.load(Relaxed),
            waiting: local.bag.waiting(),
            longest: None,
            own: None,
        };
        for (_, loan) in slots.loans() {
            let holder = Holder::of(&loan, now);
            if usage.longest.is_none_or(|longest| longest.held_for < holder.held_for) {
                usage.longest = Some(holder);
            }
            if loan.thread == this_thread {
                usage.own = Some(holder);
            }
        }
        usage
    }

    /// Those who have a connection for longer than they should.
    pub(super) fn held_too_long(&self, local: &Local<M>) -> impl Iterator<Item = (usize, Loan, Holder)> {
        let (now, threshold) = (Coarse::now(), self.config.leak_threshold);
        let loans = threshold.map(|threshold| {
            let holders = local.bag.slots.loans().map(move |(slot, loan)| (slot, loan, Holder::of(&loan, now)));
            holders.filter(move |(.., holder)| holder.held_for >= threshold)
        });
        loans.into_iter().flatten()
    }

    /// Says of each of them, once, that he is one.
    pub(super) fn tell_leaks(&self, local: &Local<M>) {
        let here = fork::generation();
        for (slot, loan, holder) in self.held_too_long(local) {
            if self.may_tell(local) && local.bag.slots.meter(slot).is_news(&loan) {
                self.leaks(local, holder);
            }
            if fork::generation() != here {
                return;
            }
        }
    }

    /// The error of a call that has got nothing, with what is known of the reason.
    #[cold]
    pub(super) fn timed_out(&self, call: &Call, local: &Local<M>) -> Error {
        let here = fork::generation();
        let (usage, why) = (self.usage(local), call.take_last().or_else(|| last_failure(local)));
        // Told last: who is told may fork, and the rest is the parent's then.
        if !call.is_try {
            self.ran_out(local, call.timeout, &usage);
            if fork::generation() == here {
                self.tell_leaks(local);
            }
        }
        Error::timeout(self.named(), call.timeout, usage, why)
    }

    /// The error of a call that may not even wait.
    #[cold]
    pub(super) fn turned_away(&self, call: &Call, local: &Local<M>) -> Error {
        let (usage, why) = (self.usage(local), call.take_last().or_else(|| last_failure(local)));
        self.refused_to_wait(local, &usage);
        Error::queue_full(self.named(), usage, why)
    }
}

/// Others may have tried to connect, and failed.
fn last_failure<M: ManageConnection>(local: &Local<M>) -> Option<Source> {
    let last = local.last_failure.lock().unwrap_or_else(PoisonError::into_inner);
    let (at, what) = last.as_ref()?;
    Some(Box::new(Earlier { ago: at.elapsed(), what: what.clone() }))
}

#[derive(Debug, thiserror::Error)]
#[error("a connect failed {ago:.1?} ago: {what}")]
struct Earlier {
    ago: Duration,
    what: String,
}
