//! A master that forks workers, each of which runs threads: Puma's cluster mode.
//!
//! The master binds the listeners, loads what all workers share, forks them while it has one thread, and replaces those that end.
//! Pools that were built before need no hooks. It writes no HTTP: a worker's threads are given clients.
//!
//! ```no_run
//! use forksafe::cluster::Builder;
//! use std::io::{self, Read, Write};
//! use std::time::Duration;
//!
//! Builder::from_env()?.listen_tcp(([127, 0, 0, 1], 3000)).run(|worker| {
//!     worker.run_threads(|thread| {
//!         while let Some(mut client) = thread.accept() {
//!             // A client that says nothing is not waited for until the worker is held to be wedged.
//!             let _ = client.set_read_timeout(Some(Duration::from_secs(10)));
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
//! | `TERM`, `INT` | the workers let in what waits for it (for a quarter of [`worker_shutdown_timeout`](Builder::worker_shutdown_timeout) at most), finish what they have, and end; who has not when that is over is killed. Then [`run`](Builder::run) returns `Ok` |
//! | a second `INT`, `QUIT` | all are killed at once |
//! | `TTIN`, `TTOU` | one worker more, or fewer; at least one |
//! | `USR1` | phased restart: each worker is replaced by one that serves already, one after the other. If the first replacement does not come to serve, or three later ones, the restart is given up and who has not been replaced stays. In the middle of one: another after it |
//! | `HUP` | [`on_hup`](Builder::on_hup); it never stops anything |
//!
//! `TERM` to a worker has it end in the same way, and another takes its place.
//!
//! # A heartbeat means progress
//!
//! There is no thread that pings: each thread of a worker's leaves in shared memory until when it has to be done with what it is
//! about. One that is wedged is found though its process is alive: another worker takes the place of its own, whose other threads have time to finish
//! before it is killed. The clock is one that does not go on while the machine is suspended, and a master that was stopped itself
//! holds nobody to be wedged for that. Workers that accept by themselves have a [`heartbeat`](Worker::heartbeat) if they see to it.
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
pub use worker::{Heartbeat, Shutdown, Worker, WorkerThread};

use nix::sys::signal::SigSet;
use std::io::{self, Write};
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

/// Unblocks all signals. Master and workers have those of the [table](self#signals) blocked, and programs that they start inherit that: a
/// `timeout` or a `kill` does nothing to them.
///
/// ```no_run
/// use std::os::unix::process::CommandExt;
/// use std::process::Command;
///
/// let mut command = Command::new("convert");
/// // SAFETY: it is one system call.
/// unsafe { command.pre_exec(forksafe::cluster::unblock_signals) };
/// # let _ = command;
/// ```
///
/// # Errors
///
/// None that is known of.
pub fn unblock_signals() -> io::Result<()> {
    SigSet::empty().thread_set_mask().map_err(Into::into)
}

/// On standard error, if that can be written to: the cluster does not end for a line in a log.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "cluster {}: {what}", std::process::id());
}
