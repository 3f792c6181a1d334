//! How to make a manager of a client of your own, or of another crate's.
