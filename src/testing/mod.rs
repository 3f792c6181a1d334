//! A kit that proves that a program survives fork. It is what this crate's own tests are made of.
//!
//! The [guide] says how, with complete tests.
//!
//! - [`child`] runs a closure in a forked child and brings its value back, within a deadline, or says what became of it;
//!   [`Way`] does so for every way of making a child that the machine allows, [`Spawn`] starts programs. [`Steps`] force
//!   the order in which processes do things.
//! - [`Witness`] is a server that knows which process wrote each byte: it reports every connection that carried two.
//!   [`Tap`] stands before a real server and writes down what travels; it can fall silent, drip, and lead elsewhere.
//! - [`assert_nothing_shared`], [`assert_kept`], [`assert_comes_to`] and [`Snapshot`] say what is wrong by process,
//!   descriptor and connection; [`Holdings`] is what they look at.
//! - [`clean_process`] gives a test a process of its own, because descriptors, limits and signals are a process's.
//! - [`PrivateRedis`] is a Redis for one test, [`PrivatePostgres`] a PostgreSQL.
//!
//! The kit is for tests: where something cannot be set up it panics and says what.

mod assert;
mod child;
mod clean;
mod clock;
mod cluster;
mod desk;
mod diag;
mod environment;
pub mod guide;
mod hang;
mod launched;
mod opener;
mod postgres;
mod proc;
mod redis;
mod relay;
mod report;
mod settle;
mod sharing;
mod sockets;
mod spawn;
mod steps;
mod stream;
mod tap;
mod unix_diag;
mod way;
mod witness;
mod witness_client;

pub use assert::{Snapshot, assert_comes_to, assert_kept, assert_nothing_shared};
pub use child::{Child, Outcome, child, child_then_exit};
pub use clean::clean_process;
pub use clock::advance_clock;
pub use postgres::PrivatePostgres;
pub use proc::{Process, descriptors, shared_sockets, socket_of};
pub use redis::PrivateRedis;
pub use sharing::{HeldSocket, Holdings};
pub use sockets::{Socket, SocketState};
pub use spawn::Spawn;
pub use steps::Steps;
pub use stream::{Address, Stream};
pub use tap::{Relayed, Tap};
pub use way::Way;
pub use witness::{Seen, Witness};
pub use witness_client::{Answer, WitnessClient, WitnessManager};

use crate::fork;
use std::time::{Duration, Instant};

/// Turns the protection off in every child made from here on: a child then takes itself for its parent, and uses what
/// it inherited. It cannot be turned on again.
///
/// With `FORKSAFE_CONTROL` in the environment whatever is used of the kit does this first, and says so on standard error.
///
/// This is the control of an experiment. A test that passes with the protection on proves little until it has been seen
/// to fail with the protection off.
pub fn unsafe_share() {
    fork::control::turn_off();
}

/// How long the kit waits for what has to come before it calls it a failure: 40 seconds, so that a slow machine is not
/// taken for a hang; 4 in a control run, where the hang is what is expected.
pub fn patience() -> Duration {
    environment::obey();
    Duration::from_secs(if fork::control::is_off() { 4 } else { 40 })
}

/// Waits until `holds` says that it is so. For what has no other sign.
///
/// # Panics
///
/// When it has not come within the kit's [patience].
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + patience();
    while !holds() {
        assert!(Instant::now() < until, "waited {:?} in vain until {what}", patience());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Makes this process and its children tell themselves apart by their pids and the fork handlers alone, as on a kernel
/// without `MADV_WIPEONFORK`.
///
/// # Panics
///
/// After the first use of this crate.
pub fn without_page() {
    fork::control::refuse_page();
    fork::generation();
    assert!(fork::is_fallback(), "forksafe::testing::without_page() must come before the first use of forksafe");
}
