//! Passwords that change: whoever connects is asked for them anew.

use crate::kit::{self, exit_code, fork, leave};
use forksafe::postgres::{self as pg, PostgresManager};
use forksafe::redis::{Clean, RedisManager};
use forksafe::testing::{self, PrivatePostgres, PrivateRedis, clean_process};
use forksafe::{Credentials, Deadline, Error, Fault, ManageConnection, NoCredentials, Pool};
use postgres::NoTls;
use redis::cmd;
use std::error::Error as StdError;
use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What a token service would say now, and how often it was asked.
#[derive(Clone, Default)]
struct Tokens(Arc<(Mutex<Option<Credentials>>, AtomicUsize)>);

impl Tokens {
    fn are(&self, now: Credentials) {
        *self.0.0.lock().unwrap() = Some(now);
    }

    fn are_away(&self) {
        *self.0.0.lock().unwrap() = None;
    }

    fn asked(&self) -> usize {
        self.0.1.load(SeqCst)
    }

    fn ask(&self) -> Result<Credentials, Away> {
        self.0.1.fetch_add(1, SeqCst);
        self.0.0.lock().unwrap().clone().ok_or(Away)
    }
}

#[derive(Debug, thiserror::Error, PartialEq)]
#[error("the token service is away")]
struct Away;

fn sources(error: &Error) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

#[track_caller]
fn is_for_want_of_credentials(error: &Error, manager: &impl ManageConnection) {
    assert!(error.is_connect(), "{error:?}");
    assert!(sources(error).any(|source| source.is::<NoCredentials>()), "{error:?}");
    assert_eq!(manager.classify(error), Fault::Unknown, "it may heal: {error:?}");
    assert_eq!(format!("{error:#}").matches("there are no credentials").count(), 1, "{error:#}");
}

#[track_caller]
fn is_because_they_are_away(error: &Error, manager: &impl ManageConnection) {
    is_for_want_of_credentials(error, manager);
    assert_eq!(sources(error).find_map(|source| source.downcast_ref()), Some(&Away), "{error:?}");
}

fn redis_pool(manager: RedisManager) -> Pool<RedisManager> {
    kit::tested().max_size(1).build(manager).unwrap()
}

fn redis_manager(redis: &PrivateRedis, query: &str, tokens: &Tokens) -> RedisManager {
    let tokens = tokens.clone();
    let url = format!("redis://:of-the-url@{}/{query}", redis.address());
    RedisManager::open(url).unwrap().credentials(move |_| tokens.ask())
}

fn whoami(conn: &mut redis::Connection) -> String {
    cmd("ACL").arg("WHOAMI").query(conn).unwrap()
}

