//! The descriptor table of a thread that has parted from the process's.

use super::listing::{Listing, no_list};
use super::reserved::Reserved;
use super::{GONE_WITHIN, Moved, Unobserved, Why, parcel, reserved};
use crate::fork::handler::sys::{self, Identity};
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::ptr;
use std::thread;
use std::time::{Duration, Instant};

pub(super) struct Private<'a> {
    reserved: &'a Reserved,
    /// What was open before the closure ran.
    before: Listing,
    /// A socket that is in this table only: which threads share it is told by this.
    marker: (RawFd, Identity),
    sharers: Sharers,
}

/// Who else has the table.
#[derive(Clone, Copy, PartialEq)]
enum Sharers {
    /// Perhaps all of the process: an emulator may say yes to everything.
    NotKnown,
    /// Threads that the driver has left behind.
    Threads,
    Nobody,
}

impl<'a> Private<'a> {
    /// Gives the calling thread a table in which exactly the reserved numbers are free, and those above all that are open.
    pub(super) fn part_from(reserved: &'a Reserved) -> Result<Self, Unobserved> {
        part().map_err(|error| Unobserved(Why::NoTable(error)))?;
        let marker = sys::unconnected_socket().and_then(reserved::past_the_standard_streams);
        let marker = marker.ok_or(Unobserved(Why::NoRoom))?;
        let identity = sys::look(marker).ok_or(Unobserved(Why::NoRoom))?.identity;
        let mut private =
            Self { reserved, before: Listing::none(), marker: (marker, identity), sharers: Sharers::NotKnown };
        if private.who_shares_it()? != Sharers::Nobody {
            sys::close(marker);
            private.sharers = Sharers::NotKnown;
            return Err(Unobserved(Why::NoTable(io::ErrorKind::Unsupported.into())));
        }
        private.fill_holes();
        private.cover_streams()?;
        reserved.numbers().iter().copied().for_each(sys::close);
        private.before = Listing::now()?;
        Ok(private)
    }

    /// Another thread may have closed something before this table was copied: what is opened must not get a number that is not kept.
    fn fill_holes(&self) {
        let last = *self.reserved.range().end();
        // A word to a standard stream that is closed is ignored; to such a socket it would be an error.
        while let Some(filler) = null() {
            if filler > libc::STDERR_FILENO {
                sys::close(filler);
                break;
            }
        }
        while let Some(filler) = sys::duplicate(self.marker.0, 0) {
            if filler > last {
                return sys::close(filler);
            }
        }
    }

    /// Whatever the process has that somebody waits for the end of.
    fn cover_streams(&self) -> Result<(), Unobserved> {
        let spared = [0, 1, 2, self.marker.0, self.reserved.sender()];
        for fd in Listing::now()?.numbers().filter(|fd| !spared.contains(fd)) {
            if somebody_waits_for_its_end(fd) && !sys::replace(self.marker.0, fd) {
                sys::close(fd);
            }
        }
        Ok(())
    }

    /// Whether the closure's outcome can be kept. A client that cannot is dropped here, where its numbers are its own.
    pub(super) fn judge<T, E>(&mut self, connected: Result<T, E>) -> Result<Result<T, E>, Unobserved> {
        match self.objection() {
            // What a driver that failed has done is its own affair.
            Err(why) if connected.is_ok() => {
                drop(connected);
                if self.sharers == Sharers::Threads {
                    self.note_who_shares_it();
                }
                Err(why)
            }
            _ => Ok(connected),
        }
    }

    /// An error, if it cannot be told what a client has opened, or if that cannot be moved.
    fn objection(&mut self) -> Result<(), Unobserved> {
        if self.who_shares_it()? == Sharers::Threads {
            return Err(Unobserved(Why::LeftThreads));
        }
        let kept = self.reserved.numbers();
        let opened = self.before.opened_since()?;
        let of_others = opened.iter().filter(|fd| !kept.contains(fd)).count();
        // With all numbers taken there may have been more, of which some have been closed.
        if opened.len() - of_others >= kept.len() {
            let why = if kept.len() < reserved::MOST { Why::NoRoom } else { Why::TooMany };
            return Err(Unobserved(why));
        }
        if of_others > 0 {
            return Err(Unobserved(Why::TakesNumbers));
        }
        if opened.iter().any(|fd| has_lock_of_its_table(*fd)) {
            return Err(Unobserved(Why::LockedFile));
        }
        match opened.iter().any(|fd| super::can_be_registered(*fd)) {
            true => Ok(()),
            false => Err(Unobserved(Why::NoSocket)),
        }
    }

    /// Before this is dropped, which closes all if nobody else has it.
    pub(super) fn note_who_shares_it(&mut self) {
        // An error: it is not known, and nothing is closed.
        let _ = self.who_shares_it();
    }

