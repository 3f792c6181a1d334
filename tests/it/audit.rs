//! `forksafe-audit`, run on families of this program's own, and what it rests on.

use crate::kit::Door;
use forksafe::testing::{self, Child, Holdings, Process, SocketState, Way, clean_process};
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

#[allow(dead_code, reason = "its main is not wanted")]
#[path = "../../src/bin/forksafe-audit.rs"]
mod program;

/// Its exit code, what it printed, and its error.
fn audit(arguments: &[&str]) -> (u8, String, String) {
    let mut out = Vec::new();
    let told = program::audit(arguments.iter().map(Into::into).collect(), &mut out);
    let (code, error) = told.map_or_else(|error| (2, error.to_string()), |code| (code, String::new()));
    (code, String::from_utf8(out).unwrap(), error)
}

/// A child that holds what it was born with until it is killed.
fn idle_child() -> Child<()> {
    testing::child(thread::park)
}

/// Audits this process with a child that was born with what `make` made, and nothing else.
fn family_with<T>(make: impl FnOnce() -> T) -> (u8, String) {
    let _made = make();
    let child = idle_child();
    let (code, out, errors) = audit(&[&std::process::id().to_string()]);
    child.kill();
    println!("{out}{errors}");
    (code, out)
}

#[test]
fn a_shared_tcp_connection_is_found() {
    clean_process(|| {
        // The last is IPv4 for the client, and IPv6 for the server.
        for (address, host) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "127.0.0.1")] {
            // Of the server's end nobody has a copy: the child closes it.
            let listener = TcpListener::bind(address).unwrap();
            let inherited = TcpStream::connect((host, listener.local_addr().unwrap().port())).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let child = testing::child(|| {
                // SAFETY: the child never uses it.
                unsafe { libc::close(accepted.as_raw_fd()) };
                thread::park();
            });
            let me = std::process::id();
            let closed = || !testing::descriptors(child.pid()).contains_key(&accepted.as_raw_fd());
            testing::wait_until("the child has closed its copy", closed);
            let (code, out, _) = audit(&[&me.to_string()]);
            child.kill();
            println!("{out}");
            assert_eq!(code, 1);
            let (here, there) = (inherited.local_addr().unwrap(), inherited.peer_addr().unwrap());
            assert!(out.contains(&format!("SHARED: tcp {here} -> {there} ESTABLISHED (socket ")), "{address}");
            assert_eq!(out.matches("SHARED").count(), 1);
            assert_eq!(out.matches(&format!(" as descriptor {}\n", inherited.as_raw_fd())).count(), 2);
            assert!(out.contains(&format!("the other end is held by process {me} (")));
            assert!(out.contains("shared, and rightly so: tcp ") && out.contains(" LISTEN "));
        }
    });
}

