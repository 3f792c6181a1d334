//! Programs that connect and hand the connection to a child, and are right to. The preloaded library knows them by their names, and leaves
//! them alone; a copy under another name shows what would become of them.

use crate::host::{Host, debian, free_port};
use crate::net::Said;
use crate::sshd::Sshd;
use crate::unaware::{assert_nothing_taken, run, serve};
use forksafe::testing::{PrivatePostgres, clean_process, patience, wait_until};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

/// What the library knows, and the same program as it does not know it.
fn both(said: &Said, program: &str) -> [(PathBuf, bool); 2] {
    [(debian(program), true), (said.under_another_name(program), false)]
}

/// The net has taken something from the one, and nothing from the other.
#[track_caller]
fn assert_taken(said: &Said, is_known: bool) {
    if is_known {
        assert_nothing_taken(said);
    } else {
        let lines = said.lines();
        assert!(!lines.is_empty() && lines.iter().all(|line| line.ends_with(": disowned")), "{lines:?}");
    }
}

/// It goes to the background when it is let in, and that is a child.
#[test]
fn ssh_in_the_background() {
    clean_process(|| {
        let by_server = Said::new();
        let sshd = Sshd::start(&by_server);
        for (ssh, is_known) in both(&by_server, "ssh") {
            let said = Said::new();
            let (done, output) = (said.folder().join("done"), said.folder().join("output"));
            let script = format!("until test -e {}; do sleep 0.05; done; echo through", done.display());
            let mut ssh = sshd.ssh(&said, &ssh);
            let (mut heard, to) = std::io::pipe().unwrap();
            let errors = fs::File::create(output).unwrap();
            let ssh = ssh.args(["-f", &script]).stdin(Stdio::null()).stdout(to).stderr(errors);
            assert!(ssh.status().unwrap().success(), "it has come in");
            // It has a copy of the pipe's end.
            ssh.stdout(Stdio::null());
            fs::write(done, "").unwrap();
            let mut text = String::new();
            heard.read_to_string(&mut text).unwrap();
            assert_eq!(text, if is_known { "through\n" } else { "" });
            assert_taken(&said, is_known);
        }
        assert_nothing_taken(&by_server);
    });
}

/// The connection is for those that come later.
#[test]
fn ssh_that_persists() {
    clean_process(|| {
        let by_server = Said::new();
        let sshd = Sshd::start(&by_server);
        for (program, is_known) in both(&by_server, "ssh") {
            let said = Said::new();
            let ssh = |arguments: &[&str]| {
                let mut ssh = sshd.ssh(&said, &program);
                ssh.args(["-o", "ControlPath=control"]).args(arguments).stdin(Stdio::null());
                // Whoever persists goes on holding it.
                ssh.stderr(fs::File::create(said.folder().join("errors")).unwrap());
                let Output { status, stdout, .. } = ssh.output().unwrap();
                (status.success(), String::from_utf8(stdout).unwrap())
            };
            let first = ssh(&["-o", "ControlMaster=auto", "-o", "ControlPersist=60", "echo the first"]);
            assert_eq!(first, if is_known { (true, "the first\n".into()) } else { (false, String::new()) });
            assert_eq!(ssh(&["-O", "check"]).0, is_known);
            if is_known {
                assert_eq!(ssh(&["-o", "ControlMaster=no", "echo the second"]), (true, "the second\n".into()));
                assert!(ssh(&["-O", "exit"]).0);
            }
            assert_taken(&said, is_known);
        }
    });
}

