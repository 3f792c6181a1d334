//! Who has what was lent, since when, and which line asked for it.
//!
//! Plain stores by the holder, on cache lines of the slot's own; read by whoever has to be told. One that is read in the middle of
//! a change may show a bit of both loans: nothing is decided by it.

use std::panic::Location;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};

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
    thread: AtomicUsize,
    /// The last loan of which somebody was told that it lasts too long.
    told: AtomicU64,
}

/// One loan, as it looked from outside.
#[derive(Clone, Copy, Debug)]
pub(in crate::pool) struct Loan {
    pub(in crate::pool) place: &'static Location<'static>,
    pub(in crate::pool) since: u64,
    pub(in crate::pool) thread: usize,
}

impl Meter {
    /// By the one who has the slot.
    #[inline]
    pub(in crate::pool) fn lend(&self, place: &'static Location<'static>, since: u64, thread: usize) {
        self.loans.store(self.loans.load(Relaxed) + 1, Relaxed);
        self.since.store(since, Relaxed);
        self.thread.store(thread, Relaxed);
        self.place.store(ptr::from_ref(place).cast_mut(), Relaxed);
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
        let place = unsafe { self.place.load(Relaxed).as_ref() }?;
        Some(Loan { place, since: self.since.load(Relaxed), thread: self.thread.load(Relaxed) })
    }

    /// Whether nobody has been told of this loan yet. The next one who asks will hear that somebody was.
    pub(in crate::pool) fn is_news(&self) -> bool {
        let loans = self.loans();
        self.told.swap(loans, Relaxed) != loans
    }
}
