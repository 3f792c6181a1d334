//! The master: forks workers, looks after them, and does what signals and the control socket say.
//!
//! One thread, which waits for signals and looks around four times a second. It waits for no worker, and what workers tell lies in
//! memory that they share. What follows from what is the [crew](super::crew)'s to say.

use super::board::{self, Board, Of, OfThread, PLACES, millis};
use super::child::{Body, Failed, Inheritance, be_worker};
use super::control::{Answer, Command, Control, Wait};
use super::crew::{BackOff, CRASHES, Crew, Member, Replace};
use super::legacy::{Leaves, Program};
use super::listeners::{Kept, Listener};
use super::settings::{Builder, MOST_WORKERS, Room};
use super::status::Status;
use super::systemd::ServiceManager;
use super::worker::Worker;
use super::{Error, say};
use crate::Deadline;
use crate::fork::backtrace;
use crate::fork::make::make_child;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{self, ExitStatus};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// How often the master looks around.
const ROUND: Duration = Duration::from_millis(250);

/// How often it looks at the memory of a worker, one after the other.
const MEMORY_ROUND: u64 = 1_000;

/// How long a worker may take to say where it is, before it is killed.
const LAST_WORDS: u64 = 1_000;

/// A round that took so much longer is one in which the master did not run.
const SLEPT: u64 = 2_000;

/// A thread that has been joined is listed no longer than this.
const GONE_WITHIN: Duration = Duration::from_millis(200);

const SIGNALS: [Signal; 9] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
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
        self.bind()?;
        let mut legacy = self.legacy.take().unwrap_or_default();
        let control = self.control_socket.take().map(|path| Control::bind(path, &mut legacy)).transpose()?;
        let lives = legacy.take_lives()?;
        let mask = SigSet::from_iter(SIGNALS);
        let signals =
            SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(io::Error::from)?;
        let mut before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(io::Error::from)?;
        legacy.unblocks(&mut before, &SIGNALS)?;
        let _restores = RestoresMask(before, &signals);
        let (listeners, kept) =
            self.bound.drain(..).map(|bound| (bound.listener, bound.kept)).unzip::<_, _, Vec<_>, _>();
        let mut master = Master {
            program: Program::this()?,
            crew: Crew::new(self.workers, self.max_surge),
            board: Arc::new(Board::new(legacy.board.take())?),
            listeners: Some(listeners.into()),
            kept,
            lives: Some(lives),
            settings: self,
            service_manager: ServiceManager::new(),
            is_booted: false,
            is_ending: false,
            was_interrupted: false,
            has_warned: false,
            looked_at: board::now(),
            weighed: (0, board::now()),
            spared_until: 0,
        };
        master.crew.take_over(std::mem::take(&mut legacy.workers), legacy.phase);
        drop(legacy);
        // Whoever has ended meanwhile, and whoever was never here.
        master.reap();
        master.serve(&signals, control, &|worker| body(worker).map_err(Into::into))
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
    program: Program,
    crew: Crew,
    board: Arc<Board>,
    /// None when it ends: who comes then is let in by a worker, or by nobody.
    listeners: Option<Arc<[Listener]>>,
    kept: Vec<Kept>,
    /// Workers see the end of this pipe when the master is gone.
    lives: Option<(PipeReader, PipeWriter)>,
    service_manager: ServiceManager,
    is_booted: bool,
    is_ending: bool,
    was_interrupted: bool,
    has_warned: bool,
    looked_at: u64,
    /// Which worker's memory was looked at last, and when.
    weighed: (usize, u64),
    /// Until then nobody is held to be wedged: the master did not run, and perhaps the workers did not either.
    spared_until: u64,
}

