//! The one error of this crate.

use super::Holder;
use crate::fork::Inherited;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no connection, or why the one at hand must not be used.
///
/// Ask the `is_` methods which of the cases it is; [`source`](std::error::Error::source) is the driver's own error, where
/// there was one. `{}` shows what the pool has to say, `{:#}` and `{:?}` that and all the sources, on one line.
///
/// ```
/// # use forksafe::{ManageConnection, Pool};
/// # struct Away;
/// # impl ManageConnection for Away {
/// #     type Connection = ();
/// #     type Error = std::io::Error;
/// #     fn connect(&self) -> std::io::Result<()> { Err(std::io::Error::other("connection refused")) }
/// #     fn is_valid(&self, _: &mut ()) -> std::io::Result<()> { Ok(()) }
/// #     fn has_broken(&self, _: &mut ()) -> bool { false }
/// #     fn target(&self) -> String { "10.0.0.7:6379".into() }
/// # }
/// let pool = Pool::builder().name("sessions").build(Away)?; // nobody listens at 10.0.0.7:6379
/// let error = pool.get().unwrap_err();
/// assert_eq!(error.to_string(), r#"pool "sessions" cannot connect to 10.0.0.7:6379"#);
/// assert_eq!(format!("{error:#}"), r#"pool "sessions" cannot connect to 10.0.0.7:6379: connection refused"#);
/// # Ok::<_, forksafe::Error>(())
/// ```
pub struct Error {
    kind: Box<Kind>,
    source: Option<Source>,
}

/// The cases of an [`Error`], to match on. See its `is_` methods for what they mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// [`Error::is_timeout`].
    Timeout,
    /// [`Error::is_queue_full`].
    QueueFull,
    /// [`Error::is_closed`].
    Closed,
    /// [`Error::is_inherited`].
    Inherited,
    /// [`Error::is_connect`].
    Connect,
    /// [`Error::is_config`].
    Config,
    /// [`Error::is_unprotected`].
    Unprotected,
}

#[derive(Debug)]
enum Kind {
    Timeout { pool: Named, waited: Duration, usage: Usage },
    QueueFull { pool: Named, usage: Usage },
    Closed { pool: Named },
    Inherited(Inherited),
    Connect { pool: Named, target: String },
    Config { why: String },
    Unprotected { why: String },
}

/// A pool, for people: nothing if it has no name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Named(pub(crate) Option<Arc<str>>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "pool {name:?} "),
            None => Ok(()),
        }
    }
}

/// How full the pool was, and by whom.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Lent, or being opened, tested or closed.
    pub(crate) in_use: u32,
    pub(crate) idle: u32,
    /// Being opened.
    pub(crate) connecting: u32,
    pub(crate) max_size: u32,
    /// Others than the one who is told.
    pub(crate) waiting: usize,
    /// The one that has been lent for longest.
    pub(crate) longest: Option<Holder>,
    /// One that the thread which is told has asked for itself.
    pub(crate) own: Option<Holder>,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} in use", self.in_use, self.max_size)?;
        if self.connecting > 0 {
            write!(f, " ({} of them being opened)", self.connecting)?;
        }
        if self.idle > 0 {
            write!(f, ", {} idle", self.idle)?;
        }
        write!(f, ", {} others waiting", self.waiting)?;
        if let Some(longest) = self.longest {
            write!(f, "; held longest: {longest}")?;
        }
        match self.own {
            Some(own) => write!(f, "; this thread asked for one of them itself, at {}", own.location),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { pool, waited, usage } => write!(f, "{pool}timed out after {waited:?}: {usage}"),
            Self::QueueFull { pool, usage } => write!(f, "{pool}turned away, for no more may wait: {usage}"),
            Self::Closed { pool: Named(Some(name)) } => write!(f, "pool {name:?} is closed"),
            Self::Closed { .. } => f.write_str("the pool is closed"),
            Self::Inherited(why) => why.fmt(f),
            Self::Connect { pool, target } if target.is_empty() => write!(f, "{pool}cannot connect"),
            Self::Connect { pool, target } => write!(f, "{pool}cannot connect to {target}"),
            Self::Config { why } => write!(f, "wrong pool setting: {why}"),
            Self::Unprotected { why } => write!(f, "cannot keep this connection safe from a fork: {why}"),
        }
    }
}

impl Error {
    /// Which of the cases it is.
    ///
    /// ```
    /// # use forksafe::{Error, ErrorKind};
    /// fn status(error: &Error) -> u16 {
    ///     match error.kind() {
    ///         ErrorKind::Timeout | ErrorKind::QueueFull => 503, // too busy: come back later
    ///         ErrorKind::Connect => 502,
    ///         _ => 500,
    ///     }
    /// }
    /// # let _ = status;
    /// ```
    pub fn kind(&self) -> ErrorKind {
        match *self.kind {
            Kind::Timeout { .. } => ErrorKind::Timeout,
            Kind::QueueFull { .. } => ErrorKind::QueueFull,
            Kind::Closed { .. } => ErrorKind::Closed,
            Kind::Inherited(_) => ErrorKind::Inherited,
            Kind::Connect { .. } => ErrorKind::Connect,
            Kind::Config { .. } => ErrorKind::Config,
            Kind::Unprotected { .. } => ErrorKind::Unprotected,
        }
    }

