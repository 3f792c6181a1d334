//! In a process with a single thread there is nobody else: what is open after the closure and was not before is the closure's.
//!
//! So it is in each child that has just been forked, whatever its parent was; and there no thread is started for it, which in
//! such a child may hang (glibc's `pthread_create` takes a lock of the loader's that a thread of the parent's may have held).

use super::listing::Listing;
use super::{GONE_WITHIN, Unobserved, Why};
use crate::fork::Descriptors;
use crate::fork::handler::sys;
use std::thread;
use std::time::{Duration, Instant};

pub(super) fn observe<T, E>(connect: impl FnOnce() -> Result<T, E>) -> Result<Result<(T, Descriptors), E>, Unobserved> {
    let before = Listing::now()?;
    let client = match connect() {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    // Threads of the driver's that live on may open more.
    if !is_alone_soon() {
        return Err(Unobserved(Why::LeftThreads));
    }
    let opened = before.opened_since()?;
    if !opened.iter().any(|fd| super::can_be_registered(*fd)) {
        return Err(Unobserved(Why::NoSocket));
    }
    Ok(Ok((client, super::own(opened.into_iter()))))
}

/// A thread that has been joined may still be about to go.
fn is_alone_soon() -> bool {
    let until = Instant::now() + GONE_WITHIN;
    while !sys::is_single_threaded() {
        if Instant::now() > until {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}
