use forksafe::fork::{Descriptors, Guarded, PerProcess};
use forksafe::testing::{self, PrivateRedis, Steps, Tap};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};

/// The program under test: a client on a bare socket.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(address).expect("a connection")))
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.0.get_mut(), "{command}\r").expect("a question");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("an answer");
        answer.trim_end().to_owned()
    }
}

/// As it is, each worker has a copy of the master's socket. Of all tests this is the shortest, and needs no server that
/// knows of it.
#[test]
#[should_panic(expected = "connections are shared between processes:")]
fn workers_inherit_a_bare_socket() {
    testing::clean_process(|| {
        let server = PrivateRedis::start();
        let _client = Client::connect(server.address().parse().expect("an address"));
        let steps = Steps::new(&["the end"]);
        let worker = testing::child(|| steps.wait_for("the end"));
        testing::assert_nothing_shared(&[std::process::id(), worker.pid()]);
    });
}

/// And this is what they do with it.
#[test]
#[should_panic(expected = "bytes were sent to the server: \"INCR visits")]
fn workers_talk_on_a_bare_socket_of_their_masters() {
    testing::clean_process(|| {
        let server = PrivateRedis::start();
        let tap = Tap::before(server.address().parse::<SocketAddr>().expect("an address"));
        let mut client = Client::connect(tap.address().to_string().parse().expect("an address"));
        client.ask("PING");
        tap.assert_untouched(|| testing::child(|| client.ask("INCR visits")).join());
    });
}

/// The cure, in two parts: the descriptor is named, so that a child drops it at birth; and a child makes a client anew.
#[test]
fn workers_have_clients_of_their_own() {
    testing::clean_process(|| {
        let server = PrivateRedis::start();
        let tap = Tap::before(server.address().parse::<SocketAddr>().expect("an address"));
        let address: SocketAddr = tap.address().to_string().parse().expect("an address");
        let guarded = || Guarded::new(Client::connect(address), |client| Descriptors::of(client.0.get_ref()));
        let client = PerProcess::new(|| std::sync::Mutex::new(guarded().expect("a client")));
        let ask = |command: &str| client.lock().expect("nobody panicked").ask(command);

        assert_eq!(ask("PING"), "+PONG");
        let steps = Steps::new(&["the worker has asked", "the end"]);
        let worker = tap.assert_untouched(|| {
            let worker = testing::child(|| {
                assert_eq!(ask("INCR visits"), ":1");
                steps.take("the worker has asked");
                steps.wait_for("the end");
            });
            steps.wait_for("the worker has asked");
            worker
        });
        testing::assert_nothing_shared(&[std::process::id(), worker.pid()]);
        assert_eq!(ask("INCR visits"), ":2");
        steps.take("the end");
        worker.join();
    });
}
