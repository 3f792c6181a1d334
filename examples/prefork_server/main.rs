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
//!
//! `http://127.0.0.1:3000/status` shows who is at work. What becomes of the workers is the cluster's affair: `kill -USR1 MASTER` replaces them,
//! `kill -USR2 MASTER` the program as well, and with `--control PATH` the same can be had by `prefork_server ctl PATH restart --wait`.

mod backend;
mod drive;
mod family;
mod page;
mod server;

use backend::Backends;
use drive::Answer;
use family::{Family, Role};
use forksafe::Deadline;
use forksafe::cluster::{Builder, Command, Listener};
use forksafe::sizing::Plan;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getppid;
use pico_args::Arguments;
use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
A prefork web server whose workers query through one inherited connection pool.

  --listen WHERE  ADDRESS:PORT or unix:PATH, instead of PORT or beside it; more than once, if need be
  --control PATH  where the master takes commands
  --redis URL     query this Redis instead of the embedded backend
  --postgres URL  query this PostgreSQL instead; with --redis, both for each request
  --drive N       send N requests to itself, show who used which connection, and exit: 0, or 1 if one was shared
  --unsafe-share  turn the protection off, to watch the mess that it prevents

  prefork_server ctl PATH status | restart | scale N | stop   tells the master at that control socket
    --wait                                                    answers when it is done

Environment:
  WEB_CONCURRENCY                   worker processes, or auto (2)
  RAILS_MAX_THREADS or MAX_THREADS  threads of each worker (5)
  PORT                              where to listen on all addresses, 0 for any (3000 on 127.0.0.1, with --drive any there)
";

fn main() -> ExitCode {
    let mut args = Arguments::from_env();
    if args.contains(["-h", "--help"]) {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let outcome = match args.subcommand() {
        Ok(Some(name)) if name == "ctl" => tell_master(args),
        Ok(Some(unknown)) => Err(unknown_argument(unknown)),
        Ok(None) => be_master(args),
        Err(error) => Err(error.into()),
    };
    ExitCode::from(report(outcome))
}

fn be_master(mut args: Arguments) -> Result<u8> {
    let redis: Option<String> = args.opt_value_from_str("--redis")?;
    let postgres: Option<String> = args.opt_value_from_str("--postgres")?;
    let drive: Option<NonZeroU32> = args.opt_value_from_str("--drive").map_err(|error| format!("--drive: {error}"))?;
    let mut cluster = Builder::from_env()?.worker_shutdown_timeout(Duration::from_secs(10));
    for place in args.values_from_str::<_, String>("--listen")? {
        cluster = match place.strip_prefix("unix:") {
            Some(path) => cluster.listen_unix(path),
            None => {
                cluster.listen_tcp(place.parse::<SocketAddr>().map_err(|error| format!("--listen {place}: {error}"))?)
            }
        };
    }
    if let Some(path) = args.opt_value_from_str::<_, String>("--control")? {
        cluster = cluster.control_socket(path);
    }
    if args.contains("--unsafe-share") {
        forksafe::testing::unsafe_share();
    }
    if let Some(unknown) = args.finish().first() {
        return Err(unknown_argument(unknown.to_string_lossy()));
    }

    let mut family = Family::found()?;
    // For the life of the process, because threads share it.
    let backends: &'static _ = Box::leak(Box::new(Backends::open(
        redis.as_deref(),
        postgres.as_deref(),
        &mut family,
        cluster.threads_of_worker(),
    )?));
    if cluster.bind()?.is_empty() {
        cluster = cluster.listen_tcp(([127, 0, 0, 1], if drive.is_some() { 0 } else { 3000 }));
    }
    let urls = cluster.bind()?.into_iter().map(url).collect::<Vec<_>>();

    // The classic mistake: from here on the master has a connection for its children to inherit.
    let mine = backends.ask("hello from the master").map_err(|error| format!("{backends}: {error}"))?;
    let (pid, plan) = (process::id(), Plan::new().workers(2).with_env()?);
    println!(
        "master {pid}: listening on {}, {} workers x {} threads, backend: {backends}",
        urls.join(" and "),
        plan.workers_of_host(),
        cluster.threads_of_worker()
    );

    if let Some(requests) = drive {
        let url =
            urls.iter().find(|url| url.starts_with("http:")).ok_or("--drive speaks TCP, and nobody listens there")?;
        let clients = plan.parallelism().min(64) as u32;
        family.fork(Role::Driver, |signals| {
            signals.thread_unblock()?;
            let master = Answer { pid: pid.into(), thread: 0, connections: mine.clone() };
            let good = drive::drive(url, requests.get(), clients, &master, &backends.labels());
            signals.thread_block()?;
            kill(getppid(), Signal::SIGTERM)?; // It has seen enough.
            Ok(good)
        })?;
    }
    // And what the workers do about it: nothing.
    cluster.run(|worker| {
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

fn tell_master(mut args: Arguments) -> Result<u8> {
    let wait = args.contains("--wait");
    let words = args.finish().into_iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
    let (path, words) = words.split_first().ok_or("ctl: which master? PATH is what its --control says")?;
    let command: Command = words.join(" ").parse()?;
    let patience = Duration::from_secs(if wait { 300 } else { 10 });
    println!("{}", command.send(path, wait, Deadline::after(patience))?);
    Ok(0)
}

/// For a client on this machine.
fn url(listener: &Listener) -> String {
    match listener {
        Listener::Tcp(listener) => match listener.local_addr() {
            Ok(address) if address.ip().is_unspecified() => {
                format!("http://{}:{}", Ipv4Addr::LOCALHOST, address.port())
            }
            Ok(address) => format!("http://{address}"),
            Err(error) => format!("http://?/ ({error})"),
        },
        other => other.to_string(),
    }
}

fn unknown_argument(what: impl std::fmt::Debug) -> Box<dyn Error> {
    format!("what is {what:?}? --help tells what there is").into()
}

/// The exit code of a process: 2, after one line, for an error.
fn report(outcome: Result<u8>) -> u8 {
    outcome.unwrap_or_else(|error| {
        eprintln!("prefork_server {}: {error}", process::id());
        2
    })
}
