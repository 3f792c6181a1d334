//! The descriptor table of a thread that has parted from the process's.

use super::listing::{Listing, no_list};
use super::reserved::Reserved;
use super::{GONE_WITHIN, Moved, Unobserved, Why, parcel};
use crate::fork::handler::sys::{self, Identity};
use std::fs;
use std::io;
use std::mem;
use std::os::fd::RawFd;
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
    /// Threads of the driver's have it, too.
    is_shared: bool,
}

impl<'a> Private<'a> {
    /// Gives the calling thread a table in which exactly the reserved numbers are free, and those above all that are open.
    pub(super) fn part_from(reserved: &'a Reserved) -> Result<Self, Unobserved> {
        part().map_err(|error| Unobserved(Why::NoTable(error)))?;
        let marker = sys::unconnected_socket().ok_or(Unobserved(Why::NoRoom))?;
        let identity = sys::look(marker).ok_or(Unobserved(Why::NoRoom))?.identity;
        // Until the contrary has been seen: an emulator may say yes to everything.
        let mut private = Self { reserved, before: Listing::none(), marker: (marker, identity), is_shared: true };
        if private.is_shared_still()? {
            sys::close(marker);
            return Err(Unobserved(Why::NoTable(io::ErrorKind::Unsupported.into())));
        }
        fill_holes(reserved);
        private.cover_streams()?;
        reserved.numbers().iter().copied().for_each(sys::close);
        private.before = Listing::now()?;
        Ok(private)
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
        let why = match (&connected, self.objection()) {
            (Ok(_), Ok(Some(why))) => Unobserved(why),
            // The threads of a driver that failed are its own affair.
            (Err(_), Ok(_)) | (Ok(_), Ok(None)) => return Ok(connected),
            (_, Err(why)) => why,
        };
        drop(connected);
        if self.is_shared {
            let _ = self.is_shared_still();
        }
        Err(why)
    }

    fn objection(&mut self) -> Result<Option<Why>, Unobserved> {
        if self.is_shared_still()? {
            return Ok(Some(Why::LeftThreads));
        }
        let opened = self.before.opened_since()?;
        let are_elsewhere = opened.iter().filter(|fd| !self.reserved.numbers().contains(fd)).count();
        // With all numbers taken there may have been more, of which some have been closed.
        if opened.len() - are_elsewhere >= self.reserved.numbers().len() {
            return Ok(Some(Why::TooMany));
        }
        if are_elsewhere > 0 {
            return Ok(Some(Why::Elsewhere));
        }
        if opened.iter().any(|fd| has_lock_of_its_table(*fd)) {
            return Ok(Some(Why::LockedFile));
        }
        Ok((!opened.iter().any(|fd| super::can_be_registered(*fd))).then_some(Why::NoSocket))
    }

    /// Whether other threads have this table. Those that are about to be gone are waited for.
    fn is_shared_still(&mut self) -> Result<bool, Unobserved> {
        let until = Instant::now() + GONE_WITHIN;
        let (fd, identity) = self.marker;
        self.is_shared = true;
        while is_elsewhere(fd, identity).map_err(no_list)? {
            if Instant::now() > until {
                return Ok(true);
            }
            thread::sleep(Duration::from_millis(1));
        }
        self.is_shared = false;
        Ok(false)
    }

    /// Sends what is open under the reserved numbers, and closes all that this table has, if it is no other thread's: what is
    /// closed in the process from here on is closed.
    pub(super) fn send(self) -> io::Result<Vec<Moved>> {
        let opened = self.reserved.numbers().iter().filter_map(|&fd| {
            let flags = flags(fd)?;
            Some(Moved { fd, closes_on_exec: flags & libc::FD_CLOEXEC != 0 })
        });
        let opened: Vec<Moved> = opened.collect();
        opened.iter().try_for_each(|one| parcel::send(self.reserved.sender(), one.fd))?;
        Ok(opened)
    }
}

impl Drop for Private<'_> {
    fn drop(&mut self) {
        if !self.is_shared {
            close_all_but_the_first_three();
        }
    }
}

/// So that no handler runs on this thread: it would find other descriptors than it knows. Those that say that this thread itself
/// has failed are left.
pub(super) fn block_signals() {
    const OWN: [libc::c_int; 7] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS, libc::SIGABRT];
    // SAFETY: the set is ours, and filled before it is used.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigfillset(&raw mut set);
        for signal in OWN {
            libc::sigdelset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut());
    }
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

/// Another thread may have closed something before this table was copied: what is opened must not get a number that is not kept.
fn fill_holes(reserved: &Reserved) {
    let last = *reserved.range().end();
    while let Some(filler) = sys::duplicate(reserved.sender(), 0) {
        if filler > last {
            return sys::close(filler);
        }
    }
}

/// Of a number that is open.
fn flags(fd: RawFd) -> Option<libc::c_int> {
    // SAFETY: takes numbers and no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    (flags >= 0).then_some(flags)
}

/// Whether another thread of this process has this very thing under this number.
fn is_elsewhere(fd: RawFd, identity: Identity) -> io::Result<bool> {
    // SAFETY: takes nothing and cannot fail.
    let here = unsafe { libc::syscall(libc::SYS_gettid) }.to_string();
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?;
        if task.file_name().to_str() == Some(here.as_str()) {
            continue;
        }
        // An error: it is not open there, or the thread has gone.
        let there = fs::metadata(task.path().join(format!("fd/{fd}")));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (identity.device, identity.inode)) {
            return Ok(true);
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
