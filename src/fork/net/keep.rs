//! Connections that a program hands to its children on purpose.

use crate::fork::generation;
use crate::fork::handler::net::expect_kept;
use crate::fork::handler::sys::{self, Identity};
use crate::fork::handler::table::{self, Entry, FREE, HANDED_ON};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::Ordering::*;

/// A connection that the net leaves alone for as long as this lives. Of [`keep`].
///
/// It is inherited with the connection: what a child is to keep its children keep, until they drop it.
#[derive(Debug)]
#[must_use = "the connection is kept for as long as this lives"]
pub struct Kept {
    entry: &'static Entry,
    identity: Identity,
}

/// Has the net leave a connection alone, in every child that is made while what is returned lives: the program hands it on, and
/// sees to it that one process at a time uses it.
///
/// It is about the connection, under whatever number; and about the [`Policy`](super::Policy) of this program. A preloaded library knows nothing
/// of it, but with such a policy it does nothing.
///
/// ```
/// use forksafe::fork::{self, net::Policy};
/// use std::net::{TcpListener, TcpStream};
///
/// Policy::tcp().set()?;
/// let server = TcpListener::bind("127.0.0.1:0")?;
/// let client = TcpStream::connect(server.local_addr()?)?;
/// let kept = fork::keep(&client)?;
/// // SAFETY: the child asks, and leaves.
/// match unsafe { libc::fork() } {
///     0 => unsafe { libc::_exit(i32::from(client.peer_addr().is_err())) },
///     child => {
///         let mut status = 0;
///         unsafe { libc::waitpid(child, &mut status, 0) };
///         assert_eq!(status, 0, "the child can use it");
///     }
/// }
/// drop(kept); // children of later forks cannot
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is not a socket: the net takes nothing else.
pub fn keep(connection: &impl AsFd) -> io::Result<Kept> {
    generation(); // What this process has inherited is swept first.
    let fd = connection.as_fd().as_raw_fd();
    match sys::look(fd) {
        Some(open) if open.is_socket => {
            expect_kept();
            let entry = table::claim();
            entry.write(fd, None, open.identity, HANDED_ON);
            Ok(Kept { entry, identity: open.identity })
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "only a socket can be kept: the net takes nothing else")),
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let is_there = self.entry.state.load(Acquire) == HANDED_ON && self.entry.descriptor().1 == self.identity;
        if is_there {
            self.entry.state.store(FREE, Release);
            table::freed();
        }
    }
}
