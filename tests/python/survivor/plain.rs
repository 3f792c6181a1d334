//! The control, as libraries are written: one of each for ever.

use crate::clients::{self, Clients, Error};
use rayon::ThreadPool;
use redis::aio::MultiplexedConnection;
use sqlx::postgres::PgPool;
use std::sync::LazyLock;
use tokio::runtime::Runtime;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| clients::make_runtime().expect("threads and descriptors"));
static POSTGRES: LazyLock<PgPool> = LazyLock::new(|| clients::make_postgres(&RUNTIME).expect("POSTGRES is a url"));
static REDIS: LazyLock<MultiplexedConnection> =
    LazyLock::new(|| clients::make_redis(&RUNTIME).expect("there is a Redis"));
static WEB: LazyLock<reqwest::blocking::Client> = LazyLock::new(|| clients::make_web().expect("a thread"));

pub(crate) struct Plain;

impl Clients for Plain {
    fn runtime(&self) -> Result<&Runtime, Error> {
        Ok(&RUNTIME)
    }

    fn postgres(&self) -> Result<&PgPool, Error> {
        Ok(&POSTGRES)
    }

    fn redis(&self) -> Result<MultiplexedConnection, Error> {
        Ok(REDIS.clone())
    }

    fn web(&self) -> Result<&reqwest::blocking::Client, Error> {
        Ok(&WEB)
    }

    fn threads(&self) -> Result<Option<&ThreadPool>, Error> {
        Ok(None)
    }
}
