//! The few system calls that a child may make before it has any state of its own.
//!
//! What does not say otherwise may run inside a `pthread_atfork` child handler: raw system calls; no allocation, no lock, no
//! panic, no thread-local but libc's own `errno`, which [`Quiet`] puts back. Each function takes plain numbers: a wrong
//! number is an error of the kernel's, never undefined behaviour, which is why they are safe functions.
//!
//! Raw, because a name of libc's need not lead to libc: a library that is preloaded puts its own function there, and that may take
//! a lock (torsocks' `getpeername`) or ask another process (fakeroot's `fstat`). A thread of the parent may have held that lock
//! at the fork. `tests/interposed.rs` sees to it.

use std::mem::MaybeUninit;
use std::os::fd::RawFd;

/// A descriptor that an epoll watches, as `/proc/thread-self/fdinfo` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Watched {
    pub(crate) fd: RawFd,
    pub(crate) events: u32,
    pub(crate) token: u64,
}

/// What the kernel says a descriptor is: two descriptors of one socket agree, two sockets never do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::fork) struct Identity {
    pub(in crate::fork) device: u64,
    pub(in crate::fork) inode: u64,
}

/// What is open under a number.
#[derive(Clone, Copy, Debug)]
pub(in crate::fork) struct Open {
    pub(in crate::fork) identity: Identity,
    /// Only of sockets and nameless pipes does the identity tell one from all others that ever were: all epolls of a system share
    /// one, and a file that is opened twice has the same.
    pub(in crate::fork) is_socket: bool,
    /// With a name or without.
    pub(in crate::fork) is_pipe: bool,
}

/// What is behind a descriptor number, or `None` when the number is not open.
pub(in crate::fork) fn look(fd: RawFd) -> Option<Open> {
    let stat = stat(fd)?;
    let identity = Identity { device: stat.st_dev, inode: stat.st_ino };
    let kind = stat.st_mode & libc::S_IFMT;
    Some(Open { identity, is_socket: kind == libc::S_IFSOCK, is_pipe: kind == libc::S_IFIFO })
}

/// All that the kernel says of it. The kernel's structure is libc's on these architectures, and on the others nobody has looked.
pub(super) fn stat(fd: RawFd) -> Option<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    // SAFETY: `stat` is ours and what the kernel writes.
    let failed = unsafe { libc::syscall(libc::SYS_fstat, fd, stat.as_mut_ptr()) } != 0;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
    // SAFETY: `stat` is ours and large enough.
    let failed = unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0;
    // SAFETY: it is filled when 0 is returned.
    (!failed).then(|| unsafe { stat.assume_init() })
}

/// Whether a number is open and is that socket, or that other thing.
pub(in crate::fork) fn is(fd: RawFd, identity: Identity) -> bool {
    look(fd).is_some_and(|open| open.identity == identity)
}

/// Not in a handler. Whether a pipe has no name, so that nobody can open it once more.
pub(in crate::fork) fn is_nameless(pipe: RawFd) -> bool {
    const PIPEFS: u64 = 0x5049_5045;
    let mut stat = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `stat` is ours and large enough; it is filled when 0 is returned.
    unsafe { libc::fstatfs(pipe, stat.as_mut_ptr()) == 0 && stat.assume_init().f_type as u64 == PIPEFS }
}

/// Sees to it that a descriptor does not go on into a program that this process executes. An error is of no interest.
pub(in crate::fork) fn close_on_exec(fd: RawFd) {
    // SAFETY: takes numbers and no memory.
    unsafe {
        let flags = libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD);
        let closes = libc::c_long::from(libc::FD_CLOEXEC);
        if flags >= 0 && flags & closes == 0 {
            libc::syscall(libc::SYS_fcntl, fd, libc::F_SETFD, flags | closes);
        }
    }
}

