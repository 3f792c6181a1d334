//! Who has which slot: a fixed array of words, shared without a lock.
//!
//! A slot's word is vacant, or holds an idle connection's address, or says that somebody has it (TAKEN), that somebody has
//! it and others wait (WANTED), or that the pool is closed (GONE) or has fewer slots now (SHUT):
//!
//! ```text
//!             take                    take
//!     idle --------> TAKEN <-------------------- vacant
//!      ^                |  \------- vacate --------> ^  |
//!      '------ put -----'                            |  | somebody waits, and will not connect
//!                       | somebody waits             |  v
//!                       v                   take     | SPARE
//!                     WANTED <-----------------------|--'
//!                       '--- under the lock of the waiters: handed on, or put, or vacated
//! ```
//!
//! Taking and putting are one compare-and-swap each, and nobody looks at a counter of waiters: whoever is about to wait
//! turns every TAKEN into WANTED first, and every vacant slot that it leaves alone into a SPARE one, which becomes WANTED when
//! it is taken. So the compare-and-swap of the next return fails and comes for the waiters' lock. The one word is all
//! that the threads share. Its ordering is Release when a connection goes in and
//! Acquire when it comes out.
//!
//! A pool that shrinks SHUTs slots. One whose connection is on its way out for that is LEAVING until then. A pool that grows opens
//! shut ones again, and then adds a block of slots to the array: none is ever moved.
//!
//! A put is also the last thing that a return does to the array: once the connection is back in its slot another thread
//! may take it, close the pool and free the array. [`put`] says how that is kept safe.

mod meter;

pub(super) use meter::{Loan, Meter};

use crate::sync::{AtomicPtr, Mutex, Ordering::*};
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed as RelaxedHint};

/// One slot's word.
pub(super) struct Slot<T>(AtomicPtr<T>);

/// No object is ever at one of these addresses: the last six bytes of memory are not a `Box`'s.
const TAKEN: usize = usize::MAX;
const WANTED: usize = usize::MAX - 1;
const GONE: usize = usize::MAX - 2;
const SPARE: usize = usize::MAX - 3;
const SHUT: usize = usize::MAX - 4;
const LEAVING: usize = usize::MAX - 5;

fn mark<T>(word: usize) -> *mut T {
    ptr::without_provenance_mut(word)
}

fn is_idle<T>(word: *mut T) -> bool {
    !word.is_null() && word.addr() < LEAVING
}

impl<T> Slot<T> {
    pub(super) fn take_idle(&self) -> Option<Box<T>> {
        let word = self.0.load(Relaxed);
        if !is_idle(word) {
            return None;
        }
        let taken = self.0.compare_exchange(word, mark(TAKEN), Acquire, Relaxed).ok()?;
        // SAFETY: an idle word came from `Box::into_raw` in `put` or `put_idle`, and this exchange took it out: no other
        // thread can have the same one. What the exchange returned is used, and not what was loaded before: the
        // connection may have been freed and another made at its address in between.
        Some(unsafe { Box::from_raw(taken) })
    }

    pub(super) fn take_vacant(&self) -> bool {
        self.swap(0, TAKEN) || self.swap(SPARE, WANTED)
    }

    fn swap(&self, from: usize, to: usize) -> bool {
        self.0.load(Relaxed).addr() == from && self.0.compare_exchange(mark(from), mark(to), Acquire, Relaxed).is_ok()
    }

    /// Under the waiters' lock: makes the return of a taken slot come for the lock, if it would not anyway. False when the slot
    /// has changed in between and wants another look.
    pub(super) fn want(&self) -> bool {
        self.swap(TAKEN, WANTED) || matches!(self.0.load(Relaxed).addr(), WANTED | LEAVING | SHUT)
    }

    /// Under the waiters' lock: the same for a vacant slot that is left alone.
    pub(super) fn spare(&self) -> bool {
        self.swap(0, SPARE) || self.0.load(Relaxed).addr() == SPARE
    }

    pub(super) fn is_vacant(&self) -> bool {
        matches!(self.0.load(Relaxed).addr(), 0 | SPARE)
    }

    pub(super) fn is_idle(&self) -> bool {
        is_idle(self.0.load(Relaxed))
    }

    pub(super) fn is_gone(&self) -> bool {
        self.0.load(Relaxed).addr() == GONE
    }

    /// Connected, or being connected.
    fn is_occupied(&self) -> bool {
        !matches!(self.0.load(Relaxed).addr(), 0 | SPARE | GONE | SHUT)
    }

    /// Under the waiters' lock: its connection is closed, for there are too many.
    pub(super) fn is_leaving(&self) -> bool {
        self.0.load(Relaxed).addr() == LEAVING
    }

    /// Under the waiters' lock, for a slot of the caller's.
    pub(super) fn put_leaving(&self) {
        self.0.store(mark(LEAVING), Release);
    }

    /// Under the waiters' lock, for a slot of the caller's.
    pub(super) fn put_shut(&self) {
        self.0.store(mark(SHUT), Release);
    }

