//! `--drive`: private servers, jobs, a `job_worker run` that does them, and somebody who kills a worker in the middle.

use crate::Result;
use crate::job::Job;
use crate::kinds;
use crate::queue::Queue;
use crate::store::Store;
use forksafe::testing::{PrivatePostgres, PrivateRedis};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::env;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing got done for so long: it will not any more.
const STALLED: Duration = Duration::from_secs(60);

/// Most of them write a row; one in ten fails twice before it does, one in fifty always fails.
fn jobs(number: u64) -> Result<Vec<Job>> {
    let kind = |number: u64| match number {
        _ if number % 50 == 7 => "fail",
        _ if number % 10 == 3 => "flaky",
        _ => "insert",
    };
    (0..number).map(|number| kinds::example(kind(number), number, Some(Duration::from_millis(number % 20)))).collect()
}

/// The exit code: 1 if a job was lost, or done twice.
pub(crate) fn drive(number: u64) -> Result<u8> {
    let (redis, postgres) = (PrivateRedis::start(), PrivatePostgres::start());
    let queue = Queue::open(redis.url(), "drive", Duration::from_secs(30))?;
    let store = Store::open(postgres.url())?;
    let jobs = jobs(number)?;
    queue.enqueue(&jobs)?;

    let mut program = Command::new(env::current_exe()?);
    program.args(["run", "--quiet", "--queue", queue.name(), "--back-off", "0.05"]);
    program.args(["--redis", redis.url(), "--postgres", postgres.url()]);
    let mut runner = Running(program.spawn()?);
    let killed = kill_one_in_the_middle(&queue, number)?;
    await_the_end(&queue)?;
    runner.end()?;

    let counts = queue.counts()?;
    let done: BTreeSet<String> = store.done(queue.name())?.into_iter().collect();
    let dead: BTreeSet<String> = queue.dead()?.into_iter().filter_map(|dead| Some(dead.job.ok()?.id)).collect();
    let lost = jobs.iter().filter(|job| !done.contains(&job.id) && !dead.contains(&job.id)).count();
    let twice = store.count_twice(queue.name())?;
    println!();
    if let Some(pid) = killed {
        println!("worker {pid} was killed in the middle");
    }
    let rows = [
        ("enqueued", jobs.len() as u64),
        ("done", done.len() as u64),
        ("failed, and tried again", counts.ever("retried")),
        ("interrupted, and run again", counts.ever("run again")),
        ("done already when run again", counts.ever("done before")),
        ("dead", dead.len() as u64),
        ("lost", lost as u64),
        ("twice", twice as u64),
    ];
    rows.iter().for_each(|(what, number)| println!("{what:<28} {number:>7}"));
    Ok(u8::from(lost > 0 || twice > 0))
}

/// When a third is done, one that is about a job then. `None` if all were through before.
fn kill_one_in_the_middle(queue: &Queue, number: u64) -> Result<Option<u32>> {
    let mut patience = Patience::new();
    loop {
        let counts = queue.counts()?;
        if counts.open() == 0 {
            return Ok(None);
        }
        if counts.done() >= number / 3
            && let Some(&pid) = queue.busy()?.first()
        {
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
            return Ok(Some(pid));
        }
        patience.wait(counts.done())?;
    }
}

fn await_the_end(queue: &Queue) -> Result<()> {
    let mut patience = Patience::new();
    loop {
        let counts = queue.counts()?;
        if counts.open() == 0 {
            return Ok(());
        }
        patience.wait(counts.done())?;
    }
}

struct Patience {
    done: u64,
    since: Instant,
}

impl Patience {
    fn new() -> Self {
        Self { done: 0, since: Instant::now() }
    }

    fn wait(&mut self, done: u64) -> Result<()> {
        if done != self.done {
            *self = Self { done, since: Instant::now() };
        }
        if self.since.elapsed() > STALLED {
            return Err(format!("nothing was done for {STALLED:?}").into());
        }
        thread::sleep(Duration::from_millis(5));
        Ok(())
    }
}

/// The program that does the jobs. It does not outlive the drive.
struct Running(Child);

impl Running {
    fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM)?;
        let status = self.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the workers ended with {status}").into()) }
    }
}

impl Drop for Running {
    /// After an error: gracefully, so that its workers end, too.
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.end();
        }
    }
}
