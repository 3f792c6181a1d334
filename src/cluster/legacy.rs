//! What a master leaves to the program that takes its place by exec: the listeners, and the workers, which serve until others do.
//!
//! The process stays the same, so that its children remain its children, and whoever started it notices nothing.

use super::listeners::{Kept, Listener};
use super::say;
use crate::fork::ignored::{self, Ignored};
use crate::fork::passed;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::execve;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsString};
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const VARIABLE: &str = "FORKSAFE_CLUSTER";

/// What would end a program that has not looked yet: a shell on the way to it unblocks all signals.
const NOT_YET: [libc::c_int; 5] = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGTTIN, libc::SIGTTOU];

#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Legacy {
    /// To whom it is left: a child that execs has the variable, too, and is somebody else.
    pid: u32,
    /// Both ends of the pipe by which workers see that they have a master.
    lives: Option<(RawFd, RawFd)>,
    /// In the words of who asked for them.
    listeners: Vec<(String, RawFd)>,
    /// Index and pid.
    pub(super) workers: Vec<(usize, i32)>,
    pub(super) phase: u64,
}

impl Legacy {
    /// Nothing, mostly. It is left once.
    pub(super) fn take() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let Some(text) = env::var(VARIABLE).ok() else { return Self::default() };
        match serde_json::from_str::<Self>(&text) {
            Ok(legacy) if legacy.pid == process::id() && !TAKEN.swap(true, SeqCst) => legacy,
            Ok(_) => Self::default(),
            Err(error) => {
                say(&format!("{VARIABLE} is not what a master wrote, and is not looked at: {error}"));
                Self::default()
            }
        }
    }

    /// Whether a master was here before this one. Then its signals are taken out of what is blocked and ignored.
    pub(super) fn unblocks(&self, mask: &mut SigSet, signals: &[Signal]) -> io::Result<()> {
        if self.pid != 0 {
            signals.iter().for_each(|signal| mask.remove(*signal));
            ignored::no_more(&NOT_YET)?;
        }
        Ok(())
    }

    pub(super) fn take_listener(&mut self, on: &str) -> Option<OwnedFd> {
        let number = self.listeners.iter().position(|(words, _)| words == on)?;
        passed::take(self.listeners.swap_remove(number).1).ok().flatten()
    }

    /// That of before, or a new one.
    pub(super) fn take_lives(&mut self) -> io::Result<(PipeReader, PipeWriter)> {
        let Some((reader, writer)) = self.lives.take() else { return io::pipe() };
        match (passed::take(reader)?, passed::take(writer)?) {
            (Some(reader), Some(writer)) => Ok((reader.into(), writer.into())),
            _ => io::pipe(),
        }
    }

    /// What nobody asks for any more is closed.
    pub(super) fn close_the_rest(&mut self) {
        self.listeners.drain(..).for_each(|(_, fd)| drop(passed::take(fd)));
    }
}

/// How this program was started.
#[derive(Debug)]
pub(super) struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

impl Program {
    /// Asked early: the file may be another one later, as it should.
    pub(super) fn this() -> io::Result<Self> {
        let arguments: Vec<OsString> = env::args_os().collect();
        // As it was called, if by a path: that may be a link, which leads to the next release one day.
        let called =
            arguments.first().map(PathBuf::from).filter(|path| path.components().count() > 1 && path.is_file());
        let path = called.map_or_else(env::current_exe, Ok)?;
        Ok(Self { path, arguments })
    }

    /// Becomes what lies at its path now, and leaves it what the cluster has. Signals stay blocked, and those that are not to end it are
    /// ignored if somebody unblocks them, until the next master looks. Returns if that cannot be started, and all is as it was.
    pub(super) fn exec(&self, leaves: &Leaves<'_>) -> io::Result<Infallible> {
        let Leaves { listeners, kept, lives, workers, phase } = leaves;
        let mut legacy = Legacy { pid: process::id(), phase: *phase, workers: workers.clone(), ..Legacy::default() };
        legacy.lives = Some((lives.0.as_raw_fd(), lives.1.as_raw_fd()));
        let mut stay = vec![lives.0.as_fd(), lives.1.as_fd()];
        for (listener, kept) in listeners.iter().zip(*kept) {
            if let Kept::As(words) = kept {
                legacy.listeners.push((words.clone(), listener.as_fd().as_raw_fd()));
            }
            if !matches!(kept, Kept::No) {
                stay.push(listener.as_fd());
            }
        }
        let arguments = self.arguments.iter().cloned().map(text).collect::<io::Result<Vec<_>>>()?;
        let mut variables =
            env::vars_os().filter(|(name, _)| name != VARIABLE).map(variable).collect::<io::Result<Vec<_>>>()?;
        variables.push(variable((VARIABLE.into(), serde_json::to_string(&legacy)?.into()))?);
        let path = text(self.path.clone().into_os_string())?;
        let _ignored = Ignored::new(&NOT_YET)?;
        let outcome = stay.iter().try_for_each(|fd| passed::keep_over_exec(*fd, true));
        let outcome = outcome.and_then(|()| Ok(execve(&path, &arguments, &variables)?));
        stay.iter().for_each(|fd| drop(passed::keep_over_exec(*fd, false)));
        outcome
    }
}

/// What is left.
pub(super) struct Leaves<'a> {
    pub(super) listeners: &'a [Listener],
    pub(super) kept: &'a [Kept],
    pub(super) lives: &'a (PipeReader, PipeWriter),
    pub(super) workers: Vec<(usize, i32)>,
    pub(super) phase: u64,
}

fn text(text: OsString) -> io::Result<CString> {
    Ok(CString::new(text.into_vec())?)
}

fn variable((mut name, value): (OsString, OsString)) -> io::Result<CString> {
    name.push("=");
    name.push(value);
    text(name)
}
