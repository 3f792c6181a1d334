//! What the handles of a pool share, and the part of it that each process has for itself.

use super::addresses::Addresses;
use super::bag::Bag;
use super::builder::Config;
use super::clock::Coarse;
use super::connection::Connection;
use super::customize::Hooks;
use super::error::{Named, Source};
use super::expiry::Limits;
use super::statistics::Counters;
use super::typical::Typical;
use super::{Error, ManageConnection};
use crate::Deadline;
use crate::fork::hooks::{self, Due};
use crate::fork::{self, PerProcess};
use std::convert::Infallible;
use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::*, fence};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the handles of a pool share, in every process. All that changes, but for counters that children may inherit, is in
/// `local`.
pub(super) struct Shared<M: ManageConnection> {
    pub(super) config: Config,
    pub(super) limits: Limits,
    pub(super) manager: M,
    pub(super) hooks: Hooks<M>,
    /// See [`Hooks::watch_loans`].
    pub(super) watches_loans: bool,
    /// As it is now. A child begins with it.
    pub(super) max_size: AtomicU32,
    /// How many connections this process has open. A child begins by asking how many its parent had.
    pub(super) live: AtomicU32,
    pub(super) addresses: Arc<Addresses>,
    local: PerProcess<Local<M>, ()>,
    pub(super) handles: AtomicUsize,
    /// Also read by children, which inherit it.
    closed: AtomicBool,
}

/// The pool of one process.
pub(super) struct Local<M: ManageConnection> {
    pub(super) bag: Bag<Connection<M>>,
    /// The child hooks are through, so that every thread may be served.
    pub(super) ready: AtomicBool,
    /// Connections of an earlier epoch are condemned: their server is not what it was.
    pub(super) epoch: AtomicU64,
    /// One that was last proved before this is a suspect: another that had rested as long turned out to be silent.
    pub(super) suspect_before: AtomicU64,
    /// When ordinary traffic looks for connections that have been idle for too long.
    pub(super) sweep_at: AtomicU64,
    /// How long it takes to connect, and to test, in nanoseconds.
    pub(super) connect_time: Typical,
    pub(super) test_time: Typical,
    /// How many connects have failed in a row.
    pub(super) failures: AtomicU32,
    /// The last of these failures.
    pub(super) last_failure: Mutex<Option<(Instant, String)>>,
    pub(super) counters: Counters,
    /// Connections whose descriptors nobody knows.
    pub(super) unknown: Arc<AtomicU32>,
}

impl<M: ManageConnection> Shared<M> {
    pub(super) fn new(config: Config, hooks: Hooks<M>, manager: M) -> Arc<Self> {
        let addresses = Arc::new(Addresses::resolve(manager.hosts(), config.dns_ttl));
        Arc::new(Self {
            limits: Limits::of(&config),
            max_size: AtomicU32::new(config.max_size),
            live: AtomicU32::new(0),
            config,
            manager,
            watches_loans: hooks.watch_loans(),
            hooks,
            addresses,
            local: PerProcess::new(()),
            handles: AtomicUsize::new(1),
            closed: AtomicBool::new(false),
        })
    }

    /// This process's part, if every thread may be served from it.
    #[inline]
    pub(super) fn ready(&self) -> Option<&Local<M>> {
        self.existing().filter(|local| local.ready.load(Acquire))
    }

    /// This process's part. In a child this is where the hooks run, and where the parent's part is abandoned.
    pub(super) fn local(&self, call: &Call) -> Result<&Local<M>, Error> {
        loop {
            let here = fork::generation();
            let local = self.local_here(call);
            // Goodbyes, and those who are told, may fork; then it was the parent's.
            if fork::generation() == here {
                return local;
            }
            std::mem::forget(local);
        }
    }

