//! The other ends of unix sockets. `/proc` does not tell them.

use super::diag::{Diag, half, number};
use std::collections::BTreeMap;
use std::io;

/// From linux/unix_diag.h, which libc does not have.
const UDIAG_SHOW_PEER: u32 = 4;
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_SHUTDOWN: u16 = 6;

/// What is connected with a socket.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    pub(super) peer: Option<u64>,
    /// In both directions, by either side.
    pub(super) is_shut_down: bool,
}

/// The unix sockets in the network namespace of a process, by inode. Its files are in this folder of `/proc`.
///
/// # Errors
///
/// When the kernel does not tell, or its namespace may not be entered.
pub(super) fn ends(process: &str) -> io::Result<BTreeMap<u64, End>> {
    // Family, protocol and a pad; states; inode; what to show; a cookie of two words.
    let words = [u32::from_ne_bytes([libc::AF_UNIX as u8, 0, 0, 0]), u32::MAX, 0, UDIAG_SHOW_PEER, 0, 0];
    let mut ends = BTreeMap::new();
    Diag::of(process)?.ask(&words.map(u32::to_ne_bytes).concat(), libc::NLM_F_DUMP, |message| {
        // Family, type, state and a byte of nothing; the inode; a cookie of two words; attributes.
        if message.len() >= 16 {
            ends.insert(number(message, 4).into(), end(&message[16..]));
        }
    })?;
    Ok(ends)
}

fn end(mut attributes: &[u8]) -> End {
    let mut end = End::default();
    while attributes.len() >= 4 {
        let length = usize::from(half(attributes, 0)).clamp(4, attributes.len());
        let (kind, value) = (half(attributes, 2), &attributes[4..length]);
        match kind {
            UNIX_DIAG_PEER if value.len() >= 4 => end.peer = Some(number(value, 0).into()).filter(|inode| *inode != 0),
            UNIX_DIAG_SHUTDOWN => end.is_shut_down = value.first() == Some(&3),
            _ => {}
        }
        attributes = &attributes[length.next_multiple_of(4).min(attributes.len())..];
    }
    end
}
