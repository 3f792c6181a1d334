//! What a master leaves to the program that takes its place by exec: the listeners, and the workers, which serve until others do.
//!
//! The process stays the same, so that its children remain its children, and whoever started it notices nothing.

use super::board::{Board, LAYOUT};
use super::crew::Member;
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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const VARIABLE: &str = "FORKSAFE_CLUSTER";

/// What would end a program that has not looked yet: a shell on the way to it unblocks all signals.
const NOT_YET: [libc::c_int; 5] = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGTTIN, libc::SIGTTOU];

/// What was left, and not taken yet. What nobody takes is closed.
#[derive(Debug, Default)]
pub(super) struct Legacy {
    /// In the words of who asked for them.
    listeners: Vec<(String, OwnedFd)>,
    /// Both ends of the pipe by which workers see that they have a master.
    lives: Option<(PipeReader, PipeWriter)>,
    pub(super) board: Option<OwnedFd>,
    pub(super) workers: Vec<Member>,
    pub(super) phase: u64,
    is_there: bool,
}

/// The same, as it is written.
#[derive(Serialize, Deserialize)]
struct Letter {
    /// To whom it is left: a child that execs has the variable, too, and is somebody else.
    pid: u32,
    /// How the board is laid out.
    layout: u64,
    lives: (RawFd, RawFd),
    board: RawFd,
    listeners: Vec<(String, RawFd)>,
    workers: Vec<Member>,
    phase: u64,
}

impl Legacy {
    /// Nothing, mostly. It is left once.
    pub(super) fn take() -> Self {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        let Some(text) = env::var(VARIABLE).ok() else { return Self::default() };
        match serde_json::from_str::<Letter>(&text) {
            Ok(letter) if letter.pid == process::id() && !TAKEN.swap(true, SeqCst) => Self::open(letter),
            Ok(_) => Self::default(),
            Err(error) => {
                say(&format!("{VARIABLE} is not what a master wrote, and is not looked at: {error}"));
                Self::default()
            }
        }
    }

    fn open(letter: Letter) -> Self {
        let take = |fd| passed::take(fd).ok().flatten();
        let Letter { layout, lives, board, listeners, workers, phase, .. } = letter;
        Self {
            listeners: listeners.into_iter().filter_map(|(words, fd)| Some((words, take(fd)?))).collect(),
            lives: take(lives.0).zip(take(lives.1)).map(|(reader, writer)| (reader.into(), writer.into())),
            board: take(board).filter(|_| layout == LAYOUT),
            workers,
            phase,
            is_there: true,
        }
    }

    /// Takes the master's signals out of what is blocked and ignored, if the master before this one has seen to it that they are.
    pub(super) fn unblocks(&self, mask: &mut SigSet, signals: &[Signal]) -> io::Result<()> {
        if self.is_there {
            signals.iter().for_each(|signal| mask.remove(*signal));
            ignored::no_more(&NOT_YET)?;
        }
        Ok(())
    }

    pub(super) fn take_listener(&mut self, on: &str) -> Option<OwnedFd> {
        let number = self.listeners.iter().position(|(words, _)| words == on)?;
        Some(self.listeners.swap_remove(number).1)
    }

    /// That of before, or a new one.
    pub(super) fn take_lives(&mut self) -> io::Result<(PipeReader, PipeWriter)> {
        self.lives.take().map_or_else(io::pipe, Ok)
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
        // As it was called: that may be a link, which leads to the next release one day.
        let called = arguments.first().map(PathBuf::from).and_then(|called| match called.components().count() {
            1 => env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(&called)).find(|path| path.is_file()),
            _ => Some(called),
        });
        let path = called.filter(|path| path.is_file()).map_or_else(env::current_exe, Ok)?;
        Ok(Self { path: std::path::absolute(path)?, arguments })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Becomes what lies at its path now, and leaves it what the cluster has. Signals stay blocked, and those that are not to end it are
    /// ignored if somebody unblocks them, until the next master looks. Returns if that cannot be started, and all is as it was.
    pub(super) fn exec(&self, mut leaves: Leaves<'_>) -> io::Result<Infallible> {
        let mut letter = Letter {
            pid: process::id(),
            layout: LAYOUT,
            lives: (leaves.lives.0.as_raw_fd(), leaves.lives.1.as_raw_fd()),
            board: leaves.board.as_fd().as_raw_fd(),
            listeners: leaves.control.take().map(|(words, fd)| (words, fd.as_raw_fd())).into_iter().collect(),
            workers: leaves.workers.to_vec(),
            phase: leaves.phase,
        };
        for (listener, kept) in leaves.listeners.iter().zip(leaves.kept) {
            match kept {
                Kept::As(words) => letter.listeners.push((words.clone(), listener.as_fd().as_raw_fd())),
                Kept::Passed => {}
                Kept::No => {
                    let why = format!("{listener} is the program's own, and could not be listened on anew");
                    return Err(io::Error::new(io::ErrorKind::Unsupported, why));
                }
            }
        }
        // Those of the service manager, also if nobody here has asked for them: its variables go on counting them.
        let mut stay: Vec<RawFd> = sd_notify::listen_fds().into_iter().flatten().collect();
        stay.extend([letter.lives.0, letter.lives.1, letter.board]);
        stay.extend(letter.listeners.iter().map(|(_, fd)| *fd));
        let arguments = self.arguments.iter().cloned().map(text).collect::<io::Result<Vec<_>>>()?;
        let mut variables =
            env::vars_os().filter(|(name, _)| name != VARIABLE).map(variable).collect::<io::Result<Vec<_>>>()?;
        variables.push(variable((VARIABLE.into(), serde_json::to_string(&letter)?.into()))?);
        let path = text(self.path.clone().into_os_string())?;
        let _ignored = Ignored::new(&NOT_YET)?;
        stay.iter().for_each(|fd| passed::keep_over_exec(*fd, true));
        let outcome = execve(&path, &arguments, &variables).map_err(Into::into);
        stay.iter().for_each(|fd| passed::keep_over_exec(*fd, false));
        outcome
    }
}

/// What is left.
pub(super) struct Leaves<'a> {
    pub(super) listeners: &'a [Listener],
    pub(super) kept: &'a [Kept],
    pub(super) lives: &'a (PipeReader, PipeWriter),
    pub(super) board: &'a Board,
    pub(super) control: Option<(String, BorrowedFd<'a>)>,
    pub(super) workers: &'a [Member],
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
