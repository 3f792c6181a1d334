//! The line of those who wait, and what each of them is told.

use super::bag::{Refusal, Taken};
use crate::Deadline;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

pub(super) struct Queue<T> {
    pub(super) closed: bool,
    /// One of those in line has been told to look, and has not done so yet.
    pub(super) waking: bool,
    pub(super) line: VecDeque<Arc<Waiter<T>>>,
    pace: Pace,
}

/// A thread in line.
pub(super) struct Waiter<T> {
    pub(super) since: Instant,
    /// Until when it has the time to make a connection.
    pub(super) connect_by: Deadline,
    told: Mutex<Told<T>>,
    is_told: Condvar,
}

pub(super) enum Told<T> {
    Nothing,
    /// There may be something. Until it has looked, `Queue::waking` holds.
    Look,
    Given(Taken<T>),
    Refused(Refusal),
}

impl<T> Queue<T> {
    pub(super) fn new() -> Self {
        Self { closed: false, waking: false, line: VecDeque::new(), pace: Pace::default() }
    }

    pub(super) fn join(&mut self, connect_by: Deadline) -> Arc<Waiter<T>> {
        let (told, is_told) = (Mutex::new(Told::Nothing), Condvar::new());
        let waiter = Arc::new(Waiter { since: Instant::now(), connect_by, told, is_told });
        self.line.push_back(Arc::clone(&waiter));
        waiter
    }

    pub(super) fn remove(&mut self, waiter: &Arc<Waiter<T>>) {
        self.line.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    /// Something comes back: how long the first in line may have waited before it is handed over.
    #[cfg_attr(all(test, forksafe_loom), allow(unused_variables, reason = "a model has no time"))]
    pub(super) fn check_in(&mut self, now: Instant) -> Duration {
        // A model has no time: what it does must not depend on it.
        #[cfg(all(test, forksafe_loom))]
        return if super::model::HANDS_OVER.get() { Duration::ZERO } else { Duration::MAX };
        #[cfg(not(all(test, forksafe_loom)))]
        self.bound_at(now)
    }

    #[cfg_attr(all(test, forksafe_loom), allow(dead_code, reason = "a model has no time"))]
    fn bound_at(&mut self, now: Instant) -> Duration {
        self.pace.check_in(now, self.line.len());
        self.pace.bound(self.line.len())
    }
}

impl<T> Waiter<T> {
    /// Whether it had been told to look, and had not yet.
    pub(super) fn tell(&self, what: Told<T>) -> bool {
        let before = std::mem::replace(&mut *self.lock(), what);
        self.is_told.notify_one();
        matches!(before, Told::Look)
    }

    /// `until` may change while it waits.
    pub(super) fn wait(&self, until: impl Fn() -> Deadline) -> Told<T> {
        let mut told = self.lock();
        loop {
            let until = until();
            if !matches!(*told, Told::Nothing) || until.is_over() {
                return std::mem::replace(&mut *told, Told::Nothing);
            }
            told = until.wait(&self.is_told, told);
        }
    }

    /// What it was told and has not heard yet.
    pub(super) fn take_told(&self) -> Told<T> {
        std::mem::replace(&mut *self.lock(), Told::Nothing)
    }

    /// Has it look at the time again.
    pub(super) fn nudge(&self) {
        // Under its lock, so that it is not between a look at the time and its wait.
        let _told = self.lock();
        self.is_told.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Told<T>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How quickly connections come back while somebody waits.
#[derive(Default)]
struct Pace {
    last: Option<Instant>,
    gap: Duration,
}

impl Pace {
    /// Whoever has waited for longer than this is handed the next one.
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(20);

    fn check_in(&mut self, now: Instant, waiting: usize) {
        if waiting == 0 {
            self.last = None;
            return;
        }
        if let Some(last) = self.last.replace(now) {
            let gap = now.saturating_duration_since(last).min(Self::LONGEST);
            self.gap = (self.gap * 7 + gap) / 8;
        }
    }

    /// Twice what an ideal queue would make one wait: everybody ahead is served first.
    fn bound(&self, waiting: usize) -> Duration {
        let ideal = self.gap * u32::try_from(waiting).unwrap_or(u32::MAX);
        (ideal * 2).clamp(Self::SHORTEST, Self::LONGEST)
    }
}
