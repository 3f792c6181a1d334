//! A master that forks workers, each of which runs threads: Puma's cluster mode.
//!
//! The master binds the listeners, loads what all workers share, forks them while it has one thread, and replaces those that end.
//! Pools that were built before need no hooks. It writes no HTTP: a worker's threads are given clients.
//!
//! ```no_run
//! use forksafe::cluster::Builder;
//! use std::io::{self, Read, Write};
//!
//! Builder::from_env()?.listen_tcp(([127, 0, 0, 1], 3000)).run(|worker| {
//!     worker.run_threads(|thread| {
//!         while let Some(mut client) = thread.accept() {
//!             let _ = client.read(&mut [0; 1024]);
//!             let _ = client.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n");
//!         }
//!     });
//!     io::Result::Ok(())
//! })?;
//! # Ok::<_, forksafe::cluster::Error>(())
//! ```
//!
//! # Signals
//!
//! | to the master | |
//! | --- | --- |
//! | `TERM`, `INT` | the workers accept no more but what waits to be let in, finish what they have, and end; who has not after [`worker_shutdown_timeout`](Builder::worker_shutdown_timeout) is killed. Then [`run`](Builder::run) returns `Ok` |
//! | a second `INT`, `QUIT` | all are killed at once |
//! | `TTIN`, `TTOU` | one worker more, or fewer; at least one |
//! | `USR1` | phased restart: each worker is replaced by one that serves already, one after the other. If the first replacement does not come to serve, the restart is given up and the old ones stay |
//! | `HUP` | [`on_hup`](Builder::on_hup); it never stops anything |
//!
//! `TERM` to a worker has it end in the same way, and another takes its place.
//!
//! # A heartbeat means progress
//!
//! There is no thread that pings: each thread of a worker's leaves in shared memory until when it has to be done with what it is
//! about. One that is wedged is found though its process is alive, and its worker is killed and replaced. The clock is one that
//! does not go on while the machine is suspended, and a master that was stopped itself kills nobody for that.
//!
//! # The end of the master
//!
//! However it comes, workers see it: they finish what they have, within the same limit, and end.

mod board;
mod listeners;
mod master;
mod settings;
mod worker;

pub use listeners::{Listener, Stream};
pub use settings::Builder;
pub use worker::{Shutdown, Worker, WorkerThread};

use std::io;
use std::process::ExitStatus;

/// Why a cluster could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting makes no sense.
    #[error("wrong cluster setting: {0}")]
    Setting(String),
    /// It cannot listen there.
    #[error("cannot listen on {on}")]
    Listen {
        /// Where.
        on: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The master has other threads, of which a forked worker would have none, but perhaps their locks. By name, as far as they have
    /// one. Only with [`strict`](Builder::strict).
    #[error("the master has other threads, and would fork in the middle of what they do: {0}")]
    Threads(String),
    /// Workers end before they serve, again and again, and none is left that does.
    #[error("{failures} workers in a row ended before they served, the last one with {last}")]
    CrashLoop {
        /// How many.
        failures: u32,
        /// How the last of them ended.
        last: ExitStatus,
    },
    /// The system denied something that the master cannot do without.
    #[error("the cluster cannot go on")]
    System(#[from] io::Error),
}
