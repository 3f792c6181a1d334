//! The slots of one process, and the threads that wait for one.
//!
//! *Eventual fairness.* What comes back lies in its slot, and a thread that runs may take it; the first in line is woken to
//! look for itself, one at a time. Only who has waited for longer than a [bound](Pace::bound) is handed the next one directly,
//! first come first served. To hand over every time would be a lock convoy: each return would wait for the scheduler
//! to bring the next thread up. (The same is done by WebKit's locks, parking_lot, and Go's mutex.)
//!
//! *No wake-up is lost.* While threads wait and none of them has been told to look, every slot is WANTED, or SPARE because
//! nobody in line may connect: so each return comes for the lock. Whoever changes that under the lock
//! calls [`Bag::settle`], which tells somebody to look, or makes it so again.
//!
//! *The gate.* When a server has no room, or is away, nobody connects for some time. While there are SPARE slots behind a gate
//! that has been shut, those in line look again by themselves when it opens.

use super::clock::Coarse;
use super::queue::{Queue, Told, Waiter};
use super::slots::Slots;
use super::typical::Typical;
use crate::Deadline;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, yield_now};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What one gets: a slot, with a connection or with the right to make one.
pub(super) enum Taken<T> {
    Idle(usize, Box<T>),
    Vacant(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    Closed,
    Timeout,
    /// So many wait already.
    Full,
}

/// What a thread asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// The slot to look at first.
    pub(super) near: usize,
    /// Since when it waits, in this line or before.
    pub(super) since: Instant,
    /// Until when it waits.
    pub(super) deadline: Deadline,
    /// Until when it has the time to make a connection.
    pub(super) connect_by: Deadline,
    /// It does not wait if so many do already.
    pub(super) max_waiting: usize,
}

/// How often one looks again before going to sleep: the holders may be about to return what they have.
const LOOKS: u32 = if cfg!(forksafe_loom) { 0 } else { 3 };

/// How long the one who goes through a gate that had been shut has to show that it may be opened.
const PROBE: Duration = Duration::from_secs(1);

pub(super) struct Bag<T> {
    pub(super) slots: Slots<T>,
    queue: Mutex<Queue<T>>,
    /// Signalled when a closed bag loses a connection.
    emptied: Condvar,
    /// Until then no vacant slot is given out: the server has no room, or is away.
    gate: AtomicU64,
    /// How many slots there are to be. Changed under the lock.
    wanted: AtomicUsize,
    /// How long a thread takes to wake up when it is told something.
    lag: Typical,
}

/// What one got, and how long one has waited in line for it.
pub(super) struct Acquired<T> {
    pub(super) outcome: Result<Taken<T>, Refusal>,
    pub(super) waited: Option<Duration>,
}

enum Joined<T> {
    Served(Taken<T>),
    InLine(Arc<Waiter<T>>),
}

impl<T> Bag<T> {
    pub(super) fn new(size: usize) -> Self {
        Self {
            slots: Slots::new(size),
            queue: Mutex::new(Queue::new()),
            emptied: Condvar::new(),
            gate: AtomicU64::new(0),
            wanted: AtomicUsize::new(size),
            lag: Typical::default(),
        }
    }

    /// A connection or the right to make one, waiting for it until the deadline.
    pub(super) fn acquire(&self, wish: Wish) -> Acquired<T> {
        let at_once = |outcome| Acquired { outcome, waited: None };
        for look in 0..=LOOKS {
            if let Some(taken) = self.take(wish) {
                return at_once(Ok(taken));
            }
            if wish.deadline.is_over() {
                break;
            }
            if look < LOOKS {
                yield_now();
            }
        }
        let waiter = match self.join(wish) {
            Ok(Joined::Served(taken)) => return at_once(Ok(taken)),
            Ok(Joined::InLine(waiter)) => waiter,
            Err(refusal) => return at_once(Err(refusal)),
        };
        let begun = Instant::now();
        let outcome = self.wait(&waiter, wish);
        Acquired { outcome, waited: Some(begun.elapsed()) }
    }

