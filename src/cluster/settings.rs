//! What a cluster is told: how many, for how long, and what to do at each turn.

use super::board::{MOST_THREADS, PLACES};
use super::legacy::Legacy;
use super::listeners::{Bind, Bound, Listener};
use super::{Error, Worker};
use std::env;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// While they are replaced there are twice as many.
pub(super) const MOST_WORKERS: usize = PLACES / 2;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// For how many workers there is room, and why for no more.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) most_workers: usize,
    pub(super) why: String,
    pub(super) report: String,
    pub(super) refuses: bool,
}

/// Settings for a cluster, under the names that Puma gave them.
pub struct Builder {
    pub(super) workers: usize,
    pub(super) threads: usize,
    pub(super) min_threads: usize,
    pub(super) binds: Vec<Bind>,
    pub(super) bound: Vec<Bound>,
    pub(super) legacy: Option<Legacy>,
    pub(super) control_socket: Option<PathBuf>,
    pub(super) worker_timeout: Duration,
    pub(super) worker_boot_timeout: Duration,
    pub(super) worker_shutdown_timeout: Duration,
    pub(super) max_requests: Option<(u64, u64)>,
    pub(super) max_memory: Option<u64>,
    pub(super) max_surge: usize,
    pub(super) backtrace: bool,
    pub(super) strict: bool,
    pub(super) room: Option<Room>,
    pub(super) hooks: Hooks,
}

type InWorker = dyn Fn(&Worker) -> Result<(), Failed>;

#[derive(Default)]
pub(super) struct Hooks {
    pub(super) before_fork: Option<Box<dyn FnMut()>>,
    pub(super) before_worker_fork: Option<Box<dyn FnMut(usize)>>,
    pub(super) after_worker_fork: Option<Box<dyn FnMut(usize, u32)>>,
    pub(super) on_worker_boot: Option<Box<InWorker>>,
    pub(super) on_worker_shutdown: Option<Box<InWorker>>,
    pub(super) after_worker_shutdown: Option<Box<dyn FnMut(usize, ExitStatus)>>,
    pub(super) after_booted: Option<Box<dyn FnMut()>>,
    pub(super) on_hup: Option<Box<dyn FnMut()>>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            workers: 2,
            threads: 5,
            min_threads: usize::MAX,
            binds: Vec::new(),
            bound: Vec::new(),
            legacy: None,
            control_socket: None,
            worker_timeout: Duration::from_secs(60),
            worker_boot_timeout: Duration::from_secs(60),
            worker_shutdown_timeout: Duration::from_secs(30),
            max_requests: None,
            max_memory: None,
            max_surge: 1,
            backtrace: false,
            strict: false,
            room: None,
            hooks: Hooks::default(),
        }
    }
}

impl Builder {
    /// As the environment says, as far as it says anything: `WEB_CONCURRENCY` (workers: a number, or `auto` for as many as the process
    /// may use cores, at least one), `RAILS_MAX_THREADS`, `MAX_THREADS` or `PUMA_MAX_THREADS` (threads of each), the same with `MIN` (see
    /// [`min_threads`](Self::min_threads)), and `PORT` (on all addresses of the machine; without it nothing is listened on but what you
    /// say).
    ///
    /// # Errors
    ///
    /// One of them makes no sense.
    pub fn from_env() -> Result<Self, Error> {
        let mut settings = Self::default();
        if let Some((name, text)) = said(&["WEB_CONCURRENCY"]) {
            settings.workers = if text == "auto" { cores() } else { number(name, &text, MOST_WORKERS)? };
        }
        if let Some((name, text)) = said(&["RAILS_MAX_THREADS", "MAX_THREADS", "PUMA_MAX_THREADS"]) {
            settings.threads = number(name, &text, MOST_THREADS)?;
        }
        if let Some((name, text)) = said(&["RAILS_MIN_THREADS", "MIN_THREADS", "PUMA_MIN_THREADS"]) {
            settings.min_threads = text.parse().map_err(|_| wrong(name, &text, "a number"))?;
        }
        if let Some((name, text)) = said(&["PORT"]) {
            let port: u16 = text.parse().map_err(|_| wrong(name, &text, "a port"))?;
            settings = settings.listen_tcp(([0, 0, 0, 0], port));
        }
        Ok(settings)
    }

    /// How many processes serve. Default 2. Zero is an error.
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// How many threads each of them has in [`Worker::run_threads`]. Default 5. Zero is an error.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// What was set by [`threads`](Self::threads), or by the environment: what a pool for them is to hold, built before the fork.
    pub fn threads_of_worker(&self) -> usize {
        self.threads
    }

