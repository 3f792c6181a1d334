//! Numbers of the process's descriptor table that are kept for what a thread opens in a table of its own.

use super::{Moved, parcel};
use crate::fork::handler::sys::{self, Identity};
use crate::fork::{Descriptors, Registration};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;

/// How many numbers are kept: one more than a connection may have, so that it can be told that it has no more.
pub(super) const MOST: usize = 16;
/// With fewer than these left nothing is kept.
const FEWEST: usize = 4;
/// What standard input and its kin are for stays theirs.
const FIRST: RawFd = 3;

/// Placeholders, and the socket by which they are filled. A child that is forked meanwhile closes all of them.
pub(super) struct Reserved {
    numbers: Vec<RawFd>,
    /// Of the receiving end, of which the placeholders are duplicates.
    identity: Identity,
    receiver: RawFd,
    sender: RawFd,
    registration: Option<Registration>,
}

impl Reserved {
    /// `None`: there is no room. At most half of what is left is taken, for the other threads want to go on.
    pub(super) fn new() -> Option<Self> {
        let ends = sys::socket_pair()?.map(past_the_standard_streams);
        let [Some(receiver), Some(sender)] = ends else {
            ends.into_iter().flatten().for_each(sys::close);
            return None;
        };
        let mut reserved =
            Self { numbers: Vec::new(), identity: sys::look(receiver)?.identity, receiver, sender, registration: None };
        while reserved.numbers.len() < 2 * MOST
            && let Some(number) = sys::duplicate(receiver, FIRST)
        {
            reserved.numbers.push(number);
        }
        let given_back = reserved.numbers.split_off(reserved.numbers.len() / 2);
        given_back.into_iter().for_each(sys::close);
        if reserved.numbers.len() < FEWEST {
            return None;
        }
        let ends = Descriptors::of_raw(receiver).and_raw(sender);
        let all = reserved.numbers.iter().fold(ends, |all, number| all.and_raw(*number));
        reserved.registration = Registration::publish(all).ok().inspect(Registration::rest);
        Some(reserved)
    }

    pub(super) fn numbers(&self) -> &[RawFd] {
        &self.numbers
    }

    /// From the lowest to the highest that is kept.
    pub(super) fn range(&self) -> RangeInclusive<RawFd> {
        let bounds = self.numbers.iter().min().zip(self.numbers.iter().max());
        bounds.map_or(FIRST..=FIRST, |(min, max)| *min..=*max)
    }

    pub(super) fn sender(&self) -> RawFd {
        self.sender
    }

    /// Puts what has been sent under its numbers.
    ///
    /// # Errors
    ///
    /// There is no room for the one that is being moved, or a limit has been lowered below its number, or its number is another's by
    /// now: what the closure opened was closed by another thread meanwhile, which closed the placeholder. What is not in its place
    /// has a placeholder there, or what another thread has opened.
    pub(super) fn place(&self, moved: &[Moved]) -> io::Result<()> {
        // Each needs a second number for a moment.
        self.give_back(|number| moved.iter().all(|one| one.fd != number));
        for Moved { fd, closes_on_exec } in moved {
            let received = parcel::receive(self.receiver)?;
            let is_there = match sys::is(*fd, self.identity) {
                true => parcel::put_over(received, *fd, *closes_on_exec),
                false => Err(io::Error::other("another thread has closed a number that was kept for it")),
            };
            sys::close(received);
            is_there?;
        }
        Ok(())
    }

    fn give_back(&self, which: impl Fn(RawFd) -> bool) {
        // Nobody else has a duplicate of it; and a client whose descriptors were lost may have closed its number.
        let placeholders = self.numbers.iter().filter(|number| sys::is(**number, self.identity));
        placeholders.copied().filter(|number| which(*number)).for_each(sys::close);
    }
}

/// Where those are closed, what is said to them must not go to a socket that is used here.
pub(super) fn past_the_standard_streams(fd: RawFd) -> Option<RawFd> {
    if fd >= FIRST {
        return Some(fd);
    }
    let moved = sys::duplicate(fd, FIRST);
    sys::close(fd);
    moved
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.give_back(|_| true);
        sys::close(self.receiver);
        sys::close(self.sender);
    }
}
