//! Will all the connections fit? Prints the table, and exits with 1 if they will not: for a release phase, or a CI.
//!
//! ```text
//! WEB_CONCURRENCY=2 RAILS_MAX_THREADS=5 cargo run --example sizing -- \
//!     --hosts 4 --pool db=5 --background "job workers=2,db=10" --preboot --postgres "$DATABASE_URL"
//! ```

use forksafe::postgres::PostgresManager;
use forksafe::redis::RedisManager;
use forksafe::sizing::{Capacity, Limit, Plan, Report, Surge};
use std::error::Error;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
Will all the connections of a prefork deployment fit? Exit code: 0, 1 if not, 2 if the question makes no sense.
What cannot be told is printed as unknown, and does not fail.

  --hosts N                    hosts, dynos (1)
  --workers N, --threads N     instead of what the environment says
  --pool SERVER=N              each worker has a pool of N connections; for each server one. Without: a pool for each of
                               --postgres (server db) and --redis (cache), of as many as there are threads
  --master SERVER=N            each master holds N
  --background NAME=P,SERVER=N P other processes with N connections each
  --preboot                    two sets of hosts at once
  --phased-restart N           N more workers on each host, while they are replaced
  --rolling-deploy N           N more hosts at a time
  --limit SERVER=N             what the server allows, if it is not asked
  --postgres URL               asks the server db
  --redis URL                  asks the server cache
  --timeout SECONDS            how long a server may take to answer (5)

Environment:
  WEB_CONCURRENCY                                       workers, or auto (1)
  RAILS_MAX_THREADS or PUMA_MAX_THREADS or MAX_THREADS  threads of each worker (5)
";

fn main() -> ExitCode {
    match report() {
        Ok(None) => ExitCode::SUCCESS,
        Ok(Some(report)) => {
            println!("{report}");
            if report.fits() == Some(false) { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn report() -> Result<Option<Report>> {
    let mut args = pico_args::Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        print!("{USAGE}");
        return Ok(None);
    }
    let mut plan = Plan::from_env()?;
    if let Some(hosts) = number(&mut args, "--hosts", 1)? {
        plan = plan.hosts(hosts);
    }
    if let Some(workers) = number(&mut args, "--workers", 0)? {
        plan = plan.workers(workers);
    }
    if let Some(threads) = number(&mut args, "--threads", 1)? {
        plan = plan.threads(threads);
    }
    let postgres: Option<String> = args.opt_value_from_str("--postgres")?;
    let redis: Option<String> = args.opt_value_from_str("--redis")?;
    let pools: Vec<Share> = args.values_from_str("--pool")?;
    if pools.is_empty() {
        let threads = plan.threads_of_worker();
        plan = postgres.iter().fold(plan, |plan, _| plan.pool("db", threads));
        plan = redis.iter().fold(plan, |plan, _| plan.pool("cache", threads));
    }
    for Share(server, max_size) in pools {
        if max_size == 0 {
            return Err(format!("--pool: a pool of {server} needs 1 connection at least").into());
        }
        plan = plan.pool(server, max_size);
    }
    plan = args.values_from_str("--master")?.into_iter().fold(plan, |plan, Share(server, n)| plan.master(server, n));
    let background: Vec<Group> = args.values_from_str("--background")?;
    plan = background.into_iter().fold(plan, |plan, Group(name, n, each)| plan.background(name, n, [each]));
    plan = surges(&mut args)?.into_iter().fold(plan, Plan::surge);

    let mut report = Report::new(plan);
    for Share(server, total) in args.values_from_str("--limit")? {
        report = report.server(server, Capacity::of([Limit::new("its limit", total.into())]));
    }
    let timeout = Duration::from_secs(args.opt_value_from_str("--timeout")?.unwrap_or(5));
    if let Some(unknown) = args.finish().first() {
        return Err(format!("what is {unknown:?}? --help tells what there is").into());
    }
    if let Some(url) = postgres {
        let config = url.parse().map_err(|error| format!("--postgres: {error}"))?;
        let manager = PostgresManager::new(config, postgres::NoTls);
        report = report.server("db", Capacity::of_postgres(&manager, timeout));
    }
    if let Some(url) = redis {
        let manager = RedisManager::open(url).map_err(|error| format!("--redis: {error}"))?;
        report = report.server("cache", Capacity::of_redis(&manager, timeout));
    }
    Ok(Some(report))
}

fn surges(args: &mut pico_args::Arguments) -> Result<Vec<Surge>> {
    let mut surges = Vec::new();
    surges.extend(args.contains("--preboot").then_some(Surge::Preboot));
    let extra_workers = number(args, "--phased-restart", 0)?;
    surges.extend(extra_workers.map(|extra_workers| Surge::PhasedRestart { extra_workers }));
    let extra_hosts = number(args, "--rolling-deploy", 0)?;
    surges.extend(extra_hosts.map(|extra_hosts| Surge::RollingDeploy { extra_hosts }));
    Ok(surges)
}

fn number(args: &mut pico_args::Arguments, name: &'static str, least: u32) -> Result<Option<u32>> {
    let number: Option<u32> = args.opt_value_from_str(name).map_err(|error| format!("{name}: {error}"))?;
    match number {
        Some(number) if number < least => Err(format!("{name}: {number} is less than {least}").into()),
        number => Ok(number),
    }
}

/// `SERVER=N`
struct Share(String, u32);

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        // (A server may be called by an url.)
        let (server, number) = text.rsplit_once('=').ok_or("SERVER=N is wanted")?;
        Ok(Self(server.to_owned(), number.parse().map_err(|_| format!("{number:?} is not a number"))?))
    }
}

/// `NAME=PROCESSES,SERVER=N`
struct Group(String, u32, (String, u32));

impl FromStr for Group {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (group, each) = text.split_once(',').ok_or("NAME=PROCESSES,SERVER=N is wanted")?;
        let (Share(name, processes), Share(server, connections)) = (group.parse()?, each.parse()?);
        Ok(Self(name, processes, (server, connections)))
    }
}
