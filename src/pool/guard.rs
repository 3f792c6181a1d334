//! A connection on loan.

use super::connection::Connection;
use super::slots;
use super::{Closed, Error, Extensions, Fault, ManageConnection};
use crate::Deadline;
use crate::fork::{self, Guarded, Origin};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// All goodbyes of those that a report condemns take no longer than this together.
const GOODBYES: Duration = Duration::from_secs(1);

/// A connection of a pool, lent until this is dropped.
///
/// In a child that inherited it, use through `Deref` panics with a message that says what to do, the `try_` functions
/// return the error, and dropping it is harmless. What was *borrowed* from it before the fork (a transaction, a row
/// iterator) finds a dead socket.
///
/// Functions are associated (`PooledConnection::origin(&conn)`), so that they do not hide the client's own methods.
pub struct PooledConnection<M: ManageConnection> {
    /// `None` only while it is dropped.
    conn: Option<Box<Connection<M>>>,
    slot: usize,
}

impl<M: ManageConnection> PooledConnection<M> {
    pub(super) fn new(conn: Box<Connection<M>>, slot: usize) -> Self {
        Self { conn: Some(conn), slot }
    }

    /// The process that opened the connection.
    pub fn origin(this: &Self) -> Origin {
        Guarded::origin(this.client())
    }

    /// Whether it was opened by an ancestor of this process.
    pub fn is_inherited(this: &Self) -> bool {
        Guarded::is_inherited(this.client())
    }

    /// The client, unless it is inherited.
    ///
    /// # Errors
    ///
    /// [`Error::is_inherited`].
    pub fn try_as_ref(this: &Self) -> Result<&M::Connection, Error> {
        Ok(Guarded::try_ref(this.client())?)
    }

    /// The client, unless it is inherited.
    ///
    /// # Errors
    ///
    /// [`Error::is_inherited`].
    pub fn try_as_mut(this: &mut Self) -> Result<&mut M::Connection, Error> {
        Ok(Guarded::try_mut(this.client_mut())?)
    }

    /// The how manieth connection of its process's part of the pool it is, counted from 0. Events tell it, too.
    pub fn id(this: &Self) -> u64 {
        this.connection().member.id
    }

    /// How long ago it was opened.
    pub fn age(this: &Self) -> Duration {
        this.connection().member.opened_at.elapsed()
    }

    /// What is attached to the connection: see [`extensions_mut`](Self::extensions_mut).
    pub fn extensions(this: &Self) -> &Extensions {
        &this.connection().attached.extensions
    }

    /// What is attached to the connection. It stays there for the next holder, and is dropped before the connection is closed.
    /// In a child that inherits the connection it is leaked: dropping it might reach for the parent's session.
    ///
    /// ```
    /// # use forksafe::{ManageConnection, Pool};
    /// # struct Numbers;
    /// # impl ManageConnection for Numbers {
    /// #     type Connection = u32;
    /// #     type Error = std::convert::Infallible;
    /// #     fn connect(&self) -> Result<u32, Self::Error> { Ok(7) }
    /// #     fn is_valid(&self, _: &mut u32) -> Result<(), Self::Error> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut u32) -> bool { false }
    /// # }
    /// use forksafe::PooledConnection;
    ///
    /// struct Prepared(&'static str);
    ///
    /// let pool = Pool::new(Numbers)?;
    /// let mut conn = pool.get()?;
    /// PooledConnection::extensions_mut(&mut conn).insert(Prepared("SELECT 1"));
    /// drop(conn);
    /// let conn = pool.get()?;
    /// assert!(PooledConnection::extensions(&conn).get::<Prepared>().is_some());
    /// # Ok::<_, forksafe::Error>(())
    /// ```
    pub fn extensions_mut(this: &mut Self) -> &mut Extensions {
        &mut this.conn.as_mut().expect("present until dropped").attached.extensions
    }

    /// Closes the connection instead of returning it: you know that it is not fit for the next one.
    pub fn discard(mut this: Self) {
        if let Some(mut ends) = EndsUnlessKept::of(&mut this) {
            ends.connection().tell_of_return();
            ends.why = Closed::Discarded;
        }
    }

