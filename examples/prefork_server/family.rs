//! The master's children: forked, reaped, ended. Their signals and its own are blocked and waited for: there is no
//! handler whose state a child could inherit.

use crate::{Result, report};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Role {
    Backend,
    Driver,
}

pub(crate) struct Family {
    /// What each process of the family waits for.
    pub(crate) signals: SigSet,
    children: Vec<(Pid, Role)>,
}

impl Family {
    pub(crate) fn found() -> Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM]);
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

    /// A child that has ended, if there is one.
    pub(crate) fn reap(&mut self) -> Result<Option<(Pid, Role, WaitStatus)>> {
        for (place, &(pid, role)) in self.children.iter().enumerate() {
            let status = waitpid(pid, Some(WaitPidFlag::WNOHANG))?;
            if status != WaitStatus::StillAlive {
                self.children.swap_remove(place);
                return Ok(Some((pid, role, status)));
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
                Some((.., status)) => well &= is_success(status),
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

pub(crate) fn is_success(status: WaitStatus) -> bool {
    matches!(status, WaitStatus::Exited(_, 0))
}
