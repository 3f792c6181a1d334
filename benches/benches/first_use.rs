//! What a worker waits for its first answer from Redis: through an inherited pool, and through the driver alone.
//!
//! In both cases the master has used Redis itself and still has that connection open. The clock starts when `fork` has
//! returned in the child. Finding the driver's socket means looking through the descriptors of the process, so their
//! number matters.

use forksafe::Pool;
use forksafe::testing::PrivateRedis;
use forksafe_benches::subject::{self, Sample, Subject};
use forksafe_benches::{descriptors, forking};
use redis::{Client, Connection, cmd};
use std::time::Instant;

const DESCRIPTORS: [usize; 2] = [100, 10_000];
const KINDS: [&str; 2] = ["driver", "pool"];

fn main() {
    let limit = descriptors::raise_limit();
    subject::serve(prepare);

    let redis = PrivateRedis::start();
    println!("first answer from Redis in a child, µs (medians of 400)");
    println!("{:>11} {:>10} {:>10} {:>10}", "descriptors", "driver", "pool", "more");
    for descriptors in DESCRIPTORS {
        if descriptors as u64 + 100 > limit {
            println!("{descriptors:>11} this process may open only {limit}");
            continue;
        }
        let mut subjects = KINDS.map(|kind| Subject::start(&[kind, redis.url(), &descriptors.to_string()]));
        subject::take_turns(&mut subjects, 40, 10);
        let [driver, pool] = subjects.each_ref().map(|subject| subject::median([subject]));
        println!("{descriptors:>11} {driver:>10.1} {pool:>10.1} {:>10.1}", pool - driver);
    }
}

fn prepare(case: &[&str]) -> Sample {
    let &[kind, url, total] = case else { panic!("no such case: {case:?}") };
    let total: usize = total.parse().expect("a number of descriptors");
    // First, so that Redis gets the highest number: no search from below finds it early.
    let others = descriptors::fill_up(total - 1);
    let client = Client::open(url).expect("an address of Redis");
    match kind {
        "driver" => {
            let mut masters = client.get_connection().expect("a connection");
            ask(&mut masters);
            sampling((others, masters), move || ask(&mut client.get_connection().expect("a connection")))
        }
        "pool" => {
            let pool = Pool::new(client).expect("a pool");
            ask(&mut pool.get().expect("a connection"));
            sampling(others, move || ask(&mut pool.get().expect("a connection")))
        }
        _ => panic!("no such kind: {kind}"),
    }
}

fn ask(connection: &mut Connection) {
    cmd("PING").exec(connection).expect("an answer");
}

/// The time of `first_use` in a child that has inherited something.
fn sampling(inherited: impl Sized + 'static, first_use: impl Fn() + 'static) -> Sample {
    Box::new(move || {
        let _inherited = &inherited;
        forking::in_child(|_| {
            let start = Instant::now();
            first_use();
            start.elapsed()
        })
    })
}
