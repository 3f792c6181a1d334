//! Whether all the connections fit: the arithmetic, and what real servers say of themselves.

use crate::churn::sockets_to;
use crate::pgbouncer::PrivatePgBouncer;
use crate::redis_fake::{Fake, Says};
use forksafe::Pool;
use forksafe::postgres::PostgresManager;
use forksafe::redis::RedisManager;
use forksafe::sizing::{Capacity, Limit, Plan, Report, Surge};
use forksafe::testing::{self, PrivatePostgres, PrivateRedis, Tap, clean_process, descriptors, patience, wait_until};
use postgres::{Client, NoTls};
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::test_runner::Config;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// 40 at work, 50 while a phased restart is under way.
fn plan() -> Plan {
    let plan = Plan::new().hosts(2).workers(4).threads(5).pool("db", 5);
    plan.surge(Surge::PhasedRestart { extra_workers: 1 })
}

fn postgres_says(config: postgres::Config) -> Capacity {
    Capacity::of_postgres(&PostgresManager::new(config, NoTls), patience())
}

fn redis_says(url: &str) -> Capacity {
    Capacity::of_redis(&RedisManager::open(url).unwrap(), patience())
}

fn as_user(server: &PrivatePostgres, user: &str) -> postgres::Config {
    let mut config = server.config();
    config.user(user);
    config
}

fn sessions(config: &postgres::Config, number: usize) -> Vec<Client> {
    (0..number).map(|_| config.connect(NoTls).unwrap()).collect()
}

/// (what, total, reserved, now, others)
type Row<'a> = (&'a str, u64, u64, Option<u64>, Option<u64>);

fn numbers(capacity: &Capacity) -> Vec<Row<'_>> {
    let row = |limit| {
        let limit: &Limit = limit;
        (limit.what(), limit.total(), limit.kept(), limit.now(), limit.others())
    };
    capacity.limits().iter().map(row).collect()
}

const ALL: &str = "max_connections of the server";

#[test]
fn a_server_is_short_of_room_for_a_phased_restart() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&["-c", "max_connections=25"]);
        let mut root = server.config().connect(NoTls).unwrap();
        root.batch_execute("CREATE ROLE app LOGIN").unwrap();
        drop(root);
        wait_until("only the one that asks is there", || {
            numbers(&postgres_says(as_user(&server, "app"))) == [(ALL, 25, 3, Some(0), Some(0))]
        });

        let report = Report::new(plan()).server("db", postgres_says(as_user(&server, "app")));
        assert_eq!((report.fits(), report.workers_at_most()), (Some(false), Some(1)));
        let said = report.to_string();
        let expected = "db: 40 at work and 50 while a phased restart is under way, but 22 of 25 can be had by role app (3 reserved): \
                        28 too many. Either max_size of pool \"db\" 5 -> 2, or 4 workers -> 1, or \
                        max_connections of the server -> 53";
        assert!(said.ends_with(expected), "{said}");

        // What it says is true.
        let smaller = |plan: Plan| Report::new(plan).server("db", postgres_says(as_user(&server, "app"))).fits();
        let surge = Surge::PhasedRestart { extra_workers: 1 };
        let pool_of = |size| Plan::new().hosts(2).workers(4).threads(5).pool("db", size).surge(surge);
        assert_eq!((smaller(pool_of(2)), smaller(pool_of(3))), (Some(true), Some(false)));
        assert_eq!((smaller(plan().workers(1)), smaller(plan().workers(2))), (Some(true), Some(false)));
    });
}

