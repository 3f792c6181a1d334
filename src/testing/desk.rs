//! The thread of a witness: it hears what its clients say, writes it down, and answers.

use super::opener::Openers;
use super::settle::Source;
use super::stream::{Listener, Stream};
use super::witness::Seen;
use super::witness_client::{GOODBYE, read_frame};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

/// What a witness and its thread share.
///
/// parking_lot is safe here: only threads of the witness and of the process that started it ever come to these locks,
/// never a child.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) stopping: AtomicBool,
}

/// The thread reads only with this locked, so that what it has read is written down for whoever locks it next. It is also
/// the only one that closes anything.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) seen: BTreeMap<u64, Seen>,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    id: u64,
    stream: Stream,
    address: Option<SocketAddr>,
    /// The beginning of a line.
    heard: Vec<u8>,
    /// Answers that it has not taken yet.
    unsent: Vec<u8>,
}

impl Desk {
    /// One thread for all clients. One for each would come and go while the tests fork, and the standard library has a
    /// lock for that which a child can inherit locked.
    pub(super) fn serve(&self, listener: &Listener, openers: &Openers) {
        // Kept: a child that is made without fork handlers gets the allocator's locks as they are, so this thread allocates
        // nothing once it has answered.
        let mut ready = Vec::new();
        let mut next_id = 1;
        while !self.stopping.load(Relaxed) {
            {
                let state = self.state.lock();
                ready.clear();
                ready.push(libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 });
                ready.extend(state.clients.iter().map(Client::wants));
                // Room for the next one, too.
                ready.reserve(1);
            }
            // SAFETY: the pointer and the length are those of a vector of ours. Nobody else closes what is asked about.
            unsafe { libc::poll(ready.as_mut_ptr(), ready.len() as libc::nfds_t, -1) };
            let mut state = self.state.lock();
            // First, so that nobody has been able to do much since.
            if ready[0].revents != 0 && state.admit(next_id, listener, openers) {
                next_id += 1;
            }
            state.listen();
            drop(state);
            self.changed.notify_all();
        }
        // Whoever still has a copy of these must not keep a client waiting.
        self.state.lock().clients.drain(..).for_each(|client| _ = client.stream.shutdown(Shutdown::Both));
    }
}

impl State {
    /// Where there may be something to read.
    pub(super) fn sources(&self) -> Vec<Source> {
        let source = |client: &Client| Source { id: client.id, fd: client.stream.as_raw_fd(), client: client.address };
        self.clients.iter().map(source).collect()
    }

    fn admit(&mut self, id: u64, listener: &Listener, openers: &Openers) -> bool {
        let Ok(stream) = listener.accept() else { return false };
        // One that asks and does not read its answers must not hold up the others.
        if stream.set_nonblocking().is_err() {
            return false;
        }
        let opener = openers.of(&stream);
        self.seen.entry(id).or_default().opener = opener;
        let (address, heard, unsent) = (stream.peer(), Vec::new(), Vec::new());
        self.clients.push(Client { id, stream, address, heard, unsent });
        true
    }

    /// Hears all that has come.
    fn listen(&mut self) {
        let seen = &mut self.seen;
        self.clients.retain_mut(|client| {
            let seen = seen.entry(client.id).or_default();
            let goes_on = client.listen(seen);
            if !goes_on {
                // A child that was forked meanwhile has a copy, which must not keep the client waiting.
                let _ = client.stream.shutdown(Shutdown::Both);
                // What has no end by now will have none.
                let rest = mem::take(&mut seen.unfinished);
                seen.garbled.extend(Some(rest).filter(|rest| !rest.is_empty()));
                seen.ended = true;
                seen.ended_at = Some(Instant::now());
            }
            goes_on
        });
    }
}

impl Client {
    fn wants(&self) -> libc::pollfd {
        let write = if self.unsent.is_empty() { 0 } else { libc::POLLOUT };
        libc::pollfd { fd: self.stream.as_raw_fd(), events: libc::POLLIN | write, revents: 0 }
    }

    /// Reads what is there and answers it. False at the end of the stream.
    fn listen(&mut self, seen: &mut Seen) -> bool {
        let (mut more, mut goes_on) = ([0; 4096], true);
        while goes_on {
            match self.stream.read(&mut more) {
                Ok(n) if n > 0 => self.heard.extend_from_slice(&more[..n]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.stream.acknowledge();
                    break;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A reset is an end, too.
                _ => goes_on = false,
            }
        }
        while let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.heard.drain(..=end).collect();
            let answer = seen.hear(String::from_utf8_lossy(&line).trim_end());
            self.unsent.extend(answer.map(|text| format!("{} {text}\n", self.id)).unwrap_or_default().into_bytes());
        }
        seen.unfinished = String::from_utf8_lossy(&self.heard).into_owned();
        self.answer();
        goes_on
    }

    fn answer(&mut self) {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It has gone without waiting for the answer. What it said before is still to be heard.
                Err(_) => self.unsent.clear(),
            }
        }
    }
}

impl Seen {
    /// Takes note of a line; returns what to answer.
    fn hear(&mut self, line: &str) -> Option<String> {
        let Some((who, text)) = read_frame(line) else {
            self.garbled.push(line.to_owned());
            return None;
        };
        if !self.writers.iter().any(|writer| writer == who) {
            self.writers.push(who.to_owned());
        }
        self.lines += 1;
        *self.bytes.entry(who.to_owned()).or_default() += line.len() + 1;
        if text == GOODBYE {
            self.goodbye = Some(who.to_owned());
        }
        Some(text.to_owned())
    }
}
