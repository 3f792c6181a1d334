//! The switch that control runs use: with the protection off, a child takes itself for its parent.
//!
//! It is looked at only while a process takes stock, so it costs the hot path nothing, and it exists only under the
//! feature `testing`.

use super::page;
use std::sync::atomic::{AtomicBool, Ordering::*};

static OFF: AtomicBool = AtomicBool::new(false);

pub(crate) fn is_off() -> bool {
    OFF.load(Relaxed)
}

/// Turns the protection off in every child made from here on. See [`testing::unsafe_share`](crate::testing::unsafe_share).
pub(crate) fn turn_off() {
    OFF.store(true, Relaxed);
}

/// Makes [`page::install`] settle for the fallback. Only before the first use of this crate.
pub(crate) fn refuse_page() {
    page::REFUSE_PAGE.store(true, Relaxed);
}
