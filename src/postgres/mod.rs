//! PostgreSQL: the `postgres` crate's client in the pool.
//!
//! The client hides a socket, an event loop and a runtime, says goodbye when it is dropped, and knows no fork. How its
//! descriptors are found is in `discovery`, what a child does about them in the fork layer.

mod addresses;
mod alarm;
mod discovery;
mod error;
mod hook;

pub use error::Error;

use crate::fork::probe::{self, Known};
use crate::{Attempt, Deadline, ManageConnection, Reset};
use ::postgres::fallible_iterator::FallibleIterator;
use ::postgres::tls::{MakeTlsConnect, TlsConnect};
use ::postgres::{Client, Config, Socket};
use alarm::Alarm;
use hook::Hook;
use std::fmt;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;
use tokio::runtime::Handle;

/// Connections to PostgreSQL: the driver's [`Client`]s, made as its own [`Config`] says.
///
/// ```no_run
/// use forksafe::{Pool, postgres::PostgresManager};
/// use postgres::NoTls;
///
/// let manager = PostgresManager::new("host=/run/postgresql user=app".parse()?, NoTls);
/// let pool = Pool::new(manager)?;
/// let row = pool.get()?.query_one("SELECT 6 * 7", &[])?;
/// assert_eq!(row.get::<_, i32>(0), 42);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// Any connector of the driver's will do for `tls`: `NoTls`, or those of `postgres-native-tls`, `postgres-openssl` and
/// `tokio-postgres-rustls`. All of the configuration counts: several hosts, load balancing, `target_session_attrs`, unix
/// sockets, notice callbacks.
///
/// A guard lends a `Client`, so what takes one, or a `GenericClient`, takes `&mut *guard`. In a child an inherited client
/// is never dropped; what was borrowed from it before the fork (a transaction, a row iterator) is told that the connection
/// is closed.
///
/// # Names
///
/// A host name is resolved when the pool is built, so that a child need not, and put before the driver as `hostaddr`: so
/// the driver starts no thread for the look-up. TLS still checks the name. The driver is left to itself, and looks up what
/// names there are, if the configuration has a `hostaddr` of its own, mixes unix sockets and names, or names an address that
/// needs an interface (`fe80::1%eth0`).
///
/// # Validation
///
/// An empty query, within the deadline. A transaction that an earlier holder left open is not noticed:
/// see [`on_return`](Self::on_return).
///
/// # Inside an async runtime
///
/// The driver waits inside its own runtime, which tokio forbids on a thread that runs async code. `get` returns
/// [`Error::InsideRuntime`] there (and tokio's panic message appears on stderr, for that is how it answers). Use
/// `spawn_blocking`.
///
/// # Signals
///
/// Where tokio's `signal` feature is on, every new runtime of a child would read its parent's signal pipe empty, and each
/// connect makes one. The first manager that a process makes finds the pipe, and children get their own.
///
/// # What the deadline cannot bound
///
/// Looking up a host name (by libc), when it is not a child's first attempt.
///
/// Several hosts share the time that there is: each has its part of what the others left.
#[derive(Clone)]
pub struct PostgresManager<T> {
    config: Config,
    tls: T,
    on_return: OnReturn,
}

/// What becomes of a session when its connection is returned to the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum OnReturn {
    /// Nothing: no round trip. The driver's `Transaction` rolls back when it is dropped, so only a transaction that was
    /// begun in words (`batch_execute("BEGIN")`) or forgotten can be left open. The default.
    #[default]
    Nothing,
    /// A transaction that was left open, or has failed, is rolled back: one round trip, and another where it has failed.
    /// (`BEGIN; ROLLBACK`: the server has a warning for its log only if there was something to roll back.)
    RollBack,
    /// That, and the session forgets all that was done to it: settings, roles, temporary tables, cursors, `LISTEN`s,
    /// advisory locks, sequences' last values. `DISCARD ALL`, but for prepared statements and plans: the driver has
    /// prepared statements of its own, for the types it met, and does not know how to lose them. One round trip more.
    DiscardAll,
}

/// What `DISCARD ALL` stands for, less `DEALLOCATE ALL` and `DISCARD PLANS`.
/// <https://www.postgresql.org/docs/current/sql-discard.html>
const DISCARD: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
                       SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

impl<T> PostgresManager<T> {
    /// Connections as `config` says, encrypted by `tls` where it says so (`sslmode`).
    ///
    /// If the program's tokio handles signals, its children have a [signal pipe](Self#signals) of their own from here on.
    pub fn new(config: Config, tls: T) -> Self {
        discovery::protect_signals();
        Self { config, tls, on_return: OnReturn::default() }
    }

    /// What becomes of a session when its connection is returned. Default: [`OnReturn::Nothing`], because everything else
    /// makes every return wait for the server.
    ///
    /// ```
    /// use forksafe::postgres::{OnReturn, PostgresManager};
    ///
    /// let manager = PostgresManager::new("host=localhost".parse()?, postgres::NoTls).on_return(OnReturn::RollBack);
    /// # let _ = manager;
    /// # Ok::<_, postgres::Error>(())
    /// ```
    #[must_use]
    pub fn on_return(mut self, on_return: OnReturn) -> Self {
        self.on_return = on_return;
        self
    }

