//! How a connection is lent: found or made, judged, and brought back.
//!
//! What can fork is every callback: connect, validate, `has_broken`, reset, and the goodbye of a client. In the child such a
//! callback returns into a frame of the parent's, with the parent's rack and half of the parent's connection in hand.
//! So after each of them the generation is compared; what is in hand is then forgotten, and the child starts over.

use super::PooledConnection;
use super::builder::Config;
use super::clock::{Coarse, Span};
use super::rack::{Rack, Refusal, Taken};
use crate::addresses::Addresses;
use crate::error::{Source, Usage};
use crate::fork::hooks::{self, Due};
use crate::fork::{self, Generation, Goodbye, Guarded, PerProcess};
use crate::{Attempt, Deadline, Error, ManageConnection, Reset};
use std::cell::Cell;
use std::convert::Infallible;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*, fence};
use std::time::Duration;

/// What the handles of a pool share, in every process; all that changes is in `local`.
pub(super) struct Shared<M: ManageConnection> {
    pub(super) config: Config,
    idle_timeout: Span,
    max_lifetime: Span,
    pub(super) manager: M,
    addresses: Arc<Addresses>,
    local: PerProcess<Local<M>, ()>,
    pub(super) handles: AtomicUsize,
    /// Also read by children, which inherit it.
    closed: AtomicBool,
}

/// The pool of one process.
struct Local<M: ManageConnection> {
    rack: Rack<Loan<M>>,
    /// The child hooks are through, so that every thread may be served.
    ready: AtomicBool,
}

/// A connection and all that belongs to it; lies in the rack, or travels with its guard. Written at every checkout: no two
/// share a cache line.
#[repr(align(64))]
pub(super) struct Loan<M: ManageConnection> {
    pub(super) client: Guarded<M::Connection>,
    /// When it is too old.
    dies: Coarse,
    /// When it has been unused for too long.
    wilts: Coarse,
    /// What keeps the pool alive, so that lending touches no counter that threads share.
    pub(super) pool: Arc<Shared<M>>,
}

thread_local! {
    /// The slot that this thread had last: its connection is warm, and no other thread is likely to be after it.
    static NEAR: Cell<usize> = const { Cell::new(0) };
}

impl<M: ManageConnection> Goodbye<M::Connection> for Shared<M> {
    fn say(&self, conn: M::Connection, deadline: Deadline) {
        self.manager.goodbye(conn, deadline);
    }
}

impl<M: ManageConnection> Shared<M> {
    pub(super) fn new(config: Config, manager: M) -> Arc<Self> {
        let addresses = Arc::new(Addresses::resolve(manager.hosts()));
        Arc::new(Self {
            idle_timeout: Span::of(config.idle_timeout),
            max_lifetime: Span::of(config.max_lifetime),
            config,
            manager,
            addresses,
            local: PerProcess::new(()),
            handles: AtomicUsize::new(1),
            closed: AtomicBool::new(false),
        })
    }

    #[inline]
    pub(super) fn check_out(self: &Arc<Self>, timeout: Duration) -> Result<PooledConnection<M>, Error> {
        if !self.config.test_on_check_out
            && let Some(local) = PerProcess::existing(&self.local)
            && local.ready.load(Acquire)
            && let Some((slot, loan)) = local.rack.take_resting(NEAR.get())
        {
            let now = Coarse::now();
            if loan.is_fresh(now) {
                return Ok(self.lend(loan, slot, now));
            }
            loan.end_by(self.patience(timeout), slot);
        }
        self.check_out_slowly(timeout)
    }

    /// An idle connection now, or nothing: no waiting and no connecting.
    pub(super) fn check_out_idle(self: &Arc<Self>) -> Option<PooledConnection<M>> {
        self.check_out(Duration::ZERO).ok()
    }

    #[inline]
    fn lend(&self, mut loan: Box<Loan<M>>, slot: usize, now: Coarse) -> PooledConnection<M> {
        loan.wilts = now.plus(self.idle_timeout);
        loan.client.registration().lend();
        NEAR.set(slot);
        PooledConnection::new(loan, slot)
    }

