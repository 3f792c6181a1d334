//! The system calls of the net. As those of [`sys`](crate::fork::handler::sys): plain numbers in, raw, nothing but `errno` touched.

use crate::fork::handler::disown::Birth;
use std::ffi::CStr;
use std::mem::{self, MaybeUninit};
use std::os::fd::RawFd;

/// What is under a number.
#[allow(clippy::large_enum_variant, reason = "nothing is allocated here")]
pub(super) enum Socket {
    Closed,
    /// Open, and no socket.
    None,
    /// TCP, and what the kernel says of it.
    Tcp(TcpInfo),
    /// A socket, and not TCP.
    Other,
    /// The question is forbidden.
    Unknown,
}

/// The head of the kernel's `struct tcp_info` (`linux/tcp.h`), which only ever grows at its end.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct TcpInfo {
    pub(super) state: u8,
    options: [u8; 23],
    /// Packets.
    pub(super) unacked: u32,
    times: [u8; 92],
    pub(super) bytes_acked: u64,
    received: [u8; 8],
    pub(super) segs_out: u32,
    pub(super) segs_in: u32,
    pub(super) notsent_bytes: u32,
    rates: [u8; 52],
    pub(super) bytes_sent: u64,
    pub(super) bytes_retrans: u64,
    /// How much of it the kernel has filled.
    pub(super) filled: usize,
}

/// Up to the field that is ours.
const ROOM: usize = mem::offset_of!(TcpInfo, filled);

/// One call for each number, which tells all four apart: 0.06 µs, and 0.2 for TCP. (To poll all of them at once would be one call for
/// many, but a poll is not innocent: it asks whoever serves a FUSE file, and takes the news off a `/proc/self/mounts`.)
pub(super) fn look(fd: RawFd) -> Socket {
    let mut info = MaybeUninit::<TcpInfo>::zeroed();
    let mut size = ROOM as libc::socklen_t;
    // SAFETY: `info` is ours and has `ROOM` bytes; a wrong number is an error.
    let failed = unsafe {
        libc::syscall(libc::SYS_getsockopt, fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr(), &raw mut size)
    } != 0;
    if !failed {
        // SAFETY: all of it is plain numbers, and it was zeroed.
        let mut info = unsafe { info.assume_init() };
        info.filled = size as usize;
        return Socket::Tcp(info);
    }
    match errno() {
        libc::EBADF => Socket::Closed,
        libc::ENOTSOCK => Socket::None,
        libc::EOPNOTSUPP | libc::ENOPROTOOPT => Socket::Other,
        _ => Socket::Unknown,
    }
}

/// Whether [`look`] says of closed numbers that they are. A container that forbids the question has one answer for all, and
/// there is no end of them.
pub(super) fn tells_closed() -> bool {
    matches!(look(-1), Socket::Closed)
}

pub(super) fn is_open(fd: RawFd) -> bool {
    // SAFETY: takes numbers and no memory.
    unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD) >= 0 }
}

/// Bytes that were written and are not acknowledged.
pub(super) fn unacknowledged(fd: RawFd) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `bytes` is ours; a wrong number is an error.
    let failed = unsafe { libc::syscall(libc::SYS_ioctl, fd, libc::TIOCOUTQ, &raw mut bytes) != 0 };
    if failed { None } else { u64::try_from(bytes).ok() }
}

/// An address as the kernel writes it, and how long it is.
pub(super) type Address = (libc::sockaddr_storage, usize);

pub(super) fn peer_address(fd: RawFd) -> Option<Address> {
    address(fd, libc::SYS_getpeername)
}

/// Without a name it has no more than its family.
pub(super) fn local_address(fd: RawFd) -> Option<Address> {
    address(fd, libc::SYS_getsockname)
}

/// 0 if it has none yet.
pub(super) fn local_port(fd: RawFd) -> Option<u16> {
    let (address, _) = local_address(fd)?;
    match libc::c_int::from(address.ss_family) {
        // SAFETY: a storage has room for, and the alignment of, every kind of address, and its family says which it is.
        libc::AF_INET => Some(u16::from_be(unsafe { (*(&raw const address).cast::<libc::sockaddr_in>()).sin_port })),
        // SAFETY: as above.
        libc::AF_INET6 => Some(u16::from_be(unsafe { (*(&raw const address).cast::<libc::sockaddr_in6>()).sin6_port })),
        _ => None,
    }
}

