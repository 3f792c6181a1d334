//! Connections that nobody told us about: a child disowns those as well.
//!
//! A pool protects what it has opened. A program has other clients: an HTTP client's keep-alive connections, a message broker's, a
//! database driver's own pool, a library's. Their sockets are inherited like any other, and two processes on one socket read each
//! other's answers. With a [`Policy`] set, each child walks its whole table of descriptors at birth, and puts a dead socket over every
//! *outgoing* connection in it: reads end, writes fail, the parent's session goes on, and what the client in the child does next is
//! what it does when a server has gone away. It connects anew, or says so.
//!
//! ```
//! use forksafe::fork::net::Policy;
//! use std::io::{ErrorKind, Read, Write};
//! use std::net::{TcpListener, TcpStream};
//!
//! Policy::tcp().set()?; // first thing in `main`
//!
//! let server = TcpListener::bind("127.0.0.1:0")?;
//! let mut client = TcpStream::connect(server.local_addr()?)?; // anybody's
//! // SAFETY: the child writes, compares and leaves.
//! match unsafe { libc::fork() } {
//!     0 => {
//!         let error = client.write(b"from the child").unwrap_err();
//!         unsafe { libc::_exit(i32::from(error.kind() != ErrorKind::BrokenPipe)) }
//!     }
//!     child => {
//!         let mut status = 0;
//!         unsafe { libc::waitpid(child, &mut status, 0) };
//!         assert_eq!(status, 0, "dead in the child");
//!         client.write_all(b"from the parent")?; // alive here
//!         let (mut there, _) = server.accept()?;
//!         let mut said = [0; 15];
//!         there.read_exact(&mut said)?;
//!         assert_eq!(&said, b"from the parent");
//!     }
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! A program that cannot be changed, in whatever language, is run under `forksafe-run`, which loads the same net into it: by `LD_PRELOAD`, which
//! `su -`, `runuser -l`, `sudo` and `env -i` do not hand on. So it goes after those, `sudo -u www-data forksafe-run puma`.
//!
//! # What is taken
//!
//! | | |
//! | --- | --- |
//! | TCP that this side has connected, or is connecting | always, but for [`Policy::none`] |
//! | a TCP socket without a peer that has no port, or had a peer | as TCP: it is about to be connected, or over, perhaps with an answer in it |
//! | unix streams whose peer's path fits a pattern | [`Policy::unix`] |
//! | UDP that is connected | [`Policy::udp`] |
//!
//! # What is left alone
//!
//! - What is registered: a pool's connections, [`Guarded`](super::Guarded) and [`Registration`](super::Registration). The registry
//!   knows more of them, and does it better.
//! - Connections that were accepted. They are handed to children on purpose: by a PostgreSQL server, inetd, sshd. Who connected is
//!   reckoned from what the kernel counts of each connection, so it does not matter whether the listener is still there. Where the counts
//!   say nothing (kernels before 4.19, emulators, packets that could not be queued, a connection that ends), a connection counts
//!   as accepted if this process listens at its local port, or if that port is none that the kernel gives to clients and `SO_REUSEADDR` is
//!   set, as servers do. Of unix streams the peer's name tells, and whether this process listens under their own.
//! - Descriptors 0 to 2, if they are what they were when the policy was set or are not close-on-exec; listening sockets, sockets that are bound and not connected, socket pairs, pipes,
//!   files, epolls.
//! - What is kept: by its peer ([`Policy::keep`]), its number ([`Policy::keep_descriptor`]), the program ([`Policy::keep_program`]), or for a
//!   while ([`keep`]).
//!
//! # Event loops
//!
//! An epoll is inherited itself and not copied: a child that goes on with its parent's takes the parent's events, and what it connects
//! anew the parent is told of, under a token that may be an address in the child (tokio's are) and nothing in the parent. So a child gets a new
//! epoll in the place of each that watches a disowned connection, under the same numbers, watching the same: what is dead hangs up there
//! at once, everything else is told to both processes. (What had been disarmed by `EPOLLONESHOT` may hang up, too.)
//!
//! An epoll is left as it is, and shared as without the net, if it watches nothing disowned (what is registered is not disowned by the net); or a file of another kind
//! than sockets, pipes, eventfds, timers, signals and epolls, for to watch one is to take its news; or if `/proc` does not tell (before Linux 4.12,
//! or of another user's process), or the parent has just taken the connection off it, or there is no room. Of more than 128 disowned connections the others
//! are not watched any more. In a child made without handlers, threads that already wait go on waiting at the parent's.
//!
//! # What it cannot know
//!
//! - *Whether a connection is handed on on purpose.* The preloaded library leaves alone programs of these names, and `program:NAME` in
//!   `FORKSAFE_KEEP` adds others:
//!
//!   | program | what it does with its connection |
//!   | --- | --- |
//!   | `ssh` | goes to the background with it (`-f`, ControlPersist), which is to live on as a child |
//!   | `rsync` | reads and writes in two processes, when it talks to a daemon |
//!   | `git`, `git-*` | has another program write into it, when it pushes to a daemon (`git://`) |
//!   | `bash`, `zsh` | hands it to the programs that it starts (`/dev/tcp`, `ztcp`) |
//!   | `socat` | talks in a child, with `TCP:…,fork` |
//!   | `pg_basebackup` | receives the log in a child, by a second connection (`-X stream`, the default) |
//!
//!   Others do the same and have to be kept by hand: `ncat --exec`; by what their sources say `dbclient -f`, `exim -MC`, `openconnect -b` and an `lftp` that
//!   goes to the background; a program that connects and makes a daemon of itself, one that makes a socket and
//!   lets its child connect it. The mode [`Report`](Mode::Report) shows whether there are some.
//! - *Who connected, always.* What counts for a server where the kernel's counts say nothing can be true of a client, too: one that has
//!   bound itself to a low port, with `SO_REUSEADDR`. And a server at a port that is given to clients, that has closed its listener, is
//!   taken for one. CRIU's restored connections have no counts.
//!   Where `getsockopt` is forbidden altogether nothing can be told, and nothing is taken.
//! - *What a child opened before the net ran.* A child made by libc's `fork` is swept before `fork` returns; only another library's
//!   fork handler can come before that, and what such a handler connects is swept, too. A child made by `_Fork` or a raw `clone` is
//!   swept at its first call into this crate ([`enter`](super::enter)); what its parent does not have under the same number it has opened
//!   itself, and that is left alone. If the process from which this one was made, as far as it is known, has ended by then, or may not be
//!   asked (`kcmp`), all is swept.
//! - *Clients that cannot bear it.* A write to a dead socket is `EPIPE`, and a `SIGPIPE` for those who do not ignore it, as with a
//!   server that has gone away. A client that takes no notice of errors goes on taking none.
//! - *What another copy of this crate knows.* In a Rust program under the preloaded library there are two. With a [`Policy`] of its own
//!   the program's is the one that holds, and the library does nothing any more. Without one the library takes what it finds: what the
//!   program has registered is refused in a child as ever, but what it [`keep`]s is taken.
//! - Children that share their parent's descriptor table (`CLONE_FILES` with threads) are not swept, and those that share its memory (`vfork`,
//!   `posix_spawn`) not before they execute another program: that gets what is not close-on-exec.
//!
//! # What clients make of it
//!
//! Of what a child has inherited, under the net. Nothing is shared in any case, and the parent's session is the same at the end.
//!
//! | client | in a child | what to do |
//! | --- | --- | --- |
//! | `mysql` 28, `Pool` | is right at once | nothing |
//! | `ureq` 3, `Agent` | is right at once | nothing |
//! | `mysql` 28, `Conn`; `postgres` 0.19, `Client`; `redis` 1.8, `Connection` | an error at each use | a new one in each process: [`PerProcess`](super::PerProcess), or a [`Pool`](crate::Pool) |
//! | `r2d2` 0.8, with `postgres` or `redis` | an error from each `get`, after its `connection_timeout`: who would connect are threads of the parent | a [`Pool`](crate::Pool), which takes r2d2's managers. A second pool of r2d2's may hang in the child: its locks know of the parent's threads |
//! | `sqlx` 0.8, `PgPool`, on a runtime that the child has made | is right at once; but a connection that was lent at the fork stays lent, and then each use is an error after `acquire_timeout` | [`PerProcess`](super::PerProcess), of pool and runtime together |
//! | `sqlx` 0.8, `PgPool`, on the parent's runtime | hangs if that has threads; on one of the current thread it is right at once | the same |
//! | `deadpool-redis` 0.23, on a runtime that the child has made | is right when it has waited for an answer in vain, for 500 ms | the same |
//! | `deadpool-redis` 0.23, on the parent's runtime | hangs if that has threads; on one of the current thread it is right at once | the same |
//! | `reqwest` 0.13, `blocking::Client` | hangs, or an error at each use after its `timeout`; without the net, too | [`PerProcess`](super::PerProcess) |
//! | `lapin` 4, `Channel` | hangs; without the net, too | [`PerProcess`](super::PerProcess), of runtime and connection together |
//! | Python: `psycopg2` 2.9 | one `OperationalError`, and is `closed` | connect when it is |
//! | SQLAlchemy 1.4, on `psycopg2` | one `OperationalError`, then is right | `pool_pre_ping=True`, with which it is right at once |
//! | `redis-py` 4.3 | is right at once, as without the net | nothing |
//! | `redis-py` 4.3, `Redis.client()` | one `ConnectionError`, then is right | ask again |
//! | Ruby: `pg` 1.4 | one `PG::UnableToSend` or `PG::ConnectionBad` | connect after it |
//! | `redis` 4.8 | is right at once, as without the net | nothing |
//! | `redis` 4.8, `inherit_socket: true` | is right at once | nothing |
//!
//! What is right at once was at rest when the program forked. A lock that another thread held stays locked in the child, and what was lent stays
//! lent: where other threads use a client while the program forks, [`PerProcess`](super::PerProcess) is the answer for each of these. It
//! abandons what the child has inherited, and the net releases it; without the net the parent's sessions stay open for as long as a child
//! lives.
//!
//! Each line is a test: of Rust in `tests/clients`, of Python and Ruby (Debian 12's) in `tests/hosts`.
//!
//! # What it costs
//!
//! A process that does not fork, nothing. A child 16 µs, 0.2 µs for each open descriptor, and 0.7 µs for each connection that is
//! disowned. Numbers that are not in use cost next to nothing, however large they are; without `/proc` 0.06 µs each, up to the end of
//! the table, which has up to twice as many numbers as its highest descriptor asks for. An event loop that is replaced costs 4 µs for
//! each thing that it watches.

mod inherited;
mod keep;
mod place;
mod policy;
mod preloaded;
mod settings;

pub use super::handler::net::rules::Mode;
pub use inherited::{Connection, Inheritance, Peer, inherited};
pub use keep::{Kept, keep};
pub use place::{NoPlace, Place};
pub use policy::{Error, Policy};
#[doc(hidden)]
pub use preloaded::{say, stand_down};
