//! Until when the question may take that this thread is asking a manager.
//!
//! A manager that wraps one of this crate's, and has only the methods of r2d2's trait, passes no deadline on: so the wrapped
//! one looks here, as it finds its attempt in [`Attempt::current`](crate::Attempt::current).

use crate::Deadline;
use crate::fork::{Generation, generation};
use std::cell::Cell;

thread_local! {
    /// With the generation that asks: a child that was forked in the middle finds its parent's here.
    static ASKED: Cell<Option<(Generation, Deadline)>> = const { Cell::new(None) };
}

/// Asks, and has the deadline known to the thread meanwhile.
pub(super) fn until<T>(deadline: Deadline, ask: impl FnOnce() -> T) -> T {
    struct Restore(Option<(Generation, Deadline)>);
    impl Drop for Restore {
        fn drop(&mut self) {
            let _ = ASKED.try_with(|asked| asked.set(self.0));
        }
    }
    let before = ASKED.try_with(|asked| asked.replace(Some((generation(), deadline))));
    let _restore = Restore(before.ok().flatten());
    ask()
}

/// For another thread that does a part of this one's work: does it with what this one knows.
pub(super) fn as_here<T>(work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    let asked = ASKED.try_with(Cell::get).ok().flatten();
    move || match asked {
        Some((asks, deadline)) if asks == generation() => until(deadline, work),
        _ => work(),
    }
}

/// The deadline of the question that a pool is asking on this thread. It is for whichever connection the manager makes of it, and so
/// for no socket.
#[cfg_attr(not(any(feature = "redis", feature = "postgres")), allow(dead_code, reason = "for managers of this crate"))]
pub(crate) fn deadline() -> Option<Deadline> {
    let (asks, deadline) = ASKED.try_with(Cell::get).ok()??;
    (asks == generation()).then(|| deadline.on(None))
}
