//! What a child does at birth: every inherited descriptor of a connection is closed or made dead.
//!
//! This runs inside the `pthread_atfork` child handler (or, in a child made without it, in that child's first call),
//! with signals blocked. It calls nothing but its neighbours here, which make system calls, and atomics: no lock, no
//! allocation, no panic, no thread-local. The question for each line: what if a thread of the
//! parent was here when the fork came? Then the entry is CLAIMED, or names a descriptor that the child does not have,
//! or names a number under which the child has something else; all three are told apart by the state and the identity.
//!
//! *Numbers that stay taken.* An object that was lent may be used as long as its guard is there, in the child and in the child's
//! children: something dead keeps its number. When the child drops the guard the entry is IDLE, and the child's children close it. A
//! guard that nobody drops (it was another thread's) keeps its number for ever.
//!
//! What an idle client with an event loop has handed out may outlive its loan, and writes to the
//! client's eventfd when it is dropped. The child that abandons the client cannot know whether there is such a thing. So the number stays
//! taken in the child and in its children: for [`KEPT_FOR`] generations, in which what was fetched before may still be dropped. Then
//! it is free again, so that a host that forks each generation from the last does not run out of numbers.

use super::dead::{Dead, Pair};
use super::page::{self, Word};
use super::sys::{self, Identity, Table};
use super::table::{
    self, CLAIMED, DEAD, ENDING, Entry, FREE, IDLE, KEPT, LENT, ORPHANED, SIGNAL_RECEIVER, SIGNAL_SENDER, WITHDRAWN,
};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

/// How this process came to know that it is new.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Birth {
    /// libc's fork ran our handler: the descriptor table is a copy.
    Handler,
    /// It asked, and found the page wiped: the table may be shared with the parent (`CLONE_FILES`).
    FirstCall,
}

/// The child that abandons a client, and the child's children.
const KEPT_FOR: u32 = 2;

/// The pid of the process that last took stock in this line.
static PID: AtomicU32 = AtomicU32::new(0);
static SHARES_TABLE: AtomicBool = AtomicBool::new(false);

/// The pid of this process, as of its birth.
pub(in crate::fork) fn pid() -> u32 {
    PID.load(Relaxed)
}

/// Whether the inherited descriptors had to be left alone, because the table might be the parent's own.
pub(in crate::fork) fn shares_table() -> bool {
    SHARES_TABLE.load(Relaxed)
}

/// Takes note of the pid; returns the one of the process before.
pub(super) fn record_pid() -> u32 {
    PID.swap(sys::pid(), Relaxed)
}

/// Drops every inherited connection without a word on the wire. Safe to repeat.
pub(super) fn all(birth: Birth, parent: u32) {
    #[cfg(feature = "net")]
    super::net::begin(parent);
    let private = birth == Birth::Handler || table_is_private(parent);
    SHARES_TABLE.store(!private, Relaxed);
    if !private {
        return; // The entries stay, for a child of ours that has a table of its own.
    }
    // At a first call there may be threads, and one of them may fork now: its child wants to know what was closed.
    let closed = if birth == Birth::Handler { FREE } else { WITHDRAWN };
    let mut dead = Dead::default();
    free_numbers();
    // First what had been closed in memory, so that a number which a newer entry names is seen for what it is.
    for entry in in_state(WITHDRAWN) {
        let (fd, identity) = entry.descriptor();
        if sys::is(fd, identity) {
            close(entry, true, &mut dead);
        }
        entry.state.store(closed, Relaxed);
    }
    replace_signal_pipe();
    for entry in inherited() {
        match entry.state.load(Acquire) {
            IDLE => {
                let (fd, identity) = entry.descriptor();
                if sys::is(fd, identity) {
                    close(entry, false, &mut dead);
                }
                entry.state.store(closed, Relaxed);
            }
            state @ (LENT | ENDING | ORPHANED) => make_dead(entry, state, &mut dead),
            CLAIMED => entry.state.store(FREE, Relaxed),
            _ => {}
        }
    }
    #[cfg(feature = "net")]
    super::net::sweep(birth, parent, &mut dead);
    dead.done();
}

