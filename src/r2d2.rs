//! Managers that were written for r2d2.
//!
//! ```
//! use forksafe::Pool;
//! use forksafe::r2d2::R2d2;
//! # use std::{io, net::{SocketAddr, TcpListener, TcpStream}};
//! # /// Somebody else's.
//! # struct ConnectionManager(SocketAddr);
//! # impl r2d2::ManageConnection for ConnectionManager {
//! #     type Connection = TcpStream;
//! #     type Error = io::Error;
//! #     fn connect(&self) -> io::Result<TcpStream> { TcpStream::connect(self.0) }
//! #     fn is_valid(&self, _: &mut TcpStream) -> io::Result<()> { Ok(()) }
//! #     fn has_broken(&self, _: &mut TcpStream) -> bool { false }
//! # }
//! # let server = TcpListener::bind("127.0.0.1:0")?;
//! # let manager = ConnectionManager(server.local_addr()?);
//!
//! let pool = Pool::new(R2d2::new(manager))?;
//! let conn = pool.get()?;
//! assert_eq!(pool.state().unknown_descriptors, 0);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! # What becomes of an inherited connection
//!
//! An inherited client is never used, dropped or closed in a child, whichever it is. Of its descriptors there are three classes:
//!
//! | class | how to say so | in a child |
//! | --- | --- | --- |
//! | *disowned* | [`R2d2::new`] if the driver can be [observed](crate::Attempt::observe), or [`descriptors_by`](R2d2::descriptors_by) if it shows them | closed, or dead under their numbers |
//! | *abandoned* | [`unobserved`](R2d2::unobserved), or a driver that cannot be observed | stay open until it ends or executes another program: the parent's session does not end before |
//! | *never closed* | [`in_files`](R2d2::in_files) | as they were, and the pool refuses to open the database once more: see there |
//!
//! [`State::unknown_descriptors`](crate::State::unknown_descriptors) counts those that are abandoned, and
//! [`Builder::require_known_descriptors`](crate::Builder::require_known_descriptors) makes them an error. What has been seen:
//!
//! | manager | class |
//! | --- | --- |
//! | `diesel::r2d2::ConnectionManager<PgConnection>` | disowned, observed |
//! | a manager of `mysql::Conn` | disowned, observed or by `descriptors_by(\|conn\| Descriptors::of_raw(conn.as_raw_fd()))` |
//! | `memcache::ConnectionManager` | disowned, observed |
//! | `r2d2_sqlite::SqliteConnectionManager`, Diesel's `ConnectionManager<SqliteConnection>` | never closed, by `in_files` |
//!
//! # Deadlines
//!
//! r2d2's managers know none. A connect takes as long as its driver lets it: set the driver's own timeouts. A test is bounded where
//! the driver blocks in the kernel (`mysql`, `memcache`): each of its reads and writes fails at the deadline, if the descriptors are
//! known. A driver that polls with its own timeout (libpq) waits as long as that says.

use crate::fork::impatient::Impatient;
use crate::fork::{Descriptors, PerProcess, Unobserved};
use crate::{Attempt, Deadline, Fault, ManageConnection};
use std::any;
use std::error::Error;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

/// A manager of r2d2's as one of this crate's. See the [module](self) for what it protects.
pub struct R2d2<M: r2d2::ManageConnection> {
    inner: M,
    finds: Finds<M::Connection>,
    /// It has been tried, and will be so the next time, too.
    cannot_be_observed: AtomicBool,
    files: Files,
    goodbye: Option<Goodbye<M::Connection>>,
    classify: Option<Classify>,
}

/// How many connections in files there are: a process must not open a database beside connections that it has inherited.
struct Files {
    /// With those that were inherited, of which none is ever closed.
    all: AtomicU32,
    own: PerProcess<AtomicU32>,
}

impl Files {
    fn inherited(&self) -> u32 {
        let all = self.all.load(SeqCst);
        all.saturating_sub(PerProcess::get(&self.own).load(SeqCst))
    }

    /// In this order: never are there more of all than of one's own for want of time.
    fn opens(&self) {
        PerProcess::get(&self.own).fetch_add(1, SeqCst);
        self.all.fetch_add(1, SeqCst);
    }

