//! The smallest server on `forksafe::cluster`: everything that a master can be told, and a client can watch.
//!
//! ```text
//! cargo run --example cluster -- serve --tcp 127.0.0.1:3000 --control /tmp/cluster.sock
//! curl http://127.0.0.1:3000/                                      # who answers
//! curl http://127.0.0.1:3000/sleep/5000                            # takes five seconds
//! cargo run --example cluster -- ctl /tmp/cluster.sock status
//! cargo run --example cluster -- ctl /tmp/cluster.sock restart --wait
//! kill -USR2 MASTER                                                # becomes the program that lies there now
//! ```

use forksafe::Deadline;
use forksafe::cluster::{Builder, Command, Stream, Worker};
use std::error::Error;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

const USAGE: &str = "\
A server whose answer to / says who answers. /sleep/N takes N milliseconds, /hang never ends, /panic panics.

  cluster serve
    --tcp ADDRESS        listens there; --unix PATH, --systemd (what it passes)
    --control PATH       where the master answers
    --max-requests N     replaces a worker after N requests, or up to half as many more
    --max-memory BYTES   replaces a worker that has more for itself
    --surge N            so many more workers in a restart (1)
    --timeout SECONDS    for one request (60)
    --shutdown SECONDS   to finish, when told to end (30)
    --backtrace          a thread that takes longer says where it is, before its worker is killed
    --fail               no worker comes to serve, to see what becomes of it
  cluster ctl PATH status | restart | scale N | stop
    --wait               answers when it is done

Environment: WEB_CONCURRENCY, RAILS_MAX_THREADS, RAILS_MIN_THREADS, PORT
";

fn main() -> ExitCode {
    let mut args = pico_args::Arguments::from_env();
    let outcome = match args.subcommand() {
        _ if args.contains(["-h", "--help"]) => Err(USAGE.into()),
        Ok(Some(name)) if name == "serve" => serve(args),
        Ok(Some(name)) if name == "ctl" => control(args),
        _ => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(mut args: pico_args::Arguments) -> Result<(), Box<dyn Error>> {
    let mut cluster = Builder::from_env()?;
    for address in args.values_from_str::<_, std::net::SocketAddr>("--tcp")? {
        cluster = cluster.listen_tcp(address);
    }
    for path in args.values_from_str::<_, String>("--unix")? {
        cluster = cluster.listen_unix(path);
    }
    if args.contains("--systemd") {
        cluster = cluster.listen_systemd(None);
    }
    if let Some(path) = args.opt_value_from_str::<_, String>("--control")? {
        cluster = cluster.control_socket(path);
    }
    if let Some(requests) = args.opt_value_from_str::<_, u64>("--max-requests")? {
        cluster = cluster.max_requests(requests, requests / 2);
    }
    if let Some(bytes) = args.opt_value_from_str("--max-memory")? {
        cluster = cluster.max_memory(bytes);
    }
    if let Some(workers) = args.opt_value_from_str("--surge")? {
        cluster = cluster.max_surge(workers);
    }
    if let Some(seconds) = args.opt_value_from_str("--timeout")? {
        cluster = cluster.worker_timeout(Duration::from_secs(seconds));
    }
    if let Some(seconds) = args.opt_value_from_str("--shutdown")? {
        cluster = cluster.worker_shutdown_timeout(Duration::from_secs(seconds));
    }
    cluster = cluster.backtrace_of_wedged(args.contains("--backtrace"));
    let fails = args.contains("--fail");
    if let Some(unknown) = args.finish().first() {
        return Err(format!("what is {unknown:?}?\n{USAGE}").into());
    }
    let listeners = cluster.bind()?.iter().map(ToString::to_string).collect::<Vec<_>>();
    println!("master {}: listening on {}", process::id(), listeners.join(", "));
    let boot = move |_: &Worker| if fails { Err("it fails, as it was told to") } else { Ok(()) };
    cluster.on_worker_boot(boot).run(|worker| {
        worker.run_threads(|thread| {
            while let Some(client) = thread.accept() {
                let _ = answer(client, worker); // Who went away is not waited for.
            }
        });
        io::Result::Ok(())
    })?;
    println!("master {}: has ended", process::id());
    Ok(())
}

fn answer(client: Stream, worker: &Worker) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    client.set_write_timeout(Some(Duration::from_secs(10)))?;
    let mut client = BufReader::new(client);
    let mut request = String::new();
    client.read_line(&mut request)?;
    let mut header = String::new();
    while client.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    match path.split('/').collect::<Vec<_>>()[..] {
        [_, "sleep", millis] => thread::sleep(Duration::from_millis(millis.parse().unwrap_or(0))),
        [_, "hang"] => hang(),
        [_, "panic"] => panic!("as it was asked to"),
        _ => {}
    }
    let body = format!("worker {} process {}\n", worker.index(), process::id());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    write!(client.get_mut(), "{head}\r\n{body}")
}

#[inline(never)]
fn hang() {
    loop {
        thread::park();
    }
}

fn control(mut args: pico_args::Arguments) -> Result<(), Box<dyn Error>> {
    let wait = args.contains("--wait");
    let words = args.finish().into_iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
    let (path, words) = words.split_first().ok_or(USAGE)?;
    let command: Command = words.join(" ").parse()?;
    let patience = Deadline::after(Duration::from_secs(if wait { 300 } else { 10 }));
    println!("{}", command.send(path, wait, patience)?);
    Ok(())
}