#[test]
fn sessions_of_others_lessen_what_can_be_had_and_those_of_the_plan_do_not() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&["-c", "max_connections=25"]);
        let mut root = server.config().connect(NoTls).unwrap();
        root.batch_execute("CREATE ROLE app LOGIN; CREATE ROLE other LOGIN").unwrap();
        root.batch_execute("CREATE DATABASE elsewhere").unwrap();
        let mut elsewhere = as_user(&server, "app");
        elsewhere.dbname("elsewhere");
        let _own = sessions(&as_user(&server, "app"), 4);
        let _abroad = sessions(&elsewhere, 2);
        let _others = sessions(&as_user(&server, "other"), 5);

        // 4 + 2 + 5 and the superuser's; all but the 4 are others'.
        assert_eq!(numbers(&postgres_says(as_user(&server, "app"))), [(ALL, 25, 3, Some(12), Some(8))]);

        let limits = "ALTER ROLE app CONNECTION LIMIT 11; ALTER DATABASE postgres CONNECTION LIMIT 12";
        root.batch_execute(limits).unwrap();
        let capacity = postgres_says(as_user(&server, "app"));
        assert_eq!(
            numbers(&capacity),
            [
                (ALL, 25, 3, Some(12), Some(8)),
                ("CONNECTION LIMIT of role app", 11, 0, Some(6), Some(2)),
                // Also the superuser's.
                ("CONNECTION LIMIT of database postgres", 12, 0, Some(10), Some(6)),
            ]
        );
        let tightest = capacity.tightest().unwrap();
        assert_eq!((tightest.what(), tightest.to_be_had()), ("CONNECTION LIMIT of database postgres", 6));
        let report = Report::new(Plan::new().workers(3).threads(5).pool("db", 5)).server("db", capacity);
        let remedies = report.standing("db").unwrap().remedies();
        assert_eq!(
            remedies,
            [
                "max_size of pool \"db\" 5 -> 2",
                "3 workers -> 1",
                // All of them: one alone would not do.
                "max_connections of the server -> 26 and CONNECTION LIMIT of role app -> 17 and \
             CONNECTION LIMIT of database postgres -> 21",
            ]
        );

        // Nothing but max_connections holds for a superuser.
        assert_eq!(numbers(&postgres_says(server.config())), [(ALL, 25, 0, Some(12), Some(11))]);
    });
}

#[test]
fn a_server_without_room_for_the_question_is_full() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&["-c", "max_connections=10"]);
        let mut root = server.config().connect(NoTls).unwrap();
        root.batch_execute("CREATE ROLE app LOGIN; CREATE ROLE small LOGIN CONNECTION LIMIT 1").unwrap();

        let _one = sessions(&as_user(&server, "small"), 1);
        let small = postgres_says(as_user(&server, "small"));
        assert!(small.is_full(), "{small:?}");
        assert!(small.why_unknown().unwrap().contains("too many connections for role"), "{small:?}");

        let _all = sessions(&as_user(&server, "app"), 5);
        let capacity = postgres_says(as_user(&server, "app"));
        assert!(capacity.is_full(), "{capacity:?}");
        let report = Report::new(plan()).server("db", capacity);
        assert_eq!((report.fits(), report.workers_at_most()), (Some(false), None));
        assert!(report.to_string().contains("but it has no room for one more now: "), "{report}");
        assert!(report.to_string().contains("is full\n"), "{report}");
        // The superuser's reserve is still there.
        assert_eq!(numbers(&postgres_says(server.config())), [(ALL, 10, 0, Some(7), Some(6))]);
    });
}

/// The log of the server.
fn log(server: &PrivatePostgres) -> String {
    server.config().connect(NoTls).unwrap().query_one("SELECT pg_read_file('log')", &[]).unwrap().get(0)
}

#[test]
fn a_server_that_sees_our_port_is_not_asked_for_pgbouncer() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let _ = postgres_says(server.config());
        assert!(!log(&server).contains("pgbouncer"), "{}", log(&server));

        // A unix socket has none.
        let capacity = postgres_says(server.unix_config().unwrap());
        assert!(log(&server).contains("database \"pgbouncer\" does not exist"), "{}", log(&server));
        assert_eq!(capacity.tightest().unwrap().what(), ALL);
        assert!(capacity.notes().is_empty(), "{capacity:?}");

        // One may have a database of that name.
        server.config().connect(NoTls).unwrap().batch_execute("CREATE DATABASE pgbouncer").unwrap();
        let capacity = postgres_says(server.unix_config().unwrap());
        assert_eq!(capacity.tightest().unwrap().what(), ALL, "{capacity:?}");
        assert!(capacity.notes().is_empty(), "{capacity:?}");

        // Where it may not be asked for, nobody knows.
        let mut root = server.config().connect(NoTls).unwrap();
        let file: String = root.query_one("SHOW hba_file", &[]).unwrap().get(0);
        let rules = "'local pgbouncer all reject', 'local all all trust', 'host all all all trust'";
        root.batch_execute(&format!("COPY (SELECT unnest(ARRAY[{rules}])) TO '{file}'; SELECT pg_reload_conf()"))
            .unwrap();
        wait_until("the rule is there", || {
            let capacity = postgres_says(server.unix_config().unwrap());
            assert_eq!(capacity.tightest().unwrap().what(), ALL, "{capacity:?}");
            capacity.notes().first().is_some_and(|note| note.starts_with("whether a PgBouncer is in between"))
        });
    });
}

