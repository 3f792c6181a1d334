//! A tap on the wire to a real server: what travels each way is written down and passed on.

use super::relay::{Pace, Relay, State};
use super::settle;
use super::stream::{Address, Listener, Stream};
use parking_lot::MutexGuard;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

/// Stands before a server and writes down what travels on each connection. It can also behave as bad networks do: fall
/// silent ([`freeze`](Self::freeze)), drip, and lead to another server.
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
    /// Open until that thread ends.
    listener: RawFd,
    relay: Arc<Relay>,
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
    /// When the tap accepted it.
    pub accepted_at: Option<Instant>,
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
        let listening = match server {
            Address::Tcp(_) => Listener::tcp().expect("a free loopback port"),
            Address::Unix(_) => Listener::unix().expect("a socket in the folder for temporary files"),
        };
        Self::start(listening, server)
    }

    /// Listens on this address, for a server that has to have it: the second address of a host, say.
    ///
    /// # Panics
    ///
    /// When it cannot listen.
    #[track_caller]
    pub fn at(here: SocketAddr, server: impl Into<Address>) -> Self {
        let listening = Listener::tcp_at(here).unwrap_or_else(|error| panic!("cannot listen on {here}: {error}"));
        Self::start(listening, server.into())
    }

    fn start((listener, address): (Listener, Address), server: Address) -> Self {
        let relay = Arc::new(Relay::new(server));
        let serves = Arc::clone(&relay);
        let (attends, listens) = (listener.as_raw_fd(), listener);
        thread::spawn(move || serves.serve(&listens));
        Self { address, pid: std::process::id(), listener: attends, relay }
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
        self.settled().relayed.clone()
    }

    /// The state of things when all that was written before the call has come through.
    #[track_caller]
    fn settled(&self) -> MutexGuard<'_, State> {
        settle::settled(&self.address, || self.relay.state.lock(), |state| (state.sources(), self.listener))
    }

    /// Waits until what has travelled satisfies `enough`.
    ///
    /// # Panics
    ///
    /// When that takes longer than the kit's [patience](super::patience), with what has travelled.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut enough: impl FnMut(&BTreeMap<u64, Relayed>) -> bool) {
        let until = Instant::now() + super::patience();
        let mut state = self.relay.state.lock();
        while !enough(&state.relayed) {
            let late = self.relay.changed.wait_until(&mut state, until).timed_out();
            let relayed = &state.relayed;
            assert!(!late || enough(relayed), "the tap waited in vain until {what}; it has seen {relayed:#?}");
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

    /// The connections that there are fall silent, as if a firewall had forgotten them: what is written on them is
    /// swallowed (and written down), no end is passed on, and nothing is closed. New ones work.
    ///
    /// ```
    /// use forksafe::testing::{Stream, Tap, Witness, WitnessClient};
    /// use std::io::{Read, Write};
    /// use std::time::Duration;
    ///
    /// let witness = Witness::start();
    /// let tap = Tap::before(witness.address());
    /// let mut stream = Stream::connect(tap.address())?;
    /// tap.freeze();
    /// stream.write_all(WitnessClient::frame("is anybody there").as_bytes())?;
    /// stream.set_read_timeout(Some(Duration::from_millis(20)))?;
    /// assert!(stream.read(&mut [0]).is_err(), "no answer, and no end");
    /// # Ok::<_, std::io::Error>(())
    /// ```
    ///
    /// # Panics
    ///
    /// As [`connections`](Self::connections).
    #[track_caller]
    pub fn freeze(&self) {
        self.settled().freeze();
    }

    /// The connections that there are end, for the client and for the server. New ones work.
    ///
    /// # Panics
    ///
    /// As [`connections`](Self::connections).
    #[track_caller]
    pub fn cut(&self) {
        self.settled().cut();
    }

    /// New connections go to another server. Those that there are stay where they are.
    ///
    /// # Panics
    ///
    /// As [`connections`](Self::connections).
    #[track_caller]
    pub fn retarget(&self, server: impl Into<Address>) {
        self.settled().server = server.into();
    }

    /// From here on what the server says comes so much later. It replaces [`split_replies`](Self::split_replies) and
    /// [`drip`](Self::drip), as they replace it. `Duration::ZERO` undoes all three.
    pub fn slow(&self, delay: Duration) {
        self.pace(Pace { at_once: 0, piece: usize::MAX, pause: delay });
    }

    /// From here on what the server says at a time comes in two parts: `at` bytes at once, the rest after a pause.
    pub fn split_replies(&self, at: usize, pause: Duration) {
        self.pace(Pace { at_once: at, piece: usize::MAX, pause });
    }

    /// From here on what the server says comes in pieces of so many bytes, with a pause after each.
    ///
    /// # Panics
    ///
    /// When a piece has no bytes.
    pub fn drip(&self, piece: usize, pause: Duration) {
        assert!(piece > 0, "a drop has at least one byte");
        self.pace(Pace { at_once: piece, piece, pause });
    }

    /// What is already on its way keeps its pace.
    fn pace(&self, pace: Pace) {
        self.relay.state.lock().pace = pace;
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        self.relay.stopping.store(true, Relaxed);
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
