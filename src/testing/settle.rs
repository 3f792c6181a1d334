//! Waiting until a server of the kit has read what was written to it.

use super::sockets;
use super::stream::Address;
use parking_lot::MutexGuard;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::thread;
use std::time::{Duration, Instant};

/// Where a server reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source {
    /// The number of the connection, never used again.
    pub(super) id: u64,
    pub(super) fd: RawFd,
    /// Who writes there, over tcp.
    pub(super) client: Option<SocketAddr>,
}

/// Waits until everything that was written to the server at `address` before the call has been read, and everybody who
/// knocked before it has been let in. `lock` locks what the server locks to read; `sources` tells where it reads, and its
/// listener.
///
/// Each source is done when it has been seen with nothing on its way: where several are busy all the time there may be no
/// moment at which all are quiet.
///
/// # Panics
///
/// When that does not come within the kit's [patience](super::patience).
#[track_caller]
pub(super) fn settled<'a, S>(
    address: &Address,
    lock: impl Fn() -> MutexGuard<'a, S>,
    sources: impl Fn(&S) -> (Vec<Source>, RawFd),
) -> MutexGuard<'a, S> {
    let until = Instant::now() + super::patience();
    let mut quiet = BTreeSet::new();
    // Who was there when the door had been seen to be quiet: all who had knocked before the call.
    let mut present: Option<BTreeSet<u64>> = None;
    loop {
        // The network first: what it has delivered is waiting to be read, and that is looked at next.
        let under_way = match address {
            Address::Tcp(address) => sockets::under_way_to(*address),
            Address::Unix(_) => sockets::UnderWay::default(),
        };
        let state = lock();
        let (sources, listener) = sources(&state);
        let ready = readable(sources.iter().map(|source| source.fd).chain([listener]));
        if present.is_none() && !under_way.is_knocking && ready.last() == Some(&false) {
            present = Some(sources.iter().map(|source| source.id).collect());
        }
        // What two sources have to say of one connection is done when both are.
        let is_busy = |source: &Source| source.client.is_some_and(|client| under_way.senders.contains(&client));
        let busy: BTreeSet<u64> = sources
            .iter()
            .zip(&ready)
            .filter(|(source, ready)| **ready || is_busy(source))
            .map(|(s, _)| s.id)
            .collect();
        quiet.extend(sources.iter().map(|source| source.id).filter(|id| !busy.contains(id)));
        let open: BTreeSet<u64> = sources.iter().map(|source| source.id).collect();
        // One that has been closed since was read to its end.
        if present.as_ref().is_some_and(|present| present.iter().all(|id| quiet.contains(id) || !open.contains(id))) {
            return state;
        }
        drop(state);
        assert!(Instant::now() < until, "bytes are on their way to {address} for ever");
        thread::sleep(Duration::from_micros(200));
    }
}

/// Which of them have something to read, or have ended.
fn readable(fds: impl Iterator<Item = RawFd>) -> Vec<bool> {
    let mut ask: Vec<_> = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the pointer and the length are those of a vector of ours.
    unsafe { libc::poll(ask.as_mut_ptr(), ask.len() as libc::nfds_t, 0) };
    ask.into_iter().map(|ask| ask.revents != 0).collect()
}
