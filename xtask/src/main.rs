//! The chores of this repository. `cargo xtask test` is all that a newcomer needs.

mod minimal;
mod needs;
mod postgres;
mod preload;
mod redis;
mod soak;
mod steps;
mod test;
mod verify;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use steps::Steps;
use xshell::{Shell, cmd};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Runs all tests, checks each feature alone, tests both TLS libraries, and drives the example
    Test {
        /// Install what is missing (Debian's packages, as root)
        #[arg(long)]
        install: bool,
    },
    /// Formatting, lints, benchmarks that work, documentation, and the lowest versions of what the library depends on
    Ci,
    /// Random children that do random things for a long time, all checked all the while
    Soak {
        /// `10m`, `2h 30m`
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
        duration: Duration,
        /// Makes the choices of an earlier run
        #[arg(long)]
        seed: Option<u64>,
        /// Only this one of them, again and again
        #[arg(long, requires = "seed")]
        round: Option<u64>,
    },
    /// The cluster beside Puma and gunicorn, under wrk: some six minutes
    BenchServers {
        /// Install what is missing (Debian's packages, as root)
        #[arg(long)]
        install: bool,
    },
    /// Looks for what tests do not see
    Verify {
        /// With this one only
        with: Option<verify::Tool>,
        /// Install what is missing (Debian's packages, as root)
        #[arg(long)]
        install: bool,
        /// For valgrind: the tests to run, by parts of their names
        #[arg(long, value_name = "NAME", num_args = 1.., default_values = verify::UNDER_VALGRIND)]
        tests: Vec<String>,
    },
}

/// Prints the error and nothing else, where a returned one might come with a backtrace.
fn main() -> ExitCode {
    match run(Arguments::parse().chore) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\n{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(chore: Chore) -> Result<()> {
    let sh = Shell::new()?;
    sh.change_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    let mut steps = Steps::default();
    match chore {
        Chore::Test { install } => test::run(&sh, &mut steps, install),
        Chore::Ci => ci(&sh, &mut steps),
        Chore::Soak { duration, seed, round } => soak::run(&sh, &mut steps, duration, seed, round),
        Chore::BenchServers { install } => {
            needs::provide(&sh, &mut steps, needs::BENCH_SERVERS, install, "bench-servers")?;
            steps.run(cmd!(sh, "cargo bench --package forksafe-benches --bench servers"))
        }
        Chore::Verify { with, install, tests } => verify::run(&sh, &mut steps, with, install, &tests),
    }
}

fn ci(sh: &Shell, steps: &mut Steps) -> Result<()> {
    steps.run(cmd!(sh, "cargo fmt --all --check"))?;
    // Alone: the async client of Redis does not compile with the TLS libraries of another member and without its own.
    let alone = ["forksafe-client-tests", "forksafe-python-tests"];
    let others = alone.map(|package| format!("--exclude={package}"));
    steps.run(cmd!(sh, "cargo clippy --workspace {others...} --all-targets --all-features -- -D warnings"))?;
    for package in alone {
        steps.run(cmd!(sh, "cargo clippy --package {package} --all-targets --all-features -- -D warnings"))?;
    }
    // As tests: whether they still work, in a few seconds.
    steps.run(cmd!(sh, "cargo test --package forksafe-benches --benches"))?;
    steps.run(cmd!(sh, "env RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --all-features"))?;
    preload::run(sh, steps)?;
    minimal::run(sh, steps)
}