/// Two processes of it read and write.
#[test]
fn rsync_from_a_daemon() {
    clean_process(|| {
        let (by_server, port) = (Said::new(), free_port());
        let there = by_server.folder().join("there");
        fs::create_dir(&there).unwrap();
        for n in 0..20_u8 {
            fs::write(there.join(n.to_string()), vec![n; 10_000]).unwrap();
        }
        let settings = format!(
            "use chroot = no\naddress = 127.0.0.1\nport = {port}\npid file = {folder}/pid\nlog file = {folder}/log\n[there]\npath = {}\n",
            there.display(),
            folder = by_server.folder().display()
        );
        fs::write(by_server.folder().join("settings"), settings).unwrap();
        let settings = by_server.folder().join("settings");
        let _daemon = serve(&by_server, port, "rsync", |command| {
            command.args(["--daemon", "--no-detach", "--config"]).arg(settings);
        });
        for (rsync, is_known) in both(&by_server, "rsync") {
            let said = Said::new();
            let mut rsync = said.command(rsync);
            let timeout = format!("--timeout={}", patience().as_secs());
            rsync.args(["-r", &timeout, &format!("rsync://127.0.0.1:{port}/there/"), "here"]);
            assert_eq!(rsync.output().unwrap().status.success(), is_known);
            let has_come =
                |n: u8| fs::read(said.folder().join("here").join(n.to_string())).is_ok_and(|got| got == [n; 10_000]);
            assert_eq!((0..20).all(has_come), is_known);
            assert_taken(&said, is_known);
        }
    });
}

