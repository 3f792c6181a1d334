//! `fork::net`: connections that nobody has registered.

use crate::churn::sockets_to;
use crate::kit::{self, ask};
use crate::observe::server;
use forksafe::fork::net::{Mode, Peer, Place, Policy};
use forksafe::fork::{self, Descriptors};
use forksafe::testing::{self, Address, Steps, Way, Witness, WitnessClient, clean_process};
use forksafe::{ManageConnection, Pool};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Barrier;
use std::thread;

/// A connection that this side has made, and its other end.
pub(crate) struct Connected {
    pub(crate) listener: Option<TcpListener>,
    pub(crate) made: TcpStream,
    pub(crate) accepted: TcpStream,
}

pub(crate) fn connected() -> Connected {
    connected_at(0)
}

/// At a port of 127.0.0.1.
pub(crate) fn connected_at(port: u16) -> Connected {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let made = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    Connected { listener: Some(listener), made, accepted }
}

impl Connected {
    /// The listener is gone, and with it what a port could tell.
    pub(crate) fn without_listener() -> Self {
        Self { listener: None, ..connected() }
    }

    /// Both ends work, which proves that nobody has ended it.
    pub(crate) fn assert_works(&mut self) {
        self.made.write_all(b"to").unwrap();
        self.accepted.write_all(b"fro").unwrap();
        let (mut to, mut fro) = ([0; 2], [0; 3]);
        self.accepted.read_exact(&mut to).unwrap();
        self.made.read_exact(&mut fro).unwrap();
        assert_eq!((&to, &fro), (b"to", b"fro"));
    }
}

pub(crate) fn is_dead(stream: &TcpStream) -> bool {
    stream.peer_addr().is_err()
}

/// Until there is no room for more, at either end.
fn fill(mut stream: &TcpStream) {
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65536]).is_ok() {}
}

/// To a million, or as far as this machine permits. Returns how far.
fn raise_limit() -> RawFd {
    let mut limit = libc::rlimit { rlim_cur: 1_000_000, rlim_max: 1_000_000 };
    // SAFETY: `limit` is ours.
    unsafe {
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
            assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
            limit.rlim_cur = limit.rlim_max;
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        }
    }
    limit.rlim_cur as RawFd
}

/// The soft limit is what is open.
fn full_table() -> Vec<File> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = 64;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

fn copy_to(file: &impl AsRawFd, at: RawFd) -> OwnedFd {
    // SAFETY: takes numbers; what comes back is ours.
    unsafe {
        let copy = libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, at);
        assert_eq!(copy, at, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(copy)
    }
}

#[test]
fn what_this_side_has_connected_is_dead_in_a_child_and_what_it_has_accepted_is_not() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let mut all = [connected(), Connected::without_listener()];
        testing::child(|| {
            for Connected { listener, made, accepted } in &mut all {
                assert_eq!(made.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
                assert_eq!(made.read(&mut [0]).unwrap(), 0);
                assert!(is_dead(made) && !is_dead(accepted), "made {made:?}, accepted {accepted:?}");
                assert!(listener.as_ref().is_none_or(|listener| listener.local_addr().is_ok()));
            }
            // The child accepts for itself, and hands it to a child of its own.
            let listener = all[0].listener.as_ref().unwrap();
            let (made, accepted) =
                (TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener.accept().unwrap().0);
            testing::child(|| assert!(is_dead(&made) && !is_dead(&accepted))).join();
        })
        .join();
        all.iter_mut().for_each(Connected::assert_works);
    });
}

/// The kernel's counts are those of a connection on which nothing is under way; all else has to be reckoned with.
#[test]
fn who_has_connected_is_told_in_the_middle_of_everything() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let all: Vec<_> = (0..7).map(|_| Connected::without_listener()).collect();
        (&all[0].made).write_all(b"a question").unwrap();
        fill(&all[1].made);
        fill(&all[2].accepted);
        fill(&all[3].made);
        fill(&all[3].accepted);
        all[4].made.shutdown(Shutdown::Write).unwrap();
        all[5].accepted.shutdown(Shutdown::Write).unwrap();
        fill(&all[6].made);
        all[6].accepted.shutdown(Shutdown::Write).unwrap();
        let told =
            testing::child(|| all.iter().map(|one| (is_dead(&one.made), is_dead(&one.accepted))).collect::<Vec<_>>());
        assert_eq!(told.join(), [(true, false); 7]);
    });
}

