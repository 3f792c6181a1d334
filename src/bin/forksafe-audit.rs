//! Which sockets do the processes of a running program share?
//!
//! It looks at a process and its descendants from outside, through `/proc`: a Puma, a gunicorn, a PHP-FPM, whatever forks.
//! A connection that two of them hold is one that a fork photocopied, and that nobody may use but one.
//!
//! ```text
//! cargo install forksafe --features testing
//! forksafe-audit PID...
//! ```

use forksafe::testing::{HeldSocket, Holdings, Process, SocketState};
use std::collections::BTreeSet;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error>>;

const USAGE: &str = "\
Shows which sockets the processes of a running program share, for each PID with all its descendants.

  forksafe-audit PID...

Exit code: 0, 1 if a connected socket is shared, 2 if that cannot be told.
";

/// A child that is about to execute another program holds copies for a moment. What is meant is what stays.
const MOMENT: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let arguments = std::env::args_os().skip(1).collect();
    let told = audit(arguments, &mut io::stdout().lock());
    ExitCode::from(told.unwrap_or_else(|error| {
        eprintln!("forksafe-audit: {error}");
        2
    }))
}

/// Prints what is found, and returns the exit code.
pub(crate) fn audit(arguments: Vec<OsString>, out: &mut impl Write) -> Result<u8> {
    if arguments.iter().any(|argument| argument == "-h" || argument == "--help") {
        out.write_all(USAGE.as_bytes())?;
        return Ok(0);
    }
    let pids = arguments.iter().map(|arg| {
        let pid = arg.to_str().and_then(|arg| arg.parse().ok()).filter(|pid| *pid > 0);
        pid.ok_or_else(|| format!("{arg:?} is not a process id; --help tells what there is"))
    });
    let roots = pids.collect::<std::result::Result<BTreeSet<u32>, _>>()?;
    if roots.is_empty() {
        return Err("whom shall I look at? --help tells what there is".into());
    }

    let mut holdings = Holdings::of_trees(&roots)?;
    let before: BTreeSet<_> = holdings.shared_connections().into_iter().flat_map(copies).collect();
    if !before.is_empty() {
        thread::sleep(MOMENT);
        holdings = Holdings::of_trees(&roots)?;
    }
    let stays = |held: &&HeldSocket| copies(held).filter(|copy| before.contains(copy)).count() > 1;
    let shared: Vec<_> = holdings.shared_connections().into_iter().filter(stays).collect();
    show(&holdings, &shared, out)?;
    if shared.is_empty() && !holdings.unseen.is_empty() {
        return Err("not every process could be looked into: run this as their user, or as root".into());
    }
    Ok(u8::from(!shared.is_empty()))
}

/// The socket and the process of each copy.
fn copies(held: &HeldSocket) -> impl Iterator<Item = (u64, u32)> {
    held.holders.iter().map(|(process, _)| (held.socket.inode, process.pid))
}

fn show(holdings: &Holdings, shared: &[&HeldSocket], out: &mut impl Write) -> Result<()> {
    for process in &holdings.processes {
        writeln!(out, "{}process {process}", "  ".repeat(depth(process, holdings)))?;
    }
    for (process, error) in &holdings.unseen {
        writeln!(out, "NOT SEEN: process {process}: {error}")?;
    }
    // The servers at the other ends may be anywhere on this machine.
    let others = if shared.is_empty() { Holdings::default() } else { Holdings::of_all()? };
    for held in shared {
        writeln!(out, "\nSHARED: {held}")?;
        for (process, _) in held.socket.peer_inode.map_or(&[][..], |inode| others.holders_of(inode)) {
            writeln!(out, "  the other end is held by process {process}")?;
        }
    }
    writeln!(out)?;
    for held in holdings.shared() {
        let note = match held.socket.state {
            SocketState::Listening => "shared, and rightly so",
            SocketState::Unconnected => "shared, but not connected",
            SocketState::Unknown => "shared, and of a kind that is not judged",
            _ => continue,
        };
        writeln!(out, "{note}: {} (by {} processes)", held.socket, held.holders.len())?;
    }
    let connections = holdings.sockets().iter().filter(|held| held.socket.is_connected()).count();
    let processes = holdings.processes.len();
    writeln!(out, "{} of {connections} connections shared, in {processes} processes", shared.len())?;
    Ok(())
}

fn depth(process: &Process, holdings: &Holdings) -> usize {
    let parent = holdings.processes.iter().find(|other| other.pid == process.parent);
    parent.map_or(0, |parent| 1 + depth(parent, holdings))
}
