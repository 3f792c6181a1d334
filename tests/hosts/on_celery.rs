//! Celery and its pool of forked workers. One of them ends and is replaced when it is at work, so that its own connections to the broker are
//! inherited as well.

use crate::host::{HANG, Host, application, debian};
use crate::net::Net;
use crate::on_gunicorn::KNOWN;
use crate::servers::Servers;
use crate::tally::{Seen, Tally};
use forksafe::testing::{Process, clean_process, patience, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

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
    if net == Net::On {
        replace_one(&host, &servers, &broker);
    }
    let tallies = clients.iter().map(|client| (*client, ask(net, &host, &servers, &broker, client))).collect();
    Seen { tallies, faults_of_parent: host.end(net, &servers), taken: host.taken() }
}

fn send(host: &Host, servers: &Servers, broker: &str, what: &[&str]) {
    let mut command = Command::new(debian("python3"));
    application(&mut command, servers, &[], host.folder());
    let output = command.arg("send_tasks.py").args(what).env("BROKER", broker).output().expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Has a worker end, and waits for the one that takes its place. Tasks that come in between may have to wait for a long time.
fn replace_one(host: &Host, servers: &Servers, broker: &str) {
    let workers = || -> BTreeSet<u32> {
        let tree = Process::tree(host.pid()).unwrap_or_default();
        tree.iter().map(|process| process.pid).filter(|pid| *pid != host.pid()).collect()
    };
    wait_until("it has its workers", || workers().len() == WORKERS);
    let before = workers();
    send(host, servers, broker, &["end"]);
    wait_until("there is another worker", || workers().len() == WORKERS && workers() != before);
}

fn ask(net: Net, host: &Host, servers: &Servers, broker: &str, client: &str) -> Tally {
    send(host, servers, broker, &[client, &TASKS.to_string()]);
    let until = Instant::now() + if net == Net::On { patience() } else { HANG };
    loop {
        let text = fs::read_to_string(host.folder().join("answers")).unwrap_or_default();
        // What is being written is not an answer yet.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let mut tally = Tally::of_lines_that(whole, |word| word.starts_with(&format!("{client}-")));
        if tally.all() >= TASKS {
            return tally;
        }
        if Instant::now() > until {
            (tally.all()..TASKS).for_each(|_| tally.add("", None));
            return tally;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn under_the_net_every_client_is_right_in_every_worker_and_in_one_that_replaces_another() {
    clean_process(|| {
        let seen = run(Net::On, &KNOWN.map(|(client, _)| client));
        seen.assert_kept_by_the_net("Celery", &KNOWN);
        let most = seen.taken.values().max();
        assert!(
            most > Some(&KNOWN.len()),
            "the one that came later has inherited connections to the broker: {:?}",
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
