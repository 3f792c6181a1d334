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
//! the driver blocks in the kernel (`mysql`, `memcache`) and the descriptors are known: none of its reads and writes blocks for longer
//! than was left when the test began. That is for each: a server whose answer drips in, so that it takes ten reads, may hold a test for
//! ten times as long. A driver that polls with its own timeout (libpq) waits as long as that says.

use crate::fork::impatient::Impatient;
use crate::fork::{Descriptors, Generation, PerProcess, Unobserved, generation};
use crate::{Attempt, Deadline, Fault, ManageConnection};
use once_cell::race::OnceBox;
use std::any;
use std::error::Error;
use std::fmt;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::*};

/// A manager of r2d2's as one of this crate's. See the [module](self) for what it protects.
pub struct R2d2<M: r2d2::ManageConnection> {
    inner: M,
    finds: Finds<M::Connection>,
    sight: PerProcess<Sight>,
    files: Files,
    goodbye: Option<Goodbye<M::Connection>>,
    classify: Option<Classify>,
}

/// Whether the driver can be observed, as far as this process has seen. A child sees for itself: what a process with threads is
/// denied one without may do.
#[derive(Default)]
struct Sight {
    /// Once: then what fails later is one connect, and no way of the driver's.
    has_worked: AtomicBool,
    fails: OnceBox<Unobserved>,
}

impl Sight {
    /// Why it need not be tried any more.
    fn is_hopeless(&self) -> Option<&Unobserved> {
        self.fails.get().filter(|_| !self.has_worked.load(Relaxed))
    }

    fn note(&self, failed: Option<Unobserved>) {
        match failed {
            None => self.has_worked.store(true, Relaxed),
            Some(why) if why.is_lasting() => drop(self.fails.set(Box::new(why))),
            Some(_) => {}
        }
    }
}

/// How many connections in files this manager has: a process must not open a database beside connections that it has inherited.
struct Files {
    /// With those that were inherited, of which none is ever closed.
    open: Arc<AtomicU32>,
    /// As many were open when a process first asked, which it does before it opens any.
    inherited: PerProcess<u32, Box<dyn Fn() -> u32 + Send + Sync>>,
}

/// One that is open, or is being opened: counted until this is dropped, also by a panic. In a child it does nothing: there its
/// parent's is open as before.
struct Counted<'a> {
    files: &'a Files,
    generation: Generation,
}

impl Files {
    fn none() -> Self {
        let open = Arc::new(AtomicU32::new(0));
        let here = Arc::clone(&open);
        Self { open, inherited: PerProcess::new(Box::new(move || here.load(SeqCst))) }
    }

    fn inherited(&self) -> u32 {
        *PerProcess::get(&self.inherited)
    }

    fn opens(&self) -> Counted<'_> {
        self.inherited();
        self.open.fetch_add(1, SeqCst);
        self.closes()
    }

    /// One that has been counted.
    fn closes(&self) -> Counted<'_> {
        Counted { files: self, generation: generation() }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if self.generation == generation() {
            // None is left if it was opened behind this manager's back.
            let _ = self.files.open.fetch_update(SeqCst, SeqCst, |open| open.checked_sub(1));
        }
    }
}

enum Finds<C> {
    ByObserving,
    ByAsking(Box<dyn Fn(&C) -> Descriptors + Send + Sync>),
    None,
    InFiles {
        /// The user has said so. Otherwise it is a guess, by the name of a type.
        is_said: bool,
    },
}

