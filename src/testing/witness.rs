//! A server that knows which process wrote each byte.
//!
//! Its protocol is a line each way. The client writes who it is and a text, the server answers with the number of the
//! connection and the same text. So a connection that two processes use is seen by the server, and an answer that was
//! meant for somebody else is seen by the client.

use super::proc;
use crate::ManageConnection;
use crate::fork::Descriptors;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// A server on a free loopback port that judges every connection made to it.
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
    address: SocketAddr,
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
    /// How many lines came in.
    pub lines: usize,
    /// Who said goodbye on it.
    pub goodbye: Option<String>,
    /// Whether its end has been seen.
    pub ended: bool,
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
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let address = listener.local_addr().expect("the address just bound");
        let book = Arc::new(Book::default());
        let writes = Arc::clone(&book);
        thread::spawn(move || Desk { listener, writes, clients: Vec::new() }.serve());
        Self { address, book }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For a pool of connections to it.
    pub fn manager(&self) -> WitnessManager {
        WitnessManager(self.address)
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
        self.book.stopping.store(true, Relaxed);
        // Wakes the one that accepts.
        let _ = TcpStream::connect(self.address);
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
        all.extend(self.garbled.iter().map(|line| format!("connection {id} carried a garbled line: {line:?}")));
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
        let words = line.strip_suffix('.').and_then(|line| line.strip_prefix("I am "));
        let Some((who, text)) = words.and_then(|words| words.split_once(": ")) else {
            self.note(id, |seen| seen.garbled.push(line.to_owned()));
            return None;
        };
        self.note(id, |seen| {
            if !seen.writers.iter().any(|writer| writer == who) {
                seen.writers.push(who.to_owned());
            }
            seen.lines += 1;
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
    listener: TcpListener,
    writes: Arc<Book>,
    clients: Vec<Client>,
}

struct Client {
    id: u64,
    stream: TcpStream,
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
            let Ok((stream, _)) = self.listener.accept() else { continue };
            let _ = stream.set_nodelay(true);
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
                self.writes.note(client.id, |seen| seen.ended = true);
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

const GOODBYE: &str = "goodbye";

/// Connects to a [`Witness`]. `connect` already speaks to it, as drivers do, and the client says goodbye when it is
/// dropped, as some drivers do.
#[derive(Clone, Copy, Debug)]
pub struct WitnessManager(SocketAddr);

impl WitnessManager {
    /// Connects to a witness in another process.
    pub fn at(address: SocketAddr) -> Self {
        Self(address)
    }
}

impl ManageConnection for WitnessManager {
    type Connection = WitnessClient;
    type Error = io::Error;

    fn connect(&self) -> io::Result<WitnessClient> {
        WitnessClient::connect(self.0)
    }

    fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
        conn.ask("are you there").map(drop)
    }

    fn has_broken(&self, conn: &mut WitnessClient) -> bool {
        conn.broken
    }

    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        Descriptors::of(conn.stream.get_ref())
    }
}

/// A client of a [`Witness`].
#[derive(Debug)]
pub struct WitnessClient {
    stream: BufReader<TcpStream>,
    broken: bool,
}

/// What the witness answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number that the server gave to the connection.
    pub connection: u64,
    /// The text that was asked.
    pub text: String,
}

impl WitnessClient {
    /// Connects and introduces itself.
    ///
    /// # Errors
    ///
    /// Of the socket.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(super::patience() / 2))?;
        let mut client = Self { stream: BufReader::new(stream), broken: false };
        client.ask("hello")?;
        Ok(client)
    }

    /// Says `text` and returns the answer.
    ///
    /// # Errors
    ///
    /// Of the socket; `InvalidData` for an answer to something else, the garbled conversation of a shared socket.
    pub fn ask(&mut self, text: &str) -> io::Result<Answer> {
        let answer = self.exchange(text);
        self.broken |= answer.is_err();
        answer
    }

    /// The socket, to look at from outside.
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    fn exchange(&mut self, text: &str) -> io::Result<Answer> {
        self.say(text)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer = line.trim_end().split_once(' ').and_then(|(connection, echo)| {
            let connection = connection.parse().ok()?;
            (echo == text).then(|| Answer { connection, text: echo.to_owned() })
        });
        answer.ok_or_else(|| {
            let wrong = format!("asked {text:?} and was answered {:?}", line.trim_end());
            io::Error::new(io::ErrorKind::InvalidData, wrong)
        })
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        let line = format!("I am {}: {text}.\n", proc::name_of_this_process());
        self.stream.get_mut().write_all(line.as_bytes())
    }
}

impl Drop for WitnessClient {
    fn drop(&mut self) {
        let _ = self.say(GOODBYE);
    }
}
