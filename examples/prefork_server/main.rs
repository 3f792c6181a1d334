//! A prefork web server, and one pool value for all of its processes.
//!
//! The master opens the pool and uses it: the classic mistake, because each worker inherits that connection. Then it
//! forks, and the threads of the workers query through the very same `Pool`. There is no `on_worker_boot`.
//!
//! ```text
//! cargo run --release --example prefork_server                                  # then: curl http://127.0.0.1:3000
//! cargo run --release --example prefork_server -- --drive 2000                  # who used which connection
//! cargo run --release --example prefork_server -- --drive 2000 --unsafe-share   # the mess without forksafe
//! ```

mod backend;
mod drive;
mod family;

use backend::Backend;
use family::{Family, Role};
use nix::sys::signal::{SigSet, Signal::SIGCHLD};
use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::num::{NonZeroU8, NonZeroU32};
use std::process::{self, ExitCode};
use std::str::FromStr;
use std::time::Duration;
use std::{env, thread};
use tiny_http::{Response, Server};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
A prefork web server whose workers query through one inherited connection pool.

  --redis URL     query this Redis instead of the embedded backend
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
    let backend = match redis {
        Some(url) => Backend::redis(&url, threads)?,
        None => Backend::embedded(&mut family, threads)?,
    };
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let listener = TcpListener::bind(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let url = format!("http://{}", listener.local_addr()?);

    // The classic mistake: from here on the master has a connection for its children to inherit.
    let mine = backend.ask("hello from the master").map_err(|error| format!("{backend}: {error}"))?;
    let pid = process::id();
    println!("master {pid}: listening on {url}, {workers} workers x {threads} threads, backend: {backend}");

    // And what the workers do about it: nothing.
    let work = |signals: &SigSet| worker(&backend, &listener, threads.get(), signals);
    for _ in 0..workers.get() {
        family.fork(Role::Worker, work)?;
    }
    if let Some(requests) = drive {
        let clients = u32::from(workers.get()) * u32::from(threads.get());
        family.fork(Role::Driver, |signals| {
            signals.thread_unblock()?;
            Ok(drive::drive(&url, requests.get(), clients.min(64), [pid.into(), 0, mine]))
        })?;
    }

    let mut good = drive.is_none(); // A drive has yet to show it.
    'serving: while family.signals.wait()? == SIGCHLD {
        while let Some((child, role, status)) = family.reap()? {
            match role {
                Role::Worker => {
                    eprintln!("master {pid}: worker {child} ended ({status:?}), another takes its place");
                    thread::sleep(Duration::from_millis(100)); // One that cannot live must not become a fork bomb.
                    family.fork(Role::Worker, work)?;
                }
                Role::Driver => {
                    good = family::is_success(status);
                    break 'serving;
                }
                Role::Backend => return Err("the embedded backend ended".into()),
            }
        }
    }

    family.end(Role::Driver)?;
    family.end(Role::Worker)?;
    if drive.is_some() {
        let again = backend.ask("hello again from the master");
        good &= matches!(again, Ok(connection) if connection == mine);
        match again {
            Ok(connection) if connection == mine => println!("the master still has its connection {mine}"),
            Ok(other) => println!("THE MASTER LOST its connection {mine} and had to open {other}"),
            Err(error) => println!("THE MASTER LOST its connection {mine}: {error}"),
        }
    }
    // The embedded backend knows who wrote on which connection, and has a verdict of its own.
    good &= family.end(Role::Backend)?;
    Ok(u8::from(!good))
}

/// A worker: threads that serve HTTP and query through the pool that the master opened.
fn worker(backend: &Backend, listener: &TcpListener, threads: u8, signals: &SigSet) -> Result<u8> {
    // Not before the fork, for a server has threads, which no child would have.
    let server = Server::from_listener(listener.try_clone()?, None).map_err(|error| error as Box<dyn Error>)?;
    thread::scope(|scope| {
        for number in 1..=threads {
            let server = &server;
            scope.spawn(move || serve(server, backend, number));
        }
        let stop = signals.wait();
        (0..threads).for_each(|_| server.unblock());
        stop
    })?;
    backend.close();
    Ok(0)
}

fn serve(server: &Server, backend: &Backend, thread: u8) {
    let pid = process::id();
    for (number, request) in server.incoming_requests().enumerate() {
        // Nobody else ever asks this, so an answer to somebody else is noticed.
        let (status, text) = match backend.ask(&format!("request {number} of thread {thread} of worker {pid}")) {
            Ok(connection) => (200, format!("worker {pid}, thread {thread}, connection {connection}\n")),
            Err(error) => (500, format!("worker {pid}, thread {thread}: {error}\n")),
        };
        let _ = request.respond(Response::from_string(text).with_status_code(status)); // The client may have left.
    }
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
