//! The addresses of a manager's hosts, looked up where it is safe.

use crate::fork::{Generation, PerProcess, generation};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering::*};

/// What was resolved when the pool was built, and whether that is still believed.
///
/// `getaddrinfo` takes locks of libc's; in a child of a process that was in the middle of one it hung 17 times of 500.
/// So a child connects to what its ancestor had found, and looks a name up only after that has failed it.
#[derive(Debug)]
pub(crate) struct Addresses {
    resolved_in: Generation,
    known: Vec<(String, u16, Vec<SocketAddr>)>,
    doubted: PerProcess<AtomicBool>,
}

impl Addresses {
    /// Looks the hosts up. One that does not resolve is left to the connect, which reports it.
    pub(crate) fn resolve(hosts: Vec<(String, u16)>) -> Self {
        let known = hosts.into_iter().filter_map(|(host, port)| {
            let found = look_up(&host, port).ok()?;
            Some((host, port, found))
        });
        Self { known: known.collect(), resolved_in: generation(), doubted: PerProcess::new(|| AtomicBool::new(false)) }
    }

    pub(crate) fn of(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let known = self.known.iter().find(|(name, at, _)| name == host && *at == port).map(|(.., found)| found);
        match known {
            // The process that built the pool looks up at each connect, as drivers do, and falls back on what it knew.
            Some(known) if self.resolved_in == generation() => look_up(host, port).or_else(|_| Ok(known.clone())),
            Some(known) if !self.is_doubted() => Ok(known.clone()),
            _ => look_up(host, port),
        }
    }

    /// Connecting failed in this process.
    pub(crate) fn doubt(&self) {
        self.doubted.store(true, Relaxed);
    }

    fn is_doubted(&self) -> bool {
        PerProcess::existing(&self.doubted).is_some_and(|doubted| doubted.load(Relaxed))
    }
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs()?.collect();
    if found.is_empty() {
        let nothing = format!("host {host:?} has no address");
        return Err(io::Error::new(io::ErrorKind::NotFound, nothing));
    }
    Ok(found)
}
