//! A module of Python's that is made as [`forksafe::asynchronous`] says, with more clients than the one that is shown there. And
//! the same as they are kept without that, which is the control.
//!
//! `ask(client, word)` has the client bring a word back, `session(client)` says which session it has at its server.

mod clients;
// What the documentation shows.
#[path = "../../guide/python_module.rs"]
mod module_of_the_guide;
#[path = "../../guide/own_threads.rs"]
mod own_threads;
mod plain;
mod surviving;

use clients::{Clients, Error};
use forksafe::fork::net::Policy;
use plain::Plain;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use surviving::{Refusing, Surviving};

#[pymodule]
fn survivor(module: &Bound<'_, PyModule>) -> PyResult<()> {
    // What a client leaves open in a child, a child closes: nobody has registered a pool's connections. `FORKSAFE_NET=off` is for
    // the control.
    match Policy::from_env().map(|policy| policy.map(Policy::set)) {
        Ok(None | Some(Ok(()))) => {}
        Ok(Some(Err(error))) | Err(error) => return Err(PyValueError::new_err(error.to_string())),
    }
    module.add_function(wrap_pyfunction!(ask, module)?)?;
    module.add_function(wrap_pyfunction!(total, module)?)?;
    module.add_function(wrap_pyfunction!(session, module)?)
}

/// The word, by way of the client. Without the interpreter's lock, which the threads of a runtime may want.
#[pyfunction]
fn ask(python: Python<'_>, client: &str, word: &str) -> PyResult<String> {
    let (clients, client) = named(client);
    python.detach(|| clients.ask(client, word)).map_err(raised)
}

/// The session that the client has, or `None` if it is a client of nobody.
#[pyfunction]
fn session(python: Python<'_>, client: &str) -> PyResult<Option<String>> {
    let (clients, client) = named(client);
    python.detach(|| clients.session(client)).map_err(raised)
}

/// By the threads that the documentation shows.
#[pyfunction]
fn total(python: Python<'_>, numbers: Vec<u64>) -> u64 {
    python.detach(|| own_threads::total(&numbers))
}

/// `plain_sqlx` is the `sqlx` of those that are plain.
fn named(client: &str) -> (&'static dyn Clients, &str) {
    match client.split_once('_') {
        Some(("plain", client)) => (&Plain, client),
        Some(("refusing", client)) => (&Refusing, client),
        _ => (&Surviving, client),
    }
}

fn raised(error: Error) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}
