//! The jobs, in Redis: a list of those that wait, a list for each thread with what it has taken, a sorted set of those that rest
//! after they failed, another of the dead.
//!
//! It is as durable as that Redis: `appendonly yes` there, if jobs are to outlive its end.

use crate::Result;
use crate::job::{Job, Taken};
use crate::owner::Owner;
use crate::scripts::{BEAT, FORGET, MOVE, PROMOTE, REVIVE};
use forksafe::{Pool, PooledConnection};
use redis::{Connection, FromRedisValue, RedisResult};
use std::collections::HashMap;
use std::time::{Duration, SystemTime};

/// How long Redis waits for a job before it says that there is none. It is how long a thread needs to see that it has to end.
const BLOCK: Duration = Duration::from_secs(1);

/// How long it may be silent. More than [`BLOCK`]: who gives up too early would not learn of the job that it was just given.
const ANSWER: Duration = Duration::from_secs(5);

/// A list is remembered for so long after its owner was last heard of. A command of a process that was killed can be carried out a
/// little later, and move a job there.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// So many jobs can be dead. The oldest go first.
const MOST_DEAD: usize = 10_000;

/// A job whose workers ended so often in the middle of it is what ends them.
const MOST_INTERRUPTIONS: u32 = 10;

pub(crate) struct Queue {
    pool: Pool<redis::Client>,
    name: String,
    lease: Duration,
}

/// How many there are.
pub(crate) struct Counts {
    pub(crate) queue: u64,
    pub(crate) working: u64,
    pub(crate) retry: u64,
    pub(crate) dead: u64,
    /// Since the beginning: "enqueued", "done", "done before", "run again", "retried", "died".
    pub(crate) ever: HashMap<String, u64>,
}

impl Counts {
    /// Those that somebody has to do something about yet.
    pub(crate) fn open(&self) -> u64 {
        self.queue + self.working + self.retry
    }

    /// Those that were done and could not be reported are counted when they come again.
    pub(crate) fn done(&self) -> u64 {
        self.ever("done") + self.ever("done before")
    }

    pub(crate) fn ever(&self, what: &str) -> u64 {
        self.ever.get(what).copied().unwrap_or_default()
    }
}

/// What became of a job that was left by a worker that is gone.
pub(crate) struct Rescued {
    pub(crate) job: String,
    pub(crate) pid: u32,
    /// How often that has happened to it.
    pub(crate) times: u32,
    pub(crate) is_dead: bool,
}