    /// In line, until the deadline.
    fn wait(&self, waiter: &Arc<Waiter<T>>, wish: Wish) -> Result<Taken<T>, Refusal> {
        loop {
            match waiter.wait(|| wish.deadline.sooner(self.gate_opens()), &self.lag) {
                Told::Given(taken) => return Ok(taken),
                Told::Refused(why) => return Err(why),
                Told::Nothing if wish.deadline.is_over() => return self.leave(waiter),
                // Told to look, or the gate has opened.
                Told::Look | Told::Nothing => {
                    if let Some(taken) = self.look(waiter, wish) {
                        return Ok(taken);
                    }
                }
            }
        }
    }

    /// As one whose deadline comes at some moment of its wait.
    #[cfg(all(test, forksafe_loom))]
    pub(super) fn acquire_or_leave(&self, wish: Wish) -> Option<Taken<T>> {
        match self.join(wish).ok()? {
            Joined::Served(taken) => Some(taken),
            Joined::InLine(waiter) => self.leave(&waiter).ok(),
        }
    }

    fn take(&self, wish: Wish) -> Option<Taken<T>> {
        if let Some((slot, connection)) = self.slots.take_idle(wish.near) {
            return Some(Taken::Idle(slot, connection));
        }
        if !self.may_connect(wish.connect_by) {
            return None;
        }
        let number = self.slots.take_vacant()?;
        self.admit(number).then_some(Taken::Vacant(number))
    }

    /// To the end of the line, unless there is something to be had.
    fn join(&self, wish: Wish) -> Result<Joined<T>, Refusal> {
        let mut queue = self.lock();
        if queue.closed {
            return Err(Refusal::Closed);
        }
        if wish.deadline.is_over() {
            return Err(Refusal::Timeout);
        }
        // While others wait, either one of them is on its way to look, or everything is WANTED but for what is SPARE.
        let may_be = queue.line.is_empty() || (!queue.has_scout() && self.slots.have_vacant());
        if may_be && let Some(taken) = self.take_or_want(wish) {
            return Ok(Joined::Served(taken));
        }
        if queue.line.len() >= wish.max_waiting {
            return Err(Refusal::Full);
        }
        Ok(Joined::InLine(queue.join(wish)))
    }

    /// Under the lock: something to be had, or else every slot WANTED.
    fn take_or_want(&self, wish: Wish) -> Option<Taken<T>> {
        let may_connect = self.may_connect(wish.connect_by);
        for (number, slot) in self.slots.iter() {
            loop {
                if let Some(connection) = slot.take_idle() {
                    return Some(Taken::Idle(number, connection));
                }
                if may_connect && slot.take_vacant() {
                    if self.pass_gate() {
                        self.slots.count_taken(number);
                        return Some(Taken::Vacant(number));
                    }
                    slot.put_vacant();
                    break;
                }
                if slot.want() || (!may_connect && slot.spare()) {
                    break;
                }
            }
        }
        None
    }

    /// A thread in line looks for itself.
    fn look(&self, waiter: &Arc<Waiter<T>>, wish: Wish) -> Option<Taken<T>> {
        let mut queue = self.lock();
        let taken = match waiter.take_told() {
            // Between the wait and the lock.
            Told::Given(taken) => return Some(taken),
            Told::Refused(why) => {
                waiter.tell(Told::Refused(why));
                return None;
            }
            Told::Look | Told::Nothing => self.take_or_want(wish),
        };
        if taken.is_some() {
            queue.remove(waiter);
        } else {
            queue.recall(waiter);
        }
        self.settle(&mut queue);
        taken
    }

    /// Its time is over.
    fn leave(&self, waiter: &Arc<Waiter<T>>) -> Result<Taken<T>, Refusal> {
        let mut queue = self.lock();
        match waiter.take_told() {
            Told::Given(taken) => return Ok(taken),
            Told::Refused(why) => return Err(why),
            Told::Look | Told::Nothing => {}
        }
        if queue.remove(waiter) {
            // It was told to look and will not: somebody else has to.
            self.settle(&mut queue);
        }
        Err(Refusal::Timeout)
    }

