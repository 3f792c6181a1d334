//! The master: forks workers, looks after them, and does what signals say.
//!
//! One thread, which waits for signals and looks around four times a second. It waits for no worker, and what workers tell lies in
//! memory that they share.

use super::Error;
use super::board::{Board, PLACES, now};
use super::listeners::Listener;
use super::settings::Builder;
use super::worker::{Shutdown, Worker};
use crate::fork::make::make_child;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{self, ExitStatus};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

type Failed = Box<dyn std::error::Error + Send + Sync>;

/// How often the master looks around.
const ROUND: Duration = Duration::from_millis(250);

/// A round that took so much longer is one in which the master did not run.
const SLEPT: u64 = 2_000;

/// After a worker that never served the next one waits for so long; twice as long after each further one.
const FIRST_BACK_OFF: u64 = 100;
const LONGEST_BACK_OFF: u64 = 5_000;

/// Nor is one that lived so shortly followed at once.
const SHORT_LIFE: u64 = 1_000;

/// So many in a row are a crash loop.
const CRASHES: u32 = 10;

const SIGNALS: [Signal; 8] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    Signal::SIGHUP,
];

impl Builder {
    /// Forks the workers, and looks after them until a signal ends the cluster. In each worker `body` is run, and the process ends when
    /// it returns: this returns in the master only.
    ///
    /// Call it while the process has one thread. Pools may have been built and used before.
    ///
    /// # Errors
    ///
    /// See [`Error`]. All workers have ended then.
    pub fn run<E: Into<Failed>>(mut self, body: impl Fn(&Worker) -> Result<(), E>) -> Result<(), Error> {
        self.check()?;
        let binds = std::mem::take(&mut self.binds);
        let listeners = binds.into_iter().map(Listener::bind).collect::<Result<Arc<[_]>, _>>()?;
        let (alive, ends) = io::pipe()?;
        let mask = SigSet::from_iter(SIGNALS);
        let signals =
            SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(io::Error::from)?;
        let before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(io::Error::from)?;
        let mut master = Master {
            wanted: self.workers,
            board: Arc::new(Board::new(self.threads)?),
            listeners: Some(listeners),
            alive: Some((alive, ends)),
            settings: self,
            workers: Vec::new(),
            phase: 0,
            restart: None,
            is_booted: false,
            is_ending: false,
            has_warned: false,
            failures: 0,
            last: ExitStatus::default(),
            not_before: 0,
            looked_at: now(),
        };
        let ended = master.serve(&signals, &|worker| body(worker).map_err(Into::into));
        master.kill_all();
        let _ = before.thread_set_mask();
        ended
    }
}

struct Master {
    settings: Builder,
    /// How many workers there should be.
    wanted: usize,
    board: Arc<Board>,
    /// None when it ends: who comes then is let in by a worker, or by nobody.
    listeners: Option<Arc<[Listener]>>,
    /// Workers see the end of this pipe when the master is gone.
    alive: Option<(PipeReader, PipeWriter)>,
    workers: Vec<Process>,
    /// Which restart this is.
    phase: u64,
    restart: Option<Restart>,
    is_booted: bool,
    is_ending: bool,
    has_warned: bool,
    /// How many workers in a row never served, and how the last of them ended.
    failures: u32,
    last: ExitStatus,
    not_before: u64,
    looked_at: u64,
}

/// A worker, from outside.
struct Process {
    index: usize,
    place: usize,
    pid: Pid,
    phase: u64,
    forked_at: u64,
    has_served: bool,
    /// Since when it has been told to.
    ends_since: Option<u64>,
}

struct Restart {
    /// One of the new workers has come to serve.
    is_proved: bool,
}

type Body<'a> = &'a dyn Fn(&Worker) -> Result<(), Failed>;

