//! How a connection is made: before a deadline, again if a fork came in between, and what becomes of the pool if it fails.

use super::bag::Bag;
use super::clock::Coarse;
use super::connection::Connection;
use super::error::Source;
use super::expiry;
use super::shared::{Local, Shared};
use super::{Attempt, Error, Fault, ManageConnection};
use crate::Deadline;
use crate::fork::{self, Generation, Goodbye, Guarded};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
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
    pub(super) fn connect(self: &Arc<Self>, local: &Local<M>, deadline: Deadline) -> Connected<M> {
        let mut begun = Instant::now();
        let failures = local.failures.load(Relaxed);
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
                local.connect_time.note(begun.elapsed());
                local.failures.store(0, Relaxed);
                local.bag.open_gate();
                Connected::Fit(self.connection(client, epoch))
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
        match refused.or_else(|| self.objects_to(&client)) {
            Some(why) => {
                client.goodbye_by(deadline);
                drop(client);
                if fork::generation() == here { Err(Failure::Refused(why)) } else { Ok(None) }
            }
            None => Ok(Some(client)),
        }
    }

    fn objects_to(&self, client: &Guarded<M::Connection>) -> Option<Error> {
        let unknown = self.config.require_known_descriptors && !client.registration().is_known();
        unknown.then(|| {
            Error::unprotected(
                "its manager does not name the descriptors of its connections (ManageConnection::socket or descriptors), \
                 and the pool was built with require_known_descriptors",
            )
        })
    }

    fn connection(self: &Arc<Self>, client: Guarded<M::Connection>, epoch: u64) -> Box<Connection<M>> {
        let mut connection = Box::new(Connection {
            client,
            times: self.limits.born(Coarse::now(), expiry::chance()),
            epoch,
            condemned: false,
            sweeps: false,
            unknown: None,
            pool: Arc::clone(self),
        });
        connection.count_unknown();
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
        if fault == Fault::Server {
            self.addresses.doubt();
        }
        // Connections of one's own come back; that the server has no room for more is no reason to fail.
        let comes_back = fault == Fault::NoRoom && local.bag.slots.occupied() > 1;
        let waits = comes_back || (self.config.retry_connect && fault != Fault::Caller);
        if waits && let Some(failures) = failures {
            self.back_off(local, failures);
        }
        Connected::Failed { why: Box::new(why), waits }
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
