//! Says what was found, if somebody wants to know: a line for each, to standard error or into a file.
//!
//! Each line is made in memory of the stack, by what of `core::fmt` takes no memory, and written by one system call. A line that cannot be
//! written at once is lost, and counted.

use super::found::{self, Found};
use super::output::Output;
use super::peer::Peer;
use super::rules::{Mode, Report, Rules};
use crate::fork::handler::sys;
use std::fmt::{self, Write};

pub(super) fn all(rules: &Rules, parent: u32) {
    if found::total() == 0 {
        return;
    }
    if (rules.mode == Mode::Deny || rules.report == Report::StandardError)
        && let [_, _, was] = rules.standard
        && let Some(output) = Output::standard_error(was)
    {
        lines(&output, rules.mode, parent);
    }
    if let Report::File(path) = &rules.report
        && let Some(output) = Output::file(path)
    {
        lines(&output, rules.mode, parent);
    }
}

fn lines(to: &Output, mode: Mode, parent: u32) {
    let what = match mode {
        Mode::Disown => "disowned",
        Mode::Report => "left as it is",
        Mode::Deny => "denied",
    };
    let own = sys::pid();
    let mut told = 0;
    for Found { fd, peer, .. } in found::all() {
        // A line that has no room is cut short.
        let mut line = Line::default();
        let _ = write!(line, "forksafe: process {own} has inherited ");
        let _ = name(&mut line, &peer);
        let _ = write!(line, " from process {parent}, as descriptor {fd}: {what}");
        told += u64::from(to.write(line.end()));
    }
    // Those that are not in the table, and those for which there was no room where they were to go.
    if let Some(more) = found::total().checked_sub(told).filter(|&more| more > 0) {
        let mut line = Line::default();
        let _ = write!(line, "forksafe: process {own} has inherited {more} more from process {parent}: {what}");
        to.write(line.end());
    }
}

fn name(line: &mut Line, peer: &Peer) -> fmt::Result {
    match peer {
        Peer::Tcp(address) => write!(line, "tcp {address}"),
        Peer::NotConnected => line.write_str("tcp, not connected,"),
        Peer::Udp(address) => write!(line, "udp {address}"),
        Peer::Unix(path) => {
            line.write_str("unix ")?;
            path.bytes().iter().try_for_each(|&byte| match byte {
                b' '..=b'~' => line.write_char(char::from(byte)),
                _ => line.write_char('?'),
            })
        }
    }
}

struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; 256], length: 0 }
    }
}

impl Line {
    /// There is always room for the end of the line.
    fn end(&mut self) -> &[u8] {
        if let Some(last) = self.bytes.get_mut(self.length) {
            *last = b'\n';
            self.length += 1;
        }
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - 1;
        for &byte in text.as_bytes() {
            let Some(to) = self.bytes.get_mut(self.length).filter(|_| self.length < room) else {
                return Err(fmt::Error);
            };
            *to = byte;
            self.length += 1;
        }
        Ok(())
    }
}
