//! What a cluster is told: how many, for how long, and what to do at each turn.

use super::board::PLACES;
use super::listeners::{Bind, Listener};
use super::{Error, Worker};
use std::env;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// While they are replaced there are twice as many.
pub(super) const MOST_WORKERS: usize = PLACES / 2;
const MOST_THREADS: usize = 1024;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// Settings for a cluster, under the names that Puma gave them.
pub struct Builder {
    pub(super) workers: usize,
    pub(super) threads: usize,
    pub(super) binds: Vec<Bind>,
    pub(super) worker_timeout: Duration,
    pub(super) worker_boot_timeout: Duration,
    pub(super) worker_shutdown_timeout: Duration,
    pub(super) strict: bool,
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
            binds: Vec::new(),
            worker_timeout: Duration::from_secs(60),
            worker_boot_timeout: Duration::from_secs(60),
            worker_shutdown_timeout: Duration::from_secs(30),
            strict: false,
            hooks: Hooks::default(),
        }
    }
}

impl Builder {
    /// As the environment says, as far as it says anything: `WEB_CONCURRENCY` (workers: a number, or `auto` for as many as the process
    /// may use cores, at least one), `RAILS_MAX_THREADS`, `MAX_THREADS` or `PUMA_MAX_THREADS` (threads of each), and `PORT` (on all
    /// addresses of the machine; without it nothing is listened on but what you say).
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

    /// Listens here, once for all workers. May be called more than once. Port 0 is any; [`Worker::listeners`] says which.
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

    /// Listens on what you have bound, or were given.
    #[must_use]
    pub fn listener(mut self, listener: impl Into<Listener>) -> Self {
        self.binds.push(Bind::Done(listener.into()));
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
