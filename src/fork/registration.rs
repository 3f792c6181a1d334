//! What a connection publishes of itself: its descriptors, in the table that a child walks at birth.

use super::handler::event_loop::EventLoop;
use super::handler::sys::{self, Identity};
use super::handler::table::{self, ENDING, Entry, FREE, IDLE, LENT, ORPHANED, WITHDRAWN};
use super::handler::{birth, disown};
use super::{Generation, generation};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::Ordering::*;

/// The descriptors of one connection, named so that a child can find and drop them. Sockets, and pipes that have no name
/// (`pipe(2)`): a child must be able to tell that what is under a number is what was registered, and of a file that anybody can
/// open once more it cannot. [`Registration::publish`] refuses others.
///
/// ```
/// use forksafe::fork::Descriptors;
/// let (a, b) = std::os::unix::net::UnixStream::pair()?;
/// let both = Descriptors::of(&a).and(&b);
/// # let _ = both;
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Debug)]
pub struct Descriptors {
    /// Nearly always all there are: it takes no list.
    first: Option<Named>,
    others: Vec<Named>,
    known: bool,
}

#[derive(Clone, Copy, Debug)]
struct Named {
    fd: RawFd,
    event_loop: Option<EventLoop>,
}

impl Descriptors {
    /// The descriptor of something that can lend it: a `TcpStream`, a `UnixStream`, a pipe.
    pub fn of(owner: &impl AsFd) -> Self {
        Self::none().and(owner)
    }

    /// These and one more.
    #[must_use]
    pub fn and(self, owner: &impl AsFd) -> Self {
        self.and_raw(owner.as_fd().as_raw_fd())
    }

    /// No descriptors at all: nothing that a child inherits reaches outside the process.
    pub fn none() -> Self {
        Self { first: None, others: Vec::new(), known: true }
    }

    /// Descriptors that nobody can name. The connection is abandoned in a child and a guard of it refuses to be used
    /// there, but the descriptor itself stays open in the child until it ends or executes another program.
    pub fn unknown() -> Self {
        Self { known: false, ..Self::none() }
    }

    /// A descriptor by its number, for a client that shows no more than that (`AsRawFd`). It must be the client's own, and
    /// open.
    ///
    /// ```
    /// use forksafe::fork::Descriptors;
    /// use std::os::fd::AsRawFd;
    ///
    /// let (client, _) = std::os::unix::net::UnixStream::pair()?;
    /// let one = Descriptors::of_raw(client.as_raw_fd());
    /// # let _ = one;
    /// # std::io::Result::Ok(())
    /// ```
    pub fn of_raw(fd: RawFd) -> Self {
        Self::none().and_raw(fd)
    }

    /// These and one more, by its number.
    #[must_use]
    pub fn and_raw(self, fd: RawFd) -> Self {
        self.and_named(Named { fd, event_loop: None })
    }

    /// The socket that an event loop watches, and the loop.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "for drivers with an event loop"))]
    pub(crate) fn and_event_loop(self, event_loop: EventLoop) -> Self {
        self.and_named(Named { fd: event_loop.socket.fd, event_loop: Some(event_loop) })
    }

    fn and_named(mut self, one: Named) -> Self {
        match self.first {
            _ if !self.known => {}
            None => self.first = Some(one),
            Some(_) => self.others.push(one),
        }
        self
    }

    /// Those that a registration does not name already.
    pub(crate) fn without(mut self, registration: &Registration) -> Self {
        let is_new = |one: &Named| registration.open().all(|(fd, _)| fd != one.fd);
        self.others.retain(is_new);
        self.first = self.first.filter(is_new).or_else(|| (!self.others.is_empty()).then(|| self.others.remove(0)));
        self
    }

    pub(crate) fn is_any(&self) -> bool {
        self.first.is_some()
    }

    fn iter(&self) -> impl Iterator<Item = Named> {
        self.first.into_iter().chain(self.others.iter().copied())
    }
}

