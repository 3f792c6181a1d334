//! What a pool asks of a driver.

use crate::addresses::Addresses;
use crate::fork::{self, Copies, Descriptors, Generation, Registration, generation};
use crate::{Deadline, Error};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Makes and judges the connections of a pool.
///
/// A client whose descriptors can be borrowed (`AsFd`) needs one line for full protection:
///
/// ```
/// use forksafe::{Deadline, ManageConnection, Pool, fork::Descriptors};
/// use std::io::{self, Read, Write};
/// use std::net::{SocketAddr, TcpListener, TcpStream};
///
/// struct Plain(SocketAddr);
///
/// impl ManageConnection for Plain {
///     type Connection = TcpStream;
///     type Error = io::Error;
///
///     fn connect(&self) -> io::Result<TcpStream> {
///         TcpStream::connect(self.0)
///     }
///     fn is_valid(&self, conn: &mut TcpStream) -> io::Result<()> {
///         conn.take_error()?.map_or(Ok(()), Err)
///     }
///     fn has_broken(&self, _: &mut TcpStream) -> bool {
///         false
///     }
///     fn descriptors(&self, conn: &TcpStream) -> Descriptors {
///         Descriptors::of(conn) // the line
///     }
/// }
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let pool = Pool::new(Plain(server.local_addr()?))?;
/// pool.get()?.write_all(b"hello")?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Time
///
/// A pool's `get` returns within its timeout only if the manager's methods do: `connect_within` and `is_valid_within`
/// are told the deadline. The provided ones ignore it.
///
/// # Fork
///
/// Any method may fork, or be interrupted by a fork of another thread. In a child that was forked inside a method the
/// pool abandons what the method returns and starts over.
pub trait ManageConnection: Send + Sync + 'static {
    /// The driver's client.
    type Connection: Send + 'static;
    /// The driver's error.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// The driver's; `get` returns it as [`Error::is_connect`] with this as its source.
    fn connect(&self) -> Result<Self::Connection, Self::Error>;

    /// Whether the server still answers on the connection, and in step.
    ///
    /// # Errors
    ///
    /// Any error says no; the pool closes the connection.
    fn is_valid(&self, conn: &mut Self::Connection) -> Result<(), Self::Error>;

    /// Whether the client already knows that the connection is of no more use. Asked at every return: no round trips.
    fn has_broken(&self, conn: &mut Self::Connection) -> bool;

    /// The descriptors behind a connection. Default: [unknown](Descriptors::unknown), with the limits stated there.
    fn descriptors(&self, conn: &Self::Connection) -> Descriptors {
        let _ = conn;
        Descriptors::unknown()
    }

    /// Opens a connection before the attempt's deadline. A driver that hides its descriptors, or that can tell them
    /// before it has finished (so that a fork in the middle finds them), publishes them through the attempt.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    fn connect_within(&self, at: &mut Attempt) -> Result<Self::Connection, Self::Error> {
        let conn = self.connect()?;
        at.own(self.descriptors(&conn));
        Ok(conn)
    }

    /// As [`is_valid`](Self::is_valid), before a deadline.
    ///
    /// # Errors
    ///
    /// As [`is_valid`](Self::is_valid).
    fn is_valid_within(&self, conn: &mut Self::Connection, deadline: Deadline) -> Result<(), Self::Error> {
        let _ = deadline;
        self.is_valid(conn)
    }

    /// Whether [`reset`](Self::reset) has anything to do. Asked at every return. Default: no.
    fn resets(&self) -> bool {
        false
    }

    /// Makes a connection that is being returned fit for the next one: rolls back what its holder left open. Called only
    /// if [`resets`](Self::resets) says so; has [`connection_timeout`](crate::Builder::connection_timeout) to do it.
    ///
    /// # Errors
    ///
    /// Any error says that it is of no more use; the pool closes it.
    fn reset(&self, conn: &mut Self::Connection, deadline: Deadline) -> Result<Reset, Self::Error> {
        let _ = (conn, deadline);
        Ok(Reset::Keep)
    }

    /// What ends a connection of this process, with a goodbye if the driver has one; it has five seconds. Default: drops
    /// it. An inherited connection is never brought there.
    fn goodbye(&self, conn: Self::Connection, deadline: Deadline) {
        let _ = deadline;
        drop(conn);
    }

    /// The host names and ports that a connect would look up. The pool resolves them when it is built, so that a child
    /// need not: looking up a name in a child of a process that was looking one up can hang in libc. See
    /// [`Attempt::addresses`]. Default: none.
    fn hosts(&self) -> Vec<(String, u16)> {
        Vec::new()
    }
}

