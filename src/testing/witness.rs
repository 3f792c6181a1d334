//! A server that knows which process wrote each byte.
//!
//! Its protocol is a line each way. The client writes who it is and a text with its length, the server answers with the
//! number of the connection and the same text. So a connection that two processes use is seen by the server, and an
//! answer that was meant for somebody else is seen by the client.

use super::stream::{Address, Listener, Stream};
use super::witness_client::{GOODBYE, WitnessManager, named_in, read_frame};
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// A server on a free loopback port, or on a unix socket, that judges every connection made to it.
///
/// ```
/// use forksafe::{Pool, testing::{self, Witness}};
///
/// let witness = Witness::start();
/// let pool = Pool::new(witness.manager())?;
/// let here = pool.get()?.ask("hello")?.connection;
/// let there = testing::child(|| pool.get().unwrap().ask("hello").unwrap().connection).join();
/// assert_ne!(here, there);
/// assert_eq!(witness.violations(), Vec::<String>::new());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Witness {
    address: Address,
    /// Whose threads serve it. A child that drops its copy ends nothing.
    pid: u32,
    book: Arc<Book>,
}

/// parking_lot is safe here: only threads of the witness and of the process that started it ever come to these locks,
/// never a child.
#[derive(Debug, Default)]
struct Book {
    seen: Mutex<BTreeMap<u64, Seen>>,
    changed: Condvar,
    stopping: AtomicBool,
}

/// What the witness has seen of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    /// The processes that wrote on it, by pid and time of start; the first is who opened it, for all that is known.
    pub writers: Vec<String>,
    /// How many bytes each of them wrote. Those of garbled lines are nobody's.
    pub bytes: BTreeMap<String, usize>,
    /// How many lines came in.
    pub lines: usize,
    /// Who said goodbye on it.
    pub goodbye: Option<String>,
    /// Whether its end has been seen.
    pub ended: bool,
    /// When its end has been seen.
    pub ended_at: Option<Instant>,
    /// Lines that no client writes: two processes wrote into one another.
    pub garbled: Vec<String>,
}

impl Witness {
    /// Starts the server on a thread of this process.
    ///
    /// # Panics
    ///
    /// When there is no loopback port to be had.
    #[track_caller]
    pub fn start() -> Self {
        Self::serve(Listener::tcp().expect("a free loopback port"))
    }

    /// The same on a unix socket, in the folder for temporary files.
    ///
    /// # Panics
    ///
    /// When there can be no socket there.
    #[track_caller]
    pub fn start_unix() -> Self {
        Self::serve(Listener::unix().expect("a socket in the folder for temporary files"))
    }

    fn serve((listener, address): (Listener, Address)) -> Self {
        let book = Arc::new(Book::default());
        let writes = Arc::clone(&book);
        thread::spawn(move || Desk { listener, writes, clients: Vec::new() }.serve());
        Self { address, pid: std::process::id(), book }
    }

    /// Where it listens.
    ///
    /// # Panics
    ///
    /// When that is a unix socket: [`place`](Self::place) tells either.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        match &self.address {
            Address::Tcp(address) => *address,
            Address::Unix(path) => panic!("this witness listens on {}: ask for its place", path.display()),
        }
    }

    /// Where it listens, on whatever.
    pub fn place(&self) -> &Address {
        &self.address
    }

    /// For a pool of connections to it.
    pub fn manager(&self) -> WitnessManager {
        WitnessManager::to(self.address.clone())
    }

    /// What it has seen, by the number of the connection.
    pub fn connections(&self) -> BTreeMap<u64, Seen> {
        self.book.seen.lock().clone()
    }

    /// Waits until what it has seen satisfies `enough`.
    ///
    /// # Panics
    ///
    /// When that takes longer than the kit's [patience](super::patience), with what it has seen.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut enough: impl FnMut(&BTreeMap<u64, Seen>) -> bool) {
        let until = Instant::now() + super::patience();
        let mut seen = self.book.seen.lock();
        while !enough(&seen) {
            let late = self.book.changed.wait_until(&mut seen, until).timed_out();
            assert!(!late || enough(&seen), "the witness waited in vain until {what}; it has seen {seen:#?}");
        }
    }

    /// What must never be: a connection on which two processes wrote, a goodbye from one that did not open it, lines
    /// that were written into one another. One sentence each.
    pub fn violations(&self) -> Vec<String> {
        self.connections().iter().flat_map(|(id, seen)| seen.violations(*id)).collect()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        self.book.stopping.store(true, Relaxed);
        // Wakes the one that accepts.
        let _ = Stream::connect(&self.address);
        if let Address::Unix(path) = &self.address {
            let _ = fs::remove_file(path);
        }
    }
}

