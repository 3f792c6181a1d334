//! Whether a connection was made or accepted, where the kernel's counts do not say so.

use crate::kit;
use crate::net::{Connected, connected, connected_at, is_dead};
use forksafe::fork::net::Policy;
use forksafe::testing::{self, clean_process};
use std::io::{ErrorKind, Read, Write};
use std::mem;
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// Beyond those that the kernel gives to who connects.
const A_SERVERS_PORT: u16 = 7777;

/// What is written while there is no route is counted when it is tried, and again when it is sent.
fn miscount(all: &mut [Connected], text: &[u8]) {
    kit::set_route_to_here(false);
    for Connected { made, accepted, .. } in &mut *all {
        made.write_all(text).unwrap();
        accepted.write_all(text).unwrap();
    }
    kit::set_route_to_here(true);
    let mut heard = vec![0; text.len()];
    for Connected { made, accepted, .. } in all {
        made.read_exact(&mut heard).unwrap();
        accepted.read_exact(&mut heard).unwrap();
    }
}

fn are_dead(all: &[Connected]) -> Vec<(bool, bool)> {
    testing::child(|| all.iter().map(|one| (is_dead(&one.made), is_dead(&one.accepted))).collect()).join()
}

#[test]
fn what_was_sent_in_vain_and_counted_leaves_other_witnesses() {
    clean_process(|| {
        kit::own_network();
        Policy::tcp().set().unwrap();
        let at_a_servers_port = Connected { listener: None, ..connected_at(A_SERVERS_PORT) };
        let mut all = [connected(), at_a_servers_port];
        miscount(&mut all, b"to and fro");
        assert_eq!(are_dead(&all), [(true, false); 2]);
        all.iter_mut().for_each(Connected::assert_works);
    });
}

/// Then the counts are as those of an accepted one.
#[test]
fn one_byte_that_was_sent_in_vain_makes_nobody_a_server() {
    clean_process(|| {
        kit::own_network();
        Policy::tcp().set().unwrap();
        let mut all = [connected(), connected(), connected(), connected()];
        miscount(&mut all, b"x");
        assert_eq!(are_dead(&all), [(true, false); 4]);
    });
}

#[test]
fn an_answer_on_a_connection_that_is_over_is_not_for_a_child() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let Connected { listener: _listener, mut made, mut accepted } = connected();
        made.write_all(b"a question that nobody reads").unwrap();
        accepted.write_all(b"answer").unwrap();
        testing::wait_until("it is there", || made.peek(&mut [0; 6]).unwrap() == 6);
        drop(accepted); // With something unread: that resets it.
        testing::wait_until("it is over", || made.peer_addr().is_err());
        testing::child(|| assert_eq!(made.read(&mut [0; 6]).unwrap(), 0)).join();
        let mut answer = [0; 6];
        made.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
    });
}

/// After both ends have said so. Its server may hand it on with a question in it.
#[test]
fn an_accepted_connection_that_is_over_is_left_alone_whoever_ended_it_first() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        for accepted_ends_first in [false, true] {
            let Connected { listener: _listener, mut made, mut accepted } = connected();
            made.write_all(b"question").unwrap();
            let (first, second) = if accepted_ends_first { (&accepted, &made) } else { (&made, &accepted) };
            first.shutdown(Shutdown::Write).unwrap();
            second.shutdown(Shutdown::Write).unwrap();
            testing::wait_until("it is over", || accepted.peer_addr().is_err());
            let found = testing::child(|| {
                let mut question = [0; 8];
                accepted.read_exact(&mut question).unwrap();
                assert_eq!(&question, b"question");
                forksafe::fork::inherited().connections.iter().map(|one| one.descriptor).collect::<Vec<_>>()
            });
            assert_eq!(found.join(), [made.as_raw_fd()]);
        }
    });
}

/// A server that pauses: it will listen again.
#[test]
fn a_listener_that_was_shut_down_is_left_alone() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = || {
            // SAFETY: takes numbers.
            assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 1) }, 0, "{}", std::io::Error::last_os_error());
        };
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::shutdown(listener.as_raw_fd(), libc::SHUT_RDWR) }, 0);
        testing::child(listen).join();
        listen();
    });
}

