//! What a pool asks of a driver.

use super::Attempt;
use crate::Deadline;
use crate::fork::Descriptors;
use std::error::Error;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// Makes and validates the connections of a pool.
///
/// A client whose descriptor can be borrowed (`AsFd`) needs one line for full protection:
///
/// ```
/// use forksafe::{ManageConnection, Pool};
/// use std::io::{self, Write};
/// use std::net::{SocketAddr, TcpListener, TcpStream};
/// use std::os::fd::{AsFd, BorrowedFd};
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
///     fn socket<'c>(&self, conn: &'c TcpStream) -> Option<BorrowedFd<'c>> {
///         Some(conn.as_fd()) // the line
///     }
/// }
///
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let pool = Pool::new(Plain(server.local_addr()?))?;
/// pool.get()?.write_all(b"hello")?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// How a manager finds the descriptors of a client that hides them, keeps deadlines, or wraps a manager of this crate is
/// told in [`wrap`](crate::wrap).
///
/// # Fork
///
/// Any method may fork, or be interrupted by a fork of another thread. In a child that was forked inside a method the
/// pool abandons what the method returns and starts over.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no manager of connections",
    label = "a pool needs a `forksafe::ManageConnection` here",
    note = "of Redis it is `redis::Client` with the feature `redis`, of PostgreSQL `forksafe::postgres::PostgresManager` with `postgres`",
    note = "a manager written for the crate r2d2 goes in by `forksafe::r2d2::R2d2`, with the feature `r2d2`",
    note = "for a client of your own, `forksafe::wrap` in the documentation says how; if `{Self}` is of another version of its crate \
            than forksafe's, `cargo tree --duplicates` shows it"
)]
pub trait ManageConnection: Send + Sync + 'static {
    /// The driver's client.
    type Connection: Send + 'static;
    /// The driver's error.
    type Error: Error + Send + Sync + 'static;

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// The driver's; `get` returns it as [`is_connect`](crate::Error::is_connect) with this as its source.
    fn connect(&self) -> Result<Self::Connection, Self::Error>;

    /// Whether the server still answers on the connection, and in step.
    ///
    /// # Errors
    ///
    /// Any error says no, and the pool closes the connection; but for those that [`classify`](Self::classify) calls
    /// [harmless](Fault::Harmless) or the [caller's own](Fault::Caller).
    fn is_valid(&self, conn: &mut Self::Connection) -> Result<(), Self::Error>;

    /// Whether the client already knows that the connection is of no more use. Asked at every return: no round trips.
    fn has_broken(&self, conn: &mut Self::Connection) -> bool;

    /// The one socket of a connection, if the client can lend it. Asked at every return, to notice a client that was
    /// replaced by another (`*conn = reconnect()?`). Default: none.
    fn socket<'c>(&self, conn: &'c Self::Connection) -> Option<BorrowedFd<'c>> {
        let _ = conn;
        None
    }

    /// All descriptors behind a connection. The pool asks whenever this manager has published none through its attempt to connect;
    /// what managers inside of it have published need not be named.
    /// Default: the [`socket`](Self::socket), or [unknown](Descriptors::unknown) with the limits stated there.
    fn descriptors(&self, conn: &Self::Connection) -> Descriptors {
        self.socket(conn).map_or_else(Descriptors::unknown, |socket| Descriptors::of(&socket))
    }

    /// Opens a connection before the attempt's deadline. A driver that hides its descriptors, or that can tell them
    /// before it has finished (so that a fork in the middle finds them), publishes them through the attempt.
    /// Default: [`connect`](Self::connect).
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    fn connect_within(&self, at: &mut Attempt) -> Result<Self::Connection, Self::Error> {
        let _ = at;
        self.connect()
    }

    /// Why nothing may be opened in this process, if so: the pool does not connect, and reports it as
    /// [`is_unprotected`](crate::Error::is_unprotected). Asked before each connect. Default: nothing.
    #[doc(hidden)]
    fn forbids_connects(&self) -> Option<String> {
        None
    }

    /// As [`is_valid`](Self::is_valid), before a deadline. Default: [`is_valid`](Self::is_valid), which ignores it.
    ///
    /// # Errors
    ///
    /// As [`is_valid`](Self::is_valid).
    fn is_valid_within(&self, conn: &mut Self::Connection, deadline: Deadline) -> Result<(), Self::Error> {
        let _ = deadline;
        self.is_valid(conn)
    }

    /// What bytes mean that lie unread in the socket of an idle connection. `peeked` is the beginning of them; they stay
    /// where they are. Default: [`Unread::Test`].
    fn on_unread(&self, conn: &mut Self::Connection, peeked: &[u8]) -> Unread {
        let _ = (conn, peeked);
        Unread::Test
    }

    /// Whether [`reset`](Self::reset) has anything to do. Asked at every return. Default: no.
    fn resets(&self) -> bool {
        false
    }

    /// Makes a connection that is being returned fit for the next holder: rolls back what its holder left open. Called
    /// only if [`resets`](Self::resets) says so; has [`connection_timeout`](crate::Builder::connection_timeout) to do it.
    ///
    /// # Errors
    ///
    /// Any error says that it is of no more use; the pool closes it.
    fn reset(&self, conn: &mut Self::Connection, deadline: Deadline) -> Result<Reset, Self::Error> {
        let _ = (conn, deadline);
        Ok(Reset::Keep)
    }

    /// Ends a connection of this process, with a goodbye if the driver has one, before the deadline: five seconds from
    /// now, or sooner if somebody waits for it. Default: drops it. An inherited connection is never brought here.
    fn goodbye(&self, conn: Self::Connection, deadline: Deadline) {
        let _ = deadline;
        drop(conn);
    }

    /// What an error says of the connection it came from, or of its server. Asked with the errors of `connect` and of
    /// the test, and with those that a holder [reports](crate::PooledConnection::report). The error may be the driver's or
    /// one that has it as a [source](Error::source). Default: [`Fault::Unknown`].
    fn classify(&self, error: &(dyn Error + 'static)) -> Fault {
        let _ = error;
        Fault::Unknown
    }

    /// The host names and ports that a connect would look up. The pool resolves them when it is built, so that a child
    /// need not: looking up a name in a child of a process that was looking one up can hang in libc. See
    /// [`Attempt::dial`]. Default: none.
    fn hosts(&self) -> Vec<(String, u16)> {
        Vec::new()
    }

    /// Where it connects to, for people who read an error: no password. Default: empty, and not shown.
    fn target(&self) -> String {
        String::new()
    }
}

