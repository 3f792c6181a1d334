//! What is known of the names of a manager's hosts, and for how long it is believed.
//!
//! All of it is inherited by children and stays true there, so it is kept in atomics and in a list that only grows by
//! `once_cell::race`: a child never finds it locked. What a look-up finds is added only if it differs from what was known.

use super::clock::Coarse;
use super::lookup::LookUp;
use crate::Deadline;
use once_cell::race::OnceBox;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How long what is known is believed, unless [`Builder::dns_ttl`](crate::Builder::dns_ttl) says otherwise.
pub(super) const DNS_TTL: Duration = Duration::from_secs(60);

/// How long a caller who has a known address waits for news about it.
const PATIENCE: Duration = Duration::from_secs(1);

/// So many names are known beside those that the manager lists: of further ones nothing is kept.
const OTHERS: usize = 256;

/// What a caller asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// What is known, if it is not too old.
    Known,
    /// What is known has failed.
    New,
}

/// The names that a pool connects to.
#[derive(Debug)]
pub(super) struct Addresses {
    names: Vec<Arc<Name>>,
    /// What the manager has asked about and does not list.
    others: OnceBox<Other>,
    ttl: Duration,
}

#[derive(Debug)]
struct Other {
    name: Arc<Name>,
    next: OnceBox<Other>,
}

impl Default for Addresses {
    fn default() -> Self {
        Self { names: Vec::new(), others: OnceBox::new(), ttl: DNS_TTL }
    }
}

impl Addresses {
    /// Looks the hosts up, on this thread. One that does not resolve is left to the connect, which reports it.
    pub(super) fn resolve(hosts: Vec<(String, u16)>, ttl: Duration) -> Self {
        let names = hosts.into_iter().map(|(host, port)| {
            let name = Arc::new(Name::new(host, port, ttl));
            if let Ok(found) = name.ask() {
                name.learn(&found);
            }
            name
        });
        Self { names: names.collect(), others: OnceBox::new(), ttl }
    }

    /// The addresses of a host, those that failed lately last.
    pub(super) fn of(&self, host: &str, port: u16, fresh: Freshness, by: Deadline) -> io::Result<Vec<SocketAddr>> {
        let name = self.name(host, port);
        if let Ok(ip) = host.parse::<IpAddr>() {
            let address = SocketAddr::new(ip, port);
            name.learn(&[address]);
            return Ok(vec![address]);
        }
        let mut found = name.addresses(fresh, by)?;
        found.sort_by_key(|&address| self.failed_lately(address));
        Ok(found)
    }

    fn name(&self, host: &str, port: u16) -> Arc<Name> {
        let is_it = |name: &Name| name.host == host && name.port == port;
        if let Some(listed) = self.names.iter().find(|name| is_it(name)) {
            return Arc::clone(listed);
        }
        let new = || Arc::new(Name::new(host.to_owned(), port, self.ttl));
        let mut place = &self.others;
        for _ in 0..OTHERS {
            // Another thread may be faster, with this name or with another.
            let other = place.get_or_init(|| Box::new(Other { name: new(), next: OnceBox::new() }));
            if is_it(&other.name) {
                return Arc::clone(&other.name);
            }
            place = &other.next;
        }
        new()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Name>> {
        let others = std::iter::successors(self.others.get(), |other| other.next.get());
        self.names.iter().chain(others.map(|other| &other.name))
    }

    /// What became of connecting to an address.
    pub(super) fn note(&self, address: SocketAddr, reached: bool) {
        for known in self.known(address) {
            known.failed.store(if reached { 0 } else { millis() }, Relaxed);
        }
    }

    pub(super) fn failed_lately(&self, address: SocketAddr) -> bool {
        self.known(address).any(|known| match known.failed.load(Relaxed) {
            0 => false,
            at => millis().saturating_sub(at) < self.ttl.as_millis() as u64,
        })
    }

    /// The server behind the names is not what it was: they are looked up at the next connect.
    pub(super) fn doubt(&self) {
        self.all().for_each(|name| name.look_again_at.store(0, Relaxed));
    }

    fn known(&self, address: SocketAddr) -> impl Iterator<Item = &Known> {
        let newest = self.all().flat_map(|name| &name.newest().addresses);
        newest.filter(move |known| known.address == address)
    }
}

/// A name, and what is known of it.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) host: String,
    pub(super) port: u16,
    ttl: Duration,
    /// In [`millis`]. 0: now.
    look_again_at: AtomicU64,
    oldest: Found,
    look_up: LookUp,
}

