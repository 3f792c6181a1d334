//! The clients, however they are kept.

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use sqlx::postgres::{PgPool, PgPoolOptions};
use std::env;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A busy machine is not a server that is silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// What keeps them.
pub(crate) trait Clients: Sync {
    fn runtime(&self) -> Result<&Runtime, Error>;
    fn postgres(&self) -> Result<&PgPool, Error>;
    fn redis(&self) -> Result<MultiplexedConnection, Error>;
    /// It has a runtime of its own, on a thread.
    fn web(&self) -> Result<&reqwest::blocking::Client, Error>;
    /// `None` is rayon's own, which there is one of in a process.
    fn threads(&self) -> Result<Option<&ThreadPool>, Error>;

    fn ask(&self, client: &str, word: &str) -> Result<String, Error> {
        match client {
            "tokio" => {
                let word = word.to_owned();
                // On a thread of the runtime, and by its clock.
                let brings = async {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    word
                };
                let runtime = self.runtime()?;
                Ok(runtime.block_on(runtime.spawn(brings))?)
            }
            "sqlx" => {
                let query = sqlx::query_scalar("select $1::text from pg_sleep(0.001)").bind(word);
                Ok(self.runtime()?.block_on(query.fetch_one(self.postgres()?))?)
            }
            "redis" => {
                let mut connection = self.redis()?;
                Ok(self.runtime()?.block_on(redis::cmd("ECHO").arg(word).query_async(&mut connection))?)
            }
            "rayon" => {
                let brings = || word.par_chars().collect();
                Ok(self.threads()?.map_or_else(brings, |threads| threads.install(brings)))
            }
            "reqwest" => {
                let url = format!("{}{word}", env::var("WEB")?);
                Ok(self.web()?.get(url).send()?.error_for_status()?.text()?)
            }
            _ => Err(format!("there is no client {client}").into()),
        }
    }

    fn session(&self, client: &str) -> Result<Option<String>, Error> {
        match client {
            "sqlx" => {
                let query = sqlx::query_scalar("select pg_backend_pid()::text");
                Ok(Some(self.runtime()?.block_on(query.fetch_one(self.postgres()?))?))
            }
            "redis" => {
                let mut connection = self.redis()?;
                let mut command = redis::cmd("CLIENT");
                let id: u64 = self.runtime()?.block_on(command.arg("ID").query_async(&mut connection))?;
                Ok(Some(id.to_string()))
            }
            _ => Ok(None),
        }
    }
}

pub(crate) fn make_runtime() -> Result<Runtime, Error> {
    Ok(Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// One connection, so that the session is always the same.
pub(crate) fn make_postgres(runtime: &Runtime) -> Result<PgPool, Error> {
    let _inside = runtime.enter();
    Ok(PgPoolOptions::new().max_connections(1).acquire_timeout(PATIENCE).connect_lazy(&env::var("POSTGRES")?)?)
}

pub(crate) fn make_redis(runtime: &Runtime) -> Result<MultiplexedConnection, Error> {
    let patient =
        AsyncConnectionConfig::new().set_connection_timeout(Some(PATIENCE)).set_response_timeout(Some(PATIENCE));
    let client = redis::Client::open(env::var("REDIS")?)?;
    Ok(runtime.block_on(client.get_multiplexed_async_connection_with_config(&patient))?)
}

pub(crate) fn make_web() -> Result<reqwest::blocking::Client, Error> {
    Ok(reqwest::blocking::Client::builder().timeout(PATIENCE).build()?)
}

pub(crate) fn make_threads() -> Result<ThreadPool, Error> {
    Ok(ThreadPoolBuilder::new().num_threads(2).build()?)
}
