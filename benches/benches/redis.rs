//! A real Redis over a unix socket, one GET a turn, eight threads: pools with their defaults, beside a connection for each thread,
//! which is the best that there can be.

use forksafe::testing::PrivateRedis;
use forksafe_benches::crowd::{Day, Done, Turns, crowd};
use forksafe_benches::is_rehearsal;
use std::time::Duration;

const THREADS: usize = 8;

/// What one thread does.
type Work = Box<dyn Fn(&mut Turns) + Sync>;

fn main() {
    let (rounds, time) = if is_rehearsal() { (1, Duration::from_millis(20)) } else { (9, Duration::from_millis(700)) };
    let server = PrivateRedis::start();
    let url = server.unix_url().expect("a private server has one");
    let client = redis::Client::open(url.as_str()).expect("an address of Redis");

    let ours = forksafe::Pool::new(client.clone()).expect("a pool");
    let theirs = r2d2::Pool::new(client.clone()).expect("a pool");
    let untested = r2d2::Pool::builder().test_on_check_out(false).build(client.clone()).expect("a pool");
    let works: [(&str, Work); 4] = [
        ("a connection for each thread", {
            Box::new(move |turns| {
                let mut conn = client.get_connection().expect("a connection");
                while turns.goes_on() {
                    get(&mut conn);
                    turns.has_it();
                }
            })
        }),
        ("forksafe", {
            Box::new(move |turns| {
                while turns.goes_on() {
                    get(&mut *ours.get().expect("a connection"));
                    turns.has_it();
                }
            })
        }),
        ("r2d2", {
            Box::new(move |turns| {
                while turns.goes_on() {
                    get(&mut *theirs.get().expect("a connection"));
                    turns.has_it();
                }
            })
        }),
        ("r2d2, test_on_check_out(false)", {
            Box::new(move |turns| {
                while turns.goes_on() {
                    get(&mut *untested.get().expect("a connection"));
                    turns.has_it();
                }
            })
        }),
    ];
    let mut done: Vec<Vec<Done>> = works.iter().map(|_| Vec::new()).collect();
    let day = Day { holds: Box::new(|| ()), thinks: Box::new(|| ()) };
    for _ in 0..rounds {
        for ((_, work), done) in works.iter().zip(&mut done) {
            done.push(crowd(THREADS, time, &day, work));
        }
    }
    println!("| {THREADS} threads, Redis over a unix socket | GETs in a second | p99.9, µs |\n| --- | ---: | ---: |");
    for ((name, _), rounds) in works.iter().zip(&done) {
        let median = |figure: &dyn Fn(&Done) -> f64| {
            let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        println!("| {name} | {:.0} | {:.0} |", median(&|done| done.rate), median(&|done| done.wait(99.9)));
    }
}

fn get(conn: &mut dyn redis::ConnectionLike) {
    let _: Option<String> = redis::cmd("GET").arg("key").query(conn).expect("an answer");
}