    /// Under the waiters' lock: makes a slot that was shut vacant, as one that is left alone. False if it was not shut.
    pub(super) fn reopen(&self) -> bool {
        self.swap(SHUT, SPARE)
    }

    /// Gives up a slot of the caller's. False if somebody waits, or the pool is closed.
    pub(super) fn vacate(&self) -> bool {
        self.0.compare_exchange(mark(TAKEN), ptr::null_mut(), Release, Relaxed).is_ok()
    }

    /// Under the waiters' lock, for a slot of the caller's.
    pub(super) fn put_idle(&self, connection: Box<T>) {
        self.0.store(Box::into_raw(connection), Release);
    }

    /// Under the waiters' lock, for a slot of the caller's.
    pub(super) fn put_vacant(&self) {
        self.0.store(mark(SPARE), Release);
    }

    /// Under the waiters' lock, for a slot of the caller's, of a closed pool.
    pub(super) fn put_gone(&self) {
        self.0.store(mark(GONE), Release);
    }
}

/// Puts a connection back into its slot, unless somebody waits for one or the pool is closed: then it is returned.
///
/// `find` goes from the connection to its slot; the connection must be what keeps that slot alive.
#[inline]
pub(super) fn put<T>(connection: Box<T>, find: impl for<'a> FnOnce(&'a T) -> &'a Slot<T>) -> Result<(), Box<T>> {
    let raw = Box::into_raw(connection);
    // SAFETY: `raw` is ours until the exchange below publishes it. `find` borrowed the slot from it, so the slot lives
    // at least until then; afterwards neither is touched.
    let put = unsafe {
        let slot: *const Slot<T> = find(&*raw);
        (*slot).0.compare_exchange(mark(TAKEN), raw, Release, Relaxed)
    };
    match put {
        Ok(_) => Ok(()),
        // SAFETY: not published, so still ours.
        Err(_) => Err(unsafe { Box::from_raw(raw) }),
    }
}

/// A model has few atomics to spare.
const PER_LINE: usize = if cfg!(forksafe_loom) { 1 } else { 16 };
/// As many slots have a cache line of their own.
const LINES: usize = 64;

/// Two cache lines: the processor fetches them in pairs.
#[repr(align(128))]
struct Line<T>([Slot<T>; PER_LINE]);

// What a slot costs, beside its connection.
const _: () = assert!(size_of::<Line<()>>() + size_of::<Meter>() <= 256);

/// The slots of one process's pool.
pub(super) struct Slots<T> {
    first: Block<T>,
    /// How many are not shut.
    unshut: AtomicUsize,
    /// How many are vacant: while a slot changes hands, a moment late.
    vacant: AtomicIsize,
    /// Where a vacant slot was seen last, or may be next.
    hint: AtomicUsize,
    /// The slots are words; this says what they hold: they may be shared if the connections may be sent.
    holds: PhantomData<Mutex<T>>,
}

/// Slots that were made together. Of up to 64 each has a cache line of its own, so that threads with a slot each do not disturb
/// one another; more than that share them, so that a search looks at few.
struct Block<T> {
    lines: Box<[Line<T>]>,
    meters: Box<[Meter]>,
    size: usize,
    /// Number `n` is in line `n & mask`, at place `n >> shift`.
    mask: usize,
    shift: u32,
    /// Null, or a block that is never changed and is freed with this one.
    next: AtomicPtr<Block<T>>,
}

