//! What is open in the calling thread's descriptor table.

use super::{Unobserved, Why};
use crate::fork::handler::sys::{self, Identity};
use std::fs;
use std::io;
use std::os::fd::RawFd;

/// Numbers and what is under them, in order.
pub(super) struct Listing(Vec<(RawFd, Identity)>);

impl Listing {
    /// To ask for each number is ten times faster than to have `/proc` list them.
    pub(super) fn now() -> Result<Self, Unobserved> {
        let status = fs::read_to_string("/proc/thread-self/status").map_err(no_list)?;
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")?.trim().parse::<RawFd>().ok());
        let size = size.ok_or_else(|| no_list(io::ErrorKind::InvalidData.into()))?;
        Ok(Self((0..size).filter_map(|fd| Some((fd, sys::look(fd)?.identity))).collect()))
    }

    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(|(fd, _)| *fd)
    }

    /// What is open now and was not then, or under that number something else was.
    pub(super) fn opened_since(&self) -> Result<Vec<RawFd>, Unobserved> {
        let mut now = Self::now()?;
        now.0.retain(|(fd, identity)| self.under(*fd) != Some(*identity));
        Ok(now.numbers().collect())
    }

    fn under(&self, number: RawFd) -> Option<Identity> {
        let place = self.0.binary_search_by_key(&number, |(fd, _)| *fd).ok()?;
        Some(self.0[place].1)
    }
}

pub(super) fn no_list(error: io::Error) -> Unobserved {
    match error.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => Unobserved(Why::NoRoom),
        _ => Unobserved(Why::NoList(error)),
    }
}
