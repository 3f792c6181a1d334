//! What can be registered, and whose descriptor table it is.

use crate::kit::{self, deny, exit_code, leave, raw_fork};
use crate::servers::Server;
use forksafe::fork::{Descriptors, Guarded, Registration};
use forksafe::testing::{self, Way, Witness, clean_process};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

/// Device and inode of a file are those of the next who opens it; all epolls and eventfds have the same.
#[test]
fn what_a_child_could_take_for_something_else_is_refused() {
    clean_process(|| {
        let fifo = std::env::temp_dir().join(format!("forksafe-fifo-{}", std::process::id()));
        let path = CString::new(fifo.to_str().unwrap()).unwrap();
        // SAFETY: a C string, and plain numbers; the descriptors are new ones of ours.
        let (named, epoll, memory) = unsafe {
            assert_eq!(libc::mkfifo(path.as_ptr(), 0o600), 0);
            let named = File::options().read(true).write(true).open(&fifo).unwrap();
            let epoll = OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC));
            (named, epoll, OwnedFd::from_raw_fd(libc::memfd_create(c"mine".as_ptr(), 0)))
        };
        std::fs::remove_file(&fifo).unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        for (name, fd) in [
            ("a file", file.as_fd()),
            ("a named pipe", named.as_fd()),
            ("an epoll", epoll.as_fd()),
            ("memory", memory.as_fd()),
        ] {
            let refused = Registration::publish(Descriptors::of(&fd)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{name}: {refused}");
            // A good one beside it is not registered, either.
            let (near, _far) = UnixStream::pair().unwrap();
            Registration::publish(Descriptors::of(&near).and(&fd)).unwrap_err();
            let alive = testing::child(|| (&near).write(b"x").is_ok());
            assert!(alive.join(), "{name}: nothing is published then");
        }
    });
}

#[test]
fn a_nameless_pipe_is_dead_in_a_child_and_closed_where_it_is_a_stray() {
    clean_process(|| {
        let (mut from, to) = io::pipe().unwrap();
        let kept = Registration::publish(Descriptors::of(&to).and_raw(from.as_raw_fd())).unwrap();
        let name = |fd: i32| testing::descriptors(std::process::id()).get(&fd).cloned();
        let there = testing::child(|| [name(from.as_raw_fd()), name(to.as_raw_fd())]).join();
        assert!(there.iter().flatten().filter(|name| name.starts_with("socket:")).count() == 2, "{there:?}");
        (&to).write_all(b"here").unwrap();
        from.read_exact(&mut [0; 4]).unwrap();
        drop(kept);
    });
}

/// A connection does not go on into a program that is executed.
#[test]
fn what_is_registered_is_close_on_exec() {
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let flags = || {
            // SAFETY: takes numbers.
            unsafe { libc::fcntl(near.as_raw_fd(), libc::F_GETFD) }
        };
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::fcntl(near.as_raw_fd(), libc::F_SETFD, 0) }, 0);
        let _kept = Registration::publish(Descriptors::of(&near)).unwrap();
        assert_eq!(flags(), libc::FD_CLOEXEC);
    });
}

/// Neither has looked before the last does, from a process with a thread. Its table is a copy of a copy.
#[test]
fn a_handlerless_child_of_a_handlerless_child_is_served_although_it_has_threads() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.pool();
        let here = kit::ask(&pool);
        let child = raw_fork().unwrap_or_else(|| {
            leave(|| {
                let grandchild = raw_fork().unwrap_or_else(|| {
                    leave(|| {
                        thread::spawn(thread::park);
                        assert_ne!(kit::ask(&pool), here);
                    })
                });
                assert_eq!(exit_code(grandchild), 0);
            })
        });
        assert_eq!(exit_code(child), 0);
        assert_eq!(kit::ask(&pool), here);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// And where the copy is shared, nothing is touched: with the parent, or with the grandparent.
#[test]
fn a_table_that_is_shared_further_up_the_line_is_left_alone() {
    if let Err(why) = Way::SharedFds.available() {
        return println!("not here: {why}");
    }
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.pool();
        let mut held = pool.get().unwrap();
        let here = held.ask("before").unwrap().connection;
        let refused = || {
            thread::spawn(thread::park);
            pool.get().is_err_and(|error| error.is_unprotected())
        };
        // A copy that a child and its parent share, who have not looked.
        let child = raw_fork().unwrap_or_else(|| leave(|| assert!(Way::SharedFds.child(refused).join())));
        assert_eq!(exit_code(child), 0);
        // All three have the one table.
        assert!(Way::SharedFds.child(|| Way::SharedFds.child(refused).join()).join());
        assert_eq!(held.ask("after").unwrap().connection, here);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// A child that comes out of the making of a client, and has its parent's very descriptors: the client is not made dead.
#[test]
fn a_client_in_the_making_is_left_alone_where_the_table_is_shared() {
    fn fork_with_the_same_table() -> Option<i32> {
        let flags = libc::c_long::from(libc::SIGCHLD | libc::CLONE_FILES);
        // SAFETY: as a fork, but for the descriptors.
        match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
            0 => None,
            child => Some(i32::try_from(child).unwrap()),
        }
    }
    clean_process(|| {
        let (near, mut far) = UnixStream::pair().unwrap();
        forksafe::fork::generation();
        for call in [libc::SYS_unshare, libc::SYS_close_range, libc::SYS_kcmp] {
            deny(call, None, libc::EPERM);
        }
        let mut child = None;
        let guarded = Guarded::new(near, |near| {
            child = fork_with_the_same_table();
            Descriptors::of(near)
        });
        let Some(child) = child else { leave(|| assert!(guarded.is_err())) };
        assert_eq!(exit_code(child), 0);
        guarded.unwrap().write_all(b"here").unwrap();
        let mut heard = [0; 4];
        far.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"here");
    });
}