impl Seen {
    fn violations(&self, id: u64) -> Vec<String> {
        let mut all = Vec::new();
        if self.writers.len() > 1 {
            all.push(format!(
                "connection {id} carried the words of {} processes: {:?}",
                self.writers.len(),
                self.writers
            ));
        }
        if let Some(stranger) = &self.goodbye
            && self.writers.first().is_some_and(|owner| owner != stranger)
        {
            all.push(format!("process {stranger} said goodbye on connection {id} of {:?}", self.writers));
        }
        all.extend(self.garbled.iter().map(|line| match &named_in(line)[..] {
            [one, .., other] => format!("connection {id} carried interleaved lines of {one} and {other}: {line:?}"),
            _ => format!("connection {id} carried a garbled line: {line:?}"),
        }));
        all
    }

    /// The pids of the processes that wrote on it.
    pub fn pids(&self) -> BTreeSet<u32> {
        self.writers.iter().filter_map(|writer| writer.split('.').next()?.parse().ok()).collect()
    }
}

impl Book {
    fn note(&self, id: u64, what: impl FnOnce(&mut Seen)) {
        what(self.seen.lock().entry(id).or_default());
        self.changed.notify_all();
    }

    /// Takes note of a line; returns what to answer.
    fn hear(&self, id: u64, line: &str) -> Option<String> {
        let Some((who, text)) = read_frame(line) else {
            self.note(id, |seen| seen.garbled.push(line.to_owned()));
            return None;
        };
        self.note(id, |seen| {
            if !seen.writers.iter().any(|writer| writer == who) {
                seen.writers.push(who.to_owned());
            }
            seen.lines += 1;
            *seen.bytes.entry(who.to_owned()).or_default() += line.len() + 1;
            if text == GOODBYE {
                seen.goodbye = Some(who.to_owned());
            }
        });
        Some(format!("{id} {text}\n"))
    }
}

/// The one thread of a witness. One for each client would come and go while the tests fork, and the standard library
/// has a lock for that which a child can inherit locked.
struct Desk {
    listener: Listener,
    writes: Arc<Book>,
    clients: Vec<Client>,
}

struct Client {
    id: u64,
    stream: Stream,
    /// The beginning of a line.
    heard: Vec<u8>,
}

impl Desk {
    fn serve(mut self) {
        for next_id in 1.. {
            // Until somebody knocks, those who are in are listened to.
            while !self.attend() {}
            if self.writes.stopping.load(Relaxed) {
                return;
            }
            let Ok(stream) = self.listener.accept() else { continue };
            // One that asks and does not read its answers must not hold up the others.
            let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
            self.writes.note(next_id, |_| {});
            self.clients.push(Client { id: next_id, stream, heard: Vec::new() });
        }
    }

    /// Waits until something happens, and hears everybody who has something to say. True if somebody knocks.
    fn attend(&mut self) -> bool {
        let ask = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let doors = self.clients.iter().map(|client| client.stream.as_raw_fd());
        let mut ready: Vec<libc::pollfd> = doors.chain([self.listener.as_raw_fd()]).map(ask).collect();
        // SAFETY: the pointer and the length are those of a slice of ours.
        unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, -1) };
        let knocks = ready.pop().is_some_and(|door| door.revents != 0);
        let mut ready = ready.into_iter().map(|door| door.revents != 0);
        self.clients.retain_mut(|client| {
            let goes_on = !ready.next().unwrap_or_default() || client.listen(&self.writes).is_ok_and(|more| more);
            if !goes_on {
                // A child that was forked meanwhile has a copy, which must not keep the client waiting.
                let _ = client.stream.shutdown(Shutdown::Both);
                self.writes.note(client.id, |seen| {
                    seen.ended = true;
                    seen.ended_at = Some(Instant::now());
                });
            }
            goes_on
        });
        knocks
    }
}

impl Client {
    /// Reads what is there and answers it. False at the end of the stream.
    fn listen(&mut self, writes: &Book) -> io::Result<bool> {
        let mut more = [0; 4096];
        let n = self.stream.read(&mut more)?;
        self.heard.extend_from_slice(&more[..n]);
        while let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            if let Some(answer) = writes.hear(self.id, String::from_utf8_lossy(&line).trim_end()) {
                self.stream.write_all(answer.as_bytes())?;
            }
        }
        Ok(n > 0)
    }
}