/// What something in this process may still touch.
fn make_dead(entry: &Entry, state: u32, dead: &mut Dead) {
    let (fd, identity) = entry.descriptor();
    let event_loop = entry.event_loop();
    let lies_there = match sys::look(fd) {
        Some(open) if open.identity == identity => match event_loop {
            None => dead.put_over(fd),
            Some(event_loop) => {
                event_loop.replace(state == ENDING, dead);
                // The loop is this process's own: a child of ours must not wait on it, either.
                recognise(entry);
                return entry.state.store(LENT, Relaxed);
            }
        },
        Some(_) if dead.lies_at(fd) => {
            dead.leave_at(fd);
            true
        }
        Some(_somebody_elses) => false,
        None if state == ORPHANED => false,
        // Memory names it and the table lacks it: the number must not become somebody else's while an
        // object that thinks it owns it lives on.
        None => dead.put_into(fd),
    };
    // Whoever is at its goodbye closes the number, and of the numbers of a loop without its socket nothing is known.
    let is_known = lies_there && state == LENT && event_loop.is_none();
    if is_known {
        recognise(entry);
    }
    entry.state.store(if is_known { DEAD } else { FREE }, Relaxed);
}

/// What this process has not registered itself: another library's handler may have asked before ours, and then made something.
fn inherited() -> impl Iterator<Item = &'static Entry> {
    let here = match page::look() {
        Word::Known(generation) => generation.get(),
        Word::New(_) | Word::Busy => 0,
    };
    table::entries().filter(move |entry| !entry.is_registered_in(here))
}

fn in_state(state: u32) -> impl Iterator<Item = &'static Entry> {
    inherited().filter(move |entry| entry.state.load(Acquire) == state)
}

/// Gives up the numbers that have been kept for long enough. Before anything is made that would come to lie there.
fn free_numbers() {
    for entry in in_state(KEPT) {
        let (fd, identity) = entry.descriptor();
        let is_there = sys::is(fd, identity);
        if is_there && entry.births.fetch_add(1, Relaxed) + 1 < KEPT_FOR {
            continue;
        }
        if is_there {
            sys::close(fd);
        }
        entry.state.store(FREE, Relaxed);
    }
}

/// Without an entry to be had the number stays taken for ever.
fn keep((fd, identity): (RawFd, Identity)) {
    if let Some(entry) = table::claim_free(0) {
        entry.write(fd, None, identity, KEPT);
    }
}

/// Before anything is made that stays: the ends of the new pair must not lie at numbers that are to be filled.
fn replace_signal_pipe() {
    let ends = |state| {
        in_state(state).filter(|entry| {
            let (fd, identity) = entry.descriptor();
            sys::is(fd, identity)
        })
    };
    // The sender is published last. Half a pair would be worse than none.
    if ends(SIGNAL_SENDER).next().is_none() {
        return;
    }
    let mut pair = Pair::default();
    for state in [SIGNAL_RECEIVER, SIGNAL_SENDER] {
        for entry in ends(state) {
            pair.put_over(entry.descriptor().0, state);
            recognise(entry);
        }
    }
    pair.done();
}

/// What is under the number now is this process's own, and our children are to know it.
fn recognise(entry: &Entry) {
    if let Some(own) = sys::look(entry.descriptor().0) {
        entry.identify(own.identity);
    }
}

/// Closes what nothing in this process can reach.
fn close(entry: &Entry, is_ending: bool, dead: &mut Dead) {
    let kept = entry.event_loop().and_then(|event_loop| event_loop.close(is_ending, dead));
    sys::close(entry.descriptor().0);
    kept.into_iter().for_each(keep);
}

/// Makes one descriptor dead that is known to be an inherited socket; not if the descriptor table may be the parent's own.
pub(in crate::fork) fn kill(fd: RawFd) {
    if !shares_table() {
        let mut dead = Dead::default();
        dead.put_over(fd);
        dead.done();
    }
}

/// Whether closing a descriptor here leaves everybody else's alone. `clone(CLONE_FILES)` shares the table, and so it is
/// shared, if at all, with the process that this one was made from. That one may not be the one that is remembered: a child
/// which made this one without ever looking is between the two. And a table that nobody else is alive to use is private.
fn table_is_private(remembered: u32) -> bool {
    if sys::unshare_descriptors() {
        return true;
    }
    // 0 is a parent in another pid namespace.
    let parent = sys::parent_pid();
    if parent == 0 || sys::table_of(parent) != Table::Other {
        return false;
    }
    // If it had the pid that this process has now, it is gone.
    remembered == parent || remembered == sys::pid() || sys::table_of(remembered) != Table::PerhapsOurs
}
