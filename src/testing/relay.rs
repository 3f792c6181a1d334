//! The thread of a tap: it passes on what travels, at the pace that it is told.

use super::settle::Source;
use super::stream::{Address, Listener, Stream, own};
use super::tap::Relayed;
use parking_lot::{Condvar, Mutex};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What a tap and its thread share. parking_lot, as in the witness: no child ever comes to these locks.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) stopping: AtomicBool,
}

/// The thread reads only with this locked, so that what it has read is written down for whoever locks it next. It is also
/// the only one that closes anything.
#[derive(Debug)]
pub(super) struct State {
    pub(super) relayed: BTreeMap<u64, Relayed>,
    /// Where new connections lead.
    pub(super) server: Address,
    /// Of what the servers say.
    pub(super) pace: Pace,
    wires: Vec<Wire>,
}

/// How bytes that are there at the same time are passed on: so many at once, then pieces, with a pause before each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) at_once: usize,
    pub(super) piece: usize,
    pub(super) pause: Duration,
}

impl Pace {
    const FULL: Self = Self { at_once: usize::MAX, piece: usize::MAX, pause: Duration::ZERO };
}

/// A connection of a client's and the one to the server that it stands for.
#[derive(Debug)]
struct Wire {
    id: u64,
    /// The client's address, over tcp.
    from: Option<SocketAddr>,
    client: Pipe,
    server: Pipe,
    /// What is read is written down and goes nowhere.
    is_frozen: bool,
}

#[derive(Debug)]
struct Pipe {
    stream: Stream,
    /// Until its end has been read.
    has_more: bool,
    /// What is still to be written on it.
    unsent: Vec<u8>,
    /// What is to be written on it later, and when.
    held_back: VecDeque<(Instant, Vec<u8>)>,
    /// Nothing more will be written on it.
    is_shut: bool,
}

impl Relay {
    pub(super) fn new(server: Address) -> Self {
        let state = State { relayed: BTreeMap::new(), server, pace: Pace::FULL, wires: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), stopping: AtomicBool::new(false) }
    }

    /// One thread for all connections, for the reason that the witness has one.
    pub(super) fn serve(&self, listener: &Listener) {
        // Kept, as in the witness.
        let mut ready = Vec::new();
        let mut next_id = 1;
        while !self.stopping.load(Relaxed) {
            let wait = {
                let state = self.state.lock();
                ready.clear();
                ready.push(pollfd(listener.as_raw_fd(), libc::POLLIN));
                ready.extend(state.wires.iter().flat_map(|wire| [wire.client.wants(), wire.server.wants()]));
                state.until_next_piece()
            };
            // SAFETY: the pointer and the length are those of a vector of ours. Nobody else closes what is asked about.
            unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, wait) };
            let mut state = self.state.lock();
            state.relay();
            if ready[0].revents != 0 {
                state.admit(next_id, listener);
                next_id += 1;
            }
            drop(state);
            self.changed.notify_all();
        }
        // Whoever still has a copy of these must not keep the server waiting.
        let mut state = self.state.lock();
        state.cut();
        state.wires.clear();
    }
}

impl State {
    fn admit(&mut self, id: u64, listener: &Listener) {
        let Ok(client) = listener.accept() else { return };
        let relayed = self.relayed.entry(id).or_default();
        relayed.accepted_at = Some(Instant::now());
        let connected = Stream::connect(&self.server).and_then(|server| {
            own(&server);
            client.set_nonblocking()?;
            server.set_nonblocking()?;
            Ok(server)
        });
        match connected {
            Ok(server) => {
                let from = client.peer();
                let (client, server) = (Pipe::new(client), Pipe::new(server));
                self.wires.push(Wire { id, from, client, server, is_frozen: false });
            }
            // The client is told by the end of its connection.
            Err(_) => relayed.server_ended = true,
        }
    }

    fn relay(&mut self) {
        for wire in &mut self.wires {
            wire.relay(self.relayed.entry(wire.id).or_default(), self.pace);
        }
        self.wires.retain(|wire| !wire.is_over());
    }

    /// Where there may be something to read.
    pub(super) fn sources(&self) -> Vec<Source> {
        let source =
            |pipe: &Pipe, id, client| pipe.has_more.then_some(Source { id, fd: pipe.stream.as_raw_fd(), client });
        let wires = self.wires.iter();
        wires
            .flat_map(|wire| [source(&wire.client, wire.id, wire.from), source(&wire.server, wire.id, None)])
            .flatten()
            .collect()
    }