/// `ask` is one of the two calls that write an address.
fn address(fd: RawFd, ask: libc::c_long) -> Option<Address> {
    // SAFETY: addresses are plain numbers.
    let mut address: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut size = mem::size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is ours and `size` says how large; a wrong number is an error.
    let failed = unsafe { libc::syscall(ask, fd, &raw mut address, &raw mut size) != 0 };
    (!failed).then(|| (address, (size as usize).min(mem::size_of_val(&address))))
}

/// `SOCK_STREAM`, `SOCK_DGRAM` and so on.
pub(super) fn kind(fd: RawFd) -> Option<libc::c_int> {
    option(fd, libc::SO_TYPE)
}

pub(super) fn reuses_address(fd: RawFd) -> bool {
    option(fd, libc::SO_REUSEADDR).is_some_and(|does| does != 0)
}

pub(super) fn is_listening(fd: RawFd) -> bool {
    option(fd, libc::SO_ACCEPTCONN).is_some_and(|is| is != 0)
}

fn option(fd: RawFd, which: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is ours and `size` says how large; a wrong number is an error.
    let failed =
        unsafe { libc::syscall(libc::SYS_getsockopt, fd, libc::SOL_SOCKET, which, &raw mut value, &raw mut size) != 0 };
    (!failed).then_some(value)
}

/// Something is put under a number, and whether that goes on into programs that are executed stays as it was. Whether it is there.
pub(super) fn keeping_flags(fd: RawFd, put: impl FnOnce() -> bool) -> bool {
    let closes_on_exec = closes_on_exec(fd);
    let is_there = put();
    if is_there && !closes_on_exec {
        // SAFETY: takes numbers and no memory.
        unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_SETFD, 0) };
    }
    is_there
}

pub(super) fn closes_on_exec(fd: RawFd) -> bool {
    // SAFETY: takes numbers and no memory.
    let flags = unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD) };
    flags < 0 || flags & libc::c_long::from(libc::FD_CLOEXEC) != 0
}

/// Whether a process has the very same open file under this number. `None` if it cannot be asked.
pub(super) fn is_same_file(fd: RawFd, pid: u32) -> Option<bool> {
    compare_files(fd, pid, fd)
}

fn compare_files(fd: RawFd, pid: u32, other: RawFd) -> Option<bool> {
    const KCMP_FILE: libc::c_int = 0;
    // SAFETY: takes numbers and no memory. 0 is "the same", 1 to 3 are "not the same".
    match unsafe { libc::syscall(libc::SYS_kcmp, super::sys::pid(), pid, KCMP_FILE, fd, other) } {
        0 => Some(true),
        1.. => Some(false),
        // There is nothing under this number.
        _ if errno() == libc::EBADF => Some(false),
        _ => None,
    }
}

/// The descriptors of this thread's process, as a folder. `/proc/self` is found sooner, but it is the first thread's, which may have
/// ended; not so at birth.
pub(super) fn open_folder(birth: Birth) -> Option<RawFd> {
    let path = match birth {
        Birth::Handler => c"/proc/self/fd",
        Birth::FirstCall => c"/proc/thread-self/fd",
    };
    open(path, libc::O_RDONLY | libc::O_DIRECTORY)
}

/// What the kernel tells of one of these descriptors.
pub(super) fn open_info(birth: Birth, fd: super::epolls::Path) -> Option<RawFd> {
    let folder = match birth {
        Birth::Handler => c"/proc/self/fdinfo",
        Birth::FirstCall => c"/proc/thread-self/fdinfo",
    };
    let folder = open(folder, libc::O_PATH | libc::O_DIRECTORY)?;
    // SAFETY: a string that ends with a zero byte; takes no other memory.
    let fd = unsafe { libc::syscall(libc::SYS_openat, folder, fd.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0) };
    super::sys::close(folder);
    RawFd::try_from(fd).ok().filter(|&fd| fd >= 0)
}

/// How much was read.
pub(super) fn read(fd: RawFd, into: &mut [u8]) -> Option<usize> {
    // SAFETY: the pointer and the length are those of a slice.
    usize::try_from(unsafe { libc::syscall(libc::SYS_read, fd, into.as_mut_ptr(), into.len()) }).ok()
}

/// Asked by taking something off it that it does not watch: no inherited epoll watches what this process has made, `other`.
pub(super) fn is_epoll(fd: RawFd, other: RawFd) -> bool {
    let nothing = std::ptr::null_mut::<libc::epoll_event>();
    // SAFETY: for this there is no event; wrong numbers are errors.
    let failed = unsafe { libc::syscall(libc::SYS_epoll_ctl, fd, libc::EPOLL_CTL_DEL, other, nothing) < 0 };
    failed && errno() == libc::ENOENT
}

