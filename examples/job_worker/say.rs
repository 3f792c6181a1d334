//! Lines for whoever looks: what happens on standard error, how far it is on standard output.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::{iter, process};

/// A log line. In one piece: the lines of several processes do not mix. A progress line gives way.
pub(crate) fn say(what: &str) {
    let clear = if io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
    let _ = io::stderr().write_all(format!("{clear}job_worker {}: {what}\n", process::id()).as_bytes());
}

/// How far it is: on a terminal always the same line.
pub(crate) fn show_progress(line: &str, is_last: bool) {
    let mut out = io::stdout();
    let end = if is_last { "\n" } else { "" };
    let line = if out.is_terminal() { format!("\r{line}\x1b[K{end}") } else { format!("{line}\n") };
    // Nobody may be there to read it; the jobs are done all the same.
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

/// An error, and what it comes from.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut all: Vec<_> = iter::successors(Some(error), |error| (*error).source()).map(ToString::to_string).collect();
    all.dedup(); // Some only pass on what they come from.
    all.join(": ")
}
