//! A worker, from within.

use super::board::{self, Board, Of, OfThread};
use super::listeners::{Listener, Stream};
use super::status::Status;
use crate::Deadline;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::gettid;
use std::fmt;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

/// One of the processes that serve.
#[derive(Debug)]
pub struct Worker {
    pub(super) index: usize,
    pub(super) place: usize,
    pub(super) threads: usize,
    pub(super) min_threads: usize,
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
            super::say(&format!("worker {} cannot serve more: {error}", self.index));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<[Listener]>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when it has to end.
    pub fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    /// How the whole cluster stands.
    pub fn status(&self) -> Status {
        Status::read(&self.board)
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
        let team = Team {
            worker: self,
            body: &body,
            started: AtomicUsize::new(0),
            idle: AtomicUsize::new(0),
            turn: Mutex::new(()),
        };
        thread::scope(|scope| {
            for _ in 0..self.min_threads {
                if let Err(error) = team.start(scope) {
                    self.shutdown.request(); // Or the others would serve for ever, and one be missing.
                    panic!("cannot start a thread of worker {}: {error}", self.index);
                }
            }
        });
    }
}

/// The threads of [`Worker::run_threads`].
struct Team<'a> {
    worker: &'a Worker,
    body: &'a (dyn Fn(&WorkerThread<'_>) + Sync),
    started: AtomicUsize,
    /// So many wait for a client.
    idle: AtomicUsize,
    /// Whose turn it is to wait for clients.
    turn: Mutex<()>,
}

impl Team<'_> {
    /// One thread more, if there may be.
    fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> io::Result<()> {
        let Worker { index, threads, .. } = *self.worker;
        let one_more = |started| (started < threads).then_some(started + 1);
        let Ok(number) = self.started.fetch_update(SeqCst, SeqCst, one_more) else { return Ok(()) };
        let run = move || {
            let is_busy = || {
                if self.idle.fetch_sub(1, SeqCst) == 1 && !self.worker.shutdown.is_requested() {
                    // If that cannot be, those that there are go on.
                    self.start(scope).unwrap_or_else(|error| self.worker.complain(&error));
                }
            };
            let heartbeat = self.worker.heartbeat(number);
            let thread =
                WorkerThread { worker: self.worker, heartbeat, idle: &self.idle, turn: &self.turn, is_busy: &is_busy };
            thread.heartbeat.is_here();
            let _leaves = Leaves(&thread);
            (self.body)(&thread);
        };
        let name = format!("worker {index} thread {number}");
        thread::Builder::new().name(name).spawn_scoped(scope, run).map(drop)
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
        if self.board.thread(self.place, self.thread, OfThread::Id) == 0 {
            self.is_here();
        }
        self.board.may_take(self.place, self.thread, time);
    }

    fn is_here(&self) {
        self.board.tell(self.place, self.thread, OfThread::Id, gettid().as_raw() as u64);
    }

    /// Which connection of a server's it uses, by the number that the server has for it (PostgreSQL's backend pid, the id of Redis's
    /// `CLIENT ID`): shown in the [status](super::ThreadStatus::connections).
    pub fn uses_connection(&self, number: u64) {
        self.board.tell(self.place, self.thread, OfThread::Connection, number);
    }

    /// It is done: one request more has been.
    pub fn done(&self) {
        self.board.done(self.place, self.thread);
    }
}

/// A thread that is gone is about nothing any more.
struct Leaves<'a>(&'a WorkerThread<'a>);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        let Heartbeat { board, place, thread } = &self.0.heartbeat;
        board.done(*place, *thread);
        board.tell(*place, *thread, OfThread::Id, 0);
        if thread::panicking() {
            self.0.worker.shutdown.request();
        }
    }
}

/// One of a worker's threads.
pub struct WorkerThread<'a> {
    worker: &'a Worker,
    heartbeat: Heartbeat,
    idle: &'a AtomicUsize,
    /// Whoever has it waits for clients.
    turn: &'a Mutex<()>,
    /// It is not idle any more.
    is_busy: &'a (dyn Fn() + Sync),
}

impl fmt::Debug for WorkerThread<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerThread").field("number", &self.number()).finish_non_exhaustive()
    }
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
        self.heartbeat.done();
        self.worker.ready();
        self.idle.fetch_add(1, SeqCst);
        let client = self.next_client();
        (self.is_busy)();
        client
    }

    fn next_client(&self) -> Option<Stream> {
        let Worker { board, shutdown, timeout, drains_for, .. } = self.worker;
        let listeners = self.worker.listeners();
        // One of a worker's threads waits, and the next when that one has a client: each client would wake all that are idle.
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let is_ending = shutdown.is_requested();
            if is_ending && !(board.get(Of::ClusterEnds) != 0 && shutdown.requested_for() < *drains_for) {
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

    /// What it is about may take this long from now: more than [`worker_timeout`](super::Builder::worker_timeout), or another request of the
    /// same client.
    pub fn may_take(&self, time: Duration) {
        self.heartbeat.may_take(time);
    }

    /// What it was about is done, and its client may say something else, or nothing for a while.
    pub fn done(&self) {
        self.heartbeat.done();
    }

    /// See [`Heartbeat::uses_connection`].
    pub fn uses_connection(&self, number: u64) {
        self.heartbeat.uses_connection(number);
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
