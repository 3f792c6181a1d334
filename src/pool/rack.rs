//! Who has which slot: a fixed array of places, and a queue for those who find none free.
//!
//! A [`Place`] is one word. It is vacant, or holds a resting connection's address, or says that somebody has it (TAKEN),
//! that somebody has it and others wait (WANTED), or that the pool is closed (GONE):
//!
//! ```text
//!             take                    take
//!   resting --------> TAKEN <-------------------- vacant
//!      ^                |  \------- vacate --------> ^
//!      '------ put -----'                            |
//!                       | somebody waits             |
//!                       v                            |
//!                     WANTED --- under the lock: to the first in the queue, or put, or vacate
//! ```
//!
//! Taking and putting are one compare-and-swap each, and nobody looks at a counter of waiters: whoever is about to wait
//! turns every TAKEN into WANTED first, under the queue's lock, so that the compare-and-swap of the next return fails
//! and takes the same lock. Hence while somebody is in the queue every place is WANTED, no return is missed, and the
//! one word per place is all that the threads share. Its ordering is Release when a connection goes in and Acquire
//! when it comes out.
//!
//! A put is also the last thing that a return does to the rack: once the connection is back in its place another thread
//! may take it, close the pool and free the rack. [`put`] says how that is kept safe.

use crate::Deadline;
use crate::sync::{Arc, AtomicPtr, Condvar, Mutex, MutexGuard, Ordering::*};
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ptr;
use std::sync::PoisonError;

/// One slot's word, alone on its cache lines.
#[repr(align(128))]
pub(crate) struct Place<T>(AtomicPtr<T>);

/// No object is ever at one of these addresses: the last three bytes of memory are not a `Box`'s.
const TAKEN: usize = usize::MAX;
const WANTED: usize = usize::MAX - 1;
const GONE: usize = usize::MAX - 2;

fn mark<T>(word: usize) -> *mut T {
    ptr::without_provenance_mut(word)
}

fn is_resting<T>(word: *mut T) -> bool {
    !word.is_null() && word.addr() < GONE
}

/// What one gets: a slot, with a connection or with the right to make one.
pub(crate) enum Taken<T> {
    Resting(usize, Box<T>),
    Vacant(usize),
}

pub(crate) enum Refusal {
    Closed,
    Timeout,
}

pub(crate) struct Rack<T> {
    places: Box<[Place<T>]>,
    queue: Mutex<Queue<T>>,
    /// Signalled when a closed rack loses a connection.
    emptied: Condvar,
    /// The places are words; this says what they hold: a rack may be shared if its connections may be sent.
    holds: PhantomData<Mutex<T>>,
}

struct Queue<T> {
    closed: bool,
    waiting: VecDeque<Arc<Ticket<T>>>,
}

/// A thread in the queue, and what it is given.
struct Ticket<T> {
    given: Mutex<Option<Result<Taken<T>, Refusal>>>,
    arrived: Condvar,
}

impl<T> Place<T> {
    fn take_resting(&self) -> Option<Box<T>> {
        let word = self.0.load(Relaxed);
        if !is_resting(word) || self.0.compare_exchange(word, mark(TAKEN), Acquire, Relaxed).is_err() {
            return None;
        }
        // SAFETY: a resting word came from `Box::into_raw` in `put` or `Rack::restore`, and this exchange took it out:
        // no other thread can have the same one.
        Some(unsafe { Box::from_raw(word) })
    }

    fn take_vacant(&self) -> bool {
        self.0.compare_exchange(ptr::null_mut(), mark(TAKEN), Acquire, Relaxed).is_ok()
    }

    /// Under the queue's lock: makes the return of a taken place come for the lock. False when the place has changed in
    /// between and wants another look.
    fn want(&self) -> bool {
        self.0.compare_exchange(mark(TAKEN), mark(WANTED), Relaxed, Relaxed).is_ok()
            || self.0.load(Relaxed).addr() == WANTED
    }
}

