//! Assertions whose messages name the process, the descriptor and the connection.

use super::proc::{Process, descriptors};
use super::sharing::{HeldSocket, Holdings};
use super::sockets::{Socket, Sockets, inode_of};
use super::stream;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

/// `fork` returns in the parent before the child has dropped what it inherited. On a busy machine it is long before it
/// comes to it.
fn birth() -> Duration {
    super::patience() / 4
}

/// Asserts that no connection is held by two of these processes.
///
/// A child that is just being born has ten seconds to drop what it inherited. Meet it at a step, and it needs none.
///
/// Listening sockets may be shared, and so may standard input, output and error. The sockets of [`Witness`] and [`Tap`]
/// are not looked at: they are in the process of the test, children inherit them, and nobody uses them there.
///
/// ```
/// use forksafe::testing::{self, Steps, Witness};
/// use forksafe::Pool;
///
/// let (witness, steps) = (Witness::start(), Steps::new(&["the child is there", "the end"]));
/// let pool = Pool::new(witness.manager())?;
/// let _lent = pool.get()?;
/// let child = testing::child(|| {
///     steps.take("the child is there");
///     steps.wait_for("the end");
/// });
/// steps.wait_for("the child is there");
/// testing::assert_nothing_shared(&[std::process::id(), child.pid()]);
/// steps.take("the end");
/// child.join();
/// # Ok::<_, forksafe::Error>(())
/// ```
///
/// [`Witness`]: super::Witness
/// [`Tap`]: super::Tap
///
/// # Panics
///
/// When one is, with its two ends, its holders, and the descriptors by which they know it. When a process is not there or
/// may not be looked into.
#[track_caller]
pub fn assert_nothing_shared(pids: &[u32]) {
    let until = Instant::now() + birth();
    loop {
        let holdings = Holdings::of(pids).unwrap_or_else(|error| panic!("{error}"));
        if let Some((process, error)) = holdings.unseen.first() {
            panic!("cannot tell what process {process} holds: {error}");
        }
        let shared = holdings.shared_connections().into_iter().filter(|held| !is_for_all(held));
        let shared: Vec<_> = shared.map(|held| held.to_string().replace('\n', "\n  ")).collect();
        if shared.is_empty() {
            return;
        }
        assert!(Instant::now() < until, "connections are shared between processes:\n  {}", shared.join("\n  "));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_for_all(held: &HeldSocket) -> bool {
    let is_standard = held.holders.iter().any(|(_, fds)| fds.iter().any(|fd| *fd <= libc::STDERR_FILENO));
    is_standard || stream::is_own(held.socket.inode)
}

/// The open descriptors of a process at one moment, to be compared with those of a later one.
///
/// ```
/// use forksafe::testing::Snapshot;
///
/// let before = Snapshot::of(std::process::id());
/// drop(std::net::TcpListener::bind("127.0.0.1:0"));
/// before.assert_nothing_leaked();
/// ```
#[derive(Debug)]
pub struct Snapshot {
    process: Process,
    descriptors: BTreeMap<RawFd, String>,
}

impl Snapshot {
    /// Of a process, now.
    ///
    /// # Panics
    ///
    /// When it is not there, or may not be looked into.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        super::environment::obey();
        let process = Process::of(pid).unwrap_or_else(|error| panic!("process {pid}: {error}"));
        Self { process, descriptors: descriptors(pid) }
    }

    /// The descriptors that the process has now and had not then, and what they are. The sockets of the kit's own servers
    /// are not counted.
    ///
    /// # Panics
    ///
    /// As [`of`](Self::of).
    #[track_caller]
    pub fn leaked(&self) -> Vec<String> {
        let pid = self.process.pid;
        let mut new = descriptors(pid);
        new.retain(|fd, name| self.descriptors.get(fd) != Some(name));
        let sockets = Sockets::around([pid]);
        let described = new.into_iter().filter_map(|(fd, name)| {
            let socket: Option<Socket> = inode_of(&name).map(|inode| sockets.get(inode, pid, fd));
            match socket {
                Some(socket) if stream::is_own(socket.inode) => None,
                Some(socket) => Some(format!("descriptor {fd}: {socket}")),
                // The folder that is being read, closed by now.
                None if name == format!("/proc/{pid}/fd") => None,
                None => Some(format!("descriptor {fd}: {name}")),
            }
        });
        described.collect()
    }

    /// Asserts that the process has no descriptors that it had not then. What is being closed has the kit's
    /// [patience](super::patience) to be closed.
    ///
    /// # Panics
    ///
    /// When it has, with what each is; and as [`of`](Self::of).
    #[track_caller]
    pub fn assert_nothing_leaked(&self) {
        let until = Instant::now() + super::patience();
        loop {
            let leaked = self.leaked();
            if leaked.is_empty() {
                return;
            }
            let process = &self.process;
            assert!(Instant::now() < until, "process {process} has leaked descriptors:\n  {}", leaked.join("\n  "));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Asserts that what `name` says of something is the same before and after `body`: that the parent's session at the server
/// (`CLIENT ID`, `pg_backend_pid()`) survives what its children do.
///
/// ```
/// use forksafe::testing::{self, PrivateRedis};
///
/// let redis = PrivateRedis::start();
/// let mut conn = redis::Client::open(redis.url())?.get_connection()?;
/// let id = |conn: &mut redis::Connection| redis::cmd("CLIENT").arg("ID").query::<u64>(conn).unwrap();
/// testing::assert_kept("the parent's session", &mut conn, id, |_| testing::child(|| ()).join());
/// # Ok::<_, redis::RedisError>(())
/// ```
///
/// # Panics
///
/// When it is not, with both.
#[track_caller]
pub fn assert_kept<S, T: PartialEq + Debug, R>(
    what: &str,
    subject: &mut S,
    name: impl Fn(&mut S) -> T,
    body: impl FnOnce(&mut S) -> R,
) -> R {
    super::environment::obey();
    let before = name(subject);
    let result = body(subject);
    let after = name(subject);
    assert!(
        before == after,
        "{what} was not kept: it was {before:?} and is {after:?} (in process {})",
        std::process::id()
    );
    result
}

/// Asserts that `count` comes to be `expected`: the sessions that a server has, say. A server takes a moment to notice the
/// end of one.
///
/// # Panics
///
/// When it does not within the kit's [patience](super::patience), with what it was last.
#[track_caller]
pub fn assert_comes_to<T: PartialEq + Debug>(what: &str, expected: T, mut count: impl FnMut() -> T) {
    let until = Instant::now() + super::patience();
    loop {
        let now = count();
        if now == expected {
            return;
        }
        assert!(Instant::now() < until, "{what}: should come to be {expected:?} and is still {now:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