/// Whether an epoll watches, under its number, the file that is there now. `None` if it cannot be asked.
pub(super) fn watches_file(epoll: RawFd, fd: RawFd) -> Option<bool> {
    // It may watch files that had the number before.
    for which in 0.. {
        match compare_watched(epoll, fd, which, fd) {
            0 => return Some(true),
            1.. => {}
            _ if matches!(errno(), libc::ENOENT | libc::EBADF) => return Some(false),
            _ => return None,
        }
    }
    None
}

/// Whether two numbers are of one open file. `None` if nobody says so.
pub(super) fn are_one(one: RawFd, other: RawFd) -> Option<bool> {
    /// From Linux 6.10 on; older ones take it for a mistake.
    const F_DUPFD_QUERY: libc::c_int = 1027;
    // SAFETY: takes numbers and no memory.
    match unsafe { libc::syscall(libc::SYS_fcntl, one, F_DUPFD_QUERY, libc::c_long::from(other)) } {
        0 => Some(false),
        1.. => Some(true),
        _ => compare_files(one, super::sys::pid(), other),
    }
}

/// Both ends.
pub(super) fn pipe() -> Option<[RawFd; 2]> {
    let mut ends = [-1; 2];
    // SAFETY: room for both numbers.
    let failed = unsafe { libc::syscall(libc::SYS_pipe2, ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 };
    (!failed).then_some(ends)
}

/// Whether an epoll watches something under a number. `None` if it cannot be asked. `any` is an open number.
pub(super) fn watches_number(epoll: RawFd, number: RawFd, any: RawFd) -> Option<bool> {
    match compare_watched(epoll, number, 0, any) {
        0.. => Some(true),
        _ if errno() == libc::ENOENT => Some(false),
        _ => None,
    }
}

/// With that of the things watched under a number, which may be several.
fn compare_watched(epoll: RawFd, number: RawFd, which: RawFd, with: RawFd) -> libc::c_long {
    const KCMP_EPOLL_TFD: libc::c_int = 7;
    // `struct kcmp_epoll_slot`.
    let slot = [epoll, number, which];
    let own = super::sys::pid();
    // SAFETY: the slot is ours; wrong numbers are errors.
    unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_EPOLL_TFD, with, slot.as_ptr()) }
}

/// In a full table, as far beyond it as this process may have numbers.
fn open(path: &CStr, flags: libc::c_int) -> Option<RawFd> {
    let open = || {
        // SAFETY: a C string; takes no other memory. Raw, because glibc's wrapper is a cancellation point.
        let fd =
            unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags | libc::O_CLOEXEC, 0o644) };
        RawFd::try_from(fd).ok().filter(|&fd| fd >= 0)
    };
    open().or_else(|| {
        if errno() != libc::EMFILE {
            return None;
        }
        let limit = descriptor_limit()?;
        set_descriptor_limit(libc::rlimit { rlim_cur: limit.rlim_max, ..limit });
        let opened = open();
        set_descriptor_limit(limit);
        opened
    })
}

/// What a folder of descriptors says of those from one on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Next {
    Is(RawFd),
    /// There are no more.
    None,
    Unknown,
}

/// The kernel counts `.` and `..`, and then positions are numbers.
pub(super) fn next_open(folder: RawFd, from: RawFd) -> Next {
    /// Of `struct linux_dirent64`: where the name begins.
    const NAME: usize = 19;
    #[repr(align(8))]
    struct Room([u8; 64]);
    let mut room = Room([0; 64]);
    // SAFETY: `room` is ours and its size is said; wrong numbers are errors.
    let read = unsafe {
        if libc::syscall(libc::SYS_lseek, folder, libc::off_t::from(from) + 2, libc::SEEK_SET) < 0 {
            return Next::Unknown;
        }
        libc::syscall(libc::SYS_getdents64, folder, room.0.as_mut_ptr(), room.0.len())
    };
    match read {
        0 => Next::None,
        1.. => match number(room.0.get(NAME..).unwrap_or_default()) {
            Some(number) if number >= from => Next::Is(number),
            _ => Next::Unknown,
        },
        _ => Next::Unknown,
    }
}

/// In decimal digits, up to a zero byte.
fn number(name: &[u8]) -> Option<RawFd> {
    let mut number: RawFd = 0;
    for (place, &digit) in name.iter().enumerate() {
        match digit {
            0 if place > 0 => return Some(number),
            b'0'..=b'9' => number = number.checked_mul(10)?.checked_add(RawFd::from(digit - b'0'))?,
            _ => return None,
        }
    }
    None
}

