//! One attempt to connect, as the manager sees it: how long it may take, where to, and where to publish the descriptors.

use super::ManageConnection;
use super::addresses::{Addresses, Freshness};
use super::asked;
use super::error::Error;
use crate::Deadline;
use crate::fork::{self, Copies, Descriptors, Generation, Registration, Unobserved, generation};
use std::cell::RefCell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One attempt to open a connection: how long it may take, where to connect to, and where to publish the descriptors.
///
/// It can be cloned into a driver's own hook: all clones are the same attempt. While a manager's `connect_within` runs, its
/// thread's attempt is [`Attempt::current`], so that a manager of this crate that is wrapped by another, and reached through its
/// plain `connect`, publishes and keeps the deadline all the same.
#[derive(Clone)]
pub struct Attempt {
    deadline: Deadline,
    made_in: Generation,
    pub(super) addresses: Arc<Addresses>,
    published: Arc<Mutex<Published>>,
    /// Of the whole, whichever part says so.
    said: Arc<Mutex<Said>>,
    /// What this is a [part](Self::part) of.
    whole: Option<Arc<Mutex<Published>>>,
    /// Who has it found it as the [thread's](Self::current): perhaps a manager inside the pool's.
    was_found: bool,
}

#[derive(Default)]
struct Said {
    /// Why descriptors could not be found.
    refused: Option<String>,
    /// Why they are not known: nobody has refused them.
    unobserved: Option<String>,
}

#[derive(Default)]
struct Published {
    clients: Vec<Client>,
    /// How many there have ever been.
    count: u64,
}

/// What was published at a time.
struct Client {
    registration: Registration,
    /// Second descriptors of its sockets, as long as the driver may give them up.
    copies: Option<Copies>,
    /// By a manager inside the pool's, which may have others beside it.
    is_of_one_inside: bool,
    /// How many there had been before.
    place: u64,
}

impl Published {
    fn add(&mut self, client: Client) {
        self.clients.push(Client { place: self.count, ..client });
        self.count += 1;
    }

    /// The drivers keep what they have from here on.
    fn forget_copies(&mut self) {
        self.clients.iter_mut().filter_map(|client| client.copies.take()).for_each(Copies::forget);
    }

    /// Shuts it down from this one on.
    fn give_up_from(&mut self, place: u64) {
        for client in self.clients.extract_if(.., |client| client.place >= place) {
            client.registration.bury();
            drop(client.copies);
        }
    }
}

impl Drop for Published {
    /// In a child it is the parent's, and nothing is done.
    fn drop(&mut self) {
        self.give_up_from(0);
    }
}

thread_local! {
    /// The attempt that this thread is in. A child that was forked in the middle of it finds its parent's here.
    static CURRENT: RefCell<Option<Attempt>> = const { RefCell::new(None) };
}

impl Attempt {
    /// An attempt outside a pool: for tests of a manager's [`connect_within`](ManageConnection::connect_within). What it publishes
    /// is withdrawn, and its sockets are shut down, when the last clone is dropped.
    ///
    /// ```
    /// use forksafe::{Attempt, Deadline};
    /// use std::time::Duration;
    ///
    /// let attempt = Attempt::new(Deadline::after(Duration::from_secs(1)));
    /// assert!(!attempt.deadline().is_over());
    /// ```
    pub fn new(deadline: Deadline) -> Self {
        Self::with(deadline, Arc::default())
    }

    pub(super) fn with(deadline: Deadline, addresses: Arc<Addresses>) -> Self {
        Self {
            deadline,
            made_in: generation(),
            addresses,
            published: Arc::default(),
            said: Arc::default(),
            whole: None,
            was_found: false,
        }
    }