#[test]
fn a_pgbouncer_in_between_has_limits_of_its_own() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&["-c", "max_connections=90"]);
        let mut root = server.config().connect(NoTls).unwrap();
        root.batch_execute("CREATE ROLE app LOGIN; CREATE ROLE watcher LOGIN").unwrap();
        let settings = "max_client_conn = 60\ndefault_pool_size = 20\nreserve_pool_size = 5\npool_mode = ";

        let bouncer = PrivatePgBouncer::before(&server, &format!("{settings}transaction"));
        let _others = sessions(&bouncer.config("app"), 3);
        let _own = sessions(&bouncer.config("watcher"), 2);
        let capacity = postgres_says(bouncer.config("watcher"));
        assert_eq!(numbers(&capacity), [("max_client_conn of PgBouncer", 60, 0, Some(5), Some(3))]);
        assert_eq!(capacity.notes(), ["a PgBouncer is in between, these are its limits"]);

        // Whoever may not see its console is told that it is there, and nothing else.
        let capacity = postgres_says(bouncer.config("app"));
        let why = capacity.why_unknown().unwrap_or_else(|| panic!("{capacity:?}"));
        assert!(why.starts_with("a PgBouncer is in between, and does not tell its max_client_conn"), "{why}");
        assert!(why.contains("not allowed"), "{why}");
        assert_eq!(Report::new(plan()).server("db", capacity).fits(), None);
        drop(bouncer);

        let bouncer = PrivatePgBouncer::before(&server, &format!("{settings}session"));
        let capacity = postgres_says(bouncer.config("watcher"));
        let what = "pool_size of PgBouncer (pool_mode session)";
        assert_eq!(numbers(&capacity)[1], (what, 25, 0, None, None));
        assert_eq!(capacity.tightest().unwrap().what(), what);
        drop(bouncer);

        let bouncer = PrivatePgBouncer::before(&server, "max_client_conn = 2\npool_mode = transaction");
        let _all = sessions(&bouncer.config("app"), 2);
        let capacity = postgres_says(bouncer.config("app"));
        assert!(capacity.is_full(), "{capacity:?}");
    });
}

fn cache(max_size: u32) -> Plan {
    Plan::new().workers(2).threads(5).pool("cache", max_size)
}

#[test]
fn a_redis_says_how_many_but_not_whose() {
    clean_process(|| {
        let server = PrivateRedis::start_with(&["--maxclients", "20"]);
        wait_until("only the one that asks is there", || {
            numbers(&redis_says(server.url())) == [("maxclients", 20, 0, Some(0), Some(0))]
        });
        let client = redis::Client::open(server.url()).unwrap();
        let _open: Vec<_> = (0..4).map(|_| client.get_connection().unwrap()).collect();
        let capacity = redis_says(server.url());
        assert_eq!(numbers(&capacity), [("maxclients", 20, 0, Some(4), None)]);

        let fits = |max_size| Report::new(cache(max_size)).server("cache", capacity.clone()).fits();
        // 16 fit in any case, 18 only if the four are the plan's, 22 never.
        assert_eq!((fits(8), fits(9), fits(11)), (Some(true), None, Some(false)));
        let report = Report::new(cache(9)).server("cache", capacity).to_string();
        let doubt = "18 at work, and 20 of 20 can be had; but only 16 if the 4 that are open now are not its own";
        assert!(report.contains(doubt), "{report}");

        let replica =
            PrivateRedis::start_with(&["--replicaof", "127.0.0.1", server.address().rsplit(':').next().unwrap()]);
        wait_until("the replica's connection is reserved", || {
            numbers(&redis_says(server.url())) == [("maxclients", 20, 1, Some(4), None)]
        });
        drop(replica);
    });
}

