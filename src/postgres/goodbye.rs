//! The goodbye of a client. The driver says it when the client is dropped, and waits for what it had asked before.
//!
//! Where tokio forbids to wait, a thread does the waiting: one, however many guards are dropped at once. Nobody waits for it
//! beyond the deadline of his own client: it may have to do with another's, and in a child a new thread may hang before it begins.
//! A client whose deadline is over when its turn comes takes no time.

use super::alarm;
use super::waiting::may_wait_here;
use crate::Deadline;
use crate::fork::PerProcess;
use crate::fork::generation;
use crate::fork::probe::Known;
use ::postgres::Client;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The thread is given so much longer than the client: it ends one whose time is over, and says so.
const GRACE: Duration = Duration::from_millis(100);

pub(super) fn say(client: Client, deadline: Deadline) {
    if may_wait_here() {
        return end(client, deadline);
    }
    let socket = deadline.socket().and_then(Known::of);
    let (said, hears) = mpsc::channel();
    if line().join(Goodbye { client, deadline, socket, _said: said }) {
        begin();
    }
    let ended = hears.recv_timeout(deadline.remaining().saturating_add(GRACE));
    if ended == Err(RecvTimeoutError::Timeout) && line().thread == Thread::Begins {
        socket.into_iter().for_each(Known::shut_down);
    }
}

fn end(mut client: Client, deadline: Deadline) {
    let _alarm = alarm::set(&mut client, deadline);
    drop(client);
}

struct Goodbye {
    client: Client,
    deadline: Deadline,
    socket: Option<Known>,
    /// Dropped when it is said.
    _said: Sender<Infallible>,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Goodbye>,
    thread: Thread,
}

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Thread {
    #[default]
    None,
    Begins,
    Runs,
}

fn line() -> MutexGuard<'static, Line> {
    static LINE: PerProcess<Mutex<Line>> = PerProcess::new(Mutex::default);
    LINE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    /// Whether there has to be a thread first.
    fn join(&mut self, goodbye: Goodbye) -> bool {
        self.waiting.push_back(goodbye);
        let is_missing = self.thread == Thread::None;
        if is_missing {
            self.thread = Thread::Begins;
        }
        is_missing
    }

    fn next(&mut self) -> Option<Goodbye> {
        let next = self.waiting.pop_front();
        self.thread = if next.is_some() { Thread::Runs } else { Thread::None };
        next
    }
}

fn begin() {
    if thread::Builder::new().name("forksafe goodbyes".to_owned()).spawn(say_all).is_err() {
        let left = mem::take(&mut *line());
        for Goodbye { client, socket, .. } in left.waiting {
            socket.into_iter().for_each(Known::shut_down);
            mem::forget(client); // To drop it is to wait.
        }
    }
}

fn say_all() {
    let here = generation();
    loop {
        // (On a line of its own, so that the lock is not held meanwhile.)
        let next = line().next();
        let Some(Goodbye { client, deadline, _said: said, .. }) = next else { return };
        let ended = catch_unwind(AssertUnwindSafe(|| end(client, deadline)));
        if generation() != here {
            // It forked, and this is the child: the channel's lock may be held by the thread that waits.
            return mem::forget((said, ended));
        }
    }
}
