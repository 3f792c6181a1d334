//! The master's children that are no workers: who is queried, and who sends requests. Their signals are blocked and waited for: there is
//! no handler whose state a child could inherit.

use crate::{Result, report};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, process};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Role {
    Backend,
    Driver,
}

/// By which a program that takes this one's place by exec knows whom it has already: a pid, and where that listens.
const LEFT: &str = "PREFORK_SERVER_BACKEND";

pub(crate) struct Family {
    /// What each process of the family waits for.
    pub(crate) signals: SigSet,
    children: Vec<(Pid, Role)>,
}

impl Family {
    pub(crate) fn found() -> Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block()?;
        Ok(Self { signals, children: Vec::new() })
    }

    /// Forks a child that runs `body`, exits with what it returns, and does not outlive the master.
    pub(crate) fn fork(&mut self, role: Role, body: impl FnOnce(&SigSet) -> Result<u8>) -> Result<()> {
        let master = getpid();
        // SAFETY: the master has no other thread, so nothing that the child inherits is in the hands of one.
        if let ForkResult::Parent { child } = unsafe { fork() }? {
            self.children.push((child, role));
            return Ok(());
        }
        let outcome = match set_pdeathsig(Signal::SIGTERM) {
            Ok(()) if getppid() == master => body(&self.signals),
            Ok(()) => Err("the master is gone".into()),
            Err(error) => Err(error.into()),
        };
        process::exit(report(outcome).into());
    }

    /// One that the program had which was here before. Says what it was left with.
    pub(crate) fn adopt(&mut self, role: Role) -> Option<String> {
        let left = env::var(LEFT).ok()?;
        let (pid, with) = left.split_once(' ')?;
        let pid = Pid::from_raw(pid.parse().ok()?);
        // Whoever has the variable from its parent has no such child.
        let is_mine = waitpid(pid, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive);
        is_mine.then(|| self.children.push((pid, role)))?;
        Some(with.to_owned())
    }

    pub(crate) fn leave_to_the_next_program(&self, role: Role, with: &str) {
        if let Some((pid, _)) = self.children.iter().find(|child| child.1 == role) {
            // SAFETY: the master has no other thread that could read the environment.
            unsafe { env::set_var(LEFT, format!("{pid} {with}")) };
        }
    }

    /// A child that has ended, if there is one.
    fn reap(&mut self) -> Result<Option<WaitStatus>> {
        for (place, &(pid, _)) in self.children.iter().enumerate() {
            let status = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                // As the first process of a container the cluster has waited for it, and only it knows how it ended.
                Err(Errno::ECHILD) => WaitStatus::Exited(pid, 0),
                status => status?,
            };
            if status != WaitStatus::StillAlive {
                self.children.swap_remove(place);
                return Ok(Some(status));
            }
        }
        Ok(None)
    }

    /// Asks the children of one role to end, and kills those that have not in ten seconds. Whether all ended well.
    pub(crate) fn end(&mut self, role: Role) -> Result<bool> {
        let until = Instant::now() + Duration::from_secs(10);
        let mut well = true;
        self.signal(role, Signal::SIGTERM)?;
        while self.children.iter().any(|child| child.1 == role) {
            match self.reap()? {
                Some(status) => well &= matches!(status, WaitStatus::Exited(_, 0)),
                None if Instant::now() < until => thread::sleep(Duration::from_millis(5)),
                None => self.signal(role, Signal::SIGKILL)?,
            }
        }
        Ok(well)
    }

    /// To children that have not been reaped, so that the pids are still theirs.
    fn signal(&self, role: Role, signal: Signal) -> Result<()> {
        for (pid, _) in self.children.iter().filter(|child| child.1 == role) {
            kill(*pid, signal)?;
        }
        Ok(())
    }
}
