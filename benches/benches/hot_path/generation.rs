//! The question "is this still the process that I know".

use criterion::Criterion;
use forksafe::fork;

pub(crate) fn generation(c: &mut Criterion) {
    let mut group = c.benchmark_group("generation");
    group.bench_function("fork::generation", |b| b.iter(fork::generation));
    group.bench_function("std::process::id", |b| b.iter(std::process::id));
    group.finish();
}
