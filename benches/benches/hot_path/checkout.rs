//! One checkout and return of a connection that lies idle, alone and with seven other threads at it.

use crate::contenders::contenders;
use criterion::{Criterion, SamplingMode};
use forksafe_benches::contention::contended;
use std::time::{Duration, Instant};

pub(crate) fn one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("1 thread");
    group.warm_up_time(Duration::from_secs(1));
    for contender in contenders() {
        group.bench_function(contender.name, |b| {
            b.iter_custom(|times| {
                let start = Instant::now();
                (contender.check_out)(times);
                start.elapsed()
            });
        });
    }
    group.finish();
}

/// On a machine with fewer than eight processors the scheduler interrupts threads that hold a connection. A sample has
/// to be long enough to see that happen many times.
pub(crate) fn eight_threads(c: &mut Criterion) {
    let mut group = c.benchmark_group("8 threads");
    group.sampling_mode(SamplingMode::Flat).sample_size(20).measurement_time(Duration::from_secs(6));
    for contender in contenders() {
        group.bench_function(contender.name, |b| {
            b.iter_custom(|times| contended(8, times, &*contender.check_out));
        });
    }
    group.finish();
}
