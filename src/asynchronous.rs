//! Async libraries in programs that fork: what a worker cannot use of what its parent made, what to do instead, and how to say so.
//! (Documentation only.)
//!
//! A library keeps a runtime in a static, as many do. A host loads it, uses it once and forks (`gunicorn --preload`, `multiprocessing`), and
//! the first call in a worker never returns. There is no error and no log line: the call waits for a thread that was
//! not forked. Of a process, `fork` copies the memory, the descriptors, and one thread.
//!
//! # What does not cross a fork
//!
//! - *Threads*: a runtime's workers, its thread for timers and I/O, its blocking threads; rayon's; those that a blocking client hides.
//! - *Event loops.* An epoll is shared with the parent, not copied. Whoever waits on it in the child may take the parent's events.
//! - *Connections.* Two processes write into one stream, and each reads what the other was answered.
//! - *Tasks.* Whoever sends to one over a channel, or waits for its `JoinHandle`, waits for nobody.
//! - *What was held*: a lock, a permit, a `OnceLock` that a thread was just filling, is held for ever.
//!
//! # What becomes of what
//!
//! | made and used before the fork | in a worker | instead |
//! | --- | --- | --- |
//! | `tokio::runtime::Runtime` of several threads | what is spawned never runs; timers and sockets never wake anybody, timeouts included: a hang | [`PerProcess`](crate::fork::PerProcess) |
//! | the same of one thread (`current_thread`) | it runs, on its parent's epoll: an event may wake it in the parent's place, which waits on; a drop takes the parent's sockets off it (with the [net](#the-sockets) it has an epoll of its own, if the parent's watched a connection) | [`PerProcess`](crate::fork::PerProcess) |
//! | `sqlx::PgPool` | a hang, or the answer to another's question; the parent gets a worker's, too | [`PerProcess`](crate::fork::PerProcess), made in the runtime of the same process; and the [net](#the-sockets) |
//! | `redis::aio::MultiplexedConnection` | a hang: the task that writes its commands is not there, nor the clock of its timeout | as for `sqlx` |
//! | `reqwest::blocking::Client` | a hang: it has a runtime of its own, on a thread | [`PerProcess`](crate::fork::PerProcess) |
//! | rayon itself (`par_iter`, `join`, `spawn`) | a hang, as soon as there is something to divide; its threads are not made again | a `rayon::ThreadPool` in a [`PerProcess`](crate::fork::PerProcess), and [`install`](#rayon) |
//! | `mongodb::sync::Client` | a hang: the crate has its runtime in a static, and a new client does not help | its async `Client`, in a runtime of one's own; or [refuse](#a-clear-error-instead-of-a-hang) |
//!
//! Tests of this crate's show that they go wrong, and that what stands beside them is right under gunicorn, `multiprocessing` and `os.fork`
//! (`tests/python`). The second and the last were seen by hand, with tokio 1.54.1 and mongodb 3.9.1.
//!
//! What a library hides in a static of its own cannot be replaced from outside. Look for it: `LazyLock`, `OnceLock`, `lazy_static` around a `Runtime`
//! or a `Handle`.
//!
//! # Each process its own
//!
//! ```
//! use forksafe::fork::PerProcess;
//! use tokio::runtime::Runtime;
//!
//! static RUNTIME: PerProcess<Runtime> = PerProcess::new(|| Runtime::new().expect("threads and descriptors"));
//!
//! fn twice(number: u32) -> u32 {
//!     RUNTIME.block_on(async move { tokio::spawn(async move { number * 2 }).await.expect("it does not panic") })
//! }
//!
//! assert_eq!(twice(3), 6); // the classic mistake: used before the fork
//! // SAFETY: the child computes, and leaves.
//! match unsafe { libc::fork() } {
//!     0 => unsafe { libc::_exit(i32::from(twice(4) != 8)) },
//!     child => {
//!         let mut status = 0;
//!         unsafe { libc::waitpid(child, &mut status, 0) };
//!         assert_eq!(status, 0, "the child has threads of its own");
//!         assert_eq!(twice(5), 10, "and so has the parent, as before");
//!     }
//! }
//! ```
//!
//! The parent's is neither used nor dropped in the child: a drop may wait for its threads. Where making it may fail, have the initialiser
//! return a `Result`, and use [`try_get`](crate::fork::PerProcess::try_get).
//!
//! *What lives in a runtime goes with it.* A pool, a client, a channel to a task: each in a [`PerProcess`](crate::fork::PerProcess), whose
//! initialiser asks for the runtime. A struct that holds them all in one does as well, and is one thing to think of. What keeps a `Handle`, or a
//! clone of the client, across a fork has the parent's.
//!
//! *Background tasks* are begun where the runtime is made, so that each process has them:
//!
//! ```no_run
//! use forksafe::fork::PerProcess;
//! use std::time::Duration;
//! use tokio::runtime::Runtime;
//! use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
//!
//! struct Metrics {
//!     sender: UnboundedSender<u64>,
//!     _runtime: Runtime,
//! }
//!
//! static METRICS: PerProcess<Metrics> = PerProcess::new(|| {
//!     let runtime = Runtime::new().expect("threads and descriptors");
//!     let (sender, mut values) = unbounded_channel();
//!     runtime.spawn(async move {
//!         while let Some(value) = values.recv().await {
//!             tokio::time::sleep(Duration::from_millis(10)).await; // or send it
//!             let _: u64 = value;
//!         }
//!     });
//!     Metrics { sender, _runtime: runtime }
//! });
//! METRICS.sender.send(1)?;
//! # Ok::<_, tokio::sync::mpsc::error::SendError<u64>>(())
//! ```
//!
//! *An initialiser that blocks is asked for before `block_on`, not inside.* One that connects with `block_on` is the trap: tokio panics where its first
//! use is in async code (`Cannot start a runtime from within a runtime`), which in a worker may be another place than in the parent.
//!
//! ```no_run
//! # use forksafe::fork::PerProcess;
//! # use tokio::runtime::Runtime;
//! # struct Client;
//! # impl Client { async fn connect() -> Self { Self } async fn ask(&self) {} }
//! # static RUNTIME: PerProcess<Runtime> = PerProcess::new(|| Runtime::new().unwrap());
//! static CLIENT: PerProcess<Client> = PerProcess::new(|| RUNTIME.block_on(Client::connect()));
//!
//! let client = PerProcess::get(&CLIENT);
//! RUNTIME.block_on(async { client.ask().await });
//! ```
//!
//! # The sockets
//!
//! What a [`PerProcess`](crate::fork::PerProcess) abandons stays open in the child: nobody uses the parent's sockets there, but the server sees
//! the parent's sessions end only with its last worker. `fork::net` (feature `net`) has each child put a dead socket over every outgoing
//! connection, whoever opened it: `Policy::tcp().set()` where the library begins. It does that alone, too, but a net does not bring back
//! threads: without the above a worker still hangs.
//!
//! # Rayon
//!
//! Its own threads are made once in a process, and a worker inherits that they have been. So they must not be used before the fork; or not at
//! all:
//!
#![doc = concat!("```ignore\n", include_str!("../tests/guide/own_threads.rs"), "```")]
//!
//! # A clear error instead of a hang
//!
//! Not everything can be made anew: a runtime that has state which a worker would miss, a client of a crate with a static runtime.
//! Such things must be first used after the fork, and a library has two ways to say so to its users, who see a hang otherwise.
//!
//! [`PerProcess::get_unless_inherited`](crate::fork::PerProcess::get_unless_inherited) is [`get`](crate::fork::PerProcess::get), and an
//! error in a worker whose parent has made it, or has begun to:
//!
//! ```
//! use forksafe::fork::{NotMadeHere, PerProcess};
//! use tokio::runtime::Runtime;
//!
//! static RUNTIME: PerProcess<Runtime> = PerProcess::new(|| Runtime::new().expect("threads and descriptors"));
//!
//! /// # Errors
//! ///
//! /// In a process that was forked after the first use.
//! pub fn answer() -> Result<u32, NotMadeHere> {
//!     Ok(PerProcess::get_unless_inherited(&RUNTIME)?.block_on(async { 42 }))
//! }
//! # assert_eq!(answer(), Ok(42));
//! ```
//!
//! ```text
//! this was first used in process 4711, before the fork that led to this one, and does not work in its children: use it only after
//! the fork, in each process for itself
//! ```
//!
//! [`MadeHere`](crate::fork::MadeHere) is for a value that is handed out: an object that a Python program made and keeps, a connection, an
//! iterator. Each use asks whether this is the process that made it, and a drop elsewhere forgets it.
//!
//! ```
//! use forksafe::fork::{MadeHere, NotMadeHere};
//! use tokio::runtime::Runtime;
//!
//! pub struct Client {
//!     runtime: MadeHere<Runtime>,
//! }
//!
//! impl Client {
//!     pub fn new() -> std::io::Result<Self> {
//!         Ok(Self { runtime: MadeHere::new(Runtime::new()?) })
//!     }
//!
//!     pub fn ask(&self) -> Result<u32, NotMadeHere> {
//!         Ok(self.runtime.get()?.block_on(async { 42 }))
//!     }
//! }
//! # assert_eq!(Client::new()?.ask(), Ok(42));
//! # std::io::Result::Ok(())
//! ```
//!
//! # A module for Python
//!
//! With [PyO3](https://pyo3.rs). Python's programmers call it wherever they like, before the fork and after; this is a complete module, and a test
//! of this crate's:
//!
#![doc = concat!("```ignore\n", include_str!("../tests/guide/python_module.rs"), "```")]
//!
//! *With maturin* there is nothing to do but what one does: forksafe and tokio are linked into the wheel's one library.
//!
//! ```toml
//! # Cargo.toml
//! [lib]
//! name = "quotes"
//! crate-type = ["cdylib"]
//!
//! [dependencies]
//! forksafe = { version = "0.1", features = ["net"] }
//! pyo3 = { version = "0.30", features = ["abi3-py39"] }
//! sqlx = { version = "0.8", features = ["postgres", "runtime-tokio"] }
//! tokio = { version = "1", features = ["rt-multi-thread"] }
//!
//! # pyproject.toml
//! [build-system]
//! requires = ["maturin>=1,<2"]
//! build-backend = "maturin"
//!
//! [tool.maturin]
//! features = ["pyo3/extension-module"]
//! ```
//!
//! A wheel with two such modules has two copies of this crate, each of which looks after its own: in the second, too, a policy of the net is set.
//! Without maturin: `cargo build --release --features pyo3/extension-module`, and `libquotes.so` on Python's path as `quotes.abi3.so`. (A host that
//! unloads libraries wants more: README, "Limits".)
//!
//! `os.register_at_fork` is no substitute: whoever forks without Python (an embedding host, another extension) does not call it, and the library cannot know
//! that its user has forgotten it.
//!
//! # Prove it
//!
//! A test that does not fork does not see any of this. Have the parent use everything, fork, and give the child a time limit: with
//! [`testing`](https://docs.rs/forksafe/latest/forksafe/testing/guide/) from Rust, where a child that hangs is shown with its
//! backtrace, and from Python with `multiprocessing.get_context("fork")` and a `join(timeout)`.
