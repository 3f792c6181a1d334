//! The switches that control runs and tests use. They exist only under the feature `testing`, and are looked at only while a
//! process takes stock or is used for the first time, so they cost the hot path nothing.

use std::sync::atomic::{AtomicBool, Ordering::*};

static OFF: AtomicBool = AtomicBool::new(false);
static NO_PAGE: AtomicBool = AtomicBool::new(false);
static NO_HANDLERS: AtomicBool = AtomicBool::new(false);

/// With the protection off, a child takes itself for its parent.
pub(crate) fn is_off() -> bool {
    OFF.load(Relaxed)
}

/// Turns the protection off in every child made from here on. See [`testing::unsafe_share`](crate::testing::unsafe_share).
pub(crate) fn turn_off() {
    OFF.store(true, Relaxed);
}

/// Makes [`page::install`](super::page::install) settle for the fallback. Only before the first use of this crate.
pub(crate) fn refuse_page() {
    NO_PAGE.store(true, Relaxed);
}

pub(super) fn refuses_page() -> bool {
    NO_PAGE.load(Relaxed)
}

/// Makes `pthread_atfork` fail, as when memory is short, or lets it succeed again.
#[cfg(test)]
pub(crate) fn refuse_handlers(refuse: bool) {
    NO_HANDLERS.store(refuse, Relaxed);
}

pub(super) fn refuses_handlers() -> bool {
    NO_HANDLERS.load(Relaxed)
}
