//! A module for Python: `quotes.backend()` says which process of PostgreSQL serves the worker that asks.

use forksafe::fork::PerProcess;
use forksafe::fork::net::Policy;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use sqlx::postgres::{PgPool, PgPoolOptions};
use std::error::Error;
use tokio::runtime::Runtime;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
type Own<T> = PerProcess<T, fn() -> Result<T>>;

/// In each process its own, made when it is first asked for.
static RUNTIME: Own<Runtime> = PerProcess::new(|| Ok(Runtime::new()?));

/// So is what lives in it, which is made in the same process's.
static DATABASE: Own<PgPool> = PerProcess::new(|| {
    let _inside = PerProcess::try_get(&RUNTIME)?.enter();
    Ok(PgPoolOptions::new().connect_lazy(&std::env::var("DATABASE_URL")?)?)
});

fn ask() -> Result<i32> {
    let answer = sqlx::query_scalar("select pg_backend_pid()").fetch_one(PerProcess::try_get(&DATABASE)?);
    Ok(PerProcess::try_get(&RUNTIME)?.block_on(answer)?)
}

/// Without the interpreter's lock, which another thread may want meanwhile.
#[pyfunction]
fn backend(python: Python<'_>) -> PyResult<i32> {
    python.detach(ask).map_err(|error| PyRuntimeError::new_err(error.to_string()))
}

#[pymodule]
fn quotes(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // A worker leaves the sockets that it has inherited to the master: it would hold their sessions open.
    Policy::tcp().set().map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    module.add_function(wrap_pyfunction!(backend, module)?)
}