    #[cold]
    fn check_out_slowly(self: &Arc<Self>, timeout: Duration) -> Result<PooledConnection<M>, Error> {
        let deadline = Deadline::after(timeout);
        let mut last = None;
        loop {
            let rack = self.rack(deadline, timeout)?;
            let here = fork::generation();
            let (slot, resting) = match rack.acquire(NEAR.get(), deadline) {
                Ok(Taken::Resting(slot, loan)) => (slot, Some(loan)),
                Ok(Taken::Vacant(slot)) => (slot, None),
                Err(Refusal::Closed) => return Err(Error::closed()),
                Err(Refusal::Timeout) => return Err(Error::timeout(timeout, self.usage(rack), last)),
            };
            let vacancy = Vacancy { rack, slot, generation: here };
            if let Some(mut loan) = resting {
                if deadline.is_over() && !timeout.is_zero() {
                    // It came with the last moment. To test it now would only destroy it.
                    self.take_back(vacancy.keep(), loan);
                    return Err(Error::timeout(timeout, self.usage(rack), last));
                }
                let patience = if timeout.is_zero() { self.patience(timeout) } else { deadline };
                match self.judge(&mut loan, patience) {
                    Judgement::Fit => return Ok(self.lend(loan, vacancy.keep(), Coarse::now())),
                    Judgement::Unfit(why) => last = why.or(last),
                }
                // Closed before its slot is used again; in a child that was forked by the judging, abandoned.
                loan.client.goodbye_by(patience);
                drop(loan);
                if fork::generation() != here {
                    continue;
                }
            }
            if deadline.is_over() {
                drop(vacancy);
                if timeout.is_zero() && rack.resting() > 0 {
                    continue; // That one was not fit; the next may be.
                }
                return Err(Error::timeout(timeout, self.usage(rack), last));
            }
            if let Some(loan) = self.connect(deadline)? {
                return Ok(self.lend(loan, vacancy.keep(), Coarse::now()));
            }
        }
    }

    /// Whether a connection may be lent.
    fn judge(&self, loan: &mut Loan<M>, deadline: Deadline) -> Judgement {
        if !loan.is_fresh(Coarse::now()) {
            return Judgement::Unfit(None);
        }
        if !self.config.test_on_check_out {
            return Judgement::Fit;
        }
        let here = fork::generation();
        loan.client.registration().lend();
        let socket = loan.client.registration().first();
        match self.manager.is_valid_within(loan.client.value_mut(), deadline.on(socket)) {
            Ok(()) if fork::generation() == here => Judgement::Fit,
            Ok(()) => Judgement::Unfit(None),
            Err(why) => Judgement::Unfit(Some(Box::new(why))),
        }
    }

    /// How long a connection may take for what has to be done with it. No time at all is for waiting and connecting: a test
    /// that may take no time would only destroy connections.
    fn patience(&self, timeout: Duration) -> Deadline {
        Deadline::after(match (timeout, self.config.connection_timeout) {
            (Duration::ZERO, Duration::ZERO) => Duration::from_secs(1),
            (Duration::ZERO, usual) => usual,
            (timeout, _) => timeout,
        })
    }

    /// A new connection. `None` in a child that was forked in the middle: start over.
    fn connect(self: &Arc<Self>, deadline: Deadline) -> Result<Option<Box<Loan<M>>>, Error> {
        let client = Guarded::apart_from_forks(deadline, || self.connect_once(deadline))?;
        let now = Coarse::now();
        let dies = now.plus(self.max_lifetime);
        let loan = |client| Box::new(Loan { client, dies, wilts: Coarse::NEVER, pool: Arc::clone(self) });
        Ok(client.map(loan))
    }

    fn connect_once(self: &Arc<Self>, deadline: Deadline) -> Result<Option<Guarded<M::Connection>>, Error> {
        let here = fork::generation();
        let mut attempt = Attempt::new(deadline, Arc::clone(&self.addresses));
        let connected = self.manager.connect_within(&mut attempt);
        if fork::generation() != here {
            mem::forget((connected, attempt));
            return Ok(None);
        }
        let client = match connected {
            Ok(client) => client,
            Err(why) => {
                let refused = attempt.refused();
                attempt.forget_all();
                self.addresses.doubt();
                return Err(refused.unwrap_or_else(|| Error::connect(why)));
            }
        };
        let (registration, refused) = attempt.finish();
        let goodbye = Arc::clone(self) as Arc<dyn Goodbye<M::Connection>>;
        let client = Guarded::from_parts(client, registration, Some(goodbye));
        refused.map_or(Ok(Some(client)), Err)
    }

