//! Clients of HTTP that keep their connections alive.

use crate::http::Server;
use crate::program::{Answered, Heals, Net, Seen, answer, run, run_in_vain};
use forksafe::fork::PerProcess;
use forksafe::testing::clean_process;
use reqwest::blocking::Client;
use std::fmt::Display;
use std::mem::ManuallyDrop;
use std::time::Duration;
use ureq::Agent;

/// The number of the connection, and the word.
fn read<E: Display>(text: Result<String, E>) -> Answered {
    answer(text.map(|text| {
        let (connection, word) = text.split_once(' ').expect("an answer of ours");
        (word.to_owned(), connection.to_owned())
    }))
}

fn with_ureq(server: &Server, net: Net) -> Seen {
    run(net, Agent::new_with_defaults, |agent, word| {
        read(agent.get(server.url(word)).call().and_then(|answer| answer.into_body().read_to_string()))
    })
}

fn ask(client: &Client, server: &Server, word: &str) -> Answered {
    read(client.get(server.url(word)).send().and_then(|answer| answer.text()))
}

fn with_reqwest(server: &Server, net: Net) -> Seen {
    let connect = || Client::builder().timeout(None).build().unwrap();
    run_in_vain(net, || ManuallyDrop::new(connect()), |client, word| ask(client, server, word))
}

fn with_reqwest_that_has_no_time(server: &Server, net: Net) -> Seen {
    let connect = || Client::builder().timeout(Duration::from_secs(3)).build().unwrap();
    run(net, || ManuallyDrop::new(connect()), |client, word| ask(client, server, word))
}

fn with_reqwest_in_each_process(server: &Server, net: Net) -> Seen {
    run(net, || PerProcess::new(Client::new), |client, word| ask(client, server, word))
}

#[test]
fn an_agent_of_ureq_heals_at_once() {
    clean_process(|| {
        let server = Server::start();
        with_ureq(&server, Net::On).assert_protected(Heals::AtOnce);
        assert!(server.askers().iter().all(|processes| *processes == 1));
    });
}

#[test]
fn without_the_net_an_agent_of_ureq_is_shared() {
    clean_process(|| {
        let server = Server::start();
        with_ureq(&server, Net::Off).assert_shared();
        assert!(server.askers().iter().any(|processes| *processes > 1));
    });
}

#[test]
fn a_blocking_client_of_reqwest_hangs() {
    clean_process(|| with_reqwest(&Server::start(), Net::On).assert_protected(Heals::Hangs));
}

#[test]
fn a_blocking_client_of_reqwest_with_a_timeout_never_heals() {
    clean_process(|| with_reqwest_that_has_no_time(&Server::start(), Net::On).assert_protected(Heals::Never));
}

#[test]
fn a_blocking_client_of_reqwest_for_each_process_is_right() {
    clean_process(|| {
        let server = Server::start();
        with_reqwest_in_each_process(&server, Net::On).assert_protected(Heals::AtOnce);
        assert!(server.askers().iter().all(|processes| *processes == 1));
    });
}

#[test]
fn without_the_net_a_blocking_client_of_reqwest_hangs_as_well() {
    clean_process(|| with_reqwest(&Server::start(), Net::Off).assert_hangs_all_the_same());
}

#[test]
fn without_the_net_the_parents_connections_stay_open_in_a_child_that_has_a_client_of_its_own() {
    clean_process(|| with_reqwest_in_each_process(&Server::start(), Net::Off).assert_only_held());
}
