//! What `/proc` tells of processes and their descriptors.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The open descriptors of a process and what each is (`socket:[4711]`, `pipe:[12]`, a path).
///
/// # Panics
///
/// When `/proc` does not show them.
#[track_caller]
pub fn descriptors(pid: u32) -> BTreeMap<RawFd, String> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let named = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        // Gone in between: the descriptor of the folder itself, at the least.
        let target = fs::read_link(entry.path()).ok()?;
        Some((fd, target.to_string_lossy().into_owned()))
    });
    named.collect()
}

/// The sockets that two processes both hold: descriptor here, descriptor there, and the socket's name.
///
/// # Panics
///
/// When `/proc` does not show the descriptors of either.
#[track_caller]
pub fn shared_sockets(here: u32, there: u32) -> Vec<(RawFd, RawFd, String)> {
    let there = descriptors(there);
    let sockets = descriptors(here).into_iter().filter(|(_, name)| name.starts_with("socket:"));
    sockets
        .flat_map(|(fd, name)| {
            let same = there.iter().filter(|(_, other)| **other == name).map(|(&other, _)| other);
            same.map(|other| (fd, other, name.clone())).collect::<Vec<_>>()
        })
        .collect()
}

/// What `/proc` calls the socket behind a descriptor of this process: the same in every process that holds it.
///
/// # Panics
///
/// When `/proc` does not show it.
#[track_caller]
pub fn socket_of(owner: &impl AsFd) -> String {
    let path = format!("/proc/self/fd/{}", owner.as_fd().as_raw_fd());
    fs::read_link(&path).unwrap_or_else(|error| panic!("{path}: {error}")).to_string_lossy().into_owned()
}

/// This process, by a name that no other process ever has: its pid as `/proc` has it, which a pid namespace does not
/// change, and the moment of its start, which a reused pid does not share.
pub(super) fn name_of_this_process() -> String {
    let stat = fs::read_to_string("/proc/self/stat").expect("/proc/self/stat");
    let pid = stat.split(' ').next().unwrap_or_default();
    // The program's name may hold anything but ends at the last parenthesis. The start is field 22.
    let start = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)).unwrap_or_default();
    format!("{pid}.{start}")
}

/// Where each thread of a process waits.
pub(super) fn where_it_hangs(pid: libc::pid_t) -> String {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return "it is gone".into();
    };
    let threads = threads.flatten().map(|thread| {
        let read = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default().trim().to_owned();
        let (name, waits_in, call, stack) = (read("comm"), read("wchan"), read("syscall"), read("stack"));
        format!("thread {name:?} waits in {waits_in} (system call {call})\n{stack}")
    });
    threads.collect::<Vec<_>>().join("\n")
}

/// A pipe, closed in programs that are executed: where to read, where to write.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for the two descriptors, which are then ours alone.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}
