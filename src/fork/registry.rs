//! The table of descriptors that belong to connections: written by threads, read by a child at birth.
//!
//! The child reads it inside the atfork handler, in a copy of memory that may have been taken while other threads were
//! at work here. So there is no lock: each [`Entry`] is a few atomics, and its `state` is stored last (Release). A
//! child that sees an entry LENT or IDLE (Acquire) sees the rest of it; one that was being written is CLAIMED and is
//! left alone (the connect that it belongs to has overlapped a fork, and its socket will be shut down). Entries live in
//! buckets that are only ever added, so that an address stays good for ever.

use super::event_loop::{self, EventLoop};
use super::guarded::Goodbye;
use super::sys::{self, Identity};
use super::{Generation, generation};
use crate::Deadline;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering::*};
use std::time::Duration;

pub(super) const FREE: u32 = 0;
/// A thread is writing the entry.
pub(super) const CLAIMED: u32 = 1;
/// Something in a child might still touch the connection: its guard, a value borrowed from it, a callback's frame.
pub(super) const LENT: u32 = 2;
/// Nothing in a child can ever touch the connection: it lies in the state that a child abandons.
pub(super) const IDLE: u32 = 3;
/// Closed by us. The entry still names what was closed, for the child whose descriptors were copied just before that.
pub(super) const WITHDRAWN: u32 = 4;
/// Not a connection's: an end of the program's [signal pipe](super::signal_pipe), for ever.
pub(super) const SIGNAL_RECEIVER: u32 = 5;
pub(super) const SIGNAL_SENDER: u32 = 6;
/// As LENT, while the driver says goodbye: an event loop goes before its socket, and its numbers may be another's by now.
pub(super) const ENDING: u32 = 7;

/// One descriptor, with the event loop that watches it where there is one. On cache lines of its own: `state` is stored at
/// every checkout and return.
#[repr(align(64))]
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) state: AtomicU32,
    fd: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
    event_loop: event_loop::Cell,
}

impl Entry {
    const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            fd: AtomicI32::new(-1),
            device: AtomicU64::new(0),
            inode: AtomicU64::new(0),
            event_loop: event_loop::Cell::new(),
        }
    }

    pub(super) fn descriptor(&self) -> (RawFd, Identity) {
        let identity = Identity { device: self.device.load(Relaxed), inode: self.inode.load(Relaxed) };
        (self.fd.load(Relaxed), identity)
    }

    pub(super) fn event_loop(&self) -> Option<EventLoop> {
        self.event_loop.load()
    }

    fn write(&self, Named { fd, event_loop }: Named, identity: Identity, state: u32) {
        self.fd.store(fd, Relaxed);
        self.event_loop.store(event_loop);
        self.identify(identity);
        self.state.store(state, Release);
    }

    /// In a child that has put something of its own under the number, which is to be known by its own children.
    pub(super) fn identify(&self, identity: Identity) {
        self.device.store(identity.device, Relaxed);
        self.inode.store(identity.inode, Relaxed);
    }
}

/// Bucket `n` has room for `64 << n` entries.
const FIRST_BUCKET: usize = 64;
static BUCKETS: [AtomicPtr<Entry>; 24] = [const { AtomicPtr::new(ptr::null_mut()) }; 24];
/// No entry below this one is free, give or take a race: where a search begins.
static SEARCH_FROM: AtomicUsize = AtomicUsize::new(0);

fn bucket(n: usize) -> Option<&'static [Entry]> {
    let start = BUCKETS[n].load(Acquire);
    // SAFETY: `add_bucket` published a leaked slice of this length at this place, and nothing ever takes it back.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start, FIRST_BUCKET << n) })
}

/// Two threads may race here; one bucket wins and the other, which nobody has seen, is freed.
fn add_bucket(n: usize) {
    let fresh: Box<[Entry]> = (0..FIRST_BUCKET << n).map(|_| Entry::new()).collect();
    let fresh = Box::into_raw(fresh);
    if BUCKETS[n].compare_exchange(ptr::null_mut(), fresh.cast(), AcqRel, Acquire).is_err() {
        // SAFETY: `fresh` came from `Box::into_raw` above and was not published.
        drop(unsafe { Box::from_raw(fresh) });
    }
}

