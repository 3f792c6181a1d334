//! A prefork job runner: what Sidekiq is to Rails. Jobs wait in Redis, and what they do goes to PostgreSQL.
//!
//! No job is lost and none is done twice, whoever is killed: a job lies in the list of the thread that took it until it is done, and
//! the mark that it is done is one transaction with its work. The pools are built in the master, used there, and used by every
//! thread of every worker. There is no `on_worker_boot`.
//!
//! ```text
//! cargo run --release --example job_worker -- --drive 2000                   # servers of its own, a killed worker, a table
//!
//! export REDIS_URL=redis://127.0.0.1/ DATABASE_URL=postgresql://postgres@127.0.0.1/postgres
//! cargo run --release --example job_worker -- enqueue 1000 --kind insert
//! cargo run --release --example job_worker -- run                            # TERM or Ctrl-C ends it when its jobs are done
//! cargo run --release --example job_worker -- status
//! cargo run --release --example job_worker -- retry-dead
//! ```

mod caretaker;
mod drive;
mod job;
mod kinds;
mod outage;
mod owner;
mod queue;
mod runner;
mod say;
mod scripts;
mod shop;
mod store;

use pico_args::Arguments;
use queue::Queue;
use shop::Shop;
use std::env;
use std::process::ExitCode;
use std::time::Duration;
use store::Store;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "\
A prefork job runner: jobs wait in Redis, what they do goes to PostgreSQL, none is lost and none is done twice.

  job_worker run           do jobs until TERM or INT
      --attempts N           how often a job may fail until it is dead (5)
      --back-off S           how long it rests the first time, twice as long each time after (1)
      --job-timeout S        a job that takes longer wedges its worker, which is replaced (60)
      --shutdown-timeout S   at the end, one that takes longer is killed with its worker, and queued again (25)
      --quiet                do not tell of failures after which a job is tried again
      --lease S              a worker of another machine that is not heard of for so long is gone (30)
  job_worker enqueue N     queue N jobs
      --kind KIND            insert, sleep, flaky, fail or panic (insert)
      --ms N                 how long each takes
  job_worker status        how many there are where
  job_worker retry-dead    queue the dead again
  job_worker --drive N     all of it with servers of its own and a worker that is killed: 1 if a job was lost or done twice

  --redis URL     or REDIS_URL
  --postgres URL  or DATABASE_URL
  --queue NAME    (default)

Environment:
  WEB_CONCURRENCY                   worker processes (2)
  RAILS_MAX_THREADS or MAX_THREADS  threads of each worker (5)
";

fn main() -> ExitCode {
    match obey(Arguments::from_env()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say::say(&say::with_causes(&*error));
            ExitCode::from(2)
        }
    }
}

fn obey(mut args: Arguments) -> Result<u8> {
    if args.contains(["-h", "--help"]) {
        print!("{USAGE}");
        return Ok(0);
    }
    if let Some(number) = args.opt_value_from_str("--drive")? {
        no_more(args)?;
        return drive::drive(number);
    }
    match args.subcommand()?.as_deref() {
        Some("run") => run(args),
        Some("enqueue") => enqueue(args),
        Some("status") => status(args),
        Some("retry-dead") => {
            let queue = queue(&mut args, DEFAULT_LEASE)?;
            no_more(args)?;
            println!("{} jobs are queued again", queue.revive()?);
            Ok(0)
        }
        Some(other) => Err(format!("what is {other:?}? --help tells what there is").into()),
        None => Err("what to do? run, enqueue, status, retry-dead or --drive; --help tells more".into()),
    }
}

const DEFAULT_LEASE: Duration = Duration::from_secs(30);

fn run(mut args: Arguments) -> Result<u8> {
    let lease = seconds(&mut args, "--lease", DEFAULT_LEASE)?;
    let shop = Shop {
        job_timeout: seconds(&mut args, "--job-timeout", Duration::from_secs(60))?,
        shutdown_timeout: seconds(&mut args, "--shutdown-timeout", Duration::from_secs(25))?,
        attempts: args.opt_value_from_str("--attempts")?.unwrap_or(5),
        back_off: seconds(&mut args, "--back-off", Duration::from_secs(1))?,
        is_quiet: args.contains("--quiet"),
        queue: queue(&mut args, lease)?,
        store: store(&mut args)?,
    };
    no_more(args)?;
    shop.run()?;
    Ok(0)
}

fn enqueue(mut args: Arguments) -> Result<u8> {
    let queue = queue(&mut args, DEFAULT_LEASE)?;
    let kind: Option<String> = args.opt_value_from_str("--kind")?;
    let time = args.opt_value_from_str("--ms")?.map(Duration::from_millis);
    let number: u64 = args.free_from_str().map_err(|error| format!("enqueue how many? {error}"))?;
    no_more(args)?;
    let kind = kind.as_deref().unwrap_or("insert");
    let jobs = (0..number).map(|number| kinds::example(kind, number, time)).collect::<Result<Vec<_>>>()?;
    queue.enqueue(&jobs)?;
    println!("{number} jobs are queued in {:?}", queue.name());
    Ok(0)
}

fn status(mut args: Arguments) -> Result<u8> {
    let (queue, store) = (queue(&mut args, DEFAULT_LEASE)?, store(&mut args)?);
    no_more(args)?;
    let counts = queue.counts()?;
    store.make_tables()?;
    let rows = [
        ("queue", counts.queue),
        ("working", counts.working),
        ("retry", counts.retry),
        ("dead", counts.dead),
        ("done", store.count_done(queue.name())? as u64),
        ("run again, ever", counts.ever("run again")),
    ];
    rows.iter().for_each(|(what, number)| println!("{what:<16} {number:>9}"));
    for dead in queue.dead()?.iter().rev().take(10) {
        match &dead.job {
            Ok(job) => {
                println!("dead: {} {}: {}", job.kind, job.id, job.error.as_deref().unwrap_or("no error is known"))
            }
            Err(why) => println!("dead: {:?}: {why}", dead.text),
        }
    }
    Ok(0)
}

fn queue(args: &mut Arguments, lease: Duration) -> Result<Queue> {
    let url = url(args, "--redis", "REDIS_URL")?;
    let name: Option<String> = args.opt_value_from_str("--queue")?;
    Queue::open(&url, name.as_deref().unwrap_or("default"), lease)
}

fn store(args: &mut Arguments) -> Result<Store> {
    Store::open(&url(args, "--postgres", "DATABASE_URL")?)
}

fn url(args: &mut Arguments, option: &'static str, variable: &str) -> Result<String> {
    let said: Option<String> = args.opt_value_from_str(option)?;
    said.or_else(|| env::var(variable).ok().filter(|url| !url.is_empty())).ok_or_else(|| {
        format!("which server? Give {option} URL or set {variable}; --drive N starts servers of its own").into()
    })
}

fn seconds(args: &mut Arguments, option: &'static str, default: Duration) -> Result<Duration> {
    let said: Option<f64> = args.opt_value_from_str(option)?;
    said.map_or(Ok(default), |said| {
        Duration::try_from_secs_f64(said).map_err(|error| format!("{option} {said}: {error}").into())
    })
}

fn no_more(args: Arguments) -> Result<()> {
    match args.finish().first() {
        Some(unknown) => Err(format!("what is {unknown:?}? --help tells what there is").into()),
        None => Ok(()),
    }
}