fn admin(redis: &PrivateRedis) -> redis::Connection {
    let url = redis.unix_url().unwrap() + "?user=admin&pass=boss";
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

fn admin_says(redis: &PrivateRedis, words: &[&str]) {
    cmd(words[0]).arg(&words[1..]).exec(&mut admin(redis)).unwrap();
}

/// With a user `admin` who stays.
fn guarded_redis() -> PrivateRedis {
    let admin = ["--user", "admin", "on", ">boss", "~*", "&*", "+@all"];
    PrivateRedis::start_with(&[&admin[..], &["--requirepass", "first"]].concat())
}

#[test]
fn redis_is_told_the_password_of_the_moment() {
    clean_process(|| {
        let redis = guarded_redis();
        for query in ["", "5", "?protocol=resp3"] {
            admin_says(&redis, &["CONFIG", "SET", "requirepass", "first"]);
            let tokens = Tokens::default();
            let pool = redis_pool(redis_manager(&redis, query, &tokens));
            tokens.are(Credentials::password("first"));
            assert_eq!(whoami(&mut pool.get().unwrap()), "default");
            assert_eq!(tokens.asked(), 1);
            admin_says(&redis, &["CONFIG", "SET", "requirepass", "second"]);
            // Who is there stays.
            assert_eq!(whoami(&mut pool.get().unwrap()), "default");
            assert_eq!(tokens.asked(), 1);
            pool.disconnect();
            let refused = pool.get().map(drop).unwrap_err();
            assert!(refused.is_connect() && format!("{refused:#}").contains("WRONGPASS"), "{refused:#}");
            tokens.are(Credentials::password("second"));
            assert_eq!(whoami(&mut pool.get().unwrap()), "default");
            assert_eq!(tokens.asked(), 3, "once for each connect");
            let own = testing::child(|| whoami(&mut pool.get().unwrap())).join();
            assert_eq!(own, "default");
        }
    });
}

#[test]
fn redis_is_told_the_user_of_the_moment() {
    clean_process(|| {
        let redis = guarded_redis();
        let tokens = Tokens::default();
        let pool = redis_pool(redis_manager(&redis, "", &tokens));
        for lease in ["one", "two"] {
            admin_says(&redis, &["ACL", "SETUSER", lease, "on", ">pw", "~*", "+@all"]);
            tokens.are(Credentials::new(lease, "pw"));
            assert_eq!(whoami(&mut pool.get().unwrap()), lease);
            assert_eq!(whoami(&mut pool.get().unwrap()), lease, "tested");
            pool.disconnect();
        }
        assert_eq!(tokens.asked(), 2);
    });
}

/// A session that is made as new has to say who it is, and so asks, also in the test and on return.
#[test]
fn a_redis_session_that_is_made_as_new_is_told_the_password_of_the_moment() {
    clean_process(|| {
        for (on_check_out, on_return) in [(Clean::Everything, Clean::Nothing), (Clean::Leftovers, Clean::Everything)] {
            let redis = guarded_redis();
            let tokens = Tokens::default();
            tokens.are(Credentials::password("first"));
            let manager = redis_manager(&redis, "", &tokens).on_check_out(on_check_out).on_return(on_return);
            let pool = redis_pool(manager);
            let id = |conn: &mut redis::Connection| cmd("CLIENT").arg("ID").query::<u64>(conn).unwrap();
            let first = id(&mut pool.get().unwrap());
            assert_eq!(id(&mut pool.get().unwrap()), first, "the same session");
            admin_says(&redis, &["CONFIG", "SET", "requirepass", "second"]);
            tokens.are(Credentials::password("second"));
            assert_eq!(id(&mut pool.get().unwrap()), first, "the same session, with the new password");
            // A session that has lost its user is not lent.
            tokens.are_away();
            let again = pool.get().map(drop);
            let error = again.and_then(|()| pool.get().map(drop)).unwrap_err();
            is_because_they_are_away(&error, pool.manager());
            tokens.are(Credentials::password("second"));
            assert_ne!(id(&mut pool.get().unwrap()), first);
        }
    });
}

/// For a role that may only come with a password.
struct Guarded {
    server: PrivatePostgres,
    rules: PathBuf,
}

impl Guarded {
    fn start() -> Self {
        let rules = std::env::temp_dir().join(format!("forksafe-hba-of-roles-{}", std::process::id()));
        std::fs::write(&rules, "local all all trust\nhost all all all scram-sha-256\n").unwrap();
        let server = PrivatePostgres::start_with(&["-c", &format!("hba_file={}", rules.display())]);
        let guarded = Self { server, rules };
        guarded.admin("CREATE ROLE app LOGIN PASSWORD 'first'; CREATE ROLE lease LOGIN PASSWORD 'leased'");
        guarded
    }

    fn admin(&self, what: &str) {
        self.server.unix_config().unwrap().connect(NoTls).unwrap().batch_execute(what).unwrap();
    }

    fn manager(&self, hosts: &str, tokens: &Tokens) -> PostgresManager<NoTls> {
        let (port, tokens) = (self.server.port().unwrap(), tokens.clone());
        let config = format!("{hosts} port={port} user=app password=of-the-configuration dbname=postgres");
        PostgresManager::new(config.parse().unwrap(), NoTls).credentials(move |_| tokens.ask())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.rules);
    }
}

fn user(conn: &mut postgres::Client) -> String {
    conn.query_one("SELECT current_user::text", &[]).unwrap().get(0)
}