/// What one look-up found, and what was found after that.
#[derive(Debug, Default)]
struct Found {
    addresses: Vec<Known>,
    newer: OnceBox<Found>,
}

#[derive(Debug)]
struct Known {
    address: SocketAddr,
    /// When connecting to it failed, in [`millis`]. 0: it did not.
    failed: AtomicU64,
}

impl Name {
    fn new(host: String, port: u16, ttl: Duration) -> Self {
        Self { host, port, ttl, look_again_at: AtomicU64::new(0), oldest: Found::default(), look_up: LookUp::default() }
    }

    fn addresses(self: &Arc<Self>, fresh: Freshness, by: Deadline) -> io::Result<Vec<SocketAddr>> {
        let is_due = self.look_again_at.load(Relaxed) <= millis();
        match (self.newest().addresses.is_empty(), fresh) {
            (false, Freshness::Known) if !is_due => {}
            (false, Freshness::Known) => {
                // The next callers take what is known meanwhile: one of them waits, and not for long.
                self.put_off();
                let _ = self.look_up.wait(self, by.or_sooner(PATIENCE.min(by.remaining() / 4)));
            }
            // Some time has to be left to connect.
            (_, _) => self
                .look_up
                .wait(self, by.or_sooner(by.remaining() / 2))
                .or_else(|why| if self.newest().addresses.is_empty() { Err(why) } else { Ok(()) })?,
        }
        Ok(self.newest().addresses.iter().map(|known| known.address).collect())
    }

    /// Asks libc, which may take its time, or in a child for ever.
    pub(super) fn ask(&self) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = (&*self.host, self.port).to_socket_addrs()?.collect();
        if found.is_empty() {
            let nothing = format!("host {:?} has no address", self.host);
            return Err(io::Error::new(io::ErrorKind::NotFound, nothing));
        }
        Ok(found)
    }

    pub(super) fn learn(&self, found: &[SocketAddr]) {
        self.put_off();
        let newest = self.newest();
        let same = newest.addresses.len() == found.len()
            && newest.addresses.iter().all(|known| found.contains(&known.address));
        if !same {
            let before = |address| newest.addresses.iter().find(|known| known.address == address);
            let failed = |address| before(address).map_or(0, |known| known.failed.load(Relaxed));
            let known = |&address: &SocketAddr| Known { address, failed: AtomicU64::new(failed(address)) };
            let next = Found { addresses: found.iter().map(known).collect(), newer: OnceBox::new() };
            // If another thread was faster, its news is as good.
            let _ = newest.newer.set(Box::new(next));
        }
    }

    fn put_off(&self) {
        self.look_again_at.store(millis().saturating_add(self.ttl.as_millis() as u64), Relaxed);
    }

    fn newest(&self) -> &Found {
        let mut found = &self.oldest;
        while let Some(newer) = found.newer.get() {
            found = newer;
        }
        found
    }
}

/// On the clock that parent and child share. Never 0.
fn millis() -> u64 {
    Coarse::now().as_millis() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, last], 1))
    }

    #[test]
    fn an_address_that_failed_is_remembered_when_its_name_is_looked_up_anew() {
        let name = Arc::new(Name::new("db".to_owned(), 1, DNS_TTL));
        let known = Addresses { names: vec![Arc::clone(&name)], ..Addresses::default() };
        name.learn(&[address(1), address(2)]);
        known.note(address(1), false);
        name.learn(&[address(1), address(3)]);
        assert_eq!([1, 2, 3].map(|last| known.failed_lately(address(last))), [true, false, false]);
        known.note(address(1), true);
        assert!(!known.failed_lately(address(1)));
    }

    #[test]
    fn of_names_that_nobody_lists_only_so_many_are_kept() {
        let known = Addresses::default();
        let ask = |port| known.of("127.0.0.1", port, Freshness::Known, Deadline::never()).unwrap();
        for port in 1..=OTHERS as u16 + 9 {
            assert_eq!(ask(port), ask(port));
        }
        assert_eq!(known.all().count(), OTHERS);
    }
}
