//! The example `cluster` as a process: its master is told things by signals and over its control socket, while clients count what is
//! answered.

use crate::kit::{has_ended, kill};
use forksafe::Deadline;
use forksafe::cluster::{Command as Ask, ControlError, Status};
use forksafe::testing::{clean_process, patience, wait_until};
use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// Where cargo puts the examples of the build that this program is of. `cargo test --test it` alone does not build them.
fn example() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/cluster");
    let modified = |path: &Path| path.metadata().and_then(|file| file.modified());
    let source = modified(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cluster.rs")).unwrap();
    let is_current = modified(&program).is_ok_and(|built| built >= source);
    assert!(is_current, "{} has to be built: cargo build --all-features --examples", program.display());
    program
}

/// A server with its own folder: `program` there is a link to the example, `socket` what it listens on, `control` where it is asked,
/// `log` what it says.
struct Server {
    folder: PathBuf,
    master: Child,
}

impl Server {
    fn prepare() -> PathBuf {
        let folder = std::env::temp_dir().join(format!("forksafe-cluster-program-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        symlink(example(), folder.join("program")).unwrap();
        folder
    }

    fn start(workers: usize, arguments: &[&str]) -> Self {
        Self::start_as(workers, arguments, |_| {})
    }

    fn start_as(workers: usize, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let server = Self::try_start(Self::prepare(), workers, arguments, change);
        wait_until("all serve", || server.try_status().is_some_and(|status| status.booted_workers == workers));
        server
    }

    fn try_start(folder: PathBuf, workers: usize, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Self {
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
        let mut command = Command::new(folder.join("program"));
        command.arg("serve").arg("--unix").arg(folder.join("socket")).arg("--control").arg(folder.join("control"));
        command.args(arguments).env("WEB_CONCURRENCY", workers.to_string()).env("RAILS_MAX_THREADS", "3");
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        change(&mut command);
        Self { master: command.spawn().unwrap(), folder }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap()
    }

    fn signal(&self, signal: i32) {
        kill(self.master.id(), signal);
    }

    fn ask(&self, what: &str, wait: bool) -> Result<String, ControlError> {
        what.parse::<Ask>().unwrap().send(self.file("control"), wait, Deadline::after(patience()))
    }

    fn try_status(&self) -> Option<Status> {
        self.ask("status", false).ok().map(|text| serde_json::from_str(&text).unwrap())
    }

    fn status(&self) -> Status {
        let mut status = None;
        // In the middle of a restart by exec nobody is there to answer.
        wait_until("it tells how it stands", || {
            status = self.try_status();
            status.is_some()
        });
        status.unwrap()
    }

    fn pids(&self) -> BTreeSet<u32> {
        self.status().worker_status.iter().map(|worker| worker.pid).collect()
    }

    /// Says who answers.
    fn get(&self, path: &str) -> Result<String, String> {
        let ask = || {
            let mut client = UnixStream::connect(self.file("socket"))?;
            client.set_read_timeout(Some(patience()))?;
            write!(client, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n")?;
            let mut answer = String::new();
            client.read_to_string(&mut answer)?;
            std::io::Result::Ok(answer)
        };
        let answer = ask().map_err(|error| error.to_string())?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.trim().to_owned());
        body.filter(|body| !body.is_empty()).ok_or_else(|| format!("answered {answer:?}"))
    }

    /// Meanwhile clients ask without a pause, and all are answered.
    fn under_load(&self, act: impl FnOnce()) {
        let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
        thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut failed = Vec::new();
                        while !stop.load(SeqCst) {
                            failed.extend(self.get("/").err());
                            asked.fetch_add(1, SeqCst);
                        }
                        failed
                    })
                })
                .collect();
            let _stop = crate::kit::StopOnDrop(&stop);
            let enough = |more: u32| {
                let from = asked.load(SeqCst);
                wait_until("clients are answered", || asked.load(SeqCst) >= from + more);
            };
            enough(20);
            act();
            enough(20);
            stop.store(true, SeqCst);
            let failed: Vec<String> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
            assert_eq!(failed, Vec::<String>::new(), "of {}; the log:\n{}", asked.load(SeqCst), self.log());
        });
    }

    /// Which of its descriptors the master's programs get.
    fn kept_over_exec(&self) -> BTreeSet<String> {
        let all = fs::read_dir(format!("/proc/{}/fdinfo", self.master.id())).unwrap().map(|entry| entry.unwrap());
        let is_kept = |entry: &fs::DirEntry| {
            let info = fs::read_to_string(entry.path()).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
            flags.is_some_and(|flags| u32::from_str_radix(flags, 8).unwrap() & libc::O_CLOEXEC as u32 == 0)
        };
        all.filter(is_kept).map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    fn replace_program(&self, script: &str) {
        let next = self.file("next");
        fs::write(&next, script).unwrap();
        fs::set_permissions(&next, Permissions::from_mode(0o755)).unwrap();
        fs::rename(next, self.file("program")).unwrap();
    }

    fn end(mut self) {
        let pids = self.pids();
        self.signal(libc::SIGTERM);
        wait_until("the master has ended", || self.master.try_wait().unwrap().is_some());
        assert!(self.master.wait().unwrap().success(), "{}", self.log());
        assert!(pids.iter().all(|pid| has_ended(*pid)), "no orphans");
        assert!(!self.file("control").exists());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.master.kill();
        let _ = self.master.wait();
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_restart_by_exec_turns_nobody_away() {
    clean_process(|| {
        let server = Server::start(2, &[]);
        let before = server.pids();
        let slow = UnixStream::connect(server.file("socket")).unwrap();
        write!(&slow, "GET /sleep/1000 HTTP/1.1\r\n\r\n").unwrap();
        server.under_load(|| {
            server.signal(libc::SIGUSR2);
            wait_until("others serve", || {
                let status = server.status();
                status.phase == 1 && status.old_workers == 0 && status.booted_workers == 2
            });
        });
        assert!(server.pids().is_disjoint(&before), "each is new");
        wait_until("the old ones are told to end", || before.iter().all(|pid| has_ended(*pid)));
        assert_eq!(server.status().pid, server.master.id());
        let mut answer = String::new();
        (&slow).read_to_string(&mut answer).unwrap();
        assert!(answer.contains("200 OK"), "who was let in by an old one is answered: {answer:?}");
        server.signal(libc::SIGUSR2);
        wait_until("and again", || {
            let status = server.status();
            status.phase == 2 && status.old_workers == 0 && status.booted_workers == 2
        });
        server.end();
    });
}

#[test]
fn many_restarts_by_exec_at_once_are_harmless() {
    clean_process(|| {
        let server = Server::start(2, &[]);
        server.under_load(|| {
            for signal in [libc::SIGUSR2, libc::SIGUSR2, libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGTTIN] {
                server.signal(signal);
                thread::sleep(Duration::from_millis(20));
            }
            wait_until("it comes to rest", || {
                let status = server.status();
                status.phase >= 1 && status.old_workers == 0 && status.workers == status.booted_workers
            });
        });
        server.end();
    });
}

/// The next program takes its time until it looks, and a shell on the way to it has no answer to any signal.
#[test]
fn signals_do_not_end_a_release_that_is_loaded() {
    clean_process(|| {
        let server = Server::start(2, &[]);
        let before = server.pids();
        let program = example();
        server.replace_program(&format!(
            "#!/bin/sh\ntouch {0}/loads\nwhile [ -e {0}/loads ]; do sleep 0.05; done\nexec {1} \"$@\"\n",
            server.folder.display(),
            program.display()
        ));
        server.under_load(|| {
            server.signal(libc::SIGUSR2);
            wait_until("it loads", || server.file("loads").exists());
            for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGTTIN] {
                server.signal(signal);
            }
            fs::remove_file(server.file("loads")).unwrap();
            wait_until("it comes to rest", || {
                let status = server.status();
                status.old_workers == 0 && status.workers == status.booted_workers && server.pids().is_disjoint(&before)
            });
        });
        server.end();
    });
}

#[test]
fn a_release_whose_workers_do_not_come_to_serve_leaves_the_old_ones() {
    clean_process(|| {
        let server = Server::start(2, &[]);
        let before = server.pids();
        server.replace_program(&format!("#!/bin/sh\nexec {} \"$@\" --fail\n", example().display()));
        server.under_load(|| {
            server.signal(libc::SIGUSR2);
            wait_until("it is given up", || server.log().contains("the restart is given up"));
            wait_until("it comes to rest", || server.pids() == before);
        });
        assert_eq!(server.status().booted_workers, 2);
        server.end();
    });
}

/// They tell the next master what they told the last one.
#[test]
fn the_old_workers_of_a_release_that_is_given_up_are_looked_after() {
    clean_process(|| {
        let server = Server::start(2, &["--timeout", "2", "--shutdown", "1"]);
        let before = server.pids();
        server.replace_program(&format!("#!/bin/sh\nexec {} \"$@\" --fail\n", example().display()));
        server.signal(libc::SIGUSR2);
        wait_until("it is given up", || server.log().contains("the restart is given up"));
        wait_until("it comes to rest", || server.pids() == before);
        let ask = |what: &str| {
            let client = UnixStream::connect(server.file("socket")).unwrap();
            write!(&client, "GET {what} HTTP/1.1\r\n\r\n").unwrap();
            client
        };
        let _slow = ask("/sleep/1500");
        wait_until("it is seen", || {
            let status = server.status();
            status.worker_status.iter().map(|worker| worker.last_status.busy_threads).sum::<usize>() == 1
        });
        let _hangs = ask("/hang");
        wait_until("it is found", || server.log().contains("is wedged: its thread "));
        wait_until("it is gone", || before.iter().any(|pid| has_ended(*pid)));
        // The other one leaves when it is told to, as any worker.
        let left = before.iter().copied().find(|pid| !has_ended(*pid)).unwrap();
        kill(left, libc::SIGTERM);
        wait_until("it has left", || has_ended(left));
    });
}

#[test]
fn a_release_that_is_not_there_changes_nothing() {
    clean_process(|| {
        let server = Server::start(2, &[]);
        let before = server.pids();
        let kept = server.kept_over_exec();
        fs::remove_file(server.file("program")).unwrap();
        server.under_load(|| {
            server.signal(libc::SIGUSR2);
            wait_until("it says so", || server.log().contains(", and goes on: "));
        });
        assert_eq!(server.pids(), before);
        assert_eq!(server.kept_over_exec(), kept, "what was to be kept for the next program is for no other");
        server.ask("restart", true).unwrap();
        server.end();
    });
}

#[test]
fn a_release_that_ends_at_once_leaves_no_orphans() {
    clean_process(|| {
        let mut server = Server::start(2, &[]);
        let before = server.pids();
        server.replace_program("#!/bin/sh\nexit 3\n");
        let slow = UnixStream::connect(server.file("socket")).unwrap();
        write!(&slow, "GET /sleep/500 HTTP/1.1\r\n\r\n").unwrap();
        server.signal(libc::SIGUSR2);
        assert_eq!(server.master.wait().unwrap().code(), Some(3));
        let mut answer = String::new();
        (&slow).read_to_string(&mut answer).unwrap();
        assert!(answer.contains("200 OK"), "{answer:?}");
        wait_until("all have left", || before.iter().all(|pid| has_ended(*pid)));
    });
}

#[test]
fn who_asks_for_a_restart_is_told_when_it_is_through() {
    clean_process(|| {
        let server = Server::start(2, &[]);
        let before = server.pids();
        server.under_load(|| {
            let told = server.ask("restart", true).unwrap();
            assert_eq!(told, "restart 1 is through: serving with 2 workers");
            assert!(before.iter().all(|pid| has_ended(*pid)));
        });
        assert_eq!(server.ask("scale 4", true).unwrap(), "serving with 4 workers");
        assert_eq!(server.pids().len(), 4);
        assert_eq!(server.ask("scale 1", true).unwrap(), "serving with 1 worker");
        assert_eq!(server.pids().len(), 1);
        assert!(server.ask("status", true).unwrap().starts_with('{'), "there is nothing to wait for");
        let refused = |what: &str| match server.ask(what, true).unwrap_err() {
            ControlError::Refused(why) => why,
            error => panic!("{error}"),
        };
        assert_eq!(refused("scale 0"), "a cluster has one worker at least");
        assert_eq!(refused("scale 10000"), "there is room for 512 workers at most");
        let mut server = server;
        assert_eq!(server.ask("stop", true).unwrap(), "the cluster has ended");
        assert!(server.master.wait().unwrap().success());
        let gone = server.ask("status", false).unwrap_err();
        assert!(matches!(gone, ControlError::NoAnswer { .. }), "{gone}");
    });
}

#[test]
fn nobody_at_the_control_socket_keeps_the_master_from_its_work() {
    clean_process(|| {
        let server = Server::start(2, &[]);
        let mode = fs::metadata(server.file("control")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let say = |what: &str| {
            let mut client = UnixStream::connect(server.file("control")).unwrap();
            client.set_read_timeout(Some(patience())).unwrap();
            client.write_all(what.as_bytes()).unwrap();
            client
        };
        let answer = |mut client: UnixStream| {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            answer
        };
        let mut silent: Vec<_> = (0..30).map(|_| say("")).collect();
        silent.extend((0..20).map(|_| say("stat")));
        assert!(answer(say("what?\n")).starts_with("error \"what?\" is none of: status, "));
        // Hung up on in the middle, as it says too much.
        let mut endless = say(&"x".repeat(10_000));
        assert!(
            endless.read_to_string(&mut String::new()).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
        );
        let http = answer(say("GET /status HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n"));
        let (head, body) = http.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&json["workers"], &json["booted_workers"], &json["phase"]), (&2.into(), &2.into(), &0.into()));
        assert_eq!(json["worker_status"][1]["last_status"]["max_threads"], 3);
        assert!(answer(say("GET /stop HTTP/1.1\r\n\r\n")).starts_with("HTTP/1.1 409 "));
        assert!(
            answer(say("POST /scale/3?wait HTTP/1.1\r\n\r\n")).ends_with("{\"status\":\"serving with 3 workers\"}\n")
        );
        // Half closed, as `nc` does it.
        let half = say("restart wait\n");
        half.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(answer(half), "ok restart 1 is through: serving with 3 workers\n");
        let half = say("GET /status HTTP/1.1\r\n");
        half.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(answer(half), "", "the rest does not come");
        drop(say("restart wait\n"));
        wait_until("those who say nothing are hung up on", || {
            silent.iter_mut().all(|client| matches!(client.read(&mut [0]), Ok(0)))
        });
        let crowd: Vec<_> = (0..100).map(|_| say("")).collect();
        server.under_load(|| server.signal(libc::SIGTTIN));
        drop(crowd);
        wait_until("it answers again", || server.try_status().is_some_and(|status| status.workers == 4));
        server.end();
    });
}

