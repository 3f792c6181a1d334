//! The primitives under [`PerProcess`](crate::fork::PerProcess) and the pool's rack: std's, or loom's in a model.

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
