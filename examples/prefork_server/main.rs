//! A prefork web server, and one pool value for all of its processes.
//!
//! The master opens the pool and uses it: the classic mistake, because each worker inherits that connection. Then it
//! forks, and the threads of the workers query through the very same `Pool`. There is no `on_worker_boot`. The backend is
//! embedded, or a real server: `--redis URL`, `--postgres URL`, or both.
//!
//! ```text
//! cargo run --release --example prefork_server                                  # then: curl http://127.0.0.1:3000
//! cargo run --release --example prefork_server -- --drive 2000                  # who used which connection
//! cargo run --release --example prefork_server -- --drive 2000 --unsafe-share   # the mess without forksafe
//! ```

mod backend;
mod drive;
mod family;
mod server;

use backend::Backends;
use drive::Answer;
use family::{Family, Role};
use forksafe::cluster::Builder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getppid;
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::num::{NonZeroU8, NonZeroU32};
use std::process::{self, ExitCode};
use std::str::FromStr;
use std::time::Duration;
use std::{env, thread};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
A prefork web server whose workers query through one inherited connection pool.

  --redis URL     query this Redis instead of the embedded backend
  --postgres URL  query this PostgreSQL instead; with --redis, both for each request
  --drive N       send N requests to itself, show who used which connection, and exit: 0, or 1 if one was shared
  --unsafe-share  turn the protection off, to watch the mess that it prevents

Environment:
  WEB_CONCURRENCY                   worker processes (2)
  RAILS_MAX_THREADS or MAX_THREADS  threads of each worker (5)
  PORT                              where to listen, 0 for any (3000, with --drive 0)
";

fn main() -> ExitCode {
    ExitCode::from(report(master()))
}

fn master() -> Result<u8> {
    let mut args = pico_args::Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        print!("{USAGE}");
        return Ok(0);
    }
    let redis: Option<String> = args.opt_value_from_str("--redis")?;
    let postgres: Option<String> = args.opt_value_from_str("--postgres")?;
    let drive: Option<NonZeroU32> = args.opt_value_from_str("--drive").map_err(|error| format!("--drive: {error}"))?;
    if args.contains("--unsafe-share") {
        forksafe::testing::unsafe_share();
    }
    if let Some(unknown) = args.finish().first() {
        return Err(format!("what is {unknown:?}? --help tells what there is").into());
    }
    let workers: NonZeroU8 = setting(&["WEB_CONCURRENCY"], "2")?;
    let threads: NonZeroU8 = setting(&["RAILS_MAX_THREADS", "MAX_THREADS"], "5")?;
    let port = setting(&["PORT"], if drive.is_some() { "0" } else { "3000" })?;

    let mut family = Family::found()?;
    // For the life of the process, because threads share it.
    let backends: &'static _ =
        Box::leak(Box::new(Backends::open(redis.as_deref(), postgres.as_deref(), &mut family, threads)?));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listener = TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let url = format!("http://{}", listener.local_addr()?);

    // The classic mistake: from here on the master has a connection for its children to inherit.
    let mine = backends.ask("hello from the master").map_err(|error| format!("{backends}: {error}"))?;
    let pid = process::id();
    println!("master {pid}: listening on {url}, {workers} workers x {threads} threads, backend: {backends}");

    if let Some(requests) = drive {
        let clients = u32::from(workers.get()) * u32::from(threads.get());
        family.fork(Role::Driver, |signals| {
            signals.thread_unblock()?;
            let master = Answer { pid: pid.into(), thread: 0, connections: mine.clone() };
            let good = drive::drive(&url, requests.get(), clients.min(64), &master, &backends.labels());
            signals.thread_block()?;
            kill(getppid(), Signal::SIGTERM)?; // It has seen enough.
            Ok(good)
        })?;
    }
    let cluster = Builder::default().workers(workers.get().into()).threads(threads.get().into()).listener(listener);
    // And what the workers do about it: nothing.
    cluster.worker_shutdown_timeout(Duration::from_secs(10)).run(|worker| {
        server::serve(worker, backends).map_err(|error| error.to_string())?;
        backends.close();
        Ok::<_, String>(())
    })?;

    // A drive has shown it, or not.
    let mut good = family.end(Role::Driver)?;
    if drive.is_some() {
        give_up_after(Duration::from_secs(15));
        let again = backends.ask("hello again from the master");
        good &= matches!(&again, Ok(connections) if *connections == mine);
        let had = backends.list(&mine);
        match again {
            Ok(connections) if connections == mine => println!("the master still has its {had}"),
            Ok(others) => println!("THE MASTER LOST its {had} and had to open {}", backends.list(&others)),
            Err(error) => println!("THE MASTER LOST its {had}: {error}"),
        }
    }
    // The embedded backend knows who wrote on which connection, and has a verdict of its own.
    good &= family.end(Role::Backend)?;
    Ok(u8::from(!good))
}

/// With the protection off the master may wait for an answer that another process has read.
fn give_up_after(time: Duration) {
    thread::spawn(move || {
        thread::sleep(time);
        println!("THE MASTER HANGS and is ended");
        process::exit(1);
    });
}

/// What the first of these environment variables says that says anything.
fn setting<T: FromStr<Err: Error>>(names: &[&str], default: &str) -> Result<T> {
    let said = names.iter().map(|name| (*name, env::var(name).unwrap_or_default()));
    let (name, text) = said.into_iter().find(|(_, text)| !text.is_empty()).unwrap_or(("default", default.into()));
    text.parse().map_err(|error| format!("{name}={text}: {error}").into())
}

/// The exit code of a process: 2, after one line, for an error.
fn report(outcome: Result<u8>) -> u8 {
    outcome.unwrap_or_else(|error| {
        eprintln!("prefork_server {}: {error}", process::id());
        2
    })
}
