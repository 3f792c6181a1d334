//! The handler on `forksafe::cluster`, with blocking threads: each talks with one client until that leaves.

use crate::contender::Settings;
use forksafe::Pool;
use forksafe::cluster::{Builder, Stream, Worker, WorkerThread};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// How long a client may rest between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// And when its worker has to end: what is on its way is answered.
const FAREWELL: Duration = Duration::from_secs(1);

/// No request is longer.
const LONGEST: usize = 16 * 1024;

struct App {
    pool: Pool<redis::Client>,
    table: Vec<String>,
    asked: AtomicUsize,
}

pub(crate) fn serve() {
    let Settings { workers, threads, table, redis, address, booted } = Settings::from_env();
    let pool = Pool::builder().max_size(threads as u32).build(redis::Client::open(redis).expect("a url of Redis"));
    let table = (0..table).map(|number| format!("{number:0100}")).collect();
    let app = App { pool: pool.expect("a pool"), table, asked: AtomicUsize::new(0) };
    // The classic mistake.
    app.answer();
    let says_that_it_is_booted = move |_: &Worker| {
        let mut file = OpenOptions::new().append(true).create(true).open(&booted)?;
        file.write_all(b"booted\n")
    };
    let cluster = Builder::default().workers(workers).threads(threads).on_worker_boot(says_that_it_is_booted);
    let ended = cluster.listen_tcp(address.parse::<SocketAddr>().expect("an address")).run(|worker| {
        worker.run_threads(|thread| {
            while let Some(client) = thread.accept() {
                // A client that goes in the middle of it knows why.
                let _ = talk(thread, client, &app);
            }
        });
        io::Result::Ok(())
    });
    ended.expect("a cluster");
}

impl App {
    fn answer(&self) -> String {
        let mut conn = self.pool.get().expect("a connection");
        let text: Option<String> = redis::cmd("GET").arg("key").query(&mut conn).expect("an answer");
        if self.table.is_empty() {
            return text.unwrap_or_default();
        }
        self.table[self.asked.fetch_add(7919, Relaxed) % self.table.len()].clone()
    }
}

/// Answers one client's requests, one after the other.
fn talk(thread: &WorkerThread<'_>, mut client: Stream, app: &App) -> io::Result<()> {
    client.set_write_timeout(Some(KEEP_ALIVE))?;
    let mut received = Vec::with_capacity(LONGEST);
    loop {
        let Some(request) = next_request(thread, &mut client, &mut received)? else { return Ok(()) };
        let text = app.answer();
        let stays = request.stays && !thread.worker().shutdown().is_requested();
        let connection = if stays { "keep-alive" } else { "close" };
        let length = text.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{text}"
        );
        client.write_all(answer.as_bytes())?;
        if !stays {
            return Ok(());
        }
        received.drain(..request.length);
    }
}

struct Request {
    length: usize,
    stays: bool,
}

/// None if the client leaves, or says nothing for too long.
fn next_request(thread: &WorkerThread<'_>, client: &mut Stream, received: &mut Vec<u8>) -> io::Result<Option<Request>> {
    loop {
        if let Some(request) = parse(received)? {
            return Ok(Some(request));
        }
        if !has_come(thread, client)? {
            return Ok(None);
        }
        let before = received.len();
        received.resize(LONGEST, 0);
        let read = client.read(&mut received[before..])?;
        received.truncate(before + read);
        if read == 0 {
            return Ok(None);
        }
    }
}

/// Waits for something from this client; not for long if the worker has to end.
fn has_come(thread: &WorkerThread<'_>, client: &Stream) -> io::Result<bool> {
    let shutdown = thread.worker().shutdown();
    let news = PollFd::new(client.as_fd(), PollFlags::POLLIN);
    if !shutdown.is_requested() {
        let mut waits = [news.clone(), PollFd::new(shutdown.as_fd(), PollFlags::POLLIN)];
        let came = poll(&mut waits, PollTimeout::try_from(KEEP_ALIVE).expect("some seconds"))?;
        if came == 0 || waits[0].any().unwrap_or(true) {
            return Ok(came > 0);
        }
    }
    Ok(poll(&mut [news], PollTimeout::try_from(FAREWELL).expect("a second"))? > 0)
}

fn parse(received: &[u8]) -> io::Result<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let wrong = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let httparse::Status::Complete(length) = request.parse(received).map_err(wrong)? else { return Ok(None) };
    let says_close = |header: &httparse::Header<'_>| {
        header.name.eq_ignore_ascii_case("connection") && header.value.eq_ignore_ascii_case(b"close")
    };
    let stays = request.version == Some(1) && !request.headers.iter().any(says_close);
    Ok(Some(Request { length, stays }))
}
