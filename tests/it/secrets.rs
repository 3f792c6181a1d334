//! No error and no `Debug` shows a password: not of a url that makes no sense, nor of one that is refused, nor of whatever holds one.

use crate::kit;
use crate::redis_fake::{Fake, Says, says};
use forksafe::postgres::{OnReturn, PostgresManager};
use forksafe::redis::{Clean, RedisManager, Test};
use forksafe::testing::{PrivatePostgres, PrivateRedis, clean_process};
use forksafe::{Attempt, Credentials, Deadline, ManageConnection};
use postgres::NoTls;
use std::error::Error as StdError;
use std::fmt::Debug;

const SECRET: &str = "s3cr3t";
/// The same as urls may have it: encoded in part.
const ENCODED: &str = "s3c%723t";

#[track_caller]
fn is_silent(shown: &str) {
    assert!(!shown.is_empty() && !shown.contains(SECRET) && !shown.contains(ENCODED), "{shown}");
}

#[track_caller]
fn debug_is_silent(holder: &dyn Debug) {
    is_silent(&format!("{holder:?}"));
    is_silent(&format!("{holder:#?}"));
}

/// With all that it says of its sources.
#[track_caller]
fn error_is_silent(error: &(dyn StdError + 'static)) {
    let mut next = Some(error);
    while let Some(error) = next {
        is_silent(&format!("{error} {error:#}"));
        debug_is_silent(&error);
        next = error.source();
    }
}

/// Of a pool that cannot connect: all that can be shown.
#[track_caller]
fn pool_is_silent<M: ManageConnection + Debug + Clone>(manager: &M) {
    debug_is_silent(manager);
    is_silent(&(manager.target() + "."));
    let builder = kit::tested::<M>().name("orders");
    debug_is_silent(&builder);
    let pool = builder.build(manager.clone()).unwrap();
    debug_is_silent(&pool);
    debug_is_silent(&pool.downgrade());
    let error = pool.get().map(drop).unwrap_err();
    assert!(error.is_connect(), "{error:?}");
    error_is_silent(&error);
    error_is_silent(&std::io::Error::from(error));
    // And as whoever wraps it gets it, without a pool.
    let error = manager.connect().map(drop).unwrap_err();
    error_is_silent(&error);
    let mut attempt = Attempt::new(Deadline::after(forksafe::testing::patience()));
    error_is_silent(&manager.connect_within(&mut attempt).map(drop).unwrap_err());
    debug_is_silent(&attempt);
}

#[test]
fn a_redis_url_that_makes_no_sense_is_not_repeated() {
    for url in [
        "redis://:s3cr3t@",
        "redis://:s3cr3t@/5",
        "redis://user:s3cr3t@host:port/",
        "redis://user:s3cr3t@host/database",
        "redis://user:s3cr3t@host/?protocol=resp7",
        "redis://user:s3c/r3t@host/",
        "redis://:s3c%723t@0.0.0.0/",
        "redis://user:s3c%723t%ff@host/",
        "rediss://user:s3cr3t@host/#s3cr3t",
        "http://user:s3cr3t@host/",
        "redis+unix:///run/redis.sock?pass=s3cr3t&db=five",
        "user:s3cr3t@host",
    ] {
        let Err(error) = RedisManager::open(url) else { panic!("{url} makes sense") };
        error_is_silent(&error);
    }
}

#[test]
fn a_redis_url_that_is_refused_shows_no_password() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--requirepass", "another"]);
        let (address, unix) = (redis.address(), redis.unix_url().unwrap());
        for url in [
            format!("redis://:{SECRET}@{address}/"),
            format!("redis://user:{ENCODED}@{address}/5"),
            format!("redis://user:{SECRET}@{address}/?protocol=resp3"),
            format!("redis://{address}/5?pass={SECRET}&password={SECRET}"),
            format!("{unix}?pass={SECRET}"),
            format!("{unix}?user=user&pass={ENCODED}&db=3&protocol=resp3"),
        ] {
            let client = redis::Client::open(url.as_str()).unwrap();
            pool_is_silent(&client);
            let test = Test::command({
                let mut cmd = redis::cmd("AUTH");
                cmd.arg(SECRET);
                cmd
            });
            pool_is_silent(&RedisManager::new(client).test(test).on_check_out(Clean::Everything));
        }
        for credentials in [Credentials::password(SECRET), Credentials::new("user", SECRET)] {
            debug_is_silent(&credentials);
            let manager = RedisManager::open(redis.url()).unwrap();
            pool_is_silent(&manager.credentials(move |_| Ok::<_, std::io::Error>(credentials.clone())));
        }
    });
}

