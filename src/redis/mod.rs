//! Redis: the `redis` crate's connections in the pool.
//!
//! The driver shows neither its socket nor the moment at which it opens it, and a deadline it applies to each read and to
//! each reply anew. So the socket is ours (`stand_in`, `opening`), what is said at the start is said here (`question`), and
//! the driver reads replies only when they are there (`dialogue`, `wire`).

#[cfg(feature = "sizing")]
mod ask;
mod dialogue;
mod fault;
mod find;
mod knowledge;
mod opening;
mod question;
mod safe;
mod stand_in;
mod test;
mod wire;

pub use test::{Clean, Test};

use crate::credentials::{Asked, Credentials};
use crate::fork::{Descriptors, socket};
use crate::pool::asked_until;
use crate::{Attempt, Deadline, DialError, Fault, ManageConnection, Reset, Unread};
use ::redis::{
    Client, Connection, ConnectionAddr, ConnectionLike, ErrorKind, IntoConnectionInfo, RedisError, RedisResult,
};
use dialogue::Dialogue;
use knowledge::Knowledge;
use opening::{Opening, settled};
use socket::{Peer, Timeouts};
use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use wire::Replies;

/// Connections to Redis, or to anything that speaks its protocol: the driver's [`Connection`]s.
///
/// A `redis::Client` is a manager itself, with the defaults of this one:
///
/// ```no_run
/// use forksafe::Pool;
/// use redis::TypedCommands;
///
/// let pool = Pool::new(redis::Client::open("redis://127.0.0.1/")?)?;
/// pool.get()?.set("key", 42)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// and this one has options:
///
/// ```no_run
/// use forksafe::Pool;
/// use forksafe::redis::{Clean, RedisManager};
/// use std::time::Duration;
///
/// let manager = RedisManager::open("redis://127.0.0.1/")?
///     .read_timeout(Some(Duration::from_secs(5)))
///     .on_check_out(Clean::Everything);
/// let pool = Pool::new(manager)?;
/// # let _ = pool;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// Passwords that change: [`credentials`](Self::credentials).
///
/// All urls of the driver work: `redis://`, `rediss://` (with the driver's `tls-rustls` or `tls-native-tls`),
/// `redis+unix://`; and so do `valkey` ones. A host name is resolved when the pool is built, so that a child need not;
/// not for `rediss://`, where the driver wants the name itself. A user name needs Redis 6 or later.
///
/// # The test
///
/// Asks for a text that was never used before, by `PING` or `ECHO`, and expects it back: a connection that is out of step (a
/// reply that somebody else should have read) is noticed, which a bare `PING` would not do. What a server does not accept
/// (an account without permission, a renamed command, a proxy) is learned when the first connection is made, and is not
/// asked again by this process or its children. A refusal is an answer, and so is the trouble of a server that loads its
/// data, is busy with a script or has lost its master: the connection is alive, and to replace it would only add to that.
/// See [`test`](Self::test).
///
/// # What a holder leaves
///
/// Timeouts that it set are put back at each return, and in the test: to [none](Self::read_timeout). The rest is undone with the
/// test, and so not on a connection that is lent again within [`test_after`](crate::Builder::test_after) (500 ms) of the last
/// one: where holders leave such things behind, set that to zero, or undo them [on return](Self::on_return). With the test, in
/// the same packet, `UNWATCH` and `SELECT` go out; an open `MULTI` is discarded if there is one; a connection that was left
/// subscribed, or with its replies switched off, fails the test and is replaced. (With RESP3 the server tells of subscriptions
/// only who may `UNSUBSCRIBE`: an account that may not finds its predecessor's.) A user (`AUTH`), a name, tracking and a
/// push sender stay: a manager of your own that wraps this one may have set them up. See
/// [`on_check_out`](Self::on_check_out) and [`Clean`].
///
/// A manager that wraps this one and sets a database or timeouts in its `connect` should set them here instead, for they
/// are put back to what this one says.
///
/// # What the deadline cannot bound
///
/// - over TLS: the driver's look-up of the name and, with several addresses, that each has its time anew; the handshake of
///   native-tls (that of rustls is bounded per read); a server that drips its replies;
/// - where there is no loopback network, or no room for three more descriptors: the driver opens the connection itself then,
///   and connecting to a unix socket whose server's backlog is full is not bounded.
///
/// In these cases, too, an attempt that fails inside the driver while another thread forks leaves the child with a copy of
/// a socket that nobody can name: it stays open there while the child lives, and nothing in the child can use it.
#[derive(Clone)]
pub struct RedisManager {
    client: Client,
    options: Options,
}

#[derive(Clone, Debug)]
struct Options {
    test: Test,
    on_check_out: Clean,
    on_return: Clean,
    timeouts: Timeouts,
    credentials: Option<Asked>,
}

