//! What the benchmarks have in common.

pub mod contention;
pub mod descriptors;
pub mod forking;
pub mod subject;
