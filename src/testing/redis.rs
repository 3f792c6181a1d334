//! A Redis for one test.

use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A Redis server in a folder of its own, on a free loopback port and a unix socket, without persistence. It ends with
/// the thread that started it, even if that is killed. `REDIS_URL` in the environment is used instead if it is set.
#[derive(Debug)]
pub struct PrivateRedis {
    server: Option<Child>,
    url: String,
    port: u16,
    arguments: Vec<String>,
    folder: PathBuf,
}

impl PrivateRedis {
    /// Starts a server, or takes the one of `REDIS_URL`.
    ///
    /// # Panics
    ///
    /// When there is no `redis-server` to start, with what to do about it.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with more arguments (`&["--requirepass", "secret"]`), whatever `REDIS_URL` says.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[track_caller]
    pub fn start_with(arguments: &[&str]) -> Self {
        super::environment::obey();
        if let (Ok(url), true) = (env::var("REDIS_URL"), arguments.is_empty()) {
            return Self { server: None, url, port: 0, arguments: Vec::new(), folder: PathBuf::new() };
        }
        let folder = env::temp_dir().join(format!("forksafe-redis-{}-{:?}", std::process::id(), Instant::now()));
        let folder = PathBuf::from(folder.to_string_lossy().replace(['{', '}', ' ', ':', ','], ""));
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let mut redis = Self { server: None, url: String::new(), port: 0, arguments, folder };
        let mut last = String::new();
        for _ in 0..5 {
            redis.port = free_port();
            redis.url = format!("redis://127.0.0.1:{}/", redis.port);
            match redis.launch() {
                Ok(()) => return redis,
                // Somebody else took the port in between, most likely.
                Err(why) => last = why,
            }
        }
        panic!("redis-server does not start: {last}");
    }

    /// Where it listens: `redis://127.0.0.1:PORT/`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same without the scheme and the slash: `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        self.url.trim_start_matches("redis://").trim_end_matches('/')
    }

    /// Its unix socket: `redis+unix:///…/redis.sock`. `None` with `REDIS_URL`.
    pub fn unix_url(&self) -> Option<String> {
        self.server.as_ref().map(|_| format!("redis+unix://{}", self.folder.join("redis.sock").display()))
    }

    /// Ends the server, as a crash would.
    pub fn kill(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Starts the server again, at the same address. After [`kill`](Self::kill).
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.kill();
        if let Err(why) = self.launch() {
            panic!("redis-server does not start again: {why}");
        }
    }

    #[track_caller]
    fn launch(&mut self) -> Result<(), String> {
        // Left by a server that was killed.
        let _ = fs::remove_file(self.folder.join("redis.sock"));
        let log = fs::File::create(self.folder.join("log")).expect("a log file");
        let mut command = Command::new("redis-server");
        command
            .current_dir(&self.folder)
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--unixsocket", "redis.sock"])
            .args(["--port", &self.port.to_string()])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        let starter = std::process::id() as libc::pid_t;
        // SAFETY: system calls that touch no memory, between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) {
                0 if libc::getppid() == starter => Ok(()),
                // It has ended in between.
                0 => Err(io::ErrorKind::NotFound.into()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let server = command.spawn().unwrap_or_else(|error| {
            panic!(
                "these tests need a Redis server and `redis-server` does not start ({error}): run `cargo xtask test \
                 --install` as root, or install Debian's package redis-server, or set REDIS_URL"
            )
        });
        self.server = Some(server);
        self.await_ready()
    }

    fn await_ready(&mut self) -> Result<(), String> {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until {
            if let Some(status) = self.server.as_mut().and_then(|server| server.try_wait().ok().flatten()) {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                return Err(format!("{status}\n{log}"));
            }
            if answers(&self.folder).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Err("no answer within 60 s".into())
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        self.kill();
        if self.server.is_some() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|any| any.local_addr()).expect("a free loopback port").port()
}

/// Any answer will do: it may want a password. Over the unix socket, for the port may be somebody else's by now; the server
/// makes the socket when it has the port.
fn answers(folder: &Path) -> io::Result<()> {
    let mut stream = UnixStream::connect(folder.join("redis.sock"))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"PING\r\n")?;
    stream.read_exact(&mut [0])
}