#[test]
fn who_is_worn_is_replaced_and_nobody_notices() {
    clean_process(|| {
        let server = Server::start(2, &["--max-requests", "30"]);
        let mut all = server.pids();
        server.under_load(|| {
            wait_until("several have come and gone", || {
                let status = server.status();
                assert!(status.worker_status.iter().filter(|worker| !worker.ending).count() <= 3, "{status}");
                all.extend(status.worker_status.iter().map(|worker| worker.pid));
                all.len() >= 6
            });
        });
        server.end();
    });
}

#[test]
fn who_has_too_much_memory_is_replaced() {
    clean_process(|| {
        let server = Server::start(1, &["--max-memory", "1"]);
        let before = server.pids();
        server.under_load(|| wait_until("another serves", || server.pids().is_disjoint(&before)));
        assert!(server.log().contains("bytes for itself: another follows"));
        server.end();
    });
}

#[test]
fn without_a_surge_there_are_never_more_than_wanted() {
    clean_process(|| {
        let server = Server::start(3, &["--surge", "0"]);
        let before = server.pids();
        server.signal(libc::SIGUSR1);
        wait_until("all are new", || {
            let status = server.status();
            assert!(status.workers <= 3, "{status}");
            status.phase == 1 && status.old_workers == 0 && status.booted_workers == 3
        });
        assert!(server.pids().is_disjoint(&before));
        server.end();
    });
}