    fn local_here(&self, call: &Call) -> Result<&Local<M>, Error> {
        let due = hooks::run_due_within(call.deadline);
        if let Some(why) = fork::unprotected() {
            return Err(Error::unprotected(why));
        }
        let Ok(local) = PerProcess::get_with(&self.local, || Ok::<_, Infallible>(self.new_local()));
        fence(SeqCst);
        if self.closed.load(SeqCst) {
            // Perhaps after `close` had looked for a local part and found none.
            self.close_local(local, call.budget(self.config.test_timeout));
            return Err(Error::closed(self.named()));
        }
        if local.bag.wanted() != self.max_size.load(SeqCst) as usize {
            // Resized, likewise.
            self.fit_size(local, call.budget(self.config.test_timeout));
        }
        match due {
            Due::Through if !local.ready.load(Acquire) => {
                local.ready.store(true, Release);
                self.begun(local);
            }
            Due::Through | Due::Inside => {}
            Due::TooLate => return Err(self.timed_out(call, local)),
        }
        Ok(local)
    }

    fn new_local(&self) -> Local<M> {
        Local {
            bag: Bag::new(self.max_size.load(SeqCst) as usize),
            ready: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            suspect_before: AtomicU64::new(0),
            sweep_at: AtomicU64::new(Coarse::now().plus(self.limits.sweep_every).as_nanos()),
            connect_time: Typical::default(),
            test_time: Typical::default(),
            failures: AtomicU32::new(0),
            last_failure: Mutex::new(None),
            counters: Counters::new(self.live.swap(0, Relaxed).into()),
            unknown: Arc::default(),
        }
    }

    /// What there is of it in this process.
    #[inline]
    pub(super) fn existing(&self) -> Option<&Local<M>> {
        PerProcess::existing(&self.local)
    }

    /// For a caller that has just asked which process this is.
    #[inline]
    pub(super) fn existing_in(&self, here: fork::Generation) -> Option<&Local<M>> {
        PerProcess::existing_in(&self.local, here)
    }

    pub(super) fn mark_closed(&self) {
        self.closed.store(true, SeqCst);
        // Either we see the part that another thread is making, or it sees that the pool is closed.
        fence(SeqCst);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    /// For errors.
    pub(super) fn named(&self) -> Named {
        Named(self.config.name.clone())
    }
}

/// One call of a user's, and the time that it has. There is one deadline for all that is done in it, and one budget for what
/// has to be done about connections that others left behind.
pub(super) struct Call {
    /// The line that makes it.
    pub(super) place: &'static Location<'static>,
    pub(super) begun: Instant,
    pub(super) timeout: Duration,
    /// Nobody is surprised if it gets nothing.
    pub(super) is_try: bool,
    pub(super) deadline: Deadline,
    /// Of tests and goodbyes, from the first of them on.
    budget: std::cell::OnceCell<Deadline>,
    /// What went wrong last, if it did not end the call.
    last: std::cell::RefCell<Option<Source>>,
    /// It has been in line already.
    pub(super) has_waited: std::cell::Cell<bool>,
    /// That has been counted.
    pub(super) has_been_counted: std::cell::Cell<bool>,
}

impl Call {
    /// `None`: an idle connection now, if there is one.
    pub(super) fn new(timeout: Option<Duration>, place: &'static Location<'static>) -> Self {
        let is_try = timeout.is_none();
        let timeout = timeout.unwrap_or(Duration::ZERO);
        Self {
            is_try,
            place,
            begun: Instant::now(),
            timeout,
            deadline: Deadline::after(timeout),
            budget: std::cell::OnceCell::new(),
            last: std::cell::RefCell::new(None),
            has_waited: std::cell::Cell::new(false),
            has_been_counted: std::cell::Cell::new(false),
        }
    }

    /// One test and goodbye after the other may take so long together: at most half of what is left, so that there is
    /// time to connect. Who has no time to wait has time for this all the same: a test that may take none would only
    /// destroy connections.
    pub(super) fn budget(&self, most: Duration) -> Deadline {
        *self.budget.get_or_init(|| {
            let left = if self.timeout.is_zero() { Duration::MAX } else { self.deadline.remaining() / 2 };
            Deadline::after(most.min(left))
        })
    }

    /// Whether what had to be done about connections that others left behind has taken all the time that it may.
    pub(super) fn budget_is_over(&self) -> bool {
        self.budget.get().is_some_and(Deadline::is_over)
    }

    pub(super) fn failed(&self, why: impl Into<Option<Source>>) {
        if let Some(why) = why.into() {
            *self.last.borrow_mut() = Some(why);
        }
    }

    pub(super) fn take_last(&self) -> Option<Source> {
        self.last.borrow_mut().take()
    }
}