    /// Under the lock: if nobody in line has been told to look, tells somebody, or makes every slot WANTED.
    fn settle(&self, queue: &mut Queue<T>) {
        if queue.has_scout() || queue.line.is_empty() {
            return;
        }
        for (_, slot) in self.slots.iter() {
            loop {
                let who = if slot.is_idle() {
                    queue.line.front()
                } else if slot.is_vacant() {
                    queue.line.iter().find(|waiter| self.may_connect(waiter.connect_by))
                } else {
                    None
                };
                let Some(who) = who.map(Arc::clone) else {
                    if slot.want() || slot.spare() {
                        break;
                    }
                    continue;
                };
                return queue.send(&who);
            }
        }
    }

    /// What a return does when [`put`](super::slots::put) gave the connection back. When the bag is closed the connection is
    /// the caller's again, and so is the slot to vacate.
    #[must_use]
    pub(super) fn restore(&self, number: usize, connection: Box<T>) -> Option<Box<T>> {
        let mut queue = self.lock();
        if queue.closed {
            return Some(connection);
        }
        let slot = self.slots.slot(number);
        if self.has_surplus(&queue) {
            queue.leaving += 1;
            slot.put_leaving();
            return Some(connection);
        }
        let now = Instant::now();
        let bound = queue.bound(self.slots.size(), self.lag.time());
        match queue.line.front().map(Arc::clone) {
            None => slot.put_idle(connection),
            Some(first) if now.saturating_duration_since(first.since) >= bound => {
                if queue.give(0, Taken::Idle(number, connection)) {
                    self.settle(&mut queue);
                }
            }
            Some(first) => {
                slot.put_idle(connection);
                if !queue.has_scout() {
                    queue.send(&first);
                }
            }
        }
        None
    }

    /// Gives up a slot whose connection is gone, or was never made.
    pub(super) fn vacate(&self, number: usize) {
        let slot = self.slots.slot(number);
        if slot.vacate() {
            self.slots.count_vacant(number);
            return;
        }
        let mut queue = self.lock();
        if queue.closed {
            slot.put_gone();
            self.emptied.notify_all();
            return;
        }
        queue.leaving -= usize::from(slot.is_leaving());
        if self.has_surplus(&queue) {
            return self.slots.shut(number);
        }
        // To connect takes long: there is nothing to be won by leaving it to who comes by.
        match queue.line.iter().position(|waiter| self.may_connect(waiter.connect_by)) {
            Some(place) if self.pass_gate() => {
                if queue.give(place, Taken::Vacant(number)) {
                    self.settle(&mut queue);
                }
            }
            _ => {
                slot.put_vacant();
                self.slots.count_vacant(number);
                self.settle(&mut queue);
                if self.gate.load(Relaxed) != 0 {
                    queue.nudge();
                }
            }
        }
    }

    /// From now on and for so long no vacant slot is given out; who waits gets what comes back. Then one at a time is,
    /// until [`open_gate`](Self::open_gate).
    pub(super) fn shut_gate(&self, time: Duration) {
        self.gate.store(Coarse::now().plus_duration(time).as_nanos(), Relaxed);
        self.lock().nudge();
    }

    /// A connect has succeeded.
    #[inline]
    pub(super) fn open_gate(&self) {
        if self.gate.load(Relaxed) != 0 {
            self.gate.store(0, Relaxed);
            self.settle(&mut self.lock());
        }
    }

    /// Who went through the gate has nothing to say about the server: the next one may.
    pub(super) fn release_gate(&self) {
        if self.gate.load(Relaxed) != 0 {
            self.gate.store(Coarse::now().as_nanos(), Relaxed);
            self.settle(&mut self.lock());
        }
    }

    /// For how long it is shut: a moment at least.
    pub(super) fn gate_opens_in(&self) -> Duration {
        Coarse::from_nanos(self.gate.load(Relaxed)).since(Coarse::now()).max(Duration::from_millis(1))
    }

    /// Whether it is open to all.
    pub(super) fn has_open_gate(&self) -> bool {
        self.gate.load(Relaxed) == 0
    }

    /// When one in line looks again by itself. Never, if the gate is open or nothing is behind it: then it will be told.
    fn gate_opens(&self) -> Deadline {
        let gate = self.gate.load(Relaxed);
        if gate == 0 || !self.slots.have_vacant() {
            return Deadline::never();
        }
        let opens = Coarse::from_nanos(gate).plus_duration(Coarse::RESOLUTION);
        Deadline::after(opens.since(Coarse::now()).max(Coarse::RESOLUTION))
    }