#[test]
fn a_socket_that_is_being_connected_is_dead_in_a_child_and_one_that_is_bound_is_not() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        // SAFETY: takes numbers; what comes back is ours.
        let socket = || unsafe {
            let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, kind, 0))
        };
        let new = socket();
        let bound = socket();
        let mut address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) },
            sin_zero: [0; 8],
        };
        let mut size = mem::size_of_val(&address) as u32;
        let listener = socket();
        // One may wait there to be accepted, and whoever comes next is not answered.
        // SAFETY: addresses of ours, and their size.
        unsafe {
            let at = (&raw mut address).cast();
            assert_eq!(libc::bind(bound.as_raw_fd(), at, size), 0);
            assert_eq!(libc::bind(listener.as_raw_fd(), at, size), 0);
            assert_eq!(libc::listen(listener.as_raw_fd(), 0), 0);
            assert_eq!(libc::getsockname(listener.as_raw_fd(), at, &raw mut size), 0);
        }
        let _first = TcpStream::connect(("127.0.0.1", u16::from_be(address.sin_port))).unwrap();
        let connecting = socket();
        // SAFETY: an address of ours, and its size.
        assert_eq!(unsafe { libc::connect(connecting.as_raw_fd(), (&raw const address).cast(), size) }, -1);
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EINPROGRESS));
        let found = testing::child(|| {
            let found = fork::inherited().connections.into_iter().filter(|one| one.peer == Peer::NotConnected);
            found.map(|one| one.descriptor).collect::<Vec<_>>()
        });
        assert_eq!(found.join(), [new.as_raw_fd(), connecting.as_raw_fd()]);
    });
}

#[test]
fn what_is_kept_is_left_alone_for_as_long() {
    clean_process(|| {
        let (by_number, by_peer, mut by_guard, other) = (connected(), connected(), connected(), connected());
        let address = by_peer.made.peer_addr().unwrap();
        Policy::tcp().keep_descriptor(by_number.made.as_raw_fd()).keep(address).set().unwrap();
        let kept = fork::keep(&by_guard.made).unwrap();
        let dead = || {
            let all = [&by_number, &by_peer, &by_guard, &other];
            testing::child(move || all.map(|one| is_dead(&one.made))).join()
        };
        assert_eq!(dead(), [false, false, false, true]);
        // A grandchild inherits it with the guard, until the child drops it.
        let mut inherited = Some(kept);
        let there = testing::child(|| {
            let kept = testing::child(|| is_dead(&by_guard.made)).join();
            drop(inherited.take());
            (kept, testing::child(|| is_dead(&by_guard.made)).join())
        });
        assert_eq!(there.join(), (false, true));
        assert_eq!(dead(), [false, false, false, true], "a child has dropped its own");
        drop(inherited);
        assert_eq!(dead(), [false, false, true, true]);
        by_guard.assert_works();
        assert_eq!(fork::keep(&File::open("/dev/null").unwrap()).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert!(Policy::tcp().set().unwrap_err().is_already_set());
    });
}

#[test]
fn a_program_that_is_kept_shares_all_that_it_has() {
    clean_process(|| {
        let connected = connected();
        let program = std::env::current_exe().unwrap();
        let name = program.file_name().unwrap().to_str().unwrap();
        for (keep, is_kept) in [(name, true), (&name[1..], false), ("it-*", true), (program.to_str().unwrap(), false)] {
            testing::child(|| {
                Policy::tcp().keep_program("another").keep_program(keep).set().unwrap();
                testing::child(|| {
                    assert_eq!((is_dead(&connected.made), fork::inherited().total == 0), (!is_kept, is_kept), "{keep}");
                })
                .join();
                assert!(Policy::tcp().set().unwrap_err().is_already_set());
            })
            .join();
        }
    });
}

#[test]
fn unix_streams_are_taken_by_the_paths_of_their_servers() {
    clean_process(|| {
        let folder = std::env::temp_dir().join(format!("forksafe-net-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let abstract_name = format!("forksafe-net-{}", std::process::id());
        let abstract_address = std::os::unix::net::SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let listeners = [
            UnixListener::bind(folder.join("taken")).unwrap(),
            UnixListener::bind(folder.join("taken, but kept")).unwrap(),
            UnixListener::bind(folder.join("left")).unwrap(),
            UnixListener::bind_addr(&abstract_address).unwrap(),
        ];
        let pattern = folder.join("tak*");
        Policy::none().unix(&pattern).unix(format!("@{abstract_name}")).keep(Place::unix("*kept")).set().unwrap();
        let clients =
            listeners.each_ref().map(|listener| UnixStream::connect_addr(&listener.local_addr().unwrap()).unwrap());
        let accepted = listeners.each_ref().map(|listener| listener.accept().unwrap().0);
        fs::remove_dir_all(&folder).unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let tcp = connected();
        let told = testing::child(|| {
            let is_alive = |mut stream: &UnixStream| stream.write(b"x").is_ok();
            assert!(is_alive(&near) && accepted.iter().all(is_alive) && !is_dead(&tcp.made));
            let found = fork::inherited().connections;
            let paths = found.iter().map(|one| one.peer.to_string()).collect::<Vec<_>>();
            (clients.each_ref().map(is_alive), paths)
        });
        let (alive, paths) = told.join();
        assert_eq!(alive, [false, true, true, false]);
        let taken = pattern.with_file_name("taken");
        assert_eq!(paths, [format!("unix {}", taken.display()), format!("unix @{abstract_name}")]);
    });
}

#[test]
fn udp_is_taken_by_choice_and_only_if_it_is_connected() {
    clean_process(|| {
        let (server, loose, client) = (
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
            UdpSocket::bind("127.0.0.1:0").unwrap(),
        );
        client.connect(server.local_addr().unwrap()).unwrap();
        let is_dead = |socket: &UdpSocket| socket.local_addr().is_err();
        testing::child(|| {
            Policy::tcp().set().unwrap();
            testing::child(|| assert!(!is_dead(&client))).join();
        })
        .join();
        Policy::none().udp().set().unwrap();
        let tcp = connected();
        let dead = testing::child(|| [is_dead(&server), is_dead(&loose), is_dead(&client), self::is_dead(&tcp.made)]);
        assert_eq!(dead.join(), [false, false, true, false]);
    });
}

#[test]
fn what_goes_on_into_an_executed_program_goes_on_and_what_does_not_does_not() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let (closes, stays) = (connected(), connected());
        let flags = |fd: RawFd| {
            // SAFETY: takes numbers.
            unsafe { libc::fcntl(fd, libc::F_GETFD) }
        };
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::fcntl(stays.made.as_raw_fd(), libc::F_SETFD, 0) }, 0);
        let (closes, stays) = (closes.made, stays.made);
        testing::child(|| {
            assert!(is_dead(&closes) && is_dead(&stays));
            assert_eq!((flags(closes.as_raw_fd()), flags(stays.as_raw_fd())), (libc::FD_CLOEXEC, 0));
        })
        .join();
    });
}

