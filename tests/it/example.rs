//! The example `prefork_server`, as a browser and a supervisor meet it: clients that keep their connections, clients that do
//! not finish what they say, and a signal to end in the midst of requests.

use crate::kit::kill;
use crate::web::{Answer, Server, Visitor, under_load};
use forksafe::cluster::Stream;
use forksafe::testing::{clean_process, descriptors, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

struct Client(BufReader<TcpStream>);

impl Client {
    fn of(server: &Server) -> Self {
        Self(BufReader::new(server.connect().unwrap()))
    }

    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn ask(&mut self) {
        self.say("GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    }

    fn answer(&mut self) -> Answer {
        Answer::read(&mut self.0).unwrap()
    }

    /// Panics if there is more, or if the connection is reset.
    fn assert_closed(&mut self) {
        let mut more = Vec::new();
        self.0.read_to_end(&mut more).expect("an orderly end");
        assert_eq!(String::from_utf8_lossy(&more), "");
    }
}

#[test]
fn twenty_keep_alive_clients_at_once_are_all_answered() {
    clean_process(|| {
        let server = Server::start(2, 5);
        let mut clients: Vec<_> = (0..20).map(|_| Client::of(&server)).collect();
        for _ in 0..3 {
            clients.iter_mut().for_each(Client::ask);
            assert!(clients.iter_mut().all(|client| !client.answer().is_last()));
        }
        server.end();
        clients.iter_mut().for_each(Client::assert_closed);
    });
}

#[test]
fn a_client_that_does_not_finish_its_request_is_hung_up_on() {
    clean_process(|| {
        let server = Server::start(1, 1);
        let mut slow = Client::of(&server);
        slow.say("GET / HTTP/1.1\r\nHost:");
        // It keeps nobody else from being answered.
        let mut quick = Client::of(&server);
        quick.ask();
        quick.answer();
        slow.0.read_to_end(&mut Vec::new()).expect("the server closes it, with or without a word");
        server.end();
    });
}

#[test]
fn who_is_in_the_middle_of_a_request_at_the_end_is_answered_and_asked_to_leave() {
    clean_process(|| {
        let mut server = Server::start(1, 1);
        let mut client = Client::of(&server);
        client.ask();
        assert!(!client.answer().is_last());
        client.say("GET / HTTP/1.1\r\nHost:");
        server.signal(libc::SIGTERM);
        wait_until("nobody listens", || TcpStream::connect(server.address).is_err());
        client.say(" example\r\n\r\n");
        assert!(client.answer().is_last());
        client.assert_closed();
        server.await_end();
    });
}

/// The worker is stopped while requests reach it and the master is told to end, so that it has yet to see all of them
/// when it is told to end itself. It may answer some before it sees that.
#[test]
fn no_request_that_was_sent_before_the_end_is_lost() {
    clean_process(|| {
        let mut server = Server::start(1, 2);
        let clients = || -> Vec<_> { (0..20).map(|_| Client::of(&server)).collect() };
        let mut known = clients();
        known.iter_mut().for_each(Client::ask);
        let worker = known.iter_mut().map(|client| client.answer().worker()).max().unwrap();
        let sockets = || descriptors(worker).values().filter(|name| name.starts_with("socket:")).count();
        let before = sockets();
        let mut accepted = clients();
        wait_until("the worker has accepted them", || sockets() == before + 20);

        kill(worker, libc::SIGSTOP);
        wait_until("the worker has stopped", || threads_are_stopped(worker));
        let mut queued = clients();
        let mut all: Vec<_> = known.iter_mut().chain(&mut accepted).chain(&mut queued).collect();
        all.iter_mut().for_each(|client| client.ask());
        server.signal(libc::SIGTERM);
        wait_until("the master has told the worker", || is_pending(worker, libc::SIGTERM));
        kill(worker, libc::SIGCONT);

        for client in &mut all {
            client.answer();
            client.assert_closed();
        }
        server.await_end();
    });
}

/// What the kernel has in the queue is then the other worker's.
#[test]
fn a_worker_that_ends_alone_is_replaced() {
    clean_process(|| {
        let server = Server::start(2, 2);
        let mut first = Client::of(&server);
        first.ask();
        let gone = first.answer().worker();
        kill(gone, libc::SIGTERM);
        first.assert_closed();
        let replaced = || {
            let mut client = Client::of(&server);
            client.ask();
            assert_ne!(client.answer().worker(), gone);
            children(server.master.id()).iter().filter(|pid| **pid != gone).count() == 3
        };
        wait_until("the backend and two workers are there", replaced);
        server.end();
    });
}

/// Clients that stay are asked to leave by those who end, and so none finds its connection closed.
#[test]
fn restarts_turn_nobody_away() {
    clean_process(|| {
        let server = Server::start(2, 5);
        let pids = || server.status().unwrap().worker_status.iter().map(|worker| worker.pid).collect::<BTreeSet<_>>();
        server.await_phase(0, 2);
        let before = pids();
        let (asked, failed) = under_load(Visitor::some(&server, 8), || {
            server.signal(libc::SIGUSR1);
            server.await_phase(1, 2);
            server.signal(libc::SIGUSR2);
            server.await_phase(2, 2);
        });
        assert_eq!(failed, Vec::<String>::new(), "of {asked}");
        assert!(pids().is_disjoint(&before));
        // The backend is there from the first: its verdict is about all of them.
        wait_until("two workers and one backend are left", || children(server.master.id()).len() == 3);
        server.end();
    });
}

#[test]
fn who_has_the_control_socket_can_tell_it_what_to_do() {
    clean_process(|| {
        let server = Server::start(2, 1);
        let tell = |words: &[&str]| {
            let mut program = Command::new(crate::web::prefork_server());
            let output = program.arg("ctl").arg(server.file("control")).args(words).output().unwrap();
            let said = if output.status.success() { output.stdout } else { output.stderr };
            (output.status.code(), String::from_utf8(said).unwrap().trim().to_owned())
        };
        let well = |text: &str| (Some(0), text.to_owned());
        assert_eq!(tell(&["scale", "3", "--wait"]), well("serving with 3 workers"));
        assert_eq!(tell(&["restart", "--wait"]), well("restart 1 is through: serving with 3 workers"));
        assert!(tell(&["status"]).1.contains("\"booted_workers\":3"));
        assert!(matches!(tell(&["scale", "0"]), (Some(2), why) if why.ends_with("a cluster has one worker at least")));
        assert_eq!(tell(&["stop", "--wait"]), well("the cluster has ended"));
        let mut server = server;
        server.await_end();
    });
}

#[test]
fn a_page_names_the_master_its_workers_and_their_connections() {
    clean_process(|| {
        let server = Server::start(2, 2);
        server.await_phase(0, 2);
        let mut visitors = [0; 8].map(|_| Visitor::new(false, || server.connect().map(Stream::Tcp)));
        // Until each has one at least.
        let all_have = || {
            let workers = server.status().unwrap().worker_status;
            workers.iter().all(|worker| !worker.last_status.connections.is_empty())
        };
        wait_until("all have a connection", || {
            visitors.iter_mut().for_each(|visitor| drop(visitor.visit().unwrap()));
            all_have()
        });
        let status = server.status().unwrap();
        let mut client = Client::of(&server);
        client.say("GET /status HTTP/1.1\r\nHost: example\r\n\r\n");
        let Answer { head, text } = client.answer();
        assert!(head.contains(&"content-type: text/html; charset=utf-8".to_owned()), "{head:?}");
        assert!(text.contains(&format!("<dt>Master</dt><dd>process {}</dd>", server.master.id())), "{text}");
        for worker in &status.worker_status {
            let row = text.lines().find(|line| line.contains(&format!(">{}<", worker.pid)));
            let row = row.unwrap_or_else(|| panic!("no worker {} in {text}", worker.pid));
            let numbers = worker.last_status.connections.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
            assert!(row.contains("serves") && row.contains(&format!(">{numbers}</td>")), "{numbers} in {row}");
        }
        assert!(text.contains("<meta http-equiv=\"refresh\"") && !text.contains("<script"));
        drop(visitors);
        server.end();
    });
}

fn status(file: &str, field: &str) -> String {
    let status = fs::read_to_string(file).unwrap();
    status.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
}

fn threads_are_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let files = threads.map(|thread| thread.unwrap().path().join("status"));
    files.map(|file| status(file.to_str().unwrap(), "State:")).all(|state| state.starts_with('T'))
}

fn is_pending(pid: u32, signal: i32) -> bool {
    let pending = status(&format!("/proc/{pid}/status"), "ShdPnd:");
    u64::from_str_radix(&pending, 16).unwrap() & 1 << (signal - 1) != 0
}

fn children(pid: u32) -> Vec<u32> {
    let pids = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    pids.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
