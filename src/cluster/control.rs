//! The control socket: asks how the cluster stands, and has it restarted, scaled, or ended. The master's loop serves it in between and
//! never waits for who asks.

use super::board::now;
use super::legacy::Legacy;
use super::listeners::{remove_what_nobody_listens_at, try_connect};
use super::{Error, say};
use crate::Deadline;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, umask};
use std::fmt;
use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread;
use std::time::Duration;

/// Others are hung up on.
const MOST_CLIENTS: usize = 64;
const LONGEST_REQUEST: usize = 8192;

/// How long somebody may take to ask, and to take the answer; and how long nobody is let in when that cannot be done.
const PATIENCE: u64 = 5_000;
const PAUSE: u64 = 1_000;

/// What a master can be asked for over its [control socket](super::Builder::control_socket).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// How the cluster stands: a [`Status`](super::Status) as JSON.
    Status,
    /// A phased restart, as by `USR1`.
    Restart,
    /// So many workers from now on.
    Scale(usize),
    /// A graceful end, as by `TERM`.
    Stop,
}

impl FromStr for Command {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            ["status" | "stats"] => Ok(Self::Status),
            ["restart"] => Ok(Self::Restart),
            ["stop"] => Ok(Self::Stop),
            ["scale", number] => number.parse().map(Self::Scale).map_err(|_| format!("scale to what is {number:?}?")),
            _ => Err(format!("{text:?} is none of: status, restart, scale NUMBER, stop")),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status => f.write_str("status"),
            Self::Restart => f.write_str("restart"),
            Self::Scale(workers) => write!(f, "scale {workers}"),
            Self::Stop => f.write_str("stop"),
        }
    }
}

/// Why a command has come to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// There is no master there, or none that answers in time.
    #[error("no answer from {}: {cause}", socket.display())]
    NoAnswer {
        /// Where it was asked for.
        socket: PathBuf,
        /// What the kernel says.
        cause: io::Error,
    },
    /// The master will not, or could not.
    #[error("{0}")]
    Refused(String),
}

impl Command {
    /// Asks the master behind a [control socket](super::Builder::control_socket), and returns its answer: JSON for
    /// [`Status`](Self::Status), a sentence otherwise. If `wait` the answer comes when it has been done, or has failed.
    ///
    /// # Errors
    ///
    /// See [`ControlError`]. When the deadline is over the command may be carried out all the same.
    pub fn send(self, socket: impl AsRef<Path>, wait: bool, deadline: Deadline) -> Result<String, ControlError> {
        let socket = socket.as_ref();
        let failed = |cause| ControlError::NoAnswer { socket: socket.to_owned(), cause };
        let asked = || -> io::Result<String> {
            let mut stream = connect_until(socket, deadline)?;
            stream.set_nonblocking(false)?;
            let wait = if wait { " wait" } else { "" };
            let time_left = || Some(deadline.remaining().max(Duration::from_millis(1)));
            stream.set_write_timeout(time_left())?;
            writeln!(stream, "{self}{wait}")?;
            stream.set_read_timeout(time_left())?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            Ok(answer)
        };
        let answer =
            asked().map_err(|error| failed(if error.kind() == ErrorKind::WouldBlock { too_late() } else { error }))?;
        match answer.trim_end().split_once(' ') {
            Some(("ok", text)) => Ok(text.to_owned()),
            Some(("error", text)) => Err(ControlError::Refused(text.to_owned())),
            _ => Err(failed(io::Error::new(ErrorKind::UnexpectedEof, "it hung up"))),
        }
    }
}

