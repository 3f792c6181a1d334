//! The master: forks workers, looks after them, and does what signals say.
//!
//! One thread, which waits for signals and looks around four times a second. It waits for no worker, and what workers tell lies in
//! memory that they share.

use super::board::{self, Board, PLACES, millis};
use super::listeners::Listener;
use super::settings::{Builder, MOST_WORKERS};
use super::worker::{Shutdown, Worker};
use super::{Error, say};
use crate::Deadline;
use crate::fork::make::make_child;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid, getppid};
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

/// A thread that has been joined is listed no longer than this.
const GONE_WITHIN: Duration = Duration::from_millis(200);

/// A worker that lived shorter than this is not followed at once.
const SHORT_LIFE: u64 = 1_000;

/// So many rounds of workers that never served, with none left that does, are a crash loop.
const CRASHES: u32 = 10;

/// So many replacements that do not come to serve are enough to give up a restart.
const FAILED_REPLACEMENTS: u32 = 3;

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
    /// Call it while the process has one thread. Pools may have been built and used before. Other threads are warned of (or refused,
    /// see [`strict`](Self::strict)): a worker would have none of them, but perhaps their locks; and a signal to the master may reach
    /// one of them instead, and do what it does by default.
    ///
    /// The signals of the [table](super#signals) are blocked in the master meanwhile, and in the workers. Programs that are started
    /// there inherit that: see [`unblock_signals`](super::unblock_signals).
    ///
    /// # Errors
    ///
    /// See [`Error`]. Workers that there were then have been killed.
    pub fn run<E: Into<Failed>>(mut self, body: impl Fn(&Worker) -> Result<(), E>) -> Result<(), Error> {
        self.check()?;
        let binds = std::mem::take(&mut self.binds);
        let listeners = binds.into_iter().map(Listener::bind).collect::<Result<Arc<[_]>, _>>()?;
        let lives = io::pipe()?;
        let board = Arc::new(Board::new(self.threads)?);
        let mask = SigSet::from_iter(SIGNALS);
        let signals =
            SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(io::Error::from)?;
        let before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(io::Error::from)?;
        let _restores = RestoresMask(before, &signals);
        let mut master = Master {
            wanted: self.workers,
            board,
            listeners: Some(listeners),
            lives: Some(lives),
            settings: self,
            workers: Vec::new(),
            phase: 0,
            restart: None,
            restarts_again: false,
            is_booted: false,
            is_ending: false,
            was_interrupted: false,
            has_warned: false,
            back_off: BackOff::default(),
            looked_at: board::now(),
            spared_until: 0,
        };
        master.serve(&signals, &|worker| body(worker).map_err(Into::into))
    }
}

/// When the cluster is through, also by a panic. What came too late is nobody's.
struct RestoresMask<'a>(SigSet, &'a SignalFd);

impl Drop for RestoresMask<'_> {
    fn drop(&mut self) {
        while let Ok(Some(_)) = self.1.read_signal() {}
        let _ = self.0.thread_set_mask();
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
    lives: Option<(PipeReader, PipeWriter)>,
    workers: Vec<Process>,
    /// Which restart this is.
    phase: u64,
    restart: Option<Restart>,
    /// It was asked for in the middle of one.
    restarts_again: bool,
    is_booted: bool,
    is_ending: bool,
    was_interrupted: bool,
    has_warned: bool,
    back_off: BackOff,
    looked_at: u64,
    /// Until then nobody is held to be wedged: the master did not run, and perhaps the workers did not either.
    spared_until: u64,
}

/// A worker, from outside.
struct Process {
    index: usize,
    place: usize,
    pid: Pid,
    phase: u64,
    forked_at: u64,
    has_served: bool,
    /// Since when it has been told to, or has said that it will.
    ends_since: Option<u64>,
    /// It ends because nobody wants it any more.
    was_told_to_end: bool,
    is_killed: bool,
}

