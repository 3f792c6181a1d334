//! The one pair of sockets through which a tokio with signals tells its runtimes that one has come.
//!
//! It belongs to the program, not to a runtime: the signal handler writes a byte into the sender, and every new runtime
//! makes a copy of the receiver and reads it empty. A child inherits both. A runtime that it makes (a client connects, no
//! more) would eat the bytes that were meant for its parent, which then never hears of its signal. So a child gets a pair of
//! its own under the same numbers, at birth, and its own signals reach its own runtimes.
//!
//! The receivers are known by the socket that they are copies of. The sender is the socket that hears what is said into the
//! receiver: nobody else ever speaks in that direction, or listens.

use super::handler::sys;
use super::handler::table::{self, SIGNAL_RECEIVER, SIGNAL_SENDER};
use super::probe::{self, Kind};
use super::{PerProcess, generation};
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

static PROTECTING: PerProcess<Mutex<()>> = PerProcess::new(Mutex::default);

/// Sees to it that children of this process get a pair of their own instead of the one that `receiver` is a copy of, whose
/// numbers are all below `table`. If its sender cannot be found nothing is done: half a pair would be worse than none.
pub(crate) fn protect(receiver: RawFd, table: impl FnOnce() -> Option<RawFd>) {
    let _one_at_a_time = PROTECTING.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(shared) = sys::look(receiver) else { return };
    if table::has(SIGNAL_RECEIVER, shared.identity) {
        return;
    }
    let Some(table) = table() else { return };
    let sockets: Vec<RawFd> = (0..table).filter(|&fd| probe::kind(fd) == Kind::Anonymous).collect();
    let Some(sender) = sender_to(receiver, &sockets) else { return };
    // The client's own copy comes and goes with the client.
    for copy in sockets.into_iter().filter(|&fd| fd != receiver && sys::is(fd, shared.identity)) {
        publish_for_ever(copy, SIGNAL_RECEIVER);
    }
    publish_for_ever(sender, SIGNAL_SENDER);
}

/// Names a descriptor that stays open as long as the process, and is no connection's.
fn publish_for_ever(fd: RawFd, state: u32) {
    if let Some(open) = sys::look(fd) {
        table::claim().write(fd, None, open.identity, state);
    }
}

/// The other end of the pair, among these.
fn sender_to(receiver: RawFd, sockets: &[RawFd]) -> Option<RawFd> {
    let word = word();
    if !send(receiver, &word) {
        return None;
    }
    let hears = |&fd: &RawFd| {
        let mut heard = [0; 32];
        // A look takes away an error that a socket has for its owner.
        has_only_news(fd) && receive(fd, &mut heard, libc::MSG_PEEK) == word.len() as isize && heard == word
    };
    let sender = sockets.iter().copied().find(hears);
    if let Some(sender) = sender {
        receive(sender, &mut { word }, 0);
    }
    sender
}

/// What nobody says by chance.
fn word() -> [u8; 32] {
    let mut word = *b"forksafe looks for a sender ....";
    let here: [u8; 8] = (u64::from(std::process::id()) << 32 ^ generation().0.get()).to_ne_bytes();
    word[24..].copy_from_slice(&here);
    word
}

fn has_only_news(socket: RawFd) -> bool {
    let mut poll = libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of ours.
    unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents == libc::POLLIN }
}

fn send(socket: RawFd, word: &[u8]) -> bool {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the pointer and the length are those of a slice; a number that is no socket is an error.
    unsafe { libc::send(socket, word.as_ptr().cast(), word.len(), flags) == word.len() as isize }
}

fn receive(socket: RawFd, into: &mut [u8], how: libc::c_int) -> isize {
    // SAFETY: as above, and the slice is ours to be written.
    unsafe { libc::recv(socket, into.as_mut_ptr().cast(), into.len(), how | libc::MSG_DONTWAIT) }
}
