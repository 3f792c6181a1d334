//! Drivers that know nothing of this crate, through `forksafe::r2d2::R2d2`: each is of the class that its documentation says.
//!
//! That a child says no word on its parent's connections is seen by a tap before the server. Every test runs in a process of its
//! own, with servers of its own.

mod mariadb;
mod memcached;
mod on_mariadb;
mod on_memcached;
mod on_postgres;
mod on_sqlite;
mod scenario;
mod server;