#[test]
fn a_wedged_thread_says_where_it_is() {
    clean_process(|| {
        let server = Server::start(1, &["--timeout", "1", "--shutdown", "1", "--backtrace"]);
        let hangs = UnixStream::connect(server.file("socket")).unwrap();
        write!(&hangs, "GET /hang HTTP/1.1\r\n\r\n").unwrap();
        wait_until("it is found", || server.log().contains("is wedged: its thread "));
        wait_until("it tells", || server.log().contains("cluster::hang"));
        wait_until("another serves", || server.get("/").is_ok());
    });
}

#[test]
fn threads_come_when_they_are_needed() {
    clean_process(|| {
        let server = Server::start_as(1, &[], |command| {
            command.env("RAILS_MIN_THREADS", "1");
        });
        let running = || server.status().worker_status[0].last_status.running;
        assert_eq!(running(), 1);
        let ask = || {
            let client = UnixStream::connect(server.file("socket")).unwrap();
            write!(&client, "GET /sleep/60000 HTTP/1.1\r\n\r\n").unwrap();
            client
        };
        let _one = ask();
        wait_until("there are two", || running() == 2);
        let _two = ask();
        wait_until("there are three", || running() == 3);
        server.get("/").unwrap();
        let status = server.status().worker_status[0].last_status.clone();
        assert_eq!((status.running, status.busy_threads, status.pool_capacity), (3, 2, 1));
        assert!(status.requests_count >= 1);
    });
}