    /// A part of this attempt: one of the clients that a connection is made of. What it publishes is protected from the same
    /// moment on, and is its own until it [joins](Self::join) the whole: [`forget_all`](Self::forget_all) of a part takes back
    /// nothing of another's. A part that is dropped before that has been given up, and its sockets are shut down.
    ///
    /// The managers of this crate connect in a part of their own, so that one connection may be made of several of their clients.
    ///
    /// ```
    /// use forksafe::fork::Descriptors;
    /// use forksafe::{Attempt, Deadline};
    /// use std::io::{self, Write};
    /// use std::net::{SocketAddr, TcpListener, TcpStream};
    ///
    /// /// To the first of them that says hello, whatever else this attempt connects with.
    /// fn connect(at: &Attempt, replicas: &[SocketAddr]) -> io::Result<TcpStream> {
    ///     let part = at.part();
    ///     for replica in replicas {
    ///         let mut stream = TcpStream::connect_timeout(replica, part.deadline().socket_timeout()?)?;
    ///         part.own(Descriptors::of(&stream));
    ///         if stream.write_all(b"hello").is_ok() {
    ///             part.join();
    ///             return Ok(stream);
    ///         }
    ///         part.forget_all();
    ///     }
    ///     Err(io::ErrorKind::NotConnected.into())
    /// }
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let at = Attempt::new(Deadline::never());
    /// connect(&at, &[server.local_addr()?])?;
    /// # Ok::<_, io::Error>(())
    /// ```
    #[must_use]
    pub fn part(&self) -> Self {
        Self { published: Arc::default(), whole: Some(Arc::clone(&self.published)), ..self.clone() }
    }

    /// What this [part](Self::part) has published belongs to the whole from here on: its client is connected. Nothing happens to an
    /// attempt that is no part.
    pub fn join(self) {
        if let Some(whole) = self.whole.as_ref().filter(|_| !self.is_inherited()) {
            let own = std::mem::take(&mut lock(&self.published).clients);
            let mut whole = lock(whole);
            own.into_iter().for_each(|client| whole.add(client));
        }
    }

    /// The attempt that this thread is in the middle of, if a pool has called its manager here.
    pub fn current() -> Option<Self> {
        let current = CURRENT.try_with(|current| current.borrow().clone()).ok()?;
        let current = current.filter(|attempt| !attempt.is_inherited())?;
        Some(Self { was_found: true, ..current })
    }

    /// Runs `connect` with this as the [current](Self::current) attempt of the thread.
    pub(super) fn run<T>(&self, connect: impl FnOnce() -> T) -> T {
        Self::run_in(Some(self.clone()), connect)
    }

    /// Runs something that is no part of the attempt that this thread is in: it has none.
    #[cfg_attr(not(any(feature = "postgres", feature = "redis")), allow(dead_code, reason = "for drivers"))]
    pub(crate) fn outside<T>(call: impl FnOnce() -> T) -> T {
        Self::run_in(None, call)
    }

    fn run_in<T>(attempt: Option<Self>, call: impl FnOnce() -> T) -> T {
        struct Restore(Option<Attempt>);
        impl Drop for Restore {
            fn drop(&mut self) {
                let before = self.0.take();
                let _ = CURRENT.try_with(|current| *current.borrow_mut() = before);
            }
        }
        let before = CURRENT.try_with(|current| std::mem::replace(&mut *current.borrow_mut(), attempt));
        let _restore = Restore(before.ok().flatten());
        call()
    }

