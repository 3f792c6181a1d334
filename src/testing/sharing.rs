//! Which sockets are held by more than one process.

use super::proc::{self, Process};
use super::sockets::{Socket, Sockets, inode_of, unless_gone};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::RawFd;

/// Who holds which sockets, of some processes, at one moment.
///
/// ```
/// use forksafe::testing::{self, Holdings};
/// use std::net::{TcpListener, TcpStream};
///
/// let listener = TcpListener::bind("127.0.0.1:0")?;
/// let inherited = TcpStream::connect(listener.local_addr()?)?;
/// let child = testing::child(std::thread::park);
/// let holdings = Holdings::of(&[std::process::id(), child.pid()])?;
/// assert!(holdings.shared_connections().iter().any(|shared| shared.socket.peer == inherited.peer_addr().unwrap().to_string()));
/// # child.kill();
/// # Ok::<_, std::io::Error>(())
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Holdings {
    /// Those that were looked into.
    pub processes: Vec<Process>,
    /// Those that could not be, and why.
    pub unseen: Vec<(Process, io::Error)>,
    sockets: Vec<HeldSocket>,
}

/// A socket and who holds it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HeldSocket {
    /// The socket.
    pub socket: Socket,
    /// The processes, and by what numbers each knows it.
    pub holders: Vec<(Process, Vec<RawFd>)>,
}

impl Holdings {
    /// Of these processes. One that ends meanwhile holds nothing.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no such process to begin with.
    pub fn of(pids: &[u32]) -> io::Result<Self> {
        let named = |&pid| Process::of(pid).map_err(|error| no_process(pid, &error));
        Ok(Self::look(pids.iter().map(named).collect::<io::Result<_>>()?))
    }

    /// Of some processes and their descendants. Each comes after its parent.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn of_trees<'a>(roots: impl IntoIterator<Item = &'a u32>) -> io::Result<Self> {
        let mut all = Vec::<Process>::new();
        for &root in roots {
            let tree = Process::tree(root).map_err(|error| no_process(root, &error))?;
            let new: Vec<_> = tree.into_iter().filter(|process| !all.contains(process)).collect();
            all.extend(new);
        }
        Ok(Self::look(all))
    }

    /// Of all processes that may be looked into.
    ///
    /// # Errors
    ///
    /// When there is no `/proc`.
    pub fn of_all() -> io::Result<Self> {
        Ok(Self::look(Process::all()?))
    }

    fn look(processes: Vec<Process>) -> Self {
        super::environment::obey();
        let mut all = Self::default();
        let mut held = BTreeMap::<u64, Vec<(Process, Vec<RawFd>)>>::new();
        for process in processes.into_iter().filter(|process| !process.ended) {
            match unless_gone(proc::try_descriptors(process.pid)) {
                Ok(Some(descriptors)) => {
                    let mut here = BTreeMap::<u64, Vec<RawFd>>::new();
                    for (fd, name) in descriptors {
                        if let Some(inode) = inode_of(&name) {
                            here.entry(inode).or_default().push(fd);
                        }
                    }
                    for (inode, fds) in here {
                        held.entry(inode).or_default().push((process.clone(), fds));
                    }
                    all.processes.push(process);
                }
                Ok(None) => {}
                Err(error) => all.unseen.push((process, error)),
            }
        }
        let sockets = Sockets::around(all.processes.iter().map(|process| process.pid));
        all.sockets = held
            .into_iter()
            .map(|(inode, holders)| {
                let (holder, fds) = &holders[0];
                HeldSocket { socket: sockets.get(inode, holder.pid, fds[0]), holders }
            })
            .collect();
        all
    }

    /// All sockets that any of them holds.
    pub fn sockets(&self) -> &[HeldSocket] {
        &self.sockets
    }

    /// The sockets that more than one of them holds, of every kind and in every state.
    pub fn shared(&self) -> Vec<&HeldSocket> {
        self.sockets.iter().filter(|held| held.holders.len() > 1).collect()
    }

    /// The connections that more than one of them holds. Listening sockets are not among them.
    pub fn shared_connections(&self) -> Vec<&HeldSocket> {
        self.sockets.iter().filter(|held| held.holders.len() > 1 && held.socket.is_connected()).collect()
    }

    /// Who holds a socket.
    pub fn holders_of(&self, inode: u64) -> &[(Process, Vec<RawFd>)] {
        let found = self.sockets.iter().find(|held| held.socket.inode == inode);
        found.map_or(&[], |held| &held.holders)
    }
}

fn no_process(pid: u32, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("no process {pid} is to be seen here: {error}"))
}

/// The socket, and a line for each process that holds it.
impl fmt::Display for HeldSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.socket)?;
        for (process, fds) in &self.holders {
            let fds: Vec<_> = fds.iter().map(ToString::to_string).collect();
            write!(f, "\n  held by process {process} as descriptor {}", fds.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was there when the list was made, and is not when it is its turn.
    #[test]
    fn a_process_that_ends_meanwhile_holds_nothing_and_is_not_missed() {
        let mut child = std::process::Command::new("/bin/cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        child.wait().unwrap();
        let holdings = Holdings::look(vec![process]);
        assert!(holdings.processes.is_empty() && holdings.unseen.is_empty(), "{holdings:?}");
    }
}
