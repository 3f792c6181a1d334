//! Clients that know nothing of this crate, in programs that fork and use them on both sides: with the net, and without.
//!
//! What `fork::net` says of each client is what is asserted here. Every test runs in a process of its own, with servers of its own.

mod broker;
mod http;
#[path = "../drivers/mariadb.rs"]
mod mariadb;
mod on_http;
mod on_mariadb;
mod on_postgres;
mod on_rabbitmq;
mod on_redis;
mod program;
#[path = "../drivers/server.rs"]
mod server;
mod threads;
