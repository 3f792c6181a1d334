//! The one error of this crate.

use crate::fork::{Inherited, Origin};
use std::fmt;
use std::time::Duration;

pub(crate) type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why there is no connection, or why the one at hand must not be used.
///
/// Ask the `is_` methods which of the cases it is; [`source`](std::error::Error::source) is the driver's own error,
/// where there was one.
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Kind>);

#[derive(Debug, thiserror::Error)]
enum Kind {
    #[error("timed out after {waited:?}: {usage}{}", last(source))]
    Timeout { waited: Duration, usage: Usage, source: Option<Source> },
    #[error("the pool is closed")]
    Closed,
    #[error(
        "this connection belongs to {owner} and was inherited by {here}: a fork does not share connections, open or \
         check out one in this process"
    )]
    Inherited { owner: Origin, here: Origin },
    #[error("cannot connect: {0}")]
    Connect(#[source] Source),
    #[error("wrong pool setting: {0}")]
    Config(String),
    #[error("cannot keep this connection safe from a fork: {0}")]
    Unprotected(String),
}

/// How full the pool was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) in_use: u32,
    pub(crate) max_size: u32,
    pub(crate) waiting: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} in use, {} waiting", self.in_use, self.max_size, self.waiting)
    }
}

fn last(source: &Option<Source>) -> String {
    source.as_ref().map(|error| format!("; last error: {error}")).unwrap_or_default()
}

impl Error {
    /// No connection became free, or the hooks of [`on_child`](crate::fork::on_child) were not through, in time.
    pub fn is_timeout(&self) -> bool {
        matches!(*self.0, Kind::Timeout { .. })
    }

    /// The pool was closed, here or in an ancestor before the fork.
    pub fn is_closed(&self) -> bool {
        matches!(*self.0, Kind::Closed)
    }

    /// The connection was made by an ancestor of this process.
    pub fn is_inherited(&self) -> bool {
        matches!(*self.0, Kind::Inherited { .. })
    }

    /// The driver could not connect; its error is the source.
    pub fn is_connect(&self) -> bool {
        matches!(*self.0, Kind::Connect(_))
    }

    /// A setting of the pool makes no sense.
    pub fn is_config(&self) -> bool {
        matches!(*self.0, Kind::Config(_))
    }

    /// The descriptors of a connection could not be found, or inherited ones could not be dropped: the connection was
    /// closed rather than handed out unprotected.
    pub fn is_unprotected(&self) -> bool {
        matches!(*self.0, Kind::Unprotected(_))
    }

    pub(crate) fn timeout(waited: Duration, usage: Usage, source: Option<Source>) -> Self {
        Kind::Timeout { waited, usage, source }.into()
    }

    pub(crate) fn closed() -> Self {
        Kind::Closed.into()
    }

    pub(crate) fn connect(source: impl Into<Source>) -> Self {
        Kind::Connect(source.into()).into()
    }

    pub(crate) fn config(why: impl Into<String>) -> Self {
        Kind::Config(why.into()).into()
    }

    pub(crate) fn unprotected(why: impl Into<String>) -> Self {
        Kind::Unprotected(why.into()).into()
    }
}

impl From<Inherited> for Error {
    fn from(Inherited { owner, here, .. }: Inherited) -> Self {
        Kind::Inherited { owner, here }.into()
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self(Box::new(kind))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
