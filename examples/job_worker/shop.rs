//! The master and its workers: one pool of each server for all of them, built and used before the fork.

use crate::Result;
use crate::caretaker::{self, Progress};
use crate::outage::REDIS;
use crate::owner::Owner;
use crate::queue::Queue;
use crate::runner::Runner;
use crate::say::{say, with_causes};
use crate::store::Store;
use forksafe::cluster::{Builder, Worker};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

pub(crate) struct Shop {
    pub(crate) queue: Queue,
    pub(crate) store: Store,
    /// How long a job may take, until its worker is held to be wedged.
    pub(crate) job_timeout: Duration,
    /// How long jobs have to end when the worker has to.
    pub(crate) shutdown_timeout: Duration,
    /// How often a job may fail.
    pub(crate) attempts: u32,
    /// How long it rests the first time.
    pub(crate) back_off: Duration,
    /// Failures after which a job is tried again are not told.
    pub(crate) is_quiet: bool,
}

impl Shop {
    /// Until a signal ends it.
    pub(crate) fn run(&self) -> Result<()> {
        // The classic mistake: from here on the master has connections for its children to inherit.
        self.store.make_tables().map_err(|error| format!("PostgreSQL: {}", with_causes(&*error)))?;
        let counts = self.queue.counts().map_err(|error| format!("Redis: {}", with_causes(&*error)))?;
        say(&format!("master: {} jobs wait in queue {:?}", counts.open(), self.queue.name()));

        // And what the workers do about it: nothing.
        let cluster = Builder::from_env()?.worker_timeout(self.job_timeout);
        cluster.worker_shutdown_timeout(self.shutdown_timeout).run(|worker| self.work(worker))?;

        // Workers that had to be killed, because a job did not end in time.
        if let Err(error) = self.queue.rescue(caretaker::tell) {
            REDIS.is_away(&*error);
        }
        Ok(())
    }

    fn work(&self, worker: &Worker) -> Result<()> {
        self.queue.serve_threads(worker.threads())?;
        self.store.serve_threads(worker.threads())?;
        // Each of its own, and none that it would wait for: it serves, also while a server is away.
        worker.ready();
        let owner = Owner::of_this_process();
        let lists: Vec<_> = (0..worker.threads()).map(|thread| owner.list_of(thread)).collect();
        thread::scope(|scope| {
            let (work_ends, work_goes_on) = mpsc::channel();
            let progress = (worker.index() == 0).then(Progress::new);
            let lists = &lists;
            scope.spawn(move || caretaker::look_after(self, lists, progress, &work_goes_on));
            worker.run_threads(|thread| Runner::new(thread, self, &lists[thread.number()]).run());
            drop(work_ends);
        });
        self.queue.close();
        self.store.close();
        Ok(())
    }
}
