//! The line of those who wait, and what each of them is told.

use super::bag::{Refusal, Taken, Wish};
use super::typical::Typical;
use crate::Deadline;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::mem;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

pub(super) struct Queue<T> {
    pub(super) closed: bool,
    /// How many slots are LEAVING.
    pub(super) leaving: usize,
    /// Who in line has been told to look for itself, and has not done so yet.
    scout: Option<Arc<Waiter<T>>>,
    pub(super) line: VecDeque<Arc<Waiter<T>>>,
}

/// A thread in line.
pub(super) struct Waiter<T> {
    pub(super) since: Instant,
    /// Until when it has the time to make a connection.
    pub(super) connect_by: Deadline,
    told: Mutex<Message<T>>,
    is_told: Condvar,
}

struct Message<T> {
    what: Told<T>,
    sent: Instant,
}

pub(super) enum Told<T> {
    Nothing,
    /// There may be something.
    Look,
    Given(Taken<T>),
    Refused(Refusal),
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { closed: false, leaving: 0, scout: None, line: VecDeque::new() }
    }

    /// To its place in line: behind all that have waited for longer.
    pub(super) fn join(&mut self, Wish { since, connect_by, .. }: Wish) -> Arc<Waiter<T>> {
        let (told, is_told) = (Mutex::new(Message { what: Told::Nothing, sent: since }), Condvar::new());
        let waiter = Arc::new(Waiter { since, connect_by, told, is_told });
        let place = self.line.iter().rposition(|other| other.since <= since).map_or(0, |last| last + 1);
        self.line.insert(place, Arc::clone(&waiter));
        waiter
    }

    /// It has what it came for, or has lost patience. Whether it was the scout.
    pub(super) fn remove(&mut self, waiter: &Arc<Waiter<T>>) -> bool {
        self.line.retain(|other| !Arc::ptr_eq(other, waiter));
        self.recall(waiter)
    }

    /// Has everybody look at the time again.
    pub(super) fn nudge(&self) {
        self.line.iter().for_each(|waiter| waiter.nudge());
    }

    /// Hands over to who is at this place in line. Whether that was the scout.
    pub(super) fn give(&mut self, place: usize, taken: Taken<T>) -> bool {
        let Some(waiter) = self.line.remove(place) else { return false };
        waiter.tell(Told::Given(taken));
        self.recall(&waiter)
    }

    /// Whether somebody is on the way to look.
    pub(super) fn has_scout(&self) -> bool {
        self.scout.is_some()
    }

    pub(super) fn send(&mut self, waiter: &Arc<Waiter<T>>) {
        self.scout = Some(Arc::clone(waiter));
        waiter.tell(Told::Look);
    }

    /// Whether this was the scout. There is none now.
    pub(super) fn recall(&mut self, waiter: &Arc<Waiter<T>>) -> bool {
        self.scout.take_if(|scout| Arc::ptr_eq(scout, waiter)).is_some()
    }

    /// How long the first in line may have waited before it is handed what comes back.
    #[cfg_attr(all(test, forksafe_loom), allow(unused_variables, reason = "a model has no time"))]
    pub(super) fn bound(&self, size: usize, lag: Duration) -> Duration {
        // A model has no time: what it does must not depend on it.
        #[cfg(all(test, forksafe_loom))]
        return if super::model::HANDS_OVER.get() { Duration::ZERO } else { Duration::MAX };
        #[cfg(not(all(test, forksafe_loom)))]
        bound(self.line.len(), size, lag)
    }
}

/// To hand over leaves the connection unused for as long as the next thread takes to wake up. Everybody in line costs that
/// once in each round; a round that lasts this many times longer loses a few hundredths by it.
#[cfg_attr(all(test, forksafe_loom), allow(dead_code, reason = "a model has no time"))]
const ROUND: u32 = 40;

/// Nobody waits longer than this for the sake of the others' throughput.
#[cfg_attr(all(test, forksafe_loom), allow(dead_code, reason = "a model has no time"))]
const LONGEST: Duration = Duration::from_millis(10);

#[cfg_attr(all(test, forksafe_loom), allow(dead_code, reason = "a model has no time"))]
fn bound(waiting: usize, size: usize, lag: Duration) -> Duration {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let round = lag.saturating_mul(number(waiting)) / number(size).max(1);
    round.saturating_mul(ROUND).min(LONGEST)
}

impl<T> Waiter<T> {
    pub(super) fn tell(&self, what: Told<T>) {
        *self.lock() = Message { what, sent: Instant::now() };
        self.is_told.notify_one();
    }

    /// `until` may change while it waits. `lag` is told how long it took to wake up.
    pub(super) fn wait(&self, until: impl Fn() -> Deadline, lag: &Typical) -> Told<T> {
        let mut told = self.lock();
        while matches!(told.what, Told::Nothing) {
            let until = until();
            if until.is_over() {
                break;
            }
            told = until.wait(&self.is_told, told);
            if !matches!(told.what, Told::Nothing) {
                lag.note(told.sent.elapsed());
            } else if until.is_over() {
                break;
            }
        }
        mem::replace(&mut told.what, Told::Nothing)
    }

    /// What it was told and has not heard yet.
    pub(super) fn take_told(&self) -> Told<T> {
        mem::replace(&mut self.lock().what, Told::Nothing)
    }

    /// Has it look at the time again.
    fn nudge(&self) {
        // Under its lock, so that it is not between a look at the time and its wait.
        let _told = self.lock();
        self.is_told.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Message<T>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
