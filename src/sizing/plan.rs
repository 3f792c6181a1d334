//! What a deployment is made of.

use super::surge::Surge;
use super::text::safe;

/// What a deployment is made of: hosts, workers and threads, the pools of each worker, and who else has connections.
///
/// It counts the whole deployment, not what one process has. Sizes are limits: a pool of `max_size` 5 counts as 5, though it
/// opens no more than are asked for at once.
///
/// ```
/// use forksafe::sizing::{Plan, Surge};
///
/// // Heroku: four dynos, WEB_CONCURRENCY=2, RAILS_MAX_THREADS=5.
/// let plan = Plan::new()
///     .hosts(4)
///     .workers(2)
///     .threads(5)
///     .pool("db", 5)
///     .pool("cache", 3)
///     .master("db", 1)
///     .background("sidekiq", 2, [("db", 10), ("cache", 12)])
///     .background("consoles", 2, [("db", 1)])
///     .surge(Surge::Preboot);
///
/// assert_eq!(plan.parallelism(), 40);
/// assert_eq!(plan.demand("db").at_work(), 4 * (2 * 5 + 1) + 2 * 10 + 2);
/// assert_eq!(plan.demand("db").at_worst(), 2 * 4 * (2 * 5 + 1) + 2 * 10 + 2);
/// let waits: Vec<_> = plan.pools().filter(|pool| pool.waiting() > 0).map(|pool| pool.server().to_owned()).collect();
/// assert_eq!(waits, ["cache"]);
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) hosts: u32,
    pub(super) workers: u32,
    pub(super) threads: u32,
    pub(super) pools: Vec<Held>,
    pub(super) masters: Vec<Held>,
    pub(super) background: Vec<Background>,
    pub(super) surges: Vec<Surge>,
}

/// So many connections to a server.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) server: String,
    pub(super) connections: u32,
}

impl Held {
    fn new(server: impl Into<String>, connections: u32) -> Self {
        // The name comes to be printed, and somebody may take a url for one.
        Self { server: safe(&server.into()), connections }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Background {
    pub(super) name: String,
    pub(super) processes: u32,
    pub(super) each: Vec<Held>,
}

impl Default for Plan {
    fn default() -> Self {
        Self::new()
    }
}

impl Plan {
    /// One host with one worker of one thread, and no pools.
    pub fn new() -> Self {
        let none = Vec::new;
        Self {
            hosts: 1,
            workers: 1,
            threads: 1,
            pools: none(),
            masters: none(),
            background: Vec::new(),
            surges: Vec::new(),
        }
    }

    /// Machines, containers or dynos that each run a master with its workers. Default: 1.
    ///
    /// # Panics
    ///
    /// With 0.
    #[must_use]
    pub fn hosts(mut self, hosts: u32) -> Self {
        assert!(hosts > 0, "a plan needs a host");
        self.hosts = hosts;
        self
    }

    /// Processes that a master forks, on each host. 0 is Puma's single mode: nothing is forked, the one process does the work.
    /// Default: 1.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Threads of each worker that handle requests. Default: 1.
    ///
    /// # Panics
    ///
    /// With 0.
    #[must_use]
    pub fn threads(mut self, threads: u32) -> Self {
        assert!(threads > 0, "a worker needs a thread");
        self.threads = threads;
        self
    }

    /// Each worker has a pool of so many connections to this server. May be called again, for the same server, too.
    ///
    /// The name is for people, and for [`Report::server`](super::Report::server): `db`, `cache`. One that is a url is kept without its user
    /// and password.
    ///
    /// # Panics
    ///
    /// With 0, as a pool does.
    #[must_use]
    pub fn pool(mut self, server: impl Into<String>, max_size: u32) -> Self {
        assert!(max_size > 0, "a pool needs a max_size of 1 at least");
        self.pools.push(Held::new(server, max_size));
        self
    }

    /// The master of each host holds so many itself: it used its pool before it forked. Nothing in single mode, where it is the worker.
    /// Default: none.
    #[must_use]
    pub fn master(mut self, server: impl Into<String>, connections: u32) -> Self {
        self.masters.push(Held::new(server, connections));
        self
    }

    /// So many other processes in all (not on each host), with so many connections each: job workers, consoles, cron. A
    /// [`Surge`] does not multiply them.
    #[must_use]
    pub fn background<S: Into<String>>(
        mut self,
        name: impl Into<String>,
        processes: u32,
        connections_each: impl IntoIterator<Item = (S, u32)>,
    ) -> Self {
        let each = connections_each.into_iter().map(|(server, connections)| Held::new(server, connections)).collect();
        self.background.push(Background { name: safe(&name.into()), processes, each });
        self
    }

    /// What comes on top for a moment. Of several the worst counts, they do not come together. Default: nothing.
    #[must_use]
    pub fn surge(mut self, surge: Surge) -> Self {
        self.surges.push(surge);
        self
    }

    /// As they were given: see [`threads`](Self::threads).
    pub fn threads_of_worker(&self) -> u32 {
        self.threads
    }

    /// As they were given: see [`workers`](Self::workers).
    pub fn workers_of_host(&self) -> u32 {
        self.workers
    }

    /// Requests that are handled at once: hosts x workers x threads.
    pub fn parallelism(&self) -> u64 {
        // No product of three such numbers is beyond this.
        let product = u128::from(self.hosts) * u128::from(self.serving()) * u128::from(self.threads);
        u64::try_from(product).unwrap_or(u64::MAX)
    }

    /// The processes of a host that serve.
    pub(super) fn serving(&self) -> u32 {
        self.workers.max(1)
    }

    /// The servers that anybody has connections to, in the order in which they were first named.
    pub fn servers(&self) -> Vec<&str> {
        let background = self.background.iter().flat_map(|group| &group.each);
        let mut servers = Vec::new();
        for held in self.pools.iter().chain(&self.masters).chain(background) {
            if !servers.contains(&&*held.server) {
                servers.push(&*held.server);
            }
        }
        servers
    }

    /// The pools of a worker, and whether each of its threads can have a connection of them.
    pub fn pools(&self) -> impl Iterator<Item = PoolFit<'_>> {
        let threads = self.threads;
        self.pools.iter().map(move |pool| PoolFit { server: &pool.server, max_size: pool.connections, threads })
    }
}

/// Whether each thread of a worker can have a connection of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolFit<'a> {
    server: &'a str,
    max_size: u32,
    threads: u32,
}

impl<'a> PoolFit<'a> {
    /// Where it connects to.
    pub fn server(&self) -> &'a str {
        self.server
    }

    /// As it was given.
    pub fn max_size(&self) -> u32 {
        self.max_size
    }

    /// Threads that have to wait when all want a connection.
    pub fn waiting(&self) -> u32 {
        self.threads.saturating_sub(self.max_size)
    }

    /// Connections that no thread ever needs, if none takes two at once.
    pub fn wasted(&self) -> u32 {
        self.max_size.saturating_sub(self.threads)
    }
}