/// `close(2)` by the raw system call: glibc's wrapper is a cancellation point.
pub(in crate::fork) fn close(fd: RawFd) {
    // SAFETY: takes a number and no memory. The caller owns the descriptor, or proved by its identity that it is an
    // inherited one that nothing in this process can reach.
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

/// Puts `from` over the number `over`, close-on-exec. False when the kernel refused (a lowered descriptor limit).
pub(in crate::fork) fn replace(from: RawFd, over: RawFd) -> bool {
    // SAFETY: takes numbers and no memory.
    unsafe { libc::syscall(libc::SYS_dup3, from, over, libc::O_CLOEXEC) == libc::c_long::from(over) }
}

/// A second descriptor of the same open socket, at the first free number from `at_least` on, or `None` when the table is
/// full.
pub(in crate::fork) fn duplicate(fd: RawFd, at_least: RawFd) -> Option<RawFd> {
    // SAFETY: takes numbers and no memory.
    descriptor(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_DUPFD_CLOEXEC, libc::c_long::from(at_least)) })
}

/// Ends a socket for every process that holds a copy of it. An error (not a socket, not connected) is of no interest.
pub(in crate::fork) fn shutdown(fd: RawFd) {
    // SAFETY: takes numbers and no memory.
    unsafe { libc::syscall(libc::SYS_shutdown, fd, libc::SHUT_RDWR) };
}

/// Two sockets that are connected to each other.
pub(in crate::fork) fn socket_pair() -> Option<[RawFd; 2]> {
    let mut pair = [-1; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `pair` is ours and has room for the two numbers.
    let failed = unsafe { libc::syscall(libc::SYS_socketpair, libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) };
    (failed == 0).then_some(pair)
}

/// A socket whose peer is gone: reads see the end of the stream, writes fail, and poll says hang-up.
pub(in crate::fork) fn dead_socket() -> Option<RawFd> {
    let [socket, peer] = socket_pair()?;
    close(peer);
    Some(socket)
}

/// The next best dead socket, for a table with a single free place: never connected, so every use of it fails.
pub(in crate::fork) fn unconnected_socket() -> Option<RawFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes numbers and no memory.
    descriptor(unsafe { libc::syscall(libc::SYS_socket, libc::AF_UNIX, kind, 0) })
}

/// Whether an epoll watches this file under this number. Asked by setting what is set already.
pub(in crate::fork) fn watches(epoll: RawFd, watched: Watched) -> bool {
    epoll_ctl(epoll, libc::EPOLL_CTL_MOD, watched)
}

/// Has an epoll of this process's own watch a descriptor. False if it does not.
pub(in crate::fork) fn watch(epoll: RawFd, watched: Watched) -> bool {
    epoll_ctl(epoll, libc::EPOLL_CTL_ADD, watched)
}

fn epoll_ctl(epoll: RawFd, what: libc::c_int, Watched { fd, events, token }: Watched) -> bool {
    let mut event = libc::epoll_event { events, u64: token };
    // SAFETY: `event` is ours; numbers that are no epoll, or not watched, are errors.
    unsafe { libc::syscall(libc::SYS_epoll_ctl, epoll, what, fd, &raw mut event) == 0 }
}

pub(in crate::fork) fn epoll() -> Option<RawFd> {
    // SAFETY: takes numbers and no memory.
    descriptor(unsafe { libc::syscall(libc::SYS_epoll_create1, libc::EPOLL_CLOEXEC) })
}

