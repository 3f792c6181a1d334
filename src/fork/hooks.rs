//! What a program wants done once in each child, outside any handler.

use super::per_process::{Entered, Turnstile};
use super::{FIRST, Generation, PerProcess, generation};
use crate::Deadline;
use std::convert::Infallible;
use std::fmt;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering::*};

/// A list that only grows, at its end, by one compare-and-swap: a fork at any moment copies a whole list.
static HOOKS: AtomicPtr<Hook> = AtomicPtr::new(ptr::null_mut());

struct Hook {
    run: Box<dyn Fn() + Send + Sync>,
    registered: &'static Location<'static>,
    /// It is for this process's children, not for itself.
    registered_in: Generation,
    next: AtomicPtr<Hook>,
}

/// Where this process is with its hooks.
#[cfg(not(forksafe_loom))]
static PROGRESS: PerProcess<Progress> = PerProcess::new(Progress::new);
/// The model's primitives cannot be made in a constant. No model comes here.
#[cfg(forksafe_loom)]
static PROGRESS: std::sync::LazyLock<PerProcess<Progress>> =
    std::sync::LazyLock::new(|| PerProcess::new(Progress::new));

struct Progress {
    turnstile: Turnstile,
    done: AtomicBool,
}

impl Progress {
    fn new() -> Self {
        Self { turnstile: Turnstile::new(), done: AtomicBool::new(false) }
    }
}

/// Runs `hook` once in every child made from here on.
///
/// It runs on the thread that first uses this crate there (a pool, a [`PerProcess`], [`enter`](super::enter)), before
/// that use is served and outside any `fork` handler, so it may do what it likes: use pools, take locks of the child's
/// own, start threads. The hooks of a child run in the order of their registration, each once, and are inherited by its
/// own children. That thread's own uses inside a hook are served at once; a pool's `get` on another thread waits
/// until the hooks are through or its timeout ends (a hook that joins a thread which uses a pool waits for that).
/// [`PerProcess`] and [`enter`](super::enter) on another thread do not wait.
///
/// A hook that panics is reported on standard error and skipped.
///
/// ```
/// forksafe::fork::on_child(|| eprintln!("child {} starts", std::process::id()));
/// ```
#[track_caller]
pub fn on_child<F: Fn() + Send + Sync + 'static>(hook: F) {
    let hook = Box::into_raw(Box::new(Hook {
        run: Box::new(hook),
        registered: Location::caller(),
        registered_in: generation(),
        next: AtomicPtr::new(ptr::null_mut()),
    }));
    let mut end = &HOOKS;
    while let Err(next) = end.compare_exchange(ptr::null_mut(), hook, AcqRel, Acquire) {
        // SAFETY: a hook in the list is complete and is never freed.
        end = unsafe { &(*next).next };
    }
}

/// Runs what is due, if nobody has begun to.
#[inline]
pub(crate) fn run_due() {
    run_due_within(Deadline::now());
}

/// How the hooks of this process stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Due {
    /// None are left to run.
    Through,
    /// This thread is in the middle of one.
    Inside,
    /// Another thread is, and the deadline is over.
    TooLate,
}

/// Runs what is due, or waits for the thread that does.
pub(crate) fn run_due_within(deadline: Deadline) -> Due {
    let here = generation();
    if here.0.get() == FIRST || HOOKS.load(Acquire).is_null() {
        return Due::Through;
    }
    let Ok(progress) = PerProcess::get_with(&PROGRESS, || Ok::<_, Infallible>(Progress::new()));
    if progress.done.load(Acquire) {
        return Due::Through;
    }
    let turn = match progress.turnstile.enter(here, deadline) {
        Entered::First(turn) => turn,
        Entered::Again => return Due::Inside,
        Entered::TooLate => return Due::TooLate,
    };
    if !progress.done.load(Acquire) {
        for hook in hooks().filter(|hook| hook.registered_in < here) {
            if catch_unwind(AssertUnwindSafe(&hook.run)).is_err() {
                report_panic(hook);
            }
            if generation() != here {
                // The hook forked and this is the child: its own hooks begin from the first.
                std::mem::forget(turn);
                return run_due_within(deadline);
            }
        }
        progress.done.store(true, Release);
    }
    Due::Through
}

fn hooks() -> impl Iterator<Item = &'static Hook> {
    // SAFETY: a hook in the list is complete and is never freed.
    let follow = |link: &AtomicPtr<Hook>| unsafe { link.load(Acquire).as_ref() };
    std::iter::successors(follow(&HOOKS), move |hook| follow(&hook.next))
}

/// By `write(2)`: standard error's lock may have been held in the parent.
fn report_panic(hook: &Hook) {
    let text =
        format!("forksafe: the on_child hook of {} panicked in process {}\n", hook.registered, std::process::id());
    super::sys::write_stderr(text.as_bytes());
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("registered", &self.registered).finish_non_exhaustive()
    }
}
