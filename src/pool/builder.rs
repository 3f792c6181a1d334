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

    /// Whether each connection is asked [`is_valid_within`](ManageConnection::is_valid_within) before it is lent: a
    /// round trip to the server every time. Without it a connection that the server has closed is noticed by its
    /// first use, or by [`has_broken`](ManageConnection::has_broken) afterwards. Default true.
    #[must_use]
    pub fn test_on_check_out(mut self, test: bool) -> Self {
        self.config.test_on_check_out = test;
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
