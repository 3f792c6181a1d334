//! What becomes of event loops whose connections are disowned.

use crate::kit;
use crate::net::{Connected, connected, is_dead};
use forksafe::fork::{self, net::Policy};
use forksafe::testing::{self, clean_process};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

/// A token for each thing that it watches.
struct Epoll(OwnedFd);

impl Epoll {
    fn new() -> Self {
        // SAFETY: takes a number; what comes back is ours.
        Self(unsafe { OwnedFd::from_raw_fd(libc::epoll_create1(libc::EPOLL_CLOEXEC)) })
    }

    /// As mio has one.
    fn another_number(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }

    fn watch(&self, what: &impl AsRawFd, token: u64) {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: takes numbers and an event of ours.
        let result =
            unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, what.as_raw_fd(), &raw mut event) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// The tokens of what there is news of, at once or when there is some.
    fn news(&self, patience: bool) -> BTreeSet<u64> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 8];
        let timeout = if patience { testing::patience().as_millis() as i32 } else { 0 };
        // SAFETY: room for so many events.
        let count = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 8, timeout) };
        events[..usize::try_from(count).unwrap()].iter().map(|event| event.u64).collect()
    }

    fn watched(&self) -> Vec<String> {
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd())).unwrap();
        info.lines().filter(|line| line.starts_with("tfd")).map(str::to_owned).collect()
    }
}

const MADE: u64 = 7;
const LISTENER: u64 = 8;
const NEW: u64 = u64::MAX;

#[test]
fn a_child_has_a_loop_of_its_own_that_watches_the_same() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let Connected { listener, made, accepted: _accepted } = connected();
        let listener = listener.unwrap();
        let (epoll, waker) = (Epoll::new(), Epoll::new().another_number());
        epoll.watch(&made, MADE);
        epoll.watch(&listener, LISTENER);
        epoll.watch(&waker.0, 9); // Nothing ever happens there.
        let before = epoll.watched();
        let address = listener.local_addr().unwrap();
        testing::child(|| {
            assert_eq!(epoll.news(false), [MADE].into(), "what is dead has hung up");
            let client = TcpStream::connect(address).unwrap();
            assert_eq!(epoll.news(true), [MADE, LISTENER].into());
            let (server, _) = listener.accept().unwrap();
            (&client).write_all(b"x").unwrap();
            epoll.watch(&server, NEW);
            assert_eq!(epoll.news(true), [MADE, NEW].into());
            // A child of its own has the same again.
            testing::child(|| assert_eq!(epoll.news(true), [MADE, NEW].into())).join();
            drop(client);
        })
        .join();
        assert_eq!(epoll.watched(), before);
        assert_eq!(epoll.news(false), BTreeSet::new(), "what a child watches is not told to its parent");
    });
}

#[test]
fn two_numbers_of_a_loop_are_two_numbers_of_the_childs() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let (first, second) = (connected(), connected());
        let epolls = [Epoll::new(), Epoll::new()];
        let others = epolls.each_ref().map(Epoll::another_number);
        epolls[0].watch(&first.made, 0);
        epolls[1].watch(&second.made, 1);
        testing::child(|| {
            assert_eq!(others.each_ref().map(|other| other.news(false)), [[0].into(), [1].into()]);
            for (epoll, other) in epolls.iter().zip(&others) {
                let Connected { mut made, accepted, .. } = connected();
                epoll.watch(&accepted, NEW);
                made.write_all(b"x").unwrap();
                assert!(other.news(true).contains(&NEW));
                assert_eq!(other.watched().len(), 2);
            }
        })
        .join();
    });
}

/// More than are noted.
#[test]
fn a_loop_behind_hundreds_of_files_is_found() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let _files: Vec<_> = (0..200).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let connected = connected();
        let epoll = Epoll::new();
        epoll.watch(&connected.made, MADE);
        testing::child(|| assert_eq!(epoll.news(false), [MADE].into())).join();
    });
}

