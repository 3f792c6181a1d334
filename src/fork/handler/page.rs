//! The word that every new process finds unwritten.
//!
//! On Linux it lives in a page that the kernel wipes in a forked child (`MADV_WIPEONFORK`, since 4.14): the only sign of
//! a fork that no way of forking escapes. Its values: 0 in a process that has not looked yet, [`BUSY`] while one of its
//! threads takes stock of what was inherited, then the generation. So the question "is this still the process that I
//! know" is one load and one comparison.
//!
//! Where the page cannot be had, [`WORD`] stays at a word that is always 0, so that each question takes the slow path,
//! and that path compares the pid: 140 ns instead of 1, and blind to a child that has its parent's pid and came without
//! the atfork handler (a raw clone into a new pid namespace, a reused pid).
//!
//! All but [`install`] may run in a handler: atomics, and `getpid` where there is no page.
//!
//! Memory ordering: [`publish`] stores with Release what the claiming thread did to the registry; whoever loads the
//! generation with Acquire sees all of it.

use super::sys;
use std::num::NonZeroU64;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::*};

/// A thread of this process is taking stock. Also the value just below the first generation.
pub(in crate::fork) const BUSY: u64 = 1;

/// Stands in for the page before there is one. Never written.
static NO_PAGE_YET: AtomicU64 = AtomicU64::new(0);
/// Stands in for the page where there can be none: from then on the pid decides. Never written.
static NO_PAGE: AtomicU64 = AtomicU64::new(0);
static WORD: AtomicPtr<AtomicU64> = AtomicPtr::new((&raw const NO_PAGE_YET).cast_mut());

/// The fallback's word: the pid in the low 24 bits (Linux stops at 22), and above it what the page would hold.
static BY_PID: AtomicU64 = AtomicU64::new(0);
const PID_BITS: u32 = 24;

/// What this process knows of itself.
pub(super) enum Word {
    /// Nothing yet: it is new. The number is what [`claim`] expects to find.
    New(u64),
    /// One of its threads is finding out.
    Busy,
    Known(NonZeroU64),
}

/// The hot path: the generation, if it is known and there is a page.
#[inline]
pub(super) fn known() -> Option<NonZeroU64> {
    // SAFETY: WORD points at one of the two statics or at the page, which is never unmapped.
    let word = unsafe { (*WORD.load(Acquire)).load(Acquire) };
    if word > BUSY { NonZeroU64::new(word) } else { None }
}

pub(super) fn look() -> Word {
    let (word, expected) = if let Some(page) = first() {
        let word = page.load(Acquire);
        (word, word)
    } else {
        let both = BY_PID.load(Acquire);
        let ours = both & ((1 << PID_BITS) - 1) == u64::from(sys::pid());
        // A BUSY of another pid was copied in the middle of its owner's work, and that thread is not here: it is free
        // for the taking, as is any older generation.
        (if ours { both >> PID_BITS } else { 0 }, both)
    };
    match word {
        0 => Word::New(expected),
        BUSY => Word::Busy,
        known => NonZeroU64::new(known).map_or(Word::Busy, Word::Known),
    }
}

/// True for exactly one thread of a new process. Signals must be blocked from before this until after [`publish`]: a
/// handler that asked for the generation in between would wait for the very thread that it interrupted.
pub(super) fn claim(expected: u64) -> bool {
    let (word, busy) = match first() {
        Some(page) => (page, BUSY),
        None => (&BY_PID, BUSY << PID_BITS | u64::from(sys::pid())),
    };
    word.compare_exchange(expected, busy, AcqRel, Acquire).is_ok()
}

pub(super) fn publish(generation: u64) {
    match first() {
        Some(page) => page.store(generation, Release),
        None => BY_PID.store(generation << PID_BITS | u64::from(sys::pid()), Release),
    }
}

/// In the child handler, where the fallback would take a child with its parent's pid for its parent. One atomic store.
pub(super) fn forget() {
    BY_PID.store(0, Release);
}

pub(super) fn is_installed() -> bool {
    !ptr::eq(WORD.load(Acquire), &raw const NO_PAGE_YET)
}

pub(crate) fn is_fallback() -> bool {
    ptr::eq(WORD.load(Acquire), &raw const NO_PAGE)
}

/// Not in a handler. Gets the page, or settles for the fallback, by one compare-and-swap: threads may race here, and a fork may come at any
/// point of it. The page is published complete, and a copy of a half-made one is merely lost.
pub(super) fn install() {
    let made = wiped_page();
    let fresh = made.map_or((&raw const NO_PAGE).cast_mut(), ptr::NonNull::as_ptr);
    let yet = (&raw const NO_PAGE_YET).cast_mut();
    if WORD.compare_exchange(yet, fresh, AcqRel, Acquire).is_err()
        && let Some(page) = made
    {
        // SAFETY: this mapping was never published, so only this thread knows it.
        unsafe { libc::munmap(page.as_ptr().cast(), page_size()) };
    }
}

/// Another word of the page, on a cache line of its own: 0 in a new process, and in the parent not copied at its first
/// write after a fork, as ordinary memory would be.
pub(super) fn beside() -> Option<&'static AtomicU64> {
    const TWO_LINES: usize = 16;
    // SAFETY: the page is larger than that and never unmapped, and all zeros is a valid word. The pointer is the mapping's
    // own, so it may go to any part of it.
    page().map(|page| unsafe { &*page.as_ptr().add(TWO_LINES) })
}

/// The mapping, if there is one.
fn page() -> Option<ptr::NonNull<AtomicU64>> {
    let word = WORD.load(Acquire);
    let stands_in = ptr::eq(word, &raw const NO_PAGE_YET) || ptr::eq(word, &raw const NO_PAGE);
    ptr::NonNull::new(word).filter(|_| !stands_in)
}

/// Its first word, which is the generation.
fn first() -> Option<&'static AtomicU64> {
    // SAFETY: the page is never unmapped, and all zeros is a valid word.
    page().map(|page| unsafe { &*page.as_ptr() })
}

fn page_size() -> usize {
    // SAFETY: takes a number and no memory.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

fn wiped_page() -> Option<ptr::NonNull<AtomicU64>> {
    #[cfg(feature = "testing")]
    if super::control::refuses_page() {
        return None;
    }
    let size = page_size();
    // SAFETY: an anonymous mapping of our own; nothing else is touched. madvise gets exactly that mapping.
    unsafe {
        let page = libc::mmap(
            ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if page == libc::MAP_FAILED {
            return None;
        }
        // Emulators that ignore madvise say yes to everything: advice that does not exist tells them apart.
        let pretends = libc::madvise(page, size, -1) == 0;
        if pretends || libc::madvise(page, size, libc::MADV_WIPEONFORK) != 0 {
            libc::munmap(page, size);
            return None;
        }
        ptr::NonNull::new(page.cast())
    }
}