/// Puts a connection back into its place, unless somebody waits for one or the pool is closed: then it is returned.
///
/// `find` goes from the connection to its place; the connection must be what keeps that place alive.
#[inline]
pub(crate) fn put<T>(connection: Box<T>, find: impl for<'a> FnOnce(&'a T) -> &'a Place<T>) -> Result<(), Box<T>> {
    let raw = Box::into_raw(connection);
    // SAFETY: `raw` is ours until the exchange below publishes it. `find` borrowed the place from it, so the place lives
    // at least until then; afterwards neither is touched.
    let put = unsafe {
        let place: *const Place<T> = find(&*raw);
        (*place).0.compare_exchange(mark(TAKEN), raw, Release, Relaxed)
    };
    match put {
        Ok(_) => Ok(()),
        // SAFETY: not published, so still ours.
        Err(_) => Err(unsafe { Box::from_raw(raw) }),
    }
}

impl<T> Rack<T> {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            places: (0..size).map(|_| Place(AtomicPtr::new(ptr::null_mut()))).collect(),
            queue: Mutex::new(Queue { closed: false, waiting: VecDeque::new() }),
            emptied: Condvar::new(),
            holds: PhantomData,
        }
    }

    pub(crate) fn place(&self, slot: usize) -> &Place<T> {
        &self.places[slot]
    }

    /// A resting connection, the one in slot `near` first.
    #[inline]
    pub(crate) fn take_resting(&self, near: usize) -> Option<(usize, Box<T>)> {
        if let Some(connection) = self.places.get(near).and_then(Place::take_resting) {
            return Some((near, connection));
        }
        self.places.iter().enumerate().find_map(|(slot, place)| Some((slot, place.take_resting()?)))
    }

    pub(crate) fn take_resting_in(&self, slot: usize) -> Option<Box<T>> {
        self.places[slot].take_resting()
    }

    /// The right to make a connection, if there is room for one.
    pub(crate) fn take_vacant(&self) -> Option<usize> {
        self.places.iter().position(Place::take_vacant)
    }

    fn take(&self, near: usize) -> Option<Taken<T>> {
        let resting = self.take_resting(near).map(|(slot, connection)| Taken::Resting(slot, connection));
        resting.or_else(|| self.take_vacant().map(Taken::Vacant))
    }

    /// A connection or the right to make one, waiting for it in line until the deadline.
    pub(crate) fn acquire(&self, near: usize, deadline: Deadline) -> Result<Taken<T>, Refusal> {
        if let Some(taken) = self.take(near) {
            return Ok(taken);
        }
        let ticket = {
            let mut queue = self.lock();
            if queue.closed {
                return Err(Refusal::Closed);
            }
            if deadline.is_over() {
                return Err(Refusal::Timeout);
            }
            if let Some(taken) = self.take_or_want() {
                return Ok(taken);
            }
            let ticket = Arc::new(Ticket { given: Mutex::new(None), arrived: Condvar::new() });
            queue.waiting.push_back(Arc::clone(&ticket));
            ticket
        };
        if let Some(given) = ticket.wait(deadline) {
            return given;
        }
        let mut queue = self.lock();
        queue.waiting.retain(|other| !Arc::ptr_eq(other, &ticket));
        // Who takes a ticket out of the queue fills it under the same lock: it is in the queue, or it is filled.
        ticket.lock().take().unwrap_or(Err(Refusal::Timeout))
    }

    /// Under the queue's lock: something free, or else every place WANTED.
    fn take_or_want(&self) -> Option<Taken<T>> {
        for (slot, place) in self.places.iter().enumerate() {
            loop {
                if let Some(connection) = place.take_resting() {
                    return Some(Taken::Resting(slot, connection));
                }
                if place.take_vacant() {
                    return Some(Taken::Vacant(slot));
                }
                if place.want() {
                    break;
                }
            }
        }
        None
    }

    /// What a return does when [`put`] gave the connection back: to the first in line, or else to its place. When the
    /// rack is closed the connection is the caller's again, and so is the slot to vacate.
    #[must_use]
    pub(crate) fn restore(&self, slot: usize, connection: Box<T>) -> Option<Box<T>> {
        let mut queue = self.lock();
        if queue.closed {
            return Some(connection);
        }
        if let Some(first) = queue.waiting.pop_front() {
            first.give(Ok(Taken::Resting(slot, connection)));
        } else {
            self.places[slot].0.store(Box::into_raw(connection), Release);
        }
        None
    }

    /// Gives up a slot whose connection is gone, or was never made.
    pub(crate) fn vacate(&self, slot: usize) {
        let place = &self.places[slot];
        if place.0.compare_exchange(mark(TAKEN), ptr::null_mut(), Release, Relaxed).is_ok() {
            return;
        }
        let mut queue = self.lock();
        if queue.closed {
            place.0.store(mark(GONE), Release);
            self.emptied.notify_all();
        } else if let Some(first) = queue.waiting.pop_front() {
            first.give(Ok(Taken::Vacant(slot)));
        } else {
            place.0.store(ptr::null_mut(), Release);
        }
    }

    /// Takes every resting connection; the slots are the caller's to vacate.
    pub(crate) fn take_all_resting(&self) -> Vec<(usize, Box<T>)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(slot, place)| Some((slot, place.take_resting()?))).collect()
    }

    /// Nothing is given out any more; those who wait are told. Returns the resting connections.
    pub(crate) fn close(&self) -> Vec<Box<T>> {
        let mut queue = self.lock();
        queue.closed = true;
        let mut resting = Vec::new();
        for place in &self.places {
            while place.0.load(Relaxed).addr() != GONE {
                match place.take_resting() {
                    Some(connection) => resting.push(connection),
                    None if place.take_vacant() => {}
                    // Somebody's: its return will fail to put it, and find the rack closed.
                    None if place.want() => break,
                    None => continue,
                }
                place.0.store(mark(GONE), Release);
            }
        }
        for ticket in queue.waiting.drain(..) {
            ticket.give(Err(Refusal::Closed));
        }
        self.emptied.notify_all();
        resting
    }

    /// After [`close`](Self::close): waits until every slot has been vacated. False at the deadline.
    pub(crate) fn wait_until_empty(&self, deadline: Deadline) -> bool {
        let mut queue = self.lock();
        while self.total() > 0 {
            if deadline.is_over() {
                return false;
            }
            queue = deadline.wait(&self.emptied, queue);
        }
        true
    }

    /// Connections resting, lent or being made.
    pub(crate) fn total(&self) -> usize {
        self.count(|word| !word.is_null() && word.addr() != GONE)
    }

    pub(crate) fn resting(&self) -> usize {
        self.count(is_resting)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    fn count(&self, which: impl Fn(*mut T) -> bool) -> usize {
        self.places.iter().filter(|place| which(place.0.load(Relaxed))).count()
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Drop for Rack<T> {
    fn drop(&mut self) {
        drop(self.take_all_resting());
    }
}

impl<T> Ticket<T> {
    fn give(&self, what: Result<Taken<T>, Refusal>) {
        *self.lock() = Some(what);
        self.arrived.notify_one();
    }

    fn wait(&self, deadline: Deadline) -> Option<Result<Taken<T>, Refusal>> {
        let mut given = self.lock();
        loop {
            if let Some(given) = given.take() {
                return Some(given);
            }
            if deadline.is_over() {
                return None;
            }
            given = deadline.wait(&self.arrived, given);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<Taken<T>, Refusal>>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `cargo xtask verify loom` runs these: every interleaving of a few threads, with the memory orderings as written.
#[cfg(all(test, forksafe_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    /// A connection that keeps its rack alive, and notices when it is held twice.
    struct Item {
        rack: Arc<Rack<Item>>,
        slot: usize,
        holders: Arc<AtomicUsize>,
    }

    fn stocked(size: usize, resting: usize) -> (Arc<Rack<Item>>, Arc<AtomicUsize>) {
        let (rack, holders) = (Arc::new(Rack::new(size)), Arc::new(AtomicUsize::new(0)));
        for _ in 0..resting {
            let slot = rack.take_vacant().unwrap();
            let item = Box::new(Item { rack: Arc::clone(&rack), slot, holders: Arc::clone(&holders) });
            assert!(rack.restore(slot, item).is_none());
        }
        (rack, holders)
    }

    fn give_back(item: Box<Item>) {
        if let Err(item) = put(item, |item| item.rack.place(item.slot)) {
            let (rack, slot) = (Arc::clone(&item.rack), item.slot);
            if let Some(item) = rack.restore(slot, item) {
                drop(item);
                rack.vacate(slot);
            }
        }
    }

    /// As the pool does it: takes, uses, and puts back; or makes what is missing.
    fn use_one(rack: &Arc<Rack<Item>>, holders: &Arc<AtomicUsize>) {
        let item = match rack.acquire(0, Deadline::never()) {
            Ok(Taken::Resting(_, item)) => item,
            Ok(Taken::Vacant(slot)) => Box::new(Item { rack: Arc::clone(rack), slot, holders: Arc::clone(holders) }),
            Err(Refusal::Closed) => return,
            Err(Refusal::Timeout) => unreachable!("never is not too late"),
        };
        assert_eq!(item.holders.fetch_add(1, SeqCst), 0, "two threads hold the one slot");
        item.holders.fetch_sub(1, SeqCst);
        give_back(item);
    }

    #[test]
    fn loom_nobody_waits_in_vain_and_nothing_is_held_twice() {
        loom::model(|| {
            let (rack, holders) = stocked(1, 1);
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (rack, holders) = (Arc::clone(&rack), Arc::clone(&holders));
                    thread::spawn(move || use_one(&rack, &holders))
                })
                .collect();
            use_one(&rack, &holders);
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!((rack.total(), rack.resting(), rack.waiting()), (1, 1, 0));
            drop(rack.close());
        });
    }

    #[test]
    fn loom_a_vacated_slot_goes_to_who_waits() {
        loom::model(|| {
            let (rack, holders) = stocked(1, 0);
            let slot = rack.take_vacant().unwrap();
            let waits = {
                let (rack, holders) = (Arc::clone(&rack), Arc::clone(&holders));
                thread::spawn(move || use_one(&rack, &holders))
            };
            rack.vacate(slot);
            waits.join().unwrap();
            assert_eq!(rack.resting(), 1);
            drop(rack.close());
        });
    }

    /// A return races with a close that frees the rack: the last reference goes with the connection.
    #[test]
    fn loom_a_return_does_not_outlive_its_rack() {
        loom::model(|| {
            let (rack, _) = stocked(1, 1);
            let (_, item) = rack.take_resting(0).unwrap();
            let returns = thread::spawn(move || give_back(item));
            drop(rack.close());
            drop(rack);
            returns.join().unwrap();
        });
    }

    /// One place rests and one is vacant: neither is to be had afterwards, whoever comes by without having heard.
    #[test]
    fn loom_a_closed_rack_gives_nothing_out() {
        loom::model(|| {
            let (rack, holders) = stocked(2, 1);
            let other = {
                let (rack, holders) = (Arc::clone(&rack), Arc::clone(&holders));
                thread::spawn(move || use_one(&rack, &holders))
            };
            drop(rack.close());
            assert!(matches!(rack.acquire(0, Deadline::never()), Err(Refusal::Closed)));
            other.join().unwrap();
            assert_eq!(rack.total(), 0);
        });
    }

    #[test]
    fn loom_closing_ends_every_wait_and_empties_the_rack() {
        loom::model(|| {
            let (rack, holders) = stocked(1, 1);
            let threads: Vec<_> = (0..2)
                .map(|_| {
                    let (rack, holders) = (Arc::clone(&rack), Arc::clone(&holders));
                    thread::spawn(move || use_one(&rack, &holders))
                })
                .collect();
            drop(rack.close());
            assert!(rack.wait_until_empty(Deadline::never()));
            for thread in threads {
                thread.join().unwrap();
            }
            assert_eq!(rack.total(), 0);
        });
    }
}