impl Master {
    fn serve(&mut self, signals: &SignalFd, mut control: Option<Control>, body: Body<'_>) -> Result<(), Error> {
        self.look_at_the_room()?;
        if let Some(hook) = &mut self.settings.hooks.before_fork {
            hook();
        }
        loop {
            self.replace();
            while let Some(index) = self.next_to_fork() {
                match self.fork(index)? {
                    Some(inherited) => {
                        drop(control);
                        be_worker(&self.settings, inherited, body)
                    }
                    None if !self.may_fork() => break,
                    None => {}
                }
            }
            self.wait(signals, control.as_ref());
            while let Ok(Some(signal)) = signals.read_signal() {
                self.obey(Signal::try_from(signal.ssi_signo as i32).ok(), control.as_ref());
            }
            self.reap();
            self.look_around();
            if let Some(control) = &mut control {
                control.serve(|command| self.carry_out(command));
                control.settle(|wait| self.outcome(wait));
            }
            if self.is_ending && self.crew.members.is_empty() {
                control.into_iter().for_each(|control| control.end(&Ok("the cluster has ended".into())));
                return Ok(());
            }
            let BackOff { failures, last, .. } = self.crew.back_off;
            if failures >= CRASHES && !self.crew.members.iter().any(|worker| worker.has_served) {
                let error = Error::CrashLoop { failures, last };
                control.into_iter().for_each(|control| control.end(&Err(error.to_string())));
                return Err(error);
            }
        }
    }

    fn wait(&self, signals: &SignalFd, control: Option<&Control>) {
        let timeout = PollTimeout::try_from(ROUND).unwrap_or(PollTimeout::MAX);
        let mut waits = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        waits.extend(control.into_iter().flat_map(|control| control.waits(board::now())));
        let _ = poll(&mut waits, timeout);
    }

