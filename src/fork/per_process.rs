//! A lazily made value, one per process: the root idea of this crate.
//!
//! The state that a child must not touch is not unlocked or repaired there but *replaced*. [`PerProcess`] is a pointer
//! to a [`Node`] that carries the generation it was made in. A node of an older generation is never looked into again:
//! a child swaps in a fresh one, with fresh locks, by one compare-and-swap, and abandons the old. What if a thread of
//! the parent was in the middle of something in the old node? Then nobody will ever know.
//!
//! Memory ordering: a node is published with Release by the swap and read with Acquire, so its generation and its empty
//! cell are there for whoever finds it; the value is published by the cell.

use super::{Generation, generation, hooks};
use crate::Deadline;
use crate::sync::{AtomicPtr, Condvar, Mutex, MutexGuard, OnceLock, Ordering::*};
use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr;
use std::sync::PoisonError;

/// A value that each process makes for itself, exactly once, when it is first asked for.
///
/// In a forked child the parent's value is not used and not dropped: it is abandoned, and the child makes its own. Many
/// Rust libraries hang in forked workers for want of this: a tokio runtime has no threads there, an HTTP client's pool
/// holds shared sockets, a random generator repeats its sibling's numbers.
///
/// ```
/// use forksafe::fork::PerProcess;
///
/// static PID: PerProcess<u32> = PerProcess::new(std::process::id);
///
/// assert_eq!(*PID, std::process::id());
/// // SAFETY: the child reads a value and leaves.
/// match unsafe { libc::fork() } {
///     0 => unsafe { libc::_exit(i32::from(*PID != std::process::id())) },
///     child => {
///         let mut status = 0;
///         unsafe { libc::waitpid(child, &mut status, 0) };
///         assert_eq!(status, 0, "the child made its own");
///     }
/// }
/// ```
///
/// A fallible initialiser goes with [`try_get`](Self::try_get):
///
/// ```
/// use forksafe::fork::PerProcess;
/// use std::fs::File;
///
/// static NULL: PerProcess<File, fn() -> std::io::Result<File>> = PerProcess::new(|| File::open("/dev/null"));
/// let file: &File = PerProcess::try_get(&NULL)?;
/// # let _ = file;
/// # std::io::Result::Ok(())
/// ```
///
/// # When the initialiser misbehaves
///
/// If it fails or panics, nothing is made and the next caller tries again. If it forks, the child starts over with a
/// call of its own. If it asks for the very value that it is making, that is a panic with a message, not a hang; two
/// threads whose initialisers wait for each other's values do hang, as with any lazy value.
pub struct PerProcess<T, F = fn() -> T> {
    newest: AtomicPtr<Node<T>>,
    make: F,
    /// Shared and sent like the cell that the nodes hold.
    holds: PhantomData<OnceLock<T>>,
}

/// The value of one process. Only that process's threads ever touch it.
struct Node<T> {
    generation: Generation,
    value: OnceLock<T>,
    turnstile: Turnstile,
    /// The abandoned node of an ancestor: kept reachable, never followed.
    _abandoned: *mut Node<T>,
}

impl<T, F> PerProcess<T, F> {
    /// Nothing is made yet. In a `static`, a closure that captures nothing goes for the default `F`.
    #[cfg(not(forksafe_loom))]
    pub const fn new(make: F) -> Self {
        Self { newest: AtomicPtr::new(ptr::null_mut()), make, holds: PhantomData }
    }

    /// As above; the model's atomics cannot be made in a constant.
    #[cfg(forksafe_loom)]
    pub fn new(make: F) -> Self {
        Self { newest: AtomicPtr::new(ptr::null_mut()), make, holds: PhantomData }
    }

    /// The value, if this process has made it.
    ///
    /// ```
    /// use forksafe::fork::PerProcess;
    ///
    /// static ONE: PerProcess<u32> = PerProcess::new(|| 1);
    /// assert_eq!(PerProcess::existing(&ONE), None);
    /// assert_eq!(PerProcess::get(&ONE), &1);
    /// assert_eq!(PerProcess::existing(&ONE), Some(&1));
    /// ```
    #[inline]
    pub fn existing(this: &Self) -> Option<&T> {
        Self::existing_in(this, generation())
    }

    /// For a caller that has just asked which process this is.
    #[inline]
    pub(crate) fn existing_in(this: &Self, here: Generation) -> Option<&T> {
        let newest = this.newest.load(Acquire);
        // SAFETY: `node` published it after writing it; it is freed only with `self`, which is borrowed here.
        let node = unsafe { newest.as_ref() }?;
        if node.generation != here { None } else { node.value.get() }
    }

    /// The node of this process, fresh if there is none yet.
    fn node(&self) -> &Node<T> {
        loop {
            let now = generation();
            let newest = self.newest.load(Acquire);
            // SAFETY: as in `existing`. Of an inherited node only the generation is read, which was written before
            // the node was published and never since.
            if let Some(node) = unsafe { newest.as_ref() }
                && node.generation == now
            {
                return node;
            }
            let fresh = Box::into_raw(Box::new(Node {
                generation: now,
                value: OnceLock::new(),
                turnstile: Turnstile::new(),
                _abandoned: newest,
            }));
            match self.newest.compare_exchange(newest, fresh, AcqRel, Acquire) {
                // SAFETY: just published, freed only with `self`.
                Ok(_) => return unsafe { &*fresh },
                // SAFETY: another thread of this process was faster; nobody has seen `fresh`.
                Err(_) => drop(unsafe { Box::from_raw(fresh) }),
            }
        }
    }

