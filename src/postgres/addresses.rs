//! Where to connect to: the driver's configuration, with the addresses that the pool knows written into it.

use super::Error;
use crate::Attempt;
use ::postgres::Config;
use ::postgres::config::{Host, LoadBalanceHosts};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

/// Connecting to it by TCP fails at once, and sends nothing: the kernel knows no route.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);

/// The names that have to be resolved, with their ports. None if the driver is to see to it.
pub(super) fn names(config: &Config) -> Vec<(String, u16)> {
    if !config.get_hostaddrs().is_empty() {
        return Vec::new();
    }
    let named = |(place, host): (usize, &Host)| match host {
        Host::Tcp(name) => Some((name.clone(), port(config, place))),
        Host::Unix(_) => None,
    };
    config.get_hosts().iter().enumerate().map(named).collect::<Option<_>>().unwrap_or_default()
}

/// As the driver reads it.
fn port(config: &Config, place: usize) -> u16 {
    let ports = config.get_ports();
    ports.get(place).or(ports.first()).copied().unwrap_or(5432)
}

/// The configuration to connect with, and the number of hosts that it will try at most.
pub(super) fn located(config: &Config, at: &Attempt) -> Result<(Config, u32), Error> {
    let mut located = config.clone();
    let names = names(config);
    let wrong = config.get_ports().len() > 1 && config.get_ports().len() != names.len();
    if names.is_empty() || wrong {
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1);
        return Ok((located, hosts as u32));
    }
    let mut targets = Vec::new();
    let mut unknown = None;
    for (place, (host, port)) in names.iter().enumerate() {
        match at.addresses(host, *port) {
            // `hostaddr` has no room for the interface.
            Ok(addresses) if addresses.iter().any(needs_interface) => return Ok((located, names.len() as u32)),
            Ok(addresses) => targets.push((place, addresses)),
            Err(source) => unknown = Some(Error::LookUp { host: host.clone(), source }),
        }
    }
    if let (true, Some(unknown)) = (targets.is_empty(), unknown) {
        return Err(unknown);
    }
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        shuffle(&mut targets);
        targets.iter_mut().for_each(|(_, addresses)| shuffle(addresses));
        located.load_balance_hosts(LoadBalanceHosts::Disable);
    }
    let targets: Vec<(usize, IpAddr)> =
        targets.into_iter().flat_map(|(place, all)| all.into_iter().map(move |one| (place, one.ip()))).collect();

    // A configuration's hosts cannot be taken away, and each has one `hostaddr`. One host's addresses go in its place and
    // after it; several hosts' go after all of them, which are sent nowhere.
    let in_place = names.len() == 1;
    if !in_place {
        for _ in &names {
            located.hostaddr(NOWHERE);
        }
    }
    for (number, &(place, address)) in targets.iter().enumerate() {
        located.hostaddr(address);
        if !in_place || number > 0 {
            located.host(&names[place].0);
            if config.get_ports().len() > 1 {
                located.port(names[place].1);
            }
        }
    }
    Ok((located, targets.len() as u32))
}

fn needs_interface(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0)
}

/// Not by a generator that lives in memory: the workers of a server are copies of each other, and would all choose alike.
fn shuffle<T>(all: &mut [T]) {
    let chance = RandomState::new();
    let here = (std::process::id(), std::thread::current().id(), Instant::now());
    for left in (2..=all.len()).rev() {
        let chosen = chance.hash_one((here, left)) % left as u64;
        all.swap(left - 1, chosen as usize);
    }
}
