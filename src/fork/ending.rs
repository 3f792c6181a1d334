//! The end of a connection: politely, and for every process that has a copy of its socket.

use super::guarded::Goodbye;
use super::handler::sys::{self, Identity};
use super::{Descriptors, Generation, Registration, generation};
use crate::Deadline;
use std::mem;
use std::os::fd::RawFd;
use std::time::Duration;

/// How long a goodbye may take, of drivers that heed it.
const GOODBYE: Duration = Duration::from_secs(5);

/// Closes a connection of this process so that no child is left with a live copy of its socket.
///
/// A fork that copied the descriptor table just before the close, and memory just after, makes a child that holds the
/// socket without knowing. So a second descriptor is made first, the connection says its goodbye and closes, and the
/// socket is then shut down for everybody.
///
/// A goodbye may fork, as any code of a driver's may. The child comes back here with the rest of the goodbye said to a
/// dead socket.
pub(super) fn close<T>(
    connection: T,
    mut registration: Registration,
    goodbye: Option<&dyn Goodbye<T>>,
    by: Option<Deadline>,
) {
    registration.begin_ending();
    let by = by.map_or(Deadline::after(GOODBYE), |by| by.or_sooner(GOODBYE));
    let by = by.on(registration.first().filter(|_| registration.is_current()));
    let copies = Copies::of(&registration);
    if !copies.is_complete() {
        // End them now; the goodbye is lost, the promise is kept.
        registration.shut_down();
    }
    // Dropped after the connection, also when its goodbye panics.
    let _ending = Ending { copies, registration: Some(registration) };
    match goodbye {
        Some(goodbye) => goodbye.say(connection, by),
        None => drop(connection),
    }
}

struct Ending {
    copies: Copies,
    registration: Option<Registration>,
}

impl Drop for Ending {
    /// What is still there under its number was not the client's that has just gone: two guards have swapped their clients, or
    /// another took its place. It is not ours to end.
    fn drop(&mut self) {
        self.copies.spare_what_is_still_there();
        self.registration.take().into_iter().for_each(Registration::leave_what_is_still_there);
    }
}

/// Second descriptors of sockets whose driver may close them at any time: they end with this, for everybody. Registered
/// themselves: a child that is forked meanwhile closes them at birth.
#[derive(Debug)]
pub(crate) struct Copies {
    all: Vec<Second>,
    is_complete: bool,
    _registration: Option<Registration>,
    generation: Generation,
}

#[derive(Debug)]
struct Second {
    fd: RawFd,
    /// The registered number, and what was there, and is here.
    of: (RawFd, Identity),
}

impl Second {
    /// Not if the number is somebody else's by now: it was made in a table that is gone, say.
    fn is_there(&self) -> bool {
        sys::is(self.fd, self.of.1)
    }
}

impl Copies {
    pub(crate) fn of(registration: &Registration) -> Self {
        let sockets = registration.open().filter(|&(fd, _)| sys::look(fd).is_some_and(|open| open.is_socket));
        let copies: Vec<Option<Second>> = sockets.map(|of| Some(Second { fd: sys::duplicate(of.0, 0)?, of })).collect();
        let is_complete = copies.iter().all(Option::is_some);
        let all: Vec<Second> = copies.into_iter().flatten().collect();
        let descriptors = all.iter().fold(Descriptors::none(), |all, copy| all.and_raw(copy.fd));
        let registered = Registration::publish(descriptors).ok().inspect(Registration::rest);
        Self { all, is_complete, _registration: registered, generation: registration.generation() }
    }

    /// Whether there was room for all.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    /// The sockets live on.
    pub(crate) fn forget(mut self) {
        self.spare(|_| true);
    }

    fn spare_what_is_still_there(&mut self) {
        self.spare(|copy| sys::is(copy.of.0, copy.of.1));
    }

    fn spare(&mut self, which: impl Fn(&Second) -> bool) {
        if self.generation == generation() {
            let (spared, ended): (Vec<Second>, _) = mem::take(&mut self.all).into_iter().partition(which);
            self.all = ended;
            spared.iter().filter(|copy| copy.is_there()).for_each(|copy| sys::close(copy.fd));
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        // In a child that a goodbye forked the numbers are closed already, or its parent's own.
        if self.generation == generation() {
            for copy in self.all.iter().filter(|copy| copy.is_there()) {
                sys::shutdown(copy.fd);
                sys::close(copy.fd);
            }
        }
    }
}
