//! What workers tell their master: words in memory that all of them share, each written by one thread. Nobody ever waits for anybody.

use crate::fork::shared::SharedWords;
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// So many workers there may be at a time, with those that are about to end.
pub(super) const PLACES: usize = 1024;

/// Whether the whole cluster ends; and a place for each worker: how it stands, and for each of its threads until when it has to be done
/// with what it is about.
#[derive(Debug)]
pub(super) struct Board {
    words: SharedWords,
    threads: usize,
}

const STATE: usize = 0;
const FIRST_THREAD: usize = 1;

/// In a worker's state: it has come to serve; and it takes no more, and will end.
const HAS_SERVED: u64 = 1;
const ENDS: u64 = 2;

/// A moment that all processes agree on: milliseconds of the clock that only goes forward.
pub(super) fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1000 + time.tv_nsec() as u64 / 1_000_000)
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Board {
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        Ok(Self { words: SharedWords::new(1 + PLACES * (FIRST_THREAD + threads))?, threads })
    }

    fn word(&self, place: usize, word: usize) -> &AtomicU64 {
        &self.words[1 + place * (FIRST_THREAD + self.threads) + word]
    }

    /// By the master, for a worker that is about to be forked.
    pub(super) fn clear(&self, place: usize) {
        (0..FIRST_THREAD + self.threads).for_each(|word| self.word(place, word).store(0, Relaxed));
    }

    /// Nobody will take over what waits to be let in.
    pub(super) fn set_cluster_ends(&self) {
        self.words[0].store(1, Relaxed);
    }

    pub(super) fn cluster_ends(&self) -> bool {
        self.words[0].load(Relaxed) != 0
    }

    pub(super) fn set_serves(&self, place: usize) {
        self.word(place, STATE).fetch_or(HAS_SERVED, Relaxed);
    }

    pub(super) fn has_served(&self, place: usize) -> bool {
        self.word(place, STATE).load(Relaxed) & HAS_SERVED != 0
    }

    pub(super) fn set_ends(&self, place: usize) {
        self.word(place, STATE).fetch_or(ENDS, Relaxed);
    }

    pub(super) fn ends(&self, place: usize) -> bool {
        self.word(place, STATE).load(Relaxed) & ENDS != 0
    }

    /// A thread is about something, and has so much time for it from now.
    pub(super) fn may_take(&self, place: usize, thread: usize, time: Duration) {
        self.word(place, FIRST_THREAD + thread).store(now().saturating_add(millis(time)), Relaxed);
    }

    /// It has done it.
    pub(super) fn done(&self, place: usize, thread: usize) {
        self.word(place, FIRST_THREAD + thread).store(0, Relaxed);
    }

    /// Whether one of its threads should have been done by now.
    pub(super) fn is_wedged(&self, place: usize, now: u64) -> bool {
        self.deadlines(place).any(|until| until != 0 && until < now)
    }

    fn deadlines(&self, place: usize) -> impl Iterator<Item = u64> {
        (0..self.threads).map(move |thread| self.word(place, FIRST_THREAD + thread).load(Relaxed))
    }
}
