//! A connection and all that belongs to it.

use super::asked;
use super::expiry::Times;
use super::extensions::Attached;
use super::shared::{Local, Shared};
use super::slots::Slot;
use super::{Closed, ManageConnection, Reset};
use crate::Deadline;
use crate::fork::{self, Goodbye, Guarded};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Lies in its slot, or travels with its guard. Written at every checkout: no two share a cache line.
#[repr(align(64))]
pub(super) struct Connection<M: ManageConnection> {
    /// Goes before the client does.
    pub(super) attached: Attached,
    pub(super) client: Guarded<M::Connection>,
    pub(super) times: Times,
    /// After so many loans of its slot it has been lent often enough.
    pub(super) last_loan: u64,
    /// See [`Local::epoch`].
    pub(super) epoch: u64,
    /// It is to be closed when it comes back.
    pub(super) condemned: bool,
    /// Its holder looks for stale ones when it comes back.
    pub(super) sweeps: bool,
    /// Somebody wants to know when it is lent and comes back.
    pub(super) is_watched: bool,
    /// Set if nobody knows its descriptors.
    pub(super) unknown: Option<Unknown>,
    pub(super) member: Member<M>,
    /// Of one that is watched.
    pub(super) lent_at: Instant,
    /// What keeps the pool alive, so that lending touches no counter that threads share.
    pub(super) pool: Arc<Shared<M>>,
}

/// How long a reset may take, if the pool has no time to wait at all.
const RESET: Duration = Duration::from_secs(1);

impl<M: ManageConnection> Connection<M> {
    /// The part of the pool that a connection of this process belongs to.
    #[inline]
    pub(super) fn local(&self) -> &Local<M> {
        self.pool.existing_in(self.client.generation()).expect("bug: a connection without its pool")
    }

    /// The slot that it goes back to. Nobody has it from here on.
    #[inline]
    pub(super) fn ends_loan(&self, number: usize) -> &Slot<Self> {
        let slots = &self.local().bag.slots;
        slots.meter(number).end();
        slots.slot(number)
    }

    /// Why it may not go back, after all that its manager does about it. Any of its methods may fork: in the child the others are
    /// not asked about a client that is the parent's.
    #[inline]
    pub(super) fn why_it_ends(&mut self, slot: usize) -> Option<Closed> {
        if self.condemned {
            return Some(Closed::Broken);
        }
        let local = self.local();
        if self.epoch != local.epoch.load(Relaxed) {
            return Some(Closed::Evicted);
        }
        if local.bag.slots.meter(slot).loans() >= self.last_loan {
            return Some(Closed::Used);
        }
        let is_in_order = !self.pool.manager.has_broken(self.client.value_mut())
            && (!self.pool.manager.resets() || self.is_reset())
            && (!self.was_replaced() || self.republish());
        if !is_in_order {
            return Some(Closed::Broken);
        }
        (self.is_watched && !self.is_welcome_back()).then_some(Closed::Refused)
    }

    /// What its return may take.
    fn return_by(&self) -> Deadline {
        let time = self.pool.config.connection_timeout;
        let deadline = Deadline::after(if time.is_zero() { RESET } else { time });
        deadline.on(self.client.registration().first())
    }

    #[cold]
    fn is_welcome_back(&mut self) -> bool {
        let Some(ask) = &self.pool.hooks.after_release else { return true };
        if self.is_inherited() {
            return false;
        }
        let by = self.return_by();
        let answer = asked::until(by, || ask(self.client.value_mut(), by));
        if self.is_inherited() {
            mem::forget(answer);
            return false;
        }
        answer.is_ok()
    }

    #[cold]
    fn is_reset(&mut self) -> bool {
        if self.is_inherited() {
            return false;
        }
        let deadline = self.return_by();
        let answer = self.pool.manager.reset(self.client.value_mut(), deadline);
        if self.is_inherited() {
            mem::forget(answer);
            return false;
        }
        matches!(answer, Ok(Reset::Keep))
    }

    /// Whether the client is another than the one whose descriptors were published, as far as its number tells.
    #[inline]
    fn was_replaced(&mut self) -> bool {
        use std::os::fd::AsRawFd;
        if self.is_inherited() {
            return false;
        }
        let Some(socket) = self.pool.manager.socket(self.client.value_mut()).map(|socket| socket.as_raw_fd()) else {
            return false;
        };
        self.client.registration().first() != Some(socket)
    }

