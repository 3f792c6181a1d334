//! Dynos x workers x threads at one PostgreSQL that has just room for them.

use crate::web::{Server, Visitor, under_load};
use forksafe::Deadline;
use forksafe::Pool;
use forksafe::cluster::{Builder, Command, Status, Stream};
use forksafe::postgres::PostgresManager;
use forksafe::sizing::{Capacity, Plan, Report};
use forksafe::testing::{self, Holdings, PrivatePostgres, clean_process, patience, wait_until};
use postgres::{Client, NoTls};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const DYNOS: u8 = 4;
const WORKERS: u8 = 2;
const THREADS: u8 = 5;

/// 40 of the workers' threads, and the one that each master has opened before the fork.
const ROOM: i64 = DYNOS as i64 * (WORKERS as i64 * THREADS as i64 + 1);

/// How long they work. By hand: `FORKSAFE_DYNOS_SECONDS=60`.
fn a_while() -> Duration {
    let seconds = std::env::var("FORKSAFE_DYNOS_SECONDS").ok().map(|text| text.parse().expect("a number of seconds"));
    Duration::from_secs(seconds.unwrap_or(3))
}

/// Sessions of the role that the dynos have.
fn sessions(admin: &mut Client) -> i64 {
    admin.query_one("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'", &[]).unwrap().get(0)
}

/// How often it refused one. The pool tries again, so that nobody else might notice.
fn refused(admin: &mut Client) -> usize {
    let log: String = admin.query_one("SELECT pg_read_file('log')", &[]).unwrap().get(0);
    log.lines()
        .filter(|line| line.contains("too many connections") || line.contains("remaining connection slots"))
        .count()
}

/// What sizing says of so many dynos, asked as they would.
fn report(config: &postgres::Config, dynos: u8) -> Report {
    let plan = Plan::new().hosts(dynos.into()).workers(WORKERS.into()).threads(THREADS.into());
    let manager = PostgresManager::new(config.clone(), NoTls);
    Report::new(plan.pool("db", THREADS.into()).master("db", 1))
        .server("db", Capacity::of_postgres(&manager, patience()))
}

#[test]
fn four_dynos_work_at_a_server_that_has_just_room_for_them() {
    clean_process(|| {
        let postgres = PrivatePostgres::start_with(&["-c", "max_connections=60"]);
        let mut admin = postgres.config().connect(NoTls).unwrap();
        admin.batch_execute(&format!("CREATE ROLE app LOGIN CONNECTION LIMIT {ROOM}")).unwrap();
        let mut config = postgres.config();
        config.user("app");

        assert_eq!(report(&config, DYNOS).fits(), Some(true), "{}", report(&config, DYNOS));
        let one_more = report(&config, DYNOS + 1);
        assert_eq!(one_more.fits(), Some(false));
        assert_eq!(one_more.standing("db").unwrap().too_many(), 11);
        let said = one_more.to_string();
        assert!(said.contains("db: 55 at work, but 44 of 44 can be had by role app: 11 too many."), "{said}");
        assert!(said.contains("5 hosts -> 4"), "{said}");
        wait_until("who has asked is gone", || sessions(&mut admin) == 0);

        let url = postgres.url().replacen("postgres@", "app@", 1);
        let dynos: Vec<_> = (0..DYNOS).map(|_| Server::start_with(WORKERS, THREADS, &["--postgres", &url])).collect();
        dynos.iter().for_each(|dyno| dyno.await_phase(0, WORKERS.into()));
        let visitors = dynos.iter().flat_map(|dyno| {
            (0..2 * WORKERS * THREADS).map(|_| Visitor::new(false, || dyno.connect().map(Stream::Tcp)))
        });
        let mut most = 0;
        let (asked, failed) = under_load(visitors.collect(), || {
            let until = Instant::now() + a_while();
            wait_until("all are there", || {
                most = most.max(sessions(&mut admin));
                most == ROOM
            });
            while Instant::now() < until {
                most = most.max(sessions(&mut admin));
            }
        });
        println!("{asked} requests, at most {most} sessions of {ROOM}, {} refused", refused(&mut admin));
        assert_eq!(failed, Vec::<String>::new(), "of {asked}");
        assert_eq!((most, refused(&mut admin)), (ROOM, 0));
        // No room is left: not for one session, and so not for a dyno.
        assert!(config.connect(NoTls).is_err());
        assert_eq!(refused(&mut admin), 1, "a refusal would have been seen");

        let used = dynos.iter().flat_map(|dyno| dyno.status().unwrap().worker_status);
        let used: Vec<u64> = used.flat_map(|worker| worker.last_status.connections).collect();
        assert_eq!(used.len(), 40);
        assert_eq!(used.iter().collect::<BTreeSet<_>>().len(), 40, "each thread has its own: {used:?}");
        dynos.into_iter().for_each(Server::end);
        wait_until("all have taken their leave", || sessions(&mut admin) == 0);
    });
}

#[test]
fn fifty_workers_have_fifty_sessions() {
    const MANY: usize = 50;
    clean_process(|| {
        let postgres = PrivatePostgres::start_with(&["-c", "max_connections=60"]);
        let mut admin = postgres.config().connect(NoTls).unwrap();
        admin.batch_execute("CREATE ROLE app LOGIN").unwrap();
        // Nobody protects a client that is in no pool: the master would have a copy.
        drop(admin);
        let mut config = postgres.config();
        config.user("app");
        let control = std::env::temp_dir().join(format!("forksafe-dynos-{}", std::process::id()));
        let at = control.clone();
        let master = testing::child(move || {
            let pool = Pool::builder().max_size(1).build(PostgresManager::new(config, NoTls)).unwrap();
            let session = || -> i32 { pool.get().unwrap().query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0) };
            let mine = session();
            let cluster = Builder::default().workers(MANY).threads(1).control_socket(at);
            let served = cluster.run(|worker| {
                worker.heartbeat(0).uses_connection(session() as u64);
                worker.ready();
                worker.shutdown().wait(Deadline::never());
                assert_eq!(worker.status().workers, MANY);
                std::io::Result::Ok(())
            });
            served.unwrap();
            (mine, session())
        });
        let mut status: Option<Status> = None;
        wait_until("fifty serve", || {
            let answer = Command::Status.send(&control, false, Deadline::after(patience()));
            status = answer.ok().map(|text| serde_json::from_str(&text).unwrap());
            status.as_ref().is_some_and(|status| status.booted_workers == MANY)
        });
        let workers = status.unwrap().worker_status;
        let used: BTreeSet<u64> = workers.iter().flat_map(|worker| worker.last_status.connections.clone()).collect();
        assert_eq!(used.len(), MANY, "{used:?}");
        let mut admin = postgres.config().connect(NoTls).unwrap();
        let rows = admin.query("SELECT pid FROM pg_stat_activity WHERE usename = 'app'", &[]).unwrap();
        let mut there: BTreeSet<u64> = rows.iter().map(|row| row.get::<_, i32>(0) as u64).collect();
        assert_eq!(there.len(), MANY + 1);
        assert!(used.iter().all(|session| there.remove(session)), "{used:?}");
        let pids: Vec<u32> = workers.iter().map(|worker| worker.pid).chain([master.pid()]).collect();
        let held = Holdings::of(&pids).unwrap();
        assert!(held.shared_connections().is_empty(), "{:?}", held.shared_connections());
        Command::Stop.send(&control, false, Deadline::after(patience())).unwrap();
        let (first, last) = master.join();
        assert_eq!((first, there), (last, BTreeSet::from([first as u64])), "the master's is as it was");
        wait_until("all have taken their leave", || sessions(&mut admin) == 0);
    });
}
