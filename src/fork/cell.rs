//! A lazily made value, one per process: the root idea of this crate.
//!
//! The state that a child must not touch is not unlocked or repaired there but *replaced*. [`Cell`] is a pointer
//! to a [`Node`] that carries the generation it was made in. A node of an older generation is never looked into again:
//! a child swaps in a fresh one, with fresh locks, by one compare-and-swap, and abandons the old. What if a thread of
//! the parent was in the middle of something in the old node? Then nobody will ever know.
//!
//! That it had begun is known, for a node is made only by who begins: it names the process of this line that began first.
//! That was written before the node was published, like the generation, and goes from an ancestor's node to the fresh one.
//!
//! Memory ordering: a node is published with Release by the swap and read with Acquire, so its generation, who began first
//! and its empty cell are there for whoever finds it; the value is published by the cell.

use super::made_here::NotMadeHere;
use super::turnstile::{Entered, Turnstile};
use super::{Generation, Origin, generation};
use crate::Deadline;
use crate::sync::{Head, OnceLock};
use std::marker::PhantomData;
use std::mem;

/// What [`PerProcess`](super::PerProcess) is made of, without its hooks.
pub(super) struct Cell<T> {
    newest: Head<Node<T>>,
    /// Shared and sent like the cell that the nodes hold.
    holds: PhantomData<OnceLock<T>>,
}

/// The value of one process. Only that process's threads ever touch it.
struct Node<T> {
    generation: Generation,
    /// The process of this line that began first to make a value: this one or an ancestor.
    first: Origin,
    value: OnceLock<T>,
    turnstile: Turnstile,
    /// The abandoned node of an ancestor: kept reachable, never followed.
    _abandoned: *mut Node<T>,
}

impl<T> Cell<T> {
    pub(super) const fn new() -> Self {
        Self { newest: Head::new(), holds: PhantomData }
    }

    /// For a caller that has just asked which process this is.
    #[inline]
    pub(super) fn existing_in(&self, here: Generation) -> Option<&T> {
        let newest = self.newest.load();
        // SAFETY: `node` published it after writing it; it is freed only with `self`, which is borrowed here.
        let node = unsafe { newest.as_ref() }?;
        if node.generation != here { None } else { node.value.get() }
    }

    /// The node of this process, fresh if there is none yet.
    fn node(&self) -> &Node<T> {
        loop {
            let now = generation();
            let newest = self.newest.load();
            // SAFETY: as in `existing_in`. Of an inherited node only the generation and who began first are read, which were
            // written before the node was published and never since.
            let node = unsafe { newest.as_ref() };
            if let Some(node) = node
                && node.generation == now
            {
                return node;
            }
            let fresh = Box::into_raw(Box::new(Node {
                generation: now,
                first: node.map_or_else(Origin::current, |inherited| inherited.first),
                value: OnceLock::new(),
                turnstile: Turnstile::new(),
                _abandoned: newest,
            }));
            match self.newest.exchange(newest, fresh) {
                // SAFETY: just published, freed only with `self`.
                Ok(_) => return unsafe { &*fresh },
                // SAFETY: another thread of this process was faster; nobody has seen `fresh`.
                Err(_) => drop(unsafe { Box::from_raw(fresh) }),
            }
        }
    }

    /// The value of this process, made by `make` if there is none. Runs no child hooks.
    pub(super) fn get_with<E>(&self, make: impl FnMut() -> Result<T, E>) -> Result<&T, E> {
        self.get_if(|_| Ok(()), make)
    }

    /// As [`get_with`](Self::get_with), if no ancestor has begun to make one.
    pub(super) fn get_unless_inherited<E>(&self, make: impl FnMut() -> Result<T, E>) -> Result<&T, E>
    where
        E: From<NotMadeHere>,
    {
        self.get_if(|node| node.is_first().map_err(E::from), make)
    }

    /// `admits` is asked again in a child that comes out of `make`.
    fn get_if<E>(
        &self,
        admits: impl Fn(&Node<T>) -> Result<(), E>,
        mut make: impl FnMut() -> Result<T, E>,
    ) -> Result<&T, E> {
        loop {
            let node = self.node();
            admits(node)?;
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
                mem::forget((made, turn));
                continue;
            }
            let value = made?;
            let fresh = node.value.set(value).is_ok();
            assert!(fresh, "bug: two threads made the value of one process");
            drop(turn);
        }
    }
}

impl<T> Node<T> {
    fn is_first(&self) -> Result<(), NotMadeHere> {
        if self.first.generation == self.generation { Ok(()) } else { Err(NotMadeHere::of(self.first)) }
    }
}

impl<T> Drop for Cell<T> {
    /// Drops the value of this process. Those of its ancestors are leaked: dropping them is what must never happen.
    fn drop(&mut self) {
        let newest = self.newest.load();
        // SAFETY: as in `existing_in`.
        let ours = unsafe { newest.as_ref() }.is_some_and(|node| node.generation == generation());
        if ours {
            // SAFETY: `node` made it with `Box::into_raw`, and `&mut self` says that nobody borrows it.
            drop(unsafe { Box::from_raw(newest) });
        }
    }
}

/// `cargo xtask verify loom` runs these.
#[cfg(all(test, forksafe_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use loom::thread;
    use std::num::NonZeroU64;
    use std::ptr;

    fn race(fails_first: bool) {
        loom::model(move || {
            let made = Arc::new(AtomicUsize::new(0));
            let counts = Arc::clone(&made);
            let value = Arc::new(Cell::new());
            value.newest.load(); // Made before there are two threads: see `Head`.
            let make = move || match counts.fetch_add(1, SeqCst) {
                0 if fails_first => Err(()),
                n => Ok(n),
            };
            let get = move |value: &Cell<usize>| value.get_with(&make).copied();
            let other = {
                let (value, get) = (Arc::clone(&value), get.clone());
                thread::spawn(move || get(&value))
            };
            let mine = get(&value);
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

    /// A child whose parent has begun: one of its threads asks for a value of its own, the other only for one that nobody began.
    #[test]
    fn loom_a_node_of_an_ancestor_is_remembered_whoever_comes_first() {
        loom::model(|| {
            let parent = Origin { pid: 4711, generation: Generation(NonZeroU64::MIN) };
            let value: Arc<Cell<u32>> = Arc::new(Cell::new());
            let inherited = Box::into_raw(Box::new(Node {
                generation: parent.generation,
                first: parent,
                value: OnceLock::new(),
                turnstile: Turnstile::new(),
                _abandoned: ptr::null_mut(),
            }));
            value.newest.exchange(ptr::null_mut(), inherited).unwrap();
            let other = {
                let value = Arc::clone(&value);
                thread::spawn(move || value.get_with(|| Ok::<_, ()>(7)).copied())
            };
            let refused = value.get_unless_inherited(|| Ok::<_, NotMadeHere>(8)).copied();
            assert_eq!(refused.unwrap_err().pid, parent.pid);
            assert_eq!(other.join().unwrap(), Ok(7));
            // SAFETY: abandoned by both threads, which have ended.
            drop(unsafe { Box::from_raw(inherited) });
        });
    }
}
