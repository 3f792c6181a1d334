//! Where a process hangs, with all that this machine tells about it.

use super::clean::unnamed_file;
use super::proc::Process;
use std::fmt::Write;
use std::fs;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Of the process and its descendants: it may well wait for one of them.
pub(super) fn where_it_hangs(pid: u32) -> String {
    let mut text = String::new();
    for process in Process::tree(pid).unwrap_or_default() {
        let _ = writeln!(text, "process {process}:\n{}{}", threads(process.pid), backtrace(process.pid));
    }
    if text.is_empty() { "it is gone".into() } else { text }
}

/// Where each thread waits, in the kernel.
fn threads(pid: u32) -> String {
    let mut text = String::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default().trim().to_owned();
        let (name, state, waits_in, stack) = (read("comm"), state(&read("stat")), read("wchan"), read("stack"));
        let call = system_call(&read("syscall"));
        let _ = write!(text, "  thread {} {name:?} is {state}{call}", thread.file_name().display());
        if !matches!(&*waits_in, "" | "0") {
            let _ = write!(text, ", waits in {waits_in}");
        }
        text.push('\n');
        stack.lines().for_each(|frame| _ = writeln!(text, "    {frame}"));
    }
    text
}

fn state(stat: &str) -> &'static str {
    match stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next()) {
        Some('R') => "running",
        Some('S') => "asleep",
        Some('D') => "asleep for good",
        Some('T' | 't') => "stopped",
        Some('Z') => "dead and not waited for",
        _ => "in a state of its own",
    }
}

/// `202 0x7f...`: those by name that a child may hang in.
fn system_call(line: &str) -> String {
    let Some(number) = line.split(' ').next().and_then(|number| number.parse().ok()) else { return String::new() };
    let name = match number {
        libc::SYS_futex => "futex: a lock, a condition, or another thread's end",
        libc::SYS_read | libc::SYS_readv | libc::SYS_recvfrom | libc::SYS_recvmsg => "read: what nobody writes",
        libc::SYS_write | libc::SYS_writev | libc::SYS_sendto | libc::SYS_sendmsg => "write: what nobody reads",
        libc::SYS_wait4 | libc::SYS_waitid => "wait: the end of a child",
        libc::SYS_ppoll | libc::SYS_pselect6 | libc::SYS_epoll_pwait => "poll",
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll | libc::SYS_select | libc::SYS_epoll_wait => "poll",
        libc::SYS_connect => "connect",
        libc::SYS_accept | libc::SYS_accept4 => "accept",
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => "sleep",
        _ => return format!(" in system call {number}"),
    };
    format!(" in {name}")
}

/// The functions of each thread, if there is a gdb that may look.
fn backtrace(pid: u32) -> String {
    const LONGEST: Duration = Duration::from_secs(20);
    if crate::fork::control::is_off() {
        // A control run hangs on purpose, and nobody reads it.
        return String::new();
    }
    if !is_installed("gdb") {
        return "  (with gdb installed there would be a backtrace here)\n".into();
    }
    let mut output = unnamed_file();
    let mut gdb = Command::new("gdb");
    gdb.args(["--nx", "--batch", "-iex", "set debuginfod enabled off", "-iex", "set auto-load off"])
        .args(["-p", &pid.to_string(), "-ex", "thread apply all backtrace 40"])
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a descriptor"))
        .stderr(Stdio::null());
    let mut gdb = match gdb.spawn() {
        Ok(gdb) => gdb,
        Err(error) => return format!("  (gdb: {error})\n"),
    };
    let until = Instant::now() + LONGEST;
    while gdb.try_wait().is_ok_and(|ended| ended.is_none()) {
        if Instant::now() > until {
            let _ = gdb.kill();
            let _ = gdb.wait();
            break;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let mut text = Vec::new();
    let _ = output.rewind().and_then(|()| output.read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    let frames = frames(&text);
    if frames.is_empty() { "  (gdb may not look at it)\n".into() } else { frames }
}

/// What there is to read in gdb's output: `#3  0x00007f8be7270df2 in poll<T> (fd=3) at src/main.rs:7`.
fn frames(output: &str) -> String {
    let mut text = String::new();
    // What comes before is about the loading of symbols.
    let lines = output.lines().skip_while(|line| !line.starts_with("Thread "));
    let mut in_closure = true;
    for line in lines {
        if line.starts_with("Thread ") {
            let _ = writeln!(text, "  {line}");
            in_closure = true;
        }
        // How the kit came to run the closure is of no interest.
        in_closure &= !(line.contains("forksafe::testing::child::") && line.contains("::start::"));
        let Some(frame) = line.strip_prefix('#').filter(|_| in_closure) else { continue };
        let frame = frame.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let frame = frame.split_once(" in ").filter(|(address, _)| address.starts_with("0x")).map_or(frame, |(_, f)| f);
        let (function, place) = frame.rsplit_once(" at ").unwrap_or((frame, ""));
        // Of a function its name will do, without types and arguments.
        let function = function.split_once([' ', '<']).map_or(function, |(name, _)| name);
        if place.starts_with("/rustc/") || place.starts_with("library/") {
            continue;
        }
        let _ = writeln!(
            text,
            "    {}",
            if place.is_empty() { function.to_owned() } else { format!("{function} at {place}") }
        );
    }
    text
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file()))
}