impl Master {
    fn serve(&mut self, signals: &SignalFd, body: Body<'_>) -> Result<(), Error> {
        if let Some(hook) = &mut self.settings.hooks.before_fork {
            hook();
        }
        loop {
            self.fork_missing(body)?;
            let timeout = PollTimeout::try_from(ROUND).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout);
            while let Ok(Some(signal)) = signals.read_signal() {
                self.obey(Signal::try_from(signal.ssi_signo as i32).ok());
            }
            self.reap();
            self.look_around();
            if self.is_ending && self.workers.is_empty() {
                return Ok(());
            }
            if self.failures >= CRASHES && !self.workers.iter().any(|worker| worker.has_served) {
                return Err(Error::CrashLoop { failures: self.failures, last: self.last });
            }
        }
    }

    fn obey(&mut self, signal: Option<Signal>) {
        match signal {
            Some(Signal::SIGINT) if self.is_ending => self.kill_all(),
            Some(Signal::SIGTERM | Signal::SIGINT) => self.end(),
            Some(Signal::SIGQUIT) => {
                self.end();
                self.kill_all();
            }
            Some(Signal::SIGTTIN) => self.wanted = (self.wanted + 1).min(PLACES / 2),
            Some(Signal::SIGTTOU) => self.wanted = (self.wanted - 1).max(1),
            Some(Signal::SIGUSR1) if !self.is_ending && self.restart.is_none() => {
                self.phase += 1;
                self.restart = Some(Restart { is_proved: false });
            }
            Some(Signal::SIGHUP) => {
                if let Some(hook) = &mut self.settings.hooks.on_hup {
                    hook();
                }
            }
            _ => {}
        }
    }

    /// Gracefully.
    fn end(&mut self) {
        self.is_ending = true;
        self.listeners = None;
        let all = 0..self.workers.len();
        all.for_each(|worker| self.tell_to_end(worker));
    }

    fn tell_to_end(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        if worker.ends_since.is_none() {
            worker.ends_since = Some(now());
            let _ = kill(worker.pid, Signal::SIGTERM);
        }
    }

    /// And waits for it, which takes no time.
    fn kill_all(&mut self) {
        for worker in self.workers.drain(..) {
            let _ = kill(worker.pid, Signal::SIGKILL);
            let _ = waitpid(worker.pid, None);
        }
    }

    /// Forks what there should be and is not.
    fn fork_missing(&mut self, body: Body<'_>) -> Result<(), Error> {
        if self.is_ending || now() < self.not_before {
            return Ok(());
        }
        for index in 0..self.wanted {
            if !self.workers.iter().any(|worker| worker.index == index && worker.ends_since.is_none()) {
                self.fork(index, body)?;
            }
        }
        if self.restart.is_some()
            && let Some(index) = self.next_to_replace()
        {
            self.fork(index, body)?;
        }
        Ok(())
    }

    /// In a restart: the next worker of before for whom another should come. One at a time, and the next only when all serve and
    /// nobody is about to end.
    fn next_to_replace(&self) -> Option<usize> {
        let is_quiet = self.workers.iter().all(|worker| worker.has_served && worker.ends_since.is_none());
        let old = self.workers.iter().filter(|worker| worker.phase < self.phase);
        old.map(|worker| worker.index).min().filter(|_| is_quiet)
    }

    fn fork(&mut self, index: usize, body: Body<'_>) -> Result<(), Error> {
        self.look_for_threads()?;
        let place = (0..PLACES).find(|place| self.workers.iter().all(|worker| worker.place != *place));
        let place = place.expect("fewer workers than places");
        self.board.clear(place);
        if let Some(hook) = &mut self.settings.hooks.before_worker_fork {
            hook(index);
        }
        let forked_at = now();
        match make_child() {
            Ok(None) => self.be_worker(index, place, body),
            Ok(Some(pid)) => {
                let worker = Process {
                    index,
                    place,
                    pid: Pid::from_raw(pid as i32),
                    phase: self.phase,
                    forked_at,
                    has_served: false,
                    ends_since: None,
                };
                self.workers.push(worker);
                if let Some(hook) = &mut self.settings.hooks.after_worker_fork {
                    hook(index, pid);
                }
            }
            Err(error) => {
                say(&format!("cannot fork worker {index}: {error}"));
                self.back_off();
            }
        }
        Ok(())
    }

    fn look_for_threads(&mut self) -> Result<(), Error> {
        let own = process::id().to_string();
        let others: Vec<String> = fs::read_dir("/proc/self/task")
            .into_iter()
            .flatten()
            .flatten()
            .filter(|thread| thread.file_name().to_str() != Some(&own))
            .map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default().trim().to_owned())
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        if self.settings.strict {
            return Err(Error::Threads(others.join(", ")));
        }
        if !std::mem::replace(&mut self.has_warned, true) {
            say(&format!(
                "the master has other threads, and forks in the middle of what they do: {}",
                others.join(", ")
            ));
        }
        Ok(())
    }

    /// In the child. Does not return.
    fn be_worker(&mut self, index: usize, place: usize, body: Body<'_>) {
        let (alive, ends) = self.alive.take().expect("the master's");
        drop(ends);
        // For those who wait for children of their own. All others stay blocked: by default they would end it.
        let _ = SigSet::from(Signal::SIGCHLD).thread_unblock();
        let hooks = &self.settings.hooks;
        let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), Failed> {
            let worker = Worker {
                index,
                place,
                threads: self.settings.threads,
                timeout: self.settings.worker_timeout,
                listeners: Mutex::new(self.listeners.take().expect("the cluster's")),
                board: Arc::clone(&self.board),
                shutdown: Shutdown::new()?,
            };
            let (shutdown, limit) = (worker.shutdown.clone(), self.settings.worker_shutdown_timeout);
            let watch = thread::Builder::new().name("watches the master".into());
            watch.spawn(move || watch_for_the_end(&alive, &shutdown, limit))?;
            hooks.on_worker_boot.as_ref().map_or(Ok(()), |hook| hook(&worker))?;
            body(&worker)?;
            hooks.on_worker_shutdown.as_ref().map_or(Ok(()), |hook| hook(&worker))
        }));
        let code = match outcome {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => {
                say(&format!("worker {index}: {error}"));
                1
            }
            Err(_) => 101,
        };
        process::exit(code);
    }

    fn reap(&mut self) {
        let mut place = 0;
        while place < self.workers.len() {
            let ended = match waitpid(self.workers[place].pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw(code << 8)),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(ExitStatus::from_raw(signal as i32)),
                // Somebody else has waited for it.
                Err(nix::errno::Errno::ECHILD) => Some(ExitStatus::from_raw(0)),
                Ok(_) | Err(_) => None,
            };
            match ended {
                Some(status) => {
                    let worker = self.workers.swap_remove(place);
                    self.has_ended(&worker, status);
                }
                None => place += 1,
            }
        }
        if process::id() == 1 {
            // What nobody else waits for.
            while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive) {}
        }
    }

    fn has_ended(&mut self, worker: &Process, status: ExitStatus) {
        if let Some(hook) = &mut self.settings.hooks.after_worker_shutdown {
            hook(worker.index, status);
        }
        let served = worker.has_served || self.board.serves(worker.place);
        if worker.ends_since.is_some() || self.is_ending {
            return;
        }
        say(&format!("worker {} (process {}) ended: {status}", worker.index, worker.pid));
        if served {
            if now().saturating_sub(worker.forked_at) < SHORT_LIFE {
                self.not_before = now() + FIRST_BACK_OFF;
            }
            return;
        }
        self.last = status;
        self.back_off();
        let is_replacement = self.workers.iter().any(|other| other.index == worker.index && other.phase < worker.phase);
        if is_replacement && self.restart.as_ref().is_some_and(|restart| !restart.is_proved) {
            say("the restart is given up, for its first worker did not come to serve; the old ones stay");
            self.restart = None;
            for worker in &mut self.workers {
                worker.phase = self.phase;
            }
        }
    }

    fn back_off(&mut self) {
        self.not_before = now() + (FIRST_BACK_OFF << self.failures.min(16)).min(LONGEST_BACK_OFF);
        self.failures += 1;
    }

    /// What workers have told, and what they have not.
    fn look_around(&mut self) {
        let now = now();
        let slept = now.saturating_sub(self.looked_at + ROUND.as_millis() as u64);
        self.looked_at = now;
        for worker in &mut self.workers {
            if slept > SLEPT {
                // Whoever stopped the master may have stopped them as well.
                worker.forked_at += slept;
                worker.ends_since = worker.ends_since.map(|since| since + slept);
            }
            if !worker.has_served && self.board.serves(worker.place) {
                worker.has_served = true;
                self.failures = 0;
                self.not_before = 0;
                if let Some(restart) = &mut self.restart
                    && worker.phase == self.phase
                {
                    restart.is_proved = true;
                }
            }
            let over = |since: u64, time: Duration| now > since.saturating_add(time.as_millis() as u64);
            let why = match worker.ends_since {
                Some(since) if over(since, self.settings.worker_shutdown_timeout) => "has not ended in time",
                Some(_) => continue,
                None if !worker.has_served && over(worker.forked_at, self.settings.worker_boot_timeout) => {
                    "has not come to serve in time"
                }
                None if slept <= SLEPT && self.board.is_wedged(worker.place, now) => {
                    "is wedged: a thread of its is about one thing for too long"
                }
                None => continue,
            };
            say(&format!("worker {} (process {}) {why}, and is killed", worker.index, worker.pid));
            let _ = kill(worker.pid, Signal::SIGKILL);
        }
        self.end_the_surplus();
        if !self.is_booted && !self.is_ending && self.serving() == self.wanted {
            self.is_booted = true;
            if let Some(hook) = &mut self.settings.hooks.after_booted {
                hook();
            }
        }
    }

    fn serving(&self) -> usize {
        self.workers.iter().filter(|worker| worker.has_served && worker.ends_since.is_none()).count()
    }

    /// Those for whom others serve already, and those beyond what is wanted.
    fn end_the_surplus(&mut self) {
        for place in 0..self.workers.len() {
            let worker = &self.workers[place];
            let is_replaced = self.workers.iter().any(|other| {
                other.index == worker.index
                    && other.phase > worker.phase
                    && other.has_served
                    && other.ends_since.is_none()
            });
            if is_replaced || worker.index >= self.wanted {
                self.tell_to_end(place);
            }
        }
        if self.restart.is_some() && self.workers.iter().all(|worker| worker.phase == self.phase && worker.has_served) {
            self.restart = None;
        }
    }
}

/// In a worker, on a thread of its own: the master's signals, and its end.
fn watch_for_the_end(alive: &PipeReader, shutdown: &Shutdown, limit: Duration) {
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]);
    let Ok(signals) = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        return shutdown.request();
    };
    let mut is_alone = false;
    loop {
        let mut waits = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if !is_alone {
            waits.push(PollFd::new(alive.as_fd(), PollFlags::POLLIN));
        }
        let timeout =
            if is_alone { PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX) } else { PollTimeout::NONE };
        match poll(&mut waits, timeout) {
            // Nobody is left who would kill it.
            Ok(0) if is_alone => {
                let _ = raise(Signal::SIGKILL);
            }
            Ok(_) | Err(_) => {}
        }
        is_alone |= waits.get(1).is_some_and(|alive| alive.any().unwrap_or(true));
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo as i32 == Signal::SIGQUIT as i32 {
                let _ = raise(Signal::SIGKILL);
            }
            shutdown.request();
        }
        if is_alone {
            shutdown.request();
        }
    }
}

fn say(what: &str) {
    eprintln!("cluster {}: {what}", process::id());
}
