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
//! | `TTIN`, `TTOU` | one worker more, or fewer; at least one, and no more than [fit](Builder::sized) |
//! | `USR1` | phased restart: each worker is replaced by one that serves already, [one at a time](Builder::max_surge). If the first replacement does not come to serve, or three later ones, the restart is given up and who has not been replaced stays. In the middle of one: another after it |
//! | `USR2` | [restart by exec](#restart-by-exec) |
//! | `HUP` | [`on_hup`](Builder::on_hup); it never stops anything |
//!
//! `TERM` to a worker has it end in the same way, and another takes its place. All but `USR2` can be had over the
//! [control socket](Builder::control_socket), too, with an answer when it is done.
//!
//! # Restart by exec
//!
//! After `USR1` the workers are new, but copies of the same master. `USR2` has the master become the program that lies at its path now, with
//! the arguments and the environment that it had: another release. It keeps its pid, its sockets, and its workers, who serve until the
//! new master has replaced them as in a phased restart. So nobody is turned away; and if the new workers do not come to serve, the old
//! ones stay.
//!
//! What the new program says has to be listened on is taken over, if it is said in the same words; the rest is closed. Its settings are
//! its own: how many workers were asked for meanwhile is forgotten. If it ends before
//! it comes to [`run`](Builder::run), the old workers finish what they have, and end. Until then signals wait for it; if a shell is on the
//! way to it, which unblocks them, `TERM`, `INT` and `QUIT` end it and the others are lost.
//!
//! # A service manager
//!
//! With `Type=notify` systemd is told when all workers serve (`READY`), that a restart is under way (`RELOADING`, also as
//! `Type=notify-reload` wants it, by `HUP` or another signal), of the end (`STOPPING`), and how many serve (`STATUS`). With `WatchdogSec=` it
//! hears that all is well as long as a worker serves that is not wedged. [Sockets that it passes](Builder::listen_systemd) are kept over a
//! restart by exec.
//!
//! # A heartbeat means progress
//!
//! There is no thread that pings: each thread of a worker's leaves in shared memory until when it has to be done with what it is
//! about. One that is wedged is found though its process is alive: another worker takes the place of its own, whose other threads have time to finish
//! before it is killed. The clock is one that does not go on while the machine is suspended, and a master that was stopped itself
//! holds nobody to be wedged for that. Workers that accept by themselves have a [`heartbeat`](Worker::heartbeat) if they see to it.
//!
//! That is the deadline of a request: [`worker_timeout`](Builder::worker_timeout) for each that is let in, or what a thread
//! [says](WorkerThread::may_take). A thread cannot be stopped in the middle of what it does, only its process.
//!
//! # What it does not do
//!
//! - No thread of the master's ever serves, and no worker forks others from what it has warmed up (Puma's and Pitchfork's refork): what it
//!   saves is memory that was written to after the fork, in languages whose collector writes to all of it. Rust's does not exist. What
//!   should be shared is loaded in the master; and a worker that forks is a process with threads that forks.
//! - It does not steer clients to the idlest worker. Who lets a client in has a thread for it, which runs beside all others: there is no lock
//!   on the interpreter for which the threads of a busy worker would wait. One that has no thread left does not let anybody in.
//! - No thread is taken away when there is little to do (but see [`min_threads`](Builder::min_threads)).
//!
//! # The end of the master
//!
//! However it comes, workers see it: they finish what they have, within the same limit, and end.

mod board;
mod child;
mod control;
mod crew;
mod legacy;
mod listeners;
mod master;
#[cfg(feature = "sizing")]
mod room;
mod settings;
mod status;
mod systemd;
mod worker;

pub use control::{Command, ControlError};
pub use listeners::{Listener, Stream};
pub use settings::Builder;
pub use status::{Status, ThreadStatus, WorkerStatus};
pub use worker::{Heartbeat, Shutdown, Worker, WorkerThread};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitStatus;

/// Why a cluster could not begin, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting makes no sense.
    #[error("wrong cluster setting: {0}")]
    Setting(String),
    /// It cannot listen there.
    #[error("cannot listen on {on}: {cause}")]
    Listen {
        /// Where.
        on: String,
        /// What the kernel says.
        cause: io::Error,
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
    #[error("the cluster cannot go on: {0}")]
    System(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
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

/// On standard error, if that can be written to at once: the cluster neither ends nor waits for a line in a log.
fn say(what: &str) {
    let mut stderr = io::stderr();
    let takes_more = |stderr: &io::Stderr| {
        let mut looks = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        poll(&mut looks, PollTimeout::ZERO).is_ok()
            && looks[0].revents().is_some_and(|now| now.contains(PollFlags::POLLOUT))
    };
    if takes_more(&stderr) {
        let _ = writeln!(stderr, "cluster {}: {what}", std::process::id());
    }
}