/// No number from this on is asked for: that takes a tenth of a second.
const MOST: RawFd = 1 << 20;

/// The number below which all descriptors lie. A child's table is no larger than its highest descriptor asks for, and its size is found by
/// asking: `pselect` passes over what is beyond the table, and says of a closed number within it that it is wrong. Where it does not say
/// so there is the limit, if that has never been lowered.
pub(super) fn end_of_table() -> RawFd {
    let limit = || descriptor_limit().and_then(|limit| RawFd::try_from(limit.rlim_max).ok()).unwrap_or(MOST).min(MOST);
    let Some(bits) = Bits::new() else { return limit() };
    let mut size = 64;
    while size < MOST {
        match bits.select(size) {
            Selected::Beyond => return size,
            Selected::Closed => size *= 2,
            Selected::Unknown if is_open(size) => size *= 2,
            Selected::Unknown => return limit(),
        }
    }
    MOST
}

enum Selected {
    Beyond,
    Closed,
    Unknown,
}

/// A bit for each number.
struct Bits(*mut u64);

impl Bits {
    const SIZE: usize = MOST as usize / 8;

    fn new() -> Option<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, which nobody else has.
        let memory = unsafe { libc::syscall(libc::SYS_mmap, 0_usize, Self::SIZE, access, kind, -1, 0_usize) };
        // An error is a small negative number.
        (memory > 0).then_some(Self(memory as *mut u64))
    }

    /// Of a number below [`MOST`]. A file that is there would be polled, which is not innocent: so that is looked at before.
    fn select(&self, fd: RawFd) -> Selected {
        if is_open(fd) {
            return Selected::Unknown;
        }
        let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let none = std::ptr::null::<u64>();
        // SAFETY: `fd` is less than `MOST`, so its word is one of ours; and the kernel reads and writes no more bits than those up to it.
        unsafe {
            let word = self.0.add(fd as usize / 64);
            *word = 1 << (fd % 64);
            let result = libc::syscall(libc::SYS_pselect6, fd + 1, self.0, none, none, &raw const no_time, none);
            let error = errno();
            *word = 0;
            match result {
                0.. => Selected::Beyond,
                _ if error == libc::EBADF => Selected::Closed,
                _ => Selected::Unknown,
            }
        }
    }
}

impl Drop for Bits {
    fn drop(&mut self) {
        // SAFETY: it is ours, and of this size.
        unsafe { libc::syscall(libc::SYS_munmap, self.0, Self::SIZE) };
    }
}

fn descriptor_limit() -> Option<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let (this, none) = (0, std::ptr::null::<libc::rlimit>());
    // SAFETY: `limit` is ours, and nothing is set.
    let failed = unsafe { libc::syscall(libc::SYS_prlimit64, this, libc::RLIMIT_NOFILE, none, &raw mut limit) != 0 };
    (!failed).then_some(limit)
}

fn set_descriptor_limit(limit: libc::rlimit) {
    let (this, none) = (0, std::ptr::null_mut::<libc::rlimit>());
    // SAFETY: `limit` is ours, and nothing is asked.
    unsafe { libc::syscall(libc::SYS_prlimit64, this, libc::RLIMIT_NOFILE, &raw const limit, none) };
}

/// At once.
pub(super) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: ends the process.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
    }
}

fn errno() -> libc::c_int {
    // SAFETY: errno is this thread's own.
    unsafe { *libc::__errno_location() }
}

/// `linux/tcp.h` has them there.
const _: () = {
    assert!(mem::offset_of!(TcpInfo, unacked) == 24);
    assert!(mem::offset_of!(TcpInfo, bytes_acked) == 120);
    assert!(mem::offset_of!(TcpInfo, segs_out) == 136);
    assert!(mem::offset_of!(TcpInfo, notsent_bytes) == 144);
    assert!(mem::offset_of!(TcpInfo, bytes_sent) == 200);
};

/// A file, as `fstat` tells one from another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::fork) struct File {
    device: u64,
    inode: u64,
    /// Of which device it is the file, if it is a device's.
    represents: u64,
    /// `S_IFREG` and so on.
    pub(super) kind: libc::mode_t,
}

pub(super) fn file(fd: RawFd) -> Option<File> {
    let stat = super::sys::stat(fd)?;
    let kind = stat.st_mode & libc::S_IFMT;
    Some(File { device: stat.st_dev, inode: stat.st_ino, represents: stat.st_rdev, kind })
}

