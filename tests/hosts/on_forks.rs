//! Python's own ways to fork, without a host.

use crate::host::{HANG, Host, debian};
use crate::net::Net;
use crate::on_gunicorn::KNOWN;
use crate::servers::Servers;
use crate::tally::{Seen, Tally};
use forksafe::testing::{clean_process, patience};

const CHILDREN: usize = 4;

fn run(net: Net, how: &str, clients: &[&'static str]) -> Seen {
    let servers = Servers::start();
    let at_most = if net == Net::On { patience() } else { HANG };
    let mut host = Host::with_clients(net, debian("python3"), &servers, clients, |command| {
        command.args(["forks.py", how, &CHILDREN.to_string(), &at_most.as_secs().to_string()]);
    });
    let ended = host.wait(2 * patience());
    let mut faults_of_parent = host.lost();
    if ended.is_none_or(|status| !status.success()) {
        faults_of_parent.push(format!("the parent ends with {ended:?}"));
    }
    let log = host.log();
    // Of a child that hangs nobody knows in which of its clients.
    let of = |client: &str| Tally::of_lines_that(&log, |word| word == "any" || word.starts_with(&format!("{client}-")));
    let tallies = clients.iter().map(|client| (*client, of(client))).collect();
    Seen { tallies, faults_of_parent, taken: host.taken() }
}

#[track_caller]
fn is_right_under_the_net(how: &str) {
    run(Net::On, how, &KNOWN.map(|(client, _)| client)).assert_kept_by_the_net(&format!("Python's {how}"), &KNOWN);
}

#[track_caller]
fn goes_wrong_without(how: &str, client: &'static str) {
    run(Net::Off, how, &[client]).assert_broken(&format!("Python's {how} without the net"), &KNOWN);
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
