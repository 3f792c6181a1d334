//! What runs in a process that does not know yet that it is new: inside the `pthread_atfork` handlers, and in the first call
//! of a child that was made without them.
//!
//! An island: nothing in here imports from outside, so that one can check it for async-signal-safety by reading. What holds
//! for every function of it that a handler can reach:
//!
//! - It calls functions of this folder, atomics, and system calls that are made raw: under the name of libc's function there may be
//!   another library's, with a lock in it ([`sys`]).
//! - It takes no lock and waits for nobody. (A thread that finds another one at the work of [`birth`] yields until the
//!   generation is there; a handler never does.)
//! - It does not allocate, does not panic, and uses no thread-local but `errno`, which [`sys::Quiet`] puts back.
//!
//! What cannot be reached from a handler says so, as [`page::install`], [`table::grow`], [`birth::find_out`] do.
//!
//! The files, bottom first: [`sys`] is the system calls. [`page`] is the word that the kernel wipes in a child, [`counters`]
//! the forks in progress, [`table`] the registered descriptors. [`dead`] is what a child puts in their place, [`event_loop`]
//! how that is done for an epoll and what belongs to it, [`disown`] the walk through the table, `net` that through all other
//! descriptors. [`birth`] does all of it
//! once, and [`control`] switches it off for control runs.

pub(super) mod birth;
#[cfg(feature = "testing")]
pub(crate) mod control;
pub(super) mod counters;
mod dead;
pub(super) mod disown;
pub(crate) mod event_loop;
#[cfg(feature = "net")]
pub(super) mod net;
mod page;
pub(super) mod sys;
pub(super) mod table;

pub(super) use page::BUSY;
#[cfg(feature = "testing")]
pub(crate) use page::is_fallback;
