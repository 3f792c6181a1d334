//! What the benchmarks have in common.

pub mod contention;
pub mod crowd;
pub mod descriptors;
pub mod forking;
pub mod numbers;
pub mod subject;
