//! In a fork handler nothing is called that another library can have put its own function in the place of. This program does
//! so itself, as a library that is preloaded does.

// On others `fstat` is libc's, in the handler as well.
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]

use forksafe::fork::net::{Mode, Policy};
use forksafe::fork::{self, generation};
use forksafe::postgres::PostgresManager;
use forksafe::testing::{PrivatePostgres, Witness, child, clean_process};
use forksafe::{ManageConnection, Pool};
use libc::{c_char, c_int, c_uint, c_ulong, c_void, epoll_event, mode_t, off_t, rlimit, size_t, sockaddr, socklen_t};
use postgres::NoTls;
use std::cell::Cell;
use std::io::Write;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering::*};

/// Defines functions of libc's, which do what they do there, by these system calls; and which note that they were called.
macro_rules! interposed {
    ($($name:ident($($argument:ident: $kind:ty),*) -> $result:ty = $call:ident($($passed:expr),*);)*) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            // SAFETY: it does what libc's does.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
                note(stringify!($name));
                // SAFETY: the caller's promises are passed on.
                unsafe { libc::syscall(libc::$call $(, $passed)*) as $result }
            }
        )*
    };
}

// Of an argument that is not always there the kernel knows when it is.
interposed! {
    getpid() -> c_int = SYS_getpid();
    getppid() -> c_int = SYS_getppid();
    sched_yield() -> c_int = SYS_sched_yield();
    unshare(flags: c_int) -> c_int = SYS_unshare(flags);
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = SYS_openat(libc::AT_FDCWD, path, flags, mode);
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int = SYS_openat(libc::AT_FDCWD, path, flags, mode);
    openat(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = SYS_openat(at, path, flags, mode);
    openat64(at: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int = SYS_openat(at, path, flags, mode);
    close(fd: c_int) -> c_int = SYS_close(fd);
    dup(fd: c_int) -> c_int = SYS_dup(fd);
    dup3(fd: c_int, over: c_int, flags: c_int) -> c_int = SYS_dup3(fd, over, flags);
    fcntl(fd: c_int, what: c_int, argument: c_ulong) -> c_int = SYS_fcntl(fd, what, argument);
    fcntl64(fd: c_int, what: c_int, argument: c_ulong) -> c_int = SYS_fcntl(fd, what, argument);
    ioctl(fd: c_int, what: c_ulong, argument: *mut c_void) -> c_int = SYS_ioctl(fd, what, argument);
    fstat(fd: c_int, into: *mut libc::stat) -> c_int = SYS_fstat(fd, into);
    stat(path: *const c_char, into: *mut libc::stat) -> c_int = SYS_newfstatat(libc::AT_FDCWD, path, into, 0);
    lseek(fd: c_int, offset: off_t, from: c_int) -> off_t = SYS_lseek(fd, offset, from);
    lseek64(fd: c_int, offset: off_t, from: c_int) -> off_t = SYS_lseek(fd, offset, from);
    read(fd: c_int, into: *mut c_void, size: size_t) -> isize = SYS_read(fd, into, size);
    write(fd: c_int, from: *const c_void, size: size_t) -> isize = SYS_write(fd, from, size);
    socket(family: c_int, kind: c_int, protocol: c_int) -> c_int = SYS_socket(family, kind, protocol);
    socketpair(family: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int =
        SYS_socketpair(family, kind, protocol, pair);
    shutdown(fd: c_int, how: c_int) -> c_int = SYS_shutdown(fd, how);
    getsockname(fd: c_int, name: *mut sockaddr, size: *mut socklen_t) -> c_int = SYS_getsockname(fd, name, size);
    getpeername(fd: c_int, name: *mut sockaddr, size: *mut socklen_t) -> c_int = SYS_getpeername(fd, name, size);
    getsockopt(fd: c_int, level: c_int, which: c_int, value: *mut c_void, size: *mut socklen_t) -> c_int =
        SYS_getsockopt(fd, level, which, value, size);
    epoll_create1(flags: c_int) -> c_int = SYS_epoll_create1(flags);
    epoll_ctl(epoll: c_int, what: c_int, fd: c_int, event: *mut epoll_event) -> c_int =
        SYS_epoll_ctl(epoll, what, fd, event);
    eventfd(count: c_uint, flags: c_int) -> c_int = SYS_eventfd2(count, flags);
    memfd_create(name: *const c_char, flags: c_uint) -> c_int = SYS_memfd_create(name, flags);
    getrlimit(which: c_uint, into: *mut rlimit) -> c_int =
        SYS_prlimit64(0, which, std::ptr::null::<rlimit>(), into);
    setrlimit(which: c_uint, to: *const rlimit) -> c_int =
        SYS_prlimit64(0, which, to, std::ptr::null_mut::<rlimit>());
    mmap(at: *mut c_void, size: size_t, access: c_int, kind: c_int, fd: c_int, offset: off_t) -> *mut c_void =
        SYS_mmap(at, size, access, kind, fd, offset);
    munmap(at: *mut c_void, size: size_t) -> c_int = SYS_munmap(at, size);
}

static CALLS: [AtomicU32; NAMES.len()] = [const { AtomicU32::new(0) }; NAMES.len()];

thread_local! {
    /// This thread is in the handlers that lie between ours.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// May run in a handler.
fn note(name: &str) {
    if INSIDE.get()
        && let Some(place) = NAMES.iter().position(|one| *one == name)
    {
        CALLS[place].fetch_add(1, Relaxed);
    }
}

/// What was called inside, by this process and by those that it comes from.
fn called() -> Vec<&'static str> {
    let is_called = |(name, count): (&&'static str, &AtomicU32)| (count.load(Relaxed) > 0).then_some(*name);
    NAMES.iter().zip(&CALLS).filter_map(is_called).collect()
}

type Handler = unsafe extern "C" fn();

extern "C" fn go_in() {
    INSIDE.set(true);
}

extern "C" fn go_out() {
    INSIDE.set(false);
}

/// Prepare handlers run in the reverse of the order in which they are registered, the others in that order.
fn watch_what_is_registered_by(register: impl FnOnce()) {
    add(go_out, go_in, go_in);
    register();
    add(go_in, go_out, go_out);
}

fn add(prepare: Handler, parent: Handler, child: Handler) {
    // SAFETY: the handlers are functions of this program, and do not unwind.
    assert_eq!(unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) }, 0);
}

#[test]
fn what_a_handler_calls_is_seen() {
    extern "C" fn asks() {
        // SAFETY: takes nothing.
        unsafe { libc::getppid() };
    }
    extern "C" fn does_not() {}
    clean_process(|| {
        watch_what_is_registered_by(|| add(does_not, does_not, asks));
        assert!(child(|| called() == ["getppid"]).join());
        assert_eq!(called(), Vec::<&str>::new(), "its parent has not called it");
    });
}

#[test]
fn in_a_handler_no_function_is_called_that_may_be_another_librarys() {
    clean_process(|| {
        watch_what_is_registered_by(|| _ = generation());
        let (witness, postgres) = (Witness::start(), PrivatePostgres::start());
        let file = std::env::temp_dir().join(format!("forksafe-interposed-{}", std::process::id()));
        let policy = || Policy::tcp().udp().unix("*");
        let policies = [
            ("disowns and tells a file", policy().report_to(&file)),
            ("disowns and tells on standard error", policy().report_to_stderr()),
            ("tells", policy().mode(Mode::Report).report_to(&file)),
        ];
        for (what, policy) in policies {
            child(|| {
                policy.set().unwrap();
                let in_the_registry = (
                    lent_and_idle(Pool::new(witness.manager()).unwrap()),
                    lent_and_idle(Pool::new(PostgresManager::new(postgres.config(), NoTls)).unwrap()),
                );
                let not_there = Unregistered::new();
                child(|| {
                    assert!(not_there.is_found(), "{what}: {:?}", fork::inherited());
                    assert_eq!(called(), Vec::<&str>::new(), "{what}: in a child");
                    child(|| assert_eq!(called(), Vec::<&str>::new(), "{what}: in a child's child")).join();
                })
                .join();
                assert_eq!(called(), Vec::<&str>::new(), "{what}: in the parent");
                drop((in_the_registry, not_there));
            })
            .join();
        }
        std::fs::remove_file(file).unwrap();
    });
}

fn lent_and_idle<M: ManageConnection>(pool: Pool<M>) -> (Pool<M>, impl Drop) {
    let (lent, idle) = (pool.get().unwrap(), pool.get().unwrap());
    drop(idle);
    (pool, lent)
}

/// Connections of all kinds that nobody has registered, in all states that are told by another call.
struct Unregistered {
    _listener: TcpListener,
    tcp: [TcpStream; 3],
    _accepted: [TcpStream; 3],
    udp: [UdpSocket; 2],
    unix: (UnixListener, UnixStream),
    _epoll: OwnedFd,
    _is_kept: fork::net::Kept,
}

impl Unregistered {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let without_a_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pairs = [&listener, &listener, &without_a_listener].map(|listener| {
            let made = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (made, listener.accept().unwrap().0)
        });
        let [(watched, a), (mut full, b), (kept, c)] = pairs;
        full.set_nonblocking(true).unwrap();
        while full.write(&[0; 65536]).is_ok() {}
        let is_kept = fork::keep(&kept).unwrap();
        let udp = [UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap()];
        udp[0].connect(udp[1].local_addr().unwrap()).unwrap();
        let path = std::env::temp_dir().join(format!("forksafe-interposed-{}.socket", std::process::id()));
        let unix = UnixListener::bind(&path).unwrap();
        let unix = (unix, UnixStream::connect(&path).unwrap());
        std::fs::remove_file(path).unwrap();
        let mut event = epoll_event { events: libc::EPOLLIN as u32, u64: 7 };
        // SAFETY: takes numbers and an event of ours; what comes back is ours.
        let epoll = unsafe {
            let epoll = OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC));
            assert_eq!(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, watched.as_raw_fd(), &raw mut event), 0);
            // It goes on into executed programs.
            assert_eq!(libc::fcntl(watched.as_raw_fd(), libc::F_SETFD, 0), 0);
            epoll
        };
        Self {
            _listener: listener,
            tcp: [watched, full, kept],
            _accepted: [a, b, c],
            udp,
            unix,
            _epoll: epoll,
            _is_kept: is_kept,
        }
    }

    /// But for what is kept.
    fn is_found(&self) -> bool {
        let [watched, full, kept] = self.tcp.each_ref().map(AsRawFd::as_raw_fd);
        let found: Vec<_> = fork::inherited().connections.iter().map(|one| one.descriptor).collect();
        [watched, full, self.udp[0].as_raw_fd(), self.unix.1.as_raw_fd()].iter().all(|made| found.contains(made))
            && !found.contains(&kept)
    }
}
