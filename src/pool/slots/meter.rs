//! Who has what was lent, since when, and which line asked for it.
//!
//! Plain stores by the holder, on cache lines of the slot's own; read by whoever has to be told. The place comes last, and goes first:
//! who finds one finds the rest of that loan with it, or of a later one.

use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::*};

/// Two cache lines: the processor fetches them in pairs.
#[derive(Default)]
#[repr(align(128))]
pub(in crate::pool) struct Meter {
    /// How many loans there were, this one included.
    loans: AtomicU64,
    /// Null while nobody has it. Nothing but a `&'static Location` is ever stored here.
    place: AtomicPtr<Location<'static>>,
    /// By the coarse clock.
    since: AtomicU64,
    thread: AtomicU64,
    /// The last loan of which somebody was told that it lasts too long.
    told: AtomicU64,
}

/// One loan, as it looked from outside.
#[derive(Clone, Copy, Debug)]
pub(in crate::pool) struct Loan {
    pub(in crate::pool) place: &'static Location<'static>,
    pub(in crate::pool) since: u64,
    pub(in crate::pool) thread: u64,
    /// The how manieth of its slot.
    number: u64,
}

impl Meter {
    /// By the one who has the slot.
    #[inline]
    pub(in crate::pool) fn lend(&self, place: &'static Location<'static>, since: u64, thread: u64) {
        self.loans.store(self.loans.load(Relaxed) + 1, Relaxed);
        self.since.store(since, Relaxed);
        self.thread.store(thread, Relaxed);
        self.place.store(ptr::from_ref(place).cast_mut(), Release);
    }

    /// By the one who has the slot.
    #[inline]
    pub(in crate::pool) fn end(&self) {
        self.place.store(ptr::null_mut(), Relaxed);
    }

    pub(in crate::pool) fn loans(&self) -> u64 {
        self.loans.load(Relaxed)
    }

    pub(in crate::pool) fn loan(&self) -> Option<Loan> {
        // SAFETY: it is null, or came from a `&'static Location` in `lend`.
        let place = unsafe { self.place.load(Acquire).as_ref() }?;
        let (since, thread) = (self.since.load(Relaxed), self.thread.load(Relaxed));
        Some(Loan { place, since, thread, number: self.loans() })
    }

    /// Whether nobody has been told of this loan yet. The next one who asks will hear that somebody was.
    pub(in crate::pool) fn is_news(&self, loan: &Loan) -> bool {
        self.told.fetch_max(loan.number, Relaxed) < loan.number
    }
}