/// What a `Client` does.
static DEFAULTS: Options = Options {
    test: Test::default_one(),
    on_check_out: Clean::Leftovers,
    on_return: Clean::Nothing,
    timeouts: (None, None),
    credentials: None,
};

impl Options {
    fn makes_as_new(&self) -> bool {
        self.on_check_out == Clean::Everything || self.on_return == Clean::Everything
    }
}

impl RedisManager {
    /// Connections as the client says.
    pub fn new(client: Client) -> Self {
        Self { client, options: DEFAULTS.clone() }
    }

    /// Connections as the url, or the like, says.
    ///
    /// # Errors
    ///
    /// It makes no sense.
    pub fn open(params: impl IntoConnectionInfo) -> RedisResult<Self> {
        Client::open(params).map(Self::new)
    }

    /// The client that it was made with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// How connections are tested. Default: [`Test::learned`].
    #[must_use]
    pub fn test(mut self, test: Test) -> Self {
        self.options.test = test;
        self
    }

    /// What is undone with the test, at no further round trip, before a connection is lent again. Where connections are
    /// [not tested](crate::Builder::test_on_check_out) it is nothing, and so it is within
    /// [`test_after`](crate::Builder::test_after) of the last test. Default: [`Clean::Leftovers`].
    #[must_use]
    pub fn on_check_out(mut self, clean: Clean) -> Self {
        self.options.on_check_out = clean;
        self
    }

    /// What is undone when a connection is returned: one round trip, which its holder waits for. For pools that do not test
    /// their connections, and where nothing may stay watched or subscribed meanwhile. Default: [`Clean::Nothing`].
    #[must_use]
    pub fn on_return(mut self, clean: Clean) -> Self {
        self.options.on_return = clean;
        self
    }

    /// How long a read may block on a connection that is lent. `None`, the default, is for ever. Zero is none.
    #[must_use]
    pub fn read_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.options.timeouts.0 = timeout.filter(|timeout| !timeout.is_zero());
        self
    }

    /// How long a write may block on a connection that is lent. `None`, the default, is for ever. Zero is none.
    #[must_use]
    pub fn write_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.options.timeouts.1 = timeout.filter(|timeout| !timeout.is_zero());
        self
    }

    /// Asks `function` for the password, and the user name if there is another, of each connect anew: for tokens that are good
    /// for minutes (IAM, Entra ID), for leases (Vault), for passwords that change while the program runs. What the url says
    /// counts no more, but for its user name where the function tells none. Default: what the url says.
    ///
    /// ```
    /// use forksafe::Credentials;
    /// use forksafe::redis::RedisManager;
    ///
    /// let manager = RedisManager::open("redis://app@cache.example/")?
    ///     .credentials(|_deadline| std::fs::read_to_string("/run/secrets/redis").map(Credentials::password));
    /// # let _ = manager;
    /// # Ok::<_, redis::RedisError>(())
    /// ```
    ///
    /// It is asked on the thread that connects, before anything is dialled, and told until when: what comes later is not used. It
    /// is asked again where a connect is made again, because it overlapped a fork say, and in each child. Nothing is kept: if it
    /// is slow, let it keep what it gets, in a [`PerProcess`](crate::fork::PerProcess) and not behind a lock that a fork can find
    /// locked. It must not `get` from the pool that it is for.
    ///
    /// If it fails, so does the connect, with [`NoCredentials`](crate::NoCredentials) among the error's sources and then its own
    /// error. That says nothing about the server; where connects are [tried again](crate::Builder::retry_connect) it is asked
    /// again.
    ///
    /// Connections that there are stay who they are, so a lease should outlive the pool's
    /// [`max_lifetime`](crate::Builder::max_lifetime). With [`Clean::Everything`] each test or return says anew who we are, and so
    /// asks as well: a connection for which there are no credentials then is closed.
    #[must_use]
    pub fn credentials<E: Into<Box<dyn Error + Send + Sync>>>(
        mut self,
        function: impl Fn(Deadline) -> Result<Credentials, E> + Send + Sync + 'static,
    ) -> Self {
        self.options.credentials = Some(Asked::of(function));
        self
    }

    fn driver(&self) -> Driver<'_> {
        Driver { client: &self.client, options: &self.options }
    }
}

impl fmt::Debug for RedisManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.driver().target();
        f.debug_struct("RedisManager").field("target", &target).field("options", &self.options).finish()
    }
}

/// What both managers do.
#[derive(Clone, Copy)]
struct Driver<'a> {
    client: &'a Client,
    options: &'a Options,
}

/// How long a test may take that has no deadline.
const TEST: Duration = Duration::from_secs(5);

