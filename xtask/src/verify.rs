//! `cargo xtask verify`.

use crate::needs::program;
use crate::steps::Steps;
use anyhow::{Result, ensure};
use clap::ValueEnum;
use xshell::{Shell, cmd};

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Tool {
    /// All interleavings of the models' threads
    Loom,
    /// AddressSanitizer, with a nightly compiler
    Asan,
    /// Memcheck, for a handful of integration tests
    Valgrind,
}

/// It knows neither raw clones nor descriptor tables that are shared, and takes its time.
pub const UNDER_VALGRIND: [&str; 6] = [
    "lent::a_guard_in_a_child_harms_nobody",
    "inflight::",
    "callbacks::",
    "per_process::an_inherited_value_is_never_dropped_and_ones_own_is",
    "registry::a_descriptor_that_is_not_the_registered_one",
    "storm::racing_threads_of_a_child_are_all_served",
];

pub fn run(sh: &Shell, steps: &mut Steps, with: Option<Tool>, under_valgrind: &[String]) -> Result<()> {
    let wanted = |tool| with.is_none_or(|one| one == tool);
    if wanted(Tool::Loom) {
        loom(sh, steps)?;
    }
    if wanted(Tool::Asan) {
        asan(sh, steps)?;
    }
    if wanted(Tool::Valgrind) {
        valgrind(sh, steps, under_valgrind)?;
    }
    Ok(())
}

fn loom(sh: &Shell, steps: &mut Steps) -> Result<()> {
    let flags = "RUSTFLAGS=--cfg forksafe_loom";
    let cargo = ["LOOM_MAX_PREEMPTIONS=3", "cargo", "test", "--target-dir", "target/loom", "--release", "--lib"];
    let listed = cmd!(sh, "env {flags} {cargo...} loom_ -- --list").read()?;
    ensure_some(&listed, "loom_")?;
    steps.run(cmd!(sh, "env {flags} {cargo...} loom_"))
}

fn asan(sh: &Shell, steps: &mut Steps) -> Result<()> {
    let host = cmd!(sh, "rustc --print host-tuple").quiet().read()?;
    // A child that ends by _exit leaks all that it inherited.
    let variables = ["RUSTFLAGS=-Zsanitizer=address", "ASAN_OPTIONS=detect_leaks=0"];
    // With a target named, build scripts and macros are spared the flags.
    let cargo = ["cargo", "+nightly", "test", "--target-dir", "target/asan", "--target", &host];
    // A fork copies the sanitizer's page tables, too: thousands of them take longer than a test may.
    let but = ["--skip", "control::", "--skip", "two_thousand", "--skip", "a_storm_of_children"];
    steps.run(cmd!(sh, "env {variables...} {cargo...} --all-features --lib --test it -- {but...}"))
}

/// Tests run again in processes of their own: those are followed. Servers are not ours to check.
fn valgrind(sh: &Shell, steps: &mut Steps, tests: &[String]) -> Result<()> {
    ensure!(program(sh, "valgrind").is_some(), "valgrind is not there: install Debian's package valgrind");
    let listed = cmd!(sh, "cargo test --all-features --test it -- --list {tests...}").read()?;
    for test in tests {
        ensure_some(&listed, test)?;
    }
    // Nobody looks at how a forked child exits once it has told its result: what counts is what valgrind wrote down.
    let logs = sh.create_temp_dir()?;
    let log = format!("--log-file={}/%p", logs.path().display());
    let skip = "--trace-children-skip=*/redis-server,*/postgres,*/initdb,*/cp";
    // No pipes for a debugger: a server that changes its user could not remove them.
    let valgrind = ["valgrind", "--quiet", "--vgdb=no", "--error-exitcode=99", "--trace-children=yes", skip, &log];
    let runner = format!(r#"target."cfg(unix)".runner = {valgrind:?}"#);
    let cargo = ["FORKSAFE_ONLY_FORK=1", "cargo", "test", "--config", &runner];
    let ran = steps.run(cmd!(sh, "env {cargo...} --all-features --test it -- {tests...}"));
    let logs = sh.read_dir(logs.path())?.iter().map(|log| sh.read_file(log)).collect::<Result<String, _>>()?;
    eprint!("{logs}");
    // `--1234--` is valgrind about itself, `==1234==` about the program.
    ensure!(!logs.lines().any(|line| line.starts_with("==")), "valgrind found errors, see above");
    ran
}

/// To run no tests at all would be a success.
fn ensure_some(listed: &str, name: &str) -> Result<()> {
    let found = listed.lines().any(|line| line.ends_with(": test") && line.contains(name));
    ensure!(found, "there is no test whose name contains {name}");
    Ok(())
}
