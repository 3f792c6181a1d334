//! The cluster beside Puma and gunicorn: the same handler (one GET of Redis through a pool), the same number of workers and threads, the
//! same load by `wrk`, all in one run.

mod contender;
mod ours;
mod wrk;

use contender::{ALL, Contender, Running, Settings};
use forksafe::testing::PrivateRedis;
use forksafe_benches::is_rehearsal;
use std::env;
use std::fs;
use std::thread;
use std::time::Duration;
use wrk::{Load, Outcome};

/// As many clients as there are threads: each has one of its own.
const KEEPS: Load = Load { what: "keep-alive, 10 clients", clients: 10, closes: false };
const CLOSES: Load = Load { what: "a connection for each request, 50 clients", clients: 50, closes: true };

/// Medians of so many.
const ROUNDS: usize = 5;

/// Two hundred megabytes.
const TABLE: usize = 2_000_000;

fn main() {
    if env::args().nth(1).as_deref() == Some("serve") {
        return ours::serve();
    }
    let redis = PrivateRedis::start();
    let client = redis::Client::open(redis.url()).expect("an address of Redis");
    let set = redis::cmd("SET").arg("key").arg("x".repeat(100)).exec(&mut client.get_connection().expect("Redis"));
    set.expect("SET");
    let folder = env::temp_dir().join(format!("forksafe-servers-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let settings = Settings {
        workers: 2,
        threads: 5,
        table: 0,
        redis: redis.url().to_owned(),
        address: String::new(),
        booted: folder.join("booted"),
    };
    if is_rehearsal() {
        rehearse(&settings);
    } else {
        let wanted =
            |what| env::args().any(|argument| argument == what) || !env::args().any(|it| it.starts_with("only-"));
        if wanted("only-loads") {
            measure_loads(&settings);
        }
        if wanted("only-costs") {
            measure_costs(&settings);
        }
    }
    let _ = fs::remove_dir_all(folder);
}

/// Whether it still works, as far as the programs are here.
fn rehearse(settings: &Settings) {
    for contender in ALL {
        if !contender.is_there() {
            println!("NOT RUN: {} is not installed: cargo xtask bench-servers --install", contender.name());
            continue;
        }
        let running = Running::start(contender, settings, true);
        let answer = minreq::get(running.url()).send().expect("an answer");
        assert_eq!((answer.status_code, answer.as_bytes().len()), (200, 100), "{}", contender.name());
    }
}

/// How much they do, and how fast.
fn measure_loads(settings: &Settings) {
    let seconds = Duration::from_secs;
    println!("| | load | requests/s | processor time of the server for each | p50 | p99 | failed |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for load in [KEEPS, CLOSES] {
        let outcomes = in_turns(ROUNDS, |contender| {
            let running = Running::start(contender, settings, true);
            wrk::outcome(wrk::start(&running.url(), load, seconds(1)));
            let before = running.processor_time();
            let outcome = wrk::outcome(wrk::start(&running.url(), load, seconds(4)));
            (outcome, (running.processor_time() - before).as_secs_f64() * 1e6 / outcome.requests)
        });
        report(load.what, &outcomes);
    }
    for (load, what) in
        [(KEEPS, "keep-alive, during a phased restart"), (CLOSES, "a connection each, during a phased restart")]
    {
        let outcomes = in_turns(ROUNDS, |contender| {
            let running = Running::start(contender, settings, false);
            wrk::outcome(wrk::start(&running.url(), load, seconds(1)));
            let wrk = wrk::start(&running.url(), load, seconds(6));
            thread::sleep(seconds(1));
            running.restart();
            (wrk::outcome(wrk), f64::NAN) // Some of those who had it are gone.
        });
        report(what, &outcomes);
    }
}

/// What workers take until they serve, and what they hold.
fn measure_costs(settings: &Settings) {
    println!("\n| | from 0 to 50 workers | one worker more, beside a table of 200 MB |\n| --- | ---: | ---: |");
    let boots = in_turns(ROUNDS, |contender| {
        let settings = Settings { workers: 50, ..settings.clone() };
        Running::start(contender, &settings, true).boot.as_secs_f64()
    });
    let costs = in_turns(1, |contender| {
        let of = |workers| pss(contender, &Settings { workers, table: TABLE, ..settings.clone() });
        (of(10) - of(2)) / 8.0
    });
    for ((contender, boots), (_, costs)) in boots.iter().zip(&costs) {
        println!("| {} | {:.2} s | {:.1} MB |", contender.name(), median(boots, |time| *time), costs[0]);
    }
}

/// Of master and workers together, in MB, after 10,000 requests or so.
fn pss(contender: Contender, settings: &Settings) -> f64 {
    let running = Running::start(contender, settings, true);
    let load = Load { clients: 5 * settings.workers as u32, ..CLOSES };
    wrk::outcome(wrk::start(&running.url(), load, Duration::from_secs(10)));
    let of = |pid: &u32| -> f64 {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("Pss");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1000.0
    };
    running.workers().iter().chain([&running.master()]).map(of).sum()
}

/// The contenders take turns.
fn in_turns<T>(rounds: usize, mut measure: impl FnMut(Contender) -> T) -> Vec<(Contender, Vec<T>)> {
    let mut all: Vec<(Contender, Vec<T>)> = ALL.iter().map(|contender| (*contender, Vec::new())).collect();
    for _ in 0..rounds {
        all.iter_mut().for_each(|(contender, figures)| figures.push(measure(*contender)));
    }
    all
}

/// Outcomes, and microseconds of a processor for each request.
fn report(what: &str, all: &[(Contender, Vec<(Outcome, f64)>)]) {
    for (contender, outcomes) in all {
        let of = |figure: fn(&Outcome) -> f64| median(outcomes, |(outcome, _)| figure(outcome));
        let failed: u64 = outcomes.iter().map(|(outcome, _)| outcome.failed).sum();
        let (rate, p50, p99) = (of(|it| it.rate), of(|it| it.p50), of(|it| it.p99));
        let work = median(outcomes, |(_, work)| *work);
        let work = if work.is_nan() { String::new() } else { format!("{work:.1} µs") };
        println!("| {} | {what} | {rate:.0} | {work} | {p50:.2} ms | {p99:.1} ms | {failed} |", contender.name());
    }
}

fn median<T>(all: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    let mut figures: Vec<f64> = all.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