    /// Publishes the descriptors of a client that was replaced. False if they cannot be named, and have to be.
    #[cold]
    pub(super) fn republish(&mut self) -> bool {
        if self.is_inherited() {
            return false;
        }
        let descriptors = self.pool.manager.descriptors(self.client.value_mut());
        if self.is_inherited() || self.client.registration_mut().replace(descriptors).is_err() {
            return false;
        }
        self.count_unknown();
        self.unknown.is_none() || !self.pool.config.require_known_descriptors
    }

    /// After its descriptors were published: counts it if nobody knows them.
    pub(super) fn count_unknown(&mut self) {
        let is_known = self.client.registration().is_known();
        self.unknown = (!is_known).then(|| Unknown::count(&self.local().unknown));
    }

    /// Whether this is a child, and the connection its parent's: a method of the manager's forked.
    #[inline]
    pub(super) fn is_inherited(&self) -> bool {
        Guarded::is_inherited(&self.client)
    }

    /// Closes the connection and vacates its slot. An inherited one is abandoned.
    #[cold]
    pub(super) fn end(self, number: usize, why: Closed) {
        self.detach(number, why, drop);
    }

    /// As [`end`](Self::end), by a deadline.
    #[cold]
    pub(super) fn end_by(mut self, deadline: Deadline, number: usize, why: Closed) {
        self.client.goodbye_by(deadline);
        self.end(number, why);
    }

    /// Takes the connection out of the pool.
    pub(super) fn detach<T>(self, number: usize, why: Closed, then: impl FnOnce(Guarded<M::Connection>) -> T) -> T {
        let _vacates = Vacates { number, made_in: self.client.generation(), pool: Arc::clone(&self.pool) };
        // Gone before its slot is given up, also if one of these panics.
        let ends = move || {
            let Self { client, attached, unknown, mut member, .. } = self;
            drop(unknown);
            member.leaves(why);
            drop(attached);
            then(client)
        };
        ends()
    }
}

/// A connection's being one of a pool's. It ends once, and is counted: also by a panic.
pub(super) struct Member<M: ManageConnection> {
    pool: Arc<Shared<M>>,
    made_in: fork::Generation,
    /// The how manieth of its process.
    pub(super) id: u64,
    pub(super) opened_at: Instant,
    has_left: bool,
}

impl<M: ManageConnection> Member<M> {
    pub(super) fn new(pool: &Arc<Shared<M>>, local: &Local<M>) -> Self {
        let (made_in, opened_at) = (fork::generation(), Instant::now());
        Self { pool: Arc::clone(pool), made_in, id: pool.joins(local), opened_at, has_left: false }
    }

    /// The connection leaves the pool: those who want to know are told.
    pub(super) fn leaves(&mut self, why: Closed) {
        if self.counts_out(why)
            && let Some(local) = self.pool.existing_in(self.made_in)
        {
            self.pool.ended(local, self.id, self.opened_at.elapsed(), why);
        }
    }

    /// Whether that is news.
    fn counts_out(&mut self, why: Closed) -> bool {
        if self.made_in != fork::generation() || mem::replace(&mut self.has_left, true) {
            return false;
        }
        if let Some(local) = self.pool.existing_in(self.made_in) {
            self.pool.has_left(local, why);
        }
        true
    }
}

impl<M: ManageConnection> Drop for Member<M> {
    fn drop(&mut self) {
        self.counts_out(Closed::Panicked);
    }
}

/// One of the connections whose descriptors nobody knows: counted until this is dropped, also by a panic.
pub(super) struct Unknown(Arc<AtomicU32>);

impl Unknown {
    fn count(counter: &Arc<AtomicU32>) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Unknown {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Gives a slot back when its connection has gone, also by a panic. Not in a child: neither in one that inherited the
/// connection, nor in one that a goodbye forked.
struct Vacates<M: ManageConnection> {
    number: usize,
    made_in: fork::Generation,
    pool: Arc<Shared<M>>,
}

impl<M: ManageConnection> Drop for Vacates<M> {
    fn drop(&mut self) {
        if self.made_in == fork::generation()
            && let Some(local) = self.pool.existing()
        {
            local.bag.slots.meter(self.number).end();
            local.bag.vacate(self.number);
        }
    }
}

impl<M: ManageConnection> Goodbye<M::Connection> for Shared<M> {
    fn say(&self, conn: M::Connection, deadline: Deadline) {
        self.manager.goodbye(conn, deadline);
    }
}