type Goodbye<C> = Box<dyn Fn(C, Deadline) + Send + Sync>;
type Classify = Box<dyn Fn(&(dyn Error + 'static)) -> Fault + Send + Sync>;

impl<M: r2d2::ManageConnection> R2d2<M> {
    /// Its connects are [observed](Attempt::observe), which says what their restrictions are: in a process with several threads each
    /// runs on a thread of its own, and hangs if it needs a lock that the caller of `get` holds (a GIL, say, with a manager that calls
    /// back into the interpreter), and another pool gives it nothing. [`unobserved`](Self::unobserved) and
    /// [`descriptors_by`](Self::descriptors_by) are the ways out. A driver that cannot be observed is left to itself, in this process:
    /// its descriptors are [unknown](Descriptors::unknown) then. Of an embedded database, as far as the name of a type betrays
    /// it (SQLite, DuckDB), the locks would be lost: it is not observed, and a child that has inherited any is refused as it is
    /// [in files](Self::in_files). But it may have sockets all the same: they are unknown until you have said which it is.
    pub fn new(manager: M) -> Self {
        let is_embedded = is_embedded(any::type_name::<M>());
        let finds = if is_embedded { Finds::InFiles { is_said: false } } else { Finds::ByObserving };
        let sight = PerProcess::new(Sight::default as fn() -> Sight);
        Self { inner: manager, finds, sight, files: Files::none(), goodbye: None, classify: None }
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

    /// Its connections are files, and nothing else: a child leaves them open and never touches them. Class *never closed*. They
    /// count as known.
    ///
    /// Call [`Pool::disconnect`](crate::Pool::disconnect) before the fork, with nothing lent. SQLite keeps in memory which locks the
    /// process has, and a child inherits that, but not the locks: what a child commits beside an inherited connection can be lost
    /// when the parent closes its own. So a child that has inherited any of this manager's opens nothing: it gets an error
    /// ([`is_unprotected`](crate::Error::is_unprotected)). Of connections that something else has open to the same file, another pool
    /// say, this manager does not know.
    #[must_use]
    pub fn in_files(self) -> Self {
        Self { finds: Finds::InFiles { is_said: true }, ..self }
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

    /// `None`: it cannot be observed. Then the pool asks for the descriptors, and hears that they are unknown.
    fn observe(&self, at: &Attempt) -> Option<Result<M::Connection, M::Error>>
    where
        M::Error: Send,
    {
        let sight = PerProcess::get(&self.sight);
        if let Some(why) = sight.is_hopeless() {
            at.note_unobserved(why);
            return None;
        }
        match at.observe(|| self.inner.connect()) {
            Ok(connected) => {
                if connected.is_ok() {
                    sight.note(None);
                }
                Some(connected)
            }
            Err(why) => {
                sight.note(Some(why));
                None
            }
        }
    }

    fn open_file(&self) -> Result<M::Connection, M::Error> {
        let counted = self.files.opens();
        let opened = self.inner.connect()?;
        mem::forget(counted);
        Ok(opened)
    }
}

/// By the last names of the type and of what it is made for: that of a crate says little.
fn is_embedded(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let types = name.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    let mut names = types.filter_map(|path| path.rsplit("::").next());
    names.any(|name| ["sqlite", "duckdb"].iter().any(|database| name.contains(database)))
}

#[deny(clippy::missing_trait_methods)]
impl<M> ManageConnection for R2d2<M>
where
    M: r2d2::ManageConnection<Error: Send + Sync>,
{
    type Connection = M::Connection;
    type Error = M::Error;

    fn connect(&self) -> Result<M::Connection, M::Error> {
        match self.finds {
            Finds::InFiles { .. } => self.open_file(),
            _ => self.inner.connect(),
        }
    }

    fn connect_within(&self, at: &mut Attempt) -> Result<M::Connection, M::Error> {
        match self.finds {
            Finds::InFiles { is_said } => {
                if !is_said {
                    at.note_unobserved(
                        "by its name it is a database in files: if it has no sockets, say so by R2d2::in_files",
                    );
                }
                // For a manager around this one that does not pass the question on.
                self.forbids_connects().into_iter().for_each(|why| at.refuse(why));
                self.open_file()
            }
            Finds::ByObserving => self.observe(at).unwrap_or_else(|| self.inner.connect()),
            Finds::ByAsking(_) | Finds::None => self.inner.connect(),
        }
    }

    fn forbids_connects(&self) -> Option<String> {
        let inherited = matches!(self.finds, Finds::InFiles { .. }).then(|| self.files.inherited())?;
        (inherited > 0).then(|| {
            format!(
                "this process has inherited {inherited} open connections to a database in a file, and may lose what it writes beside \
                 them: call Pool::disconnect before the fork, with nothing lent"
            )
        })
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
            Finds::InFiles { is_said: true } => Descriptors::none(),
            Finds::InFiles { is_said: false } | Finds::ByObserving | Finds::None => Descriptors::unknown(),
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
        let _counted = matches!(self.finds, Finds::InFiles { .. }).then(|| self.files.closes());
        match &self.goodbye {
            Some(say) => say(conn, deadline),
            None => drop(conn),
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
            Finds::ByObserving
                if PerProcess::existing(&self.sight).is_some_and(|sight| sight.is_hopeless().is_some()) =>
            {
                "abandoned (cannot be observed)"
            }
            Finds::ByObserving => "disowned (observed)",
            Finds::ByAsking(_) => "disowned",
            Finds::None => "abandoned",
            Finds::InFiles { is_said: true } => "never closed",
            Finds::InFiles { is_said: false } => "never closed (by its name)",
        };
        f.debug_struct("R2d2").field("manager", &any::type_name::<M>()).field("class", &class).finish_non_exhaustive()
    }
}
