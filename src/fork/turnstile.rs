//! One thread at a time, and it is known which.

use super::{Generation, generation};
use crate::Deadline;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::sync::PoisonError;

/// Lets one thread at a time through, and knows which.
pub(super) struct Turnstile {
    inside: Mutex<Option<usize>>,
    left: Condvar,
}

pub(super) enum Entered<'a> {
    First(Turn<'a>),
    /// The thread that asks is the one inside.
    Again,
    TooLate,
}

impl Turnstile {
    pub(super) fn new() -> Self {
        Self { inside: Mutex::new(None), left: Condvar::new() }
    }

    /// Waits for its turn until the deadline.
    pub(super) fn enter(&self, generation: Generation, deadline: Deadline) -> Entered<'_> {
        let me = this_thread();
        let mut inside = self.lock();
        loop {
            match *inside {
                None => {
                    *inside = Some(me);
                    return Entered::First(Turn { turnstile: self, generation });
                }
                Some(thread) if thread == me => return Entered::Again,
                Some(_) if deadline.is_over() => return Entered::TooLate,
                Some(_) => inside = deadline.wait(&self.left, inside),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<usize>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread inside the turnstile. Leaves when dropped, also by a panic; in a child that was forked inside, it does not
/// touch the inherited lock.
pub(super) struct Turn<'a> {
    turnstile: &'a Turnstile,
    generation: Generation,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if generation() == self.generation {
            *self.turnstile.lock() = None;
            self.turnstile.left.notify_all();
        }
    }
}

/// A number that no other living thread of this process has.
pub(crate) fn this_thread() -> usize {
    #[cfg(not(forksafe_loom))]
    {
        thread_local!(static HERE: u8 = const { 0 });
        HERE.with(|here| std::ptr::from_ref(here).addr())
    }
    #[cfg(forksafe_loom)]
    {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        loom::thread::current().id().hash(&mut hasher);
        hasher.finish() as usize
    }
}
