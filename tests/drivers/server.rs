//! A server for one test: a program in a folder of its own, which ends with who started it.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

#[derive(Debug)]
pub(crate) struct Server {
    process: Child,
    folder: TempDir,
}

impl Server {
    /// Runs the program that `command` makes of a folder, and waits until it answers.
    #[track_caller]
    pub(crate) fn start(folder: TempDir, mut command: Command, answers: impl Fn(&Path) -> bool) -> Self {
        let log = File::create(folder.path().join("log")).expect("a log file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        let starter = std::process::id() as libc::pid_t;
        // SAFETY: system calls that touch no memory, between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) {
                0 if libc::getppid() == starter => Ok(()),
                0 => Err(io::ErrorKind::NotFound.into()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let process = command.spawn().unwrap_or_else(|error| panic!("{}", advice(&command, &error)));
        let mut server = Self { process, folder };
        let until = Instant::now() + Duration::from_secs(60);
        while !answers(server.folder.path()) {
            let ended = server.process.try_wait().expect("its status");
            if ended.is_some() || Instant::now() > until {
                panic!("{command:?} does not serve ({ended:?}):\n{}", server.log());
            }
            thread::sleep(Duration::from_millis(5));
        }
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(crate) fn advice(command: &Command, error: &io::Error) -> String {
    format!(
        "these tests need servers, and {:?} does not start ({error}): run `cargo xtask test --install` as root, or install \
         Debian's packages mariadb-server, memcached and rabbitmq-server",
        command.get_program()
    )
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|any| any.local_addr()).expect("a free loopback port").port()
}
