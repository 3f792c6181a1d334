//! A PostgreSQL of our own. Not that of `forksafe::testing`, as in [`redis`](crate::redis).

use crate::needs;
use anyhow::{Context, Result, ensure};
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use xshell::{Shell, TempDir, cmd};

/// A server on a free loopback port. Ends when dropped.
pub struct Postgres {
    server: Child,
    stop: Command,
    folder: TempDir,
    pub url: String,
}

impl Postgres {
    pub fn start(sh: &Shell) -> Result<Self> {
        let programs = needs::postgres(sh).context("there is no PostgreSQL")?;
        let [initdb, postgres, pg_ctl] = ["initdb", "postgres", "pg_ctl"].map(|name| programs.join(name));
        let folder = sh.create_temp_dir()?;
        let data = folder.path();
        let run_as = &unprivileged(sh, data)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        // The folder at hand may be closed to that user.
        let _there = sh.push_dir(data);

        let how = ["--no-sync", "--auth=trust", "--username=postgres"];
        cmd!(sh, "env {run_as...} {initdb} {how...} -D {data}").ignore_stdout().run()?;
        let how = ["-F", "-p", &port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="];
        let command = cmd!(sh, "env {run_as...} {postgres} {how...} -D {data}");
        eprintln!("\n$ {command} &");
        let server = Command::from(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // A kill would leave its children to find out for themselves, and a piece of shared memory.
        let mut stop = Command::from(cmd!(sh, "env {run_as...} {pg_ctl} stop --silent --mode=immediate -D {data}"));
        stop.stdout(Stdio::null());
        let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
        let mut postgres = Self { server, stop, url, folder };
        let until = Instant::now() + Duration::from_secs(20);
        while !postgres.is_ready(sh) {
            let ended = postgres.server.try_wait()?;
            ensure!(ended.is_none() && Instant::now() < until, "PostgreSQL does not start: {ended:?}");
            sleep(Duration::from_millis(10));
        }
        Ok(postgres)
    }

    fn is_ready(&self, sh: &Shell) -> bool {
        let state = sh.read_file(self.folder.path().join("postmaster.pid")).unwrap_or_default();
        state.lines().nth(7).is_some_and(|line| line.trim() == "ready")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // If it has ended already, all the better.
        let _ = self.stop.status();
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// PostgreSQL refuses to run as root. What to put before its commands then; the folder becomes that user's.
fn unprivileged(sh: &Shell, folder: &Path) -> Result<Vec<String>> {
    if cmd!(sh, "id -u").quiet().read()? != "0" {
        return Ok(Vec::new());
    }
    let id = |user: &str| -> Result<[u32; 2]> {
        let number =
            |which| -> Result<u32> { Ok(cmd!(sh, "id {which} {user}").quiet().ignore_stderr().read()?.parse()?) };
        Ok([number("-u")?, number("-g")?])
    };
    let [user, group] = id("postgres").or_else(|_| id("nobody"))?;
    chown(folder, Some(user), Some(group))?;
    Ok(vec!["setpriv".into(), format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".into()])
}