/// 100,000 of them, where the machine permits so many.
#[test]
fn a_large_table_is_swept_and_so_is_a_number_far_beyond_it() {
    clean_process(|| {
        let limit = raise_limit();
        let many = (limit - 3000).min(100_000);
        println!("with {many} open descriptors, and one at {}", limit - 1);
        Policy::tcp().set().unwrap();
        let connected = connected();
        let far = copy_to(&connected.made, limit - 1);
        let found = || {
            let found = testing::child(|| {
                let descriptors = testing::descriptors(std::process::id()).len();
                let found = fork::inherited().connections.iter().map(|one| one.descriptor).collect::<Vec<_>>();
                (descriptors, found)
            });
            found.join()
        };
        let (near, far) = (connected.made.as_raw_fd(), far.as_raw_fd());
        let (descriptors, there) = found();
        assert_eq!(there, [near, far]);
        let null = File::open("/dev/null").unwrap();
        let all: Vec<_> = (1000..1000 + many).map(|number| copy_to(&null, number)).collect();
        let beyond = copy_to(&connected.made, 1000 + many);
        // It has opened nothing that stays, and closed nothing.
        assert_eq!(found(), (descriptors + all.len() + 2, vec![near, beyond.as_raw_fd(), far]));
    });
}

#[test]
fn without_proc_every_number_of_the_table_is_asked() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let connected = connected();
        let far = copy_to(&connected.made, 900);
        kit::hide_proc();
        match kit::fork() {
            None => kit::leave(|| assert_eq!(fork::inherited().connections[1].descriptor, far.as_raw_fd())),
            Some(child) => assert_eq!(kit::exit_code(child), 0),
        }
    });
}

