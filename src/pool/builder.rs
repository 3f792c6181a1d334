//! The settings of a pool.

use super::Pool;
use super::customize::Hooks;
use super::event::HandleEvent;
use super::{CustomizeConnection, Error, HandleError, ManageConnection, addresses::DNS_TTL};
use crate::Deadline;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

/// Settings, checked once when the pool is built.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) name: Option<Arc<str>>,
    pub(super) dns_ttl: Duration,
    pub(super) max_size: u32,
    pub(super) min_idle: Option<u32>,
    pub(super) test_on_check_out: bool,
    pub(super) test_after: Duration,
    pub(super) test_timeout: Duration,
    pub(super) retry_connect: bool,
    pub(super) require_known_descriptors: bool,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) connection_timeout: Duration,
    pub(super) max_uses: Option<u32>,
    pub(super) max_waiting: Option<u32>,
    pub(super) leak_threshold: Option<Duration>,
    pub(super) slow_threshold: Duration,
}

/// A slot is 136 to 256 bytes: beyond this it is a mistake, not a wish.
const MOST: u32 = 1 << 16;

/// Whether a pool may have this size.
pub(super) fn check_size(max_size: u32, min_idle: Option<u32>) -> Result<(), Error> {
    let wrong = match (max_size, min_idle) {
        (0, _) => "max_size is 0: such a pool could never lend a connection".to_owned(),
        (size, _) if size > MOST => format!("max_size is {size}: more than {MOST}"),
        (size, Some(min_idle)) if min_idle > size => {
            format!("min_idle is {min_idle}, which is more than max_size ({size})")
        }
        _ => return Ok(()),
    };
    Err(Error::config(wrong))
}

impl Config {
    fn check(&self) -> Result<(), Error> {
        check_size(self.max_size, self.min_idle)?;
        let wrong = match *self {
            Self { max_uses: Some(0), .. } => {
                "max_uses is 0: no connection could ever be lent; 1 keeps none, None means any number".to_owned()
            }
            Self { leak_threshold: Some(Duration::ZERO), .. } => {
                "leak_threshold is 0: every loan would be one that lasts too long; None means never".to_owned()
            }
            Self { test_timeout: Duration::ZERO, .. } => {
                "test_timeout is 0: no connection could ever pass its test; test_on_check_out(false) turns it off"
                    .to_owned()
            }
            Self { max_lifetime: Some(Duration::ZERO), .. } => {
                "max_lifetime is 0: a connection would expire before its first use; None means for ever".to_owned()
            }
            Self { idle_timeout: Some(Duration::ZERO), .. } => {
                "idle_timeout is 0: no connection could ever be used twice; None means never".to_owned()
            }
            _ => return Ok(()),
        };
        Err(Error::config(wrong))
    }
}

/// Settings for a [`Pool`], under the names that r2d2 gave them.
///
/// ```
/// # #[cfg(feature = "redis")] {
/// use std::time::Duration;
///
/// let client = redis::Client::open("redis://127.0.0.1/").unwrap();
/// let pool = forksafe::Pool::builder()
///     .max_size(5)
///     .connection_timeout(Duration::from_secs(2))
///     .build(client)
///     .unwrap(); // opens nothing: min_idle is not set
/// assert_eq!(pool.state().connections, 0);
/// # }
/// ```
pub struct Builder<M: ManageConnection> {
    config: Config,
    hooks: Hooks<M>,
}

impl<M: ManageConnection> Default for Builder<M> {
    fn default() -> Self {
        let config = Config {
            name: None,
            dns_ttl: DNS_TTL,
            max_size: 10,
            min_idle: None,
            test_on_check_out: true,
            test_after: Duration::from_millis(500),
            test_timeout: Duration::from_secs(1),
            retry_connect: false,
            require_known_descriptors: false,
            max_lifetime: Some(Duration::from_secs(30 * 60)),
            idle_timeout: Some(Duration::from_secs(10 * 60)),
            connection_timeout: Duration::from_secs(30),
            max_uses: None,
            max_waiting: None,
            leak_threshold: None,
            slow_threshold: Duration::from_secs(2),
        };
        Self { config, hooks: Hooks::default() }
    }
}

impl<M: ManageConnection> Builder<M> {
    /// The default settings.
    pub fn new() -> Self {
        Self::default()
    }