impl Driver<'_> {
    fn addr(&self) -> &ConnectionAddr {
        self.client.get_connection_info().addr()
    }

    fn knowledge(&self) -> Knowledge {
        let info = self.client.get_connection_info();
        match &self.options.credentials {
            // Their user may be another each time.
            Some(asked) => Knowledge::of(info.addr(), asked.id()),
            None => Knowledge::of(info.addr(), info.redis_settings().username()),
        }
    }

    fn connect(&self) -> RedisResult<Connection> {
        match Attempt::current() {
            Some(at) => self.connect_within(&at),
            None => {
                let client = self.with_credentials(Deadline::never())?;
                let conn = client.get_connection().map_err(safe::without_content)?;
                self.put_back_timeouts(&conn)?;
                Ok(conn)
            }
        }
    }

    /// The client, with those of the moment. (It is what says everywhere who we are.)
    fn with_credentials(&self, deadline: Deadline) -> RedisResult<Cow<'_, Client>> {
        let Some(asked) = &self.options.credentials else { return Ok(Cow::Borrowed(self.client)) };
        let Credentials { user, password } = asked.ask(deadline).map_err(fault::no_credentials)?;
        let info = self.client.get_connection_info();
        let settings = info.redis_settings().clone().set_password(password);
        let settings = match user {
            Some(user) => settings.set_username(user),
            None => settings,
        };
        Client::open(info.clone().set_redis_settings(settings)).map(Cow::Owned)
    }

    fn has_password(&self) -> bool {
        self.options.credentials.is_some() || self.client.get_connection_info().redis_settings().password().is_some()
    }

    fn connect_within(&self, at: &Attempt) -> RedisResult<Connection> {
        // Another client of the same connection may have published its own.
        let part = at.part();
        let client = self.with_credentials(part.deadline())?;
        let conn = Driver { client: &client, ..*self }.connect_in(&part)?;
        part.join();
        Ok(conn)
    }

    fn connect_in(&self, at: &Attempt) -> RedisResult<Connection> {
        let opening = |deadline| Opening { driver: *self, at, deadline };
        match self.addr() {
            ConnectionAddr::Tcp(host, _) if host.parse().is_ok_and(|ip: IpAddr| ip.is_unspecified()) => {
                Err((ErrorKind::InvalidClientConfig, "cannot connect to a wildcard address (0.0.0.0 or ::)").into())
            }
            ConnectionAddr::Tcp(host, port) => at
                .dial(&[(host.clone(), *port)], |target| {
                    opening(target.deadline).open(|opening| opening.over(Peer::Tcp(target.address)))
                })
                .map_err(|error| match error {
                    DialError::Connect(error) => error,
                    DialError::LookUp { source, .. } => source.into(),
                }),
            ConnectionAddr::Unix(path) => {
                settled(opening(at.deadline()).open(|opening| opening.over(Peer::Unix(path))))
            }
            addr => settled(opening(at.deadline()).open(|opening| opening.by_driver(addr.clone()))),
        }
    }

    /// Without a number of a pool's, and perhaps without its deadline: for managers that wrap this one, or for anybody.
    fn is_valid(&self, conn: &mut Connection) -> RedisResult<()> {
        self.is_valid_within(conn, asked_until().unwrap_or_else(|| Deadline::after(TEST)))
    }

    fn is_valid_within(&self, conn: &mut Connection, deadline: Deadline) -> RedisResult<()> {
        self.converse(conn, deadline, self.options.on_check_out)
    }

    /// The test, with what is undone before it. The timeouts are afterwards as this manager's, or as they were on a
    /// connection that no pool has asked about.
    fn converse(&self, conn: &mut Connection, deadline: Deadline, clean: Clean) -> RedisResult<()> {
        let client = match clean {
            Clean::Everything => self.with_credentials(deadline)?,
            Clean::Leftovers | Clean::Nothing => Cow::Borrowed(self.client),
        };
        Driver { client: &client, ..*self }.converse_as(conn, deadline, clean)
    }

    fn converse_as(&self, conn: &mut Connection, deadline: Deadline, clean: Clean) -> RedisResult<()> {
        let usual = self.options.timeouts;
        let (socket, timeouts) = match deadline.socket() {
            Some(fd) => (Some(fd), usual),
            None => find::with_timeouts(conn).map_or((None, usual), |(fd, was)| (Some(fd), was)),
        };
        let tested = is_the_pools(conn, deadline).and_then(|()| {
            let is_plain = !matches!(self.addr(), ConnectionAddr::TcpTls { .. });
            let dialogue = Dialogue { socket: socket.filter(|_| is_plain), deadline };
            self.test(conn, &dialogue, clean)
        });
        // Also of one that has failed: it may be somebody's who goes on with it.
        let put_back = put_back(conn, timeouts);
        tested.and(put_back)
    }

    /// Asked at every return: what the holder set is undone.
    fn has_broken(&self, conn: &mut Connection) -> bool {
        !conn.is_open() || self.put_back_timeouts(conn).is_err()
    }

    fn put_back_timeouts(&self, conn: &Connection) -> RedisResult<()> {
        put_back(conn, self.options.timeouts)
    }

    fn descriptors(conn: &Connection) -> Descriptors {
        let found = find::with_timeouts(conn);
        found.map_or_else(|_| Descriptors::unknown(), |(fd, _)| Descriptors::none().and_raw(fd))
    }

    /// Messages that the server sends of its own accord need nobody to do anything about them; but if they are of a
    /// channel, a holder has left the connection subscribed, as the test will find.
    fn on_unread(&self, peeked: &[u8]) -> Unread {
        let replies = Replies::of(peeked);
        let is_news = replies.whole.is_empty() && !replies.is_nonsense && !replies.pushed.is_empty();
        let is_of_channel = |message: &&[u8]| message.windows(7).take(16).any(|word| word == b"message");
        let is_plain = !matches!(self.addr(), ConnectionAddr::TcpTls { .. });
        match is_plain && is_news && replies.rest.is_empty() && !replies.pushed.iter().any(is_of_channel) {
            true => Unread::Fine,
            false => Unread::Test,
        }
    }

    fn hosts(&self) -> Vec<(String, u16)> {
        match self.addr() {
            ConnectionAddr::Tcp(host, port) => vec![(host.clone(), *port)],
            _ => Vec::new(),
        }
    }

    fn target(&self) -> String {
        self.addr().to_string()
    }
}

