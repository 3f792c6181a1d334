//! The example `prefork_server`, as a browser and a supervisor meet it: clients that keep their connections, clients that do
//! not finish what they say, and a signal to end in the midst of requests.

use forksafe::testing::{clean_process, descriptors, patience, wait_until};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

/// Where cargo puts the examples of the build that this program is of. `cargo test --test it` alone does not build them.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/prefork_server");
    let modified = |path: &Path| path.metadata().and_then(|file| file.modified());
    let source = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/prefork_server")).unwrap();
    let newest = source.map(|file| modified(&file.unwrap().path()).unwrap()).max().unwrap();
    let is_current = modified(&program).is_ok_and(|built| built >= newest);
    assert!(is_current, "{} has to be built: cargo build --all-features --examples", program.display());
    program
}

struct Server {
    master: Child,
    address: SocketAddr,
    /// Kept open: the server prints more.
    _output: BufReader<ChildStdout>,
}

impl Server {
    fn start(workers: u8, threads: u8) -> Self {
        let mut command = Command::new(program());
        command.env("PORT", "0").env("WEB_CONCURRENCY", workers.to_string());
        command.env("RAILS_MAX_THREADS", threads.to_string());
        let mut master = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(master.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.split_once("http://").and_then(|(_, rest)| rest.split_once(','));
        let address = address.unwrap_or_else(|| panic!("{line:?}")).0.parse().unwrap();
        Self { master, address, _output: output }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(patience())).unwrap();
        Client(BufReader::new(stream))
    }

    fn end(mut self) {
        signal(self.master.id(), libc::SIGTERM);
        self.await_end();
    }

    /// It has been told to. A failure would be its own verdict, or the embedded backend's.
    fn await_end(&mut self) {
        wait_until("the server has ended", || self.master.try_wait().unwrap().is_some());
        assert!(self.master.wait().unwrap().success());
        assert!(TcpStream::connect(self.address).is_err(), "somebody still listens");
    }
}

struct Client(BufReader<TcpStream>);

struct Answer {
    worker: u32,
    /// The server asks its client to leave.
    is_last: bool,
}

impl Client {
    fn say(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn ask(&mut self) {
        self.say("GET / HTTP/1.1\r\nHost: example\r\n\r\n");
    }

    fn answer(&mut self) -> Answer {
        let mut head = Vec::new();
        while head.last().is_none_or(|line: &String| !line.is_empty()) {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).expect("an answer"), 0, "closed without an answer, after {head:?}");
            head.push(line.trim_end().to_lowercase());
        }
        assert_eq!(head[0], "http/1.1 200 ok");
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut text = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let worker = text.split([' ', ',']).nth(1).and_then(|pid| pid.parse().ok());
        Answer {
            worker: worker.unwrap_or_else(|| panic!("{text:?}")),
            is_last: head.iter().any(|line| line == "connection: close"),
        }
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
        let mut clients: Vec<_> = (0..20).map(|_| server.connect()).collect();
        for _ in 0..3 {
            clients.iter_mut().for_each(Client::ask);
            assert!(clients.iter_mut().all(|client| !client.answer().is_last));
        }
        server.end();
        clients.iter_mut().for_each(Client::assert_closed);
    });
}

#[test]
fn a_client_that_does_not_finish_its_request_is_hung_up_on() {
    clean_process(|| {
        let server = Server::start(1, 1);
        let mut slow = server.connect();
        slow.say("GET / HTTP/1.1\r\nHost:");
        // It keeps nobody else from being answered.
        let mut quick = server.connect();
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
        let mut client = server.connect();
        client.ask();
        assert!(!client.answer().is_last);
        client.say("GET / HTTP/1.1\r\nHost:");
        signal(server.master.id(), libc::SIGTERM);
        wait_until("nobody listens", || TcpStream::connect(server.address).is_err());
        client.say(" example\r\n\r\n");
        assert!(client.answer().is_last);
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
        let clients = || -> Vec<_> { (0..20).map(|_| server.connect()).collect() };
        let mut known = clients();
        known.iter_mut().for_each(Client::ask);
        let worker = known.iter_mut().map(|client| client.answer().worker).max().unwrap();
        let sockets = || descriptors(worker).values().filter(|name| name.starts_with("socket:")).count();
        let before = sockets();
        let mut accepted = clients();
        wait_until("the worker has accepted them", || sockets() == before + 20);

        signal(worker, libc::SIGSTOP);
        wait_until("the worker has stopped", || threads_are_stopped(worker));
        let mut queued = clients();
        let mut all: Vec<_> = known.iter_mut().chain(&mut accepted).chain(&mut queued).collect();
        all.iter_mut().for_each(|client| client.ask());
        signal(server.master.id(), libc::SIGTERM);
        wait_until("the master has told the worker", || is_pending(worker, libc::SIGTERM));
        signal(worker, libc::SIGCONT);

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
        let mut first = server.connect();
        first.ask();
        let gone = first.answer().worker;
        signal(gone, libc::SIGTERM);
        first.assert_closed();
        let replaced = || {
            let mut client = server.connect();
            client.ask();
            assert_ne!(client.answer().worker, gone);
            children(server.master.id()).iter().filter(|pid| **pid != gone).count() == 3
        };
        wait_until("the backend and two workers are there", replaced);
        server.end();
    });
}

fn signal(pid: u32, number: i32) {
    // SAFETY: takes numbers. The processes are of this test's own family, and their parents have not reaped them.
    assert_eq!(unsafe { libc::kill(pid as libc::pid_t, number) }, 0, "{}", std::io::Error::last_os_error());
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
