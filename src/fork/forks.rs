//! Notices forks that come in the middle of something.

use super::handler::{birth, counters, sys};
use crate::Deadline;
use std::thread;
use std::time::Duration;

/// Notices forks between its making and the question.
#[derive(Debug)]
pub(crate) struct Watch(counters::Seen);

/// A fork takes this long at most, as a rule: another library's prepare handler may hold it up, or a large parent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Until when forks in progress are worth waiting for, of a caller who has so much time.
pub(crate) fn patience(deadline: Deadline) -> Deadline {
    deadline.or_sooner(PATIENCE)
}

impl Watch {
    /// Begins to watch. Forks that are in progress are let end first, for a second at most and not after the deadline: to
    /// connect in the middle of one would be in vain. A fork that does not end in that time counts as overlapping.
    pub(crate) fn start(deadline: Deadline) -> Self {
        let give_up = patience(deadline);
        birth::ensure_handlers();
        let mut turns = 0_u32;
        loop {
            let seen = counters::look();
            let is_settled = !birth::is_settling();
            if (is_settled && !seen.is_in_progress()) || give_up.is_over() {
                return Self(seen);
            }
            if is_settled && turns < 100 {
                sys::yield_now();
            } else {
                // 16 us, then twice as long each time, up to a millisecond.
                let pause = Duration::from_micros(16 << turns.saturating_sub(100).min(6));
                thread::sleep(pause.min(give_up.remaining()));
            }
            turns += 1;
        }
    }

    /// Whether a fork was in progress at any moment since [`start`](Self::start). Ask after publishing.
    pub(crate) fn overlapped(&self) -> bool {
        self.0.overlaps(counters::look())
    }
}
