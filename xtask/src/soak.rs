//! `cargo xtask soak`.

use crate::needs;
use crate::steps::Steps;
use anyhow::Result;
use std::time::Duration;
use xshell::{Shell, cmd};

/// The program has a short run in `cargo test`, too. It prints its seed, and how to replay a round that failed.
pub fn run(sh: &Shell, steps: &mut Steps, duration: Duration, seed: Option<u64>, round: Option<u64>) -> Result<()> {
    needs::provide(sh, steps, needs::TESTS, false, "test")?;
    let seconds = duration.as_secs().to_string();
    let option = |name: &str, value: Option<u64>| value.map(|value| [name.to_owned(), value.to_string()]);
    let replay = [option("--seed", seed), option("--round", round)].into_iter().flatten().flatten();
    steps.run(cmd!(sh, "cargo test --all-features --test soak -- --duration {seconds} {replay...}"))
}
