//! A MariaDB for one test: everybody may do everything.

use crate::server::{self, Server};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::Command;

pub(crate) struct MariaDb {
    _server: Server,
    pub(crate) address: SocketAddr,
}

/// Small, and careless of its data.
const SETTINGS: [&str; 4] = [
    "--no-defaults",
    "--innodb-buffer-pool-size=8M",
    "--innodb-log-file-size=4M",
    "--innodb-flush-log-at-trx-commit=0",
];

impl MariaDb {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let data = folder.path().join("data");
        // SAFETY: takes nothing and cannot fail.
        let is_root = unsafe { libc::geteuid() } == 0;
        // As whom it does not run unless it is told to.
        let user = is_root.then_some("--user=root");
        let mut install = Command::new("mariadb-install-db");
        // It takes no argument in two parts.
        let datadir = format!("--datadir={}", data.display());
        // A server that starts removes what it takes for its own in the folder for temporary files: each has to have one.
        let temporary = folder.path().join("tmp");
        std::fs::create_dir(&temporary).expect("a folder");
        install.env("TMPDIR", &temporary).args(SETTINGS).args(user).arg(&datadir);
        install.args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]);
        let installed = install.output().unwrap_or_else(|error| panic!("{}", server::advice(&install, &error)));
        assert!(installed.status.success(), "{install:?}: {installed:?}");
        let port = server::free_port();
        // Debian keeps it off the path of ordinary users.
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
        let mut command = Command::new("mariadbd");
        command.env("PATH", path).env("TMPDIR", &temporary).args(SETTINGS).args(user).arg(&datadir);
        command
            .arg("--socket")
            .arg(folder.path().join("socket"))
            .args(["--bind-address=127.0.0.1", "--skip-grant-tables"]);
        command.args(["--port", &port.to_string()]).arg("--pid-file").arg(folder.path().join("pid"));
        // It listens on the port before.
        let server = Server::start(folder, command, |folder| UnixStream::connect(folder.join("socket")).is_ok());
        Self { _server: server, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }
}
