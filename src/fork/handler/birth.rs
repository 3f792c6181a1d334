//! How a process comes to know that it is new, and what it does then, once.

#[cfg(feature = "testing")]
use super::control;
use super::disown::{self, Birth};
use super::page::{self, BUSY, Word};
use super::{counters, sys};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// The generation of a process none of whose ancestors had used this crate.
pub(in crate::fork) const FIRST: u64 = BUSY + 1;

static NEWEST: AtomicU64 = AtomicU64::new(BUSY);
static HANDLERS: AtomicBool = AtomicBool::new(false);

/// When the forks that had begun before the handlers were registered have ended, as a rule; 0 once that is so.
static SETTLED_AT: AtomicU64 = AtomicU64::new(0);
/// In milliseconds.
const SETTLES_WITHIN: u64 = 20;

/// The number of this process's generation, if it has one. A load.
#[inline]
pub(in crate::fork) fn known() -> Option<NonZeroU64> {
    page::known()
}

/// Not in a handler. The order matters. The page first: what the handlers count must not change its place between the
/// beginning of a fork and its end. Then the handlers: once a generation is published, every later child of libc's fork must
/// be seen at birth.
#[cold]
pub(in crate::fork) fn find_out() -> NonZeroU64 {
    if !page::is_installed() {
        page::install();
    }
    ensure_handlers();
    loop {
        match page::look() {
            Word::Known(generation) => return generation,
            Word::Busy => sys::yield_now(),
            Word::New(expected) => take_stock(expected, Birth::FirstCall),
        }
    }
}

/// Makes this process one that we know. One thread of it wins; what it does takes microseconds and waits for nobody, so
/// the others only yield until the generation is there.
///
/// In the child handler, too: calls [`page`], [`disown`] and [`sys`], with signals blocked. No lock, no allocation, no panic,
/// no thread-local.
fn take_stock(expected: u64, birth: Birth) {
    let _quiet = sys::Quiet::begin();
    if !page::claim(expected) {
        return;
    }
    #[cfg(feature = "testing")]
    if control::is_off() && NEWEST.load(Relaxed) > BUSY {
        return page::publish(NEWEST.load(Relaxed)); // The control run: a child takes itself for its parent.
    }
    // Inherited memory, so newer than any ancestor's. Taken before anything is stamped with it.
    let generation = NEWEST.fetch_add(1, Relaxed) + 1;
    let parent = disown::record_pid();
    if generation > FIRST {
        disown::all(birth, parent);
    }
    page::publish(generation);
}

/// The child handler. It may come after another library's handler that has already called us, or even while a thread
/// that such a handler started is taking stock: then there is nothing to wait for. (That thread cannot know that the table is
/// our own, and asks the kernel. Where that is forbidden, this child is refused and its sockets stay.)
///
/// As [`take_stock`]: no lock, no allocation, no panic, no thread-local.
extern "C" fn child() {
    // The fallback takes a child with its parent's pid for its parent. A fork in progress says that this is one: nobody here
    // has looked yet, since the count of another process is none.
    if page::is_fallback() && counters::look().is_in_progress() && !matches!(page::look(), Word::Busy) {
        counters::forget();
        page::forget();
    }
    match page::look() {
        Word::New(expected) => take_stock(expected, Birth::Handler),
        // Another library's handler asked before us, and it could not be shown then that the table is our own. It is.
        Word::Known(_) if disown::shares_table() => {
            let _quiet = sys::Quiet::begin();
            disown::all(Birth::Handler, disown::pid());
        }
        Word::Known(_) | Word::Busy => {}
    }
}

/// Not in a handler. Registers the handlers, if that has not been done or has failed before for want of memory. Until then the
/// page still tells, from the first call of each child on.
///
/// Threads that race here register twice, which is harmless: two equal counts, and a child handler that finds its work
/// done. A child whose parent was in between does it again.
#[inline]
pub(in crate::fork) fn ensure_handlers() {
    if !HANDLERS.load(Acquire) {
        register_handlers();
    }
}

/// Whether children of libc's fork are known at birth.
#[cfg(feature = "net")]
pub(in crate::fork) fn has_handlers() -> bool {
    HANDLERS.load(Acquire)
}

#[cold]
fn register_handlers() {
    #[cfg(feature = "testing")]
    if control::refuses_handlers() {
        return;
    }
    // SAFETY: the handlers are `extern "C"` functions of this library and never unwind. They stay callable as long as
    // it is loaded; glibc removes them with it (a cdylib should be linked with `-z nodelete`, see the README).
    let failed = unsafe { libc::pthread_atfork(Some(counters::prepare), Some(counters::parent), Some(child)) };
    if failed == 0 {
        if !sys::is_single_threaded() {
            SETTLED_AT.store(sys::milliseconds() + SETTLES_WITHIN, Relaxed);
        }
        HANDLERS.store(true, Release);
    }
}

/// Whether a fork may be in progress that nobody counts: it had begun when the handlers were registered, so they do not run
/// for it. A connect had better wait a moment, once in the life of a program; only where another thread could have forked.
#[inline]
pub(in crate::fork) fn is_settling() -> bool {
    let at = SETTLED_AT.load(Relaxed);
    if at == 0 {
        return false;
    }
    if sys::milliseconds() < at {
        return true;
    }
    SETTLED_AT.store(0, Relaxed);
    false
}

#[cfg(all(test, feature = "testing", not(forksafe_loom)))]
mod tests {
    use super::*;
    use crate::fork::{Descriptors, Registration, generation};
    use crate::testing::{child, clean_process};
    use std::os::unix::net::UnixStream;

    #[test]
    fn handlers_that_could_not_be_registered_are_registered_later() {
        clean_process(|| {
            control::refuse_handlers(true);
            generation();
            let knows_at_birth = || child(|| known().is_some()).join();
            assert!(!knows_at_birth());
            control::refuse_handlers(false);
            let (near, _far) = UnixStream::pair().unwrap();
            let _kept = Registration::publish(Descriptors::of(&near)).unwrap();
            assert!(knows_at_birth(), "there is something to protect now");
        });
    }
}
