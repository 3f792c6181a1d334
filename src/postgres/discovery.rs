//! Which descriptors a client is made of.
//!
//! None of them can be asked for. But a thread inside the client's runtime can register something in it: a pipe that
//! nobody else knows. The epolls that watch this pipe are the client's, and the kernel lists what else they watch: the
//! socket, the eventfd that wakes the runtime and, if the program's tokio handles signals, a socket for those. Nothing is
//! ever guessed: what is not exactly as expected is an error.

use super::NEEDED;
use crate::fork::event_loop::{EventLoop, Watched};
use crate::fork::probe::{self, Kind};
use crate::fork::{PerProcess, signal_pipe};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Once;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Builder;

/// The descriptors of the runtime that this thread is in, which has one connected socket. `from` is the number that was free
/// before any of them was opened.
///
/// # Errors
///
/// What was not as expected, for a person to read.
pub(super) fn event_loop_of_this_runtime(from: RawFd) -> Result<EventLoop, String> {
    let Runtime { epolls, sockets, wakers, mut signals } = this_runtime(from)?;
    let (&[socket], &[waker], [] | [_]) = (&sockets[..], &wakers[..], &signals[..]) else {
        return Err(unexpected(&format!(
            "its runtime watches {} sockets with a peer, {} eventfds and {} other sockets",
            sockets.len(),
            wakers.len(),
            signals.len()
        )));
    };
    let signals = signals.pop();
    signals.into_iter().for_each(protect);
    Ok(EventLoop { epolls, socket, waker, signals })
}

/// Children of this process get a signal pipe of their own from here on, if tokio has one: then every runtime watches it.
pub(super) fn protect_signals() {
    static DONE: PerProcess<Once> = PerProcess::new(Once::new);
    DONE.call_once(|| {
        let Ok(from) = probe::room_for(NEEDED) else { return };
        let Ok(runtime) = Builder::new_current_thread().enable_io().build() else { return };
        let inside = runtime.enter();
        this_runtime(from).into_iter().flat_map(|found| found.signals).for_each(protect);
        drop(inside);
        // It cannot be dropped on a thread that runs async code.
        runtime.shutdown_background();
    });
}

fn protect(receiver: Watched) {
    signal_pipe::protect(receiver.fd, || table_size().ok());
}

/// What a runtime is made of.
struct Runtime {
    epolls: [RawFd; 2],
    sockets: Vec<Watched>,
    wakers: Vec<Watched>,
    signals: Vec<Watched>,
}

fn this_runtime(from: RawFd) -> Result<Runtime, String> {
    let failed = |what: &str, error: io::Error| format!("cannot {what} to find a PostgreSQL client's socket: {error}");
    let (pipe, other_end) = io::pipe().map_err(|error| failed("make a pipe", error))?;
    let number = pipe.as_raw_fd();
    #[allow(deprecated, reason = "what takes its place is too new, and the pipe's descriptor is its own")]
    let pipe = AsyncFd::with_interest(pipe, Interest::READABLE).map_err(|error| failed("watch a pipe", error))?;

    // The kernel gives the lowest free numbers, so they are most likely between what was free before and what is taken now.
    let mut epolls = probe::epolls_that_watch(number, from..=number.max(other_end.as_raw_fd()));
    if epolls.len() != 2 {
        let last = table_size().map_err(|error| failed("read /proc/thread-self/status", error))? - 1;
        epolls = probe::epolls_that_watch(number, 0..=last);
    }
    let Ok(epolls) = <[RawFd; 2]>::try_from(&epolls[..]) else {
        return Err(unexpected(&format!("the epoll of its runtime has {} descriptors", epolls.len())));
    };
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", epolls[0]));
    let info = info.map_err(|error| failed("read /proc/thread-self/fdinfo", error))?;
    drop(pipe);

    let mut runtime = Runtime { epolls, sockets: Vec::new(), wakers: Vec::new(), signals: Vec::new() };
    for watched in watched(&info).filter(|watched| watched.fd != number) {
        match probe::kind(watched.fd) {
            Kind::Client => runtime.sockets.push(watched),
            Kind::Anonymous => runtime.signals.push(watched),
            Kind::Other if is_eventfd(watched.fd) => runtime.wakers.push(watched),
            Kind::Other => return Err(unexpected("its runtime watches something unknown")),
        }
    }
    Ok(runtime)
}

fn unexpected(what: &str) -> String {
    format!("the descriptors of a PostgreSQL client are not as those of the versions that forksafe knows: {what}")
}

/// The kernel's table of this process's descriptors has so many places.
fn table_size() -> io::Result<RawFd> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")?.trim().parse().ok());
    size.ok_or_else(|| io::Error::other("it does not say FDSize"))
}

/// `tfd:        6 events: 8000201d data:     7f2a54000c00  pos:0 ino:2ab sdev:8`
fn watched(fdinfo: &str) -> impl Iterator<Item = Watched> {
    fdinfo.lines().filter_map(|line| {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let fd = words.next()?.parse().ok()?;
        let events = (words.next()? == "events:").then(|| u32::from_str_radix(words.next()?, 16).ok())??;
        let token = (words.next()? == "data:").then(|| u64::from_str_radix(words.next()?, 16).ok())??;
        Some(Watched { fd, events, token })
    })
}

fn is_eventfd(fd: RawFd) -> bool {
    fs::read_link(format!("/proc/thread-self/fd/{fd}")).is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}
