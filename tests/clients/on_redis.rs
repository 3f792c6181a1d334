//! The `redis` crate, r2d2 with it, and deadpool-redis.

use crate::program::{Answered, Heals, Net, Seen, answer, run, run_in_vain};
use crate::threads::{wait_until_others_sleep, with_a_thread, without_threads};
use deadpool_redis::{Config, Pool, Runtime as DeadpoolRuntime};
use forksafe::fork::PerProcess;
use forksafe::testing::{self, PrivateRedis, clean_process};
use redis::{Client, Connection, Pipeline};
use std::mem::ManuallyDrop;
use std::time::Duration;
use tokio::runtime::Runtime;

fn question(word: &str) -> Pipeline {
    let mut question = redis::pipe();
    question.cmd("ECHO").arg(word).cmd("CLIENT").arg("ID");
    question
}

fn ask(conn: &mut Connection, word: &str) -> Answered {
    answer(question(word).query::<(String, u64)>(conn))
}

fn with_a_connection(net: Net) -> Seen {
    let server = PrivateRedis::start();
    run(net, || Client::open(server.url()).and_then(|client| client.get_connection()).unwrap(), ask)
}

fn with_r2d2(net: Net) -> Seen {
    let server = PrivateRedis::start();
    let connect = || {
        let pool = r2d2::Pool::builder().max_size(1).connection_timeout(Duration::from_millis(500));
        let pool = pool.build_unchecked(Client::open(server.url()).unwrap());
        pool.get_timeout(testing::patience()).unwrap();
        wait_until_others_sleep();
        pool
    };
    run(net, connect, |pool, word| {
        pool.get().map_err(|error| error.to_string()).and_then(|mut conn| ask(&mut conn, word))
    })
}

fn pool(server: &PrivateRedis) -> Pool {
    let pool = Config::from_url(server.url()).builder().unwrap();
    pool.max_size(1).runtime(DeadpoolRuntime::Tokio1).build().unwrap()
}

fn ask_deadpool(runtime: &Runtime, pool: &Pool, word: &str) -> Answered {
    runtime.block_on(async {
        let mut conn = pool.get().await.map_err(|error| error.to_string())?;
        answer(question(word).query_async::<(String, u64)>(&mut conn).await)
    })
}

fn with_deadpool_on(net: Net, runtime: fn() -> Runtime) -> Seen {
    let server = PrivateRedis::start();
    let connect = || ManuallyDrop::new((runtime(), pool(&server)));
    run_in_vain(net, connect, |both, word| ask_deadpool(&both.0, &both.1, word))
}

fn with_deadpool_on_an_inherited_runtime(net: Net) -> Seen {
    let server = PrivateRedis::start();
    let connect = || ManuallyDrop::new((without_threads(), pool(&server)));
    run(net, connect, |both, word| ask_deadpool(&both.0, &both.1, word))
}

fn with_deadpool_on_a_new_runtime(net: Net) -> Seen {
    let server = PrivateRedis::start();
    let connect = || ManuallyDrop::new((PerProcess::new(with_a_thread), pool(&server)));
    run(net, connect, |both, word| ask_deadpool(&both.0, &both.1, word))
}

fn with_deadpool_in_each_process(net: Net) -> Seen {
    let server = PrivateRedis::start();
    let make = || (with_a_thread(), pool(&server));
    run(net, || PerProcess::new(make), |both, word| ask_deadpool(&both.0, &both.1, word))
}

#[test]
fn a_connection_never_heals() {
    clean_process(|| with_a_connection(Net::On).assert_protected(Heals::Never));
}

#[test]
fn without_the_net_a_connection_is_shared() {
    clean_process(|| with_a_connection(Net::Off).assert_shared());
}

#[test]
fn a_pool_of_r2d2_never_heals() {
    clean_process(|| with_r2d2(Net::On).assert_protected(Heals::Never));
}

#[test]
fn without_the_net_a_pool_of_r2d2_is_shared() {
    clean_process(|| with_r2d2(Net::Off).assert_shared());
}

#[test]
fn deadpool_on_an_inherited_runtime_with_a_thread_hangs() {
    clean_process(|| with_deadpool_on(Net::On, with_a_thread).assert_protected(Heals::Hangs));
}

#[test]
fn deadpool_on_an_inherited_runtime_without_threads_heals_at_once() {
    clean_process(|| with_deadpool_on_an_inherited_runtime(Net::On).assert_protected(Heals::AtOnce));
}

#[test]
fn deadpool_on_a_new_runtime_heals_when_it_has_waited_in_vain_for_an_answer() {
    clean_process(|| {
        let seen = with_deadpool_on_a_new_runtime(Net::On);
        seen.assert_protected(Heals::AtOnce);
        seen.assert_first_takes(Duration::from_millis(500));
    });
}

#[test]
fn deadpool_for_each_process_is_right() {
    clean_process(|| with_deadpool_in_each_process(Net::On).assert_protected(Heals::AtOnce));
}

#[test]
fn without_the_net_deadpool_is_shared() {
    clean_process(|| with_deadpool_on(Net::Off, without_threads).assert_shared());
}