impl Queue {
    /// `lease`: who has not been heard of for so long, and cannot be looked up, is gone.
    pub(crate) fn open(url: &str, name: &str, lease: Duration) -> Result<Self> {
        let client = redis::Client::open(url).map_err(|error| format!("--redis: {error}"))?;
        // The master needs one. A worker has as many as it has threads.
        let pool = Pool::builder().name("queue").max_size(1).connection_timeout(ANSWER).build_unchecked(client);
        Ok(Self { pool, name: name.to_owned(), lease })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// One for each thread, which holds it while it waits for a job, and one for who looks after them.
    pub(crate) fn serve_threads(&self, threads: usize) -> Result<()> {
        Ok(self.pool.resize(u32::try_from(threads)? + 1)?)
    }

    pub(crate) fn close(&self) {
        self.pool.close();
    }

    /// The braces keep all of them on one node of a Redis Cluster.
    fn key(&self, of: &str) -> String {
        format!("jobs:{{{}}}:{of}", self.name)
    }

    fn key_of_list(&self, list: &str) -> String {
        self.key(&format!("working:{list}"))
    }

    fn ask<T>(&self, what: impl FnOnce(&mut Connection) -> RedisResult<T>) -> Result<T> {
        let mut conn = self.pool.get()?;
        conn.set_read_timeout(Some(ANSWER))?;
        conn.set_write_timeout(Some(ANSWER))?;
        // Unfit for the next holder, some of these errors say.
        Ok(what(&mut conn).inspect_err(|error| _ = PooledConnection::report(&mut conn, error))?)
    }

    fn run<T: FromRedisValue>(&self, script: &str, keys: &[String], arguments: &[&str]) -> Result<T> {
        self.ask(|conn| redis::cmd("EVAL").arg(script).arg(keys.len()).arg(keys).arg(arguments).query(conn))
    }

    pub(crate) fn enqueue(&self, jobs: &[Job]) -> Result<()> {
        for jobs in jobs.chunks(1000) {
            let texts = jobs.iter().map(Job::text).collect::<Result<Vec<_>>>()?;
            let mut both = redis::pipe();
            both.atomic().cmd("LPUSH").arg(self.key("queue")).arg(texts);
            both.cmd("HINCRBY").arg(self.key("counters")).arg("enqueued").arg(jobs.len());
            self.ask(|conn| both.exec(conn))?;
        }
        Ok(())
    }

    /// All that lies in the list of a thread, and waits a moment if nothing comes. That is the one job that it is given now; and those
    /// that it was given without learning of it, or could not report: an answer may have been lost on its way.
    pub(crate) fn take(&self, list: &str) -> Result<Vec<Taken>> {
        let (key, now) = (self.key_of_list(list), SystemTime::UNIX_EPOCH.elapsed()?.as_millis() as u64);
        let mut take = redis::pipe();
        // Before there can be anything in it, the list is known to those who rescue.
        take.cmd("ZADD").arg(self.key("lists")).arg("NX").arg(now).arg(list).ignore();
        take.cmd("BLMOVE").arg(self.key("queue")).arg(&key).arg("RIGHT").arg("LEFT").arg(BLOCK.as_secs_f64()).ignore();
        take.cmd("LRANGE").arg(&key).arg(0).arg(-1);
        let (texts,): (Vec<String>,) = self.ask(|conn| take.query(conn))?;
        Ok(texts.into_iter().map(Taken::from).collect())
    }

    /// See [`MOVE`]. Whether the job was still in that list: another may have taken this worker for gone.
    fn leave(&self, list: &str, text: &str, counter: &str, to: &str, new: &str, number: u128) -> Result<bool> {
        let others = ["counters", "queue", "retry", "dead"].map(|of| self.key(of));
        let keys: Vec<_> = [self.key_of_list(list)].into_iter().chain(others).collect();
        self.run(MOVE, &keys, &[text, counter, to, new, &number.to_string()])
    }

    /// `is_new`: it had not been done before.
    pub(crate) fn is_done(&self, list: &str, taken: &Taken, is_new: bool) -> Result<bool> {
        self.leave(list, &taken.text, if is_new { "done" } else { "done before" }, "", "", 0)
    }

    pub(crate) fn retry(&self, list: &str, taken: &Taken, job: &Job, after: Duration) -> Result<bool> {
        self.leave(list, &taken.text, "retried", "retry", &job.text()?, after.as_millis())
    }

    pub(crate) fn bury(&self, list: &str, taken: &Taken, job: Option<&Job>) -> Result<bool> {
        let new = job.map_or_else(|| Ok(taken.text.clone()), Job::text)?;
        self.leave(list, &taken.text, "died", "dead", &new, MOST_DEAD as u128)
    }

    /// As it was, to be the next.
    pub(crate) fn put_back(&self, list: &str, taken: &Taken) -> Result<bool> {
        self.leave(list, &taken.text, "", "front", &taken.text, 0)
    }

    /// What lies in a list that is not used any more, and the list itself.
    pub(crate) fn clear(&self, list: &str) -> Result<()> {
        for text in self.content(list)? {
            self.put_back(list, &Taken::from(text))?;
        }
        self.forget(list)
    }

    fn content(&self, list: &str) -> Result<Vec<String>> {
        self.ask(|conn| redis::cmd("LRANGE").arg(self.key_of_list(list)).arg(0).arg(-1).query(conn))
    }

    fn forget(&self, list: &str) -> Result<()> {
        let _: u32 = self.run(FORGET, &[self.key("lists"), self.key_of_list(list)], &[list])?;
        Ok(())
    }

    pub(crate) fn beat(&self, lists: &[String]) -> Result<()> {
        let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
        let _: u32 = self.run(BEAT, &[self.key("lists")], &lists)?;
        Ok(())
    }

    pub(crate) fn promote(&self) -> Result<u32> {
        self.run(PROMOTE, &[self.key("retry"), self.key("queue")], &[])
    }

    /// Queues again what workers that are gone have left, before all others: it has waited. `tell` is told of each that this process
    /// has rescued; of several that try, it is one.
    pub(crate) fn rescue(&self, mut tell: impl FnMut(&Rescued)) -> Result<()> {
        let mut look = redis::pipe();
        look.cmd("TIME").cmd("ZRANGE").arg(self.key("lists")).arg(0).arg(-1).arg("WITHSCORES");
        let ((seconds, _), lists): ((u64, u64), Vec<(String, u64)>) = self.ask(|conn| look.query(conn))?;
        for (list, heard_of) in lists {
            let silent = Duration::from_millis((seconds * 1000).saturating_sub(heard_of));
            let Some(owner) = Owner::of_list(&list) else { continue };
            if !owner.is_gone().unwrap_or(silent > self.lease) {
                continue;
            }
            for text in self.content(&list)? {
                if let Some(rescued) = self.rescue_one(&list, text, owner.pid())? {
                    tell(&rescued);
                }
            }
            if silent > REMEMBERED {
                self.forget(&list)?;
            }
        }
        Ok(())
    }

    fn rescue_one(&self, list: &str, text: String, pid: u32) -> Result<Option<Rescued>> {
        let taken = Taken::from(text);
        let Ok(mut job) = taken.job.clone() else {
            return self.bury(list, &taken, None).map(|_| None);
        };
        job.interrupted += 1;
        let is_dead = job.interrupted > MOST_INTERRUPTIONS;
        let was_there = if is_dead {
            job.error = Some(format!("its worker was gone in the middle of it, {} times", job.interrupted));
            self.bury(list, &taken, Some(&job))?
        } else {
            self.leave(list, &taken.text, "run again", "front", &job.text()?, 0)?
        };
        Ok(was_there.then_some(Rescued { job: job.id, pid, times: job.interrupted, is_dead }))
    }

    pub(crate) fn dead(&self) -> Result<Vec<Taken>> {
        let dead: Vec<String> =
            self.ask(|conn| redis::cmd("ZRANGE").arg(self.key("dead")).arg(0).arg(-1).query(conn))?;
        Ok(dead.into_iter().map(Taken::from).collect())
    }

    /// Queues the dead again, as if they had never failed. How many.
    pub(crate) fn revive(&self) -> Result<u32> {
        let mut revived = 0;
        for Taken { text, job } in self.dead()? {
            // What is no job would only die again.
            let Ok(job) = job else { continue };
            let new = Job { attempts: 0, interrupted: 0, error: None, ..job }.text()?;
            revived += self.run::<u32>(REVIVE, &[self.key("dead"), self.key("queue")], &[&text, &new])?;
        }
        Ok(revived)
    }

    pub(crate) fn counts(&self) -> Result<Counts> {
        let mut look = redis::pipe();
        look.cmd("LLEN").arg(self.key("queue"));
        look.cmd("ZCARD").arg(self.key("retry")).cmd("ZCARD").arg(self.key("dead"));
        look.cmd("HGETALL").arg(self.key("counters")).cmd("ZRANGE").arg(self.key("lists")).arg(0).arg(-1);
        self.ask(|conn| {
            let (queue, retry, dead, ever, lists): (u64, u64, u64, _, Vec<String>) = look.query(conn)?;
            let mut lengths = redis::pipe();
            for list in &lists {
                lengths.cmd("LLEN").arg(self.key_of_list(list));
            }
            let lengths: Vec<u64> = if lists.is_empty() { Vec::new() } else { lengths.query(conn)? };
            Ok(Counts { queue, working: lengths.iter().sum(), retry, dead, ever })
        })
    }

    /// The processes that are about something now.
    pub(crate) fn busy(&self) -> Result<Vec<u32>> {
        let lists: Vec<String> =
            self.ask(|conn| redis::cmd("ZRANGE").arg(self.key("lists")).arg(0).arg(-1).query(conn))?;
        let mut busy = Vec::new();
        for list in lists {
            busy.extend(Owner::of_list(&list).filter(|_| self.content(&list).is_ok_and(|jobs| !jobs.is_empty())));
        }
        Ok(busy.iter().map(Owner::pid).collect())
    }
}