impl Process {
    fn stays(&self) -> bool {
        self.ends_since.is_none()
    }
}

#[derive(Default)]
struct Restart {
    failed: u32,
    /// One of the new workers has come to serve.
    is_proved: bool,
}

/// How long nobody is forked after workers that ended too soon.
#[derive(Default)]
struct BackOff {
    /// Rounds in a row.
    failures: u32,
    not_before: u64,
    last: ExitStatus,
}

impl BackOff {
    const FIRST: u64 = 100;
    const LONGEST: u64 = 5_000;

    fn is_over(&self, now: u64) -> bool {
        now >= self.not_before
    }

    /// Nothing has failed; but it should not go on like that without a pause.
    fn pause(&mut self, now: u64) {
        self.not_before = self.not_before.max(now + Self::FIRST);
    }

    /// Those who fail together count once.
    fn failed(&mut self, now: u64) {
        if self.is_over(now) {
            self.not_before = now + (Self::FIRST << self.failures.min(16)).min(Self::LONGEST);
            self.failures += 1;
        }
    }
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
            let BackOff { failures, last, .. } = self.back_off;
            if failures >= CRASHES && !self.workers.iter().any(|worker| worker.has_served) {
                return Err(Error::CrashLoop { failures, last });
            }
        }
    }

    fn obey(&mut self, signal: Option<Signal>) {
        match signal {
            Some(Signal::SIGINT) if self.was_interrupted => self.kill_all(),
            Some(Signal::SIGINT) => {
                self.was_interrupted = true;
                self.end();
            }
            Some(Signal::SIGTERM) => self.end(),
            Some(Signal::SIGQUIT) => {
                self.end();
                self.kill_all();
            }
            Some(Signal::SIGTTIN) if self.wanted < MOST_WORKERS => self.wanted += 1,
            Some(Signal::SIGTTOU) if self.wanted > 1 => self.wanted -= 1,
            Some(Signal::SIGUSR1) if self.restart.is_some() => self.restarts_again = true,
            Some(Signal::SIGUSR1) if !self.is_ending => self.restart(),
            Some(Signal::SIGHUP) => {
                if let Some(hook) = &mut self.settings.hooks.on_hup {
                    hook();
                }
            }
            _ => {}
        }
    }

    fn restart(&mut self) {
        say("phased restart");
        self.phase += 1;
        self.restart = Some(Restart::default());
    }

    /// Gracefully.
    fn end(&mut self) {
        self.is_ending = true;
        self.board.set_cluster_ends();
        self.listeners = None;
        (0..self.workers.len()).for_each(|number| self.tell_to_end(number));
    }

    fn tell_to_end(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        if !std::mem::replace(&mut worker.was_told_to_end, true) {
            worker.ends_since.get_or_insert(board::now());
            let _ = kill(worker.pid, Signal::SIGTERM);
        }
    }

    /// They are reaped as all others are.
    fn kill_all(&mut self) {
        for worker in &mut self.workers {
            worker.is_killed = true;
            let _ = kill(worker.pid, Signal::SIGKILL);
        }
    }

    /// Forks what there should be and is not.
    fn fork_missing(&mut self, body: Body<'_>) -> Result<(), Error> {
        for index in 0..self.wanted {
            let is_there = self.workers.iter().any(|worker| worker.index == index && worker.stays());
            if !is_there && self.may_fork() {
                self.fork(index, body)?;
            }
        }
        if self.restart.is_some()
            && self.may_fork()
            && let Some(index) = self.next_to_replace()
        {
            self.fork(index, body)?;
        }
        Ok(())
    }

    fn may_fork(&self) -> bool {
        !self.is_ending && self.back_off.is_over(board::now())
    }

    /// In a restart: the next worker of before for whom another should come. One at a time, and the next only when all serve and
    /// nobody is about to end.
    fn next_to_replace(&self) -> Option<usize> {
        let is_quiet = self.workers.iter().all(|worker| worker.has_served && worker.stays());
        let old = self.workers.iter().filter(|worker| worker.phase < self.phase);
        old.map(|worker| worker.index).min().filter(|_| is_quiet)
    }

    fn fork(&mut self, index: usize, body: Body<'_>) -> Result<(), Error> {
        let Some(place) = (0..PLACES).find(|place| self.workers.iter().all(|worker| worker.place != *place)) else {
            return Ok(()); // Many are about to end.
        };
        self.board.clear(place);
        if let Some(hook) = &mut self.settings.hooks.before_worker_fork {
            hook(index);
        }
        self.look_for_threads()?;
        let forked_at = board::now();
        match make_child() {
            Ok(None) => self.be_worker(index, place, body),
            Ok(Some(pid)) => {
                self.workers.push(Process {
                    index,
                    place,
                    pid: Pid::from_raw(pid as i32),
                    phase: self.phase,
                    forked_at,
                    has_served: false,
                    ends_since: None,
                    was_told_to_end: false,
                    is_killed: false,
                });
                if let Some(hook) = &mut self.settings.hooks.after_worker_fork {
                    hook(index, pid);
                }
            }
            Err(error) => {
                say(&format!("cannot fork worker {index}: {error}"));
                self.back_off.failed(board::now());
                if self.workers.is_empty() && self.back_off.failures >= CRASHES {
                    return Err(Error::System(error));
                }
            }
        }
        Ok(())
    }

    /// In strict mode an error, as long as nobody serves. Later workers are killed for it no more: it is said, and tried again.
    fn look_for_threads(&mut self) -> Result<(), Error> {
        let mut others = other_threads();
        if self.settings.strict && !others.is_empty() {
            // One that was joined a moment ago may still be listed.
            let until = Deadline::after(GONE_WITHIN);
            while !others.is_empty() && !until.is_over() {
                thread::sleep(Duration::from_millis(1));
                others = other_threads();
            }
            if !others.is_empty() && !self.workers.iter().any(|worker| worker.has_served) {
                return Err(Error::Threads(others.join(", ")));
            }
        }
        if !others.is_empty() && !std::mem::replace(&mut self.has_warned, true) {
            let names = others.join(", ");
            say(&format!(
                "the master has other threads, and forks in the middle of what they do; signals may reach them instead of it: {names}"
            ));
        }
        Ok(())
    }

    /// In the child.
    fn be_worker(&mut self, index: usize, place: usize, body: Body<'_>) -> ! {
        let outcome = catch_unwind(AssertUnwindSafe(|| -> Result<(), Failed> {
            // The end of it that says that the master lives is the master's alone.
            let (master_lives, _) = self.lives.take().expect("the master's");
            // For those who wait for children of their own. All others stay blocked: by default they would end it.
            SigSet::from(Signal::SIGCHLD).thread_unblock()?;
            let shutdown = Shutdown::new(&self.board, place)?;
            let limit = self.settings.worker_shutdown_timeout;
            let worker = Worker {
                index,
                place,
                threads: self.settings.threads,
                timeout: self.settings.worker_timeout,
                drains_for: limit / 4,
                listeners: Mutex::new(self.listeners.take().expect("the cluster's")),
                board: Arc::clone(&self.board),
                shutdown: shutdown.clone(),
            };
            let (board, master) = (Arc::clone(&self.board), getppid());
            let watch = thread::Builder::new().name("watches the master".into());
            watch.spawn(move || watch_for_the_end(&master_lives, master, &shutdown, &board, limit))?;
            let hooks = &self.settings.hooks;
            hooks.on_worker_boot.as_ref().map_or(Ok(()), |hook| hook(&worker))?;
            body(&worker)?;
            // Another may take its place.
            worker.shutdown.request();
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
        let mut number = 0;
        while number < self.workers.len() {
            match ending(waitpid(self.workers[number].pid, Some(WaitPidFlag::WNOHANG))) {
                Some(status) => {
                    let worker = self.workers.swap_remove(number);
                    self.has_ended(&worker, status);
                }
                None => number += 1,
            }
        }
        // The first process of a system is everybody's parent in the end.
        while process::id() == 1 {
            let ended = waitpid(None, Some(WaitPidFlag::WNOHANG));
            let Some(pid) = ended.ok().and_then(|status| status.pid()) else { break };
            if let Some(number) = self.workers.iter().position(|worker| worker.pid == pid) {
                let worker = self.workers.swap_remove(number);
                self.has_ended(&worker, ending(ended).unwrap_or_default());
            }
        }
    }

    fn has_ended(&mut self, worker: &Process, status: ExitStatus) {
        if let Some(hook) = &mut self.settings.hooks.after_worker_shutdown {
            hook(worker.index, status);
        }
        if worker.was_told_to_end {
            return;
        }
        say(&format!("worker {} (process {}) ended: {status}", worker.index, worker.pid));
        let now = board::now();
        let never_served = !self.board.has_served(worker.place);
        if never_served {
            self.back_off.last = status;
            self.back_off.failed(now);
        } else if now.saturating_sub(worker.forked_at) < SHORT_LIFE {
            self.back_off.pause(now);
        }
        let is_of = |other: &Process| other.index == worker.index && other.phase < worker.phase && other.stays();
        if never_served
            && let Some(restart) = &mut self.restart
            && self.workers.iter().any(is_of)
        {
            restart.failed += 1;
            if !restart.is_proved || restart.failed >= FAILED_REPLACEMENTS {
                self.give_up_the_restart();
            }
        }
    }

    /// The old ones stay, and of the new ones those that have taken an old one's place.
    fn give_up_the_restart(&mut self) {
        say("the restart is given up, for a replacement did not come to serve; who has not been replaced stays");
        self.restart = None;
        self.back_off.failures = 0;
        for number in 0..self.workers.len() {
            let worker = &self.workers[number];
            let is_of = |other: &Process| other.index == worker.index && other.phase < worker.phase && other.stays();
            if self.workers.iter().any(is_of) {
                self.tell_to_end(number);
            }
        }
        self.workers.iter_mut().for_each(|worker| worker.phase = self.phase);
    }

    /// What workers have told, and what they have not.
    fn look_around(&mut self) {
        let now = board::now();
        let slept = now.saturating_sub(self.looked_at + millis(ROUND));
        self.looked_at = now;
        if slept > SLEPT {
            // Whoever stopped the master may have stopped them as well.
            self.spared_until = now.saturating_add(millis(self.settings.worker_timeout));
            for worker in &mut self.workers {
                worker.forked_at += slept;
                worker.ends_since = worker.ends_since.map(|since| since + slept);
            }
        }
        for number in 0..self.workers.len() {
            self.look_at(number, now);
        }
        self.end_the_surplus();
        let serving = self.workers.iter().filter(|worker| worker.has_served && worker.stays()).count();
        if !self.is_booted && !self.is_ending && serving == self.wanted {
            self.is_booted = true;
            if let Some(hook) = &mut self.settings.hooks.after_booted {
                hook();
            }
        }
    }

    fn look_at(&mut self, number: usize, now: u64) {
        let worker = &mut self.workers[number];
        if self.board.ends(worker.place) {
            worker.ends_since.get_or_insert(now);
        }
        if self.board.has_served(worker.place) && !worker.has_served {
            worker.has_served = true;
            self.back_off.failures = 0;
            if let Some(restart) = self.restart.as_mut().filter(|_| worker.phase == self.phase) {
                restart.is_proved = true;
            }
        }
        let over = |since: u64, time: Duration| now > since.saturating_add(millis(time));
        let settings = &self.settings;
        let (why, is_hopeless) = match worker.ends_since {
            Some(since) if over(since, settings.worker_shutdown_timeout) => ("has not ended in time", true),
            Some(_) => return,
            None if !worker.has_served && over(worker.forked_at, settings.worker_boot_timeout) => {
                ("has not come to serve in time", true)
            }
            // Its other threads may be about something that they can finish.
            None if now >= self.spared_until && self.board.is_wedged(worker.place, now) => {
                ("is wedged: a thread of its has been about one thing for too long", false)
            }
            None => return,
        };
        if worker.is_killed {
            return;
        }
        let what = if is_hopeless { "killed" } else { "told to end" };
        say(&format!("worker {} (process {}) {why}, and is {what}", worker.index, worker.pid));
        if is_hopeless {
            worker.is_killed = true;
            let _ = kill(worker.pid, Signal::SIGKILL);
        } else {
            self.tell_to_end(number);
        }
    }

    /// Those for whom others serve already, and those beyond what is wanted.
    fn end_the_surplus(&mut self) {
        for number in 0..self.workers.len() {
            let worker = &self.workers[number];
            let is_successor = |other: &Process| {
                other.index == worker.index && other.phase > worker.phase && other.has_served && other.stays()
            };
            if worker.index >= self.wanted || self.workers.iter().any(is_successor) {
                self.tell_to_end(number);
            }
        }
        if self.restart.is_some() && self.workers.iter().all(|worker| worker.phase == self.phase && worker.has_served) {
            say("the restart is through");
            self.restart = None;
        }
        if self.restart.is_none() && !self.is_ending && std::mem::take(&mut self.restarts_again) {
            self.restart();
        }
    }
}

impl Drop for Master {
    /// If a hook panicked, or for an error: nobody else would wait for them.
    fn drop(&mut self) {
        self.kill_all();
        for worker in &self.workers {
            let _ = waitpid(worker.pid, None);
        }
    }
}

/// How a process has ended, if it has.
fn ending(waited: nix::Result<WaitStatus>) -> Option<ExitStatus> {
    match waited {
        Ok(WaitStatus::Exited(_, code)) => Some(ExitStatus::from_raw(code << 8)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(ExitStatus::from_raw(signal as i32)),
        // Somebody else has waited for it.
        Err(Errno::ECHILD) => Some(ExitStatus::default()),
        Ok(_) | Err(_) => None,
    }
}

/// By their names, as far as they have one.
fn other_threads() -> Vec<String> {
    let own = getpid().to_string();
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let others = threads.filter(|thread| thread.file_name().to_str() != Some(&own));
    others.map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default().trim().to_owned()).collect()
}

/// In a worker, on a thread of its own: the master's signals, and its end.
fn watch_for_the_end(master_lives: &PipeReader, master: Pid, shutdown: &Shutdown, board: &Board, limit: Duration) {
    let ends = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]);
    let Ok(signals) = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) else {
        return shutdown.request();
    };
    let mut alone_since = None;
    loop {
        let mut waits = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if alone_since.is_none() {
            waits.push(PollFd::new(master_lives.as_fd(), PollFlags::POLLIN));
        }
        let _ = poll(&mut waits, PollTimeout::from(1000_u16));
        // Somebody else may hold the pipe open: a program that the master forked.
        let pipe_ended = waits.get(1).is_some_and(|pipe| pipe.any().unwrap_or(true));
        while let Ok(Some(signal)) = signals.read_signal() {
            if signal.ssi_signo as i32 == Signal::SIGQUIT as i32 {
                let _ = raise(Signal::SIGKILL);
            }
            shutdown.request();
        }
        if pipe_ended || getppid() != master {
            let since = *alone_since.get_or_insert_with(board::now);
            board.set_cluster_ends();
            shutdown.request();
            // Nobody is left who would do it.
            if board::now() > since.saturating_add(millis(limit)) {
                let _ = raise(Signal::SIGKILL);
            }
        }
    }
}
