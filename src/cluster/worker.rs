//! A worker, from within.

use super::board::Board;
use super::listeners::{Listener, Stream};
use crate::Deadline;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// One of the processes that serve.
#[derive(Debug)]
pub struct Worker {
    pub(super) index: usize,
    pub(super) place: usize,
    pub(super) threads: usize,
    pub(super) timeout: Duration,
    pub(super) listeners: Mutex<Arc<[Listener]>>,
    pub(super) board: Arc<Board>,
    pub(super) shutdown: Shutdown,
}

impl Worker {
    /// Which one it is, from 0. The one that takes its place has the same.
    pub fn index(&self) -> usize {
        self.index
    }

    /// See [`Builder::threads`](super::Builder::threads).
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// What the cluster listens on, in the order in which it was told to. None, once they were taken, or the worker has to end and
    /// has let in all that waited.
    pub fn listeners(&self) -> Arc<[Listener]> {
        Arc::clone(&self.lock())
    }

    /// Takes them, for an event loop that accepts by itself. This worker listens until the last reference is dropped: do that when it
    /// has to end and nobody waits to be let in, so that those who come later are refused instead of reset.
    pub fn take_listeners(&self) -> Arc<[Listener]> {
        std::mem::replace(&mut self.lock(), Arc::new([]))
    }

    fn lock(&self) -> MutexGuard<'_, Arc<[Listener]>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when it has to end.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// Says that it serves from here on. [`WorkerThread::accept`] does.
    pub fn ready(&self) {
        self.board.set_serves(self.place);
    }

    /// Runs `body` on as many threads as the cluster has for each worker, and returns when all of them have.
    ///
    /// # Panics
    ///
    /// When one of them does, after the others have returned.
    pub fn run_threads(&self, body: impl Fn(&WorkerThread<'_>) + Sync) {
        thread::scope(|scope| {
            for number in 0..self.threads {
                let body = &body;
                let run = move || body(&WorkerThread { worker: self, number });
                let name = format!("worker {} thread {number}", self.index);
                let started = thread::Builder::new().name(name).spawn_scoped(scope, run);
                started.expect("a thread for the worker");
            }
        });
    }
}

/// One of a worker's threads.
#[derive(Debug)]
pub struct WorkerThread<'a> {
    worker: &'a Worker,
    number: usize,
}

impl WorkerThread<'_> {
    /// Its worker.
    pub fn worker(&self) -> &Worker {
        self.worker
    }

    /// Which of its worker's threads it is, from 0.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The next client, for as long as it takes. `None` when the worker has to end and nobody waits any more to be let in.
    ///
    /// From its return to the next call the thread is about one request, for which it has
    /// [`worker_timeout`](super::Builder::worker_timeout); if it may take longer, it [says so](Self::may_take).
    pub fn accept(&self) -> Option<Stream> {
        let Worker { board, place, shutdown, timeout, .. } = self.worker;
        let listeners = self.worker.listeners();
        board.end(*place, self.number);
        board.set_serves(*place);
        loop {
            let is_ending = shutdown.is_requested();
            let mut waits: Vec<PollFd<'_>> =
                listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
            if !is_ending {
                waits.push(PollFd::new(shutdown.as_fd(), PollFlags::POLLIN));
            }
            match poll(&mut waits, if is_ending { PollTimeout::ZERO } else { PollTimeout::NONE }) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => panic!("cannot wait for clients: {error}"),
            }
            let mut nobody = true;
            for listener in listeners.iter() {
                match listener.accept() {
                    Ok(client) => {
                        board.may_take(*place, self.number, *timeout);
                        return Some(client);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    // It went away, or there is no descriptor left until another client goes.
                    Err(_) => {
                        nobody = false;
                        thread::sleep(Duration::from_millis(1));
                    }
                }
            }
            if is_ending && nobody {
                // Who comes from here on is the other workers', or is refused.
                drop(self.worker.take_listeners());
                return None;
            }
        }
    }

    /// What it is about may take this long from now.
    pub fn may_take(&self, time: Duration) {
        self.worker.board.may_take(self.worker.place, self.number, time);
    }
}

/// Tells a worker's threads when they have to end. Readable ([`AsFd`]) from then on, for those who wait with `poll` or an event loop.
#[derive(Clone)]
pub struct Shutdown(Arc<Inner>);

struct Inner {
    is_requested: AtomicBool,
    /// Its other end is closed when it is requested.
    told: PipeReader,
    tell: Mutex<Option<PipeWriter>>,
}

impl Shutdown {
    pub(super) fn new() -> io::Result<Self> {
        let (told, tell) = io::pipe()?;
        let inner = Inner { is_requested: AtomicBool::new(false), told, tell: Mutex::new(Some(tell)) };
        Ok(Self(Arc::new(inner)))
    }

    /// Whether the worker has to end.
    pub fn is_requested(&self) -> bool {
        self.0.is_requested.load(SeqCst)
    }

    /// Ends the worker, as a signal from its master does.
    pub fn request(&self) {
        self.0.is_requested.store(true, SeqCst);
        self.0.tell.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until it has to, or the deadline. Whether it has to.
    pub fn wait(&self, deadline: Deadline) -> bool {
        while !self.is_requested() && !deadline.is_over() {
            let left = deadline.remaining().min(Duration::from_secs(3600));
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout);
        }
        self.is_requested()
    }
}

impl AsFd for Shutdown {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.told.as_fd()
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown").field("is_requested", &self.is_requested()).finish_non_exhaustive()
    }
}
