//! The load: `wrk`, with one thread.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How clients come.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) what: &'static str,
    pub(crate) clients: u32,
    /// Each for one request only.
    pub(crate) closes: bool,
}

/// What came of it.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) requests: f64,
    pub(crate) rate: f64,
    /// In milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) failed: u64,
}

/// It has to be ended by [`outcome`].
pub(crate) fn start(url: &str, load: Load, time: Duration) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/servers/wrk.lua");
    let mut command = Command::new("wrk");
    command.args(["--threads", "1", "--connections", &load.clients.to_string(), "--script", script]);
    command.args(["--duration", &format!("{}s", time.as_secs().max(1))]);
    if load.closes {
        command.args(["--header", "Connection: close"]);
    }
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("wrk: Debian's package wrk")
}

pub(crate) fn outcome(wrk: Child) -> Outcome {
    let output = wrk.wait_with_output().expect("the end of wrk");
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find_map(|line| line.strip_prefix("DONE ")).unwrap_or_else(|| panic!("wrk: {said}"));
    let numbers: Vec<f64> = line.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [seconds, requests, p50, p99, ref failed @ ..] = numbers[..] else { panic!("wrk: {line}") };
    Outcome {
        requests,
        rate: requests / seconds,
        p50: p50 / 1000.0,
        p99: p99 / 1000.0,
        failed: failed.iter().sum::<f64>() as u64,
    }
}