    /// The rack of this process. In a child this is where the hooks run, and where the parent's rack is abandoned.
    fn rack(&self, deadline: Deadline, timeout: Duration) -> Result<&Rack<Loan<M>>, Error> {
        let due = hooks::run_due_within(deadline);
        if let Some(why) = fork::unprotected() {
            return Err(Error::unprotected(why));
        }
        let Ok(local) = PerProcess::get_with(&self.local, || {
            let rack = Rack::new(self.config.max_size as usize);
            Ok::<_, Infallible>(Local { rack, ready: AtomicBool::new(false) })
        });
        fence(SeqCst);
        if self.closed.load(SeqCst) {
            // Perhaps after `close` had looked for a rack and found none.
            drop(local.rack.close());
            return Err(Error::closed());
        }
        match due {
            Due::Through => local.ready.store(true, Release),
            Due::Inside => {}
            Due::TooLate => return Err(Error::timeout(timeout, self.usage(&local.rack), None)),
        }
        Ok(&local.rack)
    }

    fn existing_rack(&self) -> Option<&Rack<Loan<M>>> {
        PerProcess::existing(&self.local).map(|local| &local.rack)
    }

    /// A returned connection that somebody waits for, or whose pool is closed.
    pub(super) fn take_back(&self, slot: usize, loan: Box<Loan<M>>) {
        if let Some(rack) = self.existing_rack()
            && let Some(loan) = rack.restore(slot, loan)
        {
            loan.end(slot); // The pool is closed.
        }
    }

    /// Opens connections until `wanted` are idle or the pool is full; says how many it opened.
    pub(super) fn warm_up(self: &Arc<Self>, wanted: u32) -> Result<u32, Error> {
        let timeout = self.config.connection_timeout;
        let deadline = Deadline::after(timeout);
        let mut opened = 0;
        loop {
            if wanted == 0 {
                return Ok(0);
            }
            let rack = self.rack(deadline, timeout)?;
            if rack.resting() >= wanted as usize {
                return Ok(opened);
            }
            if deadline.is_over() {
                return Err(Error::timeout(timeout, self.usage(rack), None));
            }
            let Some(slot) = rack.take_vacant() else { return Ok(opened) };
            let vacancy = Vacancy { rack, slot, generation: fork::generation() };
            let Some(mut loan) = self.connect(deadline)? else {
                opened = 0;
                continue;
            };
            loan.wilts = Coarse::now().plus(self.idle_timeout);
            loan.client.registration().rest();
            self.take_back(vacancy.keep(), loan);
            opened += 1;
        }
    }

    /// Closes what has expired, one connection at a time so that the others stay to be had.
    pub(super) fn reap(&self) {
        let Some(rack) = self.existing_rack() else { return };
        let now = Coarse::now();
        let keep = self.config.min_idle.unwrap_or(0) as usize;
        for slot in 0..self.config.max_size as usize {
            let Some(loan) = rack.take_resting_in(slot) else { continue };
            let surplus = rack.resting() >= keep;
            if loan.dies <= now || (loan.wilts <= now && surplus) {
                let here = loan.client.generation();
                loan.end(slot);
                if fork::generation() != here {
                    return; // A goodbye forked, and this is the child: the rack is its parent's.
                }
            } else {
                self.take_back(slot, loan);
            }
        }
    }

    pub(super) fn disconnect(&self) {
        let Some(rack) = self.existing_rack() else { return };
        for (slot, loan) in rack.take_all_resting() {
            loan.end(slot);
        }
    }