/// As in a container.
#[test]
fn where_nobody_may_ask_what_a_loop_watches_it_is_read() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let connected = connected();
        let epoll = Epoll::new();
        let other = epoll.another_number();
        epoll.watch(&connected.made, MADE);
        kit::deny(libc::SYS_kcmp, None, libc::EPERM);
        // Whether two numbers are one: older kernels do not know the question.
        kit::deny(libc::SYS_fcntl, Some((1, 1027)), libc::EINVAL);
        match kit::fork() {
            None => kit::leave(|| {
                assert_eq!(epoll.news(false), [MADE].into());
                epoll.watch(&connected.accepted, NEW);
                assert_eq!(other.watched().len(), 2);
            }),
            Some(child) => assert_eq!(kit::exit_code(child), 0),
        }
    });
}

/// Whoever closes a number relies on it that its loop watches it no more.
#[test]
fn what_a_child_closes_is_watched_no_more() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let (first, second) = (connected(), connected());
        let (epoll, other) = (Epoll::new(), Epoll::new());
        epoll.watch(&first.made, 1);
        epoll.watch(&second.made, 2);
        other.watch(&second.made, 3);
        let (mut first, second) = (Some(first.made), second.made);
        testing::child(|| {
            assert_eq!((epoll.news(false), other.news(false)), ([1, 2].into(), [3].into()));
            drop(first.take());
            assert_eq!((epoll.news(false), other.news(false)), ([2].into(), [3].into()));
        })
        .join();
        drop((first, second));
    });
}

/// The first free number is that of the first thing that a child makes.
#[test]
fn what_a_child_has_made_is_not_taken_for_what_had_its_number() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let (gone, connected) = (connected(), connected());
        let epoll = Epoll::new();
        epoll.watch(&connected.made, MADE);
        epoll.watch(&gone.accepted, NEW);
        let _lives_on = gone.accepted.try_clone().unwrap();
        drop(gone);
        testing::child(|| assert_eq!(epoll.news(false), [MADE].into())).join();
    });
}

#[test]
fn two_loops_that_watch_the_same_are_two() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let both = connected();
        let epolls = [Epoll::new(), Epoll::new()];
        epolls.iter().for_each(|epoll| epoll.watch(&both.made, MADE));
        testing::child(|| {
            let Connected { mut made, accepted, .. } = connected();
            epolls[0].watch(&accepted, NEW);
            made.write_all(b"x").unwrap();
            assert_eq!(epolls.each_ref().map(|epoll| epoll.news(true)), [[MADE, NEW].into(), [MADE].into()]);
        })
        .join();
    });
}

/// To watch it is to ask it for its news, which are the parent's: the loop is left alone.
#[test]
fn the_news_of_a_file_are_not_taken_from_the_parent() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let connected = connected();
        let mounts = fs::File::open("/proc/self/mounts").unwrap();
        let epoll = Epoll::new();
        epoll.watch(&connected.made, MADE);
        epoll.watch(&mounts, 9);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        testing::child(|| epoll.watch(&listener, LISTENER)).join();
        assert_eq!(epoll.watched().len(), 3, "it is the parent's");
    });
}

#[test]
fn a_loop_in_a_loop_is_one_in_the_child() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let connected = connected();
        let (outer, inner) = (Epoll::new(), Epoll::new());
        inner.watch(&connected.made, 1);
        outer.watch(&connected.made, 2);
        outer.watch(&inner.0, 3);
        let before = (outer.watched(), inner.watched());
        let (mut made, accepted) = (Some(connected.made), connected.accepted);
        testing::child(|| {
            assert_eq!((outer.news(false), inner.news(false)), ([2, 3].into(), [1].into()));
            let own = self::connected();
            inner.watch(&own.accepted, NEW);
            drop(made.take());
            assert_eq!(outer.news(false), BTreeSet::new());
            (&own.made).write_all(b"x").unwrap();
            assert_eq!((outer.news(true), inner.news(true)), ([3].into(), [NEW].into()));
        })
        .join();
        assert_eq!((outer.watched(), inner.watched()), before);
        assert_eq!(outer.news(false), BTreeSet::new());
        (&accepted).write_all(b"x").unwrap();
        assert_eq!(outer.news(true), [2, 3].into());
        made.unwrap().read_exact(&mut [0]).unwrap();
    });
}