/// As far as the table may have more numbers than it has now.
#[test]
fn what_is_found_in_a_full_table_is_told_in_a_file() {
    clean_process(|| {
        let file = std::env::temp_dir().join(format!("forksafe-net-full-{}", std::process::id()));
        Policy::tcp().report_to(&file).set().unwrap();
        let connected = connected();
        let far = copy_to(&connected.made, 900);
        let all = full_table();
        match kit::fork() {
            None => kit::leave(|| {
                assert!(is_dead(&connected.made));
                // SAFETY: takes a number.
                assert_eq!(unsafe { libc::dup(0) }, -1, "the limit is what it was");
            }),
            Some(child) => assert_eq!(kit::exit_code(child), 0),
        }
        drop(all);
        let told = fs::read_to_string(&file).unwrap();
        fs::remove_file(file).unwrap();
        let numbers = [connected.made.as_raw_fd(), far.as_raw_fd()];
        let lines: Vec<_> = told.lines().collect();
        assert!(
            lines.len() == 2
                && lines
                    .iter()
                    .zip(numbers)
                    .all(|(line, number)| { line.contains(&format!("as descriptor {number}:")) }),
            "{told}"
        );
    });
}

/// As a sandbox lowers it; and perhaps nobody may ask what it is.
#[test]
fn a_limit_far_below_the_numbers_hides_none() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let connected = connected();
        let far = copy_to(&connected.made, 900);
        let limit = libc::rlimit { rlim_cur: 3, rlim_max: 3 };
        let found = || match kit::fork() {
            None => kit::leave(|| assert_eq!(fork::inherited().connections[1].descriptor, far.as_raw_fd())),
            Some(child) => assert_eq!(kit::exit_code(child), 0),
        };
        kit::hide_proc();
        // SAFETY: `limit` is ours.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
        found();
        kit::deny(libc::SYS_prlimit64, None, libc::EPERM);
        found();
    });
}

/// Because a container forbids the question. Then the port has to tell.
#[test]
fn where_the_kernel_says_nothing_of_a_connection_its_port_does() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let connected = connected();
        kit::deny(libc::SYS_getsockopt, Some((2, libc::TCP_INFO as u32)), libc::EPERM);
        match kit::fork() {
            None => kit::leave(|| assert!(is_dead(&connected.made) && !is_dead(&connected.accepted))),
            Some(child) => assert_eq!(kit::exit_code(child), 0),
        }
    });
}

#[test]
fn a_child_knows_what_it_has_inherited_and_its_own_children_what_they_have() {
    clean_process(|| {
        let file = std::env::temp_dir().join(format!("forksafe-net-told-{}", std::process::id()));
        Policy::tcp().report_to(&file).set().unwrap();
        let connected = connected();
        let (peer, number, parent) =
            (connected.made.peer_addr().unwrap(), connected.made.as_raw_fd(), std::process::id());
        assert_eq!(fork::inherited(), fork::net::Inheritance::default());
        let pid = testing::child(|| {
            let there = fork::inherited();
            assert_eq!((there.total, there.parent), (1, parent));
            let one = &there.connections[0];
            assert_eq!((&one.peer, one.descriptor, one.disowned), (&Peer::Tcp(peer), number, true));
            testing::child(|| assert_eq!(fork::inherited().total, 0)).join();
            std::process::id()
        });
        let pid = pid.join();
        let told = fs::read_to_string(&file).unwrap();
        fs::remove_file(file).unwrap();
        let line = format!(
            "forksafe: process {pid} has inherited tcp {peer} from process {parent}, as descriptor {number}: disowned\n"
        );
        assert_eq!(told, line);
    });
}

#[test]
fn more_than_there_is_room_for_are_disowned_and_counted() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let (address, _kept) = server();
        let all: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
        let told = testing::child(|| {
            let there = fork::inherited();
            (all.iter().all(is_dead), there.total, there.connections.len())
        });
        assert_eq!(told.join(), (true, 200, 128));
    });
}

#[test]
fn a_mode_that_only_tells_changes_nothing() {
    clean_process(|| {
        Policy::tcp().mode(Mode::Report).set().unwrap();
        let mut connected = connected();
        testing::child(|| {
            assert!(!is_dead(&connected.made));
            let there = fork::inherited();
            assert!(there.total == 1 && !there.connections[0].disowned);
        })
        .join();
        connected.assert_works();
    });
}

#[test]
fn a_child_that_is_denied_its_inheritance_ends_at_once_and_says_why() {
    clean_process(|| {
        let file = std::env::temp_dir().join(format!("forksafe-net-denied-{}", std::process::id()));
        Policy::tcp().mode(Mode::Deny).report_to(&file).set().unwrap();
        let ends = || match kit::fork() {
            None => kit::leave(|| {}),
            Some(child) => kit::exit_code(child),
        };
        assert_eq!(ends(), 0);
        let mut connected = connected();
        assert_eq!(ends(), 86);
        let told = fs::read_to_string(&file).unwrap();
        fs::remove_file(file).unwrap();
        let peer = connected.made.peer_addr().unwrap();
        assert!(told.contains(&format!("tcp {peer}")) && told.ends_with(": denied\n"), "{told}");
        let _kept = fork::keep(&connected.made).unwrap();
        assert_eq!(ends(), 0);
        connected.assert_works();
    });
}

