//! Many askers of a web application at a time.

use crate::host::HANG;
use crate::net::Net;
use crate::tally::Tally;
use forksafe::testing::patience;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const ASKERS: usize = 8;
const QUESTIONS: usize = 200;
/// Of one that does not go wrong although it has no net.
const MOST: usize = 2000;

/// What `http://127.0.0.1:PORT/PATH` has.
pub(crate) fn get(port: u16, path: &str, at_most: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(at_most))?;
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let is_good = head.split(' ').nth(1) == Some("200");
    if is_good { Ok(body.to_owned()) } else { Err(io::Error::other(answer)) }
}

/// Asks an application's client: what there is to ask, and on until every one of its workers has answered. Without the net until it
/// has gone wrong, if it does.
pub(crate) fn ask(net: Net, port: u16, client: &str, workers: usize) -> Tally {
    let (tally, next) = (Mutex::new(Tally::default()), AtomicUsize::new(0));
    let at_most = if net == Net::On { patience() } else { HANG };
    let until = Instant::now() + patience();
    let is_enough = |question| {
        let tally = tally.lock().expect("nobody panics here");
        let is_through = question >= QUESTIONS && tally.children() >= workers;
        match net {
            Net::On => is_through || Instant::now() > until,
            Net::Off => tally.is_bad() || question >= MOST,
        }
    };
    let asker = || {
        loop {
            let question = next.fetch_add(1, Relaxed);
            if is_enough(question) {
                return;
            }
            let word = format!("{client}-{question}");
            let answer = get(port, &format!("{client}/{word}"), at_most).ok();
            tally.lock().expect("nobody panics here").add(&word, answer.as_deref());
        }
    };
    thread::scope(|scope| (0..ASKERS).for_each(|_| drop(scope.spawn(asker))));
    tally.into_inner().expect("nobody panics here")
}
