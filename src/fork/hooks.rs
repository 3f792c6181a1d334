//! What a program wants done once in each child, outside any handler.

use super::cell::Cell;
use super::handler::birth::FIRST;
use super::handler::sys;
use super::turnstile::{Entered, Turnstile};
use super::{Generation, generation};
use crate::Deadline;
use std::any::Any;
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
static PROGRESS: Cell<Progress> = Cell::new();

struct Progress {
    turnstile: Turnstile,
    done: AtomicBool,
}

impl Progress {
    fn new() -> Self {
        Self { turnstile: Turnstile::new(), done: AtomicBool::new(false) }
    }
}

/// Takes possession of this process: drops what it inherited, and runs the [`on_child`] hooks if it is a child whose
/// hooks have not run.
///
/// Never needed after libc's `fork`, where the first is done at birth and the second on first use. Call it first thing
/// in a child made by `_Fork`, `clone` or `clone3`, or at the start of a worker to have the hooks run there.
///
/// When another thread is running the hooks, this does not wait for it.
pub fn enter() -> Generation {
    let generation = generation();
    run_due();
    generation
}

/// Runs `hook` once in every child made from here on.
///
/// It runs on the thread that first uses this crate there (a pool, a [`PerProcess`](super::PerProcess), [`enter`](super::enter)), before
/// that use is served and outside any `fork` handler, so it may do what it likes: use pools, take locks of the child's
/// own, start threads. The hooks of a child run in the order of their registration, each once, and are inherited by its
/// own children. That thread's own uses inside a hook are served at once; a pool's `get` on another thread waits
/// until the hooks are through or its timeout ends (a hook that joins a thread which uses a pool waits for that).
/// [`PerProcess`](super::PerProcess) and [`enter`](super::enter) on another thread do not wait.
///
/// A hook may fork. The child that comes out of it runs the other hooks, but not the one in whose middle it was forked: that one
/// goes on there as it does in its parent. (If it ran it again, it would fork again, without end.)
///
/// Hooks are kept for ever: one that holds a [`Pool`](crate::Pool) keeps it open. Give it a [`WeakPool`](crate::WeakPool).
///
/// A hook that panics is reported on standard error and skipped. Rather have it not panic: the program's panic hook comes
/// first, and std's own takes the lock of standard error, which a thread of the parent's may have held at the fork; then the child waits
/// for ever.
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
    let Ok(progress) = PROGRESS.get_with(|| Ok::<_, Infallible>(Progress::new()));
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
            if is_inside(hook) {
                continue;
            }
            let forked = inside(hook, || {
                if let Err(payload) = catch_unwind(AssertUnwindSafe(&hook.run)) {
                    report_panic(hook);
                    drop_quietly(payload);
                }
                // The hook forked and this is the child: its own hooks begin from the first, but for this one.
                (generation() != here).then(|| run_due_within(deadline))
            });
            if let Some(due) = forked {
                std::mem::forget(turn);
                return due;
            }
        }
        progress.done.store(true, Release);
    }
    Due::Through
}

/// The hooks that a thread is inside of. In a child that was forked there these are frames of its ancestors.
struct Inside {
    hook: *const Hook,
    outer: *const Inside,
}

thread_local! {
    /// The innermost. (A list with a destructor would have libc register it, under a lock.)
    static INNERMOST: std::cell::Cell<*const Inside> = const { std::cell::Cell::new(ptr::null()) };
}

/// Runs `run`, in which this thread is inside of a hook.
fn inside<T>(hook: &Hook, run: impl FnOnce() -> T) -> T {
    struct Leave(*const Inside);
    impl Drop for Leave {
        fn drop(&mut self) {
            INNERMOST.set(self.0);
        }
    }
    let outer = INNERMOST.get();
    let here = Inside { hook, outer };
    INNERMOST.set(&raw const here);
    let _leave = Leave(outer);
    run()
}

fn is_inside(hook: &Hook) -> bool {
    // SAFETY: each of them is a local of `inside`, on this thread, which takes it off the list before it returns.
    let follow = |inside: *const Inside| unsafe { inside.as_ref() };
    std::iter::successors(follow(INNERMOST.get()), |inside| follow(inside.outer))
        .any(|inside| ptr::eq(inside.hook, hook))
}

/// What a hook panicked with may panic itself when it is dropped.
fn drop_quietly(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
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
    sys::write_stderr(text.as_bytes());
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("registered", &self.registered).finish_non_exhaustive()
    }
}