/// It runs no handlers, and opens something of its own before its first call.
#[test]
fn a_child_without_handlers_is_swept_at_its_first_call_but_not_of_what_is_its_own() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let (address, _kept) = server();
        let mut inherited = connected();
        match kit::raw_fork() {
            None => kit::leave(|| {
                assert!(!is_dead(&inherited.made));
                let own = TcpStream::connect(address).unwrap();
                fork::enter();
                assert!(is_dead(&inherited.made) && !is_dead(&own));
                assert_eq!(fork::inherited().total, 1);
            }),
            Some(child) => assert_eq!(kit::exit_code(child), 0),
        }
        inherited.assert_works();
    });
}

/// As one does that shares its parent's table, and has threads when it first looks.
#[test]
fn a_child_that_may_touch_nothing_has_not_inherited_what_its_parent_has() {
    clean_process(|| {
        if let Err(why) = Way::SharedFds.available() {
            return println!("NOT RUN: {why}");
        }
        Policy::tcp().set().unwrap();
        let connected = connected();
        let child = testing::child(|| {
            assert_eq!(fork::inherited().total, 1);
            let own = self::connected();
            let child = Way::SharedFds.child(|| {
                let (begun, done) = (Barrier::new(2), Barrier::new(2));
                thread::scope(|scope| {
                    scope.spawn(|| {
                        begun.wait();
                        done.wait();
                    });
                    begun.wait();
                    let total = fork::inherited().total;
                    done.wait();
                    total
                })
            });
            let total = child.join();
            assert!(!is_dead(&own.made));
            total
        });
        assert_eq!(child.join(), 0);
        drop(connected);
    });
}

/// Nobody is left to be asked who made it: it may be a sibling's as well. Init, whose child it is now, never had it.
#[test]
fn what_a_parent_had_that_has_ended_is_inherited() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let (address, _kept) = server();
        let steps = Steps::new(&["dead", "shared"]);
        let looks = || {
            let connection = TcpStream::connect(address).unwrap();
            let parent = std::process::id();
            if kit::raw_fork().is_none() {
                kit::leave(|| {
                    testing::wait_until("the parent has ended", || std::os::unix::process::parent_id() != parent);
                    fork::enter();
                    steps.take(if is_dead(&connection) { "dead" } else { "shared" });
                });
            }
        };
        // SAFETY: takes a number.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0, "this test needs root");
        // The first child is init, for whose children it waits.
        match kit::fork() {
            None => kit::leave(|| {
                let program = kit::fork().unwrap_or_else(|| {
                    kit::leave(|| {
                        let child = kit::raw_fork().unwrap_or_else(|| kit::leave(looks));
                        assert_eq!(kit::exit_code(child), 0);
                        testing::wait_until("it has looked", || steps.taken("dead") + steps.taken("shared") > 0);
                    })
                });
                assert_eq!(kit::exit_code(program), 0);
            }),
            Some(init) => assert_eq!(kit::exit_code(init), 0),
        }
        assert_eq!((steps.taken("dead"), steps.taken("shared")), (1, 0));
    });
}

#[test]
fn what_is_registered_is_left_to_the_registry() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let witness = Witness::start();
        let pool = kit::tested().build(witness.manager()).unwrap();
        let _lent = pool.get().unwrap();
        let (session, total) = (ask(&pool), testing::child(|| fork::inherited().total).join());
        assert_eq!(total, 0);
        let own = testing::child(|| {
            let own = ask(&pool);
            // What a child has made is a parent's in its turn.
            assert_ne!(testing::child(|| ask(&pool)).join(), own);
            own
        });
        assert_ne!(own.join(), session);
        assert_eq!(ask(&pool), session);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// Over tcp and over a unix socket.