    fn obey(&mut self, signal: Option<Signal>, control: Option<&Control>) {
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
            Some(Signal::SIGTTIN) => {
                if let Err(why) = self.scale(self.crew.wanted + 1) {
                    say(&why);
                }
            }
            Some(Signal::SIGTTOU) if self.crew.wanted > 1 => self.crew.wanted -= 1,
            Some(Signal::SIGUSR1) if !self.is_ending => drop(self.restart()),
            Some(Signal::SIGUSR2) if !self.is_ending => self.restart_by_exec(control),
            Some(Signal::SIGHUP) => {
                self.service_manager.reloading();
                if let Some(hook) = &mut self.settings.hooks.on_hup {
                    hook();
                }
                self.has_reloaded();
            }
            _ => {}
        }
    }

    /// For who asks at the control socket: what is said at once, and for what he may wait.
    fn carry_out(&mut self, command: Command) -> Result<(String, Option<Wait>), String> {
        match command {
            Command::Status => Ok((Status::read(&self.board).to_string(), None)),
            Command::Stop => {
                self.end();
                Ok(("the cluster ends".into(), Some(Wait::Stop)))
            }
            _ if self.is_ending => Err("the cluster ends".into()),
            Command::Restart => {
                let phase = self.restart();
                Ok((format!("restart {phase} has begun, or will"), Some(Wait::Restart(phase))))
            }
            Command::Scale(workers) => {
                self.scale(workers)?;
                Ok((format!("{} from now on", counted(workers)), Some(Wait::Scale(workers))))
            }
        }
    }

    fn outcome(&self, wait: Wait) -> Option<Answer> {
        match wait {
            Wait::Stop => None,
            _ if self.is_ending => Some(Err("the cluster ends".into())),
            Wait::Restart(phase) => self.crew.outcome(phase).map(|outcome| match outcome {
                Ok(()) => Ok(format!("restart {phase} is through: serving with {}", counted(self.crew.serving()))),
                Err(()) => Err(format!("restart {phase} was given up: a replacement did not come to serve")),
            }),
            Wait::Scale(workers) if self.crew.wanted != workers => {
                Some(Err(format!("somebody else has asked for {} workers meanwhile", self.crew.wanted)))
            }
            Wait::Scale(workers) => {
                let are_there = self.crew.serving() == workers && self.crew.members.len() == workers;
                are_there.then(|| Ok(format!("serving with {}", counted(workers))))
            }
        }
    }

    fn scale(&mut self, workers: usize) -> Result<(), String> {
        let most = self.settings.room.as_ref().map_or(MOST_WORKERS, |room| room.most_workers.min(MOST_WORKERS));
        match workers {
            0 => Err("a cluster has one worker at least".into()),
            _ if workers > most && workers > self.crew.wanted => {
                let why = self.settings.room.as_ref().filter(|room| room.most_workers <= MOST_WORKERS);
                let why = why.map_or(String::new(), |room| format!(": {}", room.why));
                Err(format!("there is room for {} at most{why}", counted(most)))
            }
            _ => {
                say(&format!("{} from now on", counted(workers)));
                self.crew.wanted = workers;
                Ok(())
            }
        }
    }

    fn look_at_the_room(&self) -> Result<(), Error> {
        let Some(Room { most_workers, report, refuses, .. }) = &self.settings.room else { return Ok(()) };
        report.lines().for_each(say);
        if *refuses && self.crew.wanted > *most_workers {
            let (wanted, fit) = (counted(self.crew.wanted), if *most_workers == 1 { "fits" } else { "fit" });
            return Err(Error::Setting(format!("{wanted} where {most_workers} {fit}\n{report}")));
        }
        Ok(())
    }

    fn restart(&mut self) -> u64 {
        if !self.crew.is_restarting() {
            say("phased restart");
            self.service_manager.reloading();
        }
        self.crew.restart()
    }

    /// Becomes the program that lies where this one did. The workers serve on, until those of the next master do.
    fn restart_by_exec(&mut self, control: Option<&Control>) {
        let (Some(listeners), Some(lives)) = (&self.listeners, &self.lives) else { return };
        say(&format!("restart by exec of {}", self.program.path().display()));
        self.service_manager.reloading();
        let leaves = Leaves {
            listeners,
            kept: &self.kept,
            lives,
            board: &self.board,
            control: control.map(Control::leaves),
            workers: &self.crew.members,
            phase: self.crew.phase,
        };
        let Err(error) = self.program.exec(leaves);
        say(&format!("cannot restart by exec of {}, and goes on: {error}", self.program.path().display()));
        self.has_reloaded();
    }

    /// Unless something else is under way.
    fn has_reloaded(&mut self) {
        if self.is_booted && !self.is_ending && !self.crew.is_restarting() {
            self.service_manager.ready();
        }
    }

    /// Gracefully.
    fn end(&mut self) {
        if !std::mem::replace(&mut self.is_ending, true) {
            say("ends");
            self.service_manager.stopping();
        }
        self.board.set(Of::ClusterEnds, 1);
        self.listeners = None;
        (0..self.crew.members.len()).for_each(|number| self.tell_to_end(number));
    }

    fn tell_to_end(&mut self, number: usize) {
        let worker = &mut self.crew.members[number];
        if !std::mem::replace(&mut worker.was_told_to_end, true) {
            worker.ends_since.get_or_insert(board::now());
            self.board.set_ends(worker.place);
            let _ = kill(worker.pid, Signal::SIGTERM);
        }
    }

    /// They are reaped as all others are.
    fn kill_all(&mut self) {
        for worker in &mut self.crew.members {
            worker.is_killed = true;
            let _ = kill(worker.pid, Signal::SIGKILL);
        }
    }

    fn may_fork(&self) -> bool {
        !self.is_ending && self.crew.back_off.is_over(board::now())
    }

    /// Ends those who have to go before another comes.
    fn replace(&mut self) {
        if self.may_fork()
            && let Some(Replace::After(number)) = self.crew.next_to_replace()
        {
            self.tell_to_end(number);
        }
    }

    /// Which one there should be and is not.
    fn next_to_fork(&self) -> Option<usize> {
        if !self.may_fork() || self.crew.members.len() >= PLACES {
            return None;
        }
        let missing = (0..self.crew.wanted).find(|index| self.crew.is_missing(*index));
        missing.or_else(|| match self.crew.next_to_replace() {
            Some(Replace::Beside(index)) => Some(index),
            _ => None,
        })
    }

    /// In the child: what it has from here.
    fn fork(&mut self, index: usize) -> Result<Option<Inheritance>, Error> {
        let Some(place) = self.crew.free_place(PLACES) else { return Ok(None) };
        self.board.take(place, index, self.crew.phase, self.settings.threads);
        if let Some(hook) = &mut self.settings.hooks.before_worker_fork {
            hook(index);
        }
        self.look_for_threads()?;
        match make_child() {
            Ok(None) => {
                let listeners = self.listeners.take().expect("there are some until it ends");
                // The end of the pipe that says that the master lives is the master's alone.
                let (master_lives, _) = self.lives.take().expect("the master's");
                return Ok(Some(Inheritance { index, place, board: Arc::clone(&self.board), listeners, master_lives }));
            }
            Ok(Some(pid)) => {
                self.board.is_there(place, pid);
                let most = self.settings.max_requests.map_or(u64::MAX, |(most, jitter)| most + chance(jitter));
                self.crew.join(index, place, Pid::from_raw(pid as i32), board::now(), most);
                if let Some(hook) = &mut self.settings.hooks.after_worker_fork {
                    hook(index, pid);
                }
            }
            Err(error) => {
                say(&format!("cannot fork worker {index}: {error}"));
                self.crew.back_off.failed(board::now());
                if self.crew.members.is_empty() && self.crew.back_off.failures >= CRASHES {
                    return Err(Error::System(error));
                }
            }
        }
        Ok(None)
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
            if !others.is_empty() && !self.crew.members.iter().any(|worker| worker.has_served) {
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

    fn reap(&mut self) {
        let mut number = 0;
        while number < self.crew.members.len() {
            match ending(waitpid(self.crew.members[number].pid, Some(WaitPidFlag::WNOHANG))) {
                Some(status) => self.has_ended(number, status),
                None => number += 1,
            }
        }
        // The first process of a system is everybody's parent in the end.
        while process::id() == 1 {
            let ended = waitpid(None, Some(WaitPidFlag::WNOHANG));
            let Some(pid) = ended.ok().and_then(|status| status.pid()) else { break };
            if let Some(number) = self.crew.members.iter().position(|worker| worker.pid == pid) {
                self.has_ended(number, ending(ended).unwrap_or_default());
            }
        }
    }

    fn has_ended(&mut self, number: usize, status: ExitStatus) {
        let mut worker = self.crew.members.swap_remove(number);
        // What it told last.
        worker.has_served |= self.board.has_served(worker.place);
        self.board.leave(worker.place);
        if let Some(hook) = &mut self.settings.hooks.after_worker_shutdown {
            hook(worker.index, status);
        }
        if worker.was_told_to_end {
            return;
        }
        say(&format!("worker {} (process {}) ended, and was not told to: {status}", worker.index, worker.pid));
        if self.crew.has_failed(&worker, status, board::now()) {
            say("the restart is given up, for a replacement did not come to serve; who has not been replaced stays");
            self.service_manager.ready();
            let needless: Vec<usize> =
                (0..self.crew.members.len()).filter(|number| self.crew.is_needless(*number)).collect();
            needless.into_iter().for_each(|number| self.tell_to_end(number));
        }
    }

    /// What workers have told, and what they have not.
    fn look_around(&mut self) {
        let now = board::now();
        let slept = now.saturating_sub(self.looked_at + millis(ROUND));
        self.looked_at = now;
        if slept > SLEPT {
            // Whoever stopped the master may have stopped them as well.
            self.spared_until = now.saturating_add(millis(self.settings.worker_timeout));
            for worker in &mut self.crew.members {
                worker.forked_at += slept;
                worker.ends_since = worker.ends_since.map(|since| since + slept);
            }
        }
        for number in 0..self.crew.members.len() {
            self.look_at(number, now);
        }
        self.weigh(now);
        for number in 0..self.crew.members.len() {
            if self.crew.is_surplus(number) {
                self.tell_to_end(number);
            }
        }
        if self.crew.is_through() {
            say("the restart is through");
            self.service_manager.ready();
        }
        if !self.is_ending && self.crew.restarts_again() {
            self.restart();
        }
        self.board.set(Of::Phase, self.crew.phase);
        let serving = self.crew.serving();
        if !self.is_booted && !self.is_ending && !self.crew.is_restarting() && serving == self.crew.wanted {
            self.is_booted = true;
            say(&format!("serving with {}", counted(serving)));
            if let Some(hook) = &mut self.settings.hooks.after_booted {
                hook();
            }
            self.service_manager.ready();
        }
        let status = format!("{serving} of {} workers serve, phase {}", self.crew.wanted, self.crew.phase);
        // Who finishes what it has, or takes the place of another, has limits of its own.
        let is_well = |worker: &Member| worker.has_served || self.crew.is_restarting();
        let all_is_well = self.crew.members.iter().any(is_well);
        self.service_manager.hears(status, all_is_well, now);
    }

    fn look_at(&mut self, number: usize, now: u64) {
        let worker = &mut self.crew.members[number];
        if self.board.ends(worker.place) {
            worker.ends_since.get_or_insert(now);
        }
        worker.is_worn |= self.board.requests(worker.place) >= worker.most_requests;
        if self.board.has_served(worker.place) && !worker.has_served {
            self.crew.has_come_to_serve(number);
        }
        let worker = &mut self.crew.members[number];
        let over = |since: u64, time: Duration| now > since.saturating_add(millis(time));
        let settings = &self.settings;
        let is_hopeless = match worker.ends_since {
            Some(since) if over(since, settings.worker_shutdown_timeout) => Some("has not ended in time"),
            None if !worker.has_served && over(worker.forked_at, settings.worker_boot_timeout) => {
                Some("has not come to serve in time")
            }
            _ => None,
        };
        let (index, pid) = (worker.index, worker.pid);
        if let Some(why) = is_hopeless {
            if worker.given_up_at.is_none() {
                say(&format!("worker {index} (process {pid}) {why}, and is killed"));
                let wedged = self.board.wedged(worker.place, now).filter(|_| settings.backtrace);
                let id = wedged.map_or(0, |thread| self.board.thread(worker.place, thread, OfThread::Id));
                if id != 0 {
                    let _ = backtrace::ask(pid.as_raw() as u32, id, Signal::SIGABRT as i32);
                }
                worker.given_up_at = Some(if id == 0 { now } else { now + LAST_WORDS });
            }
            if worker.given_up_at.is_some_and(|at| now >= at) && !std::mem::replace(&mut worker.is_killed, true) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        } else if worker.stays()
            && now >= self.spared_until
            && let Some(thread) = self.board.wedged(worker.place, now)
        {
            // Its other threads may be about something that they can finish.
            say(&format!(
                "worker {index} (process {pid}) is wedged: its thread {thread} has been about one thing for longer than it may \
                 (worker_timeout is {:?}). It is told to end",
                settings.worker_timeout
            ));
            self.tell_to_end(number);
        }
    }

    /// Now and then, one worker after the other: it takes a while, and that worker can map no memory meanwhile.
    fn weigh(&mut self, now: u64) {
        let (last, at) = self.weighed;
        let Some(most) = self.settings.max_memory.filter(|_| now >= at + MEMORY_ROUND) else { return };
        let next = if last + 1 < self.crew.members.len() { last + 1 } else { 0 };
        self.weighed = (next, now);
        if let Some(worker) = self.crew.members.get_mut(next).filter(|worker| worker.stays() && worker.has_served)
            && let Some(memory) = proportional_memory(worker.pid)
            && memory > most
            && !std::mem::replace(&mut worker.is_worn, true)
        {
            say(&format!(
                "worker {} (process {}) has {memory} bytes for itself: another follows",
                worker.index, worker.pid
            ));
        }
    }
}

impl Drop for Master {
    /// If a hook panicked, or for an error: nobody else would wait for them. Those of the master before this one serve, and see for
    /// themselves that they have none any more.
    fn drop(&mut self) {
        for number in (0..self.crew.members.len()).filter(|number| !self.crew.was_taken_over(*number)) {
            let _ = kill(self.crew.members[number].pid, Signal::SIGKILL);
            let _ = waitpid(self.crew.members[number].pid, None);
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

/// In bytes. What several processes have in common is shared out among them.
fn proportional_memory(pid: Pid) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn counted(workers: usize) -> String {
    format!("{workers} {}", if workers == 1 { "worker" } else { "workers" })
}

/// A number up to this one.
fn chance(most: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(board::now()) % most.saturating_add(1).max(1)
}

/// By their names, as far as they have one.
fn other_threads() -> Vec<String> {
    // By the numbers that are counted there, which may be another container's.
    let own = fs::read_link("/proc/self").unwrap_or_default();
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let others = threads.filter(|thread| own != Path::new(&thread.file_name()));
    others.map(|thread| fs::read_to_string(thread.path().join("comm")).unwrap_or_default().trim().to_owned()).collect()
}
