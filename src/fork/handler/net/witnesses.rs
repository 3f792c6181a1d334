//! Who can be asked whether a connection was made or accepted, where the kernel's [counts](super::origin) leave it open. Each can be
//! mistaken:
//!
//! - a listening socket of the same port in this process: that has accepted it;
//! - a local port that the kernel does not give to those who connect;
//! - `SO_REUSEADDR`, which servers set, and whom they accept has it from them.
//!
//! Who was mistaken for accepted is shared, and nobody notices; who was mistaken for made here is dead, and somebody does. So where the
//! counts are those of an accepted one it takes any of them, and where they say nothing the first, or both of the others.

use super::calls::{self, Socket};
use super::numbers;
use super::origin::Counts;
use super::peer;
use crate::fork::handler::disown::Birth;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

pub(super) struct Witnesses {
    birth: Birth,
    listeners: Listeners,
    given: RangeInclusive<u16>,
}

impl Witnesses {
    pub(super) fn new(birth: Birth) -> Self {
        Self { birth, listeners: Listeners::new(birth), given: given_ports() }
    }

    /// Whether a TCP connection counts as accepted.
    pub(super) fn say_accepted(&mut self, fd: RawFd, counts: Counts) -> bool {
        let Some(port) = calls::local_port(fd) else { return true };
        let is_a_servers = !self.given.contains(&port);
        match counts {
            Counts::Accepted => true,
            Counts::Connected => false,
            Counts::PerhapsAccepted => is_a_servers || calls::reuses_address(fd) || self.listeners.have(port),
            Counts::Nothing => is_a_servers && calls::reuses_address(fd) || self.listeners.have(port),
        }
    }

    /// Whether a unix socket has the name of a listening one: whoever connects has none, as a rule, or one of its own.
    pub(super) fn say_accepted_unix(&self, fd: RawFd) -> bool {
        let name_of = |fd| calls::local_address(fd).as_ref().and_then(peer::unix);
        let Some(name) = name_of(fd) else { return false };
        let mut has_listener = false;
        numbers::each_open(self.birth, |other| {
            let socket = calls::look(other);
            has_listener |=
                matches!(socket, Socket::Other) && calls::is_listening(other) && name_of(other) == Some(name);
            !matches!(socket, Socket::Closed)
        });
        has_listener
    }
}

/// The ports that the kernel gives to those who connect: the first and the last, as far as it is known.
static GIVEN: AtomicU32 = AtomicU32::new((32768 << 16) | 60999);

fn given_ports() -> RangeInclusive<u16> {
    let [a, b, c, d] = GIVEN.load(Relaxed).to_be_bytes();
    u16::from_be_bytes([a, b])..=u16::from_be_bytes([c, d])
}

/// Not in a handler. Asks the kernel which ports it gives to those who connect.
pub(in crate::fork) fn learn_given_ports() {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = text.split_whitespace().map_while(|port| port.parse::<u16>().ok());
    if let (Some(first), Some(last)) = (ports.next(), ports.next()) {
        GIVEN.store(u32::from(first) << 16 | u32::from(last), Relaxed);
    }
}

/// The ports on which this process listens, looked for when they are first asked for.
struct Listeners {
    birth: Birth,
    known: bool,
    /// As many as a process has, as a rule.
    ports: [u16; 64],
    count: usize,
}

impl Listeners {
    fn new(birth: Birth) -> Self {
        Self { birth, known: false, ports: [0; 64], count: 0 }
    }

    /// True if there are more than we have room for: then it may be one of them.
    fn have(&mut self, port: u16) -> bool {
        if !self.known {
            self.known = true;
            self.find();
        }
        self.count > self.ports.len() || self.ports.iter().take(self.count).any(|&one| one == port)
    }

    fn find(&mut self) {
        numbers::each_open(self.birth, |fd| {
            let socket = calls::look(fd);
            if matches!(socket, Socket::Tcp(_) | Socket::Unknown)
                && calls::is_listening(fd)
                && let Some(port) = calls::local_port(fd)
                && !self.ports.iter().take(self.count).any(|&one| one == port)
            {
                if let Some(place) = self.ports.get_mut(self.count) {
                    *place = port;
                }
                self.count = (self.count + 1).min(self.ports.len() + 1);
            }
            !matches!(socket, Socket::Closed)
        });
    }
}
