//! The `postgres` crate, r2d2 with it, and sqlx.

use crate::program::{Answered, Heals, Net, Seen, answer, run, run_in_vain};
use crate::threads::{wait_until_others_sleep, with_a_thread, without_threads};
use forksafe::fork::PerProcess;
use forksafe::testing::{self, PrivatePostgres, clean_process, wait_until};
use postgres::{Client, NoTls};
use r2d2_postgres::PostgresConnectionManager;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use std::mem::ManuallyDrop;
use std::time::Duration;
use tokio::runtime::Runtime;

const QUESTION: &str = "select $1::text, pg_backend_pid()";

fn ask(client: &mut Client, word: &str) -> Answered {
    answer(client.query_one(QUESTION, &[&word]).map(|row| (row.get::<_, String>(0), row.get::<_, i32>(1))))
}

fn with_a_client(net: Net) -> Seen {
    let server = PrivatePostgres::start_with(&[]);
    run(net, || server.config().connect(NoTls).unwrap(), ask)
}

fn with_r2d2(net: Net) -> Seen {
    let server = PrivatePostgres::start_with(&[]);
    let connect = || {
        let pool = r2d2::Pool::builder().max_size(1).connection_timeout(Duration::from_millis(500));
        let pool = pool.build_unchecked(PostgresConnectionManager::new(server.config(), NoTls));
        pool.get_timeout(testing::patience()).unwrap();
        wait_until_others_sleep();
        pool
    };
    run(net, connect, |pool, word| {
        pool.get().map_err(|error| error.to_string()).and_then(|mut client| ask(&mut client, word))
    })
}

fn pool(server: &PrivatePostgres) -> PgPool {
    PgPoolOptions::new().max_connections(1).connect_lazy(server.url()).unwrap()
}

fn ask_sqlx(runtime: &Runtime, pool: &PgPool, word: &str) -> Answered {
    answer(runtime.block_on(sqlx::query_as::<_, (String, i32)>(QUESTION).bind(word).fetch_one(pool)))
}

/// A pool on a runtime that the children run as well.
fn on_one_runtime(server: &PrivatePostgres, runtime: Runtime) -> ManuallyDrop<(Runtime, PgPool)> {
    let pool = runtime.block_on(async { pool(server) });
    ManuallyDrop::new((runtime, pool))
}

fn with_sqlx_on_one_runtime(net: Net) -> Seen {
    let server = PrivatePostgres::start_with(&[]);
    run(net, || on_one_runtime(&server, without_threads()), |both, word| ask_sqlx(&both.0, &both.1, word))
}

/// A pool with one connection, on a runtime that each process makes for itself.
fn on_a_new_runtime(server: &PrivatePostgres, timeout: Duration) -> (PerProcess<Runtime>, PgPool) {
    let runtime = PerProcess::new(with_a_thread as fn() -> Runtime);
    let options = PgPoolOptions::new().max_connections(1).acquire_timeout(timeout);
    let pool = runtime.block_on(async { options.connect_lazy(server.url()).unwrap() });
    (runtime, pool)
}

fn with_sqlx_in_each_process(net: Net) -> Seen {
    let server = PrivatePostgres::start_with(&[]);
    let make = || {
        let runtime = with_a_thread();
        let pool = runtime.block_on(async { pool(&server) });
        (runtime, pool)
    };
    run(net, || PerProcess::new(make), |both, word| ask_sqlx(&both.0, &both.1, word))
}

#[test]
fn a_client_never_heals() {
    clean_process(|| with_a_client(Net::On).assert_protected(Heals::Never));
}

#[test]
fn without_the_net_a_client_is_shared() {
    clean_process(|| with_a_client(Net::Off).assert_shared());
}

#[test]
fn a_pool_of_r2d2_never_heals() {
    clean_process(|| with_r2d2(Net::On).assert_protected(Heals::Never));
}

#[test]
fn without_the_net_a_pool_of_r2d2_is_shared() {
    clean_process(|| with_r2d2(Net::Off).assert_shared());
}

/// The pool connects anew, and nobody is there who would be told that it has.
#[test]
fn sqlx_on_an_inherited_runtime_with_a_thread_hangs() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let connect = || on_one_runtime(&server, with_a_thread());
        let seen = run_in_vain(Net::On, connect, |both, word| ask_sqlx(&both.0, &both.1, word));
        seen.assert_protected(Heals::Hangs);
    });
}

#[test]
fn sqlx_on_an_inherited_runtime_without_threads_heals_at_once() {
    clean_process(|| with_sqlx_on_one_runtime(Net::On).assert_protected(Heals::AtOnce));
}

/// It comes back some time after an answer, by a task of the runtime.
#[test]
fn sqlx_on_a_new_runtime_heals_at_once_if_its_connection_was_back() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let seen = run(
            Net::On,
            || ManuallyDrop::new(on_a_new_runtime(&server, testing::patience())),
            |both, word| {
                let answered = ask_sqlx(&both.0, &both.1, word);
                wait_until("the connection is back", || both.1.num_idle() == 1);
                answered
            },
        );
        seen.assert_protected(Heals::AtOnce);
    });
}

#[test]
fn sqlx_on_a_new_runtime_never_heals_if_its_connection_was_lent() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let parent = std::process::id();
        let connect = || {
            let (runtime, pool) = on_a_new_runtime(&server, Duration::from_secs(4));
            let lent = runtime.block_on(pool.acquire()).unwrap();
            ManuallyDrop::new((runtime, pool, lent))
        };
        let seen = run(Net::On, connect, |all, word| {
            let (runtime, pool, lent) = &mut **all;
            if std::process::id() != parent {
                return ask_sqlx(runtime, pool, word);
            }
            let question = sqlx::query_as::<_, (String, i32)>(QUESTION).bind(word);
            answer(runtime.block_on(question.fetch_one(&mut **lent)))
        });
        seen.assert_protected(Heals::Never);
    });
}

#[test]
fn sqlx_for_each_process_is_right() {
    clean_process(|| with_sqlx_in_each_process(Net::On).assert_protected(Heals::AtOnce));
}

#[test]
fn without_the_net_sqlx_is_shared() {
    clean_process(|| with_sqlx_on_one_runtime(Net::Off).assert_shared());
}
