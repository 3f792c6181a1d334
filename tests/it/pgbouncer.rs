//! A PgBouncer for one test.

use forksafe::testing::{PrivatePostgres, wait_until};
use postgres::Config;
use std::env;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// It lets in whoever the server does. Only the user `watcher` may see its console.
pub(crate) struct PrivatePgBouncer {
    process: Child,
    folder: PathBuf,
    port: u16,
}

impl PrivatePgBouncer {
    /// In front of a server, with some settings of its own.
    pub(crate) fn before(server: &PrivatePostgres, settings: &str) -> Self {
        let folder = env::temp_dir().join(format!("forksafe-pgbouncer-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(folder.join("users"), "\"app\" \"\"\n\"watcher\" \"\"\n").unwrap();
        let server = server.port().expect("a server of our own");
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let config = format!(
                "[databases]\n* = host=127.0.0.1 port={server}\n\
                 [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
                 auth_type = trust\nauth_file = {}\nstats_users = watcher\n{settings}\n",
                folder.join("users").display()
            );
            fs::write(folder.join("ini"), config).unwrap();
            let mut started = Self { process: start(&folder), folder: folder.clone(), port };
            wait_until("PgBouncer listens, or has ended", || {
                started.has_ended() || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if !started.has_ended() {
                return started;
            }
            // Somebody else took the port in between, most likely.
        }
        panic!("PgBouncer does not start: see its words above");
    }

    pub(crate) fn config(&self, user: &str) -> Config {
        format!("host=127.0.0.1 port={} user={user} dbname=postgres", self.port).parse().unwrap()
    }

    fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }
}

fn start(folder: &std::path::Path) -> Child {
    // Debian keeps it off the `PATH` of ordinary users.
    let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| PathBuf::from(path).is_file());
    let mut command = Command::new(program.unwrap_or("pgbouncer"));
    // It does not run as root.
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", "nobody"]);
    }
    command.arg("-q").arg(folder.join("ini")).stdin(Stdio::null());
    command.spawn().unwrap_or_else(|error| {
        panic!(
            "this test needs PgBouncer, and it does not start ({error}): run `cargo xtask test --install` as root, or \
             install Debian's package pgbouncer"
        )
    })
}

impl Drop for PrivatePgBouncer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
