//! What can go wrong with a connection to PostgreSQL.

use ::postgres::error::SqlState;
use std::io;

/// Why there is no connection to PostgreSQL. The [source](std::error::Error::source) of a
/// [`forksafe::Error`](crate::Error) that [`is_connect`](crate::Error::is_connect).
///
/// `{}` says it without the sources, as the driver's errors do; `{:#}` of a [`forksafe::Error`](crate::Error) says all.
///
/// # What it shows
///
/// Of a connect, all that the server says: its message with detail and hint, in which there may be the names of hosts,
/// roles and databases. No password. Of a test or a reset, where the session has been another holder's, the server's
/// message and code ([`Refused`](Self::Refused)), but not the detail, which is where PostgreSQL shows values of rows (`Key
/// (email)=(...) already exists`).
///
/// ```
/// # fn because(error: forksafe::Error) -> Option<postgres::error::SqlState> {
/// use forksafe::postgres;
/// use std::error::Error;
///
/// match error.source()?.downcast_ref()? {
///     postgres::Error::Driver(error) => error.code().cloned(),
///     postgres::Error::Refused { code, .. } => Some(code.clone()),
///     _ => None,
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver's own: the server refuses, or is not there.
    #[error(transparent)]
    Driver(#[from] ::postgres::Error),
    /// The server refuses the test or the reset of a session.
    #[error("the server refuses: {message} (SQLSTATE {})", .code.code())]
    Refused {
        /// What PostgreSQL calls it.
        code: SqlState,
        /// What it says, without detail and hint.
        message: String,
    },
    /// There was no answer before the deadline. With the error that ended the last attempt, if there was one.
    #[error("no answer in time")]
    TimedOut(#[source] Option<::postgres::Error>),
    /// No host name could be resolved.
    #[error("cannot look up host {host:?}")]
    LookUp {
        /// The name; the last, if there are several.
        host: String,
        /// What libc said.
        source: io::Error,
    },
    /// The process, or the system, has too many open files.
    #[error("no room for the descriptors of another connection")]
    NoDescriptors(#[source] io::Error),
    /// The function of [`credentials`](super::PostgresManager::credentials) had none, or not in time.
    #[error("{0}")]
    NoCredentials(#[from] crate::NoCredentials),
    /// This thread runs async code, and may not wait.
    #[error(
        "a blocking PostgreSQL connection cannot be used on a thread that runs async code: call this inside \
         tokio::task::spawn_blocking"
    )]
    InsideRuntime,
    /// The driver panicked instead of returning an error.
    #[error("the driver panicked: {0}")]
    Panicked(String),
}

impl Error {
    /// What ended a session that others have used.
    pub(super) fn of_session(error: ::postgres::Error) -> Self {
        match error.as_db_error() {
            Some(said) => Self::Refused { code: said.code().clone(), message: said.message().to_owned() },
            None => Self::Driver(error),
        }
    }
}
