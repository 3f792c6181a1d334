//! What a worker waits for its first answer from Redis or PostgreSQL: through an inherited pool, and through the driver
//! alone.
//!
//! In both cases the master has used the server itself and still has that connection open. The clock starts when `fork`
//! has returned in the child. Finding the drivers' descriptors may mean looking through all of the process's, so their
//! number matters.

use forksafe::postgres::PostgresManager;
use forksafe::testing::{PrivatePostgres, PrivateRedis};
use forksafe::{ManageConnection, Pool};
use forksafe_benches::subject::{self, Sample, Subject};
use forksafe_benches::{descriptors, forking};
use std::time::Instant;

const DESCRIPTORS: [usize; 2] = [100, 10_000];
const KINDS: [&str; 2] = ["driver", "pool"];

fn main() {
    let limit = descriptors::raise_limit();
    subject::serve(prepare);

    measure("redis", PrivateRedis::start().url(), limit);
    measure("postgres", PrivatePostgres::start().url(), limit);
}

fn measure(server: &str, url: &str, limit: u64) {
    println!("first answer from {server} in a child, µs (medians of 400)");
    println!("{:>11} {:>10} {:>10} {:>10}", "descriptors", "driver", "pool", "more");
    for descriptors in DESCRIPTORS {
        if descriptors as u64 + 100 > limit {
            println!("{descriptors:>11} this process may open only {limit}");
            continue;
        }
        let mut subjects = KINDS.map(|kind| Subject::start(&[server, kind, url, &descriptors.to_string()]));
        subject::take_turns(&mut subjects, 40, 10);
        let [driver, pool] = subjects.each_ref().map(|subject| subject::median([subject]));
        println!("{descriptors:>11} {driver:>10.1} {pool:>10.1} {:>10.1}", pool - driver);
    }
}

fn prepare(case: &[&str]) -> Sample {
    let &[server, kind, url, total] = case else { panic!("no such case: {case:?}") };
    // First, so that the connection gets the highest number: no search from below finds it early.
    let others = descriptors::fill_up(total.parse::<usize>().expect("a number of descriptors") - 1);
    match server {
        "redis" => {
            let client = redis::Client::open(url).expect("an address of Redis");
            first_uses(kind, others, client, |conn| redis::cmd("PING").exec(conn).expect("an answer"))
        }
        _ => {
            let manager = PostgresManager::new(url.parse().expect("a url"), postgres::NoTls);
            first_uses(kind, others, manager, |conn| drop(conn.query_one("SELECT 1", &[]).expect("an answer")))
        }
    }
}

fn first_uses<M: ManageConnection>(
    kind: &str,
    others: impl Sized + 'static,
    manager: M,
    ask: fn(&mut M::Connection),
) -> Sample {
    match kind {
        "driver" => {
            let mut masters = manager.connect().expect("a connection");
            ask(&mut masters);
            sampling((others, masters), move || {
                let mut own = manager.connect().expect("a connection");
                ask(&mut own);
                own
            })
        }
        "pool" => {
            let pool = Pool::new(manager).expect("a pool");
            ask(&mut pool.get().expect("a connection"));
            sampling(others, move || {
                let mut own = pool.get().expect("a connection");
                ask(&mut own);
                own
            })
        }
        _ => panic!("no such kind: {kind}"),
    }
}

/// The time of `first_use` in a child that has inherited something. What it returns is left to the end of the process.
fn sampling<T>(inherited: impl Sized + 'static, first_use: impl Fn() -> T + 'static) -> Sample {
    Box::new(move || {
        let _inherited = &inherited;
        forking::in_child(|_| {
            let start = Instant::now();
            let used = first_use();
            let time = start.elapsed();
            std::mem::forget(used);
            time
        })
    })
}