#[test]
fn a_client_that_nobody_has_registered_is_protected_by_the_net_alone() {
    clean_process(|| {
        let witnesses = [Witness::start(), Witness::start_unix()];
        let Address::Unix(path) = witnesses[1].place() else { panic!("{witnesses:?}") };
        Policy::tcp().unix(path).set().unwrap();
        let mut clients = [
            WitnessClient::connect(witnesses[0].address()).unwrap(),
            WitnessClient::connect_path(path).unwrap(),
            witnesses[0].client().unwrap(),
            witnesses[1].client().unwrap(),
        ];
        let sessions = clients.each_mut().map(|client| client.ask("before").unwrap().connection);
        let steps = Steps::new(&["asked", "seen"]);
        let child = testing::child(|| {
            let errors = clients.each_mut().map(|client| client.ask("on its parent's").unwrap_err().kind());
            let own =
                witnesses.each_ref().map(|witness| witness.client().unwrap().ask("on its own").unwrap().connection);
            steps.take("asked");
            steps.wait_for("seen");
            (errors.map(|error| error == ErrorKind::BrokenPipe), own)
        });
        steps.wait_for("asked");
        testing::assert_nothing_shared(&[std::process::id(), child.pid()]);
        steps.take("seen");
        let (are_dead, own) = child.join();
        assert_eq!(are_dead, [true; 4]);
        assert!(own.iter().all(|own| !sessions.contains(own)), "{own:?}, {sessions:?}");
        assert_eq!(clients.each_mut().map(|client| client.ask("after").unwrap().connection), sessions);
        assert!(witnesses.iter().all(|witness| witness.violations().is_empty()));
    });
}

/// Shows no descriptor. `meanwhile` is called while it connects.
struct Hides<F> {
    address: SocketAddr,
    meanwhile: F,
}

impl<F: Fn(&WitnessClient) + Send + Sync + 'static> ManageConnection for Hides<F> {
    type Connection = WitnessClient;
    type Error = io::Error;

    fn connect(&self) -> io::Result<WitnessClient> {
        let client = WitnessClient::connect(self.address)?;
        (self.meanwhile)(&client);
        Ok(client)
    }
    fn is_valid(&self, client: &mut WitnessClient) -> io::Result<()> {
        client.ask("valid?").map(drop)
    }
    fn has_broken(&self, _: &mut WitnessClient) -> bool {
        false
    }
    fn descriptors(&self, _: &WitnessClient) -> Descriptors {
        Descriptors::unknown()
    }
}

#[test]
fn descriptors_that_a_driver_hides_are_released() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let witness = Witness::start();
        let pool = Pool::new(Hides { address: witness.address(), meanwhile: |_: &WitnessClient| {} }).unwrap();
        let session = pool.get().unwrap().ask("who").unwrap().connection;
        assert_eq!(pool.state().unknown_descriptors, 1);
        let steps = Steps::new(&["there", "seen"]);
        let child = testing::child(|| {
            steps.take("there");
            steps.wait_for("seen");
            pool.get().unwrap().ask("who").unwrap().connection
        });
        steps.wait_for("there");
        drop(pool);
        witness.wait_until("the session has ended", |all| all[&session].ended_at.is_some());
        steps.take("seen");
        assert_ne!(child.join(), session);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

#[test]
fn a_manager_that_forks_inside_its_connect_gives_its_child_nothing() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let witness = Witness::start();
        let address = witness.address();
        let meanwhile = move |_: &WitnessClient| match kit::fork() {
            None => kit::leave(|| {
                assert_eq!(sockets_to(address), Vec::<RawFd>::new());
                assert_eq!(fork::inherited().total, 1);
            }),
            Some(child) => assert_eq!(kit::exit_code(child), 0),
        };
        let pool = Pool::new(Hides { address, meanwhile }).unwrap();
        pool.get().unwrap().ask("who").unwrap();
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// Nobody is left to shut the half-made connection down.
#[test]
fn a_parent_that_is_killed_in_the_middle_of_a_connect_leaves_no_copy_in_a_child() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let witness = Witness::start();
        let steps: &'static Steps = Box::leak(Box::new(Steps::new(&["connecting", "forked"])));
        let address = witness.address();
        let parent = testing::child(|| {
            let meanwhile = |_: &WitnessClient| {
                steps.take("connecting");
                loop {
                    thread::park();
                }
            };
            thread::spawn(move || Pool::new(Hides { address, meanwhile }).unwrap().get().map(drop));
            steps.wait_for("connecting");
            match kit::fork() {
                // It lives on until the test is through.
                None => kit::leave(|| {
                    steps.take("forked");
                    loop {
                        thread::park();
                    }
                }),
                Some(_) => thread::park(),
            }
        });
        steps.wait_for("forked");
        kit::kill(parent.pid(), libc::SIGKILL);
        let has_ended = |all: &std::collections::BTreeMap<u64, testing::Seen>| {
            !all.is_empty() && all.values().all(|one| one.ended_at.is_some())
        };
        witness.wait_until("its only session has ended", has_ended);
    });
}