    /// With somebody who waits for it, by a deadline.
    pub(super) fn close(&self, by: Option<Deadline>) {
        self.closed.store(true, SeqCst);
        // Either we see the rack that another thread is making, or it sees that the pool is closed.
        fence(SeqCst);
        if let Some(rack) = self.existing_rack() {
            for mut loan in rack.close() {
                by.into_iter().for_each(|by| loan.client.goodbye_by(by));
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// After [`close`](Self::close). False at the deadline.
    pub(super) fn wait_until_empty(&self, deadline: Deadline) -> Result<(), Usage> {
        match self.existing_rack() {
            Some(rack) if !rack.wait_until_empty(deadline) => Err(self.usage(rack)),
            _ => Ok(()),
        }
    }

    /// Connections, those of them that rest, and threads in line.
    pub(super) fn counts(&self) -> (u32, u32, u32) {
        self.existing_rack().map_or((0, 0, 0), |rack| {
            let resting = rack.resting();
            (rack.total().max(resting) as u32, resting as u32, rack.waiting() as u32)
        })
    }

    fn usage(&self, rack: &Rack<Loan<M>>) -> Usage {
        let in_use = rack.total().saturating_sub(rack.resting()) as u32;
        Usage { in_use, max_size: self.config.max_size, waiting: rack.waiting() }
    }
}

enum Judgement {
    Fit,
    Unfit(Option<Source>),
}

/// A slot of this process's rack that nobody else has, given back when dropped: an error or a panic on the way loses
/// nothing. In a child it belongs to the parent's rack and does nothing.
struct Vacancy<'a, M: ManageConnection> {
    rack: &'a Rack<Loan<M>>,
    slot: usize,
    generation: Generation,
}

impl<M: ManageConnection> Vacancy<'_, M> {
    /// The slot goes to the caller.
    fn keep(self) -> usize {
        let slot = self.slot;
        mem::forget(self);
        slot
    }
}

impl<M: ManageConnection> Drop for Vacancy<'_, M> {
    fn drop(&mut self) {
        if self.generation == fork::generation() {
            self.rack.vacate(self.slot);
        }
    }
}

impl<M: ManageConnection> Loan<M> {
    #[inline]
    fn is_fresh(&self, now: Coarse) -> bool {
        now < self.dies && now < self.wilts
    }

    #[inline]
    pub(super) fn has_broken(&mut self) -> bool {
        self.pool.manager.has_broken(self.client.value_mut())
    }

    /// Whether it is fit for the next one, after all that its manager does about it.
    #[inline]
    pub(super) fn is_reset(&mut self) -> bool {
        !self.pool.manager.resets() || self.reset()
    }

    #[cold]
    fn reset(&mut self) -> bool {
        let deadline = self.pool.patience(Duration::ZERO).on(self.client.registration().first());
        matches!(self.pool.manager.reset(self.client.value_mut(), deadline), Ok(Reset::Keep))
    }

    /// The rack that a loan of this process belongs to.
    #[inline]
    pub(super) fn rack(&self) -> &Rack<Self> {
        let local = PerProcess::existing_in(&self.pool.local, self.client.generation());
        &local.expect("bug: a loan without its rack").rack
    }

    #[cold]
    fn end_by(mut self, deadline: Deadline, slot: usize) {
        self.client.goodbye_by(deadline);
        self.end(slot);
    }

    /// Closes the connection and vacates its slot. An inherited one is abandoned.
    #[cold]
    pub(super) fn end(self, slot: usize) {
        self.detach(slot, drop);
    }

    /// Takes the connection out of the pool.
    pub(super) fn detach<T>(self, slot: usize, then: impl FnOnce(Guarded<M::Connection>) -> T) -> T {
        let Self { client, pool, .. } = self;
        let _vacates = Vacates { slot, made_in: client.generation(), pool };
        then(client)
    }
}

/// Gives a slot back when its connection has gone, also by a panic. Not in a child: neither in one that inherited the loan,
/// nor in one that a goodbye forked.
struct Vacates<M: ManageConnection> {
    slot: usize,
    made_in: Generation,
    pool: Arc<Shared<M>>,
}

impl<M: ManageConnection> Drop for Vacates<M> {
    fn drop(&mut self) {
        if self.made_in == fork::generation()
            && let Some(rack) = self.pool.existing_rack()
        {
            rack.vacate(self.slot);
        }
    }
}
