//! Programs that fork, and that the net must not touch: they work, and the net has found nothing to take in any of their children.

use crate::host::{Host, advice, debian, free_port};
use crate::net::{BUILT, LIBRARY, Net, Said};
use crate::sshd::Sshd;
use crate::web;
use forksafe::testing::{PrivatePostgres, clean_process, patience};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::thread;

/// Runs it to its end, which has to be a good one.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{}", advice(command, &error)));
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout
}

#[track_caller]
pub(crate) fn assert_nothing_taken(said: &Said) {
    assert_eq!(said.lines(), [""; 0]);
}

/// A server of this program, on a port.
#[track_caller]
pub(crate) fn serve(said: &Said, port: u16, program: &str, complete: impl FnOnce(&mut Command)) -> Host {
    let mut host = Host::start(|_| {
        let mut command = said.command(debian(program));
        complete(&mut command);
        command
    });
    host.wait_until_it_listens(port);
    Net::On.assert_in(host.pid());
    host
}

#[track_caller]
fn page(port: u16, path: &str) -> String {
    web::get(port, path, patience()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Each of its sessions is a child that was forked with an accepted connection.
#[test]
fn a_postgres_server() {
    clean_process(|| {
        let said = Said::new();
        // Under another user it may not come into the target folder.
        let library = said.folder().join(LIBRARY);
        fs::copy(BUILT.join(LIBRARY), &library).unwrap();
        for (name, value) in [("LD_PRELOAD", library), ("FORKSAFE_REPORT", said.file())] {
            // SAFETY: nobody else reads or writes the environment: the harness waits for this thread.
            unsafe { std::env::set_var(name, value) };
        }
        let server = PrivatePostgres::start_with(&[]);
        Net::On.assert_in(server.pid().unwrap());
        let connect = || server.config().connect(postgres::NoTls).unwrap();
        connect().batch_execute("create table numbers as select generate_series(1, 100000) as number").unwrap();

        let sessions = || {
            let mut client = connect();
            let pid: i32 = client.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
            Net::On.assert_in(pid as u32);
            for n in 0..50_i64 {
                let row = client.query_one("select $1::bigint + count(*) from numbers where number <= 10", &[&n]);
                assert_eq!(row.unwrap().get::<_, i64>(0), n + 10);
            }
            client.batch_execute("set parallel_setup_cost = 0; set parallel_tuple_cost = 0").unwrap();
            client.batch_execute("set min_parallel_table_scan_size = 0").unwrap();
            let plan = client.query("explain (analyze, costs off) select sum(number) from numbers", &[]).unwrap();
            let sum = client.query_one("select sum(number) from numbers", &[]).unwrap();
            assert_eq!(sum.get::<_, i64>(0), 5_000_050_000);
            plan.iter().map(|row| row.get::<_, String>(0)).collect::<String>()
        };
        // Alone, so that the others do not have all the parallel workers that there may be.
        let plan = sessions();
        assert!(plan.contains("Workers Launched: ") && !plan.contains("Workers Launched: 0"), "{plan}");
        thread::scope(|scope| (0..8).for_each(|_| drop(scope.spawn(sessions))));
        assert_nothing_taken(&said);
    });
}

/// `pg_dump` connects, and then forks those that work beside it.
#[test]
fn a_parallel_dump() {
    clean_process(|| {
        let (said, server) = (Said::new(), PrivatePostgres::start_with(&[]));
        let mut client = server.config().connect(postgres::NoTls).unwrap();
        for table in 0..4 {
            client
                .batch_execute(&format!("create table t{table} as select generate_series(1, 1000) as number"))
                .unwrap();
        }
        client.batch_execute("create database again").unwrap();
        let again = server.url().strip_suffix("postgres").unwrap().to_owned() + "again";
        let programs = fs::read_link(format!("/proc/{}/exe", server.pid().unwrap())).unwrap();
        let mut command = said.command(programs.with_file_name("pg_dump"));
        run(command.args(["--format=directory", "--jobs=2", "--file=dump", "--dbname", server.url()]));
        let mut command = said.command(programs.with_file_name("pg_restore"));
        run(command.args(["--jobs=2", "--dbname", &again, "dump"]));
        let mut client = again.parse::<postgres::Config>().unwrap().connect(postgres::NoTls).unwrap();
        let sums = "select (select sum(number)::bigint from t0) + (select sum(number)::bigint from t3)";
        assert_eq!(client.query_one(sums, &[]).unwrap().get::<_, i64>(0), 1_001_000);
        // They inherit its connection, and make their own.
        assert!(said.lines().iter().all(|line| line.ends_with(": disowned")), "{:?}", said.lines());
        println!("{:#?}", said.lines());
    });
}

#[test]
fn a_server_that_accepts_and_forks() {
    clean_process(|| {
        let (said, port) = (Said::new(), free_port());
        let script = format!("{}/echo_server.py", crate::host::APPS);
        let _host = serve(&said, port, "python3", |command| {
            command.args([&script, &port.to_string()]);
        });
        let mut clients: Vec<_> = (0..8)
            .map(|_| BufReader::new(TcpStream::connect(("127.0.0.1", port)).unwrap()))
            .inspect(|client| client.get_ref().set_read_timeout(Some(patience())).unwrap())
            .collect();
        let mut pids = BTreeSet::new();
        for round in 0..5 {
            for (number, client) in clients.iter_mut().enumerate() {
                let word = format!("{number} in round {round}\n");
                client.get_mut().write_all(word.as_bytes()).unwrap();
                let mut answer = String::new();
                client.read_line(&mut answer).unwrap();
                let (pid, echo) = answer.split_once(' ').unwrap();
                assert_eq!(echo, word);
                pids.insert(pid.to_owned());
            }
        }
        assert_eq!(pids.len(), clients.len(), "a child for each");
        assert_nothing_taken(&said);
    });
}

/// It changes its user, and locks itself in with seccomp.
#[test]
fn sshd() {
    clean_process(|| {
        let said = Said::new();
        let sshd = Sshd::start(&said);
        for _ in 0..3 {
            assert_eq!(run(sshd.ssh(&said, &debian("ssh")).arg("seq 1 3 | tr '\\n' ' '")), "1 2 3 ");
        }
        assert_nothing_taken(&said);
    });
}

#[test]
fn nginx() {
    clean_process(|| {
        let (said, port) = (Said::new(), free_port());
        fs::write(said.folder().join("page"), "of nginx").unwrap();
        let folder = said.folder().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.iter().map(|what| format!("{what}_temp_path {folder}/{what};")).collect();
        let settings = format!(
            "daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/errors; events {{}}
             http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; root {folder};
             location /by_proxy/ {{ proxy_pass http://127.0.0.1:{port}/; }} }} }}"
        );
        fs::write(said.folder().join("settings"), settings).unwrap();
        let settings = said.folder().join("settings");
        let host = serve(&said, port, "nginx", |command| {
            command.arg("-c").arg(settings);
        });
        for path in ["page", "by_proxy/page", "by_proxy/by_proxy/page"] {
            assert_eq!(page(port, path), "of nginx");
        }
        // Other workers take over from those that are there.
        host.signal(libc::SIGHUP);
        for _ in 0..50 {
            assert_eq!(page(port, "by_proxy/page"), "of nginx");
        }
        assert_nothing_taken(&said);
    });
}

#[track_caller]
fn apache(mpm: &str, cgi: &str) {
    let (said, port) = (Said::new(), free_port());
    fs::write(said.folder().join("page"), "of Apache").unwrap();
    let script = said.folder().join("script");
    fs::write(&script, "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'; echo of a script | cat\n").unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let folder = said.folder().display();
    let modules = [mpm, cgi, "authz_core", "alias"];
    let modules = modules.map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"));
    let settings = format!(
        "ServerName localhost\nServerRoot {folder}\nDefaultRuntimeDir {folder}\nPidFile {folder}/pid\nErrorLog {folder}/errors
         Listen 127.0.0.1:{port}\n{}User www-data\nGroup www-data\nDocumentRoot {folder}\nScriptAlias /cgi/ {folder}/
         <IfModule cgid_module>\nScriptSock {folder}/cgi.sock\n</IfModule>\n",
        modules.concat()
    );
    fs::write(said.folder().join("settings"), settings).unwrap();
    let settings = said.folder().join("settings");
    let _host = serve(&said, port, "apache2", |command| {
        // At its end it ends its whole group, in which the test would be.
        command.process_group(0).arg("-DFOREGROUND").arg("-f").arg(settings);
    });
    for _ in 0..20 {
        assert_eq!(page(port, "page"), "of Apache");
        assert_eq!(page(port, "cgi/script"), "of a script\n");
    }
    assert_nothing_taken(&said);
}

#[test]
fn apache_with_processes() {
    clean_process(|| apache("mpm_prefork", "cgi"));
}

#[test]
fn apache_with_threads() {
    clean_process(|| apache("mpm_event", "cgid"));
}

#[test]
fn a_shells_pipelines() {
    clean_process(|| {
        let said = Said::new();
        let script = format!("{}/pipelines.sh", crate::host::APPS);
        let shell = said.under_another_name("bash");
        assert_eq!(run(said.command(shell).arg(script)), "THROUGH\n");
        assert_nothing_taken(&said);
    });
}

/// `git clone` from a daemon connects, and starts programs that inherit that connection and have no use for it: those lose it.
#[test]
fn git_over_a_local_transport_and_over_a_daemon() {
    clean_process(|| {
        let (said, by_client, port) = (Said::new(), Said::new(), free_port());
        let program = said.under_another_name("git");
        let git = |said: &Said, arguments: &[&str]| {
            let mut git = said.command(&program);
            git.env("GIT_CONFIG_GLOBAL", "/dev/null").args([
                "-c",
                "user.name=nobody",
                "-c",
                "user.email=nobody@localhost",
            ]);
            run(git.args(arguments))
        };
        git(&said, &["init", "--quiet", "origin"]);
        for n in 0..20 {
            fs::write(said.folder().join("origin/file"), vec![b'a' + n; 10_000]).unwrap();
            git(&said, &["-C", "origin", "add", "file"]);
            git(&said, &["-C", "origin", "commit", "--quiet", "-m", "a change"]);
        }
        let origin = format!("file://{}/origin", said.folder().display());
        git(&said, &["clone", "--quiet", &origin, "clone"]);
        let _daemon = serve(&said, port, "git", |command| {
            command.args(["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", &format!("--port={port}")]);
            command.arg(format!("--base-path={}", said.folder().display())).arg(said.folder());
        });
        git(&by_client, &["clone", "--quiet", &format!("git://127.0.0.1:{port}/origin"), "clone"]);
        for whose in [&said, &by_client] {
            git(whose, &["-C", "clone", "fsck", "--full", "--strict"]);
            assert_eq!(git(whose, &["-C", "clone", "rev-list", "--count", "HEAD"]), "20\n");
        }
        assert_nothing_taken(&said);
        let lines = by_client.lines();
        assert!(!lines.is_empty() && lines.iter().all(|line| line.ends_with(": disowned")), "{lines:?}");
    });
}

#[test]
fn a_build_by_cargo() {
    clean_process(|| {
        let said = Said::new();
        let write = |path: &str, text: &str| {
            let path = said.folder().join(path);
            fs::create_dir_all(path.parent().unwrap()).and_then(|()| fs::write(path, text)).unwrap();
        };
        let package = |name: &str| format!("[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2021\"\n");
        write("Cargo.toml", &(package("small") + "[dependencies]\none = { path = \"one\" }\n[workspace]\n"));
        write("one/Cargo.toml", &package("one"));
        write("one/build.rs", "fn main() { println!(\"cargo:rustc-env=BUILT=by a script\"); }");
        write("one/src/lib.rs", "pub const BUILT: &str = env!(\"BUILT\");");
        write("src/main.rs", "fn main() { println!(\"{}\", one::BUILT); }");
        let mut cargo = said.command(env!("CARGO"));
        cargo.args(["run", "--quiet", "--offline", "--target-dir"]).arg(said.folder().join("target"));
        assert_eq!(run(&mut cargo), "by a script\n");
        assert_nothing_taken(&said);
    });
}
