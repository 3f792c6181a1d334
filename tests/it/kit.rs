//! What several tests need.

use forksafe::testing::{self, Way, WitnessManager};
use forksafe::{Builder, ManageConnection, Pool};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A builder of pools that test each connection at each checkout. A machine that is busy for a second is not a server that is
/// silent.
pub(crate) fn tested<M: ManageConnection>() -> Builder<M> {
    Pool::builder().test_after(Duration::ZERO).test_timeout(testing::patience() / 2)
}

/// A door between processes: whoever comes to it waits until somebody opens it for one.
pub(crate) struct Door(OwnedFd, OwnedFd);

impl Door {
    pub(crate) fn new() -> Self {
        let mut ends = [-1; 2];
        // SAFETY: room for two descriptors, which are then ours.
        unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            Self(OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        }
    }

    pub(crate) fn open(&self) {
        // SAFETY: one byte of a static.
        assert_eq!(unsafe { libc::write(self.1.as_raw_fd(), b"x".as_ptr().cast(), 1) }, 1);
    }

    pub(crate) fn pass(&self) {
        let mut byte = 0_u8;
        // SAFETY: one byte of ours.
        assert_eq!(unsafe { libc::read(self.0.as_raw_fd(), (&raw mut byte).cast(), 1) }, 1);
    }

    /// How many could pass at once.
    pub(crate) fn waiting(&self) -> i32 {
        let mut bytes = 0;
        // SAFETY: a number of ours.
        assert_eq!(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::FIONREAD, &raw mut bytes) }, 0);
        bytes
    }
}

/// Tells the other threads of a scope to end, also when this one panics: the scope waits for them.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Does something when it is dropped: by unwinding code, say.
pub(crate) struct WhenDropped<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for WhenDropped<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// The ways that this machine permits; says which it does not. `FORKSAFE_ONLY_FORK` is for tools that know no other.
pub(crate) fn ways() -> impl Iterator<Item = Way> + Clone {
    let only_fork = std::env::var_os("FORKSAFE_ONLY_FORK").is_some();
    Way::ALL.iter().copied().filter(move |&way| if only_fork { way == Way::Fork } else { is_permitted(way) })
}

fn is_permitted(way: Way) -> bool {
    match way.available() {
        Ok(()) => true,
        Err(why) => {
            println!("NOT RUN: {why}");
            false
        }
    }
}

/// Of those, the ways by which a child can make the next. Without the page a child of pid 1 is not told from its parent of
/// pid 1, if no handler runs.
pub(crate) fn nestable_ways() -> impl Iterator<Item = Way> {
    let has_page = std::env::var_os("FORKSAFE_WITHOUT_PAGE").is_none();
    ways().filter(move |way| has_page || *way != Way::NewPidNamespace)
}

/// From here on this process and its children are denied a system call, as by a container: it does nothing and says
/// `errno`, or with 0 that all is well. `only`: if the argument of this place, from 0, is this number.
pub(crate) fn deny(call: libc::c_long, only: Option<(u32, u32)>, errno: i32) {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let (jump, end) = (libc::BPF_JMP | libc::BPF_K, libc::BPF_RET | libc::BPF_K);
    // Every number is at least 0.
    let (test, place, value) = only.map_or((libc::BPF_JGE, 0, 0), |(place, value)| (libc::BPF_JEQ, place, value));
    let low_half = if cfg!(target_endian = "big") { 4 } else { 0 };
    let mut program = [
        step(load, 0, 0, 0),
        step(jump | libc::BPF_JEQ, 0, 3, call as u32),
        step(load, 0, 0, 16 + 8 * place + low_half),
        step(jump | test, 0, 1, value),
        step(end, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        step(end, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is read during the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

/// In this process and its children: `/proc` is an empty folder.
pub(crate) fn hide_proc() {
    let (none, proc_) = (c"none".as_ptr(), c"/proc".as_ptr());
    let private = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: takes numbers and C strings.
    unsafe {
        assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "this test needs root: {}", io::Error::last_os_error());
        assert_eq!(libc::mount(none, c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()), 0);
        assert_eq!(libc::mount(none, proc_, c"tmpfs".as_ptr(), 0, std::ptr::null()), 0);
    }
}

/// Gives this process a network of its own, with nothing in it but `lo`, which is up.
pub(crate) fn own_network() {
    // SAFETY: takes a number.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "this test needs root: {}", io::Error::last_os_error());
    ask_loopback(libc::SIOCSIFFLAGS, |request| request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short);
    set_address(Ipv4Addr::LOCALHOST);
}

/// In a network of our own: whether there is a route to 127.0.0.1. Where there is none, nothing that is sent there gets as far as a queue.
pub(crate) fn set_route_to_here(is_there: bool) {
    set_address(if is_there { Ipv4Addr::LOCALHOST } else { Ipv4Addr::new(10, 0, 0, 1) });
}

fn set_address(address: Ipv4Addr) {
    ask_loopback(libc::SIOCSIFADDR, |request| {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from(address).to_be() },
            sin_zero: [0; 8],
        };
        // SAFETY: both are an address of 16 bytes.
        request.ifr_ifru.ifru_addr = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    });
}

fn ask_loopback(what: libc::Ioctl, fill: impl FnOnce(&mut libc::ifreq)) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // SAFETY: all of it is plain numbers; the kernel reads a name and what was filled in out of it.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
            *to = *from as libc::c_char;
        }
        fill(&mut request);
        assert_eq!(libc::ioctl(socket.as_raw_fd(), what, &raw const request), 0, "{}", io::Error::last_os_error());
    }
}