    fn closed(&self) {
        self.all.fetch_sub(1, SeqCst);
        PerProcess::get(&self.own).fetch_sub(1, SeqCst);
    }
}

enum Finds<C> {
    ByObserving,
    ByAsking(Box<dyn Fn(&C) -> Descriptors + Send + Sync>),
    None,
    InFiles,
}

type Goodbye<C> = Box<dyn Fn(C, Deadline) + Send + Sync>;
type Classify = Box<dyn Fn(&(dyn Error + 'static)) -> Fault + Send + Sync>;

impl<M: r2d2::ManageConnection> R2d2<M> {
    /// Its connects are [observed](Attempt::observe), which says what their restrictions are. A driver that cannot be is left to
    /// itself: its descriptors are [unknown](Descriptors::unknown) then. Of an embedded database, as far as the name of a type betrays
    /// it (SQLite, DuckDB), the locks would be lost: it is taken to be [in files](Self::in_files).
    pub fn new(manager: M) -> Self {
        let finds = if is_embedded(any::type_name::<M>()) { Finds::InFiles } else { Finds::ByObserving };
        let cannot_be_observed = AtomicBool::new(false);
        let files = Files { all: AtomicU32::new(0), own: PerProcess::new(|| AtomicU32::new(0)) };
        Self { inner: manager, finds, cannot_be_observed, files, goodbye: None, classify: None }
    }

    /// For a client that shows its descriptors: nothing is observed, they are asked for. Class *disowned*.
    ///
    /// ```
    /// use forksafe::fork::Descriptors;
    /// use forksafe::r2d2::R2d2;
    /// use std::os::fd::AsRawFd;
    /// # use std::{io, net::{SocketAddr, TcpStream}};
    /// # struct Manager(SocketAddr);
    /// # impl r2d2::ManageConnection for Manager {
    /// #     type Connection = TcpStream;
    /// #     type Error = io::Error;
    /// #     fn connect(&self) -> io::Result<TcpStream> { TcpStream::connect(self.0) }
    /// #     fn is_valid(&self, _: &mut TcpStream) -> io::Result<()> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut TcpStream) -> bool { false }
    /// # }
    /// # let manager = Manager("127.0.0.1:1".parse().unwrap());
    /// let manager = R2d2::new(manager).descriptors_by(|conn| Descriptors::of_raw(conn.as_raw_fd()));
    /// # let _ = manager;
    /// ```
    #[must_use]
    pub fn descriptors_by(self, of: impl Fn(&M::Connection) -> Descriptors + Send + Sync + 'static) -> Self {
        Self { finds: Finds::ByAsking(Box::new(of)), ..self }
    }

    /// Its descriptors stay unknown. Class *abandoned*.
    #[must_use]
    pub fn unobserved(self) -> Self {
        Self { finds: Finds::None, ..self }
    }

    /// Its connections are files, and no others: a child leaves them open and never touches them. Class *never closed*. They
    /// count as known.
    ///
    /// Call [`Pool::disconnect`](crate::Pool::disconnect) before the fork, with nothing lent. SQLite keeps in memory which locks the
    /// process has, and a child inherits that, but not the locks: what a child commits beside an inherited connection can be lost
    /// when the parent closes its own. So a child that has inherited any gets no connection from the pool but an error
    /// ([`is_unprotected`](crate::Error::is_unprotected)).
    #[must_use]
    pub fn in_files(self) -> Self {
        Self { finds: Finds::InFiles, ..self }
    }

    /// How a connection of this process is ended, before a deadline. Default: it is dropped.
    #[must_use]
    pub fn goodbye_by(self, say: impl Fn(M::Connection, Deadline) + Send + Sync + 'static) -> Self {
        Self { goodbye: Some(Box::new(say)), ..self }
    }

    /// What an error means. See [`ManageConnection::classify`]. Default: [`Fault::Unknown`].
    #[must_use]
    pub fn classify_by(self, error: impl Fn(&(dyn Error + 'static)) -> Fault + Send + Sync + 'static) -> Self {
        Self { classify: Some(Box::new(error)), ..self }
    }

    /// The manager inside.
    pub fn inner(&self) -> &M {
        &self.inner
    }

    fn observe(&self, at: &Attempt) -> Result<Result<M::Connection, M::Error>, Unobserved>
    where
        M::Error: Send,
    {
        at.observe(|| self.inner.connect()).inspect_err(|why| {
            if why.is_lasting() {
                self.cannot_be_observed.store(true, Relaxed);
            }
        })
    }
}

impl<M: r2d2::ManageConnection> R2d2<M> {
    fn open_file(&self, at: &Attempt) -> Result<M::Connection, M::Error> {
        let inherited = self.files.inherited();
        if inherited > 0 {
            at.refuse(format!(
                "this process has inherited {inherited} open connections to a database in a file, and may lose what it writes beside \
                 them: call Pool::disconnect before the fork, with nothing lent"
            ));
        }
        self.files.opens();
        self.inner.connect().inspect_err(|_| self.files.closed())
    }
}

fn is_embedded(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["sqlite", "duckdb"].iter().any(|database| name.contains(database))
}

#[deny(clippy::missing_trait_methods)]
impl<M> ManageConnection for R2d2<M>
where
    M: r2d2::ManageConnection<Error: Send + Sync>,
{
    type Connection = M::Connection;
    type Error = M::Error;

    fn connect(&self) -> Result<M::Connection, M::Error> {
        self.inner.connect()
    }

    fn connect_within(&self, at: &mut Attempt) -> Result<M::Connection, M::Error> {
        if matches!(self.finds, Finds::InFiles) {
            return self.open_file(at);
        }
        let is_observed = matches!(self.finds, Finds::ByObserving) && !self.cannot_be_observed.load(Relaxed);
        let observed = is_observed.then(|| self.observe(at));
        // Without: the pool asks for the descriptors, and hears that they are unknown.
        observed.and_then(Result::ok).unwrap_or_else(|| self.inner.connect())
    }

    fn is_valid(&self, conn: &mut M::Connection) -> Result<(), M::Error> {
        self.inner.is_valid(conn)
    }

    fn is_valid_within(&self, conn: &mut M::Connection, deadline: Deadline) -> Result<(), M::Error> {
        let _impatient = Impatient::until(deadline);
        self.inner.is_valid(conn)
    }

    fn has_broken(&self, conn: &mut M::Connection) -> bool {
        self.inner.has_broken(conn)
    }

    fn socket<'c>(&self, _: &'c M::Connection) -> Option<std::os::fd::BorrowedFd<'c>> {
        None
    }

    fn descriptors(&self, conn: &M::Connection) -> Descriptors {
        match &self.finds {
            Finds::ByAsking(ask) => ask(conn),
            Finds::InFiles => Descriptors::none(),
            Finds::ByObserving | Finds::None => Descriptors::unknown(),
        }
    }

    fn on_unread(&self, _: &mut M::Connection, _: &[u8]) -> crate::Unread {
        crate::Unread::Test
    }

    fn resets(&self) -> bool {
        false
    }

    fn reset(&self, _: &mut M::Connection, _: Deadline) -> Result<crate::Reset, M::Error> {
        Ok(crate::Reset::Keep)
    }

    fn goodbye(&self, conn: M::Connection, deadline: Deadline) {
        match &self.goodbye {
            Some(say) => say(conn, deadline),
            None => drop(conn),
        }
        if matches!(self.finds, Finds::InFiles) {
            self.files.closed();
        }
    }

    fn classify(&self, error: &(dyn Error + 'static)) -> Fault {
        self.classify.as_ref().map_or(Fault::Unknown, |classify| classify(error))
    }

    fn hosts(&self) -> Vec<(String, u16)> {
        Vec::new()
    }

    fn target(&self) -> String {
        String::new()
    }
}

impl<M: r2d2::ManageConnection> fmt::Debug for R2d2<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = match self.finds {
            Finds::ByObserving if self.cannot_be_observed.load(Relaxed) => "abandoned (cannot be observed)",
            Finds::ByObserving => "disowned (observed)",
            Finds::ByAsking(_) => "disowned",
            Finds::None => "abandoned",
            Finds::InFiles => "never closed",
        };
        f.debug_struct("R2d2").field("manager", &any::type_name::<M>()).field("class", &class).finish_non_exhaustive()
    }
}
