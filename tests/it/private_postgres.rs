//! What the tests with PostgreSQL rest on: a server that comes, crashes and goes as it is told to.

use crate::kit;
use forksafe::testing::{self, Outcome, PrivatePostgres, clean_process, patience};
use postgres::{Client, Config, NoTls};
use std::collections::BTreeSet;
use std::fs;
use std::mem;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

fn ask(client: &mut Client, question: &str) -> String {
    client.query_one(question, &[]).unwrap().get(0)
}

fn connect(config: &Config) -> Client {
    config.connect(NoTls).unwrap()
}

/// All that a server has on this machine.
struct Traces {
    processes: BTreeSet<u32>,
    folder: PathBuf,
}

impl Traces {
    fn of(postgres: &PrivatePostgres) -> Self {
        let first = postgres.pid().unwrap();
        let processes =
            fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let processes = processes.filter(|&pid: &u32| pid == first || parent_of(pid) == Some(first)).collect();
        let folder = PathBuf::from(ask(&mut connect(&postgres.config()), "SHOW data_directory"));
        let traces = Self { processes, folder };
        assert!(traces.processes.len() > 3 && traces.folder.exists() && traces.has_shared_memory());
        traces
    }

    fn has_shared_memory(&self) -> bool {
        // The key, the id, the permissions, the size, and who made it.
        let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap();
        let makers = segments.lines().filter_map(|segment| segment.split_whitespace().nth(4)?.parse::<u32>().ok());
        makers.into_iter().any(|pid| self.processes.contains(&pid))
    }

    fn running(&self) -> Vec<u32> {
        self.processes.iter().copied().filter(|&pid| !kit::has_ended(pid)).collect()
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn it_starts_and_leaves_nothing() {
    clean_process(|| {
        let postgres = PrivatePostgres::start_with(&["-c", "max_connections=20"]);
        let mut client = connect(&postgres.config());
        assert_eq!(ask(&mut client, "SHOW max_connections"), "20");
        assert_eq!(ask(&mut client, "SHOW port"), postgres.port().unwrap().to_string());
        let traces = Traces::of(&postgres);
        drop(postgres);
        assert_eq!(traces.running(), Vec::<u32>::new());
        assert!(!traces.has_shared_memory() && !traces.folder.exists());
        assert!(client.simple_query("SELECT 1").is_err());
    });
}

#[test]
fn a_crash_ends_all_sessions_and_a_restart_is_at_the_same_address() {
    clean_process(|| {
        let mut postgres = PrivatePostgres::start_with(&["-c", "max_connections=20"]);
        let (mut idle, mut busy) = (connect(&postgres.config()), connect(&postgres.config()));
        idle.batch_execute("CREATE TABLE kept AS SELECT 'kept' AS what").unwrap();
        let (config, traces) = (postgres.config(), Traces::of(&postgres));
        thread::scope(|scope| {
            // It does not look whether its server is alive.
            let ended = scope.spawn(|| busy.batch_execute("DO 'BEGIN LOOP END LOOP; END'").is_err());
            let mut admin = connect(&config);
            while ask(&mut admin, "SELECT count(*)::text FROM pg_stat_activity WHERE query LIKE 'DO%'") == "0" {
                thread::yield_now();
            }
            postgres.kill();
            assert!(ended.join().unwrap());
        });
        assert!(idle.simple_query("SELECT 1").is_err());
        assert_eq!(traces.running(), Vec::<u32>::new());
        assert!(config.connect(NoTls).is_err());
        postgres.restart();
        let mut again = connect(&config);
        assert_eq!(ask(&mut again, "SELECT what FROM kept"), "kept");
        assert_eq!(ask(&mut again, "SHOW max_connections"), "20");
    });
}

#[test]
fn it_listens_on_a_unix_socket() {
    clean_process(|| {
        let postgres = PrivatePostgres::start_with(&[]);
        let mut client = connect(&postgres.unix_config().unwrap());
        assert_eq!(ask(&mut client, "SELECT coalesce(inet_client_addr()::text, 'local')"), "local");
        let mut client = connect(&postgres.config());
        assert_eq!(ask(&mut client, "SELECT host(inet_client_addr())"), "127.0.0.1");
    });
}

/// Killed, or ended without destructors: it is the same to the server.
#[test]
fn it_does_not_outlive_who_started_it() {
    clean_process(|| {
        let child = testing::child(|| {
            let postgres = PrivatePostgres::start_with(&[]);
            let Traces { processes, folder } = Traces::of(&postgres);
            mem::forget(postgres);
            (processes, folder)
        });
        let (processes, folder) = child.join();
        let traces = Traces { processes, folder };
        let until = Instant::now() + patience();
        while !traces.running().is_empty() || traces.has_shared_memory() {
            let states = traces.running().into_iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/status")));
            assert!(
                Instant::now() < until,
                "still there, with shared memory: {}; {:#?}",
                traces.has_shared_memory(),
                states.collect::<Vec<_>>()
            );
            thread::sleep(Duration::from_millis(1));
        }
        fs::remove_dir_all(traces.folder).unwrap();
    });
}

#[test]
fn one_that_does_not_start_says_why_and_leaves_nothing() {
    clean_process(|| {
        let temporary = a_temporary_folder_of_its_own();
        let child = testing::child(|| drop(PrivatePostgres::start_with(&["-c", "max_connections=none"])));
        match child.outcome() {
            Outcome::Panicked { message, .. } => assert!(message.contains("max_connections"), "{message}"),
            other => panic!("{other:?}"),
        }
        let names = names_in(&temporary);
        assert!(names.len() == 1 && names[0].contains("template"), "{names:?}");
        fs::remove_dir_all(temporary).unwrap();
    });
}

/// The first tests that a machine ever runs all want to make the template.
#[test]
fn many_may_start_their_first_at_the_same_time() {
    clean_process(|| {
        let temporary = a_temporary_folder_of_its_own();
        let children: Vec<_> =
            (0..3).map(|_| testing::child(|| PrivatePostgres::start_with(&[]).pid().is_some())).collect();
        assert!(children.into_iter().all(|child| child.join()));
        let names = names_in(&temporary);
        assert!(names.len() == 1 && names[0].contains("template"), "{names:?}");
        fs::remove_dir_all(temporary).unwrap();
    });
}

/// For this process and its children.
fn a_temporary_folder_of_its_own() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("forksafe-temporary-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1777)).unwrap();
    // SAFETY: no other thread of this process looks at its environment now.
    unsafe { std::env::set_var("TMPDIR", &folder) };
    folder
}

fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
