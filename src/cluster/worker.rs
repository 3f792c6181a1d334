//! A worker, from within.

use super::board::{self, Board};
use super::listeners::{Listener, Stream};
use crate::Deadline;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
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
    /// For how long it lets in who waits, when the cluster ends.
    pub(super) drains_for: Duration,
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

    /// Once: it would come again and again.
    fn complain(&self, error: &io::Error) {
        static COMPLAINED: AtomicBool = AtomicBool::new(false);
        let is_usual = error.kind() == io::ErrorKind::ConnectionAborted;
        if !is_usual && !COMPLAINED.swap(true, SeqCst) {
            super::say(&format!("worker {} cannot accept: {error}", self.index));
        }
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

    /// Says of one of its threads (by number, from 0) until when it has to be done with what it is about: for workers that take
    /// their [listeners](Self::take_listeners) and accept by themselves. To those nobody else says when they are wedged.
    pub fn heartbeat(&self, thread: usize) -> Heartbeat {
        assert!(thread < self.threads, "a worker with {} threads has none of number {thread}", self.threads);
        Heartbeat { board: Arc::clone(&self.board), place: self.place, thread }
    }

    /// Runs `body` on as many threads as the cluster has for each worker, and returns when all of them have. If one panics the worker
    /// is asked to end, for it would be a thread short. Once at a time: the threads' numbers are their places on the board.
    ///
    /// # Panics
    ///
    /// When one of them does, or cannot be started, after the others have returned.
    pub fn run_threads(&self, body: impl Fn(&WorkerThread<'_>) + Sync) {
        thread::scope(|scope| {
            for number in 0..self.threads {
                let body = &body;
                let run = move || {
                    let thread = WorkerThread { worker: self, heartbeat: self.heartbeat(number) };
                    let _leaves = Leaves(&thread);
                    body(&thread);
                };
                let name = format!("worker {} thread {number}", self.index);
                if let Err(error) = thread::Builder::new().name(name).spawn_scoped(scope, run) {
                    self.shutdown.request(); // Or the others would serve for ever, and one be missing.
                    panic!("cannot start thread {number} of worker {}: {error}", self.index);
                }
            }
        });
    }
}

/// One thread's word to the master. See [`Worker::heartbeat`].
#[derive(Clone, Debug)]
pub struct Heartbeat {
    board: Arc<Board>,
    place: usize,
    thread: usize,
}

impl Heartbeat {
    /// What the thread is about may take this long from now; then its worker is held to be wedged.
    pub fn may_take(&self, time: Duration) {
        self.board.may_take(self.place, self.thread, time);
    }

    /// It is done.
    pub fn done(&self) {
        self.board.done(self.place, self.thread);
    }
}

/// A thread that is gone is about nothing any more.
struct Leaves<'a>(&'a WorkerThread<'a>);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.heartbeat.done();
        if thread::panicking() {
            self.0.worker.shutdown.request();
        }
    }
}

/// One of a worker's threads.
#[derive(Debug)]
pub struct WorkerThread<'a> {
    worker: &'a Worker,
    heartbeat: Heartbeat,
}

impl WorkerThread<'_> {
    /// Its worker.
    pub fn worker(&self) -> &Worker {
        self.worker
    }

    /// Which of its worker's threads it is, from 0.
    pub fn number(&self) -> usize {
        self.heartbeat.thread
    }

    /// The next client, for as long as it takes. `None` when the worker has to end: at once if others serve on, and when nobody waits
    /// any more to be let in if the whole cluster ends.
    ///
    /// From its return to the next call the thread is about one request, for which it has
    /// [`worker_timeout`](super::Builder::worker_timeout); if it may take longer, it [says so](Self::may_take). A client that says nothing takes
    /// that time, too: set a read timeout.
    pub fn accept(&self) -> Option<Stream> {
        let Worker { board, place, shutdown, timeout, drains_for, .. } = self.worker;
        let listeners = self.worker.listeners();
        self.heartbeat.done();
        board.set_serves(*place);
        loop {
            let is_ending = shutdown.is_requested();
            if is_ending && !(board.cluster_ends() && shutdown.requested_for() < *drains_for) {
                drop(self.worker.take_listeners());
                return None;
            }
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
                        self.heartbeat.may_take(*timeout);
                        return Some(client);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => {
                        // The client went away; or there is no descriptor left until another one goes.
                        nobody = false;
                        self.worker.complain(&error);
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
        self.heartbeat.may_take(time);
    }
}

/// Tells a worker's threads when they have to end. Readable ([`AsFd`]) from then on, for those who wait with `poll` or an event loop:
/// nobody may read from it.
#[derive(Clone)]
pub struct Shutdown(Arc<Inner>);

struct Inner {
    /// Since when, by the board's clock; zero is not yet.
    requested_at: AtomicU64,
    /// A byte lies in it from then on.
    told: PipeReader,
    tell: PipeWriter,
    board: Arc<Board>,
    place: usize,
}

impl Shutdown {
    pub(super) fn new(board: &Arc<Board>, place: usize) -> io::Result<Self> {
        let (told, tell) = io::pipe()?;
        let board = Arc::clone(board);
        Ok(Self(Arc::new(Inner { requested_at: AtomicU64::new(0), told, tell, board, place })))
    }

    /// Whether the worker has to end.
    pub fn is_requested(&self) -> bool {
        self.0.requested_at.load(SeqCst) != 0
    }

    fn requested_for(&self) -> Duration {
        Duration::from_millis(board::now().saturating_sub(self.0.requested_at.load(SeqCst)))
    }

    /// Ends the worker, as a signal from its master does: another takes its place at once, and it has
    /// [`worker_shutdown_timeout`](super::Builder::worker_shutdown_timeout) to finish.
    pub fn request(&self) {
        self.0.board.set_ends(self.0.place);
        if self.0.requested_at.compare_exchange(0, board::now().max(1), SeqCst, SeqCst).is_ok() {
            let _ = (&self.0.tell).write(&[0]);
        }
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
