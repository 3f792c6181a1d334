//! A host: a program that loads an application, and forks.

use crate::net::Net;
use crate::servers::Servers;
use forksafe::testing::{patience, wait_until};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Where the applications are.
pub(crate) const APPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/apps");

/// How long an answer may be on its way, before the control calls it a hang.
pub(crate) const HANG: Duration = Duration::from_secs(4);

/// A program at work, and a folder for it. It is ended when this is dropped; what it leaves behind, when the process of the test ends.
#[derive(Debug)]
pub(crate) struct Host {
    process: Child,
    folder: TempDir,
    /// It has had its chance to end by itself.
    is_told: bool,
}

impl Host {
    /// Runs what `command` makes of a folder.
    #[track_caller]
    pub(crate) fn start(command: impl FnOnce(&Path) -> Command) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = command(folder.path());
        let log = File::create(folder.path().join("log")).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let process = command.spawn().unwrap_or_else(|error| panic!("{}", advice(&command, &error)));
        Self { process, folder, is_told: false }
    }

    /// Runs an application with connections that it makes when it is loaded, and waits until it has.
    #[track_caller]
    pub(crate) fn with_clients(
        net: Net,
        program: impl AsRef<Path>,
        servers: &Servers,
        clients: &[&str],
        complete: impl FnOnce(&mut Command),
    ) -> Self {
        let mut host = Self::start(|folder| {
            let mut command = net.command(program.as_ref());
            application(&mut command, servers, clients, folder);
            command.env("FORKSAFE_REPORT", folder.join("said"));
            complete(&mut command);
            command
        });
        host.wait_until("the application is loaded", |folder| folder.join("before").exists());
        net.assert_in(host.pid());
        for (client, id) in host.sessions("before") {
            assert!(servers.serve(&client, &id), "{client} has a connection: {id}");
        }
        host
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, holds: impl Fn(&Path) -> bool) {
        wait_until(what, || {
            let ended = self.process.try_wait().expect("its status");
            holds(self.folder.path()) || ended.is_some_and(|status| panic!("{status}:\n{}", self.log()))
        });
    }

    #[track_caller]
    pub(crate) fn wait_until_it_listens(&mut self, port: u16) {
        self.wait_until("it listens", |_| TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        // SAFETY: takes numbers. The process has not been waited for unless it has ended, and then nobody sends it signals.
        unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
    }

    fn tell_to_end(&mut self) {
        self.signal(libc::SIGTERM);
        self.is_told = true;
    }

    /// How it ended, or `None` when it has not in that time.
    pub(crate) fn wait(&mut self, at_most: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + at_most;
        loop {
            let ended = self.process.try_wait().expect("its status");
            if ended.is_some() || Instant::now() > until {
                return ended;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The sessions of the host's own connections, as it wrote them down.
    pub(crate) fn sessions(&self, when: &str) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.folder.path().join(when)).unwrap_or_default();
        text.lines().filter_map(|line| line.split_once(' ')).map(|(name, id)| (name.into(), id.into())).collect()
    }

    /// How many connections the net has taken, in each child: it says so, with a line for each.
    pub(crate) fn taken(&self) -> BTreeMap<u32, usize> {
        let mut taken = BTreeMap::new();
        let text = fs::read_to_string(self.folder.path().join("said")).unwrap_or_default();
        for line in text.lines().filter(|line| line.ends_with(": disowned")) {
            let pid = line.strip_prefix("forksafe: process ").and_then(|line| line.split(' ').next());
            let pid = pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{line:?} names a process"));
            *taken.entry(pid).or_default() += 1;
        }
        taken
    }

    /// Ends it as its users do, and says what is wrong with the sessions of its connections, which are served for as long as it lives.
    pub(crate) fn end(&mut self, net: Net, servers: &Servers) -> Vec<String> {
        let before = self.sessions("before");
        let mut faults = Vec::new();
        for (client, id) in &before {
            if !servers.serve(client, id) {
                faults.push(format!("{client}: the server has ended the parent's session {id}"));
            }
        }
        self.tell_to_end();
        if self.wait(if net == Net::On { patience() } else { HANG }).is_none() {
            faults.push("the host does not end".to_owned());
        }
        faults.extend(self.lost());
        if net == Net::On && !faults.is_empty() {
            eprintln!("{}", self.log());
        }
        faults
    }

    /// Of the sessions that it had at first, those that its connections do not have at the end.
    pub(crate) fn lost(&self) -> Vec<String> {
        let (before, after) = (self.sessions("before"), self.sessions("after"));
        let lost = before.iter().filter(|(client, id)| after.get(*client) != Some(id));
        lost.map(|(client, id)| format!("{client}: the parent had session {id}, and has {:?}", after.get(client)))
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
        // A server ends its children.
        if let (Ok(None), false) = (self.process.try_wait(), self.is_told) {
            self.tell_to_end();
            self.wait(HANG);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the applications go by.
pub(crate) fn application(command: &mut Command, servers: &Servers, clients: &[&str], folder: &Path) {
    command
        .current_dir(APPS)
        .env("POSTGRES", servers.postgres.url())
        .env("REDIS", servers.redis.url())
        .env("SESSIONS", folder)
        .env("CLIENTS", clients.join(" "))
        .env("PYTHONPATH", APPS)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        // Debian's are the ones that are meant.
        .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin");
}

pub(crate) fn advice(command: &Command, error: &io::Error) -> String {
    format!("{command:?} does not start ({error}): run `cargo xtask test --install` as root on Debian or its kin")
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|any| any.local_addr()).expect("a free loopback port").port()
}

/// The programs of Debian's packages, wherever another of that name may come first on the path.
pub(crate) fn debian(program: &str) -> PathBuf {
    let places = ["/usr/bin", "/usr/sbin"].map(|folder| Path::new(folder).join(program));
    places.iter().find(|place| place.is_file()).cloned().unwrap_or_else(|| program.into())
}
