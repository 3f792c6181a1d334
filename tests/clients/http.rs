//! A small HTTP server, which knows who asks on which connection.

use forksafe::testing;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// Of each connection, the processes that have asked on it, as they say.
type Askers = BTreeMap<u64, BTreeSet<String>>;

/// A process of its own, so that nobody inherits its ends of the connections.
pub(crate) struct Server {
    address: SocketAddr,
    _process: testing::Child<()>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let process = testing::child(|| {
            let askers = Arc::<Mutex<Askers>>::default();
            for (connection, stream) in (1..).zip(listener.incoming()) {
                let askers = Arc::clone(&askers);
                // One that was ended in the middle of a question is none of ours.
                thread::spawn(move || serve(connection, &stream?, &askers));
            }
        });
        Self { address, _process: process }
    }

    /// Of a question in this process's name, which is answered by the number of the connection and the word.
    pub(crate) fn url(&self, word: &str) -> String {
        format!("http://{}/{}/{}", self.address, std::process::id(), word.replace(' ', "_"))
    }

    /// For each connection, how many processes have asked on it. Ends the server.
    #[track_caller]
    pub(crate) fn askers(self) -> Vec<usize> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.write_all(b"GET /askers HTTP/1.1\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, numbers) = answer.split_once("\r\n\r\n").unwrap();
        numbers.split_whitespace().map(|number| number.parse().unwrap()).collect()
    }
}

fn serve(connection: u64, mut stream: &TcpStream, askers: &Mutex<Askers>) -> io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let Some(question) = lines.next().transpose()? else { return Ok(()) };
        while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
        let path = question.split(' ').nth(1).unwrap_or_default();
        let mut askers = askers.lock().unwrap();
        let answer = match path.trim_start_matches('/').split_once('/') {
            Some((process, word)) => {
                askers.entry(connection).or_default().insert(process.to_owned());
                format!("{connection} {}", word.replace('_', " "))
            }
            None => askers.values().map(|processes| format!("{} ", processes.len())).collect(),
        };
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())?;
    }
}
