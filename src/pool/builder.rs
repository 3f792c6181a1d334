//! The settings of a pool.

use super::Pool;
use super::{Error, ManageConnection, addresses::DNS_TTL};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// Settings, checked once when the pool is built.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) name: Option<String>,
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
}

impl Config {
    fn check(&self) -> Result<(), Error> {
        // A slot is 128 bytes: beyond this it is a mistake, not a wish.
        const MOST: u32 = 1 << 16;
        let wrong = match *self {
            Self { max_size: 0, .. } => "max_size is 0: such a pool could never lend a connection".to_owned(),
            Self { max_size, .. } if max_size > MOST => format!("max_size is {max_size}: more than {MOST}"),
            Self { max_size, min_idle: Some(min_idle), .. } if min_idle > max_size => {
                format!("min_idle is {min_idle}, which is more than max_size ({max_size})")
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
    manages: PhantomData<fn(M)>,
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
        };
        Self { config, manages: PhantomData }
    }
}

impl<M: ManageConnection> Builder<M> {
    /// A name for people who read its errors. Default: none.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = Some(name.into());
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

    /// Builds the pool. Opens `min_idle` connections, so none by default; resolves the manager's
    /// [`hosts`](ManageConnection::hosts).
    ///
    /// # Errors
    ///
    /// [`Error::is_config`] for a setting that makes no sense; what [`Pool::get`] returns when a connection that
    /// `min_idle` asks for cannot be opened.
    pub fn build(self, manager: M) -> Result<Pool<M>, Error> {
        self.config.check()?;
        let min_idle = self.config.min_idle.unwrap_or(0);
        let pool = Pool::from_parts(self.config, manager);
        pool.warm_up(min_idle)?;
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
        Pool::from_parts(self.config, manager)
    }
}

impl<M: ManageConnection> fmt::Debug for Builder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Builder").field(&self.config).finish()
    }
}