/// What it reads of what its children have said, when they have.
fn pipe() -> (File, File) {
    let mut ends = [-1; 2];
    // SAFETY: room for two descriptors, which are then ours.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

/// Makes it standard error.
fn redirect_to(file: &impl AsRawFd) {
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), libc::STDERR_FILENO) }, libc::STDERR_FILENO);
}

fn close_standard_error() {
    // SAFETY: nobody here has it for his own; what it is a copy of stays open.
    assert_eq!(unsafe { libc::close(libc::STDERR_FILENO) }, 0);
}

fn set_blocking(file: &impl AsRawFd, is_blocking: bool) {
    // SAFETY: takes numbers.
    let done = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL) & !libc::O_NONBLOCK;
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, if is_blocking { flags } else { flags | libc::O_NONBLOCK })
    };
    assert_eq!(done, 0);
}

/// All that there is to read.
fn read_now(mut file: &File) -> String {
    set_blocking(file, false);
    let mut text = Vec::new();
    if let Err(error) = file.read_to_end(&mut text) {
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    String::from_utf8(text).unwrap()
}

#[track_caller]
fn assert_child_works() {
    match kit::fork() {
        None => kit::leave(|| {}),
        Some(child) => assert_eq!(kit::exit_code(child), 0),
    }
}

/// Neither kills a child that does not ignore the signal, nor is a line that could not be written a reason to end it later.
#[test]
fn a_report_that_nobody_reads_or_that_a_limit_forbids_brings_no_signal() {
    clean_process(|| {
        // SAFETY: takes numbers, and resets what the harness has set.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let _connected = connected();
        testing::child(|| {
            let (reader, writer) = pipe();
            redirect_to(&writer);
            Policy::tcp().report_to_stderr().set().unwrap();
            drop(reader);
            assert_child_works();
            // Nor where it cannot be opened once more.
            kit::hide_proc();
            assert_child_works();
        })
        .join();
        let file = tempfile("limited");
        testing::child(|| {
            Policy::tcp().report_to(&file).set().unwrap();
            let limit = libc::rlimit { rlim_cur: 10, rlim_max: 10 };
            // SAFETY: the limit is ours.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
            assert_child_works();
            assert_child_works();
        })
        .join();
        assert_eq!(fs::read_to_string(&file).unwrap(), "forksafe: ");
        fs::remove_file(file).unwrap();
    });
}

#[test]
fn a_pipe_that_is_full_holds_up_no_child() {
    clean_process(|| {
        let _connected = connected();
        let (reader, mut writer) = pipe();
        set_blocking(&writer, false);
        while writer.write(&[b'x'; 4096]).is_ok() {}
        set_blocking(&writer, true);
        redirect_to(&writer);
        Policy::tcp().report_to_stderr().set().unwrap();
        assert_child_works();
        assert_child_of_a_child_without_proc_works();
        assert!(read_now(&reader).bytes().all(|byte| byte == b'x'), "there was no room for a word");
        assert_child_works();
        assert_eq!(read_now(&reader).lines().count(), 1);
    });
}

/// As under systemd.
#[test]
fn a_socket_is_told_and_if_it_is_full_or_has_no_peer_it_holds_up_no_child() {
    clean_process(|| {
        // SAFETY: takes numbers, and resets what the harness has set.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let _connected = connected();
        let (mut near, far) = UnixStream::pair().unwrap();
        redirect_to(&near);
        Policy::tcp().report_to_stderr().set().unwrap();
        assert_child_works();
        let far = File::from(OwnedFd::from(far));
        assert!(read_now(&far).ends_with(": disowned\n"));
        near.set_nonblocking(true).unwrap();
        while near.write(&[b'x'; 4096]).is_ok() {}
        near.set_nonblocking(false).unwrap();
        assert_child_works();
        drop(far);
        assert_child_works();
    });
}

/// With Ctrl-S its user has it stand still.
#[test]
fn a_terminal_that_stands_still_holds_up_no_child() {
    clean_process(|| {
        let _connected = connected();
        let (mut terminal, mut program) = (-1, -1);
        // SAFETY: room for two descriptors, which are then ours; nothing else is asked for.
        let (terminal, program) = unsafe {
            let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
            assert_eq!(libc::openpty(&raw mut terminal, &raw mut program, name, settings, size), 0);
            (File::from_raw_fd(terminal), File::from_raw_fd(program))
        };
        redirect_to(&program);
        Policy::tcp().report_to_stderr().set().unwrap();
        assert_child_works();
        assert!(read_now(&terminal).ends_with(": disowned\r\n"));
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::tcflow(program.as_raw_fd(), libc::TCOOFF) }, 0);
        assert_child_works();
        assert_child_of_a_child_without_proc_works();
        assert_eq!(read_now(&terminal), "");
    });
}