/// While it lives, another thread takes the lowest free descriptor number and gives it back, without a pause.
pub(crate) struct TakesNumbers(Arc<AtomicBool>);

impl TakesNumbers {
    pub(crate) fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stopped.load(Ordering::SeqCst) {
                // SAFETY: takes numbers; the new descriptor is this thread's own.
                unsafe { libc::close(libc::fcntl(2, libc::F_DUPFD_CLOEXEC, 0)) };
            }
        });
        Self(stop)
    }
}

impl Drop for TakesNumbers {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub(crate) fn is_alive(pid: u32) -> bool {
    // SAFETY: takes numbers.
    unsafe { libc::kill(pid as i32, 0) == 0 }
}

/// Whether it runs no more, though perhaps nobody has waited for it yet: whoever takes in orphans on this machine may take his
/// time.
pub(crate) fn has_ended(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.is_empty() || rest.trim_start().starts_with('Z'))
}

/// Whether two processes' descriptors are one open file: what one does to it the other sees.
pub(crate) fn are_same_file(pid: u32, fd: RawFd, other_pid: u32, other_fd: RawFd) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    // SAFETY: takes numbers.
    match unsafe { libc::syscall(libc::SYS_kcmp, pid, other_pid, KCMP_FILE, fd, other_fd) } {
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EBADF) => false,
        -1 => panic!("kcmp: {}", io::Error::last_os_error()),
        order => order == 0,
    }
}

/// Whether a number is here what it is there.
pub(crate) fn is_same_file(other_pid: u32, fd: RawFd) -> bool {
    are_same_file(std::process::id(), fd, other_pid, fd)
}

pub(crate) fn kill(pid: u32, signal: i32) {
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::kill(pid as i32, signal) }, 0, "kill: {}", io::Error::last_os_error());
}

/// What [`leave`] ends a child with if all was well. Not 0: that is how a process ends whose last thread does, as the one
/// of a child that panics on its way to `leave` and unwinds into the harness.
const LEFT: i32 = 90;

/// A bare fork: returns twice. The child must leave by [`leave`].
pub(crate) fn fork() -> Option<i32> {
    // SAFETY: the tests of this program are about what a child may do.
    match unsafe { libc::fork() } {
        0 => None,
        child if child > 0 => Some(child),
        _ => panic!("fork: {}", io::Error::last_os_error()),
    }
}

/// A fork that runs no handlers: returns twice, as [`fork`].
pub(crate) fn raw_fork() -> Option<i32> {
    // SAFETY: as in `fork`.
    match unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(libc::SIGCHLD), 0, 0, 0, 0) } {
        0 => None,
        child if child > 0 => Some(child as i32),
        _ => panic!("clone: {}", io::Error::last_os_error()),
    }
}

/// Ends a child of [`fork`]. Its [`exit_code`] is 0 if `body` did not panic.
pub(crate) fn leave(body: impl FnOnce()) -> ! {
    let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok();
    // SAFETY: ends the process.
    unsafe { libc::_exit(if ok { LEFT } else { 1 }) }
}

/// How a child of [`fork`] ended: 0 if it came to [`leave`] and its body did not panic.
#[track_caller]
pub(crate) fn exit_code(child: i32) -> i32 {
    let until = std::time::Instant::now() + testing::patience();
    let mut status = 0;
    // SAFETY: `status` is ours.
    while unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == 0 {
        if std::time::Instant::now() > until {
            kill(child as u32, libc::SIGKILL);
            panic!("child {child} hung");
        }
        std::thread::yield_now();
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, LEFT) => 0,
        (true, 0) => panic!("child {child} ended on its way to `leave`"),
        (true, code) => code,
        (false, _) => -libc::WTERMSIG(status),
    }
}

/// Waits for the end of a child of [`fork`], whatever it is.
pub(crate) fn wait(child: i32) {
    // SAFETY: takes numbers, and no status.
    assert_eq!(unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) }, child);
}

/// The connection's number at the witness, and that the answer is to the question.
pub(crate) fn ask(pool: &Pool<WitnessManager>) -> u64 {
    pool.get().unwrap().ask("who am I to you").unwrap().connection
}
