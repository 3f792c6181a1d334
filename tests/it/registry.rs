//! The registry of descriptors: growth, reuse, tables that are full.

use crate::kit::Door;
use forksafe::fork::{self, Descriptors, Guarded, Registration};
use forksafe::testing::{self, Witness, clean_process};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

fn limit_descriptors(soft: u64) -> u64 {
    // SAFETY: plain numbers of ours.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = limit.rlim_cur;
        limit.rlim_cur = soft.min(limit.rlim_max);
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}

/// Grows past any size; in the child every one of them is dead and in the parent every one is alive.
#[test]
fn thousands_of_registered_descriptors_are_all_dead_in_the_child() {
    clean_process(|| {
        limit_descriptors(8192);
        let mut pairs: Vec<_> = (0..1500)
            .map(|_| {
                let (near, far) = UnixStream::pair().unwrap();
                (Guarded::new(near, Descriptors::of).unwrap(), far)
            })
            .collect();
        // By number, past the guard: what a driver that kept its own reference would do.
        let numbers: Vec<i32> = pairs.iter().map(|(near, _)| near.as_raw_fd()).collect();
        let alive = || numbers.iter().filter(|&&fd| can_write(fd)).count();
        assert_eq!(testing::child(alive).join(), 0);
        assert_eq!(alive(), 1500);
        for (near, far) in &mut pairs {
            near.write_all(b"here").unwrap();
            let mut said = [0; 5];
            far.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"xhere");
        }
    });
}

fn can_write(fd: i32) -> bool {
    // SAFETY: one byte of a static; MSG_NOSIGNAL makes a dead peer an error.
    unsafe { libc::send(fd, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) == 1 }
}

/// A registration names a socket, not a number: what took the number since is left alone.
#[test]
fn a_descriptor_that_is_not_the_registered_one_is_never_touched() {
    clean_process(|| {
        let (near, _far) = UnixStream::pair().unwrap();
        let number = near.as_raw_fd();
        let registration = Registration::publish(Descriptors::of(&near)).unwrap();
        drop(near);
        // Somebody who closes first and withdraws later, and in between the number is another's.
        let (other, mut peer) = UnixStream::pair().unwrap();
        assert_eq!(other.as_raw_fd(), number, "the lowest free number");
        testing::child(|| {
            (&other).write_all(b"from the child").unwrap();
        })
        .join();
        drop(registration);
        // And withdrawn.
        testing::child(|| {
            (&other).write_all(b"from the child").unwrap();
        })
        .join();
        drop(other);
        let mut said = String::new();
        peer.read_to_string(&mut said).unwrap();
        assert_eq!(said, "from the childfrom the child");
    });
}

/// Its owner may go on using what is no longer registered, on both sides of a fork.
#[test]
fn a_descriptor_that_was_withdrawn_is_left_alone() {
    clean_process(|| {
        let (near, mut far) = UnixStream::pair().unwrap();
        drop(Registration::publish(Descriptors::of(&near)).unwrap());
        testing::child(|| (&near).write_all(b"from the child").unwrap()).join();
        drop(near);
        let mut said = String::new();
        far.read_to_string(&mut said).unwrap();
        assert_eq!(said, "from the child");
    });
}

#[test]
fn publishing_a_closed_descriptor_is_an_error() {
    clean_process(|| {
        struct Closed;
        impl std::os::fd::AsFd for Closed {
            fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
                // SAFETY: not a descriptor at all; only its number is looked at.
                unsafe { std::os::fd::BorrowedFd::borrow_raw(123_456) }
            }
        }
        let error = Registration::publish(Descriptors::of(&Closed)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    });
}

/// Row 22, while disowning: the table is full, so there is no room for the dead socket. And with the limit lowered below
/// the numbers in use, where dup3 is refused.
#[test]
fn a_full_descriptor_table_does_not_keep_a_child_from_disowning() {
    clean_process(|| {
        for how in ["full", "lowered"] {
            let witness = Witness::start();
            let pool = forksafe::Pool::new(witness.manager()).unwrap();
            let mut held = [pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
            let sessions = held.each_mut().map(|conn| conn.ask("before").unwrap().connection);
            let names: BTreeSet<String> = held.iter().map(|conn| testing::socket_of(conn.stream())).collect();
            let (ready, go) = (Door::new(), Door::new());
            let mut fill: Vec<OwnedFd> = Vec::new();
            let before;
            if how == "full" {
                before = limit_descriptors(64);
                while let Ok(more) = File::open("/dev/null") {
                    fill.push(more.into());
                }
            } else {
                before = limit_descriptors(4);
            }
            // By hand: the kit needs descriptors, too.
            let child = crate::kit::fork();
            if child.is_none() {
                crate::kit::leave(|| {
                    ready.open();
                    go.pass();
                });
            }
            drop(fill);
            limit_descriptors(before);
            ready.pass();
            let child = child.unwrap();
            let shared = testing::descriptors(child as u32).into_values().filter(|name| names.contains(name)).count();
            assert_eq!(shared, 0, "{how}: sockets that the child still shares");
            go.open();
            assert_eq!(crate::kit::exit_code(child), 0);
            assert_eq!(held.each_mut().map(|conn| conn.ask("after").unwrap().connection), sessions, "{how}");
            assert_eq!(witness.violations(), Vec::<String>::new());
        }
    });
}

/// Row 29: each generation forks the next with a guard held.
#[test]
fn dozens_of_generations_do_not_fill_the_descriptor_table() {
    fn generation(pool: &forksafe::Pool<testing::WitnessManager>, left: u32) -> usize {
        let held = pool.get().unwrap();
        let idle = [pool.get().unwrap(), pool.get().unwrap()];
        drop(idle);
        let open = match left {
            0 => testing::descriptors(std::process::id()).len(),
            _ => testing::child(|| generation(pool, left - 1)).join(),
        };
        drop(held);
        open
    }
    clean_process(|| {
        let witness = Witness::start();
        let pool = forksafe::Pool::new(witness.manager()).unwrap();
        let open = generation(&pool, 40);
        // Each generation adds the pipe of its report, the dead socket under its guard, and the witness's side of what
        // had been accepted by then, which is the test's own doing.
        assert!(open < 40 * 8, "{open} descriptors after 40 generations");
    });
}

/// Threads publish and withdraw while others do; each entry is one thread's at a time.
#[test]
fn threads_that_publish_and_withdraw_do_not_meet() {
    clean_process(|| {
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        let (a, b) = UnixStream::pair().unwrap();
                        let both = Registration::publish(Descriptors::of(&a).and(&b)).unwrap();
                        assert!(both.is_known());
                        drop(both);
                    }
                });
            }
        });
        // SAFETY: a new descriptor of our own.
        let mine = unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"mine".as_ptr(), 0)) };
        let kept = Registration::publish(Descriptors::of(&mine)).unwrap();
        let name = format!("{:?}", testing::descriptors(std::process::id())[&mine.as_raw_fd()]);
        let there = testing::child(|| testing::descriptors(std::process::id())[&mine.as_raw_fd()].clone()).join();
        assert!(!name.contains("socket:") && there.starts_with("socket:"), "{name} became {there}");
        drop(kept);
        assert!(fork::generation().to_string() == "1");
    });
}