/// Every entry there is, in order. No lock and no allocation: the child handler walks it.
pub(super) fn entries() -> impl Iterator<Item = &'static Entry> {
    (0..BUCKETS.len()).map_while(bucket).flatten()
}

fn claim_entry() -> &'static Entry {
    loop {
        let from = SEARCH_FROM.load(Relaxed);
        for (place, entry) in entries().enumerate().skip(from) {
            let state = entry.state.load(Relaxed);
            if matches!(state, FREE | WITHDRAWN)
                && entry.state.compare_exchange(state, CLAIMED, AcqRel, Relaxed).is_ok()
            {
                SEARCH_FROM.store(place + 1, Relaxed);
                return entry;
            }
        }
        if from > 0 {
            SEARCH_FROM.store(0, Relaxed);
        } else if let Some(next) = (0..BUCKETS.len()).find(|&n| bucket(n).is_none()) {
            add_bucket(next);
        }
    }
}

/// Names a descriptor that stays open as long as the process, and is no connection's.
pub(super) fn publish_for_ever(fd: RawFd, state: u32) {
    if let Some(open) = sys::look(fd) {
        claim_entry().write(Named { fd, event_loop: None }, open.identity, state);
    }
}

/// Whether something was published in this state.
pub(super) fn has(state: u32, identity: Identity) -> bool {
    entries().any(|entry| entry.state.load(Acquire) == state && entry.descriptor().1 == identity)
}

/// The descriptors of one connection, named so that a child can find and drop them.
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
pub(super) struct Named {
    pub(super) fd: RawFd,
    pub(super) event_loop: Option<EventLoop>,
}

impl Descriptors {
    /// The descriptor of something that can lend it: a `TcpStream`, a `UnixStream`, a pipe, a file.
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

    fn iter(&self) -> impl Iterator<Item = Named> {
        self.first.into_iter().chain(self.others.iter().copied())
    }
}

