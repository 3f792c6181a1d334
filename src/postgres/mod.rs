//! `postgres::Client` in the pool.

use crate::{Attempt, Deadline, ManageConnection};
use ::postgres::tls::{MakeTlsConnect, TlsConnect};
use ::postgres::{Client, Config, Socket};
use std::fmt;

/// Connections to PostgreSQL.
#[derive(Clone)]
pub struct PostgresManager<T> {
    config: Config,
    tls: T,
}

impl<T> PostgresManager<T> {
    /// Connections as the driver's configuration says, encrypted by `tls` where it says so.
    pub fn new(config: Config, tls: T) -> Self {
        Self { config, tls }
    }
}

impl<T> ManageConnection for PostgresManager<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    type Connection = Client;
    type Error = ::postgres::Error;

    fn connect(&self) -> Result<Client, Self::Error> {
        self.config.connect(self.tls.clone())
    }
    fn is_valid(&self, conn: &mut Client) -> Result<(), Self::Error> {
        self.is_valid_within(conn, Deadline::never())
    }
    fn has_broken(&self, conn: &mut Client) -> bool {
        conn.is_closed()
    }
    fn connect_within(&self, _: &mut Attempt) -> Result<Client, Self::Error> {
        self.connect()
    }
    fn is_valid_within(&self, conn: &mut Client, deadline: Deadline) -> Result<(), Self::Error> {
        conn.is_valid(deadline.remaining())
    }
}

impl<T> fmt::Debug for PostgresManager<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresManager").field("config", &self.config).finish_non_exhaustive()
    }
}