#[test]
fn postgres_is_told_the_password_and_the_user_of_the_moment() {
    clean_process(|| {
        let guarded = Guarded::start();
        // By a name that is dialled, and by the driver.
        for hosts in ["host=localhost", "hostaddr=127.0.0.1"] {
            guarded.admin("ALTER ROLE app PASSWORD 'first'");
            let tokens = Tokens::default();
            let pool = kit::tested().max_size(1).build(guarded.manager(hosts, &tokens)).unwrap();
            tokens.are(Credentials::password("first"));
            assert_eq!(user(&mut pool.get().unwrap()), "app");
            guarded.admin("ALTER ROLE app PASSWORD 'second'");
            assert_eq!(user(&mut pool.get().unwrap()), "app");
            assert_eq!(tokens.asked(), 1, "who is there stays");
            pool.disconnect();
            let refused = pool.get().map(drop).unwrap_err();
            assert!(refused.is_connect() && format!("{refused:#}").contains("password"), "{refused:#}");
            tokens.are(Credentials::password("second"));
            assert_eq!(user(&mut pool.get().unwrap()), "app");
            pool.disconnect();
            tokens.are(Credentials::new("lease", "leased"));
            assert_eq!(user(&mut pool.get().unwrap()), "lease");
            assert_eq!(tokens.asked(), 4, "once for each connect");
            assert_eq!(testing::child(|| user(&mut pool.get().unwrap())).join(), "lease");
            pool.disconnect();
            tokens.are_away();
            let error = pool.get().map(drop).unwrap_err();
            is_because_they_are_away(&error, pool.manager());
            let ours = error.source().and_then(|source| source.downcast_ref());
            assert!(matches!(ours, Some(pg::Error::NoCredentials(_))), "{error:?}");
        }
    });
}

/// Nobody comes to a server for which there are no credentials, and the pool heals with the token service.
fn heals<M: ManageConnection + Clone>(
    manager: impl Fn(&str, Tokens) -> M,
    works: impl Fn(&Tokens) -> M,
    right: Credentials,
) {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    nobody.set_nonblocking(true).unwrap();
    let tokens = Tokens::default();
    let pool = kit::tested().build(manager(&nobody.local_addr().unwrap().port().to_string(), tokens)).unwrap();
    let begun = Instant::now();
    let error = pool.get().map(drop).unwrap_err();
    is_because_they_are_away(&error, pool.manager());
    assert!(begun.elapsed() < testing::patience() / 4, "at once");
    assert_eq!(nobody.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "dialled");

    let tokens = Tokens::default();
    let pool = kit::tested().retry_connect(true).connection_timeout(testing::patience()).build(works(&tokens)).unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| pool.get().map(drop));
        testing::wait_until("it was asked again", || tokens.asked() > 2);
        tokens.are(right);
        waits.join().unwrap().unwrap();
    });
}

#[test]
fn a_token_service_that_is_away_is_no_server_that_is_and_heals() {
    clean_process(|| {
        let redis = guarded_redis();
        let of = |port: &str, tokens: Tokens| {
            RedisManager::open(format!("redis://127.0.0.1:{port}/")).unwrap().credentials(move |_| tokens.ask())
        };
        heals(of, |tokens| redis_manager(&redis, "", tokens), Credentials::password("first"));
        let guarded = Guarded::start();
        let of = |port: &str, tokens: Tokens| {
            let config = format!("host=127.0.0.1 port={port} user=app").parse().unwrap();
            PostgresManager::new(config, NoTls).credentials(move |_| tokens.ask())
        };
        heals(of, |tokens| guarded.manager("host=localhost", tokens), Credentials::password("first"));
    });
}

