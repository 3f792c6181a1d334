//! A closure in a child, its value over a pipe, and what became of the child.

use super::hang::where_it_hangs;
use super::launched::Launched;
use super::proc;
use super::report::{self, Letters, Message, Panic};
use super::way::Way;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

/// Forks, runs `f` in the child, and brings its value back.
///
/// The child ends by `_exit` when `f` has returned or panicked: no destructors or exit handlers of the parent's run in
/// it, unless it is made by [`child_then_exit`]. A child that is not through within its [deadline](Child::deadline), 20
/// seconds by default, is killed.
///
/// A panic in the child is not printed, for the lock of standard error may have been inherited in use: it comes over the
/// pipe, too. So does one in a process that the child forks, by whatever means.
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

/// As [`child`], but when `f` has returned the child ends by libc's `exit`, as a program that returns from `main` does:
/// the exit handlers that its parent registered run in it, and the destructors of this thread's thread-locals.
///
/// ```
/// use forksafe::testing::{self, Outcome};
///
/// extern "C" fn handler() {
///     unsafe { libc::_exit(7) }
/// }
/// // SAFETY: a function that stays.
/// unsafe { libc::atexit(handler) };
/// assert!(matches!(testing::child(|| ()).outcome(), Outcome::Returned(())));
/// assert!(matches!(testing::child_then_exit(|| ()).outcome(), Outcome::Exited(7)));
/// # unsafe { libc::_exit(0) };
/// ```
#[track_caller]
pub fn child_then_exit<T: Serialize + DeserializeOwned, F: FnOnce() -> T>(f: F) -> Child<T> {
    Way::Fork.child_then_exit(f)
}

/// A child at work. When this is dropped, by a test that fails for instance, the child is killed and waited for, with its
/// descendants; [`leave`](Self::leave) lets it go on.
#[derive(Debug)]
#[must_use = "join it, or ask for its outcome: when it is dropped the child is killed"]
pub struct Child<T> {
    launched: Launched,
    reports: File,
    letters: Letters,
    /// What its processes panicked with.
    panics: Vec<Panic>,
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
    /// The process ended by itself, before the closure returned or not with 0 after it.
    Exited(i32),
    /// A signal ended it.
    Killed {
        /// The signal's number.
        signal: i32,
    },
    /// It was not through within its deadline, and was killed.
    Hung {
        /// Where its threads and those of its descendants were waiting: the system call, the place in the kernel, and
        /// with gdb installed a backtrace. And what had panicked before.
        at: String,
    },
}

/// What the closure came to.
enum Result<T> {
    Value(T),
    Panic(Panic),
}

impl<T> Child<T> {
    /// How long the child may take from its birth, to return and to end. Default: the kit's [patience](super::patience).
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Ends it and its descendants, whatever they are at. So does dropping it, in the process that made it.
    pub fn kill(self) {
        drop(self);
    }

    /// Lets it go on by itself: nobody waits for it any more, and nobody ends it. Returns its pid.
    pub fn leave(mut self) -> u32 {
        self.launched.let_go();
        self.pid()
    }

    /// The pid of the process that runs the closure, in this process's namespace.
    pub fn pid(&self) -> u32 {
        self.launched.runs as u32
    }
}

impl<T: Serialize + DeserializeOwned> Child<T> {
    pub(super) fn start(way: Way, exit: bool, f: impl FnOnce() -> T) -> Self {
        report_panics_of_children();
        let (reports, to_parent) = proc::pipe().expect("a pipe for the child's reports");
        let born = Instant::now();
        let launched = way.launch(|| {
            report::to(&to_parent);
            allow_gdb();
            let result = catch_unwind(AssertUnwindSafe(f));
            // What was forked inside `f` and did not leave it by an exit comes here, too. Its panic is news, its value is
            // not the child's.
            let is_child = report::descendant().is_none();
            match result {
                Ok(value) if is_child => report::send(&Message::Returned(value)),
                Ok(_) => {}
                Err(panic) => report::send(&Message::<T>::Panicked(told_by(&*panic))),
            }
            if exit && is_child {
                // SAFETY: runs handlers that were registered for this.
                unsafe { libc::exit(0) };
            }
        });
        let deadline = super::patience();
        let (reports, letters, panics) = (File::from(reports), Letters::default(), Vec::new());
        Self { launched, reports, letters, panics, _to_parent: to_parent, born, deadline, way, value: PhantomData }
    }