    /// Whether a vacant slot is of use to somebody: there is the time to connect, or nothing else to hope for.
    fn may_connect(&self, connect_by: Deadline) -> bool {
        let gate = self.gate.load(Relaxed);
        (gate == 0 || gate <= Coarse::now().as_nanos()) && (!connect_by.is_over() || self.slots.are_all_vacant())
    }

    /// Where the gate had been shut, one goes through at a time.
    fn pass_gate(&self) -> bool {
        let gate = self.gate.load(Relaxed);
        let now = Coarse::now();
        let next = now.plus_duration(PROBE).as_nanos();
        gate == 0 || (gate <= now.as_nanos() && self.gate.compare_exchange(gate, next, Relaxed, Relaxed).is_ok())
    }

    /// For a vacant slot that was taken: gives it up again if its taker does not get through the gate.
    fn admit(&self, number: usize) -> bool {
        let admitted = self.pass_gate();
        if !admitted {
            self.vacate(number);
        }
        admitted
    }

    /// Nothing is given out any more; those who wait are told. Returns the idle connections.
    pub(super) fn close(&self) -> Vec<Box<T>> {
        let mut queue = self.lock();
        queue.closed = true;
        let mut idle = Vec::new();
        for (number, slot) in self.slots.iter() {
            while !slot.is_gone() {
                match slot.take_idle() {
                    Some(connection) => idle.push(connection),
                    None if slot.take_vacant() => self.slots.count_taken(number),
                    // Somebody's: its return will fail to put it, and find the bag closed.
                    None if slot.want() => break,
                    None => continue,
                }
                slot.put_gone();
            }
        }
        while let Some(waiter) = queue.line.pop_front() {
            queue.recall(&waiter);
            waiter.tell(Told::Refused(Refusal::Closed));
        }
        self.emptied.notify_all();
        idle
    }

    /// After [`close`](Self::close): waits until every slot has been vacated. False at the deadline.
    pub(super) fn wait_until_empty(&self, deadline: Deadline) -> bool {
        let mut queue = self.lock();
        while self.slots.occupied() > 0 {
            if deadline.is_over() {
                return false;
            }
            queue = deadline.wait(&self.emptied, queue);
        }
        true
    }

    /// Makes it as many slots as `size` says, once those that are lent too many have come back. Idle connections that there is no
    /// room for are the caller's to close, and their slots to give up.
    pub(super) fn resize(&self, size: impl FnOnce() -> usize) -> Vec<(usize, Box<T>)> {
        let mut queue = self.lock();
        let mut closed = Vec::new();
        if queue.closed {
            return closed;
        }
        self.wanted.store(size(), Relaxed);
        self.open_slots();
        for (number, slot) in self.slots.iter() {
            if self.has_surplus(&queue) && slot.take_vacant() {
                self.slots.count_taken(number);
                self.slots.shut(number);
            }
        }
        for (number, slot) in self.slots.iter() {
            // Of what is lent each return comes for the lock, and the first of them go.
            while self.has_surplus(&queue) && !slot.want() {
                if let Some(connection) = slot.take_idle() {
                    queue.leaving += 1;
                    slot.put_leaving();
                    closed.push((number, connection));
                } else if slot.take_vacant() {
                    self.slots.count_taken(number);
                    self.slots.shut(number);
                }
            }
        }
        self.settle(&mut queue);
        if self.gate.load(Relaxed) != 0 {
            queue.nudge();
        }
        closed
    }

    /// Under the lock: as many as are wanted, at least.
    fn open_slots(&self) {
        let mut missing = self.wanted().saturating_sub(self.slots.size());
        for (number, _) in self.slots.iter() {
            if missing > 0 && self.slots.reopen(number) {
                missing -= 1;
            }
        }
        if missing > 0 {
            self.slots.grow(missing);
        }
    }

    /// Under the lock: whether there are more slots than are wanted, and than are leaving already.
    fn has_surplus(&self, queue: &Queue<T>) -> bool {
        self.slots.size() - queue.leaving > self.wanted()
    }

    /// How many slots there are to be.
    pub(super) fn wanted(&self) -> usize {
        self.wanted.load(Relaxed)
    }

    pub(super) fn waiting(&self) -> usize {
        self.lock().line.len()
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
