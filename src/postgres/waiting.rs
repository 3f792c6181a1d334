//! Whether a thread may wait inside a runtime of its own.
//!
//! Only tokio knows, and in a child it must not be asked through what this thread inherited: entering a runtime takes a
//! lock of that runtime's, which another thread of the parent may have held when it forked.

use crate::fork::PerProcess;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll, Waker};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::coop;

/// Threads of `spawn_blocking` and `block_in_place` have a runtime, and may.
pub(super) fn may_wait_here() -> bool {
    match Handle::try_current() {
        // (No context, and a context that is gone because the thread ends, are two things.)
        Err(error) => error.is_missing_context(),
        Ok(_) => !is_polled() && tokio_lets_wait(),
    }
}

/// Whether this is called by a future that tokio polls: each poll has a budget of at most 255 steps. Takes no lock, and
/// gives back what it takes. A future may be without one (`tokio::task::unconstrained`), so "no" is not certain.
fn is_polled() -> bool {
    let mut here = Context::from_waker(Waker::noop());
    let mut taken = Vec::with_capacity(usize::from(u8::MAX));
    let is_spent = loop {
        match coop::poll_proceed(&mut here) {
            Poll::Pending => break true,
            Poll::Ready(_) if taken.len() == taken.capacity() => break false,
            Poll::Ready(step) => taken.push(step),
        }
    };
    // Each puts back the budget that it found.
    while let Some(step) = taken.pop() {
        drop(step);
    }
    is_spent
}

/// Tokio answers by a panic. Its message appears on stderr; [`is_polled`] sees to it that this is rare.
fn tokio_lets_wait() -> bool {
    static HERE: PerProcess<Option<Runtime>> = PerProcess::new(|| Builder::new_current_thread().build().ok());
    HERE.as_ref().is_none_or(|runtime| {
        // (Through the handle, for which threads do not have to take turns.)
        catch_unwind(AssertUnwindSafe(|| runtime.handle().block_on(async {}))).is_ok()
    })
}
