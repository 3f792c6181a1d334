//! A time limit for a driver that waits without one.
//!
//! A task in the client's own runtime shuts the socket down when its time is over; the driver, which only ever waits in
//! that runtime, is told that the connection is closed. The same task serves the connect, every reset and the goodbye.

use crate::Deadline;
use crate::fork::PerProcess;
use crate::fork::probe::Known;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The alarm of one client.
#[derive(Clone, Default)]
pub(super) struct Alarm(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// When to ring, or never.
    time: watch::Sender<Option<Instant>>,
    /// The driver may have closed it, and be about to try another host.
    socket: Mutex<Option<Known>>,
    rung: AtomicBool,
}

impl Inner {
    fn socket(&self) -> MutexGuard<'_, Option<Known>> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Alarm {
    /// Begins to watch over a socket. Call inside the client's runtime; once for each host that it tries.
    pub(super) fn watch_over(&self, socket: RawFd, until: Deadline) {
        *self.0.socket() = Known::of(socket);
        self.0.rung.store(false, Relaxed);
        self.set(until);
        if !self.stands_by() {
            tokio::spawn(stand_by(self.0.time.subscribe(), Arc::downgrade(&self.0)));
        }
    }

    fn set(&self, deadline: Deadline) {
        self.0.time.send_replace(deadline.instant().map(Instant::from_std));
    }

    pub(super) fn clear(&self) {
        self.0.time.send_replace(None);
    }

    /// To be found by [`set`].
    pub(super) fn keep(self) {
        let Some(socket) = *self.0.socket() else { return };
        let mut alarms = alarms();
        alarms.retain(|_, alarm| alarm.stands_by());
        alarms.insert(socket.number(), self);
    }

    /// Whether it has ended the socket that it watches over.
    pub(super) fn has_rung(&self) -> bool {
        self.0.rung.load(Relaxed)
    }

    /// The task ends with its runtime, and so with the client.
    fn stands_by(&self) -> bool {
        self.0.time.receiver_count() > 0
    }
}

async fn stand_by(mut time: watch::Receiver<Option<Instant>>, alarm: Weak<Inner>) {
    loop {
        let set = *time.borrow_and_update();
        let changed = match set {
            None => time.changed().await,
            Some(at) => match timeout_at(at, time.changed()).await {
                Ok(changed) => changed,
                Err(_elapsed) => {
                    let Some(alarm) = alarm.upgrade() else { return };
                    alarm.rung.store(true, Relaxed);
                    alarm.socket().into_iter().for_each(Known::shut_down);
                    drop(alarm);
                    time.changed().await
                }
            },
        };
        if changed.is_err() {
            return;
        }
    }
}

/// The alarms of this process's clients, by their sockets: whoever has to set one is given a client and no alarm.
static ALARMS: PerProcess<Mutex<HashMap<RawFd, Alarm>>> = PerProcess::new(Mutex::default);

fn alarms() -> MutexGuard<'static, HashMap<RawFd, Alarm>> {
    ALARMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the alarm of the client that the deadline is for, until the returned value is dropped.
pub(super) fn set(deadline: Deadline) -> Option<Set> {
    let alarm = alarms().get(&deadline.socket()?)?.clone();
    alarm.set(deadline);
    Some(Set(alarm))
}

pub(super) struct Set(Alarm);

impl Drop for Set {
    fn drop(&mut self) {
        self.0.clear();
    }
}
