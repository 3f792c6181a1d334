//! A time limit for a driver that waits without one.
//!
//! A task in the client's own runtime shuts the socket down when its time is over; the driver, which only ever waits in
//! that runtime, is told that the connection is closed. The same task serves the connect, the test, every reset and the
//! goodbye.

use super::discovery;
use super::inside::inside;
use crate::Deadline;
use crate::fork::PerProcess;
use crate::fork::probe::Known;
use ::postgres::Client;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::runtime::{Handle, Id};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// The alarm of one client.
#[derive(Clone, Default)]
pub(super) struct Alarm(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// When to ring, or never.
    time: watch::Sender<Option<Instant>>,
    watched: Mutex<Watched>,
    rung: AtomicBool,
}

#[derive(Clone, Copy, Default)]
struct Watched {
    /// The client's own. It names the client, whatever becomes of the guard that it was lent in.
    runtime: Option<Id>,
    /// The driver may have closed it, and be about to try another host.
    socket: Option<Known>,
}

impl Inner {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shut_down(&self) {
        let socket = self.watched().socket;
        socket.into_iter().for_each(Known::shut_down);
    }
}

impl Alarm {
    /// Begins to watch over a socket. Call inside the client's runtime; once for each host that it tries.
    pub(super) fn watch_over(&self, socket: RawFd, until: Deadline) {
        let runtime = Handle::try_current().ok().map(|here| here.id());
        *self.0.watched() = Watched { runtime, socket: Known::of(socket) };
        self.0.rung.store(false, Relaxed);
        self.set(until);
        if !self.stands_by() {
            tokio::spawn(stand_by(self.0.time.subscribe(), Arc::downgrade(&self.0)));
        }
    }

    fn set(&self, deadline: Deadline) -> Option<Instant> {
        self.0.time.send_replace(deadline.instant().map(Instant::from_std))
    }

    pub(super) fn clear(&self) {
        self.0.time.send_replace(None);
    }

    /// To be found by [`set`].
    pub(super) fn keep(self) {
        let Some(runtime) = self.0.watched().runtime else { return };
        let mut alarms = alarms();
        // Those of clients that are gone: not looked for at each connect, which would make many of them slow.
        if alarms.len() == alarms.capacity() {
            alarms.retain(|_, alarm| alarm.stands_by());
            let more = alarms.len() + 8;
            alarms.reserve(more);
        }
        alarms.insert(runtime, self);
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
                    alarm.shut_down();
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

/// The alarms of this process's clients, by their runtimes: whoever has to set one is given a client and no alarm.
static ALARMS: PerProcess<Mutex<HashMap<Id, Alarm>>> = PerProcess::new(Mutex::default);

fn alarms() -> MutexGuard<'static, HashMap<Id, Alarm>> {
    ALARMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the alarm of a client, until the returned value is dropped. None if the client is closed already, or its socket
/// cannot be found. Call where one may wait.
pub(super) fn set(client: &mut Client, deadline: Deadline) -> Option<Set> {
    let alarm = inside(client, || of_this_runtime().or_else(install))??;
    let before = alarm.set(deadline);
    Some(Set { alarm, before })
}

fn of_this_runtime() -> Option<Alarm> {
    let here = Handle::try_current().ok()?.id();
    alarms().get(&here).filter(|alarm| alarm.stands_by()).cloned()
}

/// For a client that somebody else connected, and put in the place of ours.
fn install() -> Option<Alarm> {
    let found = discovery::event_loop_of_this_runtime(0).ok()?;
    let alarm = Alarm::default();
    alarm.watch_over(found.socket.fd, Deadline::never());
    alarm.clone().keep();
    Some(alarm)
}

pub(super) struct Set {
    alarm: Alarm,
    before: Option<Instant>,
}

impl Set {
    pub(super) fn has_rung(&self) -> bool {
        self.alarm.has_rung()
    }

    /// Ends the connection now: its driver need not wait for what it has asked.
    pub(super) fn shut_down(&self) {
        self.alarm.0.shut_down();
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        self.alarm.0.time.send_replace(self.before);
    }
}