    /// How many of them [`Worker::run_threads`] starts at once; each other one when all that there are have something to do. They
    /// stay. Default: all. As in Puma a number above [`threads`](Self::threads) means that many; at least one is started.
    #[must_use]
    pub fn min_threads(mut self, threads: usize) -> Self {
        self.min_threads = threads;
        self
    }

    /// Listens here, once for all workers. May be called more than once. Port 0 is any; [`bind`](Self::bind) says which.
    #[must_use]
    pub fn listen_tcp(mut self, address: impl Into<SocketAddr>) -> Self {
        self.binds.push(Bind::Tcp(address.into()));
        self
    }

    /// Listens at a path. A socket that lies there and has nobody behind it is replaced.
    #[must_use]
    pub fn listen_unix(mut self, path: impl Into<PathBuf>) -> Self {
        self.binds.push(Bind::Unix(path.into()));
        self
    }

    /// Listens on the sockets that systemd passes (`LISTEN_FDS`): on all, however many, or on those of a name (`FileDescriptorName=` in
    /// the `.socket` unit). None of that name is an error.
    #[must_use]
    pub fn listen_systemd(mut self, name: Option<&str>) -> Self {
        self.binds.push(Bind::Passed(name.map(Into::into)));
        self
    }

    /// Listens on what you have bound, or were given. There is no [restart by exec](super#restart-by-exec) with such a one: the next program
    /// could not be given what it binds by itself.
    #[must_use]
    pub fn listener(mut self, listener: impl Into<Listener>) -> Self {
        self.binds.push(Bind::Own(listener.into()));
        self
    }

    /// Listens from now on, and says on what: all that was asked for, in that order. [`run`](Self::run) does it if you do not.
    ///
    /// # Errors
    ///
    /// It cannot listen there.
    pub fn bind(&mut self) -> Result<Vec<&Listener>, Error> {
        let legacy = self.legacy.get_or_insert_with(Legacy::take);
        for bind in self.binds.drain(..) {
            self.bound.extend(bind.bind(legacy)?);
        }
        Ok(self.bound.iter().map(|bound| &bound.listener).collect())
    }

