//! Python's own ways to fork, without a host.

use crate::host::{HANG, Host, debian};
use crate::net::Net;
use crate::on_gunicorn::KNOWN;
use crate::servers::Servers;
use crate::tally::{Tally, assert_broken, assert_kept};
use forksafe::testing::{clean_process, patience};
use std::collections::BTreeMap;

const CHILDREN: usize = 4;

fn run(net: Net, how: &str, clients: &[&'static str]) -> (BTreeMap<&'static str, Tally>, Vec<String>) {
    let servers = Servers::start();
    let at_most = if net == Net::On { patience() } else { HANG };
    let mut host = Host::with_clients(net, debian("python3"), &servers, clients, |command| {
        command.args(["forks.py", how, &CHILDREN.to_string(), &at_most.as_secs().to_string()]);
    });
    let ended = host.wait(2 * patience());
    let mut parents = host.lost();
    if ended.is_none_or(|status| !status.success()) {
        parents.push(format!("the parent ends with {ended:?}"));
    }
    let log = host.log();
    // Of a child that hangs nobody knows in which of its clients.
    let of = |client: &str| Tally::of_lines_that(&log, |word| word == "any" || word.starts_with(&format!("{client}-")));
    (clients.iter().map(|client| (*client, of(client))).collect(), parents)
}

#[track_caller]
fn is_right_under_the_net(how: &str) {
    let (tallies, parents) = run(Net::On, how, &KNOWN.map(|(client, _)| client));
    assert_kept(&format!("Python's {how}"), &tallies, &KNOWN, &parents);
}

#[track_caller]
fn goes_wrong_without(how: &str, client: &'static str) {
    let (tallies, parents) = run(Net::Off, how, &[client]);
    assert_broken(&format!("Python's {how} without the net"), &tallies, &KNOWN, &parents);
}

#[test]
fn under_the_net_children_of_os_fork_are_right() {
    clean_process(|| is_right_under_the_net("fork"));
}

#[test]
fn under_the_net_processes_of_multiprocessing_are_right() {
    clean_process(|| is_right_under_the_net("process"));
}

#[test]
fn under_the_net_a_pool_of_multiprocessing_is_right() {
    clean_process(|| is_right_under_the_net("pool"));
}

#[test]
fn without_it_os_fork_goes_wrong() {
    clean_process(|| goes_wrong_without("fork", "psycopg2"));
}

#[test]
fn without_it_multiprocessing_goes_wrong() {
    clean_process(|| goes_wrong_without("process", "sqlalchemy"));
}

#[test]
fn without_it_a_pool_of_multiprocessing_goes_wrong() {
    clean_process(|| goes_wrong_without("pool", "redis_py_single_connection"));
}
