//! Who opened the connection that a server has just accepted, as far as the kernel tells.

use super::diag::{Diag, number};
use super::launched;
use super::proc::{self, Process};
use super::sockets::inode_of;
use super::stream::Stream;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

/// More processes than this are not looked into at each connection: it would take as long as the connection.
const MOST: usize = 16;

/// A process that opened a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opener {
    /// Its pid and the moment of its start, as [`proc::name_of`] has it. Of one that had gone by then, the pid alone.
    pub(super) name: String,
    /// Whether it is known; otherwise an older process may have opened the connection and closed it since.
    is_certain: bool,
}

impl Opener {
    /// Whether a process that wrote on the connection is not the one that opened it.
    pub(super) fn is_not(&self, writer: &str) -> bool {
        let (pid, start) = split(writer);
        match split(&self.name) {
            (opener, None) => opener != pid,
            (_, opened) => self.name != writer && (self.is_certain || opened < start),
        }
    }
}

/// `4711.1234567`, or `4711`.
fn split(name: &str) -> (Option<u32>, Option<u64>) {
    let (pid, start) = name.split_once('.').unwrap_or((name, ""));
    (pid.parse().ok(), start.parse().ok())
}

/// What it takes to find out. One descriptor, kept: to open one at each connection would disturb a test that looks at
/// what its process has open.
#[derive(Debug)]
pub(super) struct Openers {
    diag: Option<Diag>,
    /// This process, as `/proc` has it; `None` if that shows another namespace of pids than the one that this is in.
    me: Option<u32>,
}

impl Openers {
    pub(super) fn new() -> Self {
        let me = std::fs::read_link("/proc/self").ok().and_then(|me| me.to_str()?.parse().ok());
        let me = me.filter(|me| *me == std::process::id());
        let diag = Diag::here().ok();
        diag.iter().for_each(super::stream::own);
        Self { diag, me }
    }

    /// Of a connection that was accepted just now. `None` if the kernel does not tell, or the client has gone.
    pub(super) fn of(&self, accepted: &Stream) -> Option<Opener> {
        let me = self.me?;
        match accepted {
            Stream::Unix(_) => peer_of(accepted)
                .map(|pid| Opener { name: proc::name_of(pid).unwrap_or_else(|| pid.to_string()), is_certain: true }),
            Stream::Tcp(stream) => {
                let socket = self.inode(stream.peer_addr().ok()?, stream.local_addr().ok()?)?;
                if holds_here(socket) {
                    // It was there before the server, so it has inherited no connection to it.
                    let name = proc::name_of(me)?;
                    return (!launched::somebody_shares_the_table()).then_some(Opener { name, is_certain: true });
                }
                let descendants = descendants(me);
                if descendants.len() > MOST {
                    return None;
                }
                let holders = descendants.into_iter().filter(|pid| holds(*pid, socket)).collect::<Vec<_>>();
                if holders.is_empty() {
                    let all = Process::all().unwrap_or_default().into_iter().map(|process| process.pid);
                    return oldest(all.filter(|pid| holds(*pid, socket)).collect());
                }
                oldest(holders)
            }
        }
    }

    /// Of the client's end.
    fn inode(&self, client: SocketAddr, server: SocketAddr) -> Option<u64> {
        let mut inode = 0;
        self.diag.as_ref()?.ask(&request(client, server), 0, |answer| inode = number(answer, 68).into()).ok()?;
        (inode != 0).then_some(inode)
    }
}

/// `inet_diag_req_v2`, for the socket that has these ends.
fn request(local: SocketAddr, peer: SocketAddr) -> Vec<u8> {
    let words = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => [&ip.octets()[..], &[0; 12]].concat(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut request = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    // In every state.
    request.extend(u32::MAX.to_ne_bytes());
    request.extend([local.port().to_be_bytes(), peer.port().to_be_bytes()].concat());
    request.extend([words(local.ip()), words(peer.ip())].concat());
    // At no particular interface, with no cookie.
    request.extend([0, u32::MAX, u32::MAX].map(u32::to_ne_bytes).concat());
    request
}

/// Who connected a unix socket: the process that called `connect`, by its pid in this namespace.
fn peer_of(accepted: &Stream) -> Option<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: a struct of ours and its size.
    let known = unsafe {
        libc::getsockopt(
            accepted.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut size,
        )
    };
    u32::try_from(peer.pid).ok().filter(|pid| known == 0 && *pid != 0)
}

/// This process. Looked at by number: it may hold hundreds.
fn holds_here(socket: u64) -> bool {
    let all = std::fs::read_dir("/proc/thread-self/fd").into_iter().flatten().flatten();
    let mut numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.any(|fd| proc::inode(fd) == socket)
}

fn holds(pid: u32, socket: u64) -> bool {
    proc::try_descriptors(pid).is_ok_and(|all| all.values().any(|name| inode_of(name) == Some(socket)))
}

/// Whoever inherited it came later. Of two that are as old, to the hundredth of a second, neither.
fn oldest(holders: Vec<u32>) -> Option<Opener> {
    let mut names: Vec<_> = holders.into_iter().filter_map(proc::name_of).collect();
    names.sort_by_key(|name| split(name).1);
    let is_one = names.len() < 2 || split(&names[0]).1 < split(&names[1]).1;
    names.into_iter().next().filter(|_| is_one).map(|name| Opener { name, is_certain: false })
}

/// Of a process, by what the kernel lists. A kernel without that list has none.
fn descendants(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
        let children: Vec<u32> =
            lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect();
        all.extend(children);
    }
    all.split_off(1)
}