    /// Answers who asks at this path how the cluster stands, and does what it is told to: see [`Command`](super::Command). Only for who
    /// may do what the master may (mode 0600). Default: nowhere.
    ///
    /// It speaks lines (`status`, `restart`, `scale 3`, `stop`, and ` wait` after each but the first, for an answer when it is done;
    /// answered by `ok ` or `error ` and a text), and HTTP: `curl --unix-socket PATH http://cluster/status`,
    /// `curl --unix-socket PATH -X POST 'http://cluster/restart?wait'`.
    #[must_use]
    pub fn control_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.control_socket = Some(path.into());
        self
    }

    /// How long a thread of a worker's may be about one request before its worker is held to be wedged: another takes its place, it is
    /// told to end, and killed when [`worker_shutdown_timeout`](Self::worker_shutdown_timeout) is over as well. Default 60 seconds.
    #[must_use]
    pub fn worker_timeout(mut self, timeout: Duration) -> Self {
        self.worker_timeout = timeout;
        self
    }

    /// How long a worker may take until it accepts for the first time, or says that it is [ready](Worker::ready). Default 60 seconds.
    #[must_use]
    pub fn worker_boot_timeout(mut self, timeout: Duration) -> Self {
        self.worker_boot_timeout = timeout;
        self
    }

    /// How long a worker that was told to end may take to finish what it has accepted, before it is killed. Default 30 seconds.
    #[must_use]
    pub fn worker_shutdown_timeout(mut self, timeout: Duration) -> Self {
        self.worker_shutdown_timeout = timeout;
        self
    }

    /// Has each worker replaced after so many requests: what leaks comes to an end. Each has up to `jitter` more, by chance, so that they
    /// do not go together. Never more than one at a time, and none before another serves. A request is what a thread has
    /// [done](Worker::heartbeat), or a client that it has [let in](super::WorkerThread::accept). Default: never.
    #[must_use]
    pub fn max_requests(mut self, requests: u64, jitter: u64) -> Self {
        self.max_requests = Some((requests, jitter));
        self
    }

    /// Has a worker replaced, as [`max_requests`](Self::max_requests) does, when it has more than so many bytes of memory for itself: its
    /// proportional share (PSS), for what it has in common with the master counts as its own in other figures. Looked at every few
    /// seconds, one worker at a time; on kernels that do not tell it never. Default: never.
    #[must_use]
    pub fn max_memory(mut self, bytes: u64) -> Self {
        self.max_memory = Some(bytes);
        self
    }

    /// How many more workers there may be while they are replaced in a restart, which is how many are replaced at a time, when the first
    /// has come to serve. With 0 each ends before another takes its place, in a restart and otherwise: where no connection more can be had.
    /// Then nobody takes the place of a worker that is wedged before it is gone. Default 1.
    #[must_use]
    pub fn max_surge(mut self, workers: usize) -> Self {
        self.max_surge = workers;
        self
    }

    /// Whether a thread that is wedged tells on standard error where it is, before its worker is killed; which needs debug information to
    /// be of use. It takes SIGABRT in the workers. Default: no.
    #[must_use]
    pub fn backtrace_of_wedged(mut self, backtrace: bool) -> Self {
        self.backtrace = backtrace;
        self
    }

    /// Whether the master refuses to fork while it has more than one thread; otherwise it warns on standard error. Default: it warns.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.strict = strict;
        self
    }

    /// In the master, once, before the first worker is forked.
    #[must_use]
    pub fn before_fork(mut self, hook: impl FnMut() + 'static) -> Self {
        self.hooks.before_fork = Some(Box::new(hook));
        self
    }

    /// In the master, before each worker is forked: which one, from 0.
    #[must_use]
    pub fn before_worker_fork(mut self, hook: impl FnMut(usize) + 'static) -> Self {
        self.hooks.before_worker_fork = Some(Box::new(hook));
        self
    }

    /// In the master, after each worker was forked: which one, and its pid.
    #[must_use]
    pub fn after_worker_fork(mut self, hook: impl FnMut(usize, u32) + 'static) -> Self {
        self.hooks.after_worker_fork = Some(Box::new(hook));
        self
    }

    /// In each worker, before its body. An error ends the worker; another takes its place.
    #[must_use]
    pub fn on_worker_boot<E: Into<Failed>>(mut self, hook: impl Fn(&Worker) -> Result<(), E> + 'static) -> Self {
        self.hooks.on_worker_boot = Some(Box::new(move |worker| hook(worker).map_err(Into::into)));
        self
    }

    /// In each worker, when its body has returned. An error is its exit code.
    #[must_use]
    pub fn on_worker_shutdown<E: Into<Failed>>(mut self, hook: impl Fn(&Worker) -> Result<(), E> + 'static) -> Self {
        self.hooks.on_worker_shutdown = Some(Box::new(move |worker| hook(worker).map_err(Into::into)));
        self
    }

    /// In the master, when a worker has ended: which one, and how.
    #[must_use]
    pub fn after_worker_shutdown(mut self, hook: impl FnMut(usize, ExitStatus) + 'static) -> Self {
        self.hooks.after_worker_shutdown = Some(Box::new(hook));
        self
    }

    /// In the master, when all workers serve, the first time.
    #[must_use]
    pub fn after_booted(mut self, hook: impl FnMut() + 'static) -> Self {
        self.hooks.after_booted = Some(Box::new(hook));
        self
    }

    /// In the master, at HUP: to open log files anew. Without one HUP does nothing.
    #[must_use]
    pub fn on_hup(mut self, hook: impl FnMut() + 'static) -> Self {
        self.hooks.on_hup = Some(Box::new(hook));
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let zero = |what| Err(Error::Setting(format!("{what} is 0")));
        let most = |what, number, most| Err(Error::Setting(format!("{what} is {number}: more than {most}")));
        match () {
            () if self.workers == 0 => zero("workers"),
            () if self.threads == 0 => zero("threads"),
            () if self.workers > MOST_WORKERS => most("workers", self.workers, MOST_WORKERS),
            () if self.threads > MOST_THREADS => most("threads", self.threads, MOST_THREADS),
            () if self.max_requests.is_some_and(|(requests, _)| requests == 0) => zero("max_requests"),
            () if self.max_memory == Some(0) => zero("max_memory"),
            () if self.worker_timeout.is_zero() => zero("worker_timeout"),
            () if self.worker_boot_timeout.is_zero() => zero("worker_boot_timeout"),
            () => Ok(()),
        }
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Builder");
        shown.field("workers", &self.workers).field("threads", &self.threads).field("binds", &self.binds);
        shown.finish_non_exhaustive()
    }
}

/// The first of these variables that says anything.
fn said(names: &[&'static str]) -> Option<(&'static str, String)> {
    let all = names.iter().map(|name| (*name, env::var(name).unwrap_or_default()));
    all.map(|(name, text)| (name, text.trim().to_owned())).find(|(_, text)| !text.is_empty())
}

fn number(name: &str, text: &str, most: usize) -> Result<usize, Error> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| wrong(name, text, &format!("a number from 1 to {most}")))
}

fn wrong(name: &str, text: &str, what: &str) -> Error {
    Error::Setting(format!("{name}={text:?} is not {what}"))
}

/// What the scheduler and the control group allow; std looks at both. At least one: half a core is one worker, not none.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MOST_WORKERS)
}