/// Its owner may try again, with the same socket.
#[test]
fn a_socket_whose_connect_has_failed_is_dead_in_a_child() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as u16,
            sin_port: nobody.local_addr().unwrap().port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(Ipv4Addr::LOCALHOST).to_be() },
            sin_zero: [0; 8],
        };
        drop(nobody);
        // SAFETY: takes numbers and an address of ours, with its size; the socket is ours.
        let (socket, error) = unsafe {
            let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0));
            let size = mem::size_of_val(&address) as u32;
            let result = libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size);
            assert_eq!(result, -1);
            (socket, std::io::Error::last_os_error())
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let found = testing::child(|| {
            let found = forksafe::fork::inherited().connections;
            found.iter().map(|one| one.descriptor).collect::<Vec<_>>()
        });
        assert_eq!(found.join(), [socket.as_raw_fd()]);
    });
}

/// Whom it is connected to, and no address to connect it from: std has no way to bind a unix stream that connects.
fn named_unix_client(own: &SocketAddr, server: &SocketAddr) -> UnixStream {
    let address = |of: &SocketAddr| {
        // SAFETY: all of it is plain numbers.
        let mut address: libc::sockaddr_un = unsafe { mem::zeroed() };
        address.sun_family = libc::AF_UNIX as u16;
        let name = of.as_abstract_name().unwrap();
        for (to, from) in address.sun_path[1..].iter_mut().zip(name) {
            *to = *from as libc::c_char;
        }
        (address, (mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len()) as u32)
    };
    let ((own, own_size), (server, server_size)) = (address(own), address(server));
    // SAFETY: takes numbers and addresses of ours, with their sizes; the socket is ours.
    unsafe {
        let socket = OwnedFd::from_raw_fd(libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0));
        assert_eq!(libc::bind(socket.as_raw_fd(), (&raw const own).cast(), own_size), 0);
        assert_eq!(libc::connect(socket.as_raw_fd(), (&raw const server).cast(), server_size), 0);
        socket.into()
    }
}

#[test]
fn a_client_that_has_a_name_is_no_server_and_its_server_no_client() {
    clean_process(|| {
        let name = |what| {
            SocketAddr::from_abstract_name(format!("forksafe-net-origin-{}-{what}", std::process::id())).unwrap()
        };
        Policy::none().unix("@forksafe-net-origin-*").set().unwrap();
        let listener = UnixListener::bind_addr(&name("server")).unwrap();
        let client = named_unix_client(&name("client"), &name("server"));
        let accepted = listener.accept().unwrap().0;
        let is_alive = |mut stream: &UnixStream| stream.write(b"x").is_ok();
        let alive = testing::child(|| (is_alive(&client), is_alive(&accepted)));
        assert_eq!(alive.join(), (false, true));
    });
}

/// In a daemon that has closed what it was given.
#[test]
fn numbers_below_three_are_left_to_programs_that_are_executed_and_to_nobody_else() {
    clean_process(|| {
        let connected = connected();
        let put_at_0 = |flags| {
            // SAFETY: takes numbers; nobody reads from standard input here.
            let result = unsafe { libc::dup3(connected.made.as_raw_fd(), 0, flags) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        };
        let found = || {
            let found = testing::child(|| {
                forksafe::fork::inherited().connections.iter().map(|one| one.descriptor).collect::<Vec<_>>()
            });
            found.join()
        };
        // What was there when the policy was set stays, whatever its flags: Node sets them, and has it inherited all the same.
        testing::child(|| {
            put_at_0(0);
            Policy::tcp().set().unwrap();
            put_at_0(libc::O_CLOEXEC);
            assert_eq!(found(), [connected.made.as_raw_fd()]);
        })
        .join();
        Policy::tcp().set().unwrap();
        put_at_0(0);
        assert_eq!(found(), [connected.made.as_raw_fd()]);
        put_at_0(libc::O_CLOEXEC);
        assert_eq!(found(), [0, connected.made.as_raw_fd()]);
    });
}
