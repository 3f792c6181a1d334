//! A client that brings an event loop of its own: the socket, an epoll under two numbers, and an eventfd that wakes it.
//!
//! A child inherits the epoll itself, not a copy. To take the socket off it would take it off for the parent, whose next
//! query would hang; to wait on it would steal the parent's events. So a child leaves it alone and gets one of its own
//! under the same numbers, with the same token for the socket: code that was in the middle of a query when the fork came
//! waits there, and is told at once that its (dead) socket has hung up. Nobody has to wake it: the threads that would are the
//! parent's. But things that the client has handed out still write to its eventfd, so a dead one stays under that number.
//!
//! Epolls and eventfds have no identity that `fstat` could tell. The epoll can: `EPOLL_CTL_MOD` succeeds only if this very
//! file is watched under this very number, and with what is registered already it changes nothing. (The parent's loop may
//! look once more at a socket that has no news.) What it does not confirm is somebody else's by now, and is not touched.
//!
//! All of it runs in the child handler: atomics and system calls of [`sys`], no lock, no allocation, no panic, no thread-local.

use super::dead::Dead;
pub(crate) use super::sys::Watched;
use super::sys::{self, Identity};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::*};

/// The descriptors of an event loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EventLoop {
    /// The two numbers of its epoll.
    pub(crate) epolls: [RawFd; 2],
    pub(crate) socket: Watched,
    pub(crate) waker: Watched,
    /// A runtime that handles signals listens on a socket that all runtimes of the process share.
    pub(crate) signals: Option<Watched>,
}

impl EventLoop {
    /// As far as the kernel confirms it. Ask while the socket is in its place.
    ///
    /// A parent that has closed the client since the fork has taken the socket off; the eventfd stays until the end. But all
    /// eventfds have the same token, so they say little where the loop's numbers may be another loop's by now.
    fn confirmed(self, is_ending: bool) -> Confirmed {
        let knows = |epoll| sys::watches(epoll, self.socket) || (!is_ending && sys::watches(epoll, self.waker));
        let epolls = self.epolls.map(|epoll| Some(epoll).filter(|&epoll| knows(epoll)));
        let Some(one) = epolls.into_iter().flatten().next() else { return Confirmed::default() };
        let confirm = |watched: &Watched| sys::watches(one, *watched);
        Confirmed { epolls, waker: Some(self.waker).filter(confirm), signals: self.signals.filter(confirm) }
    }

    /// For a client that nothing in this process can reach: closes what belongs to its socket. Call before that is closed.
    ///
    /// But for the eventfd: what the driver has handed out (a statement, and each row has one) still writes to it when it is
    /// dropped. Its number stays taken, by something that is returned, if it will be known again.
    pub(super) fn close(self, is_ending: bool, dead: &mut Dead) -> Option<(RawFd, Identity)> {
        let Confirmed { epolls, waker, signals } = self.confirmed(is_ending);
        let kept = waker.and_then(|waker| Some((waker.fd, dead.put_sink_over(waker.fd)?)));
        epolls.into_iter().flatten().chain(signals.map(|signals| signals.fd)).for_each(sys::close);
        kept
    }

    /// Puts something dead over the socket and the eventfd, and an epoll of this process's own under the numbers of the
    /// inherited one.
    pub(super) fn replace(self, is_ending: bool, dead: &mut Dead) {
        let Confirmed { epolls, waker, signals } = self.confirmed(is_ending);
        dead.put_over(self.socket.fd);
        if let Some(waker) = waker {
            dead.put_eventfd_over(waker.fd);
        }
        if let Some(signals) = signals {
            dead.put_over(signals.fd);
        }
        let mut epolls = epolls.into_iter().flatten();
        let Some(first) = epolls.next() else { return };
        let is_there = put_epoll_over(first);
        if is_there {
            sys::watch(first, self.socket);
            // By which our children know it for the loop's. A loop that is woken up for nothing waits again.
            waker.into_iter().for_each(|waker| _ = sys::watch(first, waker));
        }
        // Without the first there is no loop, and a free number is better than a shared epoll.
        for other in epolls.filter(|&other| !(is_there && sys::replace(first, other))) {
            sys::close(other);
        }
    }
}

#[derive(Default)]
struct Confirmed {
    epolls: [Option<RawFd>; 2],
    waker: Option<Watched>,
    signals: Option<Watched>,
}

/// Each loop needs its own: a token means something to one runtime only. If none can be had the number is closed.
fn put_epoll_over(fd: RawFd) -> bool {
    // In a full table its own place is the free place.
    let epoll = sys::epoll().or_else(|| {
        sys::close(fd);
        sys::epoll()
    });
    match epoll {
        Some(epoll) if epoll == fd => true,
        Some(epoll) => {
            let replaced = sys::replace(epoll, fd);
            sys::close(epoll);
            if !replaced {
                sys::close(fd);
            }
            replaced
        }
        None => false,
    }
}

/// An event loop, or none, in memory that a child may read while another process's thread was writing it.
#[derive(Debug)]
pub(super) struct Cell {
    epolls: [AtomicI32; 2],
    socket: WatchedCell,
    waker: WatchedCell,
    signals: WatchedCell,
}

impl Cell {
    pub(super) const fn new() -> Self {
        Self {
            epolls: [const { AtomicI32::new(-1) }; 2],
            socket: WatchedCell::new(),
            waker: WatchedCell::new(),
            signals: WatchedCell::new(),
        }
    }

    pub(super) fn store(&self, event_loop: Option<EventLoop>) {
        for (number, cell) in self.epolls.iter().enumerate() {
            cell.store(event_loop.map_or(-1, |event_loop| event_loop.epolls[number]), Relaxed);
        }
        self.socket.store(event_loop.map(|event_loop| event_loop.socket));
        self.waker.store(event_loop.map(|event_loop| event_loop.waker));
        self.signals.store(event_loop.and_then(|event_loop| event_loop.signals));
    }

    pub(super) fn load(&self) -> Option<EventLoop> {
        Some(EventLoop {
            epolls: self.epolls.each_ref().map(|epoll| epoll.load(Relaxed)),
            socket: self.socket.load()?,
            waker: self.waker.load()?,
            signals: self.signals.load(),
        })
    }
}

#[derive(Debug)]
struct WatchedCell {
    fd: AtomicI32,
    events: AtomicU32,
    token: AtomicU64,
}

impl WatchedCell {
    const fn new() -> Self {
        Self { fd: AtomicI32::new(-1), events: AtomicU32::new(0), token: AtomicU64::new(0) }
    }

    fn store(&self, watched: Option<Watched>) {
        let Watched { fd, events, token } = watched.unwrap_or(Watched { fd: -1, events: 0, token: 0 });
        self.fd.store(fd, Relaxed);
        self.events.store(events, Relaxed);
        self.token.store(token, Relaxed);
    }

    fn load(&self) -> Option<Watched> {
        let fd = self.fd.load(Relaxed);
        (fd >= 0).then(|| Watched { fd, events: self.events.load(Relaxed), token: self.token.load(Relaxed) })
    }
}