    /// A name for people who read its errors, its logs and its metrics. Default: none.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into().into());
        self
    }

    /// How long the addresses of the manager's [hosts](ManageConnection::hosts) are believed before a connect looks them up
    /// again. Zero: each connect looks up. Default one minute.
    #[must_use]
    pub fn dns_ttl(mut self, ttl: Duration) -> Self {
        self.config.dns_ttl = ttl;
        self
    }

    /// The most connections that one process may have at a time, lent and idle together; each child counts for itself,
    /// so the server sees up to this many from every process. Default 10.
    #[must_use]
    pub fn max_size(mut self, max_size: u32) -> Self {
        self.config.max_size = max_size;
        self
    }

    /// How many idle connections [`build`](Self::build), [`warm_up`](Pool::warm_up) and [`maintain`](Pool::maintain)
    /// see to. A child starts with none whatever this says. Default `None`: none, so that a master that only builds the
    /// pool and forks has no sockets to be inherited.
    #[must_use]
    pub fn min_idle(mut self, min_idle: Option<u32>) -> Self {
        self.config.min_idle = min_idle;
        self
    }

    /// Whether the server is asked ([`is_valid_within`](ManageConnection::is_valid_within)) before a connection is lent
    /// that has rested for [`test_after`](Self::test_after): a round trip. Without it there is only a look at the socket, which
    /// costs none: that the server has ended the connection is noticed, that it has silently gone is not. Default true.
    #[must_use]
    pub fn test_on_check_out(mut self, test: bool) -> Self {
        self.config.test_on_check_out = test;
        self
    }

    /// A connection that was proved alive less than this ago, by a test or by being new, is lent as it is. One that rested
    /// longer is looked at, without waiting: whether its peer has ended it, and whether something lies unread in it. Only then
    /// the server is asked, if [`test_on_check_out`](Self::test_on_check_out) says so. Zero: each one is tested at each
    /// checkout, as r2d2 does. Default 500 milliseconds (as in HikariCP).
    #[must_use]
    pub fn test_after(mut self, rest: Duration) -> Self {
        self.config.test_after = rest;
        self
    }

    /// How long all tests of one `get` may take together, with the goodbyes of connections that fail them; at most half of the
    /// time that is left when the first begins, so that there is time to connect. After one connection turned out to be silent,
    /// those that have rested as long get a tenth of this each. Default 1 second.
    ///
    /// For a caller who waits there are two exceptions, within his deadline. A test gets at least twice the time that one usually
    /// takes. When all of this time is over, further connections are still tested, for a tenth of it each or half of what is left to
    /// him.
    #[must_use]
    pub fn test_timeout(mut self, timeout: Duration) -> Self {
        self.config.test_timeout = timeout;
        self
    }

    /// Whether a connect that failed is tried again, with back-off, until the caller's time is over: 10 ms after the first
    /// failure, twice as long after each further one up to a second, by one thread at a time. The last failure is then the
    /// source of the timeout. Default false: a wrong password should not look like a slow server. What is the
    /// [caller's own fault](crate::Fault::Caller) is never tried again.
    ///
    /// Whatever this says, a server that has [no room](crate::Fault::NoRoom) for more fails no `get` while connections of this pool
    /// are in use: it waits for one to come back.
    #[must_use]
    pub fn retry_connect(mut self, retry: bool) -> Self {
        self.config.retry_connect = retry;
        self
    }

    /// Whether a connection whose descriptors nobody knows is an error ([`Error::is_unprotected`]); one whose client was replaced
    /// by such a one is closed when it comes back, or at its next test. If not, such connections
    /// are counted in [`State::unknown_descriptors`](super::State::unknown_descriptors): a child abandons them, but their
    /// sockets stay open there. Default false, so that a manager written for r2d2 works.
    #[must_use]
    pub fn require_known_descriptors(mut self, require: bool) -> Self {
        self.config.require_known_descriptors = require;
        self
    }

    /// How old a connection may become. One that is older is closed instead of lent; one that is lent is left alone
    /// until it is back. `None`: for ever. Default 30 minutes.
    #[must_use]
    pub fn max_lifetime(mut self, max_lifetime: Option<Duration>) -> Self {
        self.config.max_lifetime = max_lifetime;
        self
    }

    /// A connection that was last checked out longer ago than this is closed instead of lent; and by
    /// [`maintain`](Pool::maintain), unless that would leave fewer than `min_idle`. `None`: never. Default 10 minutes.
    ///
    /// Ordinary traffic sees to it as well: about every eighth of this time, and at least every minute, a return also closes idle
    /// connections that have been so for too long, down to `min_idle`, or are too old. Such a return takes as long as those
    /// goodbyes, up to a second.
    #[must_use]
    pub fn idle_timeout(mut self, idle_timeout: Option<Duration>) -> Self {
        self.config.idle_timeout = idle_timeout;
        self
    }

    /// How long [`get`](Pool::get) may take, connecting and validating included; and how long a return may, if the manager
    /// [resets](ManageConnection::reset). Zero: an idle connection now, or a
    /// timeout. [`Duration::MAX`]: for ever. Default 30 seconds.
    #[must_use]
    pub fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.config.connection_timeout = timeout;
        self
    }

    /// How often a connection may be lent; after that it is closed when it comes back. For servers and drivers that leak by the
    /// session. `Some(1)` keeps none: the pool opens a connection for each `get`, closes it at its return, and only sees to it
    /// that there are never more than [`max_size`](Self::max_size) of them. Default `None`: any number of times.
    #[must_use]
    pub fn max_uses(mut self, uses: Option<u32>) -> Self {
        self.config.max_uses = uses;
        self
    }

    /// How many callers may wait for a connection. When so many do, a further one that finds none is turned away at once
    /// ([`Error::is_queue_full`]): under an overload that lasts it is better to fail some requests early than all of them late.
    /// `Some(0)`: nobody waits. Who has tried the server already and was told that it is full, or has waited before, is not turned away.
    /// Default `None`: any number may.
    #[must_use]
    pub fn max_waiting(mut self, callers: Option<u32>) -> Self {
        self.config.max_waiting = callers;
        self
    }

    /// A connection that has been lent for longer than this is held to have leaked. Nothing is done about it but to say so: in
    /// [`State::leaks`](super::State::leaks), and to the [event handler](super::event::HandleEvent::handle_leak), once, by
    /// [`maintain`](Pool::maintain) or when a `get` times out. With the line of the `get` that it was lent to. Measured to a second.
    /// Default `None`: never. (The error of a `get` that timed out names the longest holder in any case.)
    #[must_use]
    pub fn leak_threshold(mut self, threshold: Option<Duration>) -> Self {
        self.config.leak_threshold = threshold;
        self
    }

    /// A `get` that took longer than this, though it got a connection, is [counted](super::Statistics::slow) as a slow one, and with
    /// the feature `tracing` it is a warning. Default 2 seconds (as in sqlx).
    #[must_use]
    pub fn slow_threshold(mut self, threshold: Duration) -> Self {
        self.config.slow_threshold = threshold;
        self
    }

    /// Asked about each connection that was opened, before anybody else sees it: to set up its session. It has what is left of the
    /// caller's time, and the [`Deadline`] names the connection's socket. An error closes the connection; it counts as one
    /// that could not be opened. May fork, as any callback may. Default: nothing is asked.
    ///
    /// ```
    /// # use forksafe::{ManageConnection, Pool};
    /// # use std::{io, io::Write, net::{TcpListener, TcpStream}};
    /// # struct Plain(std::net::SocketAddr);
    /// # impl ManageConnection for Plain {
    /// #     type Connection = TcpStream;
    /// #     type Error = io::Error;
    /// #     fn connect(&self) -> io::Result<TcpStream> { TcpStream::connect(self.0) }
    /// #     fn is_valid(&self, _: &mut TcpStream) -> io::Result<()> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut TcpStream) -> bool { false }
    /// # }
    /// # let server = TcpListener::bind("127.0.0.1:0")?;
    /// # let manager = Plain(server.local_addr()?);
    /// let pool = Pool::builder()
    ///     .after_connect(|conn: &mut TcpStream, deadline| {
    ///         conn.set_write_timeout(Some(deadline.socket_timeout()?))?;
    ///         conn.write_all(b"HELLO\n")
    ///     })
    ///     .build(manager)?;
    /// # pool.get()?;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn after_connect(
        mut self,
        ask: impl Fn(&mut M::Connection, Deadline) -> Result<(), M::Error> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.after_connect = Some(Box::new(ask));
        self
    }

    /// Asked about each connection that is about to be lent, after its test. It has what is left of the caller's time. An error
    /// closes the connection, and another is opened in its place; of a new one it ends the `get`, as its
    /// [source](std::error::Error::source).
    /// A loan costs some 200 nanoseconds more with it. Default: nothing is asked.
    #[must_use]
    pub fn before_acquire(
        mut self,
        ask: impl Fn(&mut M::Connection, Deadline) -> Result<(), M::Error> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.before_acquire = Some(Box::new(ask));
        self
    }

    /// Asked about each connection that comes back in order, after its manager has [reset](ManageConnection::reset) it. It has
    /// [`connection_timeout`](Self::connection_timeout), and its holder waits for it. An error closes the connection. A loan costs
    /// some 200 nanoseconds more with it. Default: nothing is asked.
    #[must_use]
    pub fn after_release(
        mut self,
        ask: impl Fn(&mut M::Connection, Deadline) -> Result<(), M::Error> + Send + Sync + 'static,
    ) -> Self {
        self.hooks.after_release = Some(Box::new(ask));
        self
    }

    /// Told of each connection of this process that is about to be closed, before its [goodbye](ManageConnection::goodbye), with
    /// which it shares the time. Not of those that `after_connect` refused, nor of what a child inherited. Default: nothing is told.
    #[must_use]
    pub fn before_close(mut self, look: impl Fn(&mut M::Connection, Deadline) + Send + Sync + 'static) -> Self {
        self.hooks.before_close = Some(Box::new(look));
        self
    }

    /// As in r2d2: what is done about each connection that was opened, and with each that has left the pool. Its `on_acquire` comes
    /// before [`after_connect`](Self::after_connect). Default: [`NopConnectionCustomizer`](super::NopConnectionCustomizer), but
    /// for that managers' goodbyes are said.
    #[must_use]
    pub fn connection_customizer(mut self, customizer: Box<dyn CustomizeConnection<M::Connection, M::Error>>) -> Self {
        self.hooks.customizer = Some(customizer);
        self
    }

    /// As in r2d2: who is given the errors of connects and tests. They are his then, and who waits for a connection is told their
    /// text. Default: nobody; the error that `get` returns has the driver's own as its source.
    #[must_use]
    pub fn error_handler(mut self, handler: Box<dyn HandleError<M::Error>>) -> Self {
        self.hooks.errors = Some(handler);
        self
    }

    /// As in r2d2: who is told what happens. A loan costs some 200 nanoseconds more with it. Default: nobody.
    #[must_use]
    pub fn event_handler(mut self, handler: Box<dyn HandleEvent>) -> Self {
        self.hooks.events = Some(handler);
        self
    }

    /// Accepted so that code for r2d2 compiles, and not used: this pool has no threads. See [`Pool::maintain`] for what r2d2's do.
    #[must_use]
    #[deprecated(note = "forksafe runs no threads; Pool::maintain does what r2d2's threads do, when you call it")]
    pub fn thread_pool<T>(self, unused: T) -> Self {
        drop(unused);
        self
    }

    /// Builds the pool. Opens `min_idle` connections, so none by default; resolves the manager's
    /// [`hosts`](ManageConnection::hosts).
    ///
    /// # Errors
    ///
    /// [`Error::is_config`] for a setting that makes no sense; what [`Pool::get`] returns when a connection that
    /// `min_idle` asks for cannot be opened.
    #[track_caller]
    pub fn build(self, manager: M) -> Result<Pool<M>, Error> {
        self.config.check()?;
        let min_idle = self.config.min_idle.unwrap_or(0);
        let pool = Pool::from_parts(self.config, self.hooks, manager);
        pool.0.warm_up(min_idle, Location::caller())?;
        Ok(pool)
    }

    /// Builds the pool and opens nothing; the first [`maintain`](Pool::maintain) sees to `min_idle`.
    ///
    /// # Panics
    ///
    /// For a setting that makes no sense.
    #[track_caller]
    pub fn build_unchecked(self, manager: M) -> Pool<M> {
        if let Err(error) = self.config.check() {
            panic!("forksafe: {error}");
        }
        Pool::from_parts(self.config, self.hooks, manager)
    }
}

impl<M: ManageConnection> fmt::Debug for Builder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).field("hooks", &self.hooks).finish()
    }
}