#[test]
fn a_redis_that_may_not_be_asked_is_unknown() {
    clean_process(|| {
        let server = PrivateRedis::start_with(&["--maxclients", "20"]);
        let mut conn = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let mut user = |name: &str, rules: &[&str]| {
            let mut acl = redis::cmd("ACL");
            acl.arg("SETUSER").arg(name).arg("on").arg(">secret").arg("~*").arg(rules).exec(&mut conn).unwrap();
            format!("redis://{name}:secret@{}/", server.address())
        };
        let ordinary = user("ordinary", &["+@all", "-@admin", "-@dangerous"]);
        let informed = user("informed", &["+@all", "-@admin", "-@dangerous", "+info"]);
        let configuring = user("configuring", &["+@all", "-info"]);

        let capacity = redis_says(&ordinary);
        assert!(capacity.why_unknown().unwrap().starts_with("this account may ask neither"), "{capacity:?}");
        let report = Report::new(cache(5)).server("cache", capacity);
        assert_eq!((report.fits(), report.workers_at_most()), (None, None));

        assert_eq!(numbers(&redis_says(&informed)), [("maxclients", 20, 0, Some(1), None)]);

        // How many are open cannot be asked: so nothing surely fits, and much surely does not.
        let capacity = redis_says(&configuring);
        assert_eq!(numbers(&capacity), [("maxclients", 20, 0, None, None)]);
        let fits = |max_size| Report::new(cache(max_size)).server("cache", capacity.clone()).fits();
        assert_eq!((fits(1), fits(11)), (None, Some(false)));

        let wrong = redis_says(&ordinary.replace("secret", "hunter2"));
        let report = Report::new(cache(5)).server("cache", wrong.clone()).to_string();
        assert!(wrong.why_unknown().is_some() && !report.contains("hunter2"), "{report}");
    });
}

#[test]
fn a_redis_without_room_is_full() {
    clean_process(|| {
        let server = PrivateRedis::start_with(&["--maxclients", "5"]);
        let client = redis::Client::open(server.url()).unwrap();
        let mut open = Vec::new();
        wait_until("five are let in", || {
            let asks = client.get_connection().and_then(|mut conn| redis::cmd("PING").exec(&mut conn).map(|()| conn));
            open.extend(asks);
            open.len() == 5
        });
        let capacity = redis_says(server.url());
        assert!(capacity.is_full(), "{capacity:?}");
        assert_eq!(Report::new(cache(1)).server("cache", capacity).fits(), Some(false));
    });
}

