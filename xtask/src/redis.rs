//! A Redis of our own. Not that of `forksafe::testing`: the chores must not need the crate that they are to check.

use anyhow::{Result, ensure};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use xshell::{Shell, TempDir, cmd};

/// A server on a free loopback port. Ends when dropped.
pub struct Redis {
    server: Child,
    _folder: TempDir,
    pub url: String,
}

impl Redis {
    pub fn start(sh: &Shell) -> Result<Self> {
        let folder = sh.create_temp_dir()?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (port, directory) = (address.port().to_string(), folder.path());
        let command = cmd!(sh, "redis-server --bind 127.0.0.1 --port {port} --dir {directory}");
        eprintln!("\n$ {command} &");
        let server = Command::from(command).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut redis = Self { server, _folder: folder, url: format!("redis://{address}/") };
        let until = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            let ended = redis.server.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < until, "redis-server does not start: {ended:?}");
            sleep(Duration::from_millis(10));
        }
        Ok(redis)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // If it has ended already, all the better.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
