//! What one thread of a worker's does: takes a job, does it, says what became of it.

use crate::Result;
use crate::job::{Job, Taken};
use crate::kinds;
use crate::outage::{BackOff, POSTGRES, REDIS};
use crate::say::say;
use crate::shop::Shop;
use crate::store::Unstored;
use forksafe::cluster::{Heartbeat, Shutdown, WorkerThread};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) struct Runner<'a> {
    shop: &'a Shop,
    list: &'a str,
    shutdown: &'a Shutdown,
    heartbeat: Heartbeat,
}

/// What becomes of a job.
enum Outcome {
    Done {
        is_new: bool,
    },
    Failed(String),
    /// The worker has to end, and could not do it yet.
    Later,
}

impl<'a> Runner<'a> {
    /// What this thread takes lies in `list` until it is through with it.
    pub(crate) fn new(thread: &'a WorkerThread<'_>, shop: &'a Shop, list: &'a str) -> Self {
        let worker = thread.worker();
        Self { shop, list, shutdown: worker.shutdown(), heartbeat: worker.heartbeat(thread.number()) }
    }

    /// Until the worker has to end.
    pub(crate) fn run(&self) {
        let mut back_off = BackOff::new();
        while !self.shutdown.is_requested() {
            let outcome =
                self.shop.queue.take(self.list).and_then(|all| all.iter().try_for_each(|taken| self.handle(taken)));
            match outcome {
                Ok(()) => {
                    REDIS.is_there();
                    back_off = BackOff::new();
                }
                // What it took lies in its list. It comes to it again, and if that had been done already it learns so.
                Err(error) => {
                    REDIS.is_away(&*error);
                    back_off.wait(self.shutdown);
                }
            }
        }
        // Not to leave it to those who look for the jobs of the dead.
        if let Err(error) = self.shop.queue.clear(self.list) {
            REDIS.is_away(&*error);
        }
    }

    /// An error is Redis'.
    fn handle(&self, taken: &Taken) -> Result<()> {
        let queue = &self.shop.queue;
        let job = match &taken.job {
            _ if self.shutdown.is_requested() => return queue.put_back(self.list, taken).map(drop),
            Ok(job) => job,
            Err(why) => {
                say(&format!("what is in the queue is put to the dead, for {why}: {}", taken.text));
                return queue.bury(self.list, taken, None).map(drop);
            }
        };
        let outcome = self.perform(job);
        self.heartbeat.done();
        let was_ours = match outcome {
            Outcome::Done { is_new } => {
                if !is_new {
                    say(&format!("job {} had been done already, and nothing was done again", job.id));
                }
                queue.is_done(self.list, taken, is_new)?
            }
            Outcome::Failed(error) => self.fail(taken, job, error)?,
            Outcome::Later => queue.put_back(self.list, taken)?,
        };
        if !was_ours {
            say(&format!("job {} was taken from this worker, which was held to be gone", job.id));
        }
        Ok(())
    }

    fn perform(&self, job: &Job) -> Outcome {
        self.heartbeat.may_take(self.shop.job_timeout);
        // A job's panic is the job's.
        match catch_unwind(AssertUnwindSafe(|| kinds::work(job))) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Outcome::Failed(error.to_string()),
            Err(_) => return Outcome::Failed("it panicked".to_owned()),
        }
        let mut back_off = BackOff::new();
        loop {
            match self.shop.store.finish(job, self.shop.queue.name()) {
                Ok(is_new) => {
                    POSTGRES.is_there();
                    return Outcome::Done { is_new };
                }
                Err(Unstored::Refused(error)) => return Outcome::Failed(error),
                Err(Unstored::Away(error)) => {
                    POSTGRES.is_away(&*error);
                    // Who waits is not wedged.
                    self.heartbeat.done();
                    if back_off.wait(self.shutdown) {
                        return Outcome::Later;
                    }
                    self.heartbeat.may_take(self.shop.job_timeout);
                }
            }
        }
    }

    fn fail(&self, taken: &Taken, job: &Job, error: String) -> Result<bool> {
        let (queue, most) = (&self.shop.queue, self.shop.attempts);
        let failed = Job { attempts: job.attempts + 1, error: Some(error.clone()), ..job.clone() };
        let is_dead = failed.attempts >= most;
        let after = failed.back_off(self.shop.back_off);
        let was_ours = if is_dead {
            queue.bury(self.list, taken, Some(&failed))?
        } else {
            queue.retry(self.list, taken, &failed, after)?
        };
        if is_dead && was_ours {
            say(&format!("job {} is dead after {most} attempts: {error}", job.id));
        } else if was_ours && !self.shop.is_quiet {
            let attempt = failed.attempts;
            say(&format!("job {} failed, attempt {attempt} of {most}, the next in {after:.1?}: {error}", job.id));
        }
        Ok(was_ours)
    }
}