/// What a server repeats of the command that it refuses.
#[test]
fn a_server_that_repeats_the_password_is_not_repeated() {
    clean_process(|| {
        for code in ["ERR", "NOPERM", "WRONGPASS", "DENIED", SECRET] {
            for hangs_up in [false, true] {
                let fake = Fake::start(move |_, command, words| match words[0].as_str() {
                    _ if hangs_up && command > 0 => Says::HangUp,
                    _ => says(format!("-{code} unknown command, with args beginning with: {}\r\n", words.join(" "))),
                });
                for query in ["", "5", "?protocol=resp3"] {
                    let url = format!("redis://user:{SECRET}@{}/{query}", fake.address);
                    pool_is_silent(&redis::Client::open(url.as_str()).unwrap());
                    let manager = RedisManager::open(format!("{}{query}", fake.url())).unwrap();
                    let asked = |_| Ok::<_, std::io::Error>(Credentials::new(SECRET, SECRET));
                    pool_is_silent(&manager.credentials(asked));
                }
            }
        }
    });
}

#[test]
fn a_postgres_configuration_that_is_refused_shows_no_password() {
    clean_process(|| {
        let rules = std::env::temp_dir().join(format!("forksafe-hba-of-secrets-{}", std::process::id()));
        std::fs::write(&rules, "local all all trust\nhost all all all scram-sha-256\n").unwrap();
        let server = PrivatePostgres::start_with(&["-c", &format!("hba_file={}", rules.display())]);
        let mut admin = server.unix_config().unwrap().connect(NoTls).unwrap();
        admin.batch_execute("CREATE ROLE app LOGIN PASSWORD 'right'").unwrap();
        let port = server.port().unwrap();
        for text in [
            format!("host=localhost port={port} user=app password={SECRET} dbname=postgres"),
            format!("host=localhost port={port} user=app password='{SECRET} x' sslmode=require"),
            format!("hostaddr=127.0.0.1 port={port} user=nobody password={SECRET}"),
            format!("postgresql://app:{SECRET}@127.0.0.1:{port}/postgres"),
            // It should have been encoded.
            format!("postgresql://app:pa@{SECRET}@127.0.0.1:{port}/postgres"),
            format!("postgresql://app:{ENCODED}@127.0.0.1:{port},localhost:{port}/nowhere"),
            format!("postgresql://127.0.0.1:{port}/postgres?user=app&password={SECRET}"),
            format!("postgresql://app:{SECRET}@%2Fnowhere:{port}/postgres"),
        ] {
            let manager = PostgresManager::new(text.parse().unwrap(), NoTls);
            pool_is_silent(&manager);
            pool_is_silent(&manager.on_return(OnReturn::DiscardAll).test_query(format!("SELECT '{SECRET}'")));
        }
        let config = format!("host=localhost port={port} user=app dbname=postgres");
        let asked = |_| Ok::<_, std::io::Error>(Credentials::password(SECRET));
        pool_is_silent(&PostgresManager::new(config.parse().unwrap(), NoTls).credentials(asked));
        std::fs::remove_file(rules).unwrap();
    });
}

#[test]
fn a_postgres_configuration_that_makes_no_sense_is_not_repeated() {
    for text in [
        "host=localhost user=app password=s3cr3t port=none",
        "host=localhost user=app password=s3cr3t sslmode=maybe",
        "host=localhost user=app password='s3cr3t",
        "host=localhost user=app password=s3cr3t connect_timeout=soon",
        "postgresql://app:s3cr3t@localhost:port/postgres",
        "postgresql://app:s3cr3t",
        "postgresql://app:s3cr3t@localhost/postgres?nothing=1",
    ] {
        error_is_silent(&text.parse::<postgres::Config>().map(drop).unwrap_err());
    }
}
