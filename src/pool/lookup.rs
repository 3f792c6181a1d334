//! A look-up that cannot hold its caller: it runs on a thread of its own.
//!
//! `getaddrinfo` takes locks of libc's. In a child of a process that was in the middle of one it hung 17 times of 500, and
//! anywhere it waits for slow name servers. So the caller waits until its deadline and goes on with what it knows; what the
//! look-up finds later is known to the next.

use super::addresses::Name;
use crate::Deadline;
use crate::fork::PerProcess;
use crate::sync::{Condvar, Mutex, MutexGuard};
use std::io;
use std::sync::{Arc, PoisonError};
use std::thread;

/// The look-up of one name in each process. There is one at a time: who comes while it runs waits for the same.
#[derive(Debug)]
pub(super) struct LookUp {
    running: PerProcess<Mutex<Option<Arc<Running>>>>,
}

impl Default for LookUp {
    fn default() -> Self {
        Self { running: PerProcess::new(Mutex::default) }
    }
}

#[derive(Debug, Default)]
struct Running {
    ended: Mutex<Option<Result<(), (io::ErrorKind, String)>>>,
    has_ended: Condvar,
}

impl LookUp {
    /// Waits for news about the name until the deadline.
    ///
    /// # Errors
    ///
    /// The look-up's; `TimedOut` when there is no answer yet.
    pub(super) fn wait(&self, name: &Arc<Name>, by: Deadline) -> io::Result<()> {
        let running = self.join_or_begin(name)?;
        let mut ended = lock(&running.ended);
        loop {
            match &*ended {
                Some(Ok(())) => return Ok(()),
                Some(Err((kind, what))) => return Err(io::Error::new(*kind, what.clone())),
                None if by.is_over() => {
                    let what = format!("no answer in time about host {:?}", name.host);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, what));
                }
                None => ended = by.wait(&running.has_ended, ended),
            }
        }
    }

    fn join_or_begin(&self, name: &Arc<Name>) -> io::Result<Arc<Running>> {
        let mut slot = lock(&self.running);
        if let Some(running) = &*slot
            && lock(&running.ended).is_none()
        {
            return Ok(Arc::clone(running));
        }
        let running = Arc::new(Running::default());
        let (name, here) = (Arc::clone(name), Arc::clone(&running));
        let look_up = move || {
            let found = name.ask().map(|found| name.learn(&found));
            *lock(&here.ended) = Some(found.map_err(|error| (error.kind(), error.to_string())));
            here.has_ended.notify_all();
        };
        thread::Builder::new().name("forksafe look-up".to_owned()).spawn(look_up)?;
        *slot = Some(Arc::clone(&running));
        Ok(running)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
