//! Forks begun and ended, counted by the prepare and parent handlers.
//!
//! The kernel copies the descriptor table before it copies memory. A connection that one thread opens while another
//! forks can therefore be in the child's table without being in the child's memory. No order of publishing helps; what
//! does is to notice the overlap and make the connection again. [`Watch`] is how a connect notices.

use super::{page, sys};
use crate::Deadline;
use std::sync::atomic::{AtomicU64, Ordering::*, fence};
use std::thread;
use std::time::Duration;

/// Where there is a page the counters are in it: a parent that writes to ordinary memory after a fork has that copied first,
/// which takes as long as all the rest of what we do there.
static BEGUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);
/// The value of the first when this process took stock. For the fallback only.
static BORN: AtomicU64 = AtomicU64::new(0);

fn begun() -> &'static AtomicU64 {
    page::beside(1).unwrap_or(&BEGUN)
}

fn ended() -> &'static AtomicU64 {
    page::beside(2).unwrap_or(&ENDED)
}

/// The prepare handler: one atomic addition. Nothing is locked, nothing waits, nothing can fail.
pub(super) extern "C" fn prepare() {
    begun().fetch_add(1, SeqCst);
}

/// The parent handler, which also runs after a fork that failed: one atomic addition.
pub(super) extern "C" fn parent() {
    ended().fetch_add(1, SeqCst);
}

/// In a new process, by the thread that takes stock: the forks of its parent's other threads are none of its business.
pub(super) fn born() {
    let so_far = begun().load(SeqCst);
    ended().store(so_far, SeqCst);
    BORN.store(so_far, SeqCst);
}

/// Whether this process took stock after the fork that made it, because another library's child handler came to us
/// before our own handler did.
pub(super) fn born_since_last() -> bool {
    BORN.load(SeqCst) == begun().load(SeqCst)
}

/// Notices forks between its making and the question.
#[derive(Debug)]
pub(crate) struct Watch {
    begun: u64,
    in_progress: bool,
}

/// A fork takes this long at most, as a rule: another library's prepare handler may hold it up, or a large parent.
const PATIENCE: Duration = Duration::from_secs(1);

impl Watch {
    /// Begins to watch. Forks that are in progress are let end first, by the deadline and within [`PATIENCE`]: to connect in
    /// the middle of one would be in vain.
    pub(crate) fn start(deadline: Deadline) -> Self {
        let give_up = deadline.or_sooner(PATIENCE);
        let mut turns = 0_u32;
        while begun().load(SeqCst) != ended().load(SeqCst) && !give_up.is_over() {
            if turns < 100 {
                sys::yield_now();
            } else {
                // 16 us, then twice as long each time, up to a millisecond.
                let pause = Duration::from_micros(16 << (turns - 100).min(6));
                thread::sleep(pause.min(give_up.remaining()));
            }
            turns += 1;
        }
        // ENDED first: a fork that begins and ends between the two loads then counts as in progress, not as unseen.
        let ended = ended().load(SeqCst);
        let begun = begun().load(SeqCst);
        Self { begun, in_progress: begun != ended }
    }

    /// Whether a fork was in progress at any moment since [`start`](Self::start). Ask after publishing.
    pub(crate) fn overlapped(&self) -> bool {
        // What was published must be in the memory that a fork copies if its beginning is not seen here.
        fence(SeqCst);
        self.in_progress || begun().load(SeqCst) != self.begun
    }
}