/// What systemd would hear.
struct Manager(UnixDatagram, PathBuf);

impl Manager {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("forksafe-notify-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(patience())).unwrap();
        Self(socket, path)
    }

    fn hears(&self, what: &str) -> String {
        let mut heard = [0; 4096];
        let deadline = Deadline::after(patience());
        loop {
            assert!(!deadline.is_over(), "waits for {what}");
            let length = self.0.recv(&mut heard).unwrap_or_else(|error| panic!("waits for {what}: {error}"));
            let text = String::from_utf8_lossy(&heard[..length]);
            if text.contains(what) {
                return text.into_owned();
            }
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.1);
    }
}

#[test]
fn the_service_manager_is_told() {
    clean_process(|| {
        let manager = Manager::new();
        let path = manager.1.clone();
        let server = Server::start_as(2, &[], |command| {
            command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "200000");
        });
        manager.hears("READY=1");
        manager.hears("STATUS=2 of 2 workers serve, phase 0");
        manager.hears("WATCHDOG=1");
        manager.hears("WATCHDOG=1");
        let reloads = |signal, ends: &[&str]| {
            server.signal(signal);
            let reloading = manager.hears("RELOADING=1");
            let usec = reloading.split_once("MONOTONIC_USEC=").unwrap().1.trim().parse::<u64>().unwrap();
            assert!(usec > 0);
            ends.iter().for_each(|end| drop(manager.hears(end)));
        };
        reloads(libc::SIGHUP, &["READY=1"]);
        reloads(libc::SIGUSR1, &["phase 1", "READY=1"]);
        // Who waits for the one to be ready is not told of the other.
        let slow = UnixStream::connect(server.file("socket")).unwrap();
        write!(&slow, "GET /sleep/700 HTTP/1.1\r\n\r\n").unwrap();
        wait_until("it is let in", || {
            server.status().worker_status.iter().any(|worker| worker.last_status.busy_threads > 0)
        });
        server.signal(libc::SIGUSR1);
        manager.hears("RELOADING=1");
        server.signal(libc::SIGHUP);
        manager.hears("RELOADING=1");
        manager.hears("READY=1");
        assert_eq!((server.status().old_workers, server.status().phase), (0, 2));
        reloads(libc::SIGUSR2, &["phase 3", "READY=1"]);
        server.signal(libc::SIGTERM);
        manager.hears("STOPPING=1");
        drop(server);
    });
}

