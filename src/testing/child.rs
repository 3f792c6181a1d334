//! A closure in a child, its value over a pipe, and what became of the child.

use super::proc;
use super::way::{Launched, Way};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

/// Forks, runs `f` in the child, and brings its value back.
///
/// The child ends by `_exit` when `f` has returned or panicked: no destructors or exit handlers of the parent's run in
/// it. A child that is not through within its [deadline](Child::deadline), 20 seconds by default, is killed.
///
/// ```
/// let child = forksafe::testing::child(std::process::id);
/// let pid = child.pid();
/// assert_eq!(child.join(), pid);
/// ```
#[track_caller]
pub fn child<T: Serialize + DeserializeOwned, F: FnOnce() -> T>(f: F) -> Child<T> {
    Way::Fork.child(f)
}

/// A child at work.
#[derive(Debug)]
#[must_use = "join it, or ask for its outcome: nobody else waits for the child"]
pub struct Child<T> {
    launched: Launched,
    report: File,
    /// Kept, because a child that shares our descriptor table writes to the very same descriptor.
    _to_parent: OwnedFd,
    born: Instant,
    deadline: Duration,
    way: Way,
    value: PhantomData<fn() -> T>,
}

/// What became of a child.
#[derive(Debug)]
pub enum Outcome<T> {
    /// The closure returned.
    Returned(T),
    /// The closure panicked.
    Panicked {
        /// The panic's message.
        message: String,
        /// The file and line of the panic.
        location: String,
    },
    /// The process ended before the closure did.
    Exited(i32),
    /// A signal ended it.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It was not through within its deadline, and was killed.
    Hung {
        /// Where its threads were waiting, as far as `/proc` tells.
        at: String,
    },
}

#[derive(Serialize, Deserialize)]
enum Report<T> {
    Returned(T),
    Panicked { message: String, location: String },
}

impl<T> Child<T> {
    /// How long the child may take from its birth, to return and to end. Default: the kit's [patience](super::patience).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Ends it, whatever it is at.
    pub fn kill(self) {
        self.launched.kill();
    }

    /// The pid of the process that runs the closure, in this process's namespace.
    pub fn pid(&self) -> u32 {
        self.launched.runs as u32
    }
}

impl<T: Serialize + DeserializeOwned> Child<T> {
    pub(super) fn start(way: Way, f: impl FnOnce() -> T) -> Self {
        record_panics_of_children();
        let (report, to_parent) = proc::pipe().expect("a pipe for the child's report");
        let born = Instant::now();
        let launched = way.launch(|| {
            IS_CHILD.store(true, Relaxed);
            let report = match catch_unwind(AssertUnwindSafe(f)) {
                Ok(value) => Report::Returned(value),
                Err(panic) => Report::Panicked { message: message_of(&*panic), location: LOCATION.take() },
            };
            // Whoever reads may be gone; then nobody wants to know.
            let _ = send(&to_parent, &report);
        });
        let deadline = super::patience();
        Self { launched, report: File::from(report), _to_parent: to_parent, born, deadline, way, value: PhantomData }
    }

    /// Waits for the end of the child.
    pub fn outcome(mut self) -> Outcome<T> {
        let until = self.born + self.deadline;
        let report = self.read_report(until);
        match (report, self.launched.wait(until)) {
            (_, None) => {
                let at = proc::where_it_hangs(self.launched.runs);
                self.launched.kill();
                Outcome::Hung { at }
            }
            (Some(Report::Returned(value)), Some(_)) => Outcome::Returned(value),
            (Some(Report::Panicked { message, location }), Some(_)) => Outcome::Panicked { message, location },
            (None, Some(status)) => ended(status),
        }
    }

    /// Waits for the child and returns the value of its closure.
    ///
    /// # Panics
    ///
    /// When the closure did not return in time, with what happened instead.
    #[track_caller]
    pub fn join(self) -> T {
        let (pid, way, deadline) = (self.pid(), self.way, self.deadline);
        match self.outcome() {
            Outcome::Returned(value) => value,
            other => panic!("child {pid} (made by {way}): {}", other.describe(deadline)),
        }
    }

    /// The child's message, unless it ends or the time is over first.
    fn read_report(&mut self, until: Instant) -> Option<Report<T>> {
        let mut bytes = Vec::new();
        loop {
            if let Ok(report) = serde_json::from_slice(&bytes) {
                return Some(report);
            }
            // A grandchild may keep the pipe open: the end of the child counts, not the end of the pipe.
            if !self.launched.readable_or_ended(self.report.as_raw_fd(), until)? {
                return None;
            }
            let mut more = [0; 65536];
            match self.report.read(&mut more).expect("the pipe from a child") {
                0 => return None,
                n => bytes.extend_from_slice(&more[..n]),
            }
        }
    }
}

impl<T> Outcome<T> {
    fn describe(&self, deadline: Duration) -> String {
        match self {
            Self::Returned(_) => "returned".into(),
            Self::Panicked { message, location } => format!("panicked at {location}: {message}"),
            Self::Exited(code) => format!("exited with {code} before its closure returned"),
            Self::Killed { signal } => format!("was ended by signal {signal}"),
            Self::Hung { at } => format!("hung: not through within {deadline:?}; {at}"),
        }
    }
}

fn ended<T>(status: ExitStatus) -> Outcome<T> {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => Outcome::Killed { signal },
        None => Outcome::Exited(status.code().unwrap_or(-1)),
    }
}

fn send<T: Serialize>(to_parent: &OwnedFd, report: &Report<T>) -> io::Result<()> {
    File::from(to_parent.try_clone()?).write_all(&serde_json::to_vec(report)?)
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
}

static IS_CHILD: AtomicBool = AtomicBool::new(false);

thread_local! {
    static LOCATION: RefCell<String> = const { RefCell::new(String::new()) };
}

/// In a child a panic is reported over the pipe. The default hook would lock standard error, which a thread of the
/// parent may have held at the fork; so another hook is set, before the first fork.
fn record_panics_of_children() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if IS_CHILD.load(Relaxed) {
                let location = info.location().map(ToString::to_string).unwrap_or_default();
                LOCATION.set(location);
            } else {
                default(info);
            }
        }));
    });
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