    /// No connection was free, and as many callers waited for one as [`max_waiting`](crate::Builder::max_waiting) says.
    pub fn is_queue_full(&self) -> bool {
        self.kind() == ErrorKind::QueueFull
    }

    /// No connection became free, or the hooks of [`on_child`](crate::fork::on_child) were not through, in time.
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::Timeout
    }

    /// The pool was closed, here or in an ancestor before the fork.
    pub fn is_closed(&self) -> bool {
        self.kind() == ErrorKind::Closed
    }

    /// The connection was made by an ancestor of this process.
    pub fn is_inherited(&self) -> bool {
        self.kind() == ErrorKind::Inherited
    }

    /// The driver could not connect; its error is the source.
    pub fn is_connect(&self) -> bool {
        self.kind() == ErrorKind::Connect
    }

    /// A setting of the pool makes no sense.
    pub fn is_config(&self) -> bool {
        self.kind() == ErrorKind::Config
    }

    /// The descriptors of a connection could not be found, or inherited ones could not be dropped: the connection was
    /// closed rather than handed out unprotected. Or none was opened: beside inherited files ([`R2d2::in_files`]), or in the closure of
    /// [`Attempt::observe`](crate::Attempt::observe), where the process's connections cannot be used.
    ///
    #[cfg_attr(feature = "r2d2", doc = "[`R2d2::in_files`]: crate::r2d2::R2d2::in_files")]
    #[cfg_attr(not(feature = "r2d2"), doc = "[`R2d2::in_files`]: crate")]
    pub fn is_unprotected(&self) -> bool {
        self.kind() == ErrorKind::Unprotected
    }

    pub(super) fn timeout(pool: Named, waited: Duration, usage: Usage, source: Option<Source>) -> Self {
        Self { kind: Box::new(Kind::Timeout { pool, waited, usage }), source }
    }

    pub(super) fn queue_full(pool: Named, usage: Usage, source: Option<Source>) -> Self {
        Self { kind: Box::new(Kind::QueueFull { pool, usage }), source }
    }

    pub(super) fn closed(pool: Named) -> Self {
        Kind::Closed { pool }.into()
    }

    pub(super) fn connect(pool: Named, target: String, source: impl Into<Source>) -> Self {
        Self { kind: Box::new(Kind::Connect { pool, target }), source: Some(source.into()) }
    }

    pub(super) fn config(why: impl Into<String>) -> Self {
        Kind::Config { why: why.into() }.into()
    }

    pub(super) fn unprotected(why: impl Into<String>) -> Self {
        Kind::Unprotected { why: why.into() }.into()
    }

    #[cold]
    pub(super) fn in_an_observation() -> Self {
        Self::unprotected(
            "in the closure of Attempt::observe the process's own connections are covered; a manager that asks another pool while it              connects goes without: R2d2::unobserved or descriptors_by, or ask before observe",
        )
    }

    /// The sources that the texts before them do not end with already: some drivers repeat theirs.
    fn chain(&self) -> impl Iterator<Item = String> {
        let mut next = self.source();
        let mut before = String::new();
        std::iter::from_fn(move || {
            loop {
                let error = next?;
                next = error.source();
                let text = error.to_string();
                if !before.ends_with(&text) {
                    before.clone_from(&text);
                    return Some(text);
                }
            }
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self { kind: Box::new(kind), source: None }
    }
}

impl From<Inherited> for Error {
    fn from(why: Inherited) -> Self {
        Kind::Inherited(why).into()
    }
}

impl From<Error> for io::Error {
    /// With the kind of the first source that is an `io::Error`, if there is one.
    fn from(error: Error) -> Self {
        let mut cause = error.source();
        while let Some(source) = cause.filter(|source| !source.is::<io::Error>()) {
            cause = source.source();
        }
        let cause = cause.and_then(|cause| cause.downcast_ref()).map(io::Error::kind);
        let kind = match *error.kind {
            Kind::Timeout { .. } => io::ErrorKind::TimedOut,
            Kind::QueueFull { .. } => io::ErrorKind::WouldBlock,
            Kind::Closed { .. } => io::ErrorKind::NotConnected,
            Kind::Connect { .. } => cause.unwrap_or(io::ErrorKind::Other),
            Kind::Config { .. } => io::ErrorKind::InvalidInput,
            Kind::Inherited(_) => io::ErrorKind::PermissionDenied,
            Kind::Unprotected { .. } => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        if f.alternate() {
            self.chain().try_for_each(|source| write!(f, ": {source}"))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "forksafe::Error({self:#})")
    }
}