    /// When the caller of `get` wants an answer.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The addresses of a host, as the pool knows them: those that failed lately come last. It need not be one of the manager's
    /// [`hosts`](ManageConnection::hosts), of others up to 256 are kept. What is known is up to
    /// [`dns_ttl`](crate::Builder::dns_ttl) old; older than that it is looked up again, on a thread of its own, so that a
    /// look-up which hangs does not hold the caller past its deadline. For managers that try one address after the other,
    /// [`dial`](Self::dial) does all of it.
    ///
    /// # Errors
    ///
    /// The host has no address, or the look-up failed or did not end in time, and nothing was known.
    pub fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.addresses.of(host, port, Freshness::Known, self.deadline)
    }

    /// Says that nobody could be reached at an address of a host: it is tried last for a while.
    pub fn unreachable(&self, address: SocketAddr) {
        self.addresses.note(address, false);
    }

    /// Publishes descriptors of this attempt's connection now: a child forked from here on drops them. May be called
    /// more than once; all count.
    ///
    /// A second descriptor of each socket is made, by which it is shut down if its driver closes it without a word. In a full
    /// descriptor table there is none; then [`forget_all`](Self::forget_all) has to come before the driver's close.
    pub fn own(&self, descriptors: Descriptors) {
        if self.is_inherited() {
            return fork::make_dead(descriptors);
        }
        match Registration::publish(descriptors) {
            Ok(registration) => {
                let copies = Copies::of(&registration);
                lock(&self.published).add(Client {
                    registration,
                    copies: Some(copies),
                    is_of_one_inside: self.was_found,
                    place: 0,
                });
            }
            Err(error) => self.refuse(format!("a descriptor that the manager named cannot be protected: {error}")),
        }
    }

    /// Connects by a driver that hides its descriptors: sees which sockets and pipes it opens, and [publishes](Self::own) them.
    /// Exactly those, whatever other threads do meanwhile. If it cannot be told, nothing is published and it says so.
    ///
    /// ```
    /// use forksafe::{Attempt, ManageConnection};
    /// use std::{io, net::{SocketAddr, TcpStream}};
    /// # struct Client(TcpStream);
    /// # impl Client { fn open(to: SocketAddr) -> io::Result<Self> { Ok(Self(TcpStream::connect(to)?)) } }
    /// # struct Opaque(SocketAddr);
    /// # impl ManageConnection for Opaque {
    /// #     type Connection = Client;
    /// #     type Error = io::Error;
    /// #     fn connect(&self) -> io::Result<Client> { unreachable!() }
    /// #     fn is_valid(&self, _: &mut Client) -> io::Result<()> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut Client) -> bool { false }
    ///
    /// fn connect_within(&self, at: &mut Attempt) -> io::Result<Client> {
    ///     at.observe(|| Client::open(self.0)).unwrap_or_else(|why| Err(io::Error::other(why)))
    /// }
    /// # }
    /// ```
    ///
    /// In a process that has a single thread (a child that has just been forked, say) it is a look before and a look after. In
    /// one that has more the closure runs on a thread of its own, whose descriptor table is a copy of the process's; what it opens comes
    /// into the process's afterwards, under the numbers that the driver knows. It costs a quarter of a millisecond, one more for each
    /// thousand open descriptors, and 18 numbers of the process's table meanwhile (fewer where that is nearly full). What that means
    /// for the closure:
    ///
    /// - It may use files and terminals of the process, its standard streams and its datagram sockets (a log). The other streams,
    ///   listeners and pipes that the process has open are covered by a dead socket there.
    /// - The attempt is [current](Self::current) in it, and what managers of this crate publish in it is published, if the client is
    ///   kept. Other values of the calling thread (`thread_local!`) are not to be seen.
    /// - It must not wait for what its caller holds: a lock of standard output (`stdout().lock()`), an interpreter's (a GIL) that it
    ///   comes back to. The caller waits for the closure, and so both would wait for ever.
    /// - Another [`Pool`](crate::Pool) gives it no connection: the pool's would be covered. `get` is an error
    ///   ([`is_unprotected`](crate::Error::is_unprotected)), and `maintain`, `evict` and `disconnect` do nothing.
    /// - Signals that have a handler are blocked in it. A panic goes on in the caller.
    /// - It must not fork: the child has nobody to return to, and is aborted when it tries. To start a program is fine: by
    ///   [`Command`](std::process::Command), for one that is started otherwise (`popen`) inherits that those signals are blocked.
    /// - What it closes of the process's own stays open there. And what other threads close while it runs stays open in its table
    ///   until it ends, but for streams, listeners and pipes: a `flock` is held for so long, a UDP port taken, and a program that has
    ///   just been written cannot be executed (`ETXTBSY`).
    /// - It is not for databases in files (SQLite): their locks belong to a table. Nor for drivers whose threads live on, nor for
    ///   the first use of a runtime that the whole program has.
    ///
    /// Where that cannot be: a manager that names its descriptors ([`own`](Self::own),
    /// [`descriptors`](ManageConnection::descriptors)), or leaves them [unknown](Descriptors::unknown).
    ///
    /// An epoll or an eventfd of the driver's moves with its sockets, but a child inherits it as it does any file: what was
    /// borrowed from the client before the fork, and is used in the child all the same, may take its parent's events.
    ///
    /// # Errors
    ///
    /// [`Unobserved`]: the driver has opened no socket on that thread, or more than 15 descriptors, has left threads behind or
    /// locked a file; or the thread cannot have a table of its own, or there is no room, or another thread has closed a number of the
    /// driver's. If the driver had connected, the client is dropped, and what was published of it is taken back. The caller may
    /// connect without, and leave the descriptors [unknown](Descriptors::unknown).
    /// [`require_known_descriptors`](crate::Builder::require_known_descriptors) then says why they are.
    ///
    /// The inner error is the closure's.
    ///
    /// # Panics
    ///
    /// When the closure does.
    pub fn observe<T: Send, E: Send>(
        &self,
        connect: impl FnOnce() -> Result<T, E> + Send,
    ) -> Result<Result<T, E>, Unobserved> {
        let before = if self.is_inherited() { 0 } else { lock(&self.published).count };
        // What managers inside have published of a client that is not kept, while its numbers are still its own.
        let take_back = || {
            if !self.is_inherited() {
                lock(&self.published).give_up_from(before);
            }
        };
        let observed = fork::observe(asked::as_here(|| self.run(connect)), take_back);
        let observed = observed.inspect_err(|why| self.note_unobserved(why))?;
        Ok(observed.map(|(client, descriptors)| {
            if descriptors.is_any() {
                self.own(descriptors);
            }
            client
        }))
    }

    /// Takes back all that this attempt, or [part](Self::part) of one, has published: the connection to an earlier host was given
    /// up. It is shut down, whether it is still open or not: a child that was forked in the middle may have a copy.
    pub fn forget_all(&self) {
        if !self.is_inherited() {
            lock(&self.published).give_up_from(0);
        }
    }

    /// Says that the descriptors could not be found. The pool closes the connection and reports
    /// [`is_unprotected`](crate::Error::is_unprotected): it never guesses.
    pub fn refuse(&self, why: impl ToString) {
        if !self.is_inherited() {
            lock(&self.said).refused = Some(why.to_string());
        }
    }

    /// In a child that was forked in the middle of a connect. The lock may be held by a thread of the parent's.
    pub(super) fn is_inherited(&self) -> bool {
        self.made_in != generation()
    }

    /// Why the descriptors could not be found, if that is why the connect failed.
    pub(super) fn refused(&self) -> Option<Error> {
        lock(&self.said).refused.take().map(Error::unprotected)
    }

    /// Why descriptors are unknown, for who requires them.
    pub(super) fn unobserved(&self) -> Option<String> {
        lock(&self.said).unobserved.take()
    }

    pub(crate) fn note_unobserved(&self, why: impl ToString) {
        if !self.is_inherited() {
            lock(&self.said).unobserved = Some(why.to_string());
        }
    }

    /// Asks the manager for the descriptors, unless it has published some itself. Of those that managers inside it have published
    /// it may know no more; what it names besides is published, too.
    pub(super) fn own_unless_published<M: ManageConnection>(&self, manager: &M, connection: &M::Connection) {
        if !lock(&self.published).clients.iter().all(|client| client.is_of_one_inside) {
            return;
        }
        // A manager may have to look for the one descriptor of a client.
        lock(&self.published).forget_copies();
        let named = manager.descriptors(connection);
        if self.is_inherited() {
            return self.own(named);
        }
        let named =
            lock(&self.published).clients.iter().fold(named, |named, client| named.without(&client.registration));
        if named.is_any() || lock(&self.published).clients.is_empty() {
            self.own(named);
        }
    }

    /// What was published. The driver keeps what it has from here on.
    pub(crate) fn finish(&self) -> Registration {
        let mut published = std::mem::take(&mut *lock(&self.published));
        published.forget_copies();
        Registration::merge(published.clients.drain(..).map(|client| client.registration).collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
