//! The example `prefork_server` where such servers are in production: at a unix socket, with nginx before it, which keeps connections to
//! it.

use crate::kit::kill;
use crate::web::{Server, Visitor, at_socket, under_load};
use forksafe::testing::{clean_process, wait_until};
use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Ends with whoever has started it.
struct Nginx {
    process: Child,
    folder: PathBuf,
}

impl Nginx {
    /// In the folder of the server. `again` is how often it may ask more than once for a request of which no answer came.
    fn before(server: &Server, again: usize) -> Self {
        let folder = server.file("nginx");
        fs::create_dir(&folder).unwrap();
        // Asked again is another server: here the same, where another worker lets in who comes.
        let servers = format!("server unix:{} max_fails=0;\n", server.file("socket").display()).repeat(1 + again);
        let here = folder.display();
        let configuration = format!(
            "daemon off;
            master_process off;
            pid {here}/pid;
            error_log {here}/error.log warn;
            events {{ worker_connections 256; }}
            http {{
                log_format upstream '$status asked $upstream_status';
                access_log {here}/access.log upstream;
                client_body_temp_path {here}/body;
                proxy_temp_path {here}/proxy;
                fastcgi_temp_path {here}/fastcgi;
                uwsgi_temp_path {here}/uwsgi;
                scgi_temp_path {here}/scgi;
                upstream workers {{ {servers} keepalive 8; }}
                server {{
                    listen unix:{here}/socket;
                    keepalive_requests 1000000;
                    location / {{
                        proxy_pass http://workers;
                        proxy_http_version 1.1;
                        proxy_set_header Connection '';
                        proxy_next_upstream {};
                    }}
                }}
            }}",
            if again == 0 { "off" } else { "error" }
        );
        fs::write(folder.join("nginx.conf"), configuration).unwrap();
        let mut command = Command::new(program());
        command.arg("-p").arg(&folder).arg("-e").arg(folder.join("error.log")).arg("-c").arg(folder.join("nginx.conf"));
        command.stdin(Stdio::null());
        // SAFETY: a system call that touches no memory, between fork and exec.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let process = command.spawn().unwrap_or_else(|error| panic!("nginx (Debian's nginx-light): {error}"));
        let mut nginx = Self { process, folder };
        wait_until("nginx listens", || {
            assert_eq!(nginx.process.try_wait().unwrap(), None, "nginx does not start: {}", nginx.read("error.log"));
            at_socket(&nginx.folder.join("socket")).is_ok()
        });
        nginx
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.join(name)).unwrap_or_default()
    }

    /// Browsers that stay, and some that do not.
    fn visitors(&self) -> Vec<Visitor<'_>> {
        (0..8).map(|number| Visitor::new(number < 6, || at_socket(&self.folder.join("socket")))).collect()
    }

    /// For how many requests it had to ask more than once.
    fn asked_again(&self) -> usize {
        self.read("access.log").lines().filter(|line| line.contains("asked") && line.contains(", ")).count()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Debian keeps it off the path of ordinary users.
fn program() -> &'static Path {
    ["/usr/sbin/nginx", "/usr/bin/nginx"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or(Path::new("nginx"))
}

#[test]
fn restarts_behind_nginx_turn_nobody_away() {
    clean_process(|| {
        let server = Server::start(2, 5);
        server.await_phase(0, 2);
        let nginx = Nginx::before(&server, 1);
        let (asked, failed) = under_load(nginx.visitors(), || {
            server.signal(libc::SIGUSR1);
            server.await_phase(1, 2);
            server.signal(libc::SIGUSR2);
            server.await_phase(2, 2);
        });
        println!("{asked} requests through two restarts, {} asked again", nginx.asked_again());
        assert_eq!(failed, Vec::<String>::new(), "of {asked}; nginx says {}", nginx.read("error.log"));
        server.end();
    });
}

/// What it was answering is answered by another: nginx asks again for what has no effect (GET). It is told of the same socket twice, for
/// it asks each server once.
#[test]
fn a_worker_that_is_killed_behind_nginx_is_missed_by_nobody() {
    clean_process(|| {
        let server = Server::start(2, 5);
        server.await_phase(0, 2);
        let nginx = Nginx::before(&server, 1);
        let mut killed = 0;
        let (asked, failed) = under_load(nginx.visitors(), || {
            // Until it was in the middle of something.
            wait_until("nginx has asked again", || {
                let workers = server.status().unwrap().worker_status;
                if workers.iter().filter(|worker| worker.booted).count() == 2 {
                    kill(workers[killed % 2].pid, libc::SIGKILL);
                    killed += 1;
                }
                nginx.asked_again() > 0
            });
            server.await_phase(0, 2);
        });
        println!("{asked} requests, {killed} workers killed, {} asked again", nginx.asked_again());
        assert_eq!(failed, Vec::<String>::new(), "of {asked}; nginx says {}", nginx.read("error.log"));
        server.end();
    });
}

/// What the test before would be without nginx's second try: the requests that a killed worker had are lost, and said to be.
#[test]
fn without_a_second_try_a_killed_workers_requests_are_lost() {
    clean_process(|| {
        let server = Server::start(2, 5);
        server.await_phase(0, 2);
        let nginx = Nginx::before(&server, 0);
        let (_, failed) = under_load(nginx.visitors(), || {
            wait_until("a request was lost", || {
                let workers = server.status().unwrap().worker_status;
                if workers.iter().filter(|worker| worker.booted).count() == 2 {
                    kill(workers[0].pid, libc::SIGKILL);
                }
                nginx.read("access.log").contains("502 asked 502")
            });
            server.await_phase(0, 2);
        });
        assert!(!failed.is_empty() && failed.iter().all(|why| why.starts_with("http/1.1 502")), "{failed:?}");
        server.end();
    });
}
