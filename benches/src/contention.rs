//! Several threads that want the same thing at once.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// Runs `work(times)` on each of `threads` threads, which start together. The time from the first start to the last end,
/// divided by the number of threads: what `times` operations took, when all threads' operations count.
pub fn contended(threads: u32, times: u64, work: &(impl Fn(u64) + Sync + ?Sized)) -> Duration {
    let start = Barrier::new(threads as usize);
    let run = || {
        start.wait();
        let began = Instant::now();
        work(times);
        (began, Instant::now())
    };
    let spans: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let started: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        started.into_iter().map(|thread| thread.join().expect("a thread that works")).collect()
    });
    let first = spans.iter().map(|(began, _)| *began).min().expect("a thread");
    let last = spans.iter().map(|(_, ended)| *ended).max().expect("a thread");
    last.duration_since(first) / threads
}
