//! Commands one after the other: each is shown before it runs, and all with their times at the end.

use anyhow::{Context, Result, ensure};
use std::process::Command;
use std::time::{Duration, Instant};
use xshell::Cmd;

/// Environment variables are set with `env`, so that what is shown is all there is to it.
#[derive(Default)]
pub struct Steps {
    taken: Vec<Step>,
}

struct Step {
    command: String,
    succeeded: bool,
    time: Duration,
}

impl Steps {
    /// Runs a command that has to succeed.
    pub fn run(&mut self, command: Cmd) -> Result<()> {
        self.run_expecting(0, command)
    }

    /// Runs a command that has to exit with this code and no other.
    pub fn run_expecting(&mut self, code: i32, command: Cmd) -> Result<()> {
        let shown = command.to_string();
        eprintln!("\n$ {shown}");
        let start = Instant::now();
        let status = Command::from(command).status().with_context(|| format!("cannot run `{shown}`"));
        let succeeded = status.as_ref().is_ok_and(|status| status.code() == Some(code));
        self.taken.push(Step { command: shown.clone(), succeeded, time: start.elapsed() });
        let status = status?;
        ensure!(succeeded, "`{shown}` should exit with {code}, but: {status}");
        Ok(())
    }
}

/// The summary comes when a step has failed, too.
impl Drop for Steps {
    fn drop(&mut self) {
        eprintln!();
        for Step { command, succeeded, time } in &self.taken {
            let verdict = if *succeeded { "ok" } else { "FAILED" };
            eprintln!("{verdict:>6} {:>7.1} s  {command}", time.as_secs_f64());
        }
    }
}
