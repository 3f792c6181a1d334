//! What `/proc` tells of processes and their descriptors.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The open descriptors of a process and what each is (`socket:[4711]`, `pipe:[12]`, a path).
///
/// # Panics
///
/// When `/proc` does not show them.
#[track_caller]
pub fn descriptors(pid: u32) -> BTreeMap<RawFd, String> {
    try_descriptors(pid).unwrap_or_else(|error| panic!("/proc/{pid}/fd: {error}"))
}

pub(super) fn try_descriptors(pid: u32) -> io::Result<BTreeMap<RawFd, String>> {
    let named = fs::read_dir(format!("{}/fd", folder_of(pid)))?.filter_map(|entry| {
        let entry = entry.ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        // Gone in between: the descriptor of the folder itself, at the least.
        let target = fs::read_link(entry.path()).ok()?;
        Some((fd, target.to_string_lossy().into_owned()))
    });
    Ok(named.collect())
}

/// Where `/proc` shows what a process has. Its first thread may have ended, and shows nothing then: no descriptors, no
/// namespaces. The others go on.
pub(super) fn folder_of(pid: u32) -> String {
    let process = format!("/proc/{pid}");
    if !has_ended(&process) {
        return process;
    }
    let threads = fs::read_dir(format!("{process}/task")).into_iter().flatten().flatten();
    let mut threads = threads.filter_map(|thread| thread.path().into_os_string().into_string().ok());
    threads.find(|thread| !has_ended(thread)).unwrap_or(process)
}

/// What ends with a process, or with one of its threads.
fn has_ended(thread: &str) -> bool {
    let stat = fs::read_to_string(format!("{thread}/stat")).unwrap_or_default();
    matches!(fields(&stat).1.next(), Some("Z" | "X"))
}

/// The program's name, which stands in parentheses and may hold any, but the last one is not its own; and the fields from
/// the third, the state, on.
fn fields(stat: &str) -> (&str, impl Iterator<Item = &str>) {
    let (name, rest) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')).unwrap_or_default();
    (name, rest.split_whitespace())
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
    let path = format!("/proc/thread-self/fd/{}", owner.as_fd().as_raw_fd());
    fs::read_link(&path).unwrap_or_else(|error| panic!("{path}: {error}")).to_string_lossy().into_owned()
}

/// The number of what is behind a descriptor of this process; 0 if nothing is.
pub(super) fn inode(fd: RawFd) -> u64 {
    // SAFETY: all zeros is a valid stat, and it is ours.
    unsafe {
        let mut stat: libc::stat = mem::zeroed();
        if libc::fstat(fd, &raw mut stat) == 0 { stat.st_ino } else { 0 }
    }
}

/// This process, as [`name_of`] has it.
pub(super) fn name_of_this_process() -> String {
    name_in("/proc/self").expect("/proc/self/stat")
}

/// A process, by a name that no other process ever has: its pid as `/proc` has it, which a pid namespace does not change,
/// and the moment of its start, which a reused pid does not share.
pub(super) fn name_of(pid: u32) -> Option<String> {
    name_in(&format!("/proc/{pid}")).ok()
}

fn name_in(folder: &str) -> io::Result<String> {
    let stat = fs::read_to_string(format!("{folder}/stat"))?;
    let pid = stat.split(' ').next().unwrap_or_default();
    // Field 22.
    let start = fields(&stat).1.nth(19).unwrap_or_default();
    Ok(format!("{pid}.{start}"))
}

/// A process, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Process {
    /// Its pid, as `/proc` has it.
    pub pid: u32,
    /// The pid of its parent.
    pub parent: u32,
    /// What it was called with, or has made of that (`puma: cluster worker 1`); its program's name if that is empty.
    pub title: String,
    /// It has ended and nobody has waited for it: it holds nothing.
    pub(super) ended: bool,
}

impl Process {
    /// What there is to know of a process.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is none of that pid, or `/proc` hides it.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
            // Its end came between the opening and the reading.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(io::ErrorKind::NotFound.into()),
            stat => stat,
        }?;
        let (name, mut rest) = fields(&stat);
        // Its first thread may have, and the others not.
        let ended = matches!(rest.next(), Some("Z" | "X")) && has_ended(&folder_of(pid));
        let parent = rest.next().and_then(|parent| parent.parse().ok()).unwrap_or_default();
        let title = fs::read(format!("{}/cmdline", folder_of(pid))).unwrap_or_default();
        let title = String::from_utf8_lossy(&title).replace(|c: char| c.is_control(), " ");
        let title = if title.trim().is_empty() { name } else { title.trim() };
        // `/usr/bin/python3 /usr/bin/gunicorn app` is python3 to everybody.
        let folder =
            title.split(' ').next().filter(|program| program.starts_with('/')).and_then(|path| path.rfind('/'));
        let title = folder.map_or(title, |folder| &title[folder + 1..]);
        Ok(Self { pid, parent, title: title.chars().take(60).collect(), ended })
    }

    /// All that `/proc` shows.
    ///
    /// # Errors
    ///
    /// When there is no `/proc`.
    pub fn all() -> io::Result<Vec<Self>> {
        let pids = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        // Those that end meanwhile are not missed.
        Ok(pids.filter_map(|pid| Self::of(pid).ok()).collect())
    }

    /// A process and its descendants, each after its parent. Orphans are not found: they have another parent.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of) and [`all`](Self::all).
    pub fn tree(root: u32) -> io::Result<Vec<Self>> {
        let mut others = Self::all()?;
        let mut tree = vec![Self::of(root)?];
        let mut next = 0;
        while let Some(parent) = tree.get(next).map(|process| process.pid) {
            tree.extend(others.extract_if(.., |process| process.parent == parent && process.pid != root));
            next += 1;
        }
        Ok(tree)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pid, self.title)
    }
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
