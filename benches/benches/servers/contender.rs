//! The servers: how each is started, restarted and ended, and who its workers are.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::env;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a server is to be, told through the environment.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) workers: usize,
    pub(crate) threads: usize,
    /// Entries of 100 bytes in a table that the master loads.
    pub(crate) table: usize,
    pub(crate) redis: String,
    pub(crate) address: String,
    /// Each worker adds a line to this file when it is booted.
    pub(crate) booted: PathBuf,
}

impl Settings {
    pub(crate) fn from_env() -> Self {
        let said = |name| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let number = |name| said(name).parse().expect("a number");
        Self {
            workers: number("BENCH_WORKERS"),
            threads: number("BENCH_THREADS"),
            table: number("BENCH_TABLE"),
            redis: said("BENCH_REDIS"),
            address: said("BENCH_ADDRESS"),
            booted: said("BENCH_BOOTED").into(),
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Contender {
    Forksafe,
    Puma,
    Gunicorn,
}

pub(crate) const ALL: [Contender; 3] = [Contender::Forksafe, Contender::Puma, Contender::Gunicorn];

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Forksafe => "forksafe",
            Self::Puma => "Puma",
            Self::Gunicorn => "gunicorn",
        }
    }

    /// Whether its program is here.
    pub(crate) fn is_there(self) -> bool {
        let path = env::var_os("PATH").unwrap_or_default();
        let has = |name| env::split_paths(&path).any(|folder| folder.join(name).is_file());
        match self {
            Self::Forksafe => true,
            Self::Puma => has("puma"),
            Self::Gunicorn => has("gunicorn"),
        }
    }

    fn command(self) -> Command {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/servers");
        let mut command = match self {
            Self::Forksafe => Command::new(env::current_exe().expect("the path of this program")),
            Self::Puma => Command::new("puma"),
            Self::Gunicorn => Command::new("gunicorn"),
        };
        match self {
            Self::Forksafe => command.arg("serve"),
            Self::Puma => command.args(["--quiet", "--config", &format!("{folder}/puma.rb")]),
            Self::Gunicorn => command.args(["--config", &format!("{folder}/gunicorn.conf.py")]),
        };
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// By which its workers are replaced, one after the other.
    fn restart_signal(self) -> Signal {
        match self {
            Self::Forksafe | Self::Puma => Signal::SIGUSR1,
            Self::Gunicorn => Signal::SIGHUP,
        }
    }
}

/// A server that runs. Ends when dropped.
pub(crate) struct Running {
    master: Child,
    contender: Contender,
    settings: Settings,
    /// From its start until all workers were booted.
    pub(crate) boot: Duration,
}

impl Running {
    pub(crate) fn start(contender: Contender, settings: &Settings, preloads: bool) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
        let settings = Settings { address: format!("127.0.0.1:{port}"), ..settings.clone() };
        let _ = fs::remove_file(&settings.booted);
        let mut command = contender.command();
        command.env("BENCH_WORKERS", settings.workers.to_string());
        command.env("BENCH_THREADS", settings.threads.to_string());
        command.env("BENCH_TABLE", settings.table.to_string());
        command.env("BENCH_REDIS", &settings.redis).env("BENCH_ADDRESS", &settings.address);
        command.env("BENCH_BOOTED", &settings.booted).env("BENCH_PRELOAD", if preloads { "yes" } else { "no" });
        // Its log would be in the midst of the tables.
        let log = fs::File::create(settings.booted.with_extension("log")).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let start = Instant::now();
        let master = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", contender.name()));
        let mut running = Self { master, contender, settings, boot: Duration::ZERO };
        running.await_booted(running.settings.workers);
        running.boot = start.elapsed();
        running.wait_until("it listens", |it| TcpStream::connect(&it.settings.address).is_ok());
        running
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.settings.address)
    }

    fn await_booted(&self, number: usize) {
        let lines = |it: &Self| fs::read_to_string(&it.settings.booted).unwrap_or_default().lines().count();
        self.wait_until("its workers are booted", |it| lines(it) >= number);
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(120);
        while !is_so(self) {
            if Instant::now() > until {
                let log = fs::read_to_string(self.settings.booted.with_extension("log")).unwrap_or_default();
                panic!("{}: in vain waited until {what}\n{log}", self.contender.name());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn master(&self) -> u32 {
        self.master.id()
    }

    pub(crate) fn workers(&self) -> Vec<u32> {
        let pid = self.master();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("its children");
        children.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
    }

    /// The time that master and workers have had on the processors.
    pub(crate) fn processor_time(&self) -> Duration {
        let of = |pid: u32| -> u64 {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
        };
        // A hundred ticks a second, on all of Linux.
        Duration::from_millis(10 * self.workers().into_iter().chain([self.master()]).map(of).sum::<u64>())
    }

    /// Replaces all workers. How long it took.
    pub(crate) fn restart(&self) -> Duration {
        let (before, start) = (self.workers(), Instant::now());
        self.signal(self.contender.restart_signal());
        self.wait_until("its workers are replaced", |it| {
            let now = it.workers();
            now.len() == it.settings.workers && !now.iter().any(|pid| before.contains(pid))
        });
        start.elapsed()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.master() as i32), signal).expect("a signal to a child of ours");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(15);
        self.signal(Signal::SIGTERM);
        while matches!(self.master.try_wait(), Ok(None)) && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.master.kill();
        let _ = self.master.wait();
    }
}
