//! A connection on loan.

use super::lending::Loan;
use super::rack;
use crate::fork::{self, Guarded, Origin};
use crate::{Error, ManageConnection};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::thread;

/// A connection of a pool, lent until this is dropped.
///
/// In a child that inherited it, use through `Deref` panics with a message that says what to do, the `try_` functions
/// return the error, and dropping it is harmless. What was *borrowed* from it before the fork (a transaction, a row
/// iterator) finds a dead socket.
///
/// Functions are associated (`PooledConnection::origin(&conn)`), so that they do not hide the client's own methods.
pub struct PooledConnection<M: ManageConnection> {
    /// `None` only while it is dropped.
    loan: Option<Box<Loan<M>>>,
    slot: usize,
}

impl<M: ManageConnection> PooledConnection<M> {
    pub(super) fn new(loan: Box<Loan<M>>, slot: usize) -> Self {
        Self { loan: Some(loan), slot }
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

    /// Closes the connection instead of returning it: you know that it is not fit for the next one.
    pub fn discard(mut this: Self) {
        let slot = this.slot;
        if let Some(loan) = this.loan.take() {
            loan.end(slot);
        }
    }

    /// Takes the connection out of the pool for good, still protected; the pool may open another in its place.
    ///
    /// # Errors
    ///
    /// [`Error::is_inherited`].
    pub fn detach(mut this: Self) -> Result<Guarded<M::Connection>, Error> {
        Self::try_as_ref(&this)?;
        let slot = this.slot;
        Ok(this.loan.take().expect("present until dropped").detach(slot, |client| client))
    }

    #[inline]
    fn client(&self) -> &Guarded<M::Connection> {
        &self.loan.as_ref().expect("present until dropped").client
    }

    #[inline]
    fn client_mut(&mut self) -> &mut Guarded<M::Connection> {
        &mut self.loan.as_mut().expect("present until dropped").client
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
        let slot = self.slot;
        let Some(loan) = self.loan.take() else { return };
        if loan.client.generation() != fork::generation() {
            return; // `Guarded` leaks the client.
        }
        let mut ends = EndsUnlessKept(Some(loan), slot);
        if thread::panicking() || ends.loan().has_broken() || !ends.loan().is_reset() {
            return;
        }
        let Some(loan) = ends.0.take() else { return };
        if fork::generation() != loan.client.generation() {
            return; // One of the two forked, and this is the child.
        }
        loan.client.registration().rest();
        if let Err(loan) = rack::put(loan, |loan| loan.rack().place(slot)) {
            hand_on(loan, slot);
        }
    }
}

/// A connection that is closed when this is dropped, also when `has_broken` panics.
struct EndsUnlessKept<M: ManageConnection>(Option<Box<Loan<M>>>, usize);

impl<M: ManageConnection> EndsUnlessKept<M> {
    #[inline]
    fn loan(&mut self) -> &mut Loan<M> {
        self.0.as_mut().expect("kept only at the end")
    }
}

impl<M: ManageConnection> Drop for EndsUnlessKept<M> {
    #[inline]
    fn drop(&mut self) {
        if let Some(loan) = self.0.take() {
            loan.end(self.1);
        }
    }
}

/// Somebody waits, or the pool is closed.
#[cold]
fn hand_on<M: ManageConnection>(loan: Box<Loan<M>>, slot: usize) {
    // The loan may be gone, and with it its reference to the pool, before `restore` is through.
    let pool = Arc::clone(&loan.pool);
    pool.take_back(slot, loan);
}

impl<M: ManageConnection> fmt::Debug for PooledConnection<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledConnection").field("origin", &Self::origin(self)).finish_non_exhaustive()
    }
}