/// It is told until when. What comes later is not used.
#[test]
fn credentials_that_come_too_late_are_not_used() {
    clean_process(|| {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
        nobody.set_nonblocking(true).unwrap();
        let port = nobody.local_addr().unwrap().port();
        let late = |deadline: Deadline| {
            assert!(deadline.remaining() <= Duration::from_millis(200), "the caller's: {deadline:?}");
            testing::wait_until("it is over", || deadline.is_over());
            Ok::<_, Away>(Credentials::password("late"))
        };
        let redis = RedisManager::open(format!("redis://127.0.0.1:{port}/")).unwrap().credentials(late);
        let error = kit::tested().build(redis.clone()).unwrap().get_timeout(Duration::from_millis(200)).unwrap_err();
        is_for_want_of_credentials(&error, &redis);
        let config = format!("host=127.0.0.1 port={port} user=app").parse().unwrap();
        let postgres = PostgresManager::new(config, NoTls).credentials(late);
        let error = kit::tested().build(postgres.clone()).unwrap().get_timeout(Duration::from_millis(200)).map(drop);
        is_for_want_of_credentials(&error.unwrap_err(), &postgres);
        assert_eq!(nobody.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "dialled");
    });
}

/// A panic is one of `get`, and costs no slot.
#[test]
fn a_panic_of_who_is_asked_costs_no_slot() {
    clean_process(|| {
        let redis = guarded_redis();
        let guarded = Guarded::start();
        let panics = Arc::new(AtomicBool::new(true));
        let asked = {
            let panics = Arc::clone(&panics);
            move |_| if panics.load(SeqCst) { panic!("asked") } else { Ok::<_, Away>(Credentials::password("first")) }
        };
        let of_redis = redis_pool(redis_manager(&redis, "", &Tokens::default()).credentials(asked.clone()));
        let manager = guarded.manager("host=localhost", &Tokens::default()).credentials(asked);
        let of_postgres = kit::tested().max_size(1).build(manager).unwrap();
        let caught = |get: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(get)).is_err();
        for _ in 0..3 {
            assert!(caught(&|| drop(of_redis.get())) && caught(&|| drop(of_postgres.get())));
        }
        panics.store(false, SeqCst);
        assert_eq!(whoami(&mut of_redis.get().unwrap()), "default");
        assert_eq!(user(&mut of_postgres.get().unwrap()), "app");
    });
}

/// The child of who is asked dials nothing with what was the parent's, and connects by itself.
#[test]
fn who_is_asked_may_fork() {
    clean_process(|| {
        let redis = guarded_redis();
        let guarded = Guarded::start();
        let asked = || {
            let (forks, parent) = (AtomicBool::new(true), std::process::id());
            let child = Arc::new(Mutex::new(None));
            let made = Arc::clone(&child);
            let asked = move |_: Deadline| {
                if forks.swap(false, SeqCst) {
                    *made.lock().unwrap() = fork();
                }
                Ok::<_, Away>(Credentials::password("first"))
            };
            (asked, child, parent)
        };
        fn both<M: ManageConnection>(
            pool: &Pool<M>,
            child: &Mutex<Option<i32>>,
            parent: u32,
            ask: impl Fn(&mut M::Connection) -> u64,
        ) {
            let got = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&mut pool.get().unwrap())));
            if std::process::id() != parent {
                leave(|| assert_ne!(got.unwrap(), 0));
            }
            let session = got.unwrap();
            assert_eq!(exit_code(child.lock().unwrap().unwrap()), 0);
            assert_eq!(ask(&mut pool.get().unwrap()), session, "the parent's is unharmed");
        }
        let (function, child, parent) = asked();
        let pool = redis_pool(redis_manager(&redis, "", &Tokens::default()).credentials(function));
        both(&pool, &child, parent, |conn| cmd("CLIENT").arg("ID").query(conn).unwrap());
        let (function, child, parent) = asked();
        let manager = guarded.manager("host=localhost", &Tokens::default()).credentials(function);
        let pool = kit::tested().max_size(1).build(manager).unwrap();
        both(&pool, &child, parent, |conn| {
            conn.query_one("SELECT pg_backend_pid()::int8", &[]).unwrap().get::<_, i64>(0).cast_unsigned()
        });
    });
}