    pub(super) fn freeze(&mut self) {
        for wire in &mut self.wires {
            wire.is_frozen = true;
            wire.client.forget_unsent();
            wire.server.forget_unsent();
        }
    }

    /// The thread finds them ended.
    pub(super) fn cut(&mut self) {
        for wire in &mut self.wires {
            wire.is_frozen = false;
            for pipe in [&mut wire.client, &mut wire.server] {
                pipe.forget_unsent();
                let _ = pipe.stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// For `poll`: in milliseconds, -1 for ever.
    fn until_next_piece(&self) -> i32 {
        let first = self.wires.iter().filter_map(|wire| wire.client.held_back.front()).map(|(due, _)| *due).min();
        first.map_or(-1, |due| {
            let left = due.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            left.try_into().unwrap_or(i32::MAX)
        })
    }
}

impl Wire {
    /// Does what can be done without waiting.
    fn relay(&mut self, relayed: &mut Relayed, pace: Pace) {
        let (question, answer) = (self.client.read(), self.server.read());
        relayed.client_ended |= !self.client.has_more;
        relayed.server_ended |= !self.server.has_more;
        relayed.sent.extend_from_slice(&question);
        relayed.received.extend_from_slice(&answer);
        if self.is_frozen {
            return;
        }
        self.server.pass_on(question, Pace::FULL);
        self.client.pass_on(answer, pace);
        self.server.write(self.client.has_more);
        self.client.write(self.server.has_more);
    }

    /// Both have been told the end, or both have said it; whoever holds copies of their sockets.
    fn is_over(&self) -> bool {
        let told = self.client.is_shut && self.server.is_shut;
        told || (self.is_frozen && !self.client.has_more && !self.server.has_more)
    }
}

impl Pipe {
    fn new(stream: Stream) -> Self {
        Self { stream, has_more: true, unsent: Vec::new(), held_back: VecDeque::new(), is_shut: false }
    }

    fn wants(&self) -> libc::pollfd {
        let read = if self.has_more { libc::POLLIN } else { 0 };
        let write = if self.unsent.is_empty() { 0 } else { libc::POLLOUT };
        // Of one that nothing is wanted of, its being hung up is no news.
        pollfd(if read | write == 0 { -1 } else { self.stream.as_raw_fd() }, read | write)
    }

    /// What is there, up to the end of the stream.
    fn read(&mut self) -> Vec<u8> {
        let (mut all, mut bytes) = (Vec::new(), [0; 16384]);
        while self.has_more {
            match self.stream.read(&mut bytes) {
                Ok(n) if n > 0 => all.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stream.acknowledge();
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A reset is an end, too.
                _ => self.has_more = false,
            }
        }
        all
    }

    /// Takes bytes to be written, now or later.
    fn pass_on(&mut self, mut bytes: Vec<u8>, pace: Pace) {
        // Never before what is already waiting.
        let begin = self.held_back.back().map(|(due, _)| *due);
        let at_once = if begin.is_some() { 0 } else { pace.at_once.min(bytes.len()) };
        let mut rest = bytes.split_off(at_once);
        self.unsent.append(&mut bytes);
        let mut due = begin.unwrap_or_else(Instant::now);
        while !rest.is_empty() {
            due += pace.pause;
            let after = rest.split_off(pace.piece.min(rest.len()));
            self.held_back.push_back((due, rest));
            rest = after;
        }
    }

    /// Writes what it is time for and there is room for; after the last of it, tells the end. `more`: whether more will come.
    fn write(&mut self, more: bool) {
        while self.held_back.front().is_some_and(|(due, _)| *due <= Instant::now()) {
            let (_, mut piece) = self.held_back.pop_front().unwrap_or_else(|| unreachable!("there is a first one"));
            self.unsent.append(&mut piece);
        }
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It hears nothing any more. What is still written for it is written down, and that is all.
                Err(_) => self.forget_unsent(),
            }
        }
        if !more && self.held_back.is_empty() && !self.is_shut {
            self.is_shut = true;
            let _: io::Result<()> = self.stream.shutdown(Shutdown::Write);
        }
    }

    fn forget_unsent(&mut self) {
        self.unsent.clear();
        self.held_back.clear();
    }
}

fn pollfd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}
