//! The connection pool for programs that fork.
//!
//! A prefork server loads the program once and forks its workers: every worker inherits the parent's sockets, and two
//! processes that write on one socket garble each other's answers. A pool of this crate notices by itself. A forked
//! child drops every inherited socket at birth, without a word on the wire, and opens connections of its own when it
//! first asks for one. There is no hook to remember, and it works whoever calls fork: your own `main`, or a Puma,
//! gunicorn, uWSGI, Celery or PHP-FPM that has your library loaded.
//!
#![cfg_attr(feature = "redis", doc = "```no_run")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! use forksafe::Pool;
//!
//! let pool = Pool::new(redis::Client::open("redis://127.0.0.1/")?)?;
//! redis::cmd("PING").exec(&mut pool.get()?)?; // the classic mistake: used before the fork
//!
//! for _ in 0..4 {
//!     // SAFETY: the child is as restricted as any child of a process with threads.
//!     if unsafe { libc::fork() } == 0 {
//!         // The same value; the connection is this process's own.
//!         let answer: String = redis::cmd("ECHO").arg("hello").query(&mut pool.get()?)?;
//!         assert_eq!(answer, "hello");
//!         std::process::exit(0);
//!     }
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # The promises
//!
//! For children made by libc's `fork`, as all of those hosts make them, from birth. For children made by `_Fork`, raw
//! `clone` or `clone3`, where no handler can run, from their first call into this crate ([`fork::enter`] is one).
//!
//! 1. **Isolation.** No byte of one process travels on a connection that another process made.
//! 2. **The parent is unharmed**, whatever a child does with what it inherited.
//! 3. **Release.** A child holds no live inherited socket, even if it never uses the pool.
//! 4. **No hang.** A child never waits for what only its parent could release; [`Pool::get`] keeps its timeout.
//! 5. **A clear error.** An inherited connection says that it is one.
//! 6. **No cost.** No thread, no handler that waits, about a nanosecond for the check.
//!
//! What cannot be promised is in the README, section "Limits".
//!
//! # The parts
//!
//! | | |
//! | --- | --- |
//! | [`Pool`], [`Builder`], [`PooledConnection`] | shaped after r2d2; [`migrating`] says what differs |
//! | [`CustomizeConnection`], [`event`], [`Statistics`], [`Extensions`] | what is done about connections, and told of them |
//! | [`ManageConnection`], [`Attempt`], [`Deadline`] | what a driver implements; one line makes an `AsFd` client safe. [`wrap`] says how |
//! | [`cookbook`] | recipes: a prefork server, a job runner, an extension, a static pool, passwords that change |
//! | [`asynchronous`] | runtimes and async clients in programs that fork, an extension module for Python |
//! | [`fork`] | without the pool: [`fork::PerProcess`] for anything that a child must make anew, [`fork::MadeHere`] for what it must not use, [`fork::Guarded`] and [`fork::Registration`] for clients of your own, [`fork::on_child`] |
//! | feature `net` | `fork::net`: a child disowns the connections that nobody has registered, too |
//! | feature `redis` | `impl ManageConnection for redis::Client`, and `redis::RedisManager` with options |
//! | feature `postgres` | `postgres::PostgresManager`, for `postgres::Client`s |
//! | features `tracing`, `metrics` | what happens in a pool, for a subscriber or a recorder |
//! | feature `r2d2` | `r2d2::R2d2`, which makes a manager of this crate's from one that was written for r2d2 |
//! | feature `cluster` | `cluster`: a master, its workers, their threads, as in Puma |
//! | feature `sizing` | `sizing`: will all the connections of all hosts and workers fit? |
//! | feature `testing` | `testing`: children with deadlines, every way of forking, servers that judge; `testing::guide` says how to prove that a program survives fork |
//!
//! `use forksafe::*` is not supported: modules have the names of the crates that they are for.
//!
//! # Unsafe code
//!
//! It is in the fork layer (`src/fork/`), in the pool's array of slots (`src/pool/slots.rs`), and in the testing kit, which
//! forks. What runs in a child at birth is in `src/fork/handler/`, which imports nothing from outside.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(unsafe_code)]

#[cfg(not(target_os = "linux"))]
compile_error!("forksafe supports Linux so far; the README's section on other Unixes says what is missing");

pub mod asynchronous;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod cookbook;
#[cfg(any(feature = "postgres", feature = "redis"))]
mod credentials;
mod deadline;
#[allow(unsafe_code, reason = "the fork layer is what unsafe code is quarantined to")]
pub mod fork;
pub mod migrating;
mod pool;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "r2d2")]
pub mod r2d2;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sizing")]
pub mod sizing;
mod sync;
#[cfg(feature = "testing")]
#[allow(unsafe_code, reason = "it forks, and calls what only tests call")]
pub mod testing;
pub mod wrap;

#[cfg(any(feature = "postgres", feature = "redis"))]
pub use credentials::{Credentials, NoCredentials};
pub use deadline::Deadline;
pub use pool::{
    Attempt, Builder, Closed, ClosedCounts, CustomizeConnection, Dial, DialError, Error, ErrorKind, Extensions, Fault,
    HandleError, LoggingErrorHandler, ManageConnection, NopConnectionCustomizer, NopErrorHandler, Pool,
    PooledConnection, Reset, State, Statistics, Target, Unread, WeakPool, event,
};
