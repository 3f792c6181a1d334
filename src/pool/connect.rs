//! How a connection is made: before a deadline, again if a fork came in between, and what becomes of the pool if it fails.

use super::asked;
use super::bag::Bag;
use super::clock::Coarse;
use super::connection::{Connection, Member};
use super::customize::Farewell;
use super::error::Source;
use super::expiry;
use super::extensions::Attached;
use super::shared::{Local, Shared};
use super::{Attempt, Error, Fault, ManageConnection};
use crate::Deadline;
use crate::fork::{self, Generation, Goodbye, Guarded};
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long nobody connects after a first failure; twice as long after each further one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(10);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(1);

pub(super) enum Connected<M: ManageConnection> {
    Fit(Box<Connection<M>>),
    /// This is a child that was forked in the middle: it starts over.
    Forked,
    /// It could not be protected, and was closed.
    Refused(Error),
    Failed {
        why: Source,
        /// It is worth the wait for what comes back, or for a later attempt.
        waits: bool,
    },
}

enum Failure<E> {
    Refused(Error),
    Failed(E),
}

impl<M: ManageConnection> Shared<M> {
    /// For a slot of the caller's.
    pub(super) fn connect(self: &Arc<Self>, local: &Local<M>, slot: usize, deadline: Deadline) -> Connected<M> {
        let mut begun = Instant::now();
        let failures = local.failures.load(Relaxed);
        let _connecting = Connecting::begin(&local.counters.connecting);
        let gate = ReleasesGate { bag: &local.bag, here: fork::generation() };
        // Of what was known of the server before it was dialled.
        let mut epoch = 0;
        let opened = Guarded::apart_from_forks(deadline, || {
            begun = Instant::now();
            epoch = local.epoch.load(Relaxed);
            self.open(deadline)
        });
        // It says nothing about the server that somebody had no time for it.
        let is_hurried = deadline.is_over() && begun.elapsed() < LONGEST_BACK_OFF;
        let connected = match opened {
            Ok(Some(client)) => {
                let took = begun.elapsed();
                local.connect_time.note(took);
                local.failures.store(0, Relaxed);
                *lock(&local.last_failure) = None;
                local.bag.open_gate();
                let here = client.generation();
                let conn = self.connection(local, slot, client, epoch, took);
                if fork::generation() == here { Connected::Fit(conn) } else { Connected::Forked }
            }
            Ok(None) => Connected::Forked,
            Err(Failure::Refused(error)) => Connected::Refused(error),
            Err(Failure::Failed(why)) => self.failed(local, why, (!is_hurried).then_some(failures)),
        };
        match connected {
            Connected::Refused(_) | Connected::Failed { waits: false, .. } => {}
            Connected::Failed { waits: true, .. } if is_hurried => {}
            // It is open, or has been shut anew; or it is the parent's.
            Connected::Fit(_) | Connected::Forked | Connected::Failed { waits: true, .. } => mem::forget(gate),
        }
        connected
    }

    /// `None` in a child that was forked in the middle.
    fn open(self: &Arc<Self>, deadline: Deadline) -> Result<Option<Guarded<M::Connection>>, Failure<M::Error>> {
        if let Some(why) = self.manager.forbids_connects() {
            return Err(Failure::Refused(Error::unprotected(why)));
        }
        let here = fork::generation();
        let mut attempt = Attempt::with(deadline, Arc::clone(&self.addresses));
        let connected = attempt.clone().run(|| {
            let connected = self.manager.connect_within(&mut attempt);
            if let (Ok(client), true) = (&connected, fork::generation() == here) {
                attempt.own_unless_published(&self.manager, client);
            }
            connected
        });
        if fork::generation() != here {
            mem::forget((connected, attempt));
            return Ok(None);
        }
        let refused = attempt.refused();
        let unobserved = attempt.unobserved();
        let client = match connected {
            Ok(client) => client,
            Err(why) => {
                // Shut down, for a child that was forked meanwhile and has a copy.
                attempt.forget_all();
                return Err(refused.map_or_else(|| Failure::Failed(why), Failure::Refused));
            }
        };
        let goodbye = Arc::clone(self) as Arc<dyn Goodbye<M::Connection>>;
        let mut client = Guarded::from_parts(client, attempt.finish(), Some(goodbye));
        let objection = match refused.or_else(|| self.objects_to(&client, unobserved)) {
            Some(why) => Some(Failure::Refused(why)),
            None => self.is_refused(&mut client, deadline).map(Failure::Failed),
        };
        let opened = match objection {
            Some(why) => {
                client.goodbye_by(deadline);
                drop(client);
                Err(why)
            }
            None => {
                if self.hooks.see_ends() {
                    client.set_goodbye(Arc::new(Farewell(Arc::clone(self))));
                }
                Ok(Some(client))
            }
        };
        if fork::generation() != here {
            opened.map_or_else(mem::forget, drop);
            return Ok(None);
        }
        opened
    }

