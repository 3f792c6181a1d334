//! Threads that come again and again, for some time: what they got done, what they waited, and whether all got their share.

use hdrhistogram::Histogram;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// What one thread does: it asks [`goes_on`](Self::goes_on), takes a connection, calls [`has_it`](Self::has_it), and gives the
/// connection back.
pub struct Turns<'a> {
    is_over: &'a AtomicBool,
    day: &'a Day,
    asked: Instant,
    waits: Histogram<u64>,
}

impl Turns<'_> {
    /// Whether there is another turn. The wait for it begins when this returns.
    pub fn goes_on(&mut self) -> bool {
        (self.day.thinks)();
        self.asked = Instant::now();
        !self.is_over.load(Relaxed)
    }

    /// The wait is over; this holds the connection.
    pub fn has_it(&mut self) {
        let waited = u64::try_from(self.asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.waits.saturating_record(waited.max(1));
        (self.day.holds)();
    }
}

/// What a thread does besides waiting.
pub struct Day {
    /// With a connection.
    pub holds: Box<dyn Fn() + Sync>,
    /// Without one, between two turns.
    pub thinks: Box<dyn Fn() + Sync>,
}

/// What a crowd got done.
#[derive(Clone)]
pub struct Done {
    /// Turns in a second.
    pub rate: f64,
    /// The slowest thread's turns by the fastest thread's.
    pub fairness: f64,
    waits: Histogram<u64>,
}

impl Done {
    /// What so many of a hundred waited at most, in microseconds.
    pub fn wait(&self, percentile: f64) -> f64 {
        self.waits.value_at_percentile(percentile) as f64 / 1000.0
    }
}

/// So many threads do `work` for so long.
pub fn crowd(threads: usize, time: Duration, day: &Day, work: &(dyn Fn(&mut Turns) + Sync)) -> Done {
    let (is_over, start) = (AtomicBool::new(false), Barrier::new(threads + 1));
    let waits = || Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds");
    let run = || {
        let mut turns = Turns { is_over: &is_over, day, asked: Instant::now(), waits: waits() };
        start.wait();
        work(&mut turns);
        turns.waits
    };
    let (took, each) = thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        start.wait();
        let began = Instant::now();
        thread::sleep(time);
        is_over.store(true, Relaxed);
        let took = began.elapsed();
        let each: Vec<_> = started.into_iter().map(|thread| thread.join().expect("a thread that works")).collect();
        (took, each)
    });
    let mut all = waits();
    each.iter().for_each(|waits| all.add(waits).expect("the same bounds"));
    let slowest = each.iter().map(Histogram::len).min().unwrap_or(0);
    let fastest = each.iter().map(Histogram::len).max().unwrap_or(0);
    Done { rate: all.len() as f64 / took.as_secs_f64(), fairness: slowest as f64 / fastest.max(1) as f64, waits: all }
}
