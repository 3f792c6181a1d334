//! A server that knows which process wrote each byte.
//!
//! Its protocol is a line each way. The client writes who it is and a text with its length, the server answers with the
//! number of the connection and the same text. So a connection that two processes use is seen by the server, and an
//! answer that was meant for somebody else is seen by the client.

use super::desk::Desk;
use super::opener::{Opener, Openers};
use super::settle;
use super::stream::{Address, Listener, Stream};
use super::witness_client::{WitnessClient, WitnessManager, begins_frame, named_in};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Instant;

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
    /// Open until that thread ends.
    listener: RawFd,
    desk: Arc<Desk>,
}

/// What the witness has seen of one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Seen {
    pub(super) opener: Option<Opener>,
    /// The processes that wrote on it, by pid and time of start, in the order in which they began to.
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
    /// Lines that no client writes: two processes wrote into one another, or somebody speaks another language. At the end
    /// of the connection also what had no end of a line.
    pub garbled: Vec<String>,
    /// What came in after the last end of a line.
    pub unfinished: String,
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
        let (desk, openers) = (Arc::new(Desk::default()), Openers::new());
        let (serves, fd) = (Arc::clone(&desk), listener.as_raw_fd());
        thread::spawn(move || serves.serve(&listener, &openers));
        Self { address, pid: std::process::id(), listener: fd, desk }
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

    /// A client that nobody has registered, as those of other libraries are: in a child only the [net](crate::fork::net) keeps it from its
    /// parent's connection. With [`unsafe_share`](super::unsafe_share) nothing does.
    ///
    /// ```
    /// use forksafe::fork::net::Policy;
    /// use forksafe::testing::{self, Witness};
    ///
    /// Policy::tcp().set()?;
    /// let witness = Witness::start();
    /// let mut client = witness.client()?;
    /// let here = client.ask("before the fork")?.connection;
    /// let there = testing::child(|| {
    ///     client.ask("on my parent's connection").unwrap_err();
    ///     client = witness.client().unwrap();
    ///     client.ask("on my own").unwrap().connection
    /// });
    /// assert_ne!(there.join(), here);
    /// assert_eq!(client.ask("after the fork")?.connection, here);
    /// assert_eq!(witness.violations(), Vec::<String>::new());
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Of the socket.
    pub fn client(&self) -> io::Result<WitnessClient> {
        WitnessClient::to(&self.address)
    }

    /// What it has seen, by the number of the connection: all that was written before the call.
    ///
    /// # Panics
    ///
    /// When that does not come through within the kit's [patience](super::patience).
    #[track_caller]
    pub fn connections(&self) -> BTreeMap<u64, Seen> {
        let desk = &self.desk;
        settle::settled(&self.address, || desk.state.lock(), |state| (state.sources(), self.listener)).seen.clone()
    }

    /// Waits until what it has seen satisfies `enough`.
    ///
    /// # Panics
    ///
    /// When that takes longer than the kit's [patience](super::patience), with what it has seen.
    #[track_caller]
    pub fn wait_until(&self, what: &str, mut enough: impl FnMut(&BTreeMap<u64, Seen>) -> bool) {
        let until = Instant::now() + super::patience();
        let mut state = self.desk.state.lock();
        while !enough(&state.seen) {
            let late = self.desk.changed.wait_until(&mut state, until).timed_out();
            let seen = &state.seen;
            assert!(!late || enough(seen), "the witness waited in vain until {what}; it has seen {seen:#?}");
        }
    }

    /// What must never be: a connection on which two processes wrote, or another one than opened it; a goodbye from one
    /// that did not open it; lines that were written into one another, and words that no client says. One sentence each,
    /// of all that was written before the call.
    ///
    /// # Panics
    ///
    /// As [`connections`](Self::connections).
    #[track_caller]
    pub fn violations(&self) -> Vec<String> {
        self.connections().iter().flat_map(|(id, seen)| seen.violations(*id)).collect()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        self.desk.stopping.store(true, Relaxed);
        // Wakes the one that accepts.
        let _ = Stream::connect(&self.address);
        if let Address::Unix(path) = &self.address {
            let _ = fs::remove_file(path);
        }
    }
}

impl Seen {
    /// Who opened it, by pid and time of start; of one that had gone by then the pid alone. `None` if the kernel does not
    /// tell: over tcp there is only `/proc` to ask. The client may have gone, or this process have more than 16 descendants.
    pub fn opened_by(&self) -> Option<&str> {
        self.opener.as_ref().map(|opener| &*opener.name)
    }

    /// For all that is known.
    fn owner(&self) -> Option<&str> {
        self.opened_by().or(self.writers.first().map(|first| &**first))
    }

    fn is_strange(&self, writer: &str) -> bool {
        match (&self.opener, self.writers.first()) {
            (Some(opener), _) => opener.is_not(writer),
            (None, first) => first.is_some_and(|first| first != writer),
        }
    }

    fn violations(&self, id: u64) -> Vec<String> {
        let mut all = Vec::new();
        if self.writers.len() > 1 {
            all.push(format!(
                "connection {id} carried the words of {} processes: {:?}",
                self.writers.len(),
                self.writers
            ));
        } else if let Some(writer) = self.writers.first()
            && self.is_strange(writer)
        {
            let opener = self.owner().unwrap_or("another");
            all.push(format!("connection {id} was opened by process {opener} and carried the words of {writer}"));
        }
        if let Some(stranger) = &self.goodbye
            && self.is_strange(stranger)
        {
            let owner = self.owner().unwrap_or("another");
            all.push(format!("process {stranger} said goodbye on connection {id} of process {owner}"));
        }
        let speaker = self.writers.first().map(|first| &**first).or(self.opened_by().filter(|name| name.contains('.')));
        if !self.unfinished.is_empty() && !begins_frame(&self.unfinished, speaker) {
            all.push(format!("connection {id} carried words that no client begins with: {:?}", self.unfinished));
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
