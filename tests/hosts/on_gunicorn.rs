//! `gunicorn --preload`, with Python's clients.

use crate::host::{Host, debian, free_port};
use crate::net::Net;
use crate::servers::Servers;
use crate::tally::Seen;
use crate::web;
use forksafe::testing::clean_process;

/// The clients, and what each says in a child that uses an inherited connection for the first time, if it says anything.
pub(crate) const KNOWN: [(&str, &[&str]); 5] = [
    ("psycopg2", &["psycopg2.OperationalError: "]),
    ("sqlalchemy", &["sqlalchemy.exc.OperationalError: (psycopg2.OperationalError) "]),
    ("sqlalchemy_with_pre_ping", &[]),
    ("redis_py", &[]),
    ("redis_py_single_connection", &["redis.exceptions.ConnectionError: "]),
];

const WORKERS: usize = 3;

fn run(net: Net, clients: &[&'static str]) -> Seen {
    let servers = Servers::start();
    let port = free_port();
    let mut host = Host::with_clients(net, debian("gunicorn"), &servers, clients, |command| {
        command.args([
            "--workers",
            &WORKERS.to_string(),
            "--config",
            "gunicorn_settings.py",
            "--bind",
            &format!("127.0.0.1:{port}"),
            "web:app",
        ]);
    });
    host.wait_until_it_listens(port);
    let tallies = clients.iter().map(|client| (*client, web::ask(net, port, client, WORKERS))).collect();
    Seen { tallies, faults_of_parent: host.end(net, &servers), taken: host.taken() }
}

#[test]
fn under_the_net_every_client_is_right_in_every_worker() {
    clean_process(|| {
        run(Net::On, &KNOWN.map(|(client, _)| client)).assert_kept_by_the_net("gunicorn", &KNOWN);
    });
}

#[track_caller]
fn goes_wrong_without(client: &'static str) {
    run(Net::Off, &[client]).assert_broken("gunicorn without the net", &KNOWN);
}

#[test]
fn without_it_psycopg2_goes_wrong() {
    clean_process(|| goes_wrong_without("psycopg2"));
}

#[test]
fn without_it_sqlalchemy_goes_wrong() {
    clean_process(|| goes_wrong_without("sqlalchemy"));
}

#[test]
fn without_it_sqlalchemy_goes_wrong_with_pre_ping_as_well() {
    clean_process(|| goes_wrong_without("sqlalchemy_with_pre_ping"));
}

#[test]
fn without_it_a_single_connection_of_redis_py_goes_wrong() {
    clean_process(|| goes_wrong_without("redis_py_single_connection"));
}

/// It compares pids.
#[test]
fn the_pool_of_redis_py_needs_no_net() {
    clean_process(|| {
        run(Net::Off, &["redis_py"]).assert_kept("gunicorn without the net", &KNOWN);
    });
}