    /// Tells the pool of an error that the connection gave. If its [manager](ManageConnection::classify) says that the error
    /// condemns the connection, it is closed when it comes back; if it condemns the server (a master that has become a
    /// replica), so are all that there are now; the idle ones at once, which takes a second at most. One that was condemned like
    /// that before condemns no more than itself: the others may have been opened since. Returns what the manager said.
    ///
    /// ```no_run
    /// # #[cfg(feature = "redis")] {
    /// use forksafe::{Pool, PooledConnection};
    ///
    /// # let pool = Pool::new(redis::Client::open("redis://127.0.0.1/")?)?;
    /// let mut conn = pool.get()?;
    /// let set = redis::cmd("SET").arg("key").arg(1).exec(&mut conn);
    /// set.inspect_err(|error| _ = PooledConnection::report(&mut conn, error))?; // READONLY: to another server next time
    /// # }
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn report(this: &mut Self, error: &(dyn std::error::Error + 'static)) -> Fault {
        let Some(conn) = this.conn.as_mut().filter(|conn| !Guarded::is_inherited(&conn.client)) else {
            return Fault::Connection;
        };
        let fault = conn.pool.manager.classify(error);
        if Guarded::is_inherited(&conn.client) {
            return fault;
        }
        conn.condemned |= matches!(fault, Fault::Connection | Fault::Server);
        if fault == Fault::Server {
            conn.pool.condemn_all(conn.local(), conn.epoch, Deadline::after(GOODBYES));
        }
        fault
    }

    /// Publishes the descriptors of a client that you have put in the place of another (`*conn = reconnect()?`): a child
    /// that is forked from here on drops the new one, if the manager knows its descriptors. The pool does the same when the
    /// connection comes back and the manager [shows its socket](ManageConnection::socket); until then a child would hold it.
    ///
    /// # Errors
    ///
    /// [`Error::is_inherited`]; [`Error::is_unprotected`] if they cannot be published, or nobody knows them and the pool
    /// [requires that](crate::Builder::require_known_descriptors): the connection is closed when it comes back.
    pub fn republish(this: &mut Self) -> Result<(), Error> {
        Self::try_as_ref(this)?;
        let conn = this.conn.as_mut().expect("present until dropped");
        if conn.republish() {
            return Ok(());
        }
        Self::try_as_ref(this)?;
        let conn = this.conn.as_mut().expect("present until dropped");
        conn.condemned = true;
        Err(Error::unprotected("the descriptors of the client that took another's place cannot be published"))
    }

    /// Takes the connection out of the pool for good, still protected; the pool may open another in its place.
    ///
    /// # Errors
    ///
    /// [`Error::is_inherited`].
    pub fn detach(mut this: Self) -> Result<Guarded<M::Connection>, Error> {
        Self::try_as_ref(&this)?;
        let mut ends = EndsUnlessKept::of(&mut this).expect("present until dropped");
        ends.connection().tell_of_return();
        let conn = ends.conn.take().expect("kept only here");
        Ok(conn.detach(ends.slot, Closed::Detached, |client| client))
    }

    fn connection(&self) -> &Connection<M> {
        self.conn.as_ref().expect("present until dropped")
    }

    #[inline]
    fn client(&self) -> &Guarded<M::Connection> {
        &self.connection().client
    }

    #[inline]
    fn client_mut(&mut self) -> &mut Guarded<M::Connection> {
        &mut self.conn.as_mut().expect("present until dropped").client
    }
}

impl<M: ManageConnection> Deref for PooledConnection<M> {
    type Target = M::Connection;

    /// # Panics
    ///
    /// When it is inherited. While the thread is panicking already, the client on its dead socket is lent instead, so
    /// that unwinding does not abort the process (not if its descriptors are unknown: then nothing protects the parent).
    #[inline]
    #[track_caller]
    fn deref(&self) -> &M::Connection {
        self.client()
    }
}

impl<M: ManageConnection> DerefMut for PooledConnection<M> {
    /// # Panics
    ///
    /// As [`deref`](Self::deref).
    #[inline]
    #[track_caller]
    fn deref_mut(&mut self) -> &mut M::Connection {
        self.client_mut()
    }
}

impl<M: ManageConnection> Drop for PooledConnection<M> {
    /// Returns the connection. Closes it instead when its holder panics, or the manager says that it has broken.
    /// Abandons it in a child.
    #[inline]
    fn drop(&mut self) {
        let Some(mut ends) = EndsUnlessKept::of(self) else { return };
        let slot = ends.slot;
        if ends.connection().is_inherited() {
            return; // `Guarded` leaks the client.
        }
        ends.connection().tell_of_return();
        if thread::panicking() {
            return;
        }
        if let Some(why) = ends.connection().why_it_ends(slot) {
            ends.why = why;
            return;
        }
        let Some(conn) = ends.conn.take() else { return };
        if fork::generation() != conn.client.generation() {
            return; // A method of the manager's forked, and this is the child.
        }
        conn.client.registration().rest();
        if conn.sweeps {
            return check_in_and_sweep(conn, slot);
        }
        if let Err(conn) = slots::put(conn, |conn| conn.ends_loan(slot)) {
            hand_on(conn, slot);
        }
    }
}

/// A connection that is closed when this is dropped, also when a method of the manager's panics.
struct EndsUnlessKept<M: ManageConnection> {
    conn: Option<Box<Connection<M>>>,
    slot: usize,
    why: Closed,
}

impl<M: ManageConnection> EndsUnlessKept<M> {
    /// What a guard holds, unless it holds nothing any more.
    #[inline]
    fn of(guard: &mut PooledConnection<M>) -> Option<Self> {
        Some(Self { conn: Some(guard.conn.take()?), slot: guard.slot, why: Closed::Panicked })
    }

    #[inline]
    fn connection(&mut self) -> &mut Connection<M> {
        self.conn.as_mut().expect("kept only at the end")
    }
}

impl<M: ManageConnection> Drop for EndsUnlessKept<M> {
    #[inline]
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            conn.end(self.slot, self.why);
        }
    }
}

impl<M: ManageConnection> Connection<M> {
    /// Its holder has done with it: tells who wants to know.
    #[inline]
    fn tell_of_return(&self) {
        if self.is_watched {
            self.tell_watchers_of_return();
        }
    }

    #[cold]
    fn tell_watchers_of_return(&self) {
        if !self.is_inherited() {
            let held = Instant::now().saturating_duration_since(self.lent_at);
            self.pool.returned(self.local(), self.member.id, held);
        }
    }
}

/// Somebody waits, or the pool is closed.
#[cold]
fn hand_on<M: ManageConnection>(conn: Box<Connection<M>>, slot: usize) {
    // The connection may be gone, and with it its reference to the pool, before `check_in` is through.
    let pool = Arc::clone(&conn.pool);
    pool.check_in(slot, conn);
}

#[cold]
fn check_in_and_sweep<M: ManageConnection>(mut conn: Box<Connection<M>>, slot: usize) {
    let pool = Arc::clone(&conn.pool);
    conn.sweeps = false;
    if let Err(conn) = slots::put(conn, |conn| conn.ends_loan(slot)) {
        pool.check_in(slot, conn);
    }
    pool.sweep();
}

impl<M: ManageConnection> fmt::Debug for PooledConnection<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledConnection").field("origin", &Self::origin(self)).finish_non_exhaustive()
    }
}