/// What becomes of a connection that was [reset](ManageConnection::reset).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Reset {
    /// It goes back into the pool.
    Keep,
    /// It is closed.
    Discard,
}

/// What [bytes that lie unread](ManageConnection::on_unread) in an idle connection mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Unread {
    /// Nothing: a notice, a push message. The connection is in order.
    Fine,
    /// It cannot be told by looking: the server is asked.
    Test,
    /// The connection is out of step, or its server has said goodbye: it is closed.
    Discard,
}

/// What an error says of its connection and server. See [`ManageConnection::classify`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing that the manager knows of.
    Unknown,
    /// It is an answer like any other: the connection is alive and in step, and its server is what it was. Also a server
    /// in trouble that will pass (it loads its data, is busy with a script): reconnecting would only add to it.
    Harmless,
    /// The connection is of no more use.
    Connection,
    /// The server is not any more what it was: a master that became a replica, a server that shuts down. All connections
    /// that there are now are of no more use, and the name is looked up anew.
    Server,
    /// The server has no room for another connection.
    NoRoom,
    /// It is the caller's own, and says nothing of the connection or its server: a thread that may not wait, a configuration that
    /// can never work. `get` returns it at once, also where connects are [tried again](crate::Builder::retry_connect); nobody
    /// else is kept from connecting, and a connection whose test ended like that stays in the pool.
    Caller,
}

/// Each method has to be repeated here, or an `Arc` of a manager would not do what the manager does.
#[deny(clippy::missing_trait_methods)]
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
    fn socket<'c>(&self, conn: &'c Self::Connection) -> Option<BorrowedFd<'c>> {
        (**self).socket(conn)
    }
    fn descriptors(&self, conn: &Self::Connection) -> Descriptors {
        (**self).descriptors(conn)
    }
    fn connect_within(&self, at: &mut Attempt) -> Result<Self::Connection, Self::Error> {
        (**self).connect_within(at)
    }
    fn forbids_connects(&self) -> Option<String> {
        (**self).forbids_connects()
    }
    fn is_valid_within(&self, conn: &mut Self::Connection, deadline: Deadline) -> Result<(), Self::Error> {
        (**self).is_valid_within(conn, deadline)
    }
    fn on_unread(&self, conn: &mut Self::Connection, peeked: &[u8]) -> Unread {
        (**self).on_unread(conn, peeked)
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
    fn classify(&self, error: &(dyn Error + 'static)) -> Fault {
        (**self).classify(error)
    }
    fn hosts(&self) -> Vec<(String, u16)> {
        (**self).hosts()
    }
    fn target(&self) -> String {
        (**self).target()
    }
}
