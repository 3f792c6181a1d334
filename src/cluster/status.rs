//! How a cluster stands, read by anybody who has the board: the master, and each worker.

use super::board::{Board, Of, OfThread, OfWorker};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

/// How a cluster stands. As JSON (by [`Display`](fmt::Display), or serde) it has the names that Puma's control server has for what means
/// the same there.
///
/// What is Puma's and not here: `backlog` (no client waits within a worker: a thread lets in whom it will answer) and `last_checkin`
/// (there is no ping: [see why](super#a-heartbeat-means-progress)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The master's.
    pub pid: u32,
    /// When the master began, in UTC: `2026-01-31T23:59:59Z`.
    pub started_at: String,
    /// How many worker processes there are, with those that boot and those that end.
    pub workers: usize,
    /// How often all were replaced, or were to be.
    pub phase: u64,
    /// How many have come to serve.
    pub booted_workers: usize,
    /// How many are of an earlier phase.
    pub old_workers: usize,
    /// One by one, by index.
    pub worker_status: Vec<WorkerStatus>,
}

/// How one worker stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// When it was forked.
    pub started_at: String,
    /// Its process.
    pub pid: u32,
    /// From 0. While one is replaced there are two of an index.
    pub index: usize,
    /// In which phase it was forked.
    pub phase: u64,
    /// Whether it has come to serve.
    pub booted: bool,
    /// Whether it takes no more, and will end. Not in Puma.
    pub ending: bool,
    /// What its threads are about.
    pub last_status: ThreadStatus,
}

/// What the threads of a worker are about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ThreadStatus {
    /// How many threads it has started.
    pub running: usize,
    /// How many more requests it could take at once.
    pub pool_capacity: usize,
    /// How many threads are about a request.
    pub busy_threads: usize,
    /// How many threads it may have.
    pub max_threads: usize,
    /// How many requests have been done.
    pub requests_count: u64,
    /// The server's numbers of the connections that its threads [used last](super::Heartbeat::uses_connection). Not in Puma.
    pub connections: Vec<u64>,
}

impl Status {
    pub(super) fn read(board: &Board) -> Self {
        let phase = board.get(Of::Phase);
        let mut worker_status: Vec<_> = board.taken().map(|place| WorkerStatus::read(board, place)).collect();
        worker_status.sort_by_key(|worker| (worker.index, worker.phase));
        Self {
            pid: board.get(Of::Master) as u32,
            started_at: calendar(board.get(Of::StartedAt)),
            workers: worker_status.len(),
            phase,
            booted_workers: worker_status.iter().filter(|worker| worker.booted).count(),
            old_workers: worker_status.iter().filter(|worker| worker.phase < phase).count(),
            worker_status,
        }
    }
}

impl WorkerStatus {
    fn read(board: &Board, place: usize) -> Self {
        let threads = board.threads(place);
        let all = |what| (0..threads).map(move |thread| board.thread(place, thread, what));
        let busy_threads = all(OfThread::Until).filter(|&until| until != 0).count();
        let mut connections: Vec<u64> = all(OfThread::Connection).filter(|&number| number != 0).collect();
        connections.sort_unstable();
        connections.dedup();
        let (booted, ending) = (board.has_served(place), board.ends(place));
        Self {
            started_at: calendar(board.worker(place, OfWorker::StartedAt)),
            pid: board.worker(place, OfWorker::Pid) as u32,
            index: board.worker(place, OfWorker::Index) as usize,
            phase: board.worker(place, OfWorker::Phase),
            booted,
            ending,
            last_status: ThreadStatus {
                running: all(OfThread::Id).filter(|&id| id != 0).count(),
                pool_capacity: if booted && !ending { threads - busy_threads } else { 0 },
                busy_threads,
                max_threads: threads,
                requests_count: board.requests(place),
                connections,
            },
        }
    }
}

impl fmt::Display for Status {
    /// JSON, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

fn calendar(seconds: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(seconds)).to_string()
}
