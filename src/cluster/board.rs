//! What master and workers tell each other: words in memory that all of them share, each written by one thread. Nobody ever waits for
//! anybody.

use crate::fork::shared::SharedWords;
use nix::time::{ClockId, clock_gettime};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// So many workers there may be at a time, with those that are about to end.
pub(super) const PLACES: usize = 1024;

/// Words about the whole cluster, each written by the master; and a place for each worker, with words about it and about each of its
/// threads.
#[derive(Debug)]
pub(super) struct Board {
    words: SharedWords,
}

/// How the words are laid out: a master of another make does not read these.
pub(super) const LAYOUT: u64 = 1;

/// So many threads a worker may have.
pub(super) const MOST_THREADS: usize = 1024;

/// About the cluster.
#[derive(Clone, Copy)]
pub(super) enum Of {
    /// Nobody will take over what waits to be let in.
    ClusterEnds,
    Master,
    StartedAt,
    Phase,
    /// How many places have ever been taken. Beyond them there is no memory yet, not even for a look.
    Places,
}

/// About a worker. The state is written by both, bit by bit; the rest by the master before the fork, but for the pid.
#[derive(Clone, Copy)]
pub(super) enum OfWorker {
    State,
    Pid,
    Index,
    Phase,
    StartedAt,
    Threads,
}

/// About a thread, written by it.
#[derive(Clone, Copy)]
pub(super) enum OfThread {
    /// Until when it has to be done with what it is about. Zero: it is about nothing.
    Until,
    /// How often it has been done.
    Done,
    /// Which connection of a server's it used last.
    Connection,
    /// What the kernel calls it.
    Id,
}

/// Each on cache lines of its own.
const LINE: usize = 8;
const WIDTH: usize = LINE * (1 + MOST_THREADS);

/// In a worker's state: somebody has the place; has come to serve; takes no more, and will end.
const TAKEN: u64 = 1;
const HAS_SERVED: u64 = 2;
const ENDS: u64 = 4;

/// A moment that all processes agree on: milliseconds of the clock that only goes forward.
pub(super) fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1000 + time.tv_nsec() as u64 / 1_000_000)
}

/// By the calendar, in seconds.
pub(super) fn today() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl AsFd for Board {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.words.as_fd()
    }
}

impl Board {
    /// A new one, or that of the master before this one. What nobody has written to takes no memory.
    pub(super) fn new(before: Option<OwnedFd>) -> io::Result<Self> {
        let length = LINE + PLACES * WIDTH;
        let words = before.map_or_else(|| SharedWords::new(length), |file| SharedWords::of(file, length))?;
        let board = Self { words };
        board.set(Of::Master, std::process::id().into());
        board.set(Of::StartedAt, today());
        Ok(board)
    }

    pub(super) fn threads(&self, place: usize) -> usize {
        (self.worker(place, OfWorker::Threads) as usize).min(MOST_THREADS)
    }

    pub(super) fn get(&self, what: Of) -> u64 {
        self.words[what as usize].load(Relaxed)
    }

    pub(super) fn set(&self, what: Of, value: u64) {
        self.words[what as usize].store(value, Relaxed);
    }

    fn of_worker(&self, place: usize, what: OfWorker) -> &AtomicU64 {
        &self.words[LINE + place * WIDTH + what as usize]
    }

    fn of_thread(&self, place: usize, thread: usize, what: OfThread) -> &AtomicU64 {
        &self.words[LINE + place * WIDTH + LINE * (1 + thread) + what as usize]
    }

    pub(super) fn worker(&self, place: usize, what: OfWorker) -> u64 {
        self.of_worker(place, what).load(Relaxed)
    }

    pub(super) fn thread(&self, place: usize, thread: usize, what: OfThread) -> u64 {
        self.of_thread(place, thread, what).load(Relaxed)
    }

    pub(super) fn tell(&self, place: usize, thread: usize, what: OfThread, value: u64) {
        self.of_thread(place, thread, what).store(value, Relaxed);
    }

    /// By the master, for a worker that is about to be forked.
    pub(super) fn take(&self, place: usize, index: usize, phase: u64, threads: usize) {
        let start = LINE + place * WIDTH;
        let of_before = LINE * (1 + self.threads(place).max(threads));
        self.words[start..start + of_before].iter().for_each(|word| word.store(0, Relaxed));
        self.set(Of::Places, self.get(Of::Places).max(place as u64 + 1));
        self.of_worker(place, OfWorker::Threads).store(threads as u64, Relaxed);
        self.of_worker(place, OfWorker::Index).store(index as u64, Relaxed);
        self.of_worker(place, OfWorker::Phase).store(phase, Relaxed);
        self.of_worker(place, OfWorker::StartedAt).store(today(), Relaxed);
    }

    /// By the master, for one that has been forked.
    pub(super) fn is_there(&self, place: usize, pid: u32) {
        self.of_worker(place, OfWorker::Pid).store(pid.into(), Relaxed);
        self.mark(place, TAKEN);
    }

    /// By the master, for one that is gone.
    pub(super) fn leave(&self, place: usize) {
        self.of_worker(place, OfWorker::State).store(0, Relaxed);
    }

    fn mark(&self, place: usize, bit: u64) {
        self.of_worker(place, OfWorker::State).fetch_or(bit, Relaxed);
    }

    fn has(&self, place: usize, bit: u64) -> bool {
        self.worker(place, OfWorker::State) & bit != 0
    }

    /// The places that somebody has.
    pub(super) fn taken(&self) -> impl Iterator<Item = usize> {
        (0..PLACES.min(self.get(Of::Places) as usize)).filter(|place| self.has(*place, TAKEN))
    }

    pub(super) fn set_serves(&self, place: usize) {
        self.mark(place, HAS_SERVED);
    }

    pub(super) fn has_served(&self, place: usize) -> bool {
        self.has(place, HAS_SERVED)
    }

    pub(super) fn set_ends(&self, place: usize) {
        self.mark(place, ENDS);
    }

    pub(super) fn ends(&self, place: usize) -> bool {
        self.has(place, ENDS)
    }

    /// A thread is about something, and has so much time for it from now.
    pub(super) fn may_take(&self, place: usize, thread: usize, time: Duration) {
        self.tell(place, thread, OfThread::Until, now().saturating_add(millis(time)));
    }

    /// It has done it.
    pub(super) fn done(&self, place: usize, thread: usize) {
        if self.thread(place, thread, OfThread::Until) != 0 {
            self.tell(place, thread, OfThread::Done, self.thread(place, thread, OfThread::Done) + 1);
            self.tell(place, thread, OfThread::Until, 0);
        }
    }

    /// The first of its threads that should have been done by now.
    pub(super) fn wedged(&self, place: usize, now: u64) -> Option<usize> {
        (0..self.threads(place)).find(|&thread| {
            let until = self.thread(place, thread, OfThread::Until);
            until != 0 && until < now
        })
    }

    /// How many requests it has done.
    pub(super) fn requests(&self, place: usize) -> u64 {
        (0..self.threads(place)).map(|thread| self.thread(place, thread, OfThread::Done)).sum()
    }
}
