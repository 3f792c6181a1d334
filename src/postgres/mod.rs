//! PostgreSQL: the `postgres` crate's client in the pool.
//!
//! The client hides a socket, an event loop and a runtime, says goodbye when it is dropped, and knows no fork. How its
//! descriptors are found is in `discovery`, what a child does about them in the fork layer.

mod addresses;
mod alarm;
#[cfg(feature = "sizing")]
mod ask;
mod discovery;
mod error;
mod fault;
mod goodbye;
mod hook;
mod inside;
mod on_return;
mod unread;
mod waiting;

#[cfg(feature = "sizing")]
pub(crate) use ask::socket_of;
pub use error::Error;
pub use on_return::OnReturn;

use crate::credentials::{Asked, Credentials};
use crate::fork::probe;
use crate::pool::asked_until;
use crate::{Attempt, Deadline, Dial, DialError, Fault, ManageConnection, Reset, Unread};
use ::postgres::tls::{MakeTlsConnect, TlsConnect};
use ::postgres::{Client, Config, Socket};
use addresses::Route;
use alarm::Alarm;
use hook::Hook;
use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use waiting::may_wait_here;

/// Connections to PostgreSQL: clients of the driver ([`Client`]), made as its own [`Config`] says.
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
/// Passwords that change: [`credentials`](Self::credentials).
///
/// A guard lends a `Client`, so what takes one, or a `GenericClient`, takes `&mut *guard`. In a child an inherited client
/// is never dropped; what was borrowed from it before the fork (a transaction, a row iterator) is told that the connection
/// is closed.
///
/// # Hosts
///
/// A host name is resolved when the pool is built, so that a child need not, and put before the driver as `hostaddr`: so
/// the driver starts no thread for the look-up. TLS still checks the name. Hosts are tried in their order, each with all its
/// addresses, but those that could not be reached lately come last; each gets a share of the time that there is. The next
/// is tried where a server cannot be reached, does not answer in time, starts or shuts down, or is not what
/// `target_session_attrs` asks for; with several hosts also where it has no room. Any other refusal (a wrong password, a
/// database that is not there) is reported at once, as libpq does.
///
/// The driver is left to itself, and looks up what names there are, if the configuration has a `hostaddr` of its own, mixes
/// unix sockets and names, or names an address that needs an interface (`fe80::1%eth0`). It then has for each address an equal
/// part of the time.
///
/// # Validation
///
/// An empty query, or [another](Self::test_query), within the deadline. Any answer will do that does not say that the
/// session or its server is at its end: see [`test_query`](Self::test_query). A transaction that an earlier holder left open is
/// not noticed: see [`on_return`](Self::on_return).
///
/// # Errors of a holder
///
/// [`classify`](ManageConnection::classify) knows the driver's errors by their SQLSTATE. Of no more use is a connection that
/// is closed or out of step, whose session was ended (57P01, 57P04, 57P05, 25P03, 25P04, class 08, all that is `FATAL`) or has
/// lost its prepared statements (26000). All connections are, where the server has become read-only (25006; a holder who
/// writes in a read-only transaction of his own gets the same), has crashed (57P02), starts or shuts down (57P03). 53300 is
/// [no room](Fault::NoRoom). All other errors of the server are answers like any other.
///
/// # Wrapping it
///
/// A manager of your own that calls [`connect`](ManageConnection::connect) of this one has the same protection, and its
/// deadline, and so has one that calls [`is_valid`](ManageConnection::is_valid). Better to pass
/// [`is_valid_within`](ManageConnection::is_valid_within), [`goodbye`](ManageConnection::goodbye) and
/// [`hosts`](ManageConnection::hosts) on, too. The descriptors of a client that was connected without an attempt (by
/// `Config::connect`, and then put in the place of ours) cannot be found from outside: they are
/// [unknown](crate::fork::Descriptors::unknown).
///
/// # Inside an async runtime
///
/// The driver waits inside its own runtime, which tokio forbids on a thread that runs async code. `get` returns
/// [`Error::InsideRuntime`] there, and leaves the idle connections as they are. Use `spawn_blocking` or `block_in_place`. (Of a future that is
/// `tokio::task::unconstrained` only tokio knows, and answers by a panic: it is caught, and its message appears on stderr.)
/// A child that was forked by such a thread never enters the runtime of its parent.
///
/// # Signals
///
/// Where tokio's `signal` feature is on, every new runtime of a child would read its parent's signal pipe empty, and each
/// connect makes one. The first manager that a process makes finds the pipe, and children get their own.
///
/// # What the deadline cannot bound
///
/// Looking up a host name by the driver: where a configuration mixes unix sockets and names.
#[derive(Clone)]
pub struct PostgresManager<T> {
    config: Config,
    tls: T,
    on_return: OnReturn,
    test_query: Option<String>,
    credentials: Option<Asked>,
}