#[test]
fn a_shared_unix_connection_is_found() {
    clean_process(|| {
        let folder = std::env::temp_dir().join(format!("forksafe audit {}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("a socket");
        let (code, out) = family_with(|| {
            let listener = UnixListener::bind(&path).unwrap();
            (UnixStream::connect(&path).unwrap(), listener.accept().unwrap(), listener)
        });
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(code, 1);
        assert!(out.contains(&format!("SHARED: unix stream -> {} ESTABLISHED", path.display())));
        assert!(out.contains(&format!("shared, and rightly so: unix stream {} LISTEN", path.display())));
    });
}

#[test]
fn datagram_sockets_with_a_peer_are_connections() {
    clean_process(|| {
        let (code, out) = family_with(|| {
            let (one, other) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
            one.connect(other.local_addr().unwrap()).unwrap();
            (one, other)
        });
        assert_eq!((code, out.matches("SHARED: udp ").count()), (1, 1));
        assert!(out.contains("shared, but not connected: udp "));
        let (code, out) = family_with(|| UnixDatagram::pair().unwrap());
        assert_eq!((code, out.matches("SHARED: unix datagram ").count()), (1, 2));
    });
}

/// What is open to all, what leads nowhere, and what each has for itself.
#[test]
fn listening_dead_and_own_sockets_are_not_counted() {
    clean_process(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (code, out) = family_with(|| {
            let dead = UnixStream::pair().unwrap().0;
            let shut = UnixStream::pair().unwrap();
            shut.0.shutdown(std::net::Shutdown::Both).unwrap();
            let closed = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            closed.shutdown(std::net::Shutdown::Both).unwrap();
            drop(listener.accept().unwrap());
            (dead, shut, closed, UnixDatagram::unbound().unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap())
        });
        assert!(code == 0 && !out.contains("SHARED"));
        assert!(out.contains("0 of 0 connections shared, in 2 processes"));

        let child = testing::child(|| {
            let _own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            thread::park();
        });
        let _accepted = listener.accept().unwrap();
        let (code, out, _) = audit(&[&std::process::id().to_string()]);
        child.kill();
        assert_eq!(code, 0, "{out}");
        assert!(out.contains("0 of 2 connections shared, in 2 processes"), "{out}");
    });
}

/// The whole tree is looked at, and nothing beside it: a socket may be held by two that are not parent and child.
#[test]
fn cousins_are_compared_and_strangers_are_not() {
    clean_process(|| {
        let _pair = UnixStream::pair().unwrap();
        let aunts = [(); 2].map(|()| {
            let tell = Door::new();
            let child = testing::child(|| {
                let grandchild = idle_child();
                tell.open();
                // Which comes to no end of its own.
                grandchild.outcome();
            });
            tell.pass();
            child
        });
        let pids = aunts.each_ref().map(Child::pid);
        let (code, out, _) = audit(&[&std::process::id().to_string()]);
        assert_eq!(code, 1, "{out}");
        assert!(out.contains("2 of 2 connections shared, in 5 processes"), "{out}");
        assert!(out.contains(&format!("\n  process {} (", pids[1])), "{out}");
        assert!(out.contains("\n    process "), "{out}");
        // Each of them alone, and both together.
        let alone = Process::tree(pids[0]).unwrap();
        assert_eq!(alone.iter().map(|process| process.parent).collect::<Vec<_>>(), [std::process::id(), pids[0]]);
        let (_, out, _) = audit(&[&alone[1].pid.to_string()]);
        assert!(out.contains("0 of 2 connections shared, in 1 processes"), "{out}");
        let (_, out, _) = audit(&pids.map(|pid| pid.to_string()).each_ref().map(String::as_str));
        assert!(out.contains("2 of 2 connections shared, in 4 processes"), "{out}");
        aunts.into_iter().for_each(Child::kill);
    });
}

/// A socket that was made in another network namespace is looked up there.
#[test]
fn other_network_namespaces_are_looked_into() {
    clean_process(|| {
        let tell = Door::new();
        let child = testing::child(|| {
            // SAFETY: takes numbers.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            let _pair = UnixStream::pair().unwrap();
            // Connected with itself by its own name, for no other address is up there.
            let _udp = UdpSocket::bind("0.0.0.0:0").unwrap();
            let there = SocketAddr::from_abstract_name("there").unwrap();
            let listener = UnixListener::bind_addr(&there).unwrap();
            let _client = UnixStream::connect_addr(&there).unwrap();
            let _accepted = listener.accept().unwrap();
            let grandchild = idle_child();
            tell.open();
            grandchild.outcome();
        });
        // SAFETY: takes numbers.
        if Way::Fork.child(|| unsafe { libc::unshare(libc::CLONE_NEWNET) }).join() != 0 {
            println!("NOT RUN: this machine permits no network namespaces");
            return child.kill();
        }
        tell.pass();
        let (code, out, _) = audit(&[&child.pid().to_string()]);
        let here = audit(&[&std::process::id().to_string()]).1;
        child.kill();
        assert_eq!((code, out.matches("SHARED: unix stream").count()), (1, 4), "{out}");
        assert!(out.contains(" -> @there ESTABLISHED"), "{out}");
        assert!(out.contains("shared, and rightly so: unix stream @there LISTEN"), "{out}");
        assert!(out.contains("shared, but not connected: udp "), "{out}");
        assert!(here.contains(" -> @there ESTABLISHED"), "{here}");
    });
}

#[test]
fn what_cannot_be_seen_is_an_error_and_not_a_good_report() {
    clean_process(|| {
        let code_and_error = |arguments: &[&str]| {
            let (code, out, error) = audit(arguments);
            assert_eq!(out, "");
            (code, error)
        };
        let (code, error) = code_and_error(&["4194304"]);
        assert!(code == 2 && error.starts_with("no process 4194304 is to be seen here: "), "{error}");
        assert!(audit(&["--help"]).1.contains("forksafe-audit PID..."));
        assert_eq!(code_and_error(&["self"]).0, 2);
        assert_eq!(code_and_error(&["0"]).0, 2);
        assert_eq!(code_and_error(&["--everything", "1"]).0, 2);
        assert_eq!(code_and_error(&[]).0, 2);

        // Of somebody else's processes one sees that they are there.
        let (me, child) = (std::process::id(), idle_child());
        let stranger = testing::child(|| {
            // SAFETY: takes numbers.
            assert_eq!(unsafe { libc::setgid(65534) + libc::setuid(65534) }, 0, "{}", io::Error::last_os_error());
            audit(&[&me.to_string()])
        });
        let (code, out, error) = stranger.join();
        child.kill();
        assert_eq!(code, 2, "{out}");
        assert!(out.matches("NOT SEEN: process ").count() >= 2 && out.contains("Permission denied"), "{out}");
        assert!(error.starts_with("not every process could be looked into"), "{error}");
    });
}

/// Between its fork and its exec a child holds copies. Here there is one at every moment, and never the same for long.
#[test]
fn copies_that_are_gone_in_a_moment_are_not_counted() {
    clean_process(|| {
        let _pair = UnixStream::pair().unwrap();
        let (stop, born) = (AtomicBool::new(false), Barrier::new(2));
        let codes = thread::scope(|scope| {
            let _stop = crate::kit::StopOnDrop(&stop);
            scope.spawn(|| {
                let mut child = idle_child();
                born.wait();
                while !stop.load(SeqCst) {
                    // Longer than a look takes, and shorter than what the audit takes for a moment.
                    thread::sleep(Duration::from_millis(40));
                    std::mem::replace(&mut child, idle_child()).kill();
                }
                child.kill();
            });
            born.wait();
            (0..10).map(|_| audit(&[&std::process::id().to_string()]).0).collect::<Vec<_>>()
        });
        // On a busy machine a moment may last longer.
        let mistakes = codes.iter().filter(|code| **code != 0).count();
        assert!(mistakes < 5, "copies were counted that were not there to stay: {codes:?}");
    });
}

/// What the audit prints is there for tests to ask.
#[test]
fn holdings_tell_who_holds_what() {
    clean_process(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let inode = testing::socket_of(&client);
        let child = idle_child();
        let holdings = Holdings::of(&[std::process::id(), child.pid()]).unwrap();
        child.kill();
        let [held] = holdings.shared_connections()[..] else { panic!("{holdings:?}") };
        assert_eq!(format!("socket:[{}]", held.socket.inode), inode);
        let pids: Vec<_> = held.holders.iter().map(|(process, fds)| (process.pid, fds[0])).collect();
        assert_eq!(pids[0], (std::process::id(), client.as_raw_fd()));
        assert_eq!(pids[1].1, client.as_raw_fd());
        assert_eq!(held.socket.state, SocketState::Connected("ESTABLISHED"));
        assert_eq!(holdings.shared().len(), 2, "the listener, too");
        assert!(holdings.holders_of(0).is_empty());
        assert_eq!(Holdings::of(&[4_194_304]).unwrap_err().kind(), io::ErrorKind::NotFound);
    });
}
