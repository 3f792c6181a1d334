//! What a child and its descendants say over the pipe to the process that waits for it.
//!
//! Several may write at once: so messages travel in pieces that the kernel does not mix, each with its writer's pid.

use super::proc::inode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

/// The pid of the writer, the length of the piece, and whether more come.
const HEADER: usize = 7;
const PIECE: usize = libc::PIPE_BUF - HEADER;

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message<T> {
    /// The closure returned, in the child itself.
    Returned(T),
    /// The closure panicked, in the child itself or in a descendant that was forked inside it and unwound out of it.
    Panicked(Panic),
    /// Somebody panicked. It may be caught yet.
    Saw(Panic),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Panic {
    /// Who it was, if not the child itself.
    pub(super) descendant: Option<u32>,
    pub(super) thread: String,
    pub(super) message: String,
    pub(super) location: String,
}

/// The pipe of the child that this process is or descends from.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// The identity of the pipe: the child may have put something else at its number.
static INODE: AtomicU64 = AtomicU64::new(0);
/// The child's pid as it sees it itself.
static CHILD: AtomicU32 = AtomicU32::new(0);

/// From here on this process is a child that reports over this pipe.
pub(super) fn to(pipe: &OwnedFd) {
    PIPE.store(pipe.as_raw_fd(), Relaxed);
    INODE.store(inode(pipe.as_raw_fd()), Relaxed);
    CHILD.store(std::process::id(), Relaxed);
}

/// Whether this process is a child of the kit, or descends from one.
pub(super) fn is_wanted() -> bool {
    PIPE.load(Relaxed) >= 0
}

/// This process, if it was forked inside a child by other means than the kit's.
pub(super) fn descendant() -> Option<u32> {
    Some(std::process::id()).filter(|pid| *pid != CHILD.load(Relaxed))
}

/// Says it, and waits until there is room for it.
pub(super) fn send<T: Serialize>(message: &Message<T>) {
    match serde_json::to_vec(message) {
        Ok(bytes) => say(&bytes, usize::MAX),
        Err(error) => send(&Message::<()>::Panicked(Panic {
            message: format!("its value cannot be sent: {error}"),
            ..Panic::default()
        })),
    }
}

/// Says it if there is room for it at once: who caught that panic may be needed elsewhere.
pub(super) fn mention(panic: Panic) {
    let mut ask = libc::pollfd { fd: PIPE.load(Relaxed), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd, ours.
    if unsafe { libc::poll(&raw mut ask, 1, 0) } == 1 && ask.revents == libc::POLLOUT {
        say(&serde_json::to_vec(&Message::<()>::Saw(panic)).unwrap_or_default(), 1);
    }
}

fn say(bytes: &[u8], most: usize) {
    let fd = PIPE.load(Relaxed);
    if inode(fd) != INODE.load(Relaxed) {
        return;
    }
    let pieces = bytes.chunks(PIECE);
    let last = pieces.len().saturating_sub(1);
    if last >= most {
        return;
    }
    for (place, piece) in pieces.enumerate() {
        let mut packet = Vec::with_capacity(HEADER + piece.len());
        packet.extend(std::process::id().to_ne_bytes());
        packet.extend((piece.len() as u16).to_ne_bytes());
        packet.push(u8::from(place < last));
        packet.extend(piece);
        loop {
            // SAFETY: the pointer and the length are those of a vector.
            let n = unsafe { libc::write(fd, packet.as_ptr().cast(), packet.len()) };
            match n {
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                // Whoever reads is gone; then nobody wants to know.
                -1 => return,
                _ => break,
            }
        }
    }
}

/// Puts the pieces together.
#[derive(Debug, Default)]
pub(super) struct Letters {
    unread: Vec<u8>,
    begun: BTreeMap<u32, Vec<u8>>,
}

impl Letters {
    /// What has become whole with these bytes.
    ///
    /// # Panics
    ///
    /// When a value does not survive its serialisation.
    pub(super) fn add<T: DeserializeOwned>(&mut self, bytes: &[u8]) -> Vec<Message<T>> {
        self.unread.extend_from_slice(bytes);
        let mut whole = Vec::new();
        while let Some((header, rest)) = self.unread.split_first_chunk::<HEADER>() {
            let length = usize::from(u16::from_ne_bytes([header[4], header[5]]));
            let Some(piece) = rest.get(..length) else { break };
            let pid = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
            let message = self.begun.entry(pid).or_default();
            message.extend_from_slice(piece);
            if header[6] == 0 {
                whole.push(serde_json::from_slice(message).unwrap_or_else(|error| {
                    panic!("what process {pid} reports cannot be read: {error}");
                }));
                self.begun.remove(&pid);
            }
            self.unread.drain(..HEADER + length);
        }
        whole
    }
}