/// It watches a file that has another number by now.
#[test]
fn what_lies_under_a_number_of_something_watched_is_not_taken_for_it() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let (connected, other) = (connected(), connected());
        let epoll = Epoll::new();
        epoll.watch(&connected.made, MADE);
        epoll.watch(&connected.accepted, NEW);
        let _lives_on = connected.accepted.try_clone().unwrap();
        // SAFETY: takes numbers, both ours.
        let result = unsafe { libc::dup3(other.accepted.as_raw_fd(), connected.accepted.as_raw_fd(), libc::O_CLOEXEC) };
        assert_eq!(result, connected.accepted.as_raw_fd());
        (&other.made).write_all(b"x").unwrap();
        testing::wait_until("it is there", || other.accepted.peek(&mut [0]).unwrap() == 1);
        testing::child(|| assert_eq!(epoll.news(false), [MADE].into())).join();
    });
}

/// It is shared, as it is without the net.
#[test]
fn a_loop_that_watches_nothing_disowned_is_left_alone() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let _made = connected();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let epoll = Epoll::new();
        testing::child(|| epoll.watch(&listener, LISTENER)).join();
        assert_eq!(epoll.watched().len(), 1);
    });
}

#[test]
fn whether_a_loop_goes_on_into_an_executed_program_stays_as_it_was() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let connected = connected();
        let epoll = Epoll::new();
        epoll.watch(&connected.made, MADE);
        // SAFETY: takes numbers.
        let flags = |change: Option<i32>| unsafe {
            if let Some(flags) = change {
                libc::fcntl(epoll.0.as_raw_fd(), libc::F_SETFD, flags);
            }
            libc::fcntl(epoll.0.as_raw_fd(), libc::F_GETFD)
        };
        for now in [libc::FD_CLOEXEC, 0] {
            flags(Some(now));
            assert_eq!(testing::child(|| flags(None)).join(), now);
        }
    });
}

/// A runtime of one thread needs no other to go on.
#[test]
fn a_child_that_runs_an_inherited_runtime_takes_nothing_of_its_parents() {
    clean_process(|| {
        use tokio::io::AsyncReadExt;
        Policy::tcp().set().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || runtime.block_on(tokio::net::TcpStream::connect(address)).unwrap();
        let mut made = connect();
        let (mut accepted, _) = listener.accept().unwrap();
        for _ in 0..5 {
            accepted.write_all(b"for the parent").unwrap();
            testing::child(|| {
                assert_eq!(runtime.block_on(made.read(&mut [0; 20])).unwrap(), 0, "dead, and told so");
                // What it opens anew works there.
                let mut own = connect();
                let (mut accepted, _) = listener.accept().unwrap();
                accepted.write_all(b"own").unwrap();
                assert_eq!(runtime.block_on(own.read(&mut [0; 20])).unwrap(), 3);
            })
            .join();
            let mut answer = [0; 14];
            runtime.block_on(made.read_exact(&mut answer)).unwrap();
            assert_eq!(&answer, b"for the parent");
        }
    });
}

/// The registration belongs to the parent's file, which the child has let go of without a word.
#[test]
fn an_epoll_of_the_parent_goes_on_watching() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let Connected { mut made, mut accepted, .. } = connected();
        let epoll = Epoll::new();
        epoll.watch(&made, MADE);
        let before = epoll.watched();
        for _ in 0..10 {
            testing::child(|| assert!(is_dead(&made))).join();
            assert_eq!(epoll.watched(), before);
            accepted.write_all(b"x").unwrap();
            assert_eq!(epoll.news(true), [MADE].into());
            made.read_exact(&mut [0]).unwrap();
        }
    });
}

#[test]
fn a_tokio_of_the_parent_goes_on() {
    clean_process(|| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        Policy::tcp().set().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let Connected { made, mut accepted, .. } = connected();
        made.set_nonblocking(true).unwrap();
        let made = runtime.block_on(async { tokio::net::TcpStream::from_std(made).unwrap() });
        let number = made.as_raw_fd();
        let made = std::sync::Mutex::new(made);
        for _ in 0..10 {
            testing::child(|| assert_eq!(fork::inherited().connections[0].descriptor, number)).join();
            thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    let mut made = made.lock().unwrap();
                    runtime.block_on(async {
                        made.write_all(b"q").await.unwrap();
                        made.read_u8().await.unwrap()
                    })
                });
                accepted.read_exact(&mut [0]).unwrap();
                accepted.write_all(b"a").unwrap();
                assert_eq!(reading.join().unwrap(), b'a');
            });
        }
    });
}
