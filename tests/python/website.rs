//! A server of HTTP that says what it is asked for, and keeps its connections.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

/// Until the process of the test ends. Returns its address, for a word to follow.
pub(crate) fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
    let url = format!("http://{}/", listener.local_addr().expect("a socket that listens"));
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(|| serve(client));
        }
    });
    url
}

fn serve(mut client: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    while let Some(request) = lines.next().transpose()? {
        // To the end of its head.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let word = request.split(' ').nth(1).and_then(|path| path.strip_prefix('/')).unwrap_or_default();
        write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{word}", word.len())?;
    }
    Ok(())
}
