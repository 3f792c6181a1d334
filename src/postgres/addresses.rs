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

/// What to connect with, one after the other, and how many hosts the driver will try with each. Never empty.
pub(super) fn located(config: &Config, at: &Attempt) -> Result<(Vec<Config>, u32), Error> {
    let names = names(config);
    let by_driver = || {
        let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1);
        Ok((vec![config.clone()], hosts as u32))
    };
    if names.is_empty() {
        return by_driver();
    }
    let mut targets = Vec::new();
    let mut unknown = None;
    for (place, (host, port)) in names.iter().enumerate() {
        match at.addresses(host, *port) {
            // `hostaddr` has no room for the interface.
            Ok(addresses) if addresses.iter().any(needs_interface) => return by_driver(),
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
    }
    let targets = targets.into_iter().flat_map(|(place, all)| all.into_iter().map(move |one| (place, one.ip())));
    let only = |(place, address): (usize, IpAddr)| {
        let mut only = config.clone();
        only.load_balance_hosts(LoadBalanceHosts::Disable);
        // A configuration's hosts cannot be taken away. Of several, all are sent nowhere, and the one comes after them.
        if names.len() > 1 {
            for _ in &names {
                only.hostaddr(NOWHERE);
            }
            only.host(&names[place].0);
            if config.get_ports().len() > 1 {
                only.port(names[place].1);
            }
        }
        only.hostaddr(address);
        only
    };
    Ok((targets.map(only).collect(), 1))
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
