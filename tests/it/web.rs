//! The example `prefork_server` as a process, and clients that count what it answers.

use crate::kit::{StopOnDrop, kill};
use forksafe::Deadline;
use forksafe::cluster::{Command as Ask, Status, Stream};
use forksafe::testing::{patience, wait_until};
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;

/// Where cargo puts the examples of the build that this program is of. `cargo test --test it` alone does not build them.
pub(crate) fn prefork_server() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/prefork_server");
    let modified = |path: &Path| path.metadata().and_then(|file| file.modified());
    let source = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/prefork_server")).unwrap();
    let newest = source.map(|file| modified(&file.unwrap().path()).unwrap()).max().unwrap();
    let is_current = modified(&program).is_ok_and(|built| built >= newest);
    assert!(is_current, "{} has to be built: cargo build --all-features --examples", program.display());
    program
}

/// A server that listens on a port and at `socket` in a folder of its own, and is told things at `control`.
pub(crate) struct Server {
    pub(crate) master: Child,
    pub(crate) address: SocketAddr,
    folder: PathBuf,
    /// Kept open: the server prints more.
    _output: BufReader<ChildStdout>,
}

impl Server {
    pub(crate) fn start(workers: u8, threads: u8) -> Self {
        Self::start_with(workers, threads, &[])
    }

    pub(crate) fn start_with(workers: u8, threads: u8, arguments: &[&str]) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, SeqCst);
        let folder = std::env::temp_dir().join(format!("forksafe-web-{}-{number}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let mut command = Command::new(prefork_server());
        command.arg("--listen").arg(format!("unix:{}/socket", folder.display()));
        command.arg("--control").arg(folder.join("control")).args(arguments);
        command.env("PORT", "0").env("WEB_CONCURRENCY", workers.to_string());
        command.env("RAILS_MAX_THREADS", threads.to_string());
        let mut master = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = BufReader::new(master.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.split_once("http://").and_then(|(_, rest)| rest.split_once(' '));
        let address = address.unwrap_or_else(|| panic!("{line:?}")).0.parse().unwrap();
        Self { master, address, folder, _output: output }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(crate) fn signal(&self, signal: i32) {
        kill(self.master.id(), signal);
    }

    pub(crate) fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(patience()))?;
        Ok(stream)
    }

    /// `None` while nobody is there to answer, in the middle of a restart by exec.
    pub(crate) fn status(&self) -> Option<Status> {
        let answer = Ask::Status.send(self.file("control"), false, Deadline::after(patience())).ok()?;
        Some(serde_json::from_str(&answer).unwrap())
    }

    /// All workers are of this phase, and serve.
    #[track_caller]
    pub(crate) fn await_phase(&self, phase: u64, workers: usize) {
        wait_until("the restart is through", || {
            self.status().is_some_and(|now| {
                (now.phase, now.old_workers, now.workers, now.booted_workers) == (phase, 0, workers, workers)
            })
        });
    }

    pub(crate) fn end(mut self) {
        self.signal(libc::SIGTERM);
        self.await_end();
    }

    /// It has been told to. A failure would be its own verdict, or the embedded backend's.
    pub(crate) fn await_end(&mut self) {
        wait_until("the server has ended", || self.master.try_wait().unwrap().is_some());
        assert!(self.master.wait().unwrap().success());
        assert!(TcpStream::connect(self.address).is_err(), "somebody still listens");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.master.kill();
        let _ = self.master.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What the server says.
pub(crate) struct Answer {
    /// With the code, in small letters.
    pub(crate) head: Vec<String>,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn read(from: &mut impl BufRead) -> Result<Self, String> {
        let mut head = Vec::new();
        while head.last().is_none_or(|line: &String| !line.is_empty()) {
            let mut line = String::new();
            match from.read_line(&mut line) {
                Ok(0) => return Err(format!("closed without an answer, after {head:?}")),
                Ok(_) => head.push(line.trim_end().to_lowercase()),
                Err(error) => return Err(format!("{error}, after {head:?}")),
            }
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.and_then(|length| length.parse().ok()).ok_or(format!("no length in {head:?}"))?;
        let mut text = vec![0; length];
        from.read_exact(&mut text).map_err(|error| format!("{error} in the middle of an answer"))?;
        let text = String::from_utf8(text).map_err(|error| error.to_string())?;
        if head[0] == "http/1.1 200 ok" { Ok(Self { head, text }) } else { Err(format!("{} {text}", head[0])) }
    }

    /// The client is asked to leave.
    pub(crate) fn is_last(&self) -> bool {
        self.head.iter().any(|line| line == "connection: close")
    }

    /// Whose answer it is.
    pub(crate) fn worker(&self) -> u32 {
        let worker = self.text.split([' ', ',']).nth(1).and_then(|pid| pid.parse().ok());
        worker.unwrap_or_else(|| panic!("{:?}", self.text))
    }
}

/// A client that asks, again and again.
pub(crate) struct Visitor<'a> {
    connect: Box<dyn Fn() -> io::Result<Stream> + Send + 'a>,
    /// Or it connects for each request.
    stays: bool,
    connection: Option<BufReader<Stream>>,
}

impl<'a> Visitor<'a> {
    pub(crate) fn new(stays: bool, connect: impl Fn() -> io::Result<Stream> + Send + 'a) -> Self {
        Self { connect: Box::new(connect), stays, connection: None }
    }

    /// Half of them stay; of these and of the others half come by TCP, and half to a socket.
    pub(crate) fn some(server: &'a Server, number: u8) -> Vec<Self> {
        let tcp = || server.connect().map(Stream::Tcp);
        let unix = || at_socket(&server.file("socket"));
        let one = |number| match number % 4 {
            stays @ (0 | 1) => Self::new(stays == 0, tcp),
            stays => Self::new(stays == 2, unix),
        };
        (0..number).map(one).collect()
    }

    pub(crate) fn visit(&mut self) -> Result<Answer, String> {
        let answer = self.try_visit();
        let goes = answer.as_ref().map_or(true, |answer| !self.stays || answer.is_last());
        if goes {
            self.connection = None;
        }
        answer
    }

    fn try_visit(&mut self) -> Result<Answer, String> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(BufReader::new((self.connect)().map_err(|error| format!("not let in: {error}"))?)),
        };
        let asked = connection.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: example\r\n\r\n");
        asked.map_err(|error| format!("cannot ask: {error}"))?;
        Answer::read(connection)
    }
}

pub(crate) fn at_socket(path: &Path) -> io::Result<Stream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience()))?;
    Ok(Stream::Unix(stream))
}

/// While `act` acts, and until each of them has been answered after it, they all ask without a pause. Says how often they did, and
/// what became of those requests that were not answered.
pub(crate) fn under_load(visitors: Vec<Visitor<'_>>, act: impl FnOnce()) -> (u32, Vec<String>) {
    let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let many = visitors.len() as u32;
    thread::scope(|scope| {
        let (stop, asked) = (&stop, &asked);
        let asks = move |mut visitor: Visitor<'_>| {
            let mut failed = Vec::new();
            while !stop.load(SeqCst) {
                failed.extend(visitor.visit().err());
                asked.fetch_add(1, SeqCst);
            }
            failed
        };
        let threads: Vec<_> = visitors.into_iter().map(|visitor| scope.spawn(move || asks(visitor))).collect();
        let _stop = StopOnDrop(stop);
        let more = || {
            let from = asked.load(SeqCst);
            wait_until("clients are answered", || asked.load(SeqCst) >= from + 10 * many);
        };
        more();
        act();
        more();
        stop.store(true, SeqCst);
        let failed = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (asked.load(SeqCst), failed)
    })
}
