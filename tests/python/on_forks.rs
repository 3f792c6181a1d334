//! Python's own ways to fork, without a host.

use crate::host::{HANG, Host, debian};
use crate::net::{self, Net};
use crate::own::{SURVIVING, assert_everybody_has_his_own};
use crate::servers::Servers;
use crate::tally::{Seen, Tally};
use crate::website;
use forksafe::testing::{clean_process, patience};

const CHILDREN: usize = 4;

/// `later`: those that the parent leaves alone.
fn run(net: Net, how: &str, clients: &[&'static str], later: &str) -> (Host, Seen) {
    let servers = Servers::start();
    let at_most = if net == Net::On { patience() } else { HANG };
    let mut host = Host::with_clients(net, debian("python3"), &servers, clients, |command| {
        command.env("PYTHONPATH", net::python_path()).env("WEB", website::start()).env("LATER", later);
        command.args(["-m", "forks", how, &CHILDREN.to_string(), &at_most.as_secs().to_string()]);
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
    let taken = host.taken();
    (host, Seen { tallies, faults_of_parent, taken })
}

#[track_caller]
fn is_right(how: &str) {
    let (host, seen) = run(Net::On, how, &SURVIVING, "");
    assert_everybody_has_his_own(&format!("Python's {how}"), &host, &seen);
}

#[test]
fn children_of_os_fork_are_right() {
    clean_process(|| is_right("fork"));
}

#[test]
fn processes_of_multiprocessing_are_right() {
    clean_process(|| is_right("process"));
}

#[test]
fn a_pool_of_multiprocessing_is_right() {
    clean_process(|| is_right("pool"));
}

/// Every child: it does not answer within its time limit, and is killed.
#[track_caller]
fn hangs(client: &'static str) {
    let (host, seen) = run(Net::Off, "fork", &[client], "");
    seen.assert_broken("Python's fork", &[]);
    let log = host.log();
    assert_eq!((hung(&log), log.lines().count()), (CHILDREN, CHILDREN), "each child hangs and says nothing:\n{log}");
}

fn hung(log: &str) -> usize {
    log.lines().filter(|line| line.starts_with("any ") && line.ends_with(" hung")).count()
}

#[test]
fn a_plain_runtime_hangs_in_a_child() {
    clean_process(|| hangs("plain_tokio"));
}

/// On the parent's connection: what the server says may be read by another child, or by the parent.
#[test]
fn a_plain_sqlx_pool_hangs_in_children_and_garbles_answers() {
    clean_process(|| {
        let (host, seen) = run(Net::Off, "fork", &["plain_sqlx"], "");
        seen.assert_broken("Python's fork", &[]);
        assert!(hung(&host.log()) > 0, "{}", host.log());
    });
}

#[test]
fn a_plain_connection_of_redis_hangs_in_a_child() {
    clean_process(|| hangs("plain_redis"));
}

#[test]
fn the_threads_of_rayon_itself_hang_in_a_child() {
    clean_process(|| hangs("plain_rayon"));
}

/// Its users see no runtime: it has one, on a thread of its own.
#[test]
fn a_plain_blocking_client_of_reqwest_hangs_in_a_child() {
    clean_process(|| hangs("plain_reqwest"));
}

/// The same runtime, first used before the fork and after it.
#[test]
fn a_library_that_refuses_says_whose_its_runtime_is() {
    clean_process(|| {
        let (host, _) = run(Net::On, "fork", &["refusing_tokio"], "");
        let said =
            format!("error builtins.RuntimeError: this was first used in process {}, before the fork", host.pid());
        let log = host.log();
        let is_refusal = |line: &str| line.split_once(' ').is_some_and(|(_, answer)| answer.contains(&said));
        assert!(log.lines().count() > CHILDREN && log.lines().all(is_refusal), "{log}");
    });
}

#[test]
fn a_library_that_refuses_works_where_it_is_used_after_the_fork_only() {
    clean_process(|| {
        let (_, seen) = run(Net::On, "fork", &["refusing_tokio"], "refusing_tokio");
        seen.assert_kept("Python's fork", &[]);
        assert_eq!(seen.children().len(), CHILDREN);
    });
}