#[test]
fn a_server_that_is_away_or_silent_does_not_hold_the_check() {
    clean_process(|| {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let short = Duration::from_millis(300);
        let begun = Instant::now();
        for address in [silent.local_addr().unwrap(), gone] {
            let config = format!("host=127.0.0.1 port={} user=app password=hunter2", address.port()).parse().unwrap();
            let url = format!("redis://:hunter2@{address}/");
            let db = Capacity::of_postgres(&PostgresManager::new(config, NoTls), short);
            let cache = Capacity::of_redis(&RedisManager::open(url).unwrap(), short);
            for capacity in [db, cache] {
                let why = capacity.why_unknown().unwrap_or_else(|| panic!("{capacity:?}"));
                assert!(!capacity.is_full() && !why.contains("hunter2"), "{why}");
            }
        }

        // Silent after the connect: what it is asked is not answered.
        let mute = Fake::start(|_, _, words| if words[0] == "CONFIG" { Says::Silence } else { Says::Usual });
        let capacity = Capacity::of_redis(&RedisManager::new(mute.client()), short);
        assert!(capacity.why_unknown().is_some(), "{capacity:?}");

        let server = PrivatePostgres::start_with(&[]);
        let tap = Tap::before(SocketAddr::from(([127, 0, 0, 1], server.port().unwrap())));
        let forksafe::testing::Address::Tcp(address) = *tap.address() else { panic!("{tap:?}") };
        let config: postgres::Config = format!("host=127.0.0.1 port={} user=postgres", address.port()).parse().unwrap();
        // Each answer takes as long as is allowed for half of them.
        tap.slow(Duration::from_secs(2));
        let capacity = Capacity::of_postgres(&PostgresManager::new(config, NoTls), Duration::from_secs(3));
        assert!(capacity.why_unknown().unwrap().contains("no answer in time"), "{capacity:?}");
        assert!(begun.elapsed() < patience(), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_check_leaves_nothing_behind_and_works_in_a_child() {
    clean_process(|| {
        let (db, cache) = (PrivatePostgres::start_with(&[]), PrivateRedis::start_with(&[]));
        let pool = Pool::new(PostgresManager::new(db.config(), NoTls)).unwrap();
        drop(pool.get().unwrap());
        let ask = || {
            let db = Capacity::of_postgres(pool.manager(), patience());
            (db.limits().len(), redis_says(cache.url()).limits().len())
        };
        assert_eq!(ask(), (1, 1));
        let before = descriptors(std::process::id());
        assert_eq!(ask(), (1, 1));
        assert_eq!(descriptors(std::process::id()), before);
        assert_eq!(testing::child(ask).join(), (1, 1));
        assert_eq!(ask(), (1, 1));
    });
}

#[test]
fn a_child_that_is_forked_while_a_server_is_asked_holds_no_connection_to_it() {
    clean_process(|| {
        let (tell, asked) = mpsc::channel();
        let mute = Fake::start(move |_, _, words| match &*words[0] {
            "CONFIG" => {
                tell.send(()).unwrap();
                Says::Silence
            }
            _ => Says::Usual,
        });
        let address: SocketAddr = mute.address.parse().unwrap();
        let manager = RedisManager::new(mute.client());
        thread::spawn(move || Capacity::of_redis(&manager, patience()));
        asked.recv_timeout(patience()).unwrap();
        let open = || sockets_to(address).len();
        assert_eq!(open(), 1);
        assert_eq!(testing::child(open).join(), 0);
    });
}

/// Not under AddressSanitizer: the example is a program of its own.
mod example {
    use super::*;

    /// The example, as cargo built it for this program.
    fn program() -> Command {
        let tests = std::env::current_exe().unwrap();
        let program = tests.ancestors().nth(2).unwrap().join("examples/sizing");
        let modified = |path: &PathBuf| path.metadata().and_then(|file| file.modified());
        let source = modified(&[env!("CARGO_MANIFEST_DIR"), "examples", "sizing.rs"].iter().collect()).unwrap();
        let is_current = modified(&program).is_ok_and(|built| built >= source);
        assert!(is_current, "{} has to be built: cargo build --all-features --examples", program.display());
        let mut command = Command::new(program);
        for variable in ["WEB_CONCURRENCY", "RAILS_MAX_THREADS", "PUMA_MAX_THREADS", "MAX_THREADS"] {
            command.env_remove(variable);
        }
        command
    }

    fn run(command: &mut Command) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } = command.output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    }

    #[test]
    fn it_exits_as_a_deployment_wants_to_know() {
        clean_process(|| {
            let server = PrivatePostgres::start_with(&["-c", "max_connections=25"]);
            let mut command = program();
            command.env("WEB_CONCURRENCY", "2").env("RAILS_MAX_THREADS", "5").args(["--postgres", server.url()]);
            let (code, said) = run(&mut command);
            assert_eq!(code, Some(0), "{said}");
            assert!(said.starts_with("1 host x 2 workers x 5 threads = parallelism 10\n"), "{said}");
            let (code, said) = run(command.args(["--hosts", "4"]));
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("but 25 of 25 can be had by role postgres: 15 too many. Either"), "{said}");

            let (code, said) = run(program().env("WEB_CONCURRENCY", "many"));
            assert_eq!(
                (code, &*said),
                (Some(2), "WEB_CONCURRENCY is \"many\", which is not a number of workers, or auto\n")
            );
            assert_eq!(run(program().args(["--pool", "db=0"])).0, Some(2));
            assert_eq!(run(program().args(["--pool", "db=5", "--limit", "db=4"])).0, Some(1));
        });
    }

    #[test]
    fn auto_is_as_many_workers_as_the_process_may_use_processors() {
        clean_process(|| {
            let mut command = program();
            command.env("WEB_CONCURRENCY", "auto");
            // SAFETY: a system call that reads memory of this frame, between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    let mut one: libc::cpu_set_t = std::mem::zeroed();
                    libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap_or(0), &mut one);
                    match libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one) {
                        0 => Ok(()),
                        _ => Err(std::io::Error::last_os_error()),
                    }
                });
            }
            let (code, said) = run(&mut command);
            assert_eq!((code, &*said), (Some(0), "1 host x 1 worker x 5 threads = parallelism 5\n"));
        });
    }
}