    /// What the hooks say against it.
    fn is_refused(&self, client: &mut Guarded<M::Connection>, deadline: Deadline) -> Option<M::Error> {
        if self.hooks.accepts_any() {
            return None;
        }
        let by = deadline.on(client.registration().first());
        asked::until(by, || self.hooks.accept(client.value_mut(), by)).err()
    }

    fn objects_to(&self, client: &Guarded<M::Connection>, unobserved: Option<String>) -> Option<Error> {
        let unknown = self.config.require_known_descriptors && !client.registration().is_known();
        unknown.then(|| {
            let why = unobserved.unwrap_or_else(|| {
                "its manager does not name the descriptors of its connections (ManageConnection::socket or descriptors)".into()
            });
            Error::unprotected(format!("{why}, and the pool was built with require_known_descriptors"))
        })
    }

    fn connection(
        self: &Arc<Self>,
        local: &Local<M>,
        slot: usize,
        client: Guarded<M::Connection>,
        epoch: u64,
        took: Duration,
    ) -> Box<Connection<M>> {
        let now = Instant::now();
        let loans = local.bag.slots.meter(slot).loans();
        let mut connection = Box::new(Connection {
            attached: Attached::nothing(),
            client,
            last_loan: self.config.max_uses.map_or(u64::MAX, |uses| loans + u64::from(uses)),
            is_watched: self.watches_loans,
            member: Member::new(self, local),
            lent_at: now,
            times: self.limits.born(Coarse::now(), expiry::chance()),
            epoch,
            condemned: false,
            sweeps: false,
            unknown: None,
            pool: Arc::clone(self),
        });
        connection.count_unknown();
        self.opened(local, connection.member.id, took);
        connection
    }

    #[cold]
    fn failed(&self, local: &Local<M>, why: M::Error, failures: Option<u32>) -> Connected<M> {
        let here = fork::generation();
        let fault = self.manager.classify(&why);
        if fork::generation() != here {
            mem::forget(why);
            return Connected::Forked;
        }
        let text = why.to_string();
        *lock(&local.last_failure) = Some((Instant::now(), text.clone()));
        self.not_opened(local, &text);
        if fault == Fault::Server {
            self.addresses.doubt();
        }
        // Connections of one's own come back; that the server has no room for more is no reason to fail.
        let comes_back = fault == Fault::NoRoom && local.bag.slots.occupied() > 1;
        let waits = comes_back || (self.config.retry_connect && fault != Fault::Caller);
        if waits && let Some(failures) = failures {
            self.back_off(local, failures);
        }
        let why = self.hooks.tell_error(why, self.may_tell(local));
        if fork::generation() != here {
            mem::forget(why);
            return Connected::Forked;
        }
        Connected::Failed { why, waits }
    }

    /// The error of a connect that failed, or of a test that could not be made. `None` in a child that was forked by the
    /// manager: there it is the parent's.
    pub(super) fn cannot_connect(&self, here: Generation, why: Source) -> Option<Error> {
        let target = self.manager.target();
        if fork::generation() != here {
            mem::forget(why);
            return None;
        }
        Some(Error::connect(self.named(), target, why))
    }

    /// Nobody connects for some time. `failures` is how many there had been in a row when this connect began: those that fail
    /// together count once.
    fn back_off(&self, local: &Local<M>, failures: u32) {
        if local.failures.compare_exchange(failures, failures.saturating_add(1), Relaxed, Relaxed).is_err() {
            return;
        }
        let longest = (FIRST_BACK_OFF * (1 << failures.min(16))).min(LONGEST_BACK_OFF);
        // At least half of it, the rest as chance will have it: siblings should not knock in chorus.
        let chance = (expiry::chance() >> 32) as f64 / f64::from(u32::MAX);
        local.bag.shut_gate(longest.mul_f64(0.5 + chance / 2.0));
    }
}

/// Who has been let through the gate, and learns nothing about the server, lets the next one through; also by a panic. Not in
/// a child: there it is the parent's gate.
struct ReleasesGate<'a, T> {
    bag: &'a Bag<T>,
    here: Generation,
}

impl<T> Drop for ReleasesGate<'_, T> {
    fn drop(&mut self) {
        if fork::generation() == self.here {
            self.bag.release_gate();
        }
    }
}

/// One that is being opened: counted until this is dropped, also by a panic. (In a child it counts down what its parent counted,
/// and nobody reads that any more.)
struct Connecting<'a>(&'a AtomicU64);

impl<'a> Connecting<'a> {
    fn begin(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
