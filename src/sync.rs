//! The primitives under [`PerProcess`](crate::fork::PerProcess) and the pool's slots: std's, or loom's in a model.

#[cfg(not(forksafe_loom))]
pub(crate) use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock,
    atomic::{AtomicPtr, Ordering},
};
#[cfg(not(forksafe_loom))]
pub(crate) use std::thread::yield_now;

#[cfg(forksafe_loom)]
pub(crate) use loom::sync::{
    Arc, Condvar, Mutex, MutexGuard,
    atomic::{AtomicPtr, Ordering},
};
#[cfg(forksafe_loom)]
pub(crate) use loom::thread::yield_now;
/// loom has no such cell; std's is set once under the turnstile, which is what the model checks.
#[cfg(forksafe_loom)]
pub(crate) use std::sync::OnceLock;

use std::ptr;

/// The head of a list to which nodes are added by compare-and-swap: published with Release, read with Acquire.
#[cfg(not(forksafe_loom))]
pub(crate) struct Head<T>(AtomicPtr<T>);

/// loom's pointers cannot be made in a constant, and there are statics that have one. So it is made when it is first asked
/// for, which only one thread of a model can be doing at a time.
#[cfg(forksafe_loom)]
pub(crate) struct Head<T>(OnceLock<AtomicPtr<T>>);

impl<T> Head<T> {
    #[cfg(not(forksafe_loom))]
    pub(crate) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    #[cfg(forksafe_loom)]
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    #[inline]
    fn pointer(&self) -> &AtomicPtr<T> {
        #[cfg(not(forksafe_loom))]
        {
            &self.0
        }
        #[cfg(forksafe_loom)]
        {
            self.0.get_or_init(|| AtomicPtr::new(ptr::null_mut()))
        }
    }

    #[inline]
    pub(crate) fn load(&self) -> *mut T {
        self.pointer().load(Ordering::Acquire)
    }

    /// # Errors
    ///
    /// What is there instead of `expected`.
    pub(crate) fn exchange(&self, expected: *mut T, new: *mut T) -> Result<*mut T, *mut T> {
        self.pointer().compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire)
    }
}
