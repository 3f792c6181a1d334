//! Prove that your program survives fork.
//!
//! A program that opens a connection and then forks works in every test that does not fork, and in most that do: two
//! processes on one socket garble each other's answers only when their questions meet. So the test must not wait for the
//! accident. It looks for what makes the accident possible, and it forces the order in which it happens.
//!
//! The examples below are complete files; they are tests of this crate (`cargo test --test guide`).
//!
//! ```toml
//! [dev-dependencies]
//! forksafe = { version = "0.1", features = ["testing"] }
//! ```
//!
//! # The shape of such a test
//!
//! 1. [`clean_process`](super::clean_process): descriptors, limits and children belong to a process, and the tests of one
//!    program share theirs. The body runs in a process of its own.
//! 2. Use the connection *before* the fork. That is the mistake that the program must survive, and without it there is
//!    nothing to inherit.
//! 3. [`child`](super::child) runs a closure in a forked child and brings its value back. A child that panics, exits, dies
//!    or hangs fails the test with the reason; one that hangs is shown with a backtrace. [`Way`](super::Way) does the same
//!    for every way of making a child that the machine permits, and [`Spawn`](super::Spawn) for other programs.
//! 4. Judge: what did the child touch, and does the parent still have what it had?
//!
//! | question | answer |
//! | --- | --- |
//! | do two processes hold the same connection? | [`assert_nothing_shared`](super::assert_nothing_shared); for a program that runs, `forksafe-audit` (`cargo install forksafe --features testing`) |
//! | did the child write on its parent's connections, or end one? | [`Tap`](super::Tap), before any server |
//! | who wrote on which connection? | [`Witness`](super::Witness), instead of a server |
//! | is a connection safe that nobody has registered? | [`Witness::client`](super::Witness::client), which is one |
//! | does the parent keep its session? | [`assert_kept`](super::assert_kept) |
//! | do the server's sessions end with the child? | [`assert_comes_to`](super::assert_comes_to) |
//! | are descriptors left behind? | [`Snapshot`](super::Snapshot) |
//!
//! # A user of Redis
//!
//! The pool is this crate's. The first test asks the server for its name of the session, the second listens on the wire.
//!
#![doc = concat!("```no_run\n", include_str!("../../tests/guide/redis_user.rs"), "```")]
//!
//! # A user of PostgreSQL
//!
//! The second test is the one that matters most: `Transaction` rolls back when it is dropped, and a worker drops its copy.
//!
#![doc = concat!("```no_run\n", include_str!("../../tests/guide/postgres_user.rs"), "```")]
//!
//! # A client of another make
//!
//! Nothing of this crate is in the program that the first two tests are about, and they fail, as they should: that is what
//! `should_panic` says here. Yours will not have it. The third shows the cure for a client of one's own.
//!
#![doc = concat!("```no_run\n", include_str!("../../tests/guide/another_client.rs"), "```")]
//!
//! # A client of another make, and the net
//!
//! [`fork::net`](crate::fork::net) is for connections that nobody has registered.
//!
#![doc = concat!("```no_run\n", include_str!("../../tests/guide/net_user.rs"), "```")]
//!
//! # A pool of another make
//!
#![doc = concat!("```no_run\n", include_str!("../../tests/guide/another_pool.rs"), "```")]
//!
//! # Forcing an order
//!
//! Whoever sleeps to let the other process go first has a test that fails on a busy machine, or one that never sees the
//! bad order. [`Steps`](super::Steps) are taken and waited for across processes.
//!
#![doc = concat!("```no_run\n", include_str!("../../tests/guide/orders.rs"), "```")]
//!
//! # See it fail
//!
//! A test that cannot fail proves nothing. For programs that use this crate there is a switch that turns the protection
//! off: run the test once with `FORKSAFE_CONTROL=1` in the environment (or call [`unsafe_share`](super::unsafe_share)),
//! and it has to fail. Whatever is used of the kit reads it, so it must be used before the fork; that the protection is
//! off is then said on standard error, by a line for each process. A run without that line shows nothing.
//!
//! ```sh
//! FORKSAFE_CONTROL=1 cargo test workers_count_on_connections_of_their_own   # must fail
//! ```
//!
//! # What a child must not do
//!
//! The harness has threads, and a child inherits the locks that they hold, locked. In a child of a process with busy
//! threads `println!`, `std::thread::spawn` and whatever takes a global lock may wait for ever; the kit itself takes none
//! there. Say what you have to say with the value that the closure returns, or by a panic.