/// By a driver that nobody can keep from dialling once it has begun.
#[test]
fn who_was_forked_by_who_is_asked_dials_once_as_everybody() {
    clean_process(|| {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let config = format!("hostaddr=127.0.0.1 port={} user=app", silent.local_addr().unwrap().port());
        let (forks, child) = (AtomicBool::new(true), Arc::new(Mutex::new(None)));
        let (parent, made) = (std::process::id(), Arc::clone(&child));
        let manager = PostgresManager::new(config.parse().unwrap(), NoTls).credentials(move |_| {
            if forks.swap(false, SeqCst) {
                *made.lock().unwrap() = fork();
            }
            Ok::<_, Away>(Credentials::password("any"))
        });
        let pool = kit::tested().max_size(1).build(manager).unwrap();
        let got = pool.get_timeout(Duration::from_secs(2)).map(drop);
        if std::process::id() != parent {
            leave(|| assert!(got.unwrap_err().is_connect()));
        }
        assert!(got.unwrap_err().is_connect());
        assert_eq!(exit_code(child.lock().unwrap().unwrap()), 0);
        silent.set_nonblocking(true).unwrap();
        assert_eq!(std::iter::from_fn(|| silent.accept().ok()).count(), 2, "one each");
    });
}

/// What whoever is asked connects with, to a vault say, is not taken for a part of the connection that is to be made, and not
/// given up with it.
#[test]
fn what_is_connected_meanwhile_is_another_connection() {
    clean_process(|| {
        let (vault, redis) = (PrivateRedis::start_with(&["--maxclients", "100"]), guarded_redis());
        let kept = Arc::new(Mutex::new(None));
        let (keeps, client) = (Arc::clone(&kept), redis::Client::open(vault.url()).unwrap());
        let manager = redis_manager(&redis, "", &Tokens::default()).credentials(move |_| {
            let conn = ManageConnection::connect(&client)?;
            *keeps.lock().unwrap() = Some(conn);
            Ok::<_, redis::RedisError>(Credentials::password("wrong"))
        });
        assert!(redis_pool(manager).get().unwrap_err().is_connect());
        assert!(cmd("PING").exec(kept.lock().unwrap().as_mut().unwrap()).is_ok(), "given up, too");
    });
}

/// A password changes all the while, and threads connect all the while: whoever retries gets through, in the children as well.
#[test]
fn a_password_may_change_while_connects_are_under_way() {
    clean_process(|| {
        let redis = guarded_redis();
        let tokens = Tokens::default();
        tokens.are(Credentials::password("first"));
        let builder = kit::tested().max_size(4).retry_connect(true).connection_timeout(testing::patience());
        let pool = builder.build(redis_manager(&redis, "", &tokens)).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = kit::StopOnDrop(&stop);
            scope.spawn(|| {
                for n in 0.. {
                    let next = format!("password {n}");
                    admin_says(&redis, &["CONFIG", "SET", "requirepass", &next]);
                    tokens.are(Credentials::password(next));
                    if stop.load(SeqCst) {
                        break;
                    }
                }
            });
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..30 {
                            let mut conn = pool.get().unwrap();
                            assert_eq!(whoami(&mut conn), "default");
                            forksafe::PooledConnection::discard(conn);
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        assert_eq!(testing::child(|| whoami(&mut pool.get().unwrap())).join(), "default");
    });
}

/// Tokens may be kept in another server of the same make.
#[test]
fn what_another_server_says_is_not_said_of_this_one() {
    clean_process(|| {
        let readonly = || -> redis::RedisError {
            match redis::parse_redis_value(b"-READONLY You can't write against a read only replica.\r\n") {
                Ok(redis::Value::ServerError(error)) => error.into(),
                other => panic!("{other:?}"),
            }
        };
        let redis = RedisManager::open("redis://127.0.0.1:1/").unwrap().credentials(move |_| Err(readonly()));
        is_for_want_of_credentials(&kit::tested().build(redis.clone()).unwrap().get().unwrap_err(), &redis);
        let said = || pg::Error::from(postgres::Config::new().connect(NoTls).map(drop).unwrap_err());
        let postgres = PostgresManager::new("host=127.0.0.1 port=1 user=app".parse().unwrap(), NoTls);
        assert_eq!(postgres.classify(&said()), Fault::Caller);
        let postgres = postgres.credentials(move |_| Err(said()));
        let error = kit::tested().build(postgres.clone()).unwrap().get().map(drop).unwrap_err();
        is_for_want_of_credentials(&error, &postgres);
    });
}
