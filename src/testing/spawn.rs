//! Every way of starting another program.

use super::clean::unnamed_file;
use super::hang::where_it_hangs;
use std::ffi::{CString, c_char};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

/// A way of starting another program. What is between the fork and the exec, if there is a fork at all, differs.
///
/// ```
/// use forksafe::testing::Spawn;
///
/// for spawn in Spawn::ALL.iter().filter(|spawn| spawn.available().is_ok()) {
///     let output = spawn.run("echo", &["hello"]);
///     assert_eq!(output.stdout, b"hello\n", "{spawn}");
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Spawn {
    /// A plain [`Command`]: the standard library does not fork for it.
    Command,
    /// A [`Command`] with `pre_exec`, for which it forks: fork handlers run.
    PreExec,
    /// libc's `posix_spawn`.
    PosixSpawn,
    /// What `vfork` and `exec` do: the child runs in its parent's memory until it executes. (Made by `clone(CLONE_VM |
    /// CLONE_VFORK)`, because a function that returns twice is none for Rust.)
    VforkExec,
}

impl Spawn {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Command, Self::PreExec, Self::PosixSpawn, Self::VforkExec];

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Command => "Command",
            Self::PreExec => "Command with pre_exec",
            Self::PosixSpawn => "posix_spawn",
            Self::VforkExec => "vfork and exec",
        }
    }

    /// Whether there is a fork in it, after which the atfork handlers run.
    pub fn runs_handlers(self) -> bool {
        self == Self::PreExec
    }

    /// Whether this machine permits it; if not, why.
    ///
    /// # Errors
    ///
    /// The call that failed, and how.
    pub fn available(self) -> Result<(), String> {
        match self.try_run("true", &[]) {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{self}: `true` ended with {}", output.status)),
            Err(error) => Err(format!("{self}: {error}")),
        }
    }

    /// Runs a program, with nothing to read, and waits for its end.
    ///
    /// # Panics
    ///
    /// When it does not start, or takes longer than the kit's [patience](super::patience).
    #[track_caller]
    pub fn run(self, program: &str, arguments: &[&str]) -> Output {
        self.try_run(program, arguments).unwrap_or_else(|error| panic!("{program} by {self}: {error}"))
    }

    fn try_run(self, program: &str, arguments: &[&str]) -> io::Result<Output> {
        super::environment::obey();
        let (mut stdout, mut stderr) = (unnamed_file(), unnamed_file());
        let pid = match self {
            Self::Command | Self::PreExec => self.command(program, arguments, &stdout, &stderr)?,
            Self::PosixSpawn => Program::new(program, arguments, &stdout, &stderr)?.posix_spawn()?,
            Self::VforkExec => Program::new(program, arguments, &stdout, &stderr)?.vfork_exec()?,
        };
        let status = wait(pid)?;
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map(|_| bytes)
        };
        Ok(Output { status, stdout: read(&mut stdout)?, stderr: read(&mut stderr)? })
    }

    fn command(self, program: &str, arguments: &[&str], stdout: &File, stderr: &File) -> io::Result<libc::pid_t> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        if self == Self::PreExec {
            // SAFETY: does nothing. That it is there is what makes Command fork.
            unsafe { command.pre_exec(|| Ok(())) };
        }
        Ok(command.spawn()?.id() as libc::pid_t)
    }
}

impl fmt::Display for Spawn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

unsafe extern "C" {
    static environ: *const *mut c_char;
}

/// What a program is started with, made before there is a child: that may not allocate.
struct Program {
    words: Vec<CString>,
    stdout: RawFd,
    stderr: RawFd,
}

/// What a child finds in its parent's memory.
struct Start {
    argv: *const *const c_char,
    stdout: RawFd,
    stderr: RawFd,
    /// Of the parent, without its blocked ones.
    signals: libc::sigset_t,
    /// Why it did not execute.
    errno: libc::c_int,
}