/// A master that is stopped lets nobody in.
fn connect_until(socket: &Path, deadline: Deadline) -> io::Result<UnixStream> {
    loop {
        match try_connect(socket)? {
            Some(stream) => return Ok(stream),
            None if deadline.is_over() => return Err(too_late()),
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn too_late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, "it is there, and has not answered in time")
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The end of the restart to this phase.
    Restart(u64),
    /// So many serve.
    Scale(usize),
    /// The end.
    Stop,
}

pub(super) type Answer = Result<String, String>;

pub(super) struct Control {
    listener: UnixListener,
    path: PathBuf,
    clients: Vec<Client>,
    lets_in_from: u64,
}

struct Client {
    stream: UnixStream,
    since: u64,
    heard: Vec<u8>,
    /// Whatever it is: there is no more to come.
    has_said_all: bool,
    is_http: bool,
    waits_for: Option<Wait>,
    /// None as long as there is nothing to say.
    answer: Option<Vec<u8>>,
}

impl Control {
    /// Only for who may do what the master may.
    pub(super) fn bind(path: PathBuf, legacy: &mut Legacy) -> Result<Self, Error> {
        let mut bind = || {
            if let Some(listener) = legacy.take_listener(&key(&path)) {
                return Ok(listener.into());
            }
            remove_what_nobody_listens_at(&path)?;
            let before = umask(Mode::from_bits_truncate(0o177));
            let listener = UnixListener::bind(&path);
            umask(before);
            let listener = listener?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = bind().map_err(|cause| Error::Listen { on: path.display().to_string(), cause })?;
        Ok(Self { listener, path, clients: Vec::new(), lets_in_from: 0 })
    }

    /// What the next program takes over, if this one execs. Somebody who was just forked may have it still, so that it could not be
    /// bound anew.
    pub(super) fn leaves(&self) -> (String, BorrowedFd<'_>) {
        (key(&self.path), self.listener.as_fd())
    }

    /// For what the master's loop wakes up.
    pub(super) fn waits(&self, now: u64) -> impl Iterator<Item = PollFd<'_>> {
        let listener = (now >= self.lets_in_from).then(|| PollFd::new(self.listener.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter().map(|client| {
            let events = match client {
                Client { answer: Some(_), .. } => PollFlags::POLLOUT,
                // What it says now is nobody's business; that it hangs up is told all the same.
                Client { waits_for: Some(_), .. } => PollFlags::empty(),
                Client { .. } => PollFlags::POLLIN,
            };
            PollFd::new(client.stream.as_fd(), events)
        });
        listener.into_iter().chain(clients)
    }

    /// Does what it is asked for by way of `act`, which says what has become of it, or for what to wait; and says what is to be said.
    pub(super) fn serve(&mut self, mut act: impl FnMut(Command) -> Result<(String, Option<Wait>), String>) {
        self.let_in();
        for client in self.clients.iter_mut().filter(|client| client.answer.is_none()) {
            if client.waits_for.is_some() {
                if !client.is_there() {
                    client.answer = Some(Vec::new());
                }
                continue;
            }
            let Some(request) = client.hear() else { continue };
            let (command, waits) = match request.strip_suffix(" wait") {
                Some(command) => (command, true),
                None => (&*request, false),
            };
            match command.parse().and_then(&mut act) {
                Ok((_, Some(wait))) if waits => client.waits_for = Some(wait),
                Ok((answer, _)) => client.say(&Ok(answer)),
                Err(error) => client.say(&Err(error)),
            }
        }
    }

    /// Tells those who wait, as soon as there is an outcome; and says what is to be said.
    pub(super) fn settle(&mut self, outcome: impl Fn(Wait) -> Option<Answer>) {
        for client in self.clients.iter_mut().filter(|client| client.answer.is_none()) {
            if let Some(answer) = client.waits_for.and_then(&outcome) {
                client.say(&answer);
            }
        }
        let now = now();
        self.clients.retain_mut(|client| client.goes_on(now));
    }

    fn let_in(&mut self) {
        while now() >= self.lets_in_from {
            match self.listener.accept() {
                Ok((stream, _)) if self.clients.len() < MOST_CLIENTS && stream.set_nonblocking(true).is_ok() => {
                    self.clients.push(Client::new(stream));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    say(&format!("cannot let in who asks at {}: {error}", self.path.display()));
                    self.lets_in_from = now() + PAUSE;
                }
            }
        }
    }

    /// The cluster has ended. Those who are not told by now are hung up on.
    pub(super) fn end(mut self, outcome: &Answer) {
        self.settle(|_| Some(outcome.clone()));
        let _ = fs::remove_file(&self.path);
    }
}

fn key(path: &Path) -> String {
    format!("control {}", path.display())
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            since: now(),
            heard: Vec::new(),
            has_said_all: false,
            is_http: false,
            waits_for: None,
            answer: None,
        }
    }

    /// What it asks for, when it has.
    fn hear(&mut self) -> Option<String> {
        let mut more = [0; 1024];
        loop {
            match self.stream.read(&mut more) {
                Ok(length @ 1..) => self.heard.extend_from_slice(&more[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Ok(0) | Err(_) => {
                    self.has_said_all = true;
                    break;
                }
            }
            if self.heard.len() > LONGEST_REQUEST {
                self.say(&Err("that is too long".into()));
                return None;
            }
        }
        let request = self.understand();
        if request.is_none() && self.has_said_all && self.answer.is_none() {
            self.answer = Some(Vec::new());
        }
        request
    }

    fn understand(&mut self) -> Option<String> {
        let heard = String::from_utf8_lossy(&self.heard).into_owned();
        let (line, rest) = heard.split_once('\n')?;
        let line = line.trim();
        let Some(target) = line.strip_suffix(" HTTP/1.1").or_else(|| line.strip_suffix(" HTTP/1.0")) else {
            return Some(line.to_owned());
        };
        self.is_http = true;
        if !(rest.starts_with("\r\n") || rest.contains("\r\n\r\n")) {
            return None; // There are headers to come.
        }
        let words = target.replace(['/', '?', '&'], " ");
        let words: Vec<&str> = words.split_whitespace().collect();
        match &words[..] {
            ["GET", "status" | "stats"] => Some("status".into()),
            ["POST", command @ ..] => Some(command.join(" ")),
            _ => {
                self.say(&Err("GET /status, POST /restart, POST /scale/NUMBER, or POST /stop; ?wait waits".into()));
                None
            }
        }
    }

    /// Whether it has not hung up.
    fn is_there(&self) -> bool {
        let mut looks = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        !matches!(poll(&mut looks, PollTimeout::ZERO), Ok(1..))
    }

    fn say(&mut self, answer: &Answer) {
        self.since = now();
        let text = if self.is_http {
            let (status, body) = match answer {
                Ok(text) if text.starts_with('{') => ("200 OK", text.clone()),
                Ok(text) => ("200 OK", serde_json::json!({ "status": text }).to_string()),
                Err(text) => ("409 Conflict", serde_json::json!({ "error": text }).to_string()),
            };
            let length = body.len() + 1;
            let head = format!("Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n");
            format!("HTTP/1.1 {status}\r\n{head}\r\n{body}\n")
        } else {
            let (kind, text) = answer.as_ref().map_or_else(|error| ("error", error), |text| ("ok", text));
            format!("{kind} {}\n", text.replace('\n', " "))
        };
        self.answer = Some(text.into_bytes());
    }

    /// Says as much as is taken, and is done with it when all is said, or it has taken too long.
    fn goes_on(&mut self, now: u64) -> bool {
        while let Some(answer) = self.answer.as_mut().filter(|answer| !answer.is_empty()) {
            match self.stream.write(answer) {
                Ok(length) => drop(answer.drain(..length)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        let is_through = self.answer.as_ref().is_some_and(Vec::is_empty);
        !is_through && (self.waits_for.is_some() && self.answer.is_none() || now < self.since + PATIENCE)
    }
}