#[derive(Clone, Debug)]
struct Numbers {
    shape: [u32; 3],
    pools: Vec<u32>,
    master: u32,
    background: (u32, u32),
    surge: Option<Surge>,
}

impl Numbers {
    fn plan(&self, workers: u32) -> Plan {
        let [hosts, _, threads] = self.shape;
        let plan = Plan::new().hosts(hosts).workers(workers).threads(threads).master("db", self.master);
        let plan = plan.background("jobs", self.background.0, [("db", self.background.1)]);
        let plan = self.pools.iter().fold(plan, |plan, &size| plan.pool("db", size));
        self.surge.into_iter().fold(plan, Plan::surge)
    }

    /// With numbers that are wide enough.
    fn at_worst(&self, workers: u32) -> u128 {
        let (mut hosts, mut workers) = (u128::from(self.shape[0]), u128::from(workers));
        match self.surge {
            None => {}
            Some(Surge::Preboot) => hosts *= 2,
            Some(Surge::PhasedRestart { extra_workers }) => workers += u128::from(extra_workers),
            Some(Surge::RollingDeploy { extra_hosts }) => hosts += u128::from(extra_hosts),
            Some(other) => panic!("{other:?}"),
        }
        let pooled: u128 = self.pools.iter().copied().map(u128::from).sum();
        hosts * (workers * pooled + u128::from(self.master))
            + u128::from(self.background.0) * u128::from(self.background.1)
    }
}

/// As many of one magnitude as of another: it is where large and small ones meet that a product goes wrong.
fn of_any_magnitude() -> impl Strategy<Value = u32> + Clone {
    (any::<u32>(), 0..32_u32).prop_map(|(number, shift)| (number >> shift).max(1))
}

fn numbers_of(number: impl Strategy<Value = u32> + Clone) -> impl Strategy<Value = Numbers> {
    let n = || number.clone();
    let surge = (0..4_u8, n()).prop_map(|(kind, number)| match kind {
        0 => None,
        1 => Some(Surge::Preboot),
        2 => Some(Surge::PhasedRestart { extra_workers: number }),
        _ => Some(Surge::RollingDeploy { extra_hosts: number }),
    });
    let pools = proptest::collection::vec(n(), 1..4);
    let rest = (n(), (n(), n()), surge);
    ([n(), n(), n()], pools, rest).prop_map(|(shape, pools, (master, background, surge))| Numbers {
        shape,
        pools,
        master,
        background,
        surge,
    })
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn sums_are_right_or_as_large_as_can_be(numbers in numbers_of(of_any_magnitude())) {
        let [hosts, workers, threads] = numbers.shape;
        let plan = numbers.plan(workers);
        let expected = u64::try_from(numbers.at_worst(workers)).unwrap_or(u64::MAX);
        prop_assert_eq!(plan.demand("db").at_worst(), expected);
        let parallelism = u128::from(hosts) * u128::from(workers) * u128::from(threads);
        prop_assert_eq!(u128::from(plan.parallelism()), parallelism.min(u64::MAX.into()));
        // Nothing overflows on the way to the words.
        let report = Report::new(plan).server("db", Capacity::of([Limit::new("its limit", 7).reserved(u64::MAX)]));
        prop_assert!(!report.to_string().is_empty());
    }

    #[test]
    fn at_most_so_many_workers_and_not_one_more(numbers in numbers_of(1..=12_u32), limit in any::<u16>()) {
        let limit = u64::from(limit % 2000);
        let workers = numbers.shape[1];
        let report = Report::new(numbers.plan(workers)).server("db", Capacity::of([Limit::new("its limit", limit)]));
        let most = report.workers_at_most().unwrap();
        prop_assert!(most == 0 || numbers.at_worst(most) <= limit.into());
        prop_assert!(numbers.at_worst(most + 1) > limit.into());
        let fits = numbers.at_worst(workers) <= limit.into();
        prop_assert_eq!(report.fits(), Some(fits));
        let way = format!("{workers} worker{} -> {most}", if workers == 1 { "" } else { "s" });
        let is_advised = report.standing("db").unwrap().remedies().contains(&way);
        prop_assert_eq!(is_advised, !fits && most > 0, "{:?}", report.standing("db").unwrap().remedies());
    }

    #[test]
    fn a_smaller_pool_that_is_advised_fits_and_no_larger_one(size in 2..40_u32, workers in 1..9_u32, limit in 0..200_u64) {
        let report = |size| {
            let plan = Plan::new().hosts(2).workers(workers).pool("db", size);
            Report::new(plan).server("db", Capacity::of([Limit::new("its limit", limit)]))
        };
        let remedies = report(size).standing("db").unwrap().remedies();
        let prefix = format!("max_size of pool \"db\" {size} -> ");
        let advised = remedies.iter().find_map(|way| way.strip_prefix(&prefix)).map(|size| size.parse::<u32>().unwrap());
        let right = (1..size).rev().find(|&size| report(size).fits() == Some(true));
        let expected = right.filter(|_| report(size).fits() == Some(false));
        prop_assert_eq!(advised, expected);
    }
}

