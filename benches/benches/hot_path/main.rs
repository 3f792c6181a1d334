//! What the pool costs where nothing is opened, closed or waited for: a few nanoseconds at a time.

mod checkout;
mod contenders;
mod generation;

use criterion::{criterion_group, criterion_main};

criterion_group!(hot_path, generation::generation, checkout::one_thread, checkout::eight_threads);
criterion_main!(hot_path);
