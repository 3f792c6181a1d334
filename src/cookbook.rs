//! Recipes: what programs that fork do with a pool. (Documentation only.)
//!
//! Each says what goes wrong without it. How to make a manager of a client of your own is in [`wrap`](crate::wrap).
//!
//! # A prefork server
//!
//! The pool is built in the master and used there, workers are forked, and each has threads. Without a pool that notices, the
//! workers speak on the master's sockets, and users read each other's answers.
//!
#![cfg_attr(feature = "redis", doc = "```no_run")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! use forksafe::Pool;
//! use std::time::Duration;
//!
//! const WORKERS: usize = 4;
//! const THREADS: u32 = 5;
//!
//! let pool = Pool::builder()
//!     .max_size(THREADS) // of each process
//!     .connection_timeout(Duration::from_secs(5)) // less than the patience of who waits for the page
//!     .build(redis::Client::open("redis://cache.example/")?)?;
//! redis::cmd("PING").exec(&mut pool.get()?)?; // the server is there, or nothing starts
//!
//! for _ in 0..WORKERS {
//!     // SAFETY: this process has no other threads yet.
//!     if unsafe { libc::fork() } == 0 {
//!         std::thread::scope(|scope| {
//!             for _ in 0..THREADS {
//!                 scope.spawn(|| redis::cmd("INCR").arg("pages").exec(&mut pool.get()?).map_err(Box::<dyn std::error::Error + Send + Sync>::from));
//!             }
//!         });
//!         std::process::exit(0);
//!     }
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//!
//! ```
//! `max_size` counts in each process. As many as it has threads that use the pool is enough: more are never lent, and with fewer some
//! wait. The server has to have room for (workers + 1) × `max_size`, and while workers are replaced for those of the old and
//! the new. Fork before the master starts threads of its own: what else a fork in a threaded process can break is in the README,
//! section "Limits".
//!
//! # A job runner
//!
//! A process for each job. Without care each job is born with its parent's sockets, and a job that ends says its parent's goodbye.
//! Here a job that needs no connection opens none, and its exit says nothing to anybody:
//!
#![cfg_attr(feature = "redis", doc = "```no_run")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! # use forksafe::Pool;
//! fn run(pool: &Pool<redis::Client>, job: impl FnOnce(&Pool<redis::Client>) -> i32) -> std::io::Result<libc::pid_t> {
//!     // SAFETY: the job is as restricted as any child of a process with threads.
//!     match unsafe { libc::fork() } {
//!         -1 => Err(std::io::Error::last_os_error()),
//!         0 => {
//!             let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(pool))).unwrap_or(101);
//!             pool.close(); // its own connections: the server hears a goodbye
//!             // SAFETY: ends the process, without the exit handlers of the parent.
//!             unsafe { libc::_exit(code) }
//!         }
//!         child => Ok(child),
//!     }
//! }
//! # let _ = |pool: Pool<redis::Client>| run(&pool, |pool| i32::from(pool.get().is_err()));
//!
//! ```
//! A connection that the parent holds while it forks stays the parent's. In the job, its guard is an error when it is used
//! ([`try_as_mut`](crate::PooledConnection::try_as_mut)) and nothing when it is dropped. Connecting costs each job a handshake; where jobs
//! are many and short, let a process do several.
//!
//! # An extension of Python, Ruby or PHP
//!
//! A `cdylib` that gunicorn, Celery, Puma or PHP-FPM loads before it forks. Nobody calls a hook in the workers, and the host does not
//! know that there is something to call. With a pool that notices by itself there is nothing to export but the work:
//!
#![cfg_attr(feature = "redis", doc = "```no_run")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! use forksafe::Pool;
//! use forksafe::fork::PerProcess;
//!
//! /// Made on first use, in each process anew: a fork can find it half made, and nobody waits for the parent.
//! static POOL: PerProcess<Pool<redis::Client>> = PerProcess::new(|| {
//!     let url = std::env::var("CACHE_URL").unwrap_or_else(|_| "redis://127.0.0.1/".to_owned());
//!     Pool::builder().max_size(4).build_unchecked(redis::Client::open(url).expect("CACHE_URL is no url"))
//! });
//!
//! fn count() -> Result<i64, Box<dyn std::error::Error>> {
//!     Ok(redis::cmd("INCR").arg("visits").query(&mut POOL.get()?)?)
//! }
//!
//! /// -1 says that it failed. No panic goes through to the host.
//! #[unsafe(no_mangle)]
//! pub extern "C" fn visits_count() -> i64 {
//!     std::panic::catch_unwind(|| count().unwrap_or(-1)).unwrap_or(-1)
//! }
//!
//! ```
//! # A library inside somebody else's server
//!
//! You do not know who forks, when, or whether at all. Take the pool from your caller, or make one and keep it; do not ask for a call
//! after each fork, for somebody will forget it. What can still go wrong is a manager that names no descriptors: its
//! connections would stay open in each worker. Have that be an error:
//!
#![cfg_attr(feature = "redis", doc = "```no_run")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! use forksafe::{ManageConnection, Pool};
//!
//! pub struct Sessions<M: ManageConnection> {
//!     pool: Pool<M>,
//! }
//!
//! impl<M: ManageConnection> Sessions<M> {
//!     pub fn new(manager: M) -> Result<Self, forksafe::Error> {
//!         forksafe::fork::enter(); // before this library starts threads: forks are noticed from here on
//!         Ok(Self { pool: Pool::builder().name("sessions").require_known_descriptors(true).build(manager)? })
//!     }
//! }
//! # let _ = |client: redis::Client| Sessions::new(client);
//!
//! ```
//! # A tokio runtime in each process
//!
//! The threads of a runtime are not forked. In a worker a `block_on` that needs one of them hangs for ever, and the runtime's event loop
//! is its parent's.
//!
//! ```no_run
//! use forksafe::fork::PerProcess;
//! use tokio::runtime::Runtime;
//!
//! static RUNTIME: PerProcess<Runtime> = PerProcess::new(|| Runtime::new().expect("threads and descriptors"));
//!
//! // SAFETY: as above.
//! let is_worker = unsafe { libc::fork() } == 0;
//! let sum = RUNTIME.block_on(async { tokio::spawn(async { 6 * 7 }).await });
//! assert_eq!(sum.unwrap(), 42, "{is_worker}");
//! ```
//!
//! From async code, use a pool inside `tokio::task::spawn_blocking`: `get` may wait.
//!
//! # Reads here, writes there
//!
//! Two pools, not one that guesses. Without `target_session_attrs` a failover leaves the writers on a server that has become a replica:
//! each write fails until somebody restarts the program.
//!
#![cfg_attr(feature = "postgres", doc = "```no_run")]
#![cfg_attr(not(feature = "postgres"), doc = "```ignore")]
//! use forksafe::Pool;
//! use forksafe::postgres::PostgresManager;
//! use postgres::NoTls;
//!
//! struct Database {
//!     writes: Pool<PostgresManager<NoTls>>,
//!     reads: Pool<PostgresManager<NoTls>>,
//! }
//!
//! let of = |which: &str| -> Result<_, Box<dyn std::error::Error>> {
//!     let config = format!("host=db1,db2 user=app connect_timeout=2 {which}").parse()?;
//!     Ok(Pool::builder().max_size(4).build(PostgresManager::new(config, NoTls))?)
//! };
//! let database = Database {
//!     writes: of("target_session_attrs=read-write")?,
//!     reads: of("load_balance_hosts=random")?,
//! };
//!
//! let mut conn = database.writes.get()?;
//! if let Err(error) = conn.execute("UPDATE accounts SET balance = 0", &[]) {
//!     // A master that is one no more condemns all connections to it, not only this one.
//!     forksafe::PooledConnection::report(&mut conn, &error);
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//!
//! ```
//! What was written a moment ago may not be on the replica yet: read it where you wrote it.
//!
//! # A test that a program survives fork
//!
//! Without one, the next change brings the trouble back, and no unit test forks. A whole guide is in
//! [`testing::guide`](https://docs.rs/forksafe/latest/forksafe/testing/guide/); this is the least of it:
//!
#![cfg_attr(all(feature = "redis", feature = "testing"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "redis", feature = "testing")), doc = "```ignore")]
//! use forksafe::Pool;
//! use forksafe::testing::{self, PrivateRedis};
//!
//! fn a_worker_has_a_session_of_its_own() {
//!     testing::clean_process(|| {
//!         let server = PrivateRedis::start();
//!         let pool = Pool::new(redis::Client::open(server.url()).unwrap()).unwrap();
//!         let session = || -> u64 { redis::cmd("CLIENT").arg("ID").query(&mut pool.get().unwrap()).unwrap() };
//!         let masters = session();
//!         assert_ne!(testing::child(session).join(), masters, "a child that hangs is an error, with its backtrace");
//!         assert_eq!(session(), masters, "and the master still has its own");
//!     });
//! }
//! # let _ = a_worker_has_a_session_of_its_own;
//!
//! ```
//! # Passwords that change
//!
//! A token that is good for 15 minutes (IAM, Entra ID) or a lease (Vault), put into the url at the start: the pool works for 15
//! minutes, and then only what is connected already; each worker that is forked later fails at once. Have each connect ask:
//!
#![cfg_attr(all(feature = "redis", feature = "postgres"), doc = "```no_run")]
#![cfg_attr(not(all(feature = "redis", feature = "postgres")), doc = "```ignore")]
//! use forksafe::postgres::PostgresManager;
//! use forksafe::redis::RedisManager;
//! use forksafe::{Credentials, Deadline, Pool};
//! use std::{fs, io, time::Duration};
//!
//! // Whoever renews it writes it there: an agent of the vault's, a mounted secret.
//! fn renewed(path: &str) -> io::Result<Credentials> {
//!     Ok(Credentials::password(fs::read_to_string(path)?.trim_end()))
//! }
//!
//! let config = "host=db.example user=app".parse()?;
//! let database = PostgresManager::new(config, postgres::NoTls).credentials(|_: Deadline| renewed("/run/secrets/db"));
//! let cache = RedisManager::open("redis://cache.example/")?.credentials(|_: Deadline| renewed("/run/secrets/cache"));
//! // Less than a lease lasts, for the server may end its sessions with it.
//! let database = Pool::builder().max_lifetime(Some(Duration::from_secs(600))).retry_connect(true).build(database)?;
//! # let _ = (database, cache);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//!
//! ```
//! # A pool in a static
//!
//! `LazyLock<Pool<_>>` (and `OnceLock`, `lazy_static`, `once_cell::sync`) is a trap where threads of the master may fork: if one of
//! them is just making the value when another forks, the child finds it being made by a thread that it does not have, and waits for ever.
//! [`PerProcess`](crate::fork::PerProcess) is the cure, as in the extension above: what is half made at a fork is abandoned, and the child makes
//! its own. Or make sure that it is whole before there are threads:
//!
#![cfg_attr(feature = "redis", doc = "```no_run")]
#![cfg_attr(not(feature = "redis"), doc = "```ignore")]
//! use forksafe::Pool;
//! use std::sync::LazyLock;
//!
//! static POOL: LazyLock<Pool<redis::Client>> =
//!     LazyLock::new(|| Pool::builder().build_unchecked(redis::Client::open("redis://127.0.0.1/").expect("a url")));
//!
//! fn main() {
//!     LazyLock::force(&POOL); // first thing: no thread can be in the middle of it at a fork
//!     // ...
//! }
//!
//! ```