    /// Threads that are about to be gone are waited for.
    fn who_shares_it(&mut self) -> Result<Sharers, Unobserved> {
        let until = Instant::now() + GONE_WITHIN;
        let (fd, identity) = self.marker;
        self.sharers = Sharers::NotKnown;
        while another_thread_has(fd, identity).map_err(no_list)? {
            if Instant::now() > until {
                self.sharers = Sharers::Threads;
                return Ok(self.sharers);
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.sharers = Sharers::Nobody;
        Ok(self.sharers)
    }

    /// Sends what is open under the reserved numbers. Where threads of the driver's have it, too, nobody would close its streams in the
    /// process: they end here.
    pub(super) fn send(&self) -> io::Result<Vec<Moved>> {
        let mut moved = Vec::new();
        for &fd in self.reserved.numbers() {
            let Some(flags) = flags(fd) else { continue };
            if self.sharers != Sharers::Nobody && somebody_waits_for_its_end(fd) {
                sys::shutdown(fd);
                continue;
            }
            parcel::send(self.reserved.sender(), fd)?;
            moved.push(Moved { fd, closes_on_exec: flags & libc::FD_CLOEXEC != 0 });
        }
        Ok(moved)
    }
}

impl Drop for Private<'_> {
    /// What is closed in the process from here on is closed.
    fn drop(&mut self) {
        if self.sharers == Sharers::Nobody {
            close_all_but_the_first_three();
        }
    }
}

/// So that no handler runs on this thread: it would find other descriptors than it knows. Signals that have no handler do here what
/// they do everywhere, and a program that is started from here can be ended by them; so do those that say that this thread itself has
/// failed.
pub(super) fn block_handled_signals() {
    const OWN: [libc::c_int; 7] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];
    let handled = (1..=libc::SIGRTMAX()).filter(|signal| !OWN.contains(signal) && has_handler(*signal));
    // SAFETY: the set is ours, and emptied before it is used.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in handled {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
}

/// Not those that libc keeps for itself: it does not show them.
fn has_handler(signal: libc::c_int) -> bool {
    // SAFETY: all zeros is an action, and it is ours; none is set.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        let is_shown = libc::sigaction(signal, ptr::null(), &raw mut action) == 0;
        is_shown && ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction)
    }
}

fn null() -> Option<RawFd> {
    let null = fs::File::options().read(true).write(true).open("/dev/null");
    null.ok().map(IntoRawFd::into_raw_fd)
}

/// Containers forbid the one, and old kernels do not know the other.
fn part() -> io::Result<()> {
    let (none, unshare) = (libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: takes numbers and no memory. It is this thread's table alone that changes, and this thread is ours.
    let has_parted = unsafe {
        libc::unshare(libc::CLONE_FILES) == 0 || libc::syscall(libc::SYS_close_range, none, none, unshare) == 0
    };
    if has_parted { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Of a number that is open.
fn flags(fd: RawFd) -> Option<libc::c_int> {
    // SAFETY: takes numbers and no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    (flags >= 0).then_some(flags)
}

/// Whether another thread of this process has this very thing under this number.
fn another_thread_has(fd: RawFd, identity: Identity) -> io::Result<bool> {
    // SAFETY: takes nothing and cannot fail.
    let here = unsafe { libc::syscall(libc::SYS_gettid) }.to_string();
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        if task.file_name().to_str() == Some(here.as_str()) {
            continue;
        }
        match fs::metadata(task.path().join(format!("fd/{fd}"))) {
            Ok(there) if (there.dev(), there.ino()) == (identity.device, identity.inode) => return Ok(true),
            Ok(_) => {}
            // It is not open there, or the thread has gone.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Not datagrams: nothing ends there, and a log is often one.
fn somebody_waits_for_its_end(fd: RawFd) -> bool {
    match sys::look(fd) {
        Some(open) if open.is_socket => matches!(socket_type(fd), Some(libc::SOCK_STREAM | libc::SOCK_SEQPACKET)),
        Some(open) => open.is_pipe,
        None => false,
    }
}

fn socket_type(fd: RawFd) -> Option<libc::c_int> {
    let mut kind: libc::c_int = 0;
    let mut size = mem::size_of_val(&kind) as libc::socklen_t;
    // SAFETY: `kind` is ours and `size` says how large; a wrong descriptor is an error.
    let failed =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, (&raw mut kind).cast(), &raw mut size) };
    (failed == 0).then_some(kind)
}

/// A POSIX lock belongs to the table by which it was taken, and ends with it. (One of `flock` belongs to the file.)
fn has_lock_of_its_table(fd: RawFd) -> bool {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{fd}"));
    info.is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:") && line.contains("POSIX")))
}

fn close_all_but_the_first_three() {
    // SAFETY: takes numbers and no memory. The table is this thread's alone: nobody else has its marker.
    let failed = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) != 0 };
    if failed {
        Listing::now().iter().flat_map(Listing::numbers).filter(|fd| *fd > 2).for_each(sys::close);
    }
}
