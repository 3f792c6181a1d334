//! A tap on the wire to a real server: what travels each way is written down and passed on.

use super::sockets;
use super::stream::{Address, Listener, Stream, own};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// Stands before a server and writes down what travels on each connection.
///
/// It knows no protocol, so it serves before any server, and with TLS as well. That a child wrote nothing on its parent's
/// connections is shown for the real thing:
///
/// ```
/// use forksafe::testing::{self, PrivateRedis, Tap};
/// use forksafe::Pool;
/// use std::net::SocketAddr;
///
/// let server = PrivateRedis::start();
/// let tap = Tap::before(server.address().parse::<SocketAddr>()?);
/// let pool = Pool::new(redis::Client::open(format!("redis://{}/", tap.address()))?)?;
/// let guard = pool.get()?;
/// tap.assert_untouched(|| testing::child(|| drop(guard)).join());
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tap {
    address: Address,
    /// Whose thread serves it. A child that drops its copy ends nothing.
    pid: u32,
    book: Arc<Book>,
}

/// What travelled on one connection.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relayed {
    /// What the client wrote.
    pub sent: Vec<u8>,
    /// What the server wrote.
    pub received: Vec<u8>,
    /// Whether the client has ended its part: no process holds its socket any more, or one has shut it down.
    pub client_ended: bool,
    /// Whether the server has ended its part.
    pub server_ended: bool,
}

/// parking_lot, as in the witness: no child ever comes to these locks. The thread reads only with `seen` locked, so
/// that what it has read is written down for whoever locks it next.
#[derive(Debug, Default)]
struct Book {
    seen: Mutex<Notes>,
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Debug, Default)]
struct Notes {
    relayed: BTreeMap<u64, Relayed>,
    /// Where there may be something to read, and the listener.
    listens_to: Vec<RawFd>,
}

impl Tap {
    /// Listens on a free loopback port, or for a unix socket on another one, and passes on to `server`.
    ///
    /// # Panics
    ///
    /// When it cannot listen.
    #[track_caller]
    pub fn before(server: impl Into<Address>) -> Self {
        let server = server.into();
        let (listener, address) = match server {
            Address::Tcp(_) => Listener::tcp().expect("a free loopback port"),
            Address::Unix(_) => Listener::unix().expect("a socket in the folder for temporary files"),
        };
        let book = Arc::new(Book::default());
        book.seen.lock().listens_to.push(listener.as_raw_fd());
        let writes = Arc::clone(&book);
        thread::spawn(move || Relay { listener, server, writes, wires: Vec::new() }.serve());
        Self { address, pid: std::process::id(), book }
    }

    /// Where clients connect to, instead of to the server.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What travelled on each connection, by its number, 1 being the first: all that was written before the call.
    ///
    /// # Panics
    ///
    /// When that does not come through within the kit's [patience](super::patience).
    #[track_caller]
    pub fn connections(&self) -> BTreeMap<u64, Relayed> {
        let until = Instant::now() + super::patience();
        loop {
            // The network first: what it has delivered is waiting to be read, and that is looked at next.
            let is_delivered = match &self.address {
                Address::Tcp(address) => sockets::all_is_delivered_to(*address),
                Address::Unix(_) => true,
            };
            let seen = self.book.seen.lock();
            if is_delivered && nothing_to_read(&seen.listens_to) {
                return seen.relayed.clone();
            }
            drop(seen);
            assert!(Instant::now() < until, "bytes are on their way to {} for ever", self.address);
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits until what has travelled satisfies `enough`.
    ///
    /// # Panics
    ///
    /// When that takes longer than the kit's [patience](super::patience), with what has travelled.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut enough: impl FnMut(&BTreeMap<u64, Relayed>) -> bool) {
        let until = Instant::now() + super::patience();
        let mut seen = self.book.seen.lock();
        while !enough(&seen.relayed) {
            let late = self.book.changed.wait_until(&mut seen, until).timed_out();
            assert!(
                !late || enough(&seen.relayed),
                "the tap waited in vain until {what}; it has seen {:#?}",
                seen.relayed
            );
        }
    }

    /// Runs `body` and asserts that meanwhile nothing was written on the connections that there were before, and that none
    /// of them was ended by its client. New ones may come and go.
    ///
    /// # Panics
    ///
    /// When something was, with the connection and the bytes.
    #[track_caller]
    pub fn assert_untouched<R>(&self, body: impl FnOnce() -> R) -> R {
        let before = self.connections();
        let result = body();
        let after = self.connections();
        let changes: Vec<_> = before.iter().flat_map(|(id, before)| after[id].since(before, *id)).collect();
        assert!(changes.is_empty(), "connections were touched that should not have been:\n  {}", changes.join("\n  "));
        result
    }
}

impl Drop for Tap {
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

impl Relayed {
    fn since(&self, before: &Self, id: u64) -> Vec<String> {
        let mut changes = Vec::new();
        let news = &self.sent[before.sent.len()..];
        if !news.is_empty() {
            changes.push(format!("on connection {id} {} bytes were sent to the server: {}", news.len(), shown(news)));
        }
        if self.client_ended && !before.client_ended {
            changes.push(format!("connection {id} was ended by its client"));
        }
        changes
    }
}

/// Bytes as text, as far as they are.
impl fmt::Debug for Relayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relayed")
            .field("sent", &format_args!("{} bytes, {}", self.sent.len(), shown(&self.sent)))
            .field("received", &format_args!("{} bytes, {}", self.received.len(), shown(&self.received)))
            .field("client_ended", &self.client_ended)
            .field("server_ended", &self.server_ended)
            .finish()
    }
}

fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let more = if bytes.len() > MOST { "..." } else { "" };
    format!("\"{}\"{more}", bytes[..bytes.len().min(MOST)].escape_ascii())
}

fn pollfd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

fn nothing_to_read(fds: &[RawFd]) -> bool {
    let mut ask: Vec<_> = fds.iter().map(|&fd| pollfd(fd, libc::POLLIN)).collect();
    // SAFETY: the pointer and the length are those of a vector of ours.
    unsafe { libc::poll(ask.as_mut_ptr(), ask.len() as libc::nfds_t, 0) == 0 }
}

/// The one thread of a tap, for the reason that the witness has one.
struct Relay {
    listener: Listener,
    server: Address,
    writes: Arc<Book>,
    wires: Vec<Wire>,
}

/// A connection of a client's and the one to the server that it stands for.
struct Wire {
    id: u64,
    client: Pipe,
    server: Pipe,
}

struct Pipe {
    stream: Stream,
    /// Until its end has been read.
    has_more: bool,
    /// What is still to be written on it.
    unsent: Vec<u8>,
    /// Nothing more will be written on it.
    is_shut: bool,
}

impl Relay {
    fn serve(mut self) {
        let mut next_id = 1;
        while !self.writes.stopping.load(Relaxed) {
            let mut ready = vec![pollfd(self.listener.as_raw_fd(), libc::POLLIN)];
            ready.extend(self.wires.iter().flat_map(|wire| [wire.client.wants(), wire.server.wants()]));
            // SAFETY: the pointer and the length are those of a vector of ours.
            unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, -1) };
            let writes = Arc::clone(&self.writes);
            let mut seen = writes.seen.lock();
            for wire in &mut self.wires {
                wire.relay(&mut seen);
            }
            if ready[0].revents != 0 {
                self.admit(next_id, &mut seen);
                next_id += 1;
            }
            self.wires.retain(|wire| !wire.is_over());
            let pipes = self.wires.iter().flat_map(|wire| [&wire.client, &wire.server]);
            let fds = pipes.filter(|pipe| pipe.has_more).map(|pipe| pipe.stream.as_raw_fd());
            seen.listens_to = fds.chain([self.listener.as_raw_fd()]).collect();
            drop(seen);
            self.writes.changed.notify_all();
        }
        // Whoever still has a copy of these must not keep the server waiting.
        for wire in &self.wires {
            wire.client.end();
            wire.server.end();
        }
        self.writes.seen.lock().listens_to.clear();
    }

    fn admit(&mut self, id: u64, seen: &mut Notes) {
        let Ok(client) = self.listener.accept() else { return };
        let relayed = seen.relayed.entry(id).or_default();
        let connected = Stream::connect(&self.server).and_then(|server| {
            own(&server);
            client.set_nonblocking()?;
            server.set_nonblocking()?;
            Ok(server)
        });
        match connected {
            Ok(server) => self.wires.push(Wire { id, client: Pipe::new(client), server: Pipe::new(server) }),
            // The client is told by the end of its connection.
            Err(_) => relayed.server_ended = true,
        }
    }
}

impl Wire {
    /// Does what can be done without waiting.
    fn relay(&mut self, seen: &mut Notes) {
        let relayed = seen.relayed.entry(self.id).or_default();
        relayed.client_ended |= self.client.read_into(&mut relayed.sent, &mut self.server.unsent);
        relayed.server_ended |= self.server.read_into(&mut relayed.received, &mut self.client.unsent);
        self.server.write(self.client.has_more);
        self.client.write(self.server.has_more);
    }

    /// Both have been told the end, whoever holds copies of their sockets.
    fn is_over(&self) -> bool {
        self.client.is_shut && self.server.is_shut
    }
}

impl Pipe {
    fn new(stream: Stream) -> Self {
        Self { stream, has_more: true, unsent: Vec::new(), is_shut: false }
    }

    fn wants(&self) -> libc::pollfd {
        let read = if self.has_more { libc::POLLIN } else { 0 };
        let write = if self.unsent.is_empty() { 0 } else { libc::POLLOUT };
        // Of one that nothing is wanted of, its being hung up is no news.
        pollfd(if read | write == 0 { -1 } else { self.stream.as_raw_fd() }, read | write)
    }

    /// Reads what is there, into both. True at the end of the stream.
    fn read_into(&mut self, record: &mut Vec<u8>, pass_on: &mut Vec<u8>) -> bool {
        let mut bytes = [0; 16384];
        while self.has_more {
            match self.stream.read(&mut bytes) {
                Ok(n) if n > 0 => {
                    record.extend_from_slice(&bytes[..n]);
                    pass_on.extend_from_slice(&bytes[..n]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stream.acknowledge();
                    return false;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A reset is an end, too.
                _ => self.has_more = false,
            }
        }
        true
    }

    /// Writes what there is room for; after the last of it, tells the end. `more`: whether more will come.
    fn write(&mut self, more: bool) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It hears nothing any more. What is still written for it is written down, and that is all.
                Err(_) => self.unsent.clear(),
            }
        }
        if !more && !self.is_shut {
            self.is_shut = true;
            let _: io::Result<()> = self.stream.shutdown(Shutdown::Write);
        }
    }

    fn end(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