/// What it pushes is written by a program that it starts.
#[test]
fn git_to_a_daemon() {
    clean_process(|| {
        let (by_server, port) = (Said::new(), free_port());
        let git = |said: &Said, program: &Path, arguments: &[&str]| {
            let mut git = said.command(program);
            git.env("GIT_CONFIG_GLOBAL", "/dev/null");
            git.args(["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]).args(arguments);
            git.output().unwrap()
        };
        let usual = debian("git");
        assert!(git(&by_server, &usual, &["init", "--quiet", "--bare", "origin"]).status.success());
        let _daemon = serve(&by_server, port, "git", |command| {
            command.args(["daemon", "--export-all", "--enable=receive-pack", "--reuseaddr", "--listen=127.0.0.1"]);
            command.arg(format!("--port={port}"));
            command.arg(format!("--base-path={}", by_server.folder().display())).arg(by_server.folder());
        });
        for (program, is_known) in both(&by_server, "git") {
            let said = Said::new();
            for arguments in [
                &["init", "--quiet", "here"][..],
                &["-C", "here", "commit", "--quiet", "--allow-empty", "-m", "a change"],
            ] {
                assert!(git(&said, &usual, arguments).status.success());
            }
            let (origin, branch) = (format!("git://127.0.0.1:{port}/origin"), format!("HEAD:refs/heads/{is_known}"));
            let pushed = git(&said, &program, &["-C", "here", "push", &origin, &branch]);
            let errors = String::from_utf8_lossy(&pushed.stderr);
            assert_eq!(pushed.status.success(), is_known, "{errors}");
            let head = |folder: &Said, name, branch: &str| {
                run(Command::new(&usual).current_dir(folder.folder()).args(["-C", name, "rev-parse", branch]))
            };
            if is_known {
                assert_eq!(head(&by_server, "origin", "refs/heads/true"), head(&said, "here", "HEAD"));
            }
            assert_taken(&said, is_known);
        }
        assert_nothing_taken(&by_server);
    });
}

/// Where git is installed as files of many names (Debian has symbolic links), its process has that of the command.
#[test]
fn git_by_the_name_of_a_command() {
    clean_process(|| {
        let (by_server, port) = (Said::new(), free_port());
        let git = debian("git");
        run(Command::new(&git).current_dir(by_server.folder()).args(["init", "--quiet", "--bare", "origin"]));
        let _daemon = serve(&by_server, port, "git", |command| {
            command.args(["daemon", "--export-all", "--enable=receive-pack", "--reuseaddr", "--listen=127.0.0.1"]);
            command.arg(format!("--port={port}"));
            command.arg(format!("--base-path={}", by_server.folder().display())).arg(by_server.folder());
        });
        for (name, is_known) in [("git-send-pack", true), ("another_send-pack", false)] {
            let said = Said::new();
            let here = |arguments: &[&str]| {
                let mut git = Command::new(&git);
                git.current_dir(said.folder()).env("GIT_CONFIG_GLOBAL", "/dev/null");
                run(git.args(["-c", "user.name=nobody", "-c", "user.email=nobody@localhost"]).args(arguments))
            };
            here(&["init", "--quiet"]);
            here(&["commit", "--quiet", "--allow-empty", "-m", "a change"]);
            let program = said.copy(&git, name);
            // It goes by what it is called, and the library by what the file is.
            let mut push = said.command("bash");
            push.args(["-c", "exec -a git-send-pack \"$@\"", "bash"]).arg(program);
            push.args([format!("git://127.0.0.1:{port}/origin"), format!("HEAD:refs/heads/{is_known}")]);
            let pushed = push.output().unwrap();
            assert_eq!(pushed.status.success(), is_known, "{}", String::from_utf8_lossy(&pushed.stderr));
            assert_taken(&said, is_known);
        }
        assert_nothing_taken(&by_server);
    });
}

/// The second of its connections is for a child, which receives the log while it copies.
#[test]
fn a_backup_of_a_postgres_server() {
    clean_process(|| {
        let (folder, server) = (Said::new(), PrivatePostgres::start_with(&[]));
        let programs = fs::read_link(format!("/proc/{}/exe", server.pid().unwrap())).unwrap();
        let usual = programs.with_file_name("pg_basebackup");
        let another = folder.copy(&usual, "another_pg_basebackup");
        for (program, is_known) in [(usual, true), (another, false)] {
            let said = Said::new();
            let mut backup = said.command(program);
            backup.args(["--pgdata=backup", "--checkpoint=fast", "--no-sync", "--dbname", server.url()]);
            let Output { status, stderr, .. } = backup.output().unwrap();
            let errors = String::from_utf8_lossy(&stderr);
            assert_eq!(status.success(), is_known, "{errors}");
            assert_eq!(said.folder().join("backup/backup_manifest").exists(), is_known);
            assert!(is_known || errors.contains("could not send replication command"), "{errors}");
            assert_taken(&said, is_known);
        }
    });
}

/// It connects, and talks in a child.
#[test]
fn socat_that_forks() {
    clean_process(|| {
        let folder = Said::new();
        for (program, is_known) in both(&folder, "socat") {
            let said = Said::new();
            // One for each, for it connects again and again.
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let _socat = Host::start(|_| {
                let mut socat = said.command(program);
                socat.arg(format!("TCP:{address},fork")).arg("EXEC:echo a word");
                socat
            });
            let (mut peer, _) = listener.accept().unwrap();
            peer.set_read_timeout(Some(patience())).unwrap();
            let mut heard = String::new();
            peer.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, if is_known { "a word\n" } else { "" });
            if !is_known {
                // The child says it when it has done it.
                wait_until("the child has said it", || !said.lines().is_empty());
            }
            assert_taken(&said, is_known);
        }
    });
}

/// A shell hands the connection that it has made to the programs that it starts.
#[track_caller]
fn a_shell(name: &str, connect: impl Fn(u16) -> String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = connect(port) + "; head -n 1 <&3; true";
    let shell = |said: &Said, program: &Path, keep: &str| {
        let mut shell = said.command(program);
        let shell = shell.args(["-c", &script]).env("FORKSAFE_KEEP", keep);
        let server = thread::spawn({
            let listener = listener.try_clone().unwrap();
            move || listener.accept().unwrap().0.write_all(b"a word\n")
        });
        let heard = shell.output().unwrap().stdout;
        server.join().unwrap().unwrap();
        String::from_utf8(heard).unwrap()
    };
    let folder = Said::new();
    for (program, is_known) in both(&folder, name) {
        let said = Said::new();
        assert_eq!(shell(&said, &program, ""), if is_known { "a word\n" } else { "" });
        assert_taken(&said, is_known);
        for keep in ["fd:3".to_owned(), format!("127.0.0.1:{port}"), "program:another_*".to_owned()] {
            assert_eq!(shell(&Said::new(), &program, &keep), "a word\n");
        }
    }
}

#[test]
fn a_connection_of_bash() {
    clean_process(|| a_shell("bash", |port| format!("exec 3<>/dev/tcp/127.0.0.1/{port}")));
}

#[test]
fn a_connection_of_zsh() {
    clean_process(|| a_shell("zsh", |port| format!("zmodload zsh/net/tcp && ztcp -d 3 127.0.0.1 {port}")));
}
