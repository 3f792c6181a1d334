//! What a child does at birth: every inherited descriptor of a connection is closed or made dead.
//!
//! This runs inside the `pthread_atfork` child handler (or, in a child made without it, in that child's first call),
//! with signals blocked. It calls nothing but [`sys`] and atomics. The question for each line: what if a thread of the
//! parent was here when the fork came? Then the entry is CLAIMED, or names a descriptor that the child does not have,
//! or names a number under which the child has something else; all three are told apart by the state and the identity.

use super::dead::Dead;
use super::registry::{self, CLAIMED, ENDING, Entry, FREE, IDLE, LENT, SIGNAL_RECEIVER, SIGNAL_SENDER, WITHDRAWN};
use super::signal_pipe::Pair;
use super::sys;
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

/// The pid of the process that last took stock in this line.
static PID: AtomicU32 = AtomicU32::new(0);
static SHARES_TABLE: AtomicBool = AtomicBool::new(false);

/// The pid of this process, as of its birth.
pub(super) fn pid() -> u32 {
    PID.load(Relaxed)
}

/// Whether the inherited descriptors had to be left alone, because the table might be the parent's own.
pub(super) fn shares_table() -> bool {
    SHARES_TABLE.load(Relaxed)
}

/// Takes note of the pid; returns the one of the process before.
pub(super) fn record_pid() -> u32 {
    PID.swap(sys::pid(), Relaxed)
}

/// Drops every inherited connection without a word on the wire. Safe to repeat.
pub(super) fn all(birth: Birth, parent: u32) {
    let private = birth == Birth::Handler || table_is_private(parent);
    SHARES_TABLE.store(!private, Relaxed);
    if !private {
        return; // The entries stay, for a child of ours that has a table of its own.
    }
    // At a first call there may be threads, and one of them may fork now: its child wants to know what was closed.
    let closed = if birth == Birth::Handler { FREE } else { WITHDRAWN };
    let mut dead = Dead::default();
    // First what had been closed in memory, so that a number which a newer entry names is seen for what it is.
    for entry in registry::entries().filter(|entry| entry.state.load(Acquire) == WITHDRAWN) {
        let (fd, identity) = entry.descriptor();
        if sys::look(fd).is_some_and(|open| open.is_socket && open.identity == identity) {
            close(entry, true, &mut dead);
        }
        entry.state.store(closed, Relaxed);
    }
    replace_signal_pipe();
    for entry in registry::entries() {
        let (fd, identity) = entry.descriptor();
        match entry.state.load(Acquire) {
            IDLE => {
                if sys::is(fd, identity) {
                    close(entry, false, &mut dead);
                }
                entry.state.store(closed, Relaxed);
            }
            state @ (LENT | ENDING) => {
                match sys::look(fd) {
                    Some(open) if open.identity == identity => match entry.event_loop() {
                        None => dead.put_over(fd),
                        Some(event_loop) => {
                            event_loop.replace(state == ENDING, &mut dead);
                            // The loop is this process's own: a child of ours must not wait on it, either.
                            recognise(entry);
                            entry.state.store(LENT, Relaxed);
                            continue;
                        }
                    },
                    Some(_) if dead.lies_at(fd) => dead.leave_at(fd), // It stays there.
                    Some(_somebody_elses) => {}
                    // Memory names it and the table lacks it: the number must not become somebody else's while an
                    // object that thinks it owns it lives on.
                    None => dead.put_into(fd),
                }
                entry.state.store(FREE, Relaxed);
            }
            CLAIMED => entry.state.store(FREE, Relaxed),
            _ => {}
        }
    }
    dead.done();
}

/// Before anything is made that stays: the ends of the new pair must not lie at numbers that are to be filled.
fn replace_signal_pipe() {
    let ends = |state: u32| {
        registry::entries().filter(move |entry| entry.state.load(Acquire) == state).filter(|entry| {
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
    if let Some(event_loop) = entry.event_loop() {
        event_loop.close(is_ending, dead);
    }
    sys::close(entry.descriptor().0);
}

/// Makes one descriptor dead that is known to be an inherited socket.
pub(super) fn kill(fd: RawFd) {
    let mut dead = Dead::default();
    dead.put_over(fd);
    dead.done();
}

/// Whether closing a descriptor here leaves the parent's alone. `clone(CLONE_FILES)` shares the table.
fn table_is_private(parent: u32) -> bool {
    sys::unshare_descriptors() || (sys::parent_pid() == parent && sys::has_other_descriptors(parent))
}
