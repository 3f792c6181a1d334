//! What a closure opens: exactly that, and nothing of any other thread's.
//!
//! Descriptors do not say who opened them. In a process with a single thread, as a child is that has just been forked, the difference
//! between before and after tells ([`alone`]). In one with threads the difference is whoever's. So
//! the closure runs on a thread with a descriptor table of its own, where nobody else opens anything:
//!
//! 1. *Reserve* some numbers in the process's table, by placeholders ([`reserved`]).
//! 2. A thread parts from the table, fills the holes in its copy, and frees just those numbers there: whatever the closure opens
//!    gets one of them ([`private`]).
//! 3. What is new in its table afterwards is sent over a socket, and put over the placeholder with the same number ([`parcel`]):
//!    the client finds it where it left it. An epoll that watches it goes on to, for it knows a file by the file and the number.
//!
//! A child that is forked while the closure runs has no copy of the half-made connection at all, but for the moment of the third
//! step, which is a connect like any other: a pool makes it again if a fork came in between.
//!
//! *What the copy must not do.* While it exists, what other threads close stays open in it: the reader of a pipe would wait
//! for the end of it, a peer for that of a stream. So streams, listeners and pipes of the process are covered in the copy. Not
//! datagram sockets: a log is often one, and a port that is free a moment later is the smaller harm. Nor files and their locks. A signal
//! handler writes to a pipe that is covered, so no handler runs there: signals that have one are blocked.
//!
//! *What is still open when the closure has failed*, or what it opened is not to be told: something that the program keeps (a log
//! that was opened when it was first needed). It is put in its place as well, and belongs to no connection. But where threads of the
//! driver's have the table, too, its streams are theirs, and end there.
//!
//! *What must not come in*: a pool's connections belong to the process's table. What another pool would open here another thread would
//! close there, where the number is a placeholder, or somebody's file by then: so [a pool gives none](is_apart), and a number is looked
//! at before anything is put over it.

mod alone;
mod listing;
mod parcel;
mod private;
mod reserved;

use super::handler::sys;
use super::{Descriptors, generation};
use private::Private;
use reserved::Reserved;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::time::Duration;

/// Why it is not known what a connection is made of: [`Attempt::observe`](crate::Attempt::observe) could not see it.
#[derive(Debug)]
pub struct Unobserved(Why);

#[derive(Debug)]
enum Why {
    NoRoom,
    NoThread(io::Error),
    NoTable(io::Error),
    NoList(io::Error),
    TooMany,
    TakesNumbers,
    LeftThreads,
    LockedFile,
    NoSocket,
    Lost(io::Error),
}

impl Unobserved {
    /// Whether it will be so the next time, too: it is this driver's way, or this machine's. Otherwise the process was short of
    /// something.
    pub fn is_lasting(&self) -> bool {
        match self.0 {
            Why::NoTable(_)
            | Why::NoList(_)
            | Why::TooMany
            | Why::TakesNumbers
            | Why::LeftThreads
            | Why::LockedFile
            | Why::NoSocket => true,
            Why::NoRoom | Why::NoThread(_) | Why::Lost(_) => false,
        }
    }
}

impl fmt::Display for Unobserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it cannot be told which descriptors a connection is made of: ")?;
        match &self.0 {
            Why::NoRoom => f.write_str("the process's descriptor table is nearly full"),
            Why::NoThread(_) => f.write_str("no thread could be started"),
            Why::NoTable(_) => f.write_str("a thread cannot have a descriptor table of its own here"),
            Why::NoList(_) => f.write_str("/proc does not list the descriptors of a thread"),
            Why::TooMany => write!(f, "the driver opens more than {} at a time", reserved::MOST - 1),
            Why::TakesNumbers => {
                f.write_str("the driver closes descriptors that it has not opened, and takes their numbers")
            }
            Why::LeftThreads => f.write_str("the driver leaves threads behind, which share them"),
            Why::LockedFile => f.write_str("the driver has locked a file, and such a lock cannot be moved"),
            Why::NoSocket => f.write_str("the driver has opened no socket and no pipe on the thread that connects"),
            Why::Lost(_) => f.write_str("they could not be handed over"),
        }
    }
}

impl std::error::Error for Unobserved {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0 {
            Why::NoThread(error) | Why::NoTable(error) | Why::NoList(error) | Why::Lost(error) => Some(error),
            _ => None,
        }
    }
}

thread_local! {
    /// This thread's table is one in which everything is seen.
    static IS_OBSERVED: Cell<bool> = const { Cell::new(false) };
}

