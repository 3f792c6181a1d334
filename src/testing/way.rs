//! Every way of making a child, from libc's fork to a raw clone with the parent's own pid.

use super::child::Child;
use super::launched::{self, Launched, reap};
use super::proc::pipe;
use crate::fork;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A way of making a child that goes on in the same program.
///
/// ```
/// use forksafe::testing::Way;
///
/// let here = forksafe::fork::generation();
/// for way in Way::ALL.iter().filter(|way| way.available().is_ok()) {
///     assert!(way.child(move || forksafe::fork::generation() > here).join(), "{way}");
/// }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum Way {
    /// libc's `fork`: handlers run.
    Fork,
    /// glibc's `_Fork`, as async-signal-safe programs use it: no handlers.
    LibcFork_,
    /// The system call `fork`: no handlers.
    SysFork,
    /// The system call `clone`: no handlers.
    Clone,
    /// The system call `clone3`: no handlers.
    Clone3,
    /// `clone` into a new pid namespace, where the child has pid 1: no handlers. To have a parent of pid 1 as well, use
    /// it inside itself.
    NewPidNamespace,
    /// A grandchild with the pid of its parent's parent, a process that used what it inherited (its
    /// [`on_child`](crate::fork::on_child) hooks ran) and is dead: no handlers for the last two.
    ReusedPid,
    /// `clone` with `CLONE_FILES`: the child shares its parent's descriptor table. No handlers.
    SharedFds,
    /// A daemon: fork, new session, fork again, and the one in between is gone.
    Daemonise,
}

impl Way {
    /// All of them.
    pub const ALL: &[Self] = &[
        Self::Fork,
        Self::LibcFork_,
        Self::SysFork,
        Self::Clone,
        Self::Clone3,
        Self::NewPidNamespace,
        Self::ReusedPid,
        Self::SharedFds,
        Self::Daemonise,
    ];

    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::LibcFork_ => "_Fork",
            Self::SysFork => "SYS_fork",
            Self::Clone => "clone",
            Self::Clone3 => "clone3",
            Self::NewPidNamespace => "clone(CLONE_NEWPID)",
            Self::ReusedPid => "clone3(set_tid) of a dead ancestor",
            Self::SharedFds => "clone(CLONE_FILES)",
            Self::Daemonise => "daemon",
        }
    }

    /// Whether the atfork handlers run in the child, so that it is protected from birth. Otherwise it is from its first
    /// call into this crate on.
    pub fn runs_handlers(self) -> bool {
        matches!(self, Self::Fork | Self::Daemonise)
    }

    /// Whether this machine permits it; if not, why.
    ///
    /// # Errors
    ///
    /// The system call that failed, and how.
    pub fn available(self) -> Result<(), String> {
        static TRIED: OnceLock<Vec<(Way, Result<(), String>)>> = OnceLock::new();
        let tried = TRIED.get_or_init(|| Self::ALL.iter().map(|&way| (way, way.try_out())).collect());
        tried.iter().find(|(way, _)| *way == self).expect("all were tried").1.clone()
    }

    fn try_out(self) -> Result<(), String> {
        match self.try_launch(|| {}) {
            Ok(mut launched) => {
                launched.wait(Instant::now() + Duration::from_secs(10)).ok_or("a child that does nothing hung")?;
                Ok(())
            }
            Err(error) => Err(format!("{self}: {error}")),
        }
    }

    /// Runs `f` in a child made this way. See [`child`](super::child).
    ///
    /// # Panics
    ///
    /// When the machine does not permit it.
    #[track_caller]
    pub fn child<T: Serialize + DeserializeOwned, F: FnOnce() -> T>(self, f: F) -> Child<T> {
        Child::start(self, false, f)
    }

    /// Runs `f` in a child made this way, which then runs the exit handlers. See
    /// [`child_then_exit`](super::child_then_exit).
    ///
    /// # Panics
    ///
    /// When the machine does not permit it.
    #[track_caller]
    pub fn child_then_exit<T: Serialize + DeserializeOwned, F: FnOnce() -> T>(self, f: F) -> Child<T> {
        Child::start(self, true, f)
    }

    #[track_caller]
    pub(super) fn launch(self, body: impl FnOnce()) -> Launched {
        self.try_launch(body).unwrap_or_else(|error| panic!("cannot make a child by {self}: {error}"))
    }

    fn try_launch(self, body: impl FnOnce()) -> io::Result<Launched> {
        super::environment::obey();
        match self {
            Self::ReusedPid => return reuse_pid(body),
            Self::Daemonise => return daemonise(body),
            _ => {}
        }
        match self.make()? {
            0 => run_and_leave(body),
            pid => Ok(Launched::new(pid, pid, self)),
        }
    }

    /// The bare call. Returns twice.
    fn make(self) -> io::Result<libc::pid_t> {
        const SIGCHLD: libc::c_long = libc::SIGCHLD as libc::c_long;
        // SAFETY: each makes a process with memory of its own. That the child is restricted to what the parent's other
        // threads have left in order is what this crate is about.
        let pid = unsafe {
            match self {
                Self::Fork => libc::c_long::from(libc::fork()),
                Self::LibcFork_ => match symbol(c"_Fork") {
                    Some(libc_fork) => {
                        let libc_fork: extern "C" fn() -> libc::pid_t = mem::transmute(libc_fork);
                        libc::c_long::from(libc_fork())
                    }
                    None => return Err(io::Error::other("this libc has no _Fork")),
                },
                #[cfg(target_arch = "x86_64")]
                Self::SysFork => libc::syscall(libc::SYS_fork),
                #[cfg(not(target_arch = "x86_64"))]
                Self::SysFork => return Err(io::Error::other("this architecture has no system call fork")),
                Self::Clone => libc::syscall(libc::SYS_clone, SIGCHLD, 0, 0, 0, 0),
                Self::Clone3 => clone3(None),
                Self::NewPidNamespace => {
                    libc::syscall(libc::SYS_clone, SIGCHLD | libc::c_long::from(libc::CLONE_NEWPID), 0, 0, 0, 0)
                }
                Self::SharedFds => {
                    // Before, so that it is never too late.
                    launched::SHARING.fetch_add(1, Relaxed);
                    let flags = SIGCHLD | libc::c_long::from(libc::CLONE_FILES);
                    let pid = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
                    launched::SHARING.fetch_sub(u32::from(pid < 0), Relaxed);
                    pid
                }
                Self::ReusedPid | Self::Daemonise => unreachable!("made of several"),
            }
        };
        if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as libc::pid_t) }
    }
}

