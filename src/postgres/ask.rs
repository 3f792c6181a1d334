//! A question to a server without a pool: from the connect to the goodbye within one deadline.

use super::inside::inside;
use super::{Error, PostgresManager, alarm, discovery};
use crate::{Attempt, Deadline, ManageConnection};
use ::postgres::config::TargetSessionAttrs;
use ::postgres::tls::{MakeTlsConnect, TlsConnect};
use ::postgres::{Client, Socket};
use std::os::fd::RawFd;

impl<T> PostgresManager<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    /// Asks on a connection that is closed afterwards. A child that is forked meanwhile drops it, as any that a pool makes.
    pub(crate) fn ask_within<R>(
        &self,
        deadline: Deadline,
        ask: impl FnOnce(&mut Client) -> Result<R, ::postgres::Error>,
    ) -> Result<R, Error> {
        // As long as it lives, what it has published is protected.
        let mut at = Attempt::new(deadline);
        let mut client = self.connect_within(&mut at)?;
        let alarm = alarm::set(&mut client, deadline);
        let answer = ask(&mut client).map_err(|error| match &alarm {
            Some(alarm) if alarm.has_rung() => Error::TimedOut(Some(error)),
            _ => Error::Driver(error),
        });
        drop(alarm);
        self.goodbye(client, deadline);
        answer
    }

    /// The same server, another of its databases, whatever state the server is in.
    pub(crate) fn to_database(&self, name: &str) -> Self
    where
        T: Clone,
    {
        let mut other = self.clone();
        other.config.dbname(name).target_session_attrs(TargetSessionAttrs::Any);
        other
    }
}

/// The socket of a client, if it can be told.
pub(crate) fn socket_of(client: &mut Client) -> Option<RawFd> {
    inside(client, || discovery::event_loop_of_this_runtime(0).ok().map(|found| found.socket.fd))?
}
