//! Where to connect to: the driver's configuration, with the addresses that the pool knows written into it.

use crate::{Attempt, Target};
use ::postgres::Config;
use ::postgres::config::{Host, LoadBalanceHosts};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

/// Connecting to it by TCP fails at once, and sends nothing: the kernel knows no route.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::BROADCAST);

/// The names that have to be resolved, with their ports.
pub(super) fn names(config: &Config) -> Vec<(String, u16)> {
    if !config.get_hostaddrs().is_empty() {
        return Vec::new();
    }
    let named = |(place, host): (usize, &Host)| match host {
        Host::Tcp(name) => Some((name.clone(), port(config, place))),
        Host::Unix(_) => None,
    };
    config.get_hosts().iter().enumerate().filter_map(named).collect()
}

/// As the driver reads it.
fn port(config: &Config, place: usize) -> u16 {
    let ports = config.get_ports();
    ports.get(place).or(ports.first()).copied().unwrap_or(5432)
}

/// How a configuration is connected with.
pub(super) enum Route {
    /// One address after the other of these hosts.
    Dial(Vec<(String, u16)>),
    /// By the driver, which tries so many addresses: what is in the configuration cannot be taken away, and not all of it
    /// can be overridden.
    Driver(u32),
}

pub(super) fn route(config: &Config, at: &Attempt) -> Route {
    let names = names(config);
    let hosts = config.get_hosts().len().max(config.get_hostaddrs().len());
    if !names.is_empty() && names.len() == hosts {
        return Route::Dial(names);
    }
    let addresses = names.iter().map(|(host, port)| at.addresses(host, *port).map_or(1, |all| all.len()));
    let others = hosts - names.len();
    Route::Driver(u32::try_from(addresses.sum::<usize>() + others).unwrap_or(u32::MAX).max(1))
}

/// The configuration for one address, and how many the driver tries with it.
pub(super) fn only(config: &Config, names: &[(String, u16)], target: &Target) -> (Config, u32) {
    let mut only = config.clone();
    // `hostaddr` has no room for the interface, so the driver looks the name up itself.
    if matches!(target.address, SocketAddr::V6(v6) if v6.scope_id() != 0) {
        return (only, names.len() as u32);
    }
    only.load_balance_hosts(LoadBalanceHosts::Disable);
    // A configuration's hosts cannot be taken away. Of several, all are sent nowhere, and the one comes after them.
    if names.len() > 1 {
        for _ in names {
            only.hostaddr(NOWHERE);
        }
        only.host(&names[target.host].0);
        if config.get_ports().len() > 1 {
            only.port(names[target.host].1);
        }
    }
    only.hostaddr(target.address.ip());
    (only, 1)
}

/// The order in which they are tried: hosts, and then the addresses of each.
pub(super) fn put_in_order(config: &Config, targets: &mut [(usize, SocketAddr)]) {
    if config.get_load_balance_hosts() != LoadBalanceHosts::Random {
        return;
    }
    // Not by a generator that lives in memory: the workers of a server are copies of each other, and would all choose alike.
    let chance = RandomState::new();
    let here = (std::process::id(), std::thread::current().id(), Instant::now());
    targets.sort_by_cached_key(|&(host, address)| (chance.hash_one((here, host)), chance.hash_one((here, address))));
}

/// For people. Of a password with an `@` that is not encoded, the driver takes the rest for the beginning of the host.
pub(super) fn shown_host(name: &str) -> &str {
    name.rsplit('@').next().unwrap_or(name)
}

/// For people: no user, no password.
pub(super) fn shown(config: &Config) -> String {
    let host = |(place, host): (usize, &Host)| match host {
        Host::Tcp(name) => format!("{}:{}", shown_host(name), port(config, place)),
        Host::Unix(path) => format!("{}:{}", path.display(), port(config, place)),
    };
    let mut shown: Vec<String> = config.get_hosts().iter().enumerate().map(host).collect();
    if shown.is_empty() {
        let address = |(place, address): (usize, &IpAddr)| SocketAddr::new(*address, port(config, place)).to_string();
        shown = config.get_hostaddrs().iter().enumerate().map(address).collect();
    }
    let database = config.get_dbname().map(|name| format!("/{name}")).unwrap_or_default();
    shown.join(",") + &database
}