    /// The value of this process, made by `make` if there is none. Runs no child hooks.
    pub(crate) fn get_with<E>(this: &Self, mut make: impl FnMut() -> Result<T, E>) -> Result<&T, E> {
        loop {
            let node = this.node();
            if let Some(value) = node.value.get() {
                return Ok(value);
            }
            let turn = match node.turnstile.enter(node.generation, Deadline::never()) {
                Entered::First(turn) => turn,
                Entered::Again => panic!("forksafe: the initialiser of a PerProcess asked for the value it is making"),
                Entered::TooLate => unreachable!("never is not too late"),
            };
            if node.value.get().is_some() {
                continue;
            }
            let made = make();
            if generation() != node.generation {
                // `make` forked, and this is the child: in a frame of its parent, with a value half of which is the
                // parent's and a lock that the parent's threads may have held.
                std::mem::forget((made, turn));
                continue;
            }
            let value = made?;
            let fresh = node.value.set(value).is_ok();
            assert!(fresh, "bug: two threads made the value of one process");
            drop(turn);
        }
    }
}

impl<T, F: Fn() -> T> PerProcess<T, F> {
    /// The value of this process. Makes it if this is the first call here.
    ///
    /// In a child this first runs the [`on_child`](super::on_child) hooks, if nobody has.
    ///
    /// # Panics
    ///
    /// When the initialiser panics, or asks for the value that it is making.
    #[inline]
    pub fn get(this: &Self) -> &T {
        Self::existing(this).unwrap_or_else(|| Self::make_it(this))
    }

    #[cold]
    fn make_it(this: &Self) -> &T {
        hooks::run_due();
        let Ok(value) = Self::get_with(this, || Ok::<_, Infallible>((this.make)()));
        value
    }
}

impl<T, E, F: Fn() -> Result<T, E>> PerProcess<T, F> {
    /// The value of this process. Makes it if there is none here.
    ///
    /// In a child this first runs the [`on_child`](super::on_child) hooks, if nobody has.
    ///
    /// # Errors
    ///
    /// The initialiser's. Nothing is kept of a failure: the next call tries again.
    ///
    /// # Panics
    ///
    /// When the initialiser panics, or asks for the value that it is making.
    pub fn try_get(this: &Self) -> Result<&T, E> {
        if let Some(value) = Self::existing(this) {
            return Ok(value);
        }
        hooks::run_due();
        Self::get_with(this, &this.make)
    }
}

impl<T, F: Fn() -> T> Deref for PerProcess<T, F> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        Self::get(self)
    }
}

impl<T, F> Drop for PerProcess<T, F> {
    /// Drops the value of this process. Those of its ancestors are leaked: dropping them is what must never happen.
    fn drop(&mut self) {
        let newest = self.newest.load(Acquire);
        // SAFETY: as in `existing`.
        let ours = unsafe { newest.as_ref() }.is_some_and(|node| node.generation == generation());
        if ours {
            // SAFETY: `node` made it with `Box::into_raw`, and `&mut self` says that nobody borrows it.
            drop(unsafe { Box::from_raw(newest) });
        }
    }
}

impl<T: fmt::Debug, F> fmt::Debug for PerProcess<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerProcess").field("value", &Self::existing(self)).finish_non_exhaustive()
    }
}

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
        HERE.with(|here| ptr::from_ref(here).addr())
    }
    #[cfg(forksafe_loom)]
    {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        loom::thread::current().id().hash(&mut hasher);
        hasher.finish() as usize
    }
}

/// `cargo xtask verify loom` runs these.
#[cfg(all(test, forksafe_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    fn race(fails_first: bool) {
        loom::model(move || {
            let made = Arc::new(AtomicUsize::new(0));
            let counts = Arc::clone(&made);
            let value = Arc::new(PerProcess::new(move || match counts.fetch_add(1, SeqCst) {
                0 if fails_first => Err(()),
                n => Ok(n),
            }));
            let other = {
                let value = Arc::clone(&value);
                thread::spawn(move || PerProcess::try_get(&value).copied())
            };
            let mine = PerProcess::try_get(&value).copied();
            let others = other.join().unwrap();
            let good: Vec<usize> = [mine, others].into_iter().flatten().collect();
            assert!(good.windows(2).all(|pair| pair[0] == pair[1]), "two values in one process");
            assert_eq!(made.load(SeqCst), 1 + usize::from(fails_first && !good.is_empty()));
            assert_eq!(good.len(), 2 - usize::from(fails_first));
        });
    }

    #[test]
    fn loom_racing_threads_make_one_value() {
        race(false);
    }

    #[test]
    fn loom_a_failed_initialiser_lets_the_next_one_in() {
        race(true);
    }
}
