//! Celery and its pool of forked workers. Some of them end and are replaced while it is at work, so that its own connections to the broker are
//! inherited as well.

use crate::host::{HANG, Host, application, debian};
use crate::net::Net;
use crate::on_gunicorn::KNOWN;
use crate::servers::Servers;
use crate::tally::{Seen, Tally};
use forksafe::testing::{clean_process, patience};
use std::process::Command;

const TASKS: usize = 60;

/// Those that are forked before there is a connection to the broker.
const WORKERS: usize = 3;

fn run(net: Net, clients: &[&'static str]) -> Seen {
    let servers = Servers::start();
    // Not the database of the client, whose words the broker's connections do not garble.
    let broker = format!("{}1", servers.redis.url());
    let mut host = Host::with_clients(net, debian("python3"), &servers, clients, |command| {
        command.args(["-m", "celery", "--app", "tasks", "worker", "--pool", "prefork"]);
        command.args([
            "--concurrency",
            &WORKERS.to_string(),
            "--without-gossip",
            "--without-mingle",
            "--without-heartbeat",
        ]);
        command.env("BROKER", &broker);
    });
    let tallies = clients.iter().map(|client| (*client, ask(net, &servers, &broker, client))).collect();
    Seen { tallies, faults_of_parent: host.end(net, &servers), taken: host.taken() }
}

/// Its answers come by way of the broker.
fn ask(net: Net, servers: &Servers, broker: &str, client: &str) -> Tally {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(debian("python3"));
    application(&mut command, servers, &[], folder.path());
    let seconds = if net == Net::On { patience() } else { HANG }.as_secs();
    command.args(["ask_celery.py", client, &TASKS.to_string(), &seconds.to_string()]).env("BROKER", broker);
    let output = command.output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Tally::of_lines(&String::from_utf8_lossy(&output.stdout))
}

#[test]
fn under_the_net_every_client_is_right_in_every_worker_and_in_those_that_replace_them() {
    clean_process(|| {
        let seen = run(Net::On, &KNOWN.map(|(client, _)| client));
        seen.assert_kept_by_the_net("Celery", &KNOWN);
        assert!(seen.children().len() > WORKERS, "those that came later have worked, too");
        let most = seen.taken.values().max();
        assert!(
            most > Some(&KNOWN.len()),
            "those that came later have inherited connections to the broker: {:?}",
            seen.taken
        );
    });
}

#[test]
fn without_it_psycopg2_goes_wrong() {
    clean_process(|| {
        run(Net::Off, &["psycopg2"]).assert_broken("Celery without the net", &KNOWN);
    });
}

#[test]
fn without_it_a_single_connection_of_redis_py_goes_wrong() {
    clean_process(|| {
        run(Net::Off, &["redis_py_single_connection"]).assert_broken("Celery without the net", &KNOWN);
    });
}
