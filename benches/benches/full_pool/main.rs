//! More threads than connections: throughput, waits and fairness, beside the peers in one run.
//!
//! The pools take turns, so that whatever else the machine does hits all of them alike; each figure is the median of its
//! rounds.

mod contenders;
mod plot;

use clap::Parser;
use contenders::NAMES;
use forksafe_benches::crowd::{Day, Done, crowd};
use forksafe_benches::is_rehearsal;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{hint, thread};

#[derive(Parser)]
struct Arguments {
    /// Rounds of each pool in each case
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a round lasts, in milliseconds
    #[arg(long, default_value_t = 700)]
    time: u64,
    /// The pools, by parts of their names
    #[arg(long, num_args = 1..)]
    pools: Vec<String>,
    /// Only cases whose names contain this
    #[arg(long, default_value = "")]
    case: String,
    /// Microseconds that a thread is busy between two turns
    #[arg(long, default_value_t = 0)]
    think: u64,
    /// Draws throughput and waits over threads, into this folder
    #[arg(long)]
    svg: Option<PathBuf>,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a thread does with its connection.
#[derive(Clone, Copy)]
enum Hold {
    Spins(Duration),
    Sleeps(Duration),
}

impl Hold {
    fn hold(self) {
        match self {
            Self::Spins(time) => {
                let began = Instant::now();
                while began.elapsed() < time {
                    hint::spin_loop();
                }
            }
            Self::Sleeps(time) => thread::sleep(time),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Spins(time) => format!("{time:?} spinning"),
            Self::Sleeps(time) => format!("{time:?} asleep"),
        }
    }
}

const CROWDS: [(usize, u32); 4] = [(4, 2), (16, 5), (64, 10), (200, 20)];
const HOLDS: [Hold; 4] = [
    Hold::Spins(Duration::from_nanos(500)),
    Hold::Spins(Duration::from_micros(10)),
    Hold::Sleeps(Duration::from_micros(100)),
    Hold::Sleeps(Duration::from_millis(1)),
];

/// One pool in one case: the medians of its rounds.
struct Figures {
    /// Turns in a second.
    rate: f64,
    fairness: f64,
    /// Microseconds.
    p50: f64,
    p999: f64,
}

impl Figures {
    fn of(rounds: &[Done]) -> Self {
        let median = |figure: &dyn Fn(&Done) -> f64| {
            let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
            figures.sort_by(f64::total_cmp);
            figures[figures.len() / 2]
        };
        Self {
            rate: median(&|done| done.rate),
            fairness: median(&|done| done.fairness),
            p50: median(&|done| done.wait(50.0)),
            p999: median(&|done| done.wait(99.9)),
        }
    }
}

impl Arguments {
    fn names(&self) -> Vec<&'static str> {
        let wanted = |name: &&str| self.pools.is_empty() || self.pools.iter().any(|part| name.contains(part));
        NAMES.into_iter().filter(wanted).collect()
    }

    fn measure(&self, threads: usize, connections: u32, hold: Hold) -> Vec<(&'static str, Figures)> {
        let names = self.names();
        let works: Vec<_> = names.iter().map(|name| contenders::open(name, connections)).collect();
        let mut done = vec![Vec::new(); names.len()];
        let thinks = Hold::Spins(Duration::from_micros(self.think));
        let day = Day { holds: Box::new(move || hold.hold()), thinks: Box::new(move || thinks.hold()) };
        for _ in 0..self.rounds {
            for (work, done) in works.iter().zip(&mut done) {
                done.push(crowd(threads, Duration::from_millis(self.time), &day, work));
            }
        }
        names.into_iter().zip(done.iter().map(|rounds| Figures::of(rounds))).collect()
    }
}

fn main() {
    let mut arguments = Arguments::parse();
    if is_rehearsal() {
        (arguments.rounds, arguments.time) = (1, 20);
    }
    println!("| threads / connections, held | pool | kops/s | p50 of the wait, µs | p99.9, µs | fairness |");
    println!("| --- | --- | ---: | ---: | ---: | ---: |");
    for (threads, connections) in CROWDS {
        for hold in HOLDS {
            let case = format!("{threads} / {connections}, {}", hold.name());
            if !case.contains(&arguments.case) {
                continue;
            }
            for (name, Figures { rate, fairness, p50, p999 }) in arguments.measure(threads, connections, hold) {
                println!("| {case} | {name} | {:.1} | {p50:.1} | {p999:.0} | {fairness:.2} |", rate / 1000.0);
            }
        }
    }
    if let Some(folder) = &arguments.svg {
        plot::draw(&arguments, folder).expect("drawing");
    }
}