/// Descriptors that are in the registry for as long as this lives: every child made in that time drops them.
///
/// A registration belongs to the process that made it. An inherited one does nothing when it is dropped.
///
/// It names what is open under a number, not the number: what takes the number later is left alone. If the client behind it
/// connects anew by itself, or is replaced, the new socket is not registered until [`replace`](Self::replace) says so.
///
/// ```
/// use forksafe::fork::{Descriptors, Registration};
/// use std::net::{TcpListener, TcpStream};
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let stream = TcpStream::connect(server.local_addr()?)?;
/// let registration = Registration::publish(Descriptors::of(&stream))?;
/// // ... a child forked here finds a dead socket under `stream` ...
/// drop(registration); // before or right after `stream` is closed
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct Registration {
    /// Nearly always all there are: marking it takes no list.
    first: Option<&'static Entry>,
    others: Box<[&'static Entry]>,
    known: bool,
    generation: Generation,
    /// The state of the entries afterwards: FREE, because the descriptors may stay open and are their owner's alone from
    /// then on, or WITHDRAWN.
    leaves: u32,
}

impl Registration {
    /// Publishes descriptors that stay open until the registration is dropped. Each is made close-on-exec if it is not: a
    /// connection does not go on into a program that the process, or a child of it, executes.
    ///
    /// # Errors
    ///
    /// `EBADF` when one of them is not open, and [`InvalidInput`](io::ErrorKind::InvalidInput) when it is neither a socket nor a
    /// nameless pipe; nothing is published then.
    pub fn publish(descriptors: Descriptors) -> io::Result<Self> {
        let generation = generation();
        birth::ensure_handlers();
        let first = descriptors.first.map(identify).transpose()?;
        let others: Vec<(Named, Identity)> = descriptors.others.into_iter().map(identify).collect::<Result<_, _>>()?;
        let entries = first.into_iter().chain(others).map(|(one, identity)| {
            let entry = table::claim();
            entry.register(one.fd, one.event_loop, identity, generation.0.get());
            entry
        });
        Ok(Self::of(entries, descriptors.known, generation))
    }

    /// Publishes other descriptors in the place of these: the client behind them has been replaced, or has connected anew by
    /// itself. They count as lent.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish); then nothing is changed. An error in a child that inherited it.
    pub fn replace(&mut self, descriptors: Descriptors) -> io::Result<()> {
        if self.generation != generation() {
            return Err(io::Error::other("the registration belongs to an ancestor of this process"));
        }
        let before = mem::replace(self, Self::publish(descriptors)?);
        before.leave_what_is_still_there();
        Ok(())
    }

    /// Whether what was registered first is still there under its number. It is not when the client has closed it, or has been
    /// replaced by another. True if nothing is registered.
    pub fn is_current(&self) -> bool {
        self.first.map(Entry::descriptor).is_none_or(|(fd, identity)| sys::is(fd, identity))
    }

    /// Several as one. None at all counts as unknown.
    pub(crate) fn merge(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let known = !parts.is_empty() && parts.iter().all(|part| part.known);
        // The parts' entries live on in the whole, so the parts must not withdraw them.
        let entries =
            parts.iter_mut().flat_map(|part| part.first.take().into_iter().chain(mem::take(&mut part.others)));
        Self::of(entries, known, generation())
    }

    /// For descriptors that their driver has closed, or is about to: ends what is still open, and keeps their names for the
    /// child whose descriptors were copied just before that.
    pub(crate) fn bury(mut self) {
        self.leaves = WITHDRAWN;
        if self.generation == generation() {
            self.shut_down();
        }
    }

    /// Ends what is still there, for every process.
    pub(super) fn shut_down(&self) {
        self.open().for_each(|(fd, _)| sys::shutdown(fd));
    }

    /// What is still there under its number.
    pub(super) fn open(&self) -> impl Iterator<Item = (RawFd, Identity)> {
        self.entries().map(Entry::descriptor).filter(|&(fd, identity)| sys::is(fd, identity))
    }

    /// The client is about to end.
    pub(super) fn begin_ending(&mut self) {
        self.mark(ENDING);
        self.leaves = WITHDRAWN;
    }

    /// The guard's client is gone, or another has taken its place. What is still there belongs to a client that somebody else
    /// has by now, registered under other numbers or not at all: it stays as it is here, and a child goes on making it dead.
    pub(super) fn leave_what_is_still_there(mut self) {
        if self.generation == generation() {
            let entries = self.first.take().into_iter().chain(mem::take(&mut self.others));
            for entry in entries {
                let (fd, identity) = entry.descriptor();
                let state = if sys::is(fd, identity) { ORPHANED } else { WITHDRAWN };
                entry.state.store(state, Release);
            }
        }
    }

    /// In a child: the guard of an inherited client is gone, and with it all that could touch the numbers which the client had. A
    /// child of this process closes what lies there.
    pub(super) fn abandon(self) {
        self.let_go(IDLE);
    }

    /// Not where the table may be the parent's own: there the parent's sockets are alive, and a child of ours is to drop them.
    fn let_go(&self, state: u32) {
        if !disown::shares_table() {
            self.entries().for_each(|entry| entry.let_go(self.generation.0.get(), state));
        }
    }

    /// False when the descriptors are [unknown](Descriptors::unknown): a child could not drop them.
    pub fn is_known(&self) -> bool {
        self.known
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// The first descriptor's number. It is this connection's for as long as the registration is this process's own and
    /// [current](Self::is_current).
    pub(crate) fn first(&self) -> Option<RawFd> {
        self.first.map(|entry| entry.descriptor().0)
    }

    /// From here on something outside the pool may touch the connection. Called before it is handed out, so that a
    /// child that can see it anywhere also sees this.
    #[inline]
    pub(crate) fn lend(&self) {
        self.mark(LENT);
    }

    /// From here on nothing outside the pool can touch the connection. Called before it can be handed out again.
    #[inline]
    pub(crate) fn rest(&self) {
        self.mark(IDLE);
    }

    #[inline]
    fn mark(&self, state: u32) {
        if let Some(first) = self.first {
            first.state.store(state, Release);
        }
        // One is the rule.
        if !self.others.is_empty() {
            self.mark_others(state);
        }
    }

    #[cold]
    fn mark_others(&self, state: u32) {
        self.others.iter().for_each(|entry| entry.state.store(state, Release));
    }

    #[inline]
    fn entries(&self) -> impl Iterator<Item = &'static Entry> {
        self.first.into_iter().chain(self.others.iter().copied())
    }

    fn of(mut entries: impl Iterator<Item = &'static Entry>, known: bool, generation: Generation) -> Self {
        Self { first: entries.next(), others: entries.collect(), known, generation, leaves: FREE }
    }
}

impl Drop for Registration {
    /// An inherited one's entries name dead sockets, whose numbers are their owner's, or something else by now.
    fn drop(&mut self) {
        if self.generation == generation() {
            self.mark(self.leaves);
        } else {
            self.let_go(FREE);
        }
        table::freed();
    }
}

fn identify(one: Named) -> io::Result<(Named, Identity)> {
    let open = sys::look(one.fd).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
    if !(open.is_socket || open.is_pipe && sys::is_nameless(one.fd)) {
        let why =
            "only sockets and nameless pipes can be registered: of other files a child cannot tell whose they are";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    sys::close_on_exec(one.fd);
    Ok((one, open.identity))
}

/// Whether what is open under a number is somebody's already.
pub(super) fn is_registered(fd: RawFd) -> bool {
    let Some(open) = sys::look(fd) else { return false };
    let is_it = |entry: &Entry| entry.descriptor() == (fd, open.identity);
    table::entries().any(|entry| matches!(entry.state.load(Acquire), LENT | IDLE) && is_it(entry))
}

/// In a child that was forked between the making of a connection and its registration: what its frame still holds is made
/// dead, unless its table may be the parent's own. (A client with an event loop never comes here: its registration comes before anything that could fork.)
pub(crate) fn make_dead(descriptors: Descriptors) {
    for one in descriptors.iter() {
        disown::kill(one.fd);
    }
}