pub(in crate::fork) fn eventfd() -> Option<RawFd> {
    // SAFETY: takes numbers and no memory.
    descriptor(unsafe { libc::syscall(libc::SYS_eventfd2, 0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// A file in memory that swallows what is written into it; unlike an eventfd it can be told from all others.
pub(in crate::fork) fn sink() -> Option<RawFd> {
    /// Newer kernels ask for it, and older ones do not know it.
    const MFD_NOEXEC_SEAL: libc::c_uint = 8;
    [libc::MFD_CLOEXEC | MFD_NOEXEC_SEAL, libc::MFD_CLOEXEC].into_iter().find_map(|flags| {
        // SAFETY: a C string; takes no other memory.
        descriptor(unsafe { libc::syscall(libc::SYS_memfd_create, c"forksafe".as_ptr(), flags) })
    })
}

/// What a system call returns that makes one.
fn descriptor(returned: libc::c_long) -> Option<RawFd> {
    RawFd::try_from(returned).ok().filter(|&fd| fd >= 0)
}

/// Not in a handler. The monotonic clock, in milliseconds.
pub(in crate::fork) fn milliseconds() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours. The clock exists, so it is filled.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

pub(in crate::fork) fn pid() -> u32 {
    // SAFETY: takes nothing and cannot fail. Raw, because some C libraries have cached it across a clone.
    (unsafe { libc::syscall(libc::SYS_getpid) }) as u32
}

pub(in crate::fork) fn parent_pid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    (unsafe { libc::syscall(libc::SYS_getppid) }) as u32
}

pub(in crate::fork) fn yield_now() {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::syscall(libc::SYS_sched_yield) };
}

/// Gives this process a descriptor table of its own. Fails in a process that has threads already.
pub(in crate::fork) fn unshare_descriptors() -> bool {
    // SAFETY: takes numbers and no memory. CLONE_THREAD asks the kernel to refuse when there are other threads, which
    // would otherwise be left behind with the old table.
    if unsafe { libc::syscall(libc::SYS_unshare, libc::CLONE_THREAD | libc::CLONE_FILES) } == 0 {
        return true;
    }
    // Containers forbid unshare, but not this: to close no descriptor at all, in a table of one's own.
    let (none, unshare) = (libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE);
    // SAFETY: takes numbers and no memory.
    is_single_threaded() && unsafe { libc::syscall(libc::SYS_close_range, none, none, unshare) } == 0
}

/// Each thread is a folder there, and each folder a link. (This is about all threads; so it does not matter that
/// `/proc/self` is the first one's, which may have ended: it counts as one of them then.)
pub(in crate::fork) fn is_single_threaded() -> bool {
    let path = c"/proc/self/task".as_ptr();
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    // SAFETY: a C string, and `stat` is ours and what the kernel writes.
    let failed = unsafe { libc::syscall(libc::SYS_newfstatat, libc::AT_FDCWD, path, stat.as_mut_ptr(), 0) } != 0;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
    // SAFETY: a C string, and `stat` is ours and large enough.
    let failed = unsafe { libc::stat(path, stat.as_mut_ptr()) } != 0;
    // SAFETY: it is filled when 0 is returned.
    !failed && unsafe { stat.assume_init() }.st_nlink == 3
}

/// What can be known of the descriptor table of another process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::fork) enum Table {
    /// Not this process's, or there is no such process.
    Other,
    /// This process's, or it cannot be told.
    PerhapsOurs,
    Gone,
}

pub(in crate::fork) fn table_of(other: u32) -> Table {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: takes numbers and no memory. 0 is "the same", 1 to 3 are "not the same", -1 is "cannot tell".
    match unsafe { libc::syscall(libc::SYS_kcmp, pid(), other, KCMP_FILES, 0, 0) } {
        1.. => Table::Other,
        // SAFETY: errno is this thread's own.
        -1 if unsafe { *libc::__errno_location() } == libc::ESRCH => Table::Gone,
        _ => Table::PerhapsOurs,
    }
}

/// While it lives, no signal handler runs on this thread and `errno` is kept for whoever looks at it afterwards.
///
/// The mask is set by the raw system call, because glibc's leaves out the signals that it keeps for itself.
pub(in crate::fork) struct Quiet {
    mask: u64,
    errno: libc::c_int,
}

impl Quiet {
    pub(in crate::fork) fn begin() -> Self {
        // SAFETY: errno is this thread's own.
        let errno = unsafe { *libc::__errno_location() };
        Self { mask: set_signal_mask(u64::MAX), errno }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        set_signal_mask(self.mask);
        // SAFETY: errno is this thread's own.
        unsafe { *libc::__errno_location() = self.errno };
    }
}

fn set_signal_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: both sets are ours and as long as the size says (the kernel's set has 64 bits).
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut old, 8_usize) };
    old
}

/// One write to standard error, without the lock of std's that may have been held at the fork.
pub(in crate::fork) fn write_stderr(text: &[u8]) {
    // SAFETY: the pointer and the length are those of a slice.
    unsafe { libc::syscall(libc::SYS_write, libc::STDERR_FILENO, text.as_ptr(), text.len()) };
}

/// Not in a handler. Which second it is by the wall clock: the cheapest look at a clock that there is, without a system call.
#[inline]
pub(crate) fn wall_second() -> i64 {
    // SAFETY: a null pointer is not written to.
    unsafe { libc::time(std::ptr::null_mut()) }
}
