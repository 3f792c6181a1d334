//! As the guide says: each process makes its own.

use crate::clients::{self, Clients, Error};
use forksafe::fork::PerProcess;
use rayon::ThreadPool;
use redis::aio::MultiplexedConnection;
use sqlx::postgres::PgPool;
use tokio::runtime::Runtime;

type Own<T> = PerProcess<T, fn() -> Result<T, Error>>;

static RUNTIME: Own<Runtime> = PerProcess::new(clients::make_runtime);
/// Each is made in the runtime of the same process, and abandoned with it.
static POSTGRES: Own<PgPool> = PerProcess::new(|| clients::make_postgres(PerProcess::try_get(&RUNTIME)?));
static REDIS: Own<MultiplexedConnection> = PerProcess::new(|| clients::make_redis(PerProcess::try_get(&RUNTIME)?));
static WEB: Own<reqwest::blocking::Client> = PerProcess::new(clients::make_web);
static THREADS: Own<ThreadPool> = PerProcess::new(clients::make_threads);

pub(crate) struct Surviving;

impl Clients for Surviving {
    fn runtime(&self) -> Result<&Runtime, Error> {
        PerProcess::try_get(&RUNTIME)
    }

    fn postgres(&self) -> Result<&PgPool, Error> {
        PerProcess::try_get(&POSTGRES)
    }

    fn redis(&self) -> Result<MultiplexedConnection, Error> {
        PerProcess::try_get(&REDIS).cloned()
    }

    fn web(&self) -> Result<&reqwest::blocking::Client, Error> {
        PerProcess::try_get(&WEB)
    }

    fn threads(&self) -> Result<Option<&ThreadPool>, Error> {
        PerProcess::try_get(&THREADS).map(Some)
    }
}

/// Those of a library that cannot make everything anew: its runtime has state that a child would miss. It says so.
static IRREPLACEABLE: Own<Runtime> = PerProcess::new(clients::make_runtime);

pub(crate) struct Refusing;

impl Clients for Refusing {
    fn runtime(&self) -> Result<&Runtime, Error> {
        PerProcess::try_get_unless_inherited(&IRREPLACEABLE)
    }

    fn postgres(&self) -> Result<&PgPool, Error> {
        Err("it has none".into())
    }

    fn redis(&self) -> Result<MultiplexedConnection, Error> {
        Err("it has none".into())
    }

    fn web(&self) -> Result<&reqwest::blocking::Client, Error> {
        Err("it has none".into())
    }

    fn threads(&self) -> Result<Option<&ThreadPool>, Error> {
        Err("it has none".into())
    }
}
