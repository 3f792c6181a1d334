//! `gunicorn --preload`.

use crate::host::{Host, debian, free_port};
use crate::net::{self, Net};
use crate::own::{SURVIVING, assert_everybody_has_his_own};
use crate::servers::Servers;
use crate::tally::Seen;
use crate::web;
use crate::website;
use forksafe::testing::clean_process;

const WORKERS: usize = 3;

fn run(net: Net, clients: &[&'static str]) -> (Host, Seen) {
    let servers = Servers::start();
    let port = free_port();
    let mut host = Host::with_clients(net, debian("gunicorn"), &servers, clients, |command| {
        command
            .env("PYTHONPATH", net::python_path())
            .env("WEB", website::start())
            .arg("--config")
            .arg(net::gunicorn_settings())
            .args(["--workers", &WORKERS.to_string(), "--bind", &format!("127.0.0.1:{port}"), "web:app"]);
    });
    host.wait_until_it_listens(port);
    let tallies = clients.iter().map(|client| (*client, web::ask(net, port, client, WORKERS))).collect();
    let faults_of_parent = host.end(net, &servers);
    let taken = host.taken();
    (host, Seen { tallies, faults_of_parent, taken })
}

#[test]
fn every_client_is_right_in_every_worker() {
    clean_process(|| {
        let (host, seen) = run(Net::On, &SURVIVING);
        assert_everybody_has_his_own("gunicorn", &host, &seen);
    });
}

/// A hang, which gunicorn would end after its time limit, again and again.
#[test]
fn a_plain_runtime_hangs_in_every_worker() {
    clean_process(|| {
        let (_, seen) = run(Net::Off, &["plain_tokio"]);
        seen.assert_broken("gunicorn with a plain runtime", &[]);
        assert_eq!(seen.children().len(), 0, "nobody has answered");
    });
}
