//! A server of OpenSSH, for its clients.

use crate::host::{Host, free_port};
use crate::net::Said;
use crate::unaware::{run, serve};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// It runs under the net, on a port of its own.
pub(crate) struct Sshd {
    port: u16,
    key: PathBuf,
    _host: Host,
}

impl Sshd {
    #[track_caller]
    pub(crate) fn start(said: &Said) -> Self {
        let port = free_port();
        let [host_key, key] = ["host_key", "key"].map(|name| said.folder().join(name));
        for key in [&host_key, &key] {
            run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(key));
        }
        let settings = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nAuthorizedKeysFile {}.pub\nPidFile none\nStrictModes no\nUsePAM no\n",
            host_key.display(),
            key.display()
        );
        fs::write(said.folder().join("settings"), settings).unwrap();
        // SAFETY: takes nothing, and cannot fail.
        if unsafe { libc::geteuid() } == 0 {
            // What Debian's service makes.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let settings = said.folder().join("settings");
        let host = serve(said, port, "sshd", |command| {
            command.args(["-D", "-e", "-f"]).arg(settings);
        });
        Self { port, key, _host: host }
    }

    /// A client under the net, of its own settings. What it is to run is for whoever asks.
    pub(crate) fn ssh(&self, said: &Said, program: &Path) -> Command {
        let mut ssh = said.command(program);
        ssh.args(["-F", "none", "-p", &self.port.to_string(), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-i"]).arg(&self.key).arg("127.0.0.1");
        ssh
    }
}