impl<T> Block<T> {
    fn new(size: usize) -> Self {
        let lines = size.div_ceil(PER_LINE).max(size.min(LINES)).next_power_of_two();
        let line = |_| Line(std::array::from_fn(|_| Slot(AtomicPtr::new(ptr::null_mut()))));
        Self {
            lines: (0..lines).map(line).collect(),
            meters: (0..size).map(|_| Meter::default()).collect(),
            size,
            mask: lines - 1,
            shift: lines.trailing_zeros(),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    #[inline]
    fn slot(&self, number: usize) -> &Slot<T> {
        &self.lines[number & self.mask].0[number >> self.shift]
    }

    /// The block that a number is in, and which one it is there.
    #[inline]
    fn find(&self, number: usize) -> (&Self, usize) {
        if number < self.size { (self, number) } else { self.find_further_on(number) }
    }

    #[cold]
    fn find_further_on(&self, number: usize) -> (&Self, usize) {
        self.next().expect("bug: a slot that there is not").find(number - self.size)
    }

    /// With those further on.
    fn total(&self) -> usize {
        self.size + self.next().map_or(0, Self::total)
    }

    fn next(&self) -> Option<&Self> {
        // SAFETY: it is null or came from `Box::into_raw` in `append`, was published after it was made, and is freed only with
        // this one, which is borrowed.
        unsafe { self.next.load(Acquire).as_ref() }
    }

    /// Under the waiters' lock: one more at the end.
    fn append(&self, block: Self) {
        match self.next() {
            Some(next) => next.append(block),
            None => self.next.store(Box::into_raw(Box::new(block)), Release),
        }
    }
}

impl<T> Drop for Block<T> {
    fn drop(&mut self) {
        let next = self.next.load(Relaxed);
        if !next.is_null() {
            // SAFETY: as in `next`; and nobody borrows it, for nobody borrows this one.
            drop(unsafe { Box::from_raw(next) });
        }
    }
}

impl<T> Slots<T> {
    pub(super) fn new(size: usize) -> Self {
        Self {
            first: Block::new(size),
            unshut: AtomicUsize::new(size),
            vacant: AtomicIsize::new(size as isize),
            hint: AtomicUsize::new(0),
            holds: PhantomData,
        }
    }

    /// How many there are that are not shut.
    pub(super) fn size(&self) -> usize {
        self.unshut.load(RelaxedHint)
    }

    /// Under the waiters' lock: so many more slots, vacant.
    pub(super) fn grow(&self, by: usize) {
        self.first.append(Block::new(by));
        self.unshut.fetch_add(by, RelaxedHint);
        self.vacant.fetch_add(by as isize, RelaxedHint);
    }

    /// Under the waiters' lock: a slot of the caller's is shut.
    pub(super) fn shut(&self, number: usize) {
        self.slot(number).put_shut();
        self.unshut.fetch_sub(1, RelaxedHint);
    }

    /// Under the waiters' lock: opens a slot again, if it was shut.
    pub(super) fn reopen(&self, number: usize) -> bool {
        let opened = self.slot(number).reopen();
        if opened {
            self.unshut.fetch_add(1, RelaxedHint);
            self.count_vacant(number);
        }
        opened
    }

    #[inline]
    pub(super) fn slot(&self, number: usize) -> &Slot<T> {
        let (block, number) = self.first.find(number);
        block.slot(number)
    }

    #[inline]
    pub(super) fn meter(&self, number: usize) -> &Meter {
        let (block, number) = self.first.find(number);
        &block.meters[number]
    }

    /// All slots with their numbers, beginning with `near`.
    fn from(&self, near: usize) -> impl Iterator<Item = (usize, &Slot<T>)> {
        let total = self.first.total();
        let near = if near < total { near } else { 0 };
        (near..total).chain(0..near).map(|number| (number, self.slot(number)))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Slot<T>)> {
        self.from(0)
    }

    /// An idle connection, the one in slot `near` first.
    #[inline]
    pub(super) fn take_idle(&self, near: usize) -> Option<(usize, Box<T>)> {
        if near < self.first.size
            && let Some(connection) = self.first.slot(near).take_idle()
        {
            return Some((near, connection));
        }
        self.search_idle(near)
    }

    fn search_idle(&self, near: usize) -> Option<(usize, Box<T>)> {
        self.from(near).find_map(|(number, slot)| Some((number, slot.take_idle()?)))
    }

    /// The right to make a connection, if there is room for one. Looks on where the last one was found.
    pub(super) fn take_vacant(&self) -> Option<usize> {
        if !self.have_vacant() {
            return None;
        }
        let (number, _) = self.from(self.hint.load(RelaxedHint)).find(|(_, slot)| slot.take_vacant())?;
        self.count_taken(number);
        Some(number)
    }

    /// A vacant slot has been taken.
    pub(super) fn count_taken(&self, number: usize) {
        self.vacant.fetch_sub(1, RelaxedHint);
        self.hint.store(number + 1, RelaxedHint);
    }

    /// A slot has become vacant.
    pub(super) fn count_vacant(&self, number: usize) {
        self.vacant.fetch_add(1, RelaxedHint);
        self.hint.store(number, RelaxedHint);
    }

    pub(super) fn have_vacant(&self) -> bool {
        self.vacant.load(RelaxedHint) > 0
    }

    /// Whether there is no connection, nor one being made.
    pub(super) fn are_all_vacant(&self) -> bool {
        self.vacant.load(RelaxedHint) >= self.size() as isize
    }

    /// Connections that are idle, lent or being made.
    pub(super) fn occupied(&self) -> usize {
        self.iter().filter(|(_, slot)| slot.is_occupied()).count()
    }

    pub(super) fn idle(&self) -> usize {
        self.iter().filter(|(_, slot)| slot.is_idle()).count()
    }

    /// How often something was lent.
    pub(super) fn all_loans(&self) -> u64 {
        (0..self.first.total()).map(|number| self.meter(number).loans()).sum()
    }

    /// Those that are lent, with their slots' numbers.
    pub(super) fn loans(&self) -> impl Iterator<Item = (usize, Loan)> {
        self.iter().filter_map(|(number, slot)| {
            let loan = self.meter(number).loan()?;
            (slot.is_occupied() && !slot.is_idle()).then_some((number, loan))
        })
    }
}

impl<T> Drop for Slots<T> {
    fn drop(&mut self) {
        self.iter().for_each(|(_, slot)| drop(slot.take_idle()));
    }
}