/// This thread runs a closure of [`observe`], beside a process with others: what the process has open is covered here, and what is
/// opened or closed here is not so for the others.
#[inline]
pub(crate) fn is_apart() -> bool {
    IS_OBSERVED.get()
}

/// How long threads of the driver's that have ended may take to be gone: the kernel wakes who waits for their end before it takes
/// their table away.
const GONE_WITHIN: Duration = Duration::from_millis(200);

/// A descriptor on its way from one table to the other.
#[derive(Clone, Copy, Debug)]
struct Moved {
    fd: RawFd,
    closes_on_exec: bool,
}

/// What the thread brings back: the outcome of the closure, and all that is open now.
struct Brought<R> {
    outcome: thread::Result<Result<R, Unobserved>>,
    moved: Vec<Moved>,
}

/// Runs the closure, on a thread of its own if there are others, and tells what it has opened: the sockets and nameless pipes, under
/// numbers that are the process's by then. Nothing, inside another observation: that one sees it.
///
/// `take_back` withdraws what managers inside the closure have published of a client that is not kept. It is called where their numbers
/// are their own.
///
/// A panic in the closure goes on here. A child that is forked by the closure on a thread of its own has no caller to come back to:
/// it is aborted when it tries.
pub(crate) fn observe<T: Send, E: Send>(
    connect: impl FnOnce() -> Result<T, E> + Send,
    take_back: impl Fn() + Sync,
) -> Result<Result<(T, Descriptors), E>, Unobserved> {
    if is_apart() {
        let connected = connect().inspect_err(|_| take_back());
        return Ok(connected.map(|client| (client, Descriptors::none())));
    }
    if sys::is_single_threaded() {
        let observed = alone::observe(connect);
        if !matches!(observed, Ok(Ok(_))) {
            take_back();
        }
        return observed;
    }
    let reserved = Reserved::new().ok_or(Unobserved(Why::NoRoom))?;
    let Brought { outcome, moved } = thread::scope(|scope| {
        let thread = thread::Builder::new().name("forksafe-observe".into());
        let thread = thread.spawn_scoped(scope, || on_the_thread(&reserved, connect, &take_back));
        let thread = thread.map_err(|error| Unobserved(Why::NoThread(error)))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })?;
    let placed = reserved.place(&moved).map_err(|error| Unobserved(Why::Lost(error)));
    let connected = outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
    let client = match connected {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    // A client whose descriptors are lost closes placeholders.
    let _: () = placed.inspect_err(|_| take_back())?;
    Ok(Ok((client, own(moved.iter().map(|one| one.fd)))))
}

/// Of what was opened: what a child can drop, and the managers inside the closure have not published themselves.
fn own(opened: impl Iterator<Item = RawFd>) -> Descriptors {
    let own = opened.filter(|fd| can_be_registered(*fd) && !super::registration::is_registered(*fd));
    own.fold(Descriptors::none(), Descriptors::and_raw)
}

fn can_be_registered(fd: RawFd) -> bool {
    sys::look(fd).is_some_and(|open| open.is_socket || open.is_pipe && sys::is_nameless(fd))
}

fn on_the_thread<T, E>(
    reserved: &Reserved,
    connect: impl FnOnce() -> Result<T, E>,
    take_back: &impl Fn(),
) -> Result<Brought<Result<T, E>>, Unobserved> {
    let here = generation();
    private::block_handled_signals();
    let mut private = Private::part_from(reserved)?;
    IS_OBSERVED.set(true);
    let connected = catch_unwind(AssertUnwindSafe(connect));
    if generation() != here {
        sys::write_stderr(
            b"forksafe: a closure of Attempt::observe has forked, and its child has nowhere to return to; it is aborted\n",
        );
        std::process::abort();
    }
    let outcome = match connected {
        Ok(connected) => catch_unwind(AssertUnwindSafe(|| private.judge(connected))),
        Err(panic) => {
            private.note_who_shares_it();
            Err(panic)
        }
    };
    if !matches!(outcome, Ok(Ok(Ok(_)))) {
        take_back();
    }
    IS_OBSERVED.set(false);
    match private.send() {
        Ok(moved) => Ok(Brought { outcome, moved }),
        Err(why) => {
            let outcome = outcome.map(|_client| Err(Unobserved(Why::Lost(why))));
            take_back();
            Ok(Brought { outcome, moved: Vec::new() })
        }
    }
}