/// There is room for one line and for the last word.
#[test]
fn what_finds_no_room_is_counted() {
    clean_process(|| {
        let all: Vec<_> = (0..30).map(|_| connected()).collect();
        let (reader, mut writer) = pipe();
        // SAFETY: takes numbers.
        let size = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
        redirect_to(&writer);
        Policy::tcp().report_to_stderr().set().unwrap();
        assert_child_works();
        let told = read_now(&reader);
        assert_eq!(told.lines().count(), all.len());
        let (line, last_word) = (told.lines().next().unwrap().len() + 1, 80);
        writer.write_all(&vec![b'\n'; size as usize - line - last_word]).unwrap();
        assert_child_works();
        let told = read_now(&reader);
        let told: Vec<_> = told.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(told.len(), 2, "{told:#?}");
        let own = std::process::id();
        assert!(told[1].ends_with(&format!(" has inherited 29 more from process {own}: disowned")), "{told:#?}");
    });
}

/// A program closes standard error, and what it opens next is number 2.
#[test]
fn what_has_become_number_2_by_chance_is_not_written_into() {
    clean_process(|| {
        let _connected = connected();
        let (reader, writer) = pipe();
        redirect_to(&writer);
        for mode in [Mode::Disown, Mode::Deny] {
            testing::child(|| {
                let policy = Policy::tcp().mode(mode);
                if mode == Mode::Deny { policy } else { policy.report_to_stderr() }.set().unwrap();
                let fork = || match kit::fork() {
                    None => kit::leave(|| {}),
                    Some(child) => kit::exit_code(child),
                };
                fork();
                assert_eq!(read_now(&reader).lines().count(), 1);
                let (near, far) = UnixStream::pair().unwrap();
                let (end, other_pipe) = pipe();
                let path = tempfile("number-2");
                let data = File::create(&path).unwrap();
                let closes_on_exec = fs::OpenOptions::new().append(true).open(&path).unwrap();
                for other in [near.as_raw_fd(), other_pipe.as_raw_fd(), data.as_raw_fd()] {
                    redirect_to(&other);
                    fork();
                }
                close_standard_error();
                fork();
                // SAFETY: takes numbers.
                let number_2 = unsafe { libc::dup3(closes_on_exec.as_raw_fd(), libc::STDERR_FILENO, libc::O_CLOEXEC) };
                assert_eq!(number_2, libc::STDERR_FILENO);
                fork();
                far.set_nonblocking(true).unwrap();
                assert_eq!((&far).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
                assert_eq!((read_now(&end), fs::read_to_string(&path).unwrap()), (String::new(), String::new()));
                // A log, on purpose.
                redirect_to(&closes_on_exec);
                fork();
                assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
                fs::remove_file(path).unwrap();
                assert_eq!(read_now(&reader), "");
            })
            .join();
        }
        testing::child(|| {
            close_standard_error();
            Policy::tcp().report_to_stderr().set().unwrap();
            redirect_to(&writer);
            assert_child_works();
            assert_eq!(read_now(&reader), "");
        })
        .join();
    });
}

#[test]
fn a_report_goes_through_no_link() {
    clean_process(|| {
        let _connected = connected();
        let (link, file) = (tempfile("link"), tempfile("somebodys"));
        fs::write(&file, "precious").unwrap();
        symlink(&file, &link).unwrap();
        testing::child(|| {
            let error = Policy::tcp().report_to(&link).set().unwrap_err();
            assert!(error.to_string().ends_with(link.to_str().unwrap()), "{error}");
        })
        .join();
        fs::remove_file(&link).unwrap();
        Policy::tcp().report_to(&link).set().unwrap();
        symlink(&file, &link).unwrap();
        assert_child_works();
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        fs::remove_file(&link).unwrap();
        assert_child_works();
        assert!(fs::read_to_string(&link).unwrap().ends_with(": disowned\n"));
        fs::remove_file(file).and_then(|()| fs::remove_file(link)).unwrap();
    });
}

/// What is standard error cannot be opened once more.
#[track_caller]
fn assert_child_of_a_child_without_proc_works() {
    match kit::fork() {
        None => kit::leave(|| {
            kit::hide_proc();
            let _its_own = connected();
            assert_child_works();
        }),
        Some(child) => assert_eq!(kit::exit_code(child), 0),
    }
}

fn tempfile(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("forksafe-net-{}-{name}", std::process::id()))
}
