//! What the benchmarks have in common.

pub mod contention;
pub mod crowd;
pub mod descriptors;
pub mod forking;
pub mod numbers;
pub mod subject;

/// Whether this is `cargo test --benches`, which only asks whether the benchmarks still work; `cargo bench` measures.
pub fn is_rehearsal() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}
