//! What the master's child does: it is a worker, and ends.

use super::board::{self, Board, millis};
use super::listeners::Listener;
use super::say;
use super::settings::Builder;
use super::worker::{Shutdown, Worker};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};
use std::io::PipeReader;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub(super) type Failed = Box<dyn std::error::Error + Send + Sync>;

pub(super) type Body<'a> = &'a dyn Fn(&Worker) -> Result<(), Failed>;

/// What a worker has from its master.
pub(super) struct Inheritance {
    pub(super) index: usize,
    pub(super) place: usize,
    pub(super) board: Arc<Board>,
    pub(super) listeners: Arc<[Listener]>,
    /// The other end is closed when the master is gone. The master has both.
    pub(super) master_lives: PipeReader,
}

/// In the child: for good.
pub(super) fn be_worker(settings: &Builder, inherited: Inheritance, body: Body<'_>) -> ! {
    let index = inherited.index;
    let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), Failed> {
        // For those who wait for children of their own. All others stay blocked: by default they would end it.
        SigSet::from(Signal::SIGCHLD).thread_unblock()?;
        if settings.backtrace {
            crate::fork::backtrace::answer(Signal::SIGABRT as i32)?;
        }
        let worker = begin(settings, inherited)?;
        let hooks = &settings.hooks;
        hooks.on_worker_boot.as_ref().map_or(Ok(()), |hook| hook(&worker))?;
        body(&worker)?;
        // Another may take its place.
        worker.shutdown.request();
        hooks.on_worker_shutdown.as_ref().map_or(Ok(()), |hook| hook(&worker))
    }));
    let code = match outcome {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            say(&format!("worker {index}: {error}"));
            1
        }
        Err(_) => 101,
    };
    process::exit(code);
}

fn begin(settings: &Builder, inherited: Inheritance) -> Result<Worker, Failed> {
    let Inheritance { index, place, board, listeners, master_lives } = inherited;
    let shutdown = Shutdown::new(&board, place)?;
    let limit = settings.worker_shutdown_timeout;
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]);
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let watch = thread::Builder::new().name("watches the master".into());
    let (master, told, shared) = (getppid(), shutdown.clone(), Arc::clone(&board));
    watch.spawn(move || watch_for_the_end(&signals, &master_lives, master, &told, &shared, limit))?;
    Ok(Worker {
        index,
        place,
        threads: settings.threads,
        min_threads: settings.min_threads.clamp(1, settings.threads),
        timeout: settings.worker_timeout,
        drains_for: limit / 4,
        listeners: Mutex::new(listeners),
        board,
        shutdown,
    })
}

/// On a thread of its own: the master's signals, and its end.
fn watch_for_the_end(
    signals: &SignalFd,
    master_lives: &PipeReader,
    master: Pid,
    shutdown: &Shutdown,
    board: &Board,
    limit: Duration,
) {
    let mut alone_since = None;
    loop {
        let mut waits = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if alone_since.is_none() {
            waits.push(PollFd::new(master_lives.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut waits, PollTimeout::from(1000_u16));
        // Somebody else may hold the pipe open: a program that the master forked.
        let pipe_ended = waits.get(1).is_some_and(|pipe| pipe.any().unwrap_or(true));
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo as i32 == Signal::SIGQUIT as i32 {
                let _ = raise(Signal::SIGKILL);
            }
            shutdown.request();
        }
        if pipe_ended || getppid() != master {
            let since = *alone_since.get_or_insert_with(board::now);
            board.set(board::Of::ClusterEnds, 1);
            shutdown.request();
            // Nobody is left who would do it.
            if board::now() > since.saturating_add(millis(limit)) {
                let _ = raise(Signal::SIGKILL);
            }
        }
    }
}
