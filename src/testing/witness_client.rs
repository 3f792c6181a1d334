//! How a [`Witness`](super::Witness) is spoken to.

use super::proc;
use super::stream::{Address, Stream};
use crate::fork::Descriptors;
use crate::{Attempt, ManageConnection};
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

pub(super) const GOODBYE: &str = "goodbye";

/// Connects to a [`Witness`](super::Witness). `connect` already speaks to it, as drivers do, and the client says goodbye
/// when it is dropped, as some drivers do.
#[derive(Clone, Debug)]
pub struct WitnessManager(Address);

impl WitnessManager {
    /// Connects to a witness in another process.
    pub fn at(address: SocketAddr) -> Self {
        Self(address.into())
    }

    /// The same on a unix socket.
    pub fn at_path(path: impl Into<PathBuf>) -> Self {
        Self(Address::Unix(path.into()))
    }

    pub(super) fn to(address: Address) -> Self {
        Self(address)
    }
}

impl ManageConnection for WitnessManager {
    type Connection = WitnessClient;
    type Error = io::Error;

    fn connect(&self) -> io::Result<WitnessClient> {
        WitnessClient::to(&self.0)
    }

    /// Published before the first word: the witness may take its time to answer.
    fn connect_within(&self, at: &mut Attempt) -> io::Result<WitnessClient> {
        let mut client = WitnessClient::open(&self.0)?;
        at.own(self.descriptors(&client));
        client.ask("hello")?;
        Ok(client)
    }

    fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
        conn.ask("are you there").map(drop)
    }

    fn has_broken(&self, conn: &mut WitnessClient) -> bool {
        conn.broken
    }

    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        Descriptors::of(conn.stream.get_ref())
    }
}

/// A client of a [`Witness`](super::Witness). By itself it is registered nowhere; a pool of [`WitnessManager`]'s registers its own.
#[derive(Debug)]
pub struct WitnessClient {
    stream: BufReader<Stream>,
    broken: bool,
}

/// What the witness answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The number that the server gave to the connection.
    pub connection: u64,
    /// The text that was asked.
    pub text: String,
}

impl WitnessClient {
    /// Connects and introduces itself.
    ///
    /// # Errors
    ///
    /// Of the socket.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        Self::to(&address.into())
    }

    /// The same on a unix socket.
    ///
    /// # Errors
    ///
    /// Of the socket.
    pub fn connect_path(path: impl Into<PathBuf>) -> io::Result<Self> {
        Self::to(&Address::Unix(path.into()))
    }

    pub(super) fn to(address: &Address) -> io::Result<Self> {
        let mut client = Self::open(address)?;
        client.ask("hello")?;
        Ok(client)
    }

    fn open(address: &Address) -> io::Result<Self> {
        let stream = Stream::connect(address)?;
        stream.set_read_timeout(Some(super::patience() / 2))?;
        Ok(Self { stream: BufReader::new(stream), broken: false })
    }

    /// Says `text` and returns the answer.
    ///
    /// # Errors
    ///
    /// Of the socket; `InvalidData` for an answer to something else, the garbled conversation of a shared socket.
    pub fn ask(&mut self, text: &str) -> io::Result<Answer> {
        let answer = self.exchange(text);
        self.broken |= answer.is_err();
        answer
    }

    /// What a client writes to say a text of one line: `I am 4711.1234567, 5 bytes: hello.` and the end of the line. For
    /// clients of another make. The answer is the connection's number, a space, the text and the end of the line.
    pub fn frame(text: &str) -> String {
        format!("I am {}, {} bytes: {text}.\n", proc::name_of_this_process(), text.len())
    }

    /// The socket, to look at from outside.
    pub fn stream(&self) -> &Stream {
        self.stream.get_ref()
    }

    fn exchange(&mut self, text: &str) -> io::Result<Answer> {
        self.say(text)?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer = line.trim_end().split_once(' ').and_then(|(connection, echo)| {
            let connection = connection.parse().ok()?;
            (echo == text).then(|| Answer { connection, text: echo.to_owned() })
        });
        answer.ok_or_else(|| {
            let wrong = format!("asked {text:?} and was answered {:?}", line.trim_end());
            io::Error::new(io::ErrorKind::InvalidData, wrong)
        })
    }

    fn say(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(Self::frame(text).as_bytes())
    }
}

impl Drop for WitnessClient {
    fn drop(&mut self) {
        let _ = self.say(GOODBYE);
    }
}

/// Who wrote a line, and which text; `None` if no client writes such a line.
pub(super) fn read_frame(line: &str) -> Option<(&str, &str)> {
    let (head, rest) = line.strip_prefix("I am ")?.split_once(" bytes: ")?;
    let (who, length) = head.split_once(", ")?;
    let text = rest.strip_suffix('.')?;
    (length.parse() == Ok(text.len()) && is_name(who)).then_some((who, text))
}

/// Whether a line that has no end yet may be one of `owner`'s, or of anybody's if that is not known.
pub(super) fn begins_frame(text: &str, owner: Option<&str>) -> bool {
    const HEAD: &str = "I am ";
    let Some(rest) = text.strip_prefix(HEAD) else { return HEAD.starts_with(text) };
    match (rest.split_once(','), owner) {
        (Some((who, _)), Some(owner)) => who == owner,
        (Some((who, _)), None) => is_name(who),
        (None, Some(owner)) => owner.starts_with(rest),
        (None, None) => rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'),
    }
}

/// Those who began to say something in a line.
pub(super) fn named_in(line: &str) -> Vec<&str> {
    let words = line.split("I am ").skip(1).map(|rest| rest.split(',').next().unwrap_or_default());
    words.filter(|who| is_name(who)).collect()
}

fn is_name(who: &str) -> bool {
    who.split_once('.').is_some_and(|(pid, start)| {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number(pid) && is_number(start)
    })
}