impl<T> PostgresManager<T> {
    /// Connections as `config` says, encrypted by `tls` where it says so (`sslmode`).
    ///
    /// If the program's tokio handles signals, its children have a [signal pipe](Self#signals) of their own from here on.
    pub fn new(config: Config, tls: T) -> Self {
        discovery::protect_signals();
        Self { config, tls, on_return: OnReturn::default(), test_query: None, credentials: None }
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

    /// What an idle connection is tested with. Default: an empty query, which every server and every proxy that we know of
    /// answers.
    ///
    /// An error is an answer, too: a query that is refused (42501), is wrong, or was cancelled by a `statement_timeout` that a
    /// holder left shows that the connection is alive and in step. A transaction that an earlier holder left and that
    /// has failed (25P02) is rolled back. Unfit is a connection whose error condemns it or its server, as
    /// [`classify`](ManageConnection::classify) tells. So a test can ask for more than life:
    ///
    /// ```
    /// use forksafe::postgres::PostgresManager;
    ///
    /// // Only a server that can be written to will do: a master that was demoted is left at the next test.
    /// let manager = PostgresManager::new("host=db1,db2 target_session_attrs=read-write".parse()?, postgres::NoTls).test_query(
    ///     "DO $$ BEGIN IF pg_is_in_recovery() THEN
    ///         RAISE 'a replica' USING ERRCODE = 'read_only_sql_transaction';
    ///     END IF; END $$",
    /// );
    /// # let _ = manager;
    /// # Ok::<_, postgres::Error>(())
    /// ```
    #[must_use]
    pub fn test_query(mut self, query: impl Into<String>) -> Self {
        self.test_query = Some(query.into());
        self
    }

    /// Asks `function` for the password, and the user name if there is another, of each connect anew: for tokens that are good
    /// for minutes (RDS IAM, Entra ID), for leases (Vault), for passwords that change while the program runs. What the
    /// configuration says counts no more, but for its user where the function tells none. Default: what the configuration says.
    ///
    /// ```
    /// use forksafe::Credentials;
    /// use forksafe::postgres::PostgresManager;
    ///
    /// let manager = PostgresManager::new("host=db.example user=app".parse()?, postgres::NoTls)
    ///     .credentials(|_deadline| std::fs::read_to_string("/run/secrets/postgres").map(Credentials::password));
    /// # let _ = manager;
    /// # Ok::<_, postgres::Error>(())
    /// ```
    ///
    /// It is asked on the thread that connects, before anything is dialled, and told until when: what comes later is not used. It
    /// is asked again where a connect is made again, because it overlapped a fork say, and in each child. All hosts of a
    /// configuration are told the same. Nothing is kept: if it is slow, let it keep what it gets, in a
    /// [`PerProcess`](crate::fork::PerProcess) and not behind a lock that a fork can find locked. It must not `get` from the
    /// pool that it is for.
    ///
    /// If it fails, so does the connect, with [`Error::NoCredentials`] and then its own error as the sources. That says nothing
    /// about the server; where connects are [tried again](crate::Builder::retry_connect) it is asked again.
    ///
    /// Connections that there are stay who they are, so a lease should outlive the pool's
    /// [`max_lifetime`](crate::Builder::max_lifetime).
    #[must_use]
    pub fn credentials<E: Into<Box<dyn StdError + Send + Sync>>>(
        mut self,
        function: impl Fn(Deadline) -> Result<Credentials, E> + Send + Sync + 'static,
    ) -> Self {
        self.credentials = Some(Asked::of(function));
        self
    }

    fn with_credentials(&self, deadline: Deadline) -> Result<Cow<'_, Config>, Error> {
        let Some(asked) = &self.credentials else { return Ok(Cow::Borrowed(&self.config)) };
        let Credentials { user, password } = asked.ask(deadline)?;
        let mut config = self.config.clone();
        config.password(password);
        if let Some(user) = user {
            config.user(&user);
        }
        Ok(Cow::Owned(config))
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

    /// The driver's own connect: no deadline, nothing published. But in the middle of an [`Attempt`] of this thread's, as
    /// [`connect_within`](Self::connect_within).
    fn connect(&self) -> Result<Client, Error> {
        match Attempt::current() {
            Some(mut at) => self.connect_within(&mut at),
            None => Ok(self.config.connect(self.tls.clone())?),
        }
    }

    /// Inside a pool's test, of a manager that wraps this one, it has the time of that; elsewhere a second.
    fn is_valid(&self, conn: &mut Client) -> Result<(), Error> {
        self.is_valid_within(conn, asked_until().unwrap_or_else(|| Deadline::after(UNTOLD)))
    }

    fn has_broken(&self, conn: &mut Client) -> bool {
        conn.is_closed()
    }

    fn connect_within(&self, at: &mut Attempt) -> Result<Client, Error> {
        if !may_wait_here() {
            return Err(Error::InsideRuntime);
        }
        // Another client of the same connection may have published its own.
        let part = at.part();
        let config = self.with_credentials(part.deadline())?;
        let client = match addresses::route(&config, &part) {
            Route::Driver(addresses) => self.connect_to(config.into_owned(), addresses, part.deadline(), &part),
            Route::Dial(names) => self.dial(&config, &names, &part),
        }?;
        part.join();
        Ok(client)
    }

    fn is_valid_within(&self, conn: &mut Client, deadline: Deadline) -> Result<(), Error> {
        if !may_wait_here() {
            return Err(Error::InsideRuntime);
        }
        let alarm = alarm::set(conn, deadline);
        let answer = match &self.test_query {
            Some(query) if alarm.is_some() => conn.batch_execute(query),
            _ => conn.is_valid(deadline.remaining().min(YEAR)),
        };
        let answer = match answer {
            Err(error) if fault::is_in_failed_transaction(&error) => conn.batch_execute("ROLLBACK"),
            Err(error) if fault::of(&error) == Fault::Harmless => Ok(()),
            answer => answer,
        };
        answer.map_err(|error| {
            // The driver would wait for the answer when it says goodbye.
            alarm.iter().for_each(alarm::Set::shut_down);
            if deadline.is_over() { Error::TimedOut(Some(error)) } else { Error::of_session(error) }
        })
    }

    fn on_unread(&self, _: &mut Client, peeked: &[u8]) -> Unread {
        unread::meaning(peeked)
    }

    fn resets(&self) -> bool {
        self.on_return != OnReturn::Nothing
    }

    fn reset(&self, conn: &mut Client, deadline: Deadline) -> Result<Reset, Error> {
        if !may_wait_here() {
            return Err(Error::InsideRuntime);
        }
        let alarm = alarm::set(conn, deadline);
        self.on_return.reset(conn).map_err(|error| match alarm {
            Some(alarm) if alarm.has_rung() => Error::TimedOut(Some(error)),
            _ => Error::of_session(error),
        })?;
        Ok(Reset::Keep)
    }

    fn goodbye(&self, conn: Client, deadline: Deadline) {
        goodbye::say(conn, deadline);
    }

    fn classify(&self, error: &(dyn StdError + 'static)) -> Fault {
        fault::of(error)
    }

    fn hosts(&self) -> Vec<(String, u16)> {
        addresses::names(&self.config)
    }

    fn target(&self) -> String {
        addresses::shown(&self.config)
    }
}

impl<T> PostgresManager<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn dial(&self, config: &Config, names: &[(String, u16)], at: &Attempt) -> Result<Client, Error> {
        // The last one's error is the one to report, unless somebody will have room again.
        let mut why = None;
        let order = |targets: &mut [_]| addresses::put_in_order(config, targets);
        let dialled = at.dial_in_order(names, order, |target| {
            let (config, addresses) = addresses::only(config, names, &target);
            self.connect_to(config, addresses, target.deadline, at).map_err(|error| {
                let more = fault::asks_for_another(&error, names.len() > 1);
                if !(more && why.as_ref().is_some_and(fault::is_no_room)) {
                    why = Some(error);
                }
                if more { Dial::Unreachable(()) } else { Dial::Failed(()) }
            })
        });
        dialled.map_err(|error| match (error, why) {
            (DialError::LookUp { host, source }, _) => {
                Error::LookUp { host: addresses::shown_host(&host).to_owned(), source }
            }
            (DialError::Connect(()), why) => why.unwrap_or(Error::TimedOut(None)),
        })
    }

    /// Has the driver try so many addresses.
    fn connect_to(&self, mut config: Config, addresses: u32, by: Deadline, at: &Attempt) -> Result<Client, Error> {
        let time = by.remaining();
        if time.is_zero() {
            return Err(Error::TimedOut(None));
        }
        let from = probe::room_for(NEEDED).map_err(Error::NoDescriptors)?;
        // The driver applies it to each TCP connection; what comes after that is for the alarm.
        let share = if addresses > 1 { time / addresses.saturating_mul(2) } else { time };
        let longest = config.get_connect_timeout().map_or(share, |&own| own.min(share));
        config.connect_timeout(longest.min(YEAR));

        let alarm = Alarm::default();
        let hook = Hook { tls: self.tls.clone(), at: at.clone(), alarm: alarm.clone(), by, share, from };
        let connected = catch_unwind(AssertUnwindSafe(|| config.connect(hook)));
        alarm.clear();
        if !matches!(connected, Ok(Ok(_))) || alarm.has_rung() {
            // Before a client is dropped: its event loop goes before its socket.
            at.forget_all();
        }
        match connected {
            Ok(Ok(client)) if !alarm.has_rung() => {
                alarm.keep();
                Ok(client)
            }
            Ok(Ok(_dropped)) => Err(Error::TimedOut(None)),
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

/// What a test may take whose caller does not say.
const UNTOLD: Duration = Duration::from_secs(1);

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
    literal.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl<T> fmt::Debug for PostgresManager<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("PostgresManager");
        shown.field("target", &addresses::shown(&self.config)).field("on_return", &self.on_return);
        shown.field("credentials", &self.credentials).finish_non_exhaustive()
    }
}
