//! A server that speaks Redis's protocol and answers as a test wants.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;

/// What a fake says to a command.
pub(crate) enum Says {
    /// What a Redis would.
    Usual,
    This(Vec<u8>),
    HangUp,
    /// Nothing at all, and reads on.
    Silence,
}

pub(crate) fn says(reply: impl AsRef<[u8]>) -> Says {
    Says::This(reply.as_ref().to_vec())
}

pub(crate) struct Fake {
    pub(crate) address: String,
    accepted: Arc<AtomicUsize>,
}

impl Fake {
    /// `answer` is told the number of the connection, from 0, that of the command on it, and its words; the first is in
    /// capitals.
    pub(crate) fn start(answer: impl Fn(usize, usize, &[String]) -> Says + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (answer, count) = (Arc::new(answer), Arc::clone(&accepted));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, answer) = (stream.unwrap(), Arc::clone(&answer));
                let number = count.fetch_add(1, SeqCst);
                thread::spawn(move || serve(&stream, |command, words| answer(number, command, words)));
            }
        });
        Self { address, accepted }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    pub(crate) fn client(&self) -> redis::Client {
        redis::Client::open(self.url()).unwrap()
    }
}

/// The next command's words.
pub(crate) fn read_command(input: &mut impl BufRead) -> Option<Vec<String>> {
    let number = |input: &mut dyn BufRead| -> Option<usize> {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        line.get(1..)?.trim().parse().ok()
    };
    let words = (0..number(input)?).map(|_| {
        let mut word = vec![0; number(input)? + 2];
        input.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        String::from_utf8(word).ok()
    });
    let mut words = words.collect::<Option<Vec<_>>>()?;
    words.first_mut()?.make_ascii_uppercase();
    Some(words)
}

fn serve(mut stream: &TcpStream, answer: impl Fn(usize, &[String]) -> Says) {
    stream.set_nodelay(true).unwrap();
    let mut input = BufReader::new(stream);
    let mut count = 0;
    while let Some(words) = read_command(&mut input) {
        let reply = match answer(count, &words) {
            Says::Usual => usual(&words),
            Says::This(reply) => reply,
            Says::HangUp => return,
            Says::Silence => Vec::new(),
        };
        if stream.write_all(&reply).is_err() {
            return;
        }
        count += 1;
    }
}

pub(crate) fn usual(words: &[String]) -> Vec<u8> {
    match (words[0].as_str(), words.get(1)) {
        ("PING" | "ECHO", Some(text)) => format!("${}\r\n{text}\r\n", text.len()).into_bytes(),
        ("PING", None) => b"+PONG\r\n".to_vec(),
        ("GET", _) => b"$5\r\nvalue\r\n".to_vec(),
        _ => b"+OK\r\n".to_vec(),
    }
}
