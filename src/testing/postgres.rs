//! A PostgreSQL for one test.

use super::cluster::Cluster;
use super::redis::free_port;
use std::env;
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

/// A server for tests: small, with nothing that runs by itself, and careless of its data.
const SETTINGS: [&str; 7] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=.",
    "shared_buffers=8MB",
    // In the server's own folder.
    "dynamic_shared_memory_type=mmap",
    "max_logical_replication_workers=0",
    "autovacuum=off",
    "fsync=off",
];

/// A PostgreSQL server in a folder of its own, on a free loopback port and a unix socket, with an empty database
/// `postgres` and a superuser `postgres` who needs no password. It ends with the thread that started it, even if that is
/// killed; then its folder stays. `DATABASE_URL` in the environment is used instead if it is set.
///
/// Root has it run by the user `postgres` or `nobody`. The first start on a machine makes a template in the temporary
/// folder, which later ones copy: to `/dev/shm` if that has a gigabyte to spare and `TMPDIR` is not set.
#[derive(Debug)]
pub struct PrivatePostgres {
    server: Option<Child>,
    url: String,
    port: u16,
    arguments: Vec<String>,
    /// `None` with `DATABASE_URL`.
    cluster: Option<Cluster>,
}

impl PrivatePostgres {
    /// Starts a server, or takes the one of `DATABASE_URL`.
    ///
    /// # Panics
    ///
    /// When there is no PostgreSQL to start, with what to do about it.
    #[track_caller]
    pub fn start() -> Self {
        super::environment::obey();
        match env::var("DATABASE_URL") {
            Ok(url) => Self { server: None, url, port: 0, arguments: Vec::new(), cluster: None },
            Err(_) => Self::start_with(&[]),
        }
    }

    /// Starts a server, with more arguments if there are any (`&["-c", "max_connections=20"]`), whatever `DATABASE_URL`
    /// says.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[track_caller]
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_in(Cluster::new(), arguments)
    }

    /// Starts a server that speaks TLS with whoever wants to, with a certificate and a key in PEM format, whatever
    /// `DATABASE_URL` says.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[track_caller]
    pub fn start_with_tls(certificate: &str, key: &str) -> Self {
        let cluster = Cluster::new();
        cluster.write("server.crt", certificate);
        cluster.write("server.key", key);
        Self::start_in(cluster, &["-c", "ssl=on"])
    }

    #[track_caller]
    fn start_in(cluster: Cluster, arguments: &[&str]) -> Self {
        super::environment::obey();
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mut postgres = Self { server: None, url: String::new(), port: 0, arguments, cluster: Some(cluster) };
        let mut last = String::new();
        for _ in 0..5 {
            postgres.port = free_port();
            postgres.url = format!("postgresql://postgres@127.0.0.1:{}/postgres", postgres.port);
            match postgres.launch() {
                Ok(()) => return postgres,
                // Somebody else took the port in between, most likely.
                Err(why) => last = why,
            }
        }
        panic!("PostgreSQL does not start: {last}");
    }

    /// Where it listens: `postgresql://postgres@127.0.0.1:PORT/postgres`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same for its unix socket. `None` with `DATABASE_URL`.
    pub fn unix_url(&self) -> Option<String> {
        let folder = self.cluster.as_ref()?.folder().to_string_lossy();
        Some(format!("postgresql://postgres@{}:{}/postgres", percent_encoded(&folder), self.port))
    }

    /// The port on 127.0.0.1. `None` with `DATABASE_URL`.
    pub fn port(&self) -> Option<u16> {
        self.cluster.as_ref().map(|_| self.port)
    }

    /// The process that accepts the connections; those that serve them are its children. `None` with `DATABASE_URL`.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// [`url`](Self::url), for the driver.
    ///
    /// # Panics
    ///
    /// When `DATABASE_URL` is none.
    #[cfg(feature = "postgres")]
    #[track_caller]
    pub fn config(&self) -> ::postgres::Config {
        config(&self.url)
    }

    /// [`unix_url`](Self::unix_url), for the driver.
    #[cfg(feature = "postgres")]
    pub fn unix_config(&self) -> Option<::postgres::Config> {
        self.unix_url().map(|url| config(&url))
    }

    /// Ends the server and all of its sessions, as a crash would. Returns when all of its processes are gone.
    pub fn kill(&mut self) {
        let Some(server) = &mut self.server else { return };
        let until = Instant::now() + Duration::from_secs(10);
        if let Ok(None) = server.try_wait() {
            // The children of a server that was killed outright would see it only when they have nothing else to do,
            // and a piece of shared memory would stay. It kills a child that does not end in 5 s.
            for signal in [libc::SIGQUIT, libc::SIGCONT] {
                // SAFETY: takes numbers. It has not been waited for, so the pid is still its own.
                unsafe { libc::kill(server.id() as libc::pid_t, signal) };
            }
        }
        while let Ok(None) = server.try_wait() {
            if Instant::now() > until {
                let _ = server.kill();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts the server again, at the same address and with the same data. After [`kill`](Self::kill).
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        if let Err(why) = self.launch() {
            panic!("PostgreSQL does not start again: {why}");
        }
    }

    /// Does nothing with `DATABASE_URL`.
    #[track_caller]
    fn launch(&mut self) -> Result<(), String> {
        self.kill();
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let log = fs::File::create(cluster.folder().join("log")).expect("a log file");
        let mut command = cluster.server();
        command
            .args(["-p", &self.port.to_string()])
            .args(SETTINGS.iter().flat_map(|setting| ["-c", setting]))
            .args(&self.arguments)
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            // Out of reach of whoever kills the test's group: it must end its children.
            .process_group(0);
        let starter = std::process::id() as libc::pid_t;
        // SAFETY: system calls that touch no memory, between fork and exec.
        unsafe {
            // After the change of the user, which would undo it.
            command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT, 0, 0, 0) {
                0 if libc::getppid() == starter => Ok(()),
                0 => Err(io::ErrorKind::NotFound.into()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let server = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        self.server = Some(server);
        self.await_ready()
    }

    fn await_ready(&mut self) -> Result<(), String> {
        let (Some(server), Some(cluster)) = (&mut self.server, &self.cluster) else { return Ok(()) };
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Ok(Some(status)) = server.try_wait() {
                let log = fs::read_to_string(cluster.folder().join("log")).unwrap_or_default();
                return Err(format!("{status}\n{log}"));
            }
            // Its pid, its folder, ..., and in the eighth line how far it is.
            let file = fs::read_to_string(cluster.folder().join("postmaster.pid")).unwrap_or_default();
            let mut lines = file.lines().map(str::trim);
            if lines.next() == Some(&server.id().to_string()) && lines.nth(6) == Some("ready") {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Err("not ready within 60 s".into())
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(feature = "postgres")]
#[track_caller]
fn config(url: &str) -> ::postgres::Config {
    url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// A path, to stand where a url has its host.
fn percent_encoded(path: &str) -> String {
    let encoded = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    path.bytes().map(encoded).collect()
}