/// Descriptors that are in the registry for as long as this lives: every child made in that time drops them.
///
/// A registration belongs to the process that made it. An inherited one does nothing when it is dropped.
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
    /// Publishes descriptors that stay open until the registration is dropped.
    ///
    /// # Errors
    ///
    /// `EBADF` when one of them is not open; nothing is published then.
    pub fn publish(descriptors: Descriptors) -> io::Result<Self> {
        let generation = generation();
        let identify = |one: Named| {
            let open = sys::look(one.fd).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
            Ok::<_, io::Error>((one, open.identity))
        };
        let first = descriptors.first.map(identify).transpose()?;
        let others: Vec<(Named, Identity)> = descriptors.others.into_iter().map(identify).collect::<Result<_, _>>()?;
        let entries = first.into_iter().chain(others).map(|(one, identity)| {
            let entry = claim_entry();
            entry.write(one, identity, LENT);
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
        let mut before = mem::replace(self, Self::publish(descriptors)?);
        if !before.is_current() {
            before.leaves = WITHDRAWN;
        }
        Ok(())
    }

    /// Whether what was registered first is still there under its number. It is not when the client has closed it, or has been
    /// replaced by another. True if nothing is registered.
    pub fn is_current(&self) -> bool {
        self.first.map(Entry::descriptor).is_none_or(|(fd, identity)| sys::is(fd, identity))
    }

    /// Whether these are the descriptors that are registered, and are still what they were then. Unknown ones are equal to
    /// unknown ones.
    #[allow(dead_code, reason = "for the pool")]
    pub(crate) fn matches(&self, descriptors: &Descriptors) -> bool {
        let registered = self.entries().map(Entry::descriptor);
        let same = |((fd, identity), one): ((RawFd, Identity), Named)| fd == one.fd && sys::is(fd, identity);
        self.known == descriptors.known
            && self.entries().count() == descriptors.iter().count()
            && registered.zip(descriptors.iter()).all(same)
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

    fn shut_down(&self) {
        let sockets = self.entries().map(Entry::descriptor);
        let open = sockets.filter(|&(fd, identity)| sys::is(fd, identity));
        open.for_each(|(fd, _)| sys::shutdown(fd));
    }

    /// False when the descriptors are [unknown](Descriptors::unknown): a child could not drop them.
    pub fn is_known(&self) -> bool {
        self.known
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    /// The first descriptor's number. It is this connection's for as long as the registration is this process's own.
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
        for entry in self.entries() {
            entry.state.store(state, Release);
        }
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
    /// An inherited one's entries were released when the child took stock, and may name something else by now.
    fn drop(&mut self) {
        if self.generation == generation() {
            self.mark(self.leaves);
            SEARCH_FROM.store(0, Relaxed);
        }
    }
}

/// How long a goodbye may take, of drivers that heed it.
const GOODBYE: Duration = Duration::from_secs(5);

/// Closes a connection of this process so that no child is left with a live copy of its socket.
///
/// A fork that copied the descriptor table just before the close, and memory just after, makes a child that holds the
/// socket without knowing. So a second descriptor is made first, the connection says its goodbye and closes, and the
/// socket is then shut down for everybody.
///
/// A goodbye may fork, as any code of a driver's may. The child comes back here with the rest of the goodbye said to a
/// dead socket.
pub(crate) fn close<T>(
    connection: T,
    mut registration: Registration,
    goodbye: Option<&dyn Goodbye<T>>,
    by: Option<Deadline>,
) {
    registration.mark(ENDING);
    registration.leaves = WITHDRAWN;
    // Dropped after the connection, also when its goodbye panics.
    let copies = Copies::of(&registration);
    if !copies.is_complete {
        // End them now; the goodbye is lost, the promise is kept.
        registration.shut_down();
    }
    let by = by.map_or(Deadline::after(GOODBYE), |by| by.or_sooner(GOODBYE));
    match goodbye {
        Some(goodbye) => goodbye.say(connection, by.on(registration.first())),
        None => drop(connection),
    }
}

/// Second descriptors of sockets whose driver may close them at any time: they end with this, for everybody. Registered
/// themselves: a child that is forked meanwhile closes them at birth.
#[derive(Debug)]
pub(crate) struct Copies {
    fds: Vec<RawFd>,
    /// Whether there was room for all.
    is_complete: bool,
    _registration: Option<Registration>,
    generation: Generation,
}

impl Copies {
    pub(crate) fn of(registration: &Registration) -> Self {
        let sockets = registration
            .entries()
            .map(Entry::descriptor)
            .filter(|&(fd, identity)| sys::look(fd).is_some_and(|open| open.is_socket && open.identity == identity));
        let copies: Vec<Option<RawFd>> = sockets.map(|(fd, _)| sys::duplicate(fd, 0)).collect();
        let is_complete = copies.iter().all(Option::is_some);
        let fds: Vec<RawFd> = copies.into_iter().flatten().collect();
        let all = fds.iter().fold(Descriptors::none(), |all, &fd| all.and_raw(fd));
        let copies = Registration::publish(all).ok().inspect(Registration::rest);
        Self { fds, is_complete, _registration: copies, generation: registration.generation }
    }

    /// The sockets live on.
    pub(crate) fn forget(mut self) {
        if self.generation == generation() {
            self.fds.drain(..).for_each(sys::close);
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // In a child that a goodbye forked the numbers are closed already, or its parent's own.
        if self.generation == generation() {
            for &fd in &self.fds {
                sys::shutdown(fd);
                sys::close(fd);
            }
        }
    }
}

/// In a child that was forked between the making of a connection and its registration: what its frame still holds is made
/// dead. (A client with an event loop never comes here: its registration comes before anything that could fork.)
pub(crate) fn make_dead(descriptors: Descriptors) {
    for one in descriptors.iter() {
        super::disown::kill(one.fd);
    }
}