#[test]
fn the_watchdog_is_not_fed_while_nobody_serves() {
    clean_process(|| {
        let manager = Manager::new();
        let path = manager.1.clone();
        let mut server = Server::try_start(Server::prepare(), 1, &["--fail"], |command| {
            command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", "200000");
        });
        manager.hears("STATUS=0 of 1");
        assert_eq!(server.master.wait().unwrap().code(), Some(1), "a crash loop");
        manager.0.set_nonblocking(true).unwrap();
        let mut heard = [0; 4096];
        while let Ok(length) = manager.0.recv(&mut heard) {
            let text = String::from_utf8_lossy(&heard[..length]);
            assert!(!text.contains("WATCHDOG") && !text.contains("READY"), "{text}");
        }
    });
}

#[test]
fn sockets_of_the_service_manager_are_listened_on_and_kept_over_a_restart() {
    clean_process(|| {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let fd = listener.as_raw_fd();
        let folder = Server::prepare();
        let real = folder.join("real");
        fs::rename(folder.join("program"), &real).unwrap();
        // Who passes them knows the pid, which a shell keeps when it execs.
        let script = format!("#!/bin/sh\n[ $LISTEN_PID ] || export LISTEN_PID=$$\nexec {} \"$@\"\n", real.display());
        fs::write(folder.join("program"), script).unwrap();
        fs::set_permissions(folder.join("program"), Permissions::from_mode(0o755)).unwrap();
        let server = Server::try_start(folder, 1, &["--systemd"], |command| {
            command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "http");
            // SAFETY: one system call, with numbers.
            unsafe {
                command.pre_exec(move || {
                    // Also if it has that number already: the copy is not closed at the exec.
                    if fd == 3 {
                        libc::fcntl(3, libc::F_SETFD, 0)
                    } else {
                        libc::dup2(fd, 3)
                    };
                    Ok(())
                });
            }
        });
        drop(listener);
        let get = || minreq::get(format!("http://{address}/")).with_timeout(10).send().map(|answer| answer.status_code);
        wait_until("it answers", || get().is_ok_and(|status| status == 200));
        let before = server.pids();
        server.signal(libc::SIGUSR2);
        wait_until("others serve", || {
            assert_eq!(get().unwrap(), 200);
            let status = server.status();
            status.phase == 1 && status.old_workers == 0 && server.pids().is_disjoint(&before)
        });
        assert_eq!(get().unwrap(), 200);
        server.end();
    });
}

