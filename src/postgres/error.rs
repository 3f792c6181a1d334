//! What can go wrong with a connection to PostgreSQL.

use std::error::Error as _;
use std::io;

/// Why there is no connection to PostgreSQL. The [source](std::error::Error::source) of a
/// [`forksafe::Error`](crate::Error) that [`is_connect`](crate::Error::is_connect).
///
/// ```
/// # fn because(error: forksafe::Error) -> Option<postgres::error::SqlState> {
/// use forksafe::postgres;
/// use std::error::Error;
///
/// match error.source()?.downcast_ref()? {
///     postgres::Error::Driver(error) => error.code().cloned(),
///     _ => None,
/// }
/// # }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver's own: the server refuses, or is not there.
    #[error("{}", in_full(.0))]
    Driver(#[from] ::postgres::Error),
    /// There was no answer before the deadline. With the error that ended the last attempt, if there was one.
    #[error("no answer in time{}", .0.as_ref().map(|error| format!(" ({})", in_full(error))).unwrap_or_default())]
    TimedOut(#[source] Option<::postgres::Error>),
    /// No host name could be resolved.
    #[error("cannot look up host {host:?}: {source}")]
    LookUp {
        /// The name; the last, if there are several.
        host: String,
        /// What libc said.
        source: io::Error,
    },
    /// The process, or the system, has too many open files.
    #[error("no room for the descriptors of another connection: {0}")]
    NoDescriptors(#[source] io::Error),
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

/// The driver's errors leave what matters to their sources.
fn in_full(error: &::postgres::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = error.source();
    }
    text
}