#[test]
fn what_no_number_can_hold_is_as_large_as_can_be() {
    const MOST: u32 = u32::MAX;
    let pools = |plan: Plan| (0..3).fold(plan, |plan, _| plan.pool("db", MOST));
    // The workers of one host, the hosts, and the sum: each by itself.
    let of_host = pools(Plan::new().workers(MOST));
    let of_hosts = pools(Plan::new().hosts(MOST).workers(2)).surge(Surge::Preboot);
    let in_all = (0..2).fold(Plan::new().pool("db", 1), |plan, _| plan.background("jobs", MOST, [("db", MOST)]));
    for (plan, name) in [(of_host, "of a host"), (of_hosts, "of all hosts"), (in_all, "in all")] {
        assert_eq!(plan.demand("db").at_worst(), u64::MAX, "{name}");
    }
    let plan = Plan::new().hosts(MOST).workers(MOST).threads(MOST);
    assert_eq!(plan.parallelism(), u64::MAX);
}

#[test]
fn threads_that_wait_and_connections_that_nobody_needs_are_told() {
    let plan = Plan::new().threads(5).pool("db", 5).pool("cache", 3).pool("search", 6);
    let fit: Vec<_> = plan.pools().map(|pool| (pool.server(), pool.waiting(), pool.wasted())).collect();
    assert_eq!(fit, [("db", 0, 0), ("cache", 2, 0), ("search", 0, 1)]);
    let report = Report::new(plan).to_string();
    assert!(report.contains("cache: a pool of 3 for 5 threads: 2 threads of a worker wait when all want"), "{report}");
    assert!(report.contains("search: a pool of 6 for 5 threads: 1 connection is never needed"), "{report}");
}

#[test]
fn a_single_process_has_no_master_and_no_phased_restart() {
    let surge = Surge::PhasedRestart { extra_workers: 1 };
    let plan = Plan::new().hosts(2).workers(0).threads(3).pool("db", 3).master("db", 1).surge(surge);
    assert_eq!((plan.parallelism(), plan.demand("db").at_work(), plan.demand("db").at_worst()), (6, 6, 6));
}

#[test]
fn a_server_that_is_called_by_its_url_is_called_without_the_password() {
    let url = "postgres://app:hunter2@db.example.com/app";
    let report = Report::new(Plan::new().pool(url, 5)).server(url, Capacity::of([Limit::new(url, 4)]));
    assert_eq!(report.fits(), Some(false));
    let shown = format!("{report} {report:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}
