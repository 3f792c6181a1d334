//! `cargo xtask verify`.

use crate::needs;
use crate::steps::Steps;
use anyhow::{Result, ensure};
use clap::ValueEnum;
use std::path::Path;
use xshell::{Cmd, Shell, cmd};

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Tool {
    /// All interleavings of the models' threads
    Loom,
    /// AddressSanitizer, for nearly all integration tests
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

/// A fork copies the sanitizer's page tables, too: thousands of them take longer than a test may. And the examples
/// are programs of their own, which are not built here.
const NOT_UNDER_ASAN: [&str; 8] = [
    "control::",
    "cluster_program::",
    "dynos::",
    "example::",
    "job_worker::",
    "nginx::",
    "two_thousand",
    "a_storm_of_children",
];

pub fn run(sh: &Shell, steps: &mut Steps, with: Option<Tool>, install: bool, under_valgrind: &[String]) -> Result<()> {
    let wanted = |tool| with.is_none_or(|one| one == tool);
    if wanted(Tool::Loom) {
        loom(sh, steps)?;
    }
    if wanted(Tool::Asan) {
        needs::provide(sh, steps, needs::SERVERS, install, "verify")?;
        asan(sh, steps)?;
    }
    if wanted(Tool::Valgrind) {
        needs::provide(sh, steps, needs::VALGRIND, install, "verify")?;
        valgrind(sh, steps, under_valgrind)?;
    }
    Ok(())
}

fn loom(sh: &Shell, steps: &mut Steps) -> Result<()> {
    let variables = ["RUSTFLAGS=--cfg forksafe_loom", "LOOM_MAX_PREEMPTIONS=3"];
    let cargo = ["cargo", "test", "--target-dir", "target/loom", "--release", "--package", "forksafe-models"];
    steps.run(cmd!(sh, "env {variables...} {cargo...} --no-run"))?;
    let models = Tests::read(cmd!(sh, "env {variables...} {cargo...} -- --list loom_"))?;
    models.ensure_some("loom_")?;
    steps.run(cmd!(sh, "env {variables...} {cargo...} loom_"))
}

/// The flag wants an unstable compiler, or a stable one that is told to be. The runtime comes with those of rustup.
fn asan(sh: &Shell, steps: &mut Steps) -> Result<()> {
    let host = cmd!(sh, "rustc --print host-tuple").quiet().read()?;
    let folder = cmd!(sh, "rustc --print target-libdir").quiet().read()?;
    ensure!(
        has_asan(sh, Path::new(&folder)),
        "the compiler has no AddressSanitizer: {folder} lacks librustc-*_rt.asan.a\n\
         rustup's toolchains for x86_64 and aarch64 Linux have it; `cargo xtask verify loom` and `valgrind` go without."
    );
    // A child that ends by _exit leaks all that it inherited.
    let variables = ["RUSTC_BOOTSTRAP=1", "RUSTFLAGS=-Zsanitizer=address", "ASAN_OPTIONS=detect_leaks=0"];
    // With a target named, build scripts and macros are spared the flags.
    let cargo = ["cargo", "test", "--target-dir", "target/asan", "--target", &host];
    let tests = ["--all-features", "--lib", "--test", "it"];
    steps.run(cmd!(sh, "env {variables...} {cargo...} {tests...} --no-run"))?;
    let left_out = Tests::read(cmd!(sh, "env {variables...} {cargo...} {tests...} -- --list {NOT_UNDER_ASAN...}"))?;
    eprintln!("\nnot run under AddressSanitizer:");
    left_out.0.iter().for_each(|test| eprintln!("  {test}"));
    let skip = NOT_UNDER_ASAN.iter().flat_map(|name| ["--skip", name]);
    steps.run(cmd!(sh, "env {variables...} {cargo...} {tests...} -- {skip...}"))
}

fn has_asan(sh: &Shell, folder: &Path) -> bool {
    let files = sh.read_dir(folder).unwrap_or_default();
    let names = files.iter().filter_map(|file| file.file_name()?.to_str());
    names.into_iter().any(|name| name.starts_with("librustc") && name.ends_with("rt.asan.a"))
}

/// Tests run again in processes of their own: those are followed. Servers are not ours to check.
fn valgrind(sh: &Shell, steps: &mut Steps, tests: &[String]) -> Result<()> {
    let it = ["--all-features", "--test", "it"];
    steps.run(cmd!(sh, "cargo test {it...} --no-run"))?;
    let all = Tests::read(cmd!(sh, "cargo test {it...} -- --list"))?;
    let chosen = Tests::read(cmd!(sh, "cargo test {it...} -- --list {tests...}"))?;
    tests.iter().try_for_each(|name| chosen.ensure_some(name))?;
    eprintln!("\nunder valgrind: {} of {} integration tests, and none of the rest", chosen.0.len(), all.0.len());
    // Nobody looks at how a forked child exits once it has told its result: what counts is what valgrind wrote down.
    let logs = sh.create_temp_dir()?;
    let log = format!("--log-file={}/%p", logs.path().display());
    let skip = "--trace-children-skip=*/redis-server,*/postgres,*/initdb,*/cp";
    // No pipes for a debugger: a server that changes its user could not remove them.
    let valgrind = ["valgrind", "--quiet", "--vgdb=no", "--error-exitcode=99", "--trace-children=yes", skip, &log];
    let runner = format!(r#"target."cfg(unix)".runner = {valgrind:?}"#);
    let ran = steps.run(cmd!(sh, "env FORKSAFE_ONLY_FORK=1 cargo test --config {runner} {it...} -- {tests...}"));
    let logs = sh.read_dir(logs.path())?.iter().map(|log| sh.read_file(log)).collect::<Result<String, _>>()?;
    eprint!("{logs}");
    // `--1234--` is valgrind about itself, `==1234==` about the program.
    ensure!(!logs.lines().any(|line| line.starts_with("==")), "valgrind found errors, see above");
    ran
}

/// The names of tests, as the harness lists them.
struct Tests(Vec<String>);

impl Tests {
    fn read(list: Cmd) -> Result<Self> {
        let listed = list.quiet().read()?;
        Ok(Self(listed.lines().filter_map(|line| Some(line.strip_suffix(": test")?.to_owned())).collect()))
    }

    /// To run no tests at all would be a success.
    fn ensure_some(&self, name: &str) -> Result<()> {
        ensure!(self.0.iter().any(|test| test.contains(name)), "there is no test whose name contains {name}");
        Ok(())
    }
}
