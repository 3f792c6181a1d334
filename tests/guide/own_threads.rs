//! Threads of rayon that each process has for itself.

use forksafe::fork::PerProcess;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

static THREADS: PerProcess<ThreadPool> = PerProcess::new(|| ThreadPoolBuilder::new().build().expect("threads"));

/// `par_iter` uses the threads that it is inside of.
pub fn total(numbers: &[u64]) -> u64 {
    THREADS.install(|| numbers.par_iter().sum())
}
