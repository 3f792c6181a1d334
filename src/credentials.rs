//! Who a connection is opened as, where that changes: asked anew for each.

use crate::{Attempt, Deadline, fork};
use std::error::Error;
use std::fmt;
use std::io;
use std::mem;
use std::sync::Arc;

/// A password, and perhaps a user name, for one connect: a token that a cloud has signed, a lease of a vault's.
///
/// See `redis::RedisManager::credentials` and `postgres::PostgresManager::credentials`. Its `Debug` shows neither of them.
///
/// ```
/// use forksafe::Credentials;
///
/// let token = Credentials::password("a token that is good for 15 minutes"); // for the user of the url
/// let lease = Credentials::new("v-app-x7Yq", "and their password"); // for this one
/// assert!(!format!("{token:?} {lease:?}").contains("token"));
/// ```
#[derive(Clone)]
pub struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: String,
}

impl Credentials {
    /// For this user, whatever the url or the configuration says.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: Some(user.into()), password: password.into() }
    }

    /// For the user of the url or the configuration.
    pub fn password(password: impl Into<String>) -> Self {
        Self { user: None, password: password.into() }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// There were no credentials for a connect, and so none was tried. The [source](Error::source) is what the function said
/// that was asked for them, or that it took too long. It is among the sources of the
/// [`forksafe::Error`](crate::Error), which [`is_connect`](crate::Error::is_connect).
#[derive(Debug, thiserror::Error)]
#[error("there are no credentials")]
pub struct NoCredentials(#[source] Source);

type Source = Box<dyn Error + Send + Sync>;
type Function = dyn Fn(Deadline) -> Result<Credentials, Source> + Send + Sync;

/// Where credentials come from.
#[derive(Clone)]
pub(crate) struct Asked(Arc<Function>);

impl Asked {
    pub(crate) fn of<E: Into<Source>>(
        function: impl Fn(Deadline) -> Result<Credentials, E> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |deadline| function(deadline).map_err(Into::into)))
    }

    /// Asks for those of one connect. What is returned may be used in this process: in a child that the function has forked
    /// there are none.
    pub(crate) fn ask(&self, deadline: Deadline) -> Result<Credentials, NoCredentials> {
        let here = fork::generation();
        // Whatever connects in there is no part of the connection that is to be made.
        let said = Attempt::outside(|| (self.0)(deadline));
        if fork::generation() != here {
            mem::forget(said);
            return Err(NoCredentials(io::Error::other("this process was forked by who was asked for them").into()));
        }
        match said {
            Ok(_) if deadline.is_over() => Err(NoCredentials(io::Error::from(io::ErrorKind::TimedOut).into())),
            said => said.map_err(NoCredentials),
        }
    }

    /// The same for all clones, in all processes that inherit it.
    #[cfg(feature = "redis")]
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a function")
    }
}