#[test]
fn a_socket_that_was_not_passed_is_missed_by_its_name() {
    clean_process(|| {
        let error = forksafe::cluster::Builder::default().listen_systemd(Some("http")).bind().unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot listen on what systemd passes as \"http\": no socket of that name was passed (LISTEN_FDNAMES has none that is \"http\", \
             or it is taken)"
        );
    });
}

/// A file system without room for one file more. Only root may have one, and only where that is allowed: a container may forbid it.
#[test]
fn a_control_socket_that_has_no_room_is_an_error_that_says_so() {
    clean_process(|| {
        let folder = Server::prepare();
        fs::create_dir(folder.join("full")).unwrap();
        let script = format!(
            "mount -t tmpfs -o nr_inodes=1 full {0}/full && exec {0}/program serve --unix {0}/socket --control {0}/full/control",
            folder.display()
        );
        let output = Command::new("unshare").args(["--mount", "sh", "-c", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = format!("cannot listen on {}/full/control: No space left on device", folder.display());
        assert!(said.contains(&expected), "{said}");
        assert_eq!(output.status.code(), Some(1));
        fs::remove_dir_all(folder).unwrap();
    });
}

/// In a container it is the first process, and everybody's parent in the end.
#[test]
fn a_master_that_is_the_first_process_ends_and_restarts_as_others_do() {
    clean_process(|| {
        let folder = Server::prepare();
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc"]).arg(folder.join("program")).arg("serve");
        unshare.arg("--unix").arg(folder.join("socket")).arg("--control").arg(folder.join("control"));
        let log = fs::File::create(folder.join("log")).unwrap();
        let master = unshare.env("WEB_CONCURRENCY", "2").stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut server = Server { folder, master };
        wait_until("all serve", || server.try_status().is_some_and(|status| status.booted_workers == 2));
        assert_eq!(server.status().pid, 1);
        assert_eq!(server.ask("restart", true).unwrap(), "restart 1 is through: serving with 2 workers");
        // Its only child is the master, as seen from here.
        let children = format!("/proc/{0}/task/{0}/children", server.master.id());
        let master: u32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
        kill(master, libc::SIGUSR2);
        wait_until("others serve", || {
            let status = server.status();
            status.phase == 2 && status.old_workers == 0 && status.booted_workers == 2
        });
        assert_eq!(server.ask("stop", true).unwrap(), "the cluster has ended");
        assert!(server.master.wait().unwrap().success());
    });
}

#[test]
fn a_master_that_is_stopped_is_not_waited_for_beyond_the_deadline() {
    clean_process(|| {
        let server = Server::start(1, &[]);
        server.signal(libc::SIGSTOP);
        // So many that no more are let into the queue.
        for _ in 0..200 {
            let soon = Deadline::after(Duration::from_millis(10));
            let error = Ask::Status.send(server.file("control"), false, soon).unwrap_err().to_string();
            assert!(error.ends_with("it is there, and has not answered in time"), "{error}");
        }
        server.signal(libc::SIGCONT);
        server.end();
    });
}

/// Nobody reads what it says, and there is no room for more.
#[test]
fn a_master_that_nobody_reads_goes_on() {
    clean_process(|| {
        let (unread, full) = std::io::pipe().unwrap();
        let blocks = |blocks: bool| {
            let flags = if blocks { 0 } else { libc::O_NONBLOCK };
            // SAFETY: takes numbers.
            assert_eq!(unsafe { libc::fcntl(full.as_raw_fd(), libc::F_SETFL, flags) }, 0);
        };
        blocks(false);
        while (&full).write(&[b'x'; 4096]).is_ok() {}
        blocks(true);
        let stderr = full.try_clone().unwrap();
        let server = Server::start_as(1, &[], |command| {
            command.stderr(stderr);
        });
        assert_eq!(server.ask("restart", true).unwrap(), "restart 1 is through: serving with 1 worker");
        drop(unread);
        assert_eq!(server.ask("restart", true).unwrap(), "restart 2 is through: serving with 1 worker");
        server.end();
    });
}