fn symbol(name: &CStr) -> Option<*mut libc::c_void> {
    // SAFETY: a C string and a handle that is always good.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// SAFETY: as `fork`.
unsafe fn clone3(pid: Option<libc::pid_t>) -> libc::c_long {
    // SAFETY: all zeros is a valid clone_args; the kernel reads as much as the size says.
    unsafe {
        let mut args: libc::clone_args = mem::zeroed();
        args.exit_signal = libc::SIGCHLD as u64;
        if let Some(pid) = &pid {
            args.set_tid = std::ptr::from_ref(pid).addr() as u64;
            args.set_tid_size = 1;
        }
        libc::syscall(libc::SYS_clone3, &raw const args, mem::size_of_val(&args))
    }
}

fn run_and_leave(body: impl FnOnce()) -> ! {
    body();
    // SAFETY: ends the process; nothing of the parent's runs.
    unsafe { libc::_exit(0) }
}

/// This process becomes the parent of its descendants' orphans, so that it can wait for them.
fn adopt_orphans() {
    // SAFETY: takes numbers and no memory.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// parent -> middle (leaves at once) -> the one that runs `body`.
fn daemonise(body: impl FnOnce()) -> io::Result<Launched> {
    adopt_orphans();
    let (news, teller) = pipe()?;
    match Way::Fork.make()? {
        0 => {
            // SAFETY: takes nothing.
            unsafe { libc::setsid() };
            match Way::Fork.make() {
                Ok(0) => run_and_leave(body),
                Ok(daemon) => tell(&teller, daemon),
                Err(_) => {}
            }
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) }
        }
        middle => {
            drop(teller);
            reap(middle);
            let daemon = hear(&news)?;
            Ok(Launched::new(daemon, daemon, Way::Daemonise))
        }
    }
}

/// parent -> ancestor (uses forksafe, leaves) -> caretaker -> the one that runs `body`, with the ancestor's pid.
fn reuse_pid(body: impl FnOnce()) -> io::Result<Launched> {
    adopt_orphans();
    let (news, teller) = pipe()?;
    match Way::Fork.make()? {
        0 => {
            fork::enter();
            // SAFETY: takes nothing.
            let ancestor = unsafe { libc::getpid() };
            match Way::Clone.make() {
                Ok(0) => take_care(ancestor, &teller, body),
                // SAFETY: ends the process.
                _ => unsafe { libc::_exit(0) },
            }
        }
        ancestor => {
            drop(teller);
            reap(ancestor);
            let caretaker = hear(&news)?;
            match hear(&news)? {
                0 => Ok(Launched::new(ancestor, caretaker, Way::ReusedPid)),
                error => {
                    reap(caretaker);
                    Err(io::Error::from_raw_os_error(error))
                }
            }
        }
    }
}

fn take_care(ancestor: libc::pid_t, teller: &OwnedFd, body: impl FnOnce()) -> ! {
    // SAFETY: numbers only, but for `status`, which is ours.
    unsafe {
        tell(teller, libc::getpid());
        while libc::kill(ancestor, 0) == 0 {
            libc::usleep(500);
        }
        let mut child = clone3(Some(ancestor));
        // Dead, but its number is given back a moment later.
        while child < 0 && *libc::__errno_location() == libc::EEXIST {
            libc::usleep(500);
            child = clone3(Some(ancestor));
        }
        if child == 0 {
            run_and_leave(body);
        }
        tell(teller, if child < 0 { *libc::__errno_location() } else { 0 });
        let mut status = 0;
        libc::waitpid(child as libc::pid_t, &raw mut status, 0);
        if libc::WIFSIGNALED(status) {
            libc::kill(libc::getpid(), libc::WTERMSIG(status));
        }
        libc::_exit(libc::WEXITSTATUS(status))
    }
}

fn tell(to: &OwnedFd, number: i32) {
    let bytes = number.to_ne_bytes();
    // SAFETY: the pointer and the length are those of an array.
    unsafe { libc::write(to.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
}

fn hear(from: &OwnedFd) -> io::Result<i32> {
    let mut bytes = [0; 4];
    // SAFETY: the pointer and the length are those of an array.
    match unsafe { libc::read(from.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len()) } {
        4 => Ok(i32::from_ne_bytes(bytes)),
        _ => Err(io::Error::other("a process in between failed")),
    }
}