/// Whether it is the one that the pool asks about, as far as the pool knows its number.
fn is_the_pools(conn: &Connection, deadline: Deadline) -> RedisResult<()> {
    match deadline.socket() {
        Some(fd) if !find::is_socket_of(conn, fd)? => {
            let why = "the connection was replaced by another, which the pool does not know";
            Err((ErrorKind::Client, why).into())
        }
        _ => Ok(()),
    }
}

fn put_back(conn: &Connection, (read, write): Timeouts) -> RedisResult<()> {
    conn.set_read_timeout(read)?;
    conn.set_write_timeout(write)
}

/// What is left, as a timeout that sockets accept.
fn time_left(deadline: Deadline) -> RedisResult<Duration> {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    match deadline.remaining() {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        left => Ok(left.clamp(Duration::from_millis(1), YEAR)),
    }
}

macro_rules! manages {
    ($(#[$doc:meta])* $manager:ty, $driver:expr) => {
        $(#[$doc])*
        impl ManageConnection for $manager {
            type Connection = Connection;
            type Error = RedisError;

            /// Inside a pool's connect (of a manager that wraps this one) as [`connect_within`](Self::connect_within).
            /// Elsewhere the driver's own: no deadline, nothing published.
            fn connect(&self) -> RedisResult<Connection> {
                $driver(self).connect()
            }
            /// As [`is_valid_within`](Self::is_valid_within). Inside a pool's test (of a manager that wraps this one) it has the
            /// time of that, elsewhere five seconds from now: a silent server must not be waited for without end. Nobody tells
            /// which descriptor is the connection's, so all of this process are looked through. Managers that wrap this one
            /// should therefore delegate [`is_valid_within`](Self::is_valid_within), too.
            fn is_valid(&self, conn: &mut Connection) -> RedisResult<()> {
                $driver(self).is_valid(conn)
            }
            fn has_broken(&self, conn: &mut Connection) -> bool {
                $driver(self).has_broken(conn)
            }
            fn descriptors(&self, conn: &Connection) -> Descriptors {
                Driver::descriptors(conn)
            }
            fn connect_within(&self, at: &mut Attempt) -> RedisResult<Connection> {
                $driver(self).connect_within(at)
            }
            fn is_valid_within(&self, conn: &mut Connection, deadline: Deadline) -> RedisResult<()> {
                $driver(self).is_valid_within(conn, deadline)
            }
            fn on_unread(&self, _: &mut Connection, peeked: &[u8]) -> Unread {
                $driver(self).on_unread(peeked)
            }
            fn resets(&self) -> bool {
                $driver(self).options.on_return != Clean::Nothing
            }
            fn reset(&self, conn: &mut Connection, deadline: Deadline) -> RedisResult<Reset> {
                let driver = $driver(self);
                driver.converse(conn, deadline, driver.options.on_return).map(|()| Reset::Keep)
            }
            fn classify(&self, error: &(dyn Error + 'static)) -> Fault {
                fault::of(error)
            }
            fn hosts(&self) -> Vec<(String, u16)> {
                $driver(self).hosts()
            }
            fn target(&self) -> String {
                $driver(self).target()
            }
        }
    };
}

manages!(RedisManager, RedisManager::driver);
manages!(
    /// As [`RedisManager`](crate::redis::RedisManager), with its defaults.
    Client,
    |client| Driver { client, options: &DEFAULTS }
);