    /// Waits for the end of the child.
    pub fn outcome(mut self) -> Outcome<T> {
        match self.end() {
            Outcome::Hung { at } => Outcome::Hung { at: at + &self.earlier_panics() },
            other => other,
        }
    }

    /// Waits for the child and returns the value of its closure.
    ///
    /// # Panics
    ///
    /// When the closure did not return in time, with what happened instead.
    #[track_caller]
    pub fn join(mut self) -> T {
        match self.end() {
            Outcome::Returned(value) => value,
            other => {
                let (what, earlier) = (other.describe(self.deadline), self.earlier_panics());
                panic!("child {} (made by {}): {what}{earlier}", self.pid(), self.way)
            }
        }
    }

    fn end(&mut self) -> Outcome<T> {
        let until = self.born + self.deadline;
        let result = self.hear(until);
        let Some(status) = self.launched.wait(until) else {
            let when = if result.is_some() { "after its closure had ended:\n" } else { "" };
            let at = format!("{when}{}", where_it_hangs(self.pid()));
            self.launched.kill();
            return Outcome::Hung { at };
        };
        match result {
            Some(Result::Panic(panic)) => self.panicked(panic),
            Some(Result::Value(value)) if status.success() => Outcome::Returned(value),
            _ => ended(status),
        }
    }

    /// Listens until the child has ended or the time is over. A grandchild may keep the pipe open: the end of the child
    /// counts, not the end of the pipe.
    fn hear(&mut self, until: Instant) -> Option<Result<T>> {
        let mut result = None;
        while self.launched.readable_or_ended(self.reports.as_raw_fd(), until) == Some(true) {
            let mut bytes = [0; 65536];
            let n = self.reports.read(&mut bytes).expect("the pipe from a child");
            for message in self.letters.add(&bytes[..n]) {
                match message {
                    Message::Saw(panic) => self.panics.push(panic),
                    Message::Returned(value) => result = result.or(Some(Result::Value(value))),
                    Message::Panicked(panic) => result = Some(Result::Panic(panic)),
                }
            }
        }
        result
    }

    fn panicked(&mut self, panic: Panic) -> Outcome<T> {
        let Panic { descendant, message, mut location, .. } = panic;
        let noted = self.panics.iter().rposition(|noted| noted.message == message && noted.descendant == descendant);
        if let Some(noted) = noted {
            // Of one that was resumed only the hook has seen where it began.
            location = self.panics.remove(noted).location;
        }
        let message = descendant.map_or(message.clone(), |pid| format!("in its descendant {pid}: {message}"));
        Outcome::Panicked { message, location }
    }

    /// A thread that panicked is often the reason for what its process came to.
    fn earlier_panics(&self) -> String {
        let line = |Panic { descendant, thread, message, location }: &Panic| {
            let process = descendant.map(|pid| format!("in its descendant {pid} ")).unwrap_or_default();
            format!("\n  before that: {process}thread {thread:?} panicked at {location}: {message}")
        };
        self.panics.iter().map(line).collect()
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

thread_local! {
    static LAST: RefCell<Panic> = RefCell::default();
}

/// In a child a panic is reported over the pipe. The default hook would lock standard error, which a thread of the
/// parent may have held at the fork; so another hook is set, before the first fork.
fn report_panics_of_children() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if report::is_wanted() {
                let panic = Panic {
                    descendant: report::descendant(),
                    thread: thread::current().name().unwrap_or("without a name").into(),
                    message: message_of(info.payload()),
                    location: info.location().map(ToString::to_string).unwrap_or_default(),
                };
                LAST.set(panic.clone());
                report::mention(panic);
            } else {
                default(info);
            }
        }));
    });
}

/// What the hook has noted, if it is about this panic: one that is resumed does not call it.
fn told_by(payload: &(dyn Any + Send)) -> Panic {
    let message = message_of(payload);
    let noted = Some(LAST.take()).filter(|last| last.message == message);
    noted.unwrap_or_else(|| Panic { descendant: report::descendant(), message, ..Panic::default() })
}

fn message_of(payload: &dyn Any) -> String {
    let text = payload.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no message)".into())
}

/// Some machines let nobody but its parent look into a process, unless it says so.
fn allow_gdb() {
    // SAFETY: takes numbers. Where it means nothing it fails, and nothing is lost.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
