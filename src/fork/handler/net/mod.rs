//! The net: a child also disowns the connections that nobody has registered.
//!
//! The registry knows what a pool opened. A program has other clients, and this walks the whole table of descriptors for theirs:
//! every *outgoing* connection that the [rules](rules) name gets a dead socket over it, unless it is kept. It runs after the
//! registry's own walk, which has made dead or closed all that is registered.
//!
//! All of it runs in the child handler: atomics, system calls, and text that is written into memory of the stack. No lock, no
//! allocation, no panic, no thread-local.
//!
//! The files, bottom first: [`calls`] is the system calls, [`numbers`] finds the open descriptors, [`peer`] says where a
//! connection leads, [`origin`] who made it, as far as the kernel has counted, [`witnesses`] where it has not, [`rules`] what is wanted,
//! [`epolls`] what becomes of event loops, [`found`] is the table of what was found, [`tell`] says it,
//! and [`output`] is where.

mod calls;
mod epolls;
pub(in crate::fork) mod found;
mod numbers;
mod origin;
pub(in crate::fork) mod output;
pub(in crate::fork) mod peer;
pub(in crate::fork) mod rules;
mod tell;
mod witnesses;

use super::dead::Dead;
use super::disown::Birth;
use super::page::{self, Word};
use super::sys::{self, Identity};
use super::table::{self, FREE, HANDED_ON, WITHDRAWN};
use calls::Socket;
use epolls::Loops;
use found::Found;
use origin::Counts;
use peer::Peer;
use rules::{Mode, Rules};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering::*};
use witnesses::Witnesses;
pub(in crate::fork) use witnesses::learn_given_ports;

/// How a process ends that inherited what it is [denied](Mode::Deny).
pub(in crate::fork) const DENIED: i32 = 86;

/// Something is or was kept by its descriptor, so that it is worth looking for.
static ANY_KEPT: AtomicBool = AtomicBool::new(false);

/// Not in a handler: before the first entry is written that is [`HANDED_ON`].
pub(in crate::fork) fn expect_kept() {
    ANY_KEPT.store(true, SeqCst);
}

/// A new process has found nothing yet. `parent` is the one that was last known in this line: itself, when it takes stock once more.
pub(super) fn begin(parent: u32) {
    if parent != sys::pid() {
        found::forget(parent);
    }
}

/// Disowns what the rules name; or says that it is there, or ends the process. Only in a table of this process's own.
pub(super) fn sweep(birth: Birth, parent: u32, dead: &mut Dead) {
    let Some(rules) = rules::get() else { return };
    let parents = Parents::of(birth, parent);
    let mut witnesses = Witnesses::new(birth);
    let mut loops = Loops::new();
    numbers::each_open(birth, |fd| {
        let socket = calls::look(fd);
        if matches!(socket, Socket::None) {
            loops.note(fd);
        }
        if let Some(peer) = unwanted(fd, &socket, rules, &mut witnesses)
            && !is_standard(fd, rules)
            && !is_somebodys(fd)
            && parents.may_have(fd)
        {
            if rules.mode == Mode::Disown {
                loops.will_disown(fd);
                calls::keeping_flags(fd, || dead.put_over(fd));
            }
            found::note(&Found { fd, peer, disowned: rules.mode == Mode::Disown });
        }
        !matches!(socket, Socket::Closed)
    });
    if let Some(dead) = dead.socket() {
        loops.replace(birth, dead);
    }
    tell::all(rules, parent);
    if rules.mode == Mode::Deny && found::total() > 0 {
        calls::exit(DENIED);
    }
}

/// Where it leads, if the rules want it disowned.
fn unwanted(fd: RawFd, socket: &Socket, rules: &Rules, witnesses: &mut Witnesses) -> Option<Peer> {
    let (counts, peer) = match socket {
        Socket::Tcp(info) if rules.tcp => match origin::count(fd, info) {
            Counts::Accepted => return None,
            counts => (counts, Peer::tcp(fd)),
        },
        Socket::Other if !rules.udp && rules.unix.is_empty() => return None,
        Socket::Other | Socket::Unknown => match Peer::other(fd)? {
            peer @ Peer::Tcp(_) => (Counts::Nothing, peer),
            Peer::Unix(_) if witnesses.say_accepted_unix(fd) => return None,
            peer => (Counts::Connected, peer),
        },
        Socket::Tcp(_) | Socket::None | Socket::Closed => return None,
    };
    if counts != Counts::Connected && witnesses.say_accepted(fd, counts) {
        return None;
    }
    (rules.want(&peer) && !rules.keep(fd, &peer)).then_some(peer)
}

/// Descriptors 0 to 2, if they are what they were when the policy was set, or go on into programs that are executed: somebody has put them
/// there. In a daemon that has closed its own they are as good as any other number.
fn is_standard(fd: RawFd, rules: &Rules) -> bool {
    let Some(was) = usize::try_from(fd).ok().and_then(|number| rules.standard.get(number)) else { return false };
    !calls::closes_on_exec(fd) || was.is_some() && *was == calls::file(fd)
}

/// Kept by its descriptor, or registered in this very process: another library's handler may have asked before ours, and then
/// made something.
fn is_somebodys(fd: RawFd) -> bool {
    let here = match page::look() {
        Word::Known(generation) => Some(generation.get()),
        Word::New(_) | Word::Busy => None,
    };
    let any_kept = ANY_KEPT.load(SeqCst);
    if here.is_none() && !any_kept {
        return false;
    }
    let Some(open) = sys::look(fd) else { return true };
    any_kept && table::has(HANDED_ON, open.identity) || here.is_some_and(|here| is_registered(open.identity, here))
}

fn is_registered(identity: Identity, here: u64) -> bool {
    table::entries().any(|entry| {
        let is_live = !matches!(entry.state.load(Acquire), FREE | WITHDRAWN | HANDED_ON);
        is_live && entry.is_registered_in(here) && entry.descriptor().1 == identity
    })
}

/// Whom a child can ask what was there before it. One that is made by libc's fork has had no time to open anything.
enum Parents {
    NoNeedToAsk,
    Ask { parent: u32, remembered: u32 },
}

impl Parents {
    fn of(birth: Birth, remembered: u32) -> Self {
        // 0 is a parent in another pid namespace, where the numbers that we know mean something else.
        match (birth, sys::parent_pid()) {
            (Birth::Handler, _) | (_, 0) => Self::NoNeedToAsk,
            (Birth::FirstCall, parent) => Self::Ask { parent, remembered },
        }
    }

    /// False if the child has opened it itself, before its first call; or if its parent has closed it meanwhile, and so shares it
    /// with nobody. Where nobody can be asked (they have ended, or it is forbidden) it counts as inherited: a dead socket is an
    /// error that its owner sees, a shared one is not.
    fn may_have(&self, fd: RawFd) -> bool {
        /// Who has lost his parent is its child, as a rule; it was not there when he was made, and knows nothing.
        const ADOPTS: u32 = 1;
        let &Self::Ask { parent, remembered } = self else { return true };
        let has = |pid| if pid == 0 || pid == sys::pid() { None } else { calls::is_same_file(fd, pid) };
        match has(parent) {
            Some(has) if parent == remembered => has,
            // Between the two is another, that has not looked.
            Some(false) if parent != ADOPTS => has(remembered) != Some(false),
            _ => true,
        }
    }
}