impl Program {
    fn new(program: &str, arguments: &[&str], stdout: &File, stderr: &File) -> io::Result<Self> {
        let words = [program].iter().chain(arguments).map(|word| CString::new(*word)).collect::<Result<_, _>>()?;
        Ok(Self { words, stdout: stdout.as_raw_fd(), stderr: stderr.as_raw_fd() })
    }

    /// With a null at its end. Points into `self`.
    fn argv(&self) -> Vec<*const c_char> {
        self.words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
    }

    fn posix_spawn(&self) -> io::Result<libc::pid_t> {
        let (argv, mut pid) = (self.argv(), 0);
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the actions are initialised, used and destroyed; the words are C strings that outlive the call, in a
        // list that ends with a null; nobody changes the environment meanwhile.
        let failed = unsafe {
            libc::posix_spawn_file_actions_init(actions.as_mut_ptr());
            libc::posix_spawn_file_actions_addopen(actions.as_mut_ptr(), 0, c"/dev/null".as_ptr(), libc::O_RDONLY, 0);
            libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), self.stdout, 1);
            libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), self.stderr, 2);
            let failed =
                libc::posix_spawnp(&raw mut pid, argv[0], actions.as_ptr(), ptr::null(), argv.as_ptr().cast(), environ);
            libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
            failed
        };
        if failed == 0 { Ok(pid) } else { Err(io::Error::from_raw_os_error(failed)) }
    }

    fn vfork_exec(&self) -> io::Result<libc::pid_t> {
        let (argv, mut stack) = (self.argv(), vec![0_u128; 4096]);
        // SAFETY: the stack is ours, aligned, and outlives the child's use of it, for which the parent waits; the child
        // makes system calls and touches what it is given. Handlers of signals must not run in a child that has the
        // parent's memory, so all are blocked until it executes.
        unsafe {
            let mut start = Start {
                argv: argv.as_ptr(),
                stdout: self.stdout,
                stderr: self.stderr,
                signals: mem::zeroed(),
                errno: 0,
            };
            let mut all = mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut start.signals);
            let top = stack.as_mut_ptr().add(stack.len()).cast();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            let pid = libc::clone(execute, top, flags, (&raw mut start).cast());
            let error = io::Error::last_os_error();
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const start.signals, ptr::null_mut());
            match (pid, start.errno) {
                (-1, _) => Err(error),
                (pid, 0) => Ok(pid),
                (pid, errno) => {
                    libc::waitpid(pid, ptr::null_mut(), 0);
                    Err(io::Error::from_raw_os_error(errno))
                }
            }
        }
    }
}

extern "C" fn execute(start: *mut libc::c_void) -> libc::c_int {
    let start = start.cast::<Start>();
    // SAFETY: the parent's variable, and the parent waits. System calls only, but for `execvp`, which is made for this.
    unsafe {
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
        libc::dup2(null, 0);
        libc::dup2((*start).stdout, 1);
        libc::dup2((*start).stderr, 2);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const (*start).signals, ptr::null_mut());
        libc::execvp(*(*start).argv, (*start).argv);
        (*start).errno = *libc::__errno_location();
        libc::_exit(127)
    }
}

fn wait(pid: libc::pid_t) -> io::Result<ExitStatus> {
    let until = Instant::now() + super::patience();
    loop {
        let mut status = 0;
        // SAFETY: `status` is ours.
        match unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } {
            0 if Instant::now() >= until => {
                let at = where_it_hangs(pid as u32);
                // SAFETY: takes numbers. It has not been waited for, so the pid is still its own.
                unsafe {
                    libc::kill(pid, libc::SIGKILL);
                    libc::waitpid(pid, ptr::null_mut(), 0);
                }
                return Err(io::Error::other(format!("not through within {:?}; {at}", super::patience())));
            }
            0 => thread::sleep(Duration::from_millis(1)),
            -1 => return Err(io::Error::last_os_error()),
            _ => return Ok(ExitStatus::from_raw(status)),
        }
    }
}