/// What becomes of a connection that was [reset](ManageConnection::reset).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// It goes back into the pool.
    Keep,
    /// It is closed.
    Discard,
}

impl<M: ManageConnection + ?Sized> ManageConnection for Arc<M> {
    type Connection = M::Connection;
    type Error = M::Error;

    fn connect(&self) -> Result<Self::Connection, Self::Error> {
        (**self).connect()
    }
    fn is_valid(&self, conn: &mut Self::Connection) -> Result<(), Self::Error> {
        (**self).is_valid(conn)
    }
    fn has_broken(&self, conn: &mut Self::Connection) -> bool {
        (**self).has_broken(conn)
    }
    fn descriptors(&self, conn: &Self::Connection) -> Descriptors {
        (**self).descriptors(conn)
    }
    fn connect_within(&self, at: &mut Attempt) -> Result<Self::Connection, Self::Error> {
        (**self).connect_within(at)
    }
    fn is_valid_within(&self, conn: &mut Self::Connection, deadline: Deadline) -> Result<(), Self::Error> {
        (**self).is_valid_within(conn, deadline)
    }
    fn resets(&self) -> bool {
        (**self).resets()
    }
    fn reset(&self, conn: &mut Self::Connection, deadline: Deadline) -> Result<Reset, Self::Error> {
        (**self).reset(conn, deadline)
    }
    fn goodbye(&self, conn: Self::Connection, deadline: Deadline) {
        (**self).goodbye(conn, deadline);
    }
    fn hosts(&self) -> Vec<(String, u16)> {
        (**self).hosts()
    }
}

/// One attempt to open a connection: how long it may take, where to connect to, and where to publish the descriptors.
///
/// It can be cloned into a driver's own hook: all clones are the same attempt.
#[derive(Clone)]
pub struct Attempt {
    deadline: Deadline,
    made_in: Generation,
    addresses: Arc<Addresses>,
    found: Arc<Mutex<Found>>,
}

#[derive(Default)]
struct Found {
    /// With second descriptors of what the driver may yet give up.
    registrations: Vec<(Registration, Copies)>,
    refused: Option<String>,
}

impl Attempt {
    pub(crate) fn new(deadline: Deadline, addresses: Arc<Addresses>) -> Self {
        Self { deadline, made_in: generation(), addresses, found: Arc::default() }
    }

    /// When the caller of `get` wants an answer.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The addresses of a host. In a child these are the ones that its ancestor's pool had resolved, without a look-up,
    /// until connecting to them has failed here once; otherwise they are looked up, which no deadline can bound.
    ///
    /// # Errors
    ///
    /// The host has no address, or the look-up failed.
    pub fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.addresses.of(host, port)
    }

    /// Publishes descriptors of this attempt's connection now: a child forked from here on drops them. May be called
    /// more than once; all count.
    pub fn own(&self, descriptors: Descriptors) {
        if self.is_inherited() {
            return fork::make_dead(descriptors);
        }
        match Registration::publish(descriptors) {
            Ok(registration) => {
                let copies = Copies::of(&registration);
                self.found().registrations.push((registration, copies));
            }
            Err(error) => self.refuse(format!("a descriptor that the manager named is not open: {error}")),
        }
    }

    /// Takes back all that was published: the connection to an earlier host was given up. It is shut down, whether it is
    /// still open or not: a child that was forked in the middle may have a copy.
    pub fn forget_all(&self) {
        if !self.is_inherited() {
            for (registration, copies) in self.found().registrations.drain(..) {
                registration.bury();
                drop(copies);
            }
        }
    }

    /// Says that the descriptors could not be found. The pool closes the connection and reports
    /// [`Error::is_unprotected`]: it never guesses.
    pub fn refuse(&self, why: impl ToString) {
        if !self.is_inherited() {
            self.found().refused = Some(why.to_string());
        }
    }

    /// In a child that was forked in the middle of a connect. The lock may be held by a thread of the parent's.
    fn is_inherited(&self) -> bool {
        self.made_in != generation()
    }

    /// Why the descriptors could not be found, if that is why the connect failed.
    pub(crate) fn refused(&self) -> Option<Error> {
        self.found().refused.take().map(Error::unprotected)
    }

    /// What was published, and whether that is not all there is to know. With nothing published the descriptors count as
    /// unknown.
    pub(crate) fn finish(&self) -> (Registration, Option<Error>) {
        let mut found = self.found();
        let refused = found.refused.take().map(Error::unprotected);
        let registrations = found.registrations.drain(..).map(|(registration, copies)| {
            copies.forget();
            registration
        });
        (Registration::merge(registrations.collect()), refused)
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
