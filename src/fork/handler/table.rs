//! The table of descriptors that belong to connections: written by threads, read by a child at birth.
//!
//! The child reads it inside the atfork handler, in a copy of memory that may have been taken while other threads were
//! at work here. So there is no lock: each [`Entry`] is a few atomics, and its `state` is stored last (Release). A
//! child that sees an entry LENT or IDLE (Acquire) sees the rest of it; one that was being written is CLAIMED and is
//! left alone (the connect that it belongs to has overlapped a fork, and its socket will be shut down). Entries live in
//! buckets that are only ever added, so that an address stays good for ever.
//!
//! *What if the child sees what was written after the claim, but not the claim?* The exchange does not hold later stores
//! back on every processor (ARM). Then an entry that looks WITHDRAWN has a number and an identity of which one or both are
//! new. If they do not belong together the identity check fails, and nothing is touched. If both are new, the socket of a
//! connect that has overlapped the fork is closed, which is right.

use super::event_loop::{self, EventLoop};
use super::sys::Identity;
use once_cell::race::OnceBox;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};

pub(in crate::fork) const FREE: u32 = 0;
/// A thread is writing the entry.
pub(in crate::fork) const CLAIMED: u32 = 1;
/// Something in a child might still touch the connection: its guard, a value borrowed from it, a callback's frame.
pub(in crate::fork) const LENT: u32 = 2;
/// Nothing in a child can ever touch the connection: it lies in the state that a child abandons.
pub(in crate::fork) const IDLE: u32 = 3;
/// Closed by us. The entry still names what was closed, for the child whose descriptors were copied just before that.
pub(in crate::fork) const WITHDRAWN: u32 = 4;
/// Not a connection's: an end of the program's [signal pipe](crate::fork::signal_pipe), for ever.
pub(in crate::fork) const SIGNAL_RECEIVER: u32 = 5;
pub(in crate::fork) const SIGNAL_SENDER: u32 = 6;
/// As LENT, while the driver says goodbye: an event loop goes before its socket, and its numbers may be another's by now.
pub(in crate::fork) const ENDING: u32 = 7;
/// Its guard is gone, and it is still open: whoever has the client now has not registered it. As LENT while it is there; the
/// entry may be used again once it is not.
pub(in crate::fork) const ORPHANED: u32 = 8;
/// A number that a child keeps taken for an object that it abandoned, for the children of its own. See
/// [`disown`](super::disown).
pub(super) const KEPT: u32 = 9;
/// Something dead lies under the number already, for an inherited object whose guard is there as far as is known. When the guard
/// is dropped the entry is IDLE.
pub(in crate::fork) const DEAD: u32 = 10;
/// Not a connection's: what the net is to leave alone, because the program hands it to its children.
#[cfg(feature = "net")]
pub(in crate::fork) const HANDED_ON: u32 = 11;

/// One descriptor, with the event loop that watches it where there is one. On cache lines of its own: `state` is stored at
/// every checkout and return.
#[repr(align(64))]
#[derive(Debug)]
pub(in crate::fork) struct Entry {
    pub(in crate::fork) state: AtomicU32,
    fd: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
    /// The generation whose registration it is: a child may have given the entry to another since.
    registered_in: AtomicU64,
    /// Of what is KEPT: how many births it has seen. Touched by the handler alone.
    pub(super) births: AtomicU32,
    event_loop: event_loop::Cell,
}

impl Entry {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            fd: AtomicI32::new(-1),
            device: AtomicU64::new(0),
            inode: AtomicU64::new(0),
            registered_in: AtomicU64::new(NEVER),
            births: AtomicU32::new(0),
            event_loop: event_loop::Cell::new(),
        }
    }

    pub(in crate::fork) fn descriptor(&self) -> (RawFd, Identity) {
        let identity = Identity { device: self.device.load(Relaxed), inode: self.inode.load(Relaxed) };
        (self.fd.load(Relaxed), identity)
    }

    pub(super) fn event_loop(&self) -> Option<EventLoop> {
        self.event_loop.load()
    }

    pub(in crate::fork) fn write(&self, fd: RawFd, event_loop: Option<EventLoop>, identity: Identity, state: u32) {
        self.fd.store(fd, Relaxed);
        self.event_loop.store(event_loop);
        self.births.store(0, Relaxed);
        self.identify(identity);
        self.state.store(state, Release);
    }

    /// As [`write`](Self::write), for a registration of this generation.
    pub(in crate::fork) fn register(
        &self,
        fd: RawFd,
        event_loop: Option<EventLoop>,
        identity: Identity,
        generation: u64,
    ) {
        self.registered_in.store(generation, Relaxed);
        self.write(fd, event_loop, identity, LENT);
    }

    /// In a child: what it inherited from this generation's registration is used no more. Nothing is changed if the entry names
    /// something else by now.
    pub(in crate::fork) fn let_go(&self, generation: u64, state: u32) {
        let is_inherited = matches!(self.state.load(Acquire), LENT | DEAD);
        if is_inherited && self.is_registered_in(generation) {
            self.state.store(state, Release);
        }
    }

    pub(super) fn is_registered_in(&self, generation: u64) -> bool {
        self.registered_in.load(Relaxed) == generation
    }

    /// In a child that has put something of its own under the number, which is to be known by its own children.
    pub(super) fn identify(&self, identity: Identity) {
        self.device.store(identity.device, Relaxed);
        self.inode.store(identity.inode, Relaxed);
    }
}

