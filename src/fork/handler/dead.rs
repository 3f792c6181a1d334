//! What a child puts under the numbers of descriptors that it must not have: one dead socket for all of them, and for event
//! loops one eventfd that wakes nobody of the parent's. And a pair of sockets in place of the program's signal pipe.
//!
//! All of it runs in the child handler: system calls of [`sys`], no lock, no allocation, no panic, no thread-local.

use super::sys::{self, Identity};
use super::table::SIGNAL_SENDER;
use std::os::fd::RawFd;

/// Each is made when it is first needed, and put under as many numbers as it takes.
#[derive(Default)]
pub(super) struct Dead {
    socket: Option<RawFd>,
    eventfd: Option<RawFd>,
    sink: Option<RawFd>,
}

impl Dead {
    fn make(&mut self) {
        if self.socket.is_none() {
            self.socket = sys::dead_socket();
        }
    }

    /// Over an inherited socket. False if the number had to be closed instead.
    pub(super) fn put_over(&mut self, fd: RawFd) -> bool {
        self.make();
        if self.socket.is_none() {
            // The table is full. The inherited socket's own place is the free place then.
            sys::close(fd);
            match sys::unconnected_socket() {
                Some(place) if place == fd => return true,
                other => self.socket = other,
            }
        }
        put(self.socket, fd)
    }

    /// The dead socket, if one was made and there was room for it.
    #[cfg(feature = "net")]
    pub(super) fn socket(&self) -> Option<RawFd> {
        self.socket
    }

    /// Over an inherited eventfd.
    pub(super) fn put_eventfd_over(&mut self, fd: RawFd) {
        if self.eventfd.is_none() {
            self.eventfd = sys::eventfd();
        }
        if self.eventfd.is_none() {
            // As above. The number must not become a file's: the driver writes to it.
            sys::close(fd);
            match sys::eventfd() {
                Some(place) if place == fd => return,
                other => self.eventfd = other,
            }
        }
        let _is_there = put(self.eventfd, fd);
    }

    /// Over the eventfd of a client that nothing in this process can reach: something that swallows what is written. Returns how
    /// it will be known again, unless it could not be had (then an eventfd is there, which looks like any other).
    pub(super) fn put_sink_over(&mut self, fd: RawFd) -> Option<Identity> {
        if self.sink.is_none() {
            self.sink = sys::sink();
        }
        match self.sink {
            Some(sink) if sys::replace(sink, fd) => sys::look(fd).map(|open| open.identity),
            _ => {
                self.put_eventfd_over(fd);
                None
            }
        }
    }

    /// Into a free place. False if a thread of this process was faster, or there is no room.
    pub(super) fn put_into(&mut self, fd: RawFd) -> bool {
        self.make();
        if self.lies_at(fd) {
            self.leave_at(fd); // It was the lowest free number.
            return true;
        }
        let place = self.socket.and_then(|dead| sys::duplicate(dead, fd));
        place.into_iter().filter(|&place| place != fd).for_each(sys::close);
        place == Some(fd)
    }

    /// Whether one of them was made at this very number.
    pub(super) fn lies_at(&self, fd: RawFd) -> bool {
        [self.socket, self.eventfd, self.sink].contains(&Some(fd))
    }

    /// What lies there stays; the next that is needed is another.
    pub(super) fn leave_at(&mut self, fd: RawFd) {
        for one in [&mut self.socket, &mut self.eventfd, &mut self.sink] {
            one.take_if(|place| *place == fd);
        }
    }

    pub(super) fn done(self) {
        [self.socket, self.eventfd, self.sink].into_iter().flatten().for_each(sys::close);
    }
}

/// A descriptor limit below the number forbids dup3, and a full table has no room for the dead. Better a free number than a
/// shared descriptor. Whether it is there.
fn put(dead: Option<RawFd>, over: RawFd) -> bool {
    let is_there = dead.is_some_and(|dead| sys::replace(dead, over));
    if !is_there {
        sys::close(over);
    }
    is_there
}

/// The pair that takes the place of the parent's signal pipe, made when the first of its ends is needed.
#[derive(Default)]
pub(super) struct Pair(Option<[RawFd; 2]>);

impl Pair {
    /// Puts an end of it over one of the parent's. In a full table there is no room for a pair, and the parent's stays.
    pub(super) fn put_over(&mut self, fd: RawFd, state: u32) {
        if self.0.is_none() {
            self.0 = sys::socket_pair();
        }
        if let Some([receiver, sender]) = self.0 {
            sys::replace(if state == SIGNAL_SENDER { sender } else { receiver }, fd);
        }
    }

    pub(super) fn done(self) {
        self.0.into_iter().flatten().for_each(sys::close);
    }
}
