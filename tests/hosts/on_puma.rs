//! Puma with `preload_app!`, with Ruby's clients.

use crate::host::{Host, debian, free_port};
use crate::net::Net;
use crate::servers::Servers;
use crate::tally::Seen;
use crate::web;
use forksafe::testing::clean_process;

/// The clients, and what each says in a child that uses an inherited connection for the first time, if it says anything.
const KNOWN: [(&str, &[&str]); 3] = [
    ("ruby_pg", &["PG::UnableToSend: ", "PG::ConnectionBad: "]),
    ("ruby_redis", &[]),
    ("ruby_redis_inherit_socket", &[]),
];

const WORKERS: usize = 3;

fn run(net: Net, clients: &[&'static str]) -> Seen {
    let servers = Servers::start();
    let port = free_port();
    let mut host = Host::with_clients(net, debian("puma"), &servers, clients, |command| {
        command.args([
            "--workers",
            &WORKERS.to_string(),
            "--config",
            "puma_settings.rb",
            "--bind",
            &format!("tcp://127.0.0.1:{port}"),
            "config.ru",
        ]);
    });
    host.wait_until_it_listens(port);
    let tallies = clients.iter().map(|client| (*client, web::ask(net, port, client, WORKERS))).collect();
    Seen { tallies, faults_of_parent: host.end(net, &servers), taken: host.taken() }
}

#[test]
fn under_the_net_every_client_is_right_in_every_worker() {
    clean_process(|| {
        run(Net::On, &KNOWN.map(|(client, _)| client)).assert_kept_by_the_net("Puma", &KNOWN);
    });
}

#[track_caller]
fn goes_wrong_without(client: &'static str) {
    run(Net::Off, &[client]).assert_broken("Puma without the net", &KNOWN);
}

#[test]
fn without_it_ruby_pg_goes_wrong() {
    clean_process(|| goes_wrong_without("ruby_pg"));
}

#[test]
fn without_it_ruby_redis_goes_wrong_when_it_inherits_its_socket() {
    clean_process(|| goes_wrong_without("ruby_redis_inherit_socket"));
}

/// It compares pids.
#[test]
fn ruby_redis_as_it_is_needs_no_net() {
    clean_process(|| {
        run(Net::Off, &["ruby_redis"]).assert_kept("Puma without the net", &KNOWN);
    });
}