/// Whether it was opened to append, and goes on into programs that are executed.
pub(super) fn is_log(fd: RawFd) -> bool {
    // SAFETY: takes numbers and no memory.
    let flags = unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::c_long::from(libc::O_APPEND) != 0 && !closes_on_exec(fd)
}

pub(super) fn is_terminal(fd: RawFd) -> bool {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: `settings` is ours, and larger than what the kernel writes; a wrong number is an error.
    unsafe { libc::syscall(libc::SYS_ioctl, fd, libc::TCGETS, settings.as_mut_ptr()) == 0 }
}

const TO_WRITE: libc::c_int = libc::O_WRONLY | libc::O_NOCTTY | libc::O_NONBLOCK;

/// To the end of a file, which is made if it is not there. Not through a link.
pub(super) fn open_to_append(path: &CStr) -> Option<RawFd> {
    open(path, TO_WRITE | libc::O_APPEND | libc::O_CREAT | libc::O_NOFOLLOW)
}

/// What standard error is, opened once more: that one does not wait, and the parent's is as it was. `None` where there is no `/proc`, or it
/// is another user's, or a pipe that nobody reads.
pub(super) fn open_standard_error() -> Option<RawFd> {
    open(c"/proc/thread-self/fd/2", TO_WRITE)
}

/// Whether a write would not wait, as it seems. Of a pipe: a page.
pub(super) fn has_room(fd: RawFd) -> bool {
    let mut asked = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both are ours, and one is what there is; no mask is set.
    let there =
        unsafe { libc::syscall(libc::SYS_ppoll, &raw mut asked, 1, &raw mut now, std::ptr::null::<u64>(), SIGNAL_SET) };
    there == 1 && asked.revents == libc::POLLOUT
}

/// One write. False if not all of it was written. The signals that come with an error have to be blocked, and are taken back.
pub(super) fn write(fd: RawFd, text: &[u8]) -> bool {
    let pending = pending_signals();
    // SAFETY: the pointer and the length are those of a slice.
    let written = unsafe { libc::syscall(libc::SYS_write, fd, text.as_ptr(), text.len()) };
    if written < 0 {
        let signal = match errno() {
            libc::EPIPE => bit_of(libc::SIGPIPE),
            libc::EFBIG => bit_of(libc::SIGXFSZ),
            _ => 0,
        };
        take_back(signal & !pending);
    }
    usize::try_from(written).is_ok_and(|written| written == text.len())
}

/// One write into a socket, which neither waits nor brings a signal. False if not all of it was written.
pub(super) fn send(fd: RawFd, text: &[u8]) -> bool {
    let (flags, nobody) = (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL, std::ptr::null::<libc::sockaddr>());
    // SAFETY: the pointer and the length are those of a slice, and there is no address.
    let sent = unsafe { libc::syscall(libc::SYS_sendto, fd, text.as_ptr(), text.len(), flags, nobody, 0) };
    usize::try_from(sent).is_ok_and(|sent| sent == text.len())
}

/// The kernel's set of signals has 64 bits. Its size in bytes.
const SIGNAL_SET: usize = 8;

fn bit_of(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

pub(super) fn pending_signals() -> u64 {
    let mut pending = 0_u64;
    // SAFETY: the set is ours and as long as the size says.
    unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, SIGNAL_SET) };
    pending
}

/// Those of these signals that have come, one of each.
fn take_back(signals: u64) {
    let (nothing, now) = (std::ptr::null_mut::<libc::siginfo_t>(), libc::timespec { tv_sec: 0, tv_nsec: 0 });
    if signals != 0 {
        // SAFETY: set and time are ours, and the set is as long as the size says.
        unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, &raw const signals, nothing, &raw const now, SIGNAL_SET) };
    }
}

#[cfg(all(test, feature = "testing", not(forksafe_loom)))]
mod tests {
    use super::*;
    use crate::testing::{child, clean_process};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn the_table_of_a_child_ends_not_far_beyond_its_highest_number() {
        clean_process(|| {
            let file = File::open("/dev/null").unwrap();
            for highest in [63, 64, 127, 128, 300, 511, 512] {
                // SAFETY: takes numbers.
                assert_eq!(unsafe { libc::dup3(file.as_raw_fd(), highest, libc::O_CLOEXEC) }, highest);
                let end = child(end_of_table).join();
                assert!(highest < end && end <= (highest + 1).max(128) * 2, "{end} is no end of {highest}");
                // SAFETY: takes a number, of ours.
                unsafe { libc::close(highest) };
            }
        });
    }
}