    /// The configuration that it was made with.
    pub fn config(&self) -> &Config {
        &self.config
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
    type Error = Error;

    /// The driver's own connect: no deadline, nothing published. A pool uses [`connect_within`](Self::connect_within).
    fn connect(&self) -> Result<Client, Error> {
        Ok(self.config.connect(self.tls.clone())?)
    }

    fn is_valid(&self, conn: &mut Client) -> Result<(), Error> {
        self.is_valid_within(conn, Deadline::never())
    }

    fn has_broken(&self, conn: &mut Client) -> bool {
        conn.is_closed()
    }

    fn connect_within(&self, at: &mut Attempt) -> Result<Client, Error> {
        if !may_wait_here() {
            return Err(Error::InsideRuntime);
        }
        let (mut targets, hosts) = addresses::located(&self.config, at)?;
        // The last one's error is the one to report.
        while targets.len() > 1 {
            let share = at.deadline().remaining() / targets.len() as u32;
            match self.connect_to(targets.remove(0), hosts, share, at) {
                Err(Error::Driver(_) | Error::TimedOut(_)) => at.forget_all(),
                other => return other,
            }
        }
        self.connect_to(targets.remove(0), hosts, at.deadline().remaining(), at)
    }

    fn is_valid_within(&self, conn: &mut Client, deadline: Deadline) -> Result<(), Error> {
        if !may_wait_here() {
            return Err(Error::InsideRuntime);
        }
        conn.is_valid(deadline.remaining().min(YEAR)).map_err(|error| {
            // The driver would wait for the answer when it says goodbye.
            deadline.socket().and_then(Known::of).into_iter().for_each(Known::shut_down);
            Error::Driver(error)
        })
    }

    fn resets(&self) -> bool {
        self.on_return != OnReturn::Nothing
    }

    fn reset(&self, conn: &mut Client, deadline: Deadline) -> Result<Reset, Error> {
        if !may_wait_here() {
            return Err(Error::InsideRuntime);
        }
        let _alarm = alarm::set(deadline);
        // In a failed transaction the first word is refused, and the rest is not heard.
        conn.batch_execute("BEGIN; ROLLBACK").or_else(|_| conn.batch_execute("ROLLBACK"))?;
        if self.on_return == OnReturn::DiscardAll {
            conn.batch_execute(DISCARD)?;
            // News that had come before.
            while FallibleIterator::next(&mut conn.notifications().iter())?.is_some() {}
        }
        Ok(Reset::Keep)
    }

    fn goodbye(&self, client: Client, deadline: Deadline) {
        say_goodbye(client, deadline);
    }

    fn hosts(&self) -> Vec<(String, u16)> {
        addresses::names(&self.config)
    }
}

impl<T> PostgresManager<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    /// Has the driver try so many hosts in so much time.
    fn connect_to(&self, mut config: Config, hosts: u32, time: Duration, at: &Attempt) -> Result<Client, Error> {
        if time.is_zero() {
            return Err(Error::TimedOut(None));
        }
        let from = probe::room_for(NEEDED).map_err(Error::NoDescriptors)?;
        // The driver applies it to each host's TCP connection; what comes after that is for the alarm.
        let share = if hosts > 1 { time / (2 * hosts) } else { time };
        let longest = config.get_connect_timeout().map_or(share, |&own| own.min(share));
        config.connect_timeout(longest.min(YEAR));

        let by = Deadline::after(time);
        let alarm = Alarm::default();
        let hook = Hook { tls: self.tls.clone(), at: at.clone(), alarm: alarm.clone(), by, share, from };
        let connected = catch_unwind(AssertUnwindSafe(|| config.connect(hook)));
        alarm.clear();
        match connected {
            Ok(Ok(client)) if !alarm.has_rung() => {
                alarm.keep();
                Ok(client)
            }
            Ok(Ok(client)) => {
                // Before it is dropped: its event loop goes before its socket.
                at.forget_all();
                drop(client);
                Err(Error::TimedOut(None))
            }
            Ok(Err(error)) if alarm.has_rung() || by.is_over() => Err(Error::TimedOut(Some(error))),
            Ok(Err(error)) => Err(Error::Driver(error)),
            // Its runtime could not be built.
            Err(panic) => Err(Error::Panicked(words_of(&*panic))),
        }
    }
}

/// An epoll under two numbers, an eventfd, a socket, a copy of the signal socket; a pipe to find them; a file of `/proc`; a
/// second descriptor of the socket.
const NEEDED: usize = 9;

/// More than that a timer need not last.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether this thread may wait inside a runtime of its own. Only tokio knows, and it answers by a panic; `spawn_blocking`'s
/// threads have a runtime and may.
fn may_wait_here() -> bool {
    Handle::try_current().map_or(true, |here| catch_unwind(AssertUnwindSafe(|| here.block_on(async {}))).is_ok())
}

/// The driver says it when the client is dropped, and waits for what it had asked before. Where tokio forbids to wait, a
/// thread does the waiting.
fn say_goodbye(client: Client, deadline: Deadline) {
    let _alarm = alarm::set(deadline);
    // (No context and a context that is gone, as when a thread ends, are two things.)
    if Handle::try_current().is_err_and(|error| error.is_missing_context()) {
        return drop(client);
    }
    // If there is no thread to be had the client is leaked; its socket is shut down all the same.
    let client = ManuallyDrop::new(client);
    let goodbye = thread::Builder::new().spawn(|| drop(ManuallyDrop::into_inner(client)));
    let _ = goodbye.map(thread::JoinHandle::join);
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
    literal.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl<T> fmt::Debug for PostgresManager<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The driver's configuration hides its password.
        let mut shown = f.debug_struct("PostgresManager");
        shown.field("config", &self.config).field("on_return", &self.on_return).finish_non_exhaustive()
    }
}