/// No generation.
const NEVER: u64 = u64::MAX;

/// Bucket `n` has room for `64 << n` entries.
const FIRST_BUCKET: usize = 64;
static BUCKETS: [OnceBox<Box<[Entry]>>; 24] = [const { OnceBox::new() }; 24];
/// No entry below this one is free, give or take a race: where a search begins.
static SEARCH_FROM: AtomicUsize = AtomicUsize::new(0);

/// Every entry there is, in order: loads of pointers that were published with Release.
pub(in crate::fork) fn entries() -> impl Iterator<Item = &'static Entry> {
    BUCKETS.iter().map_while(OnceBox::get).flat_map(|bucket| bucket.iter())
}

/// Not in a handler, for it allocates. Threads may race here: one bucket wins, and the other, which nobody has seen, is freed.
fn grow() {
    if let Some((n, next)) = BUCKETS.iter().enumerate().find(|(_, bucket)| bucket.get().is_none()) {
        next.get_or_init(|| Box::new((0..FIRST_BUCKET << n).map(|_| Entry::new()).collect()));
    }
}

/// An entry for the caller alone, if there is one that is free. In a handler, too.
pub(super) fn claim_free(from: usize) -> Option<&'static Entry> {
    entries().enumerate().skip(from).find_map(|(place, entry)| {
        let state = entry.state.load(Relaxed);
        let is_free = match state {
            FREE | WITHDRAWN => true,
            ORPHANED => {
                let (fd, identity) = entry.descriptor();
                !super::sys::is(fd, identity)
            }
            _ => false,
        };
        let is_ours = is_free && entry.state.compare_exchange(state, CLAIMED, AcqRel, Relaxed).is_ok();
        is_ours.then(|| SEARCH_FROM.store(place + 1, Relaxed)).map(|()| entry)
    })
}

/// Not in a handler: makes room if there is none.
pub(in crate::fork) fn claim() -> &'static Entry {
    loop {
        let from = SEARCH_FROM.load(Relaxed);
        if let Some(entry) = claim_free(from) {
            return entry;
        }
        match from {
            0 => grow(),
            _ => SEARCH_FROM.store(0, Relaxed),
        }
    }
}

/// An entry has become free.
pub(in crate::fork) fn freed() {
    SEARCH_FROM.store(0, Relaxed);
}

/// Whether something was published in this state.
pub(in crate::fork) fn has(state: u32, identity: Identity) -> bool {
    entries().any(|entry| entry.state.load(Acquire) == state && entry.descriptor().1 == identity)
}

#[cfg(all(test, feature = "testing", not(forksafe_loom)))]
mod tests {
    use super::*;
    use crate::fork::{Descriptors, Guarded};
    use crate::testing::{child, clean_process};
    use std::os::unix::net::UnixStream;

    fn guarded() -> Guarded<UnixStream> {
        let (near, _far) = UnixStream::pair().unwrap();
        Guarded::new(near, Descriptors::of).unwrap()
    }

    /// Each drops the guard that was there when it was forked.
    fn sizes_of_generations(left: usize) -> Vec<usize> {
        let mut guarded = Some(guarded());
        let size = entries().count();
        let others = match left {
            0 => Vec::new(),
            _ => child(|| {
                drop(guarded.take());
                sizes_of_generations(left - 1)
            })
            .join(),
        };
        [vec![size], others].concat()
    }

    #[test]
    fn the_table_has_one_size_however_many_generations_were_forked_with_a_guard() {
        clean_process(|| {
            let sizes = sizes_of_generations(FIRST_BUCKET + 16);
            assert!(sizes.iter().all(|size| *size == FIRST_BUCKET), "{sizes:?}");
        });
    }
}
