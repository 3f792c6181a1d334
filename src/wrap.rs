//! How to make a manager of a client of your own, or of another crate's. (Documentation only.)
//!
//! A manager has to do three things: [connect](crate::ManageConnection::connect), [test](crate::ManageConnection::is_valid), and say
//! whether a connection [has broken](crate::ManageConnection::has_broken). That is r2d2's trait. What makes it safe from a fork is a
//! fourth: the pool has to know the *descriptors* of each connection, or a child cannot drop them. What nobody names is never
//! silent: [`State::unknown_descriptors`](crate::State::unknown_descriptors) counts it, and
//! [`Builder::require_known_descriptors`](crate::Builder::require_known_descriptors) makes it an error.
//!
//! # A client that lends its descriptor (`AsFd`)
//!
//! One line, [`ManageConnection::socket`](crate::ManageConnection::socket):
//!
//! ```
//! # use forksafe::ManageConnection;
//! # use std::{io, net::TcpStream};
//! use std::os::fd::{AsFd, BorrowedFd};
//! # struct Plain;
//! # impl ManageConnection for Plain {
//! #     type Connection = TcpStream;
//! #     type Error = io::Error;
//! #     fn connect(&self) -> io::Result<TcpStream> { TcpStream::connect("127.0.0.1:1") }
//! #     fn is_valid(&self, _: &mut TcpStream) -> io::Result<()> { Ok(()) }
//! #     fn has_broken(&self, _: &mut TcpStream) -> bool { false }
//! fn socket<'c>(&self, conn: &'c TcpStream) -> Option<BorrowedFd<'c>> {
//!     Some(conn.as_fd())
//! }
//! # }
//! ```
//!
//! # A client that shows a number (`AsRawFd`), or has several descriptors
//!
//! [`ManageConnection::descriptors`](crate::ManageConnection::descriptors), with
//! [`Descriptors::of_raw`](crate::fork::Descriptors::of_raw) and [`and`](crate::fork::Descriptors::and):
//!
//! ```
//! # use forksafe::ManageConnection;
//! # use std::{io, net::TcpStream};
//! use forksafe::fork::Descriptors;
//! use std::os::fd::AsRawFd;
//! # struct Plain;
//! # impl ManageConnection for Plain {
//! #     type Connection = TcpStream;
//! #     type Error = io::Error;
//! #     fn connect(&self) -> io::Result<TcpStream> { TcpStream::connect("127.0.0.1:1") }
//! #     fn is_valid(&self, _: &mut TcpStream) -> io::Result<()> { Ok(()) }
//! #     fn has_broken(&self, _: &mut TcpStream) -> bool { false }
//! fn descriptors(&self, conn: &TcpStream) -> Descriptors {
//!     Descriptors::of_raw(conn.as_raw_fd())
//! }
//! # }
//! ```
//!
//! Only sockets and pipes can be protected: a file that is opened twice cannot be told from itself.
//!
//! # A client that hides its descriptor
//!
//! Often its driver takes a stream that you have opened: publish that one, through the attempt, before the driver says its
//! first word ([`Attempt::own`](crate::Attempt::own)). Then a fork in the middle of the login finds it, and a login that fails
//! leaves no live copy of its socket in any child:
//!
//! ```
//! # use forksafe::{Attempt, ManageConnection};
//! # use std::{io, net::{SocketAddr, TcpStream}};
//! use forksafe::fork::Descriptors;
//! # struct Client(TcpStream);
//! # impl Client { fn login(stream: TcpStream) -> io::Result<Self> { Ok(Self(stream)) } }
//! # struct Opaque(SocketAddr);
//! # impl ManageConnection for Opaque {
//! #     type Connection = Client;
//! #     type Error = io::Error;
//! #     fn connect(&self) -> io::Result<Client> { unreachable!() }
//! #     fn is_valid(&self, _: &mut Client) -> io::Result<()> { Ok(()) }
//! #     fn has_broken(&self, _: &mut Client) -> bool { false }
//! fn connect_within(&self, at: &mut Attempt) -> io::Result<Client> {
//!     let stream = TcpStream::connect_timeout(&self.0, at.deadline().socket_timeout()?)?;
//!     at.own(Descriptors::of(&stream));
//!     Client::login(stream)
//! }
//! # }
//! ```
//!
//! A driver that opens its streams itself can be watched while it does: [`Attempt::observe`](crate::Attempt::observe) sees exactly
//! what it opens, and publishes that. (The feature `r2d2` does so for managers that were written for r2d2.) In a process with
//! several threads it connects on another thread: not for managers that need a lock which their caller holds, or another pool.
//!
//! If it cannot be had, say [`Descriptors::unknown`](crate::fork::Descriptors::unknown), which is the default: the client is
//! abandoned in a child, its socket stays open there, and what was borrowed from it is not protected.
//!
//! # A client without sockets
//!
//! [`Descriptors::none`](crate::fork::Descriptors::none) says that nothing of it reaches outside the process. A database in a
//! file (SQLite) does: a child inherits what SQLite knows of its locks, but not the locks, and what it commits beside an inherited
//! connection can be lost. For those, [`Pool::disconnect`](crate::Pool::disconnect) before the fork, with nothing lent.
//!
//! # Deadlines
//!
//! `get` returns in time only if the manager does. `connect_within`, `is_valid_within`, `reset` and `goodbye` are told until
//! when; [`Deadline::socket_timeout`](crate::Deadline::socket_timeout) is what `set_read_timeout` takes.
//! [`Attempt::dial`](crate::Attempt::dial) tries the addresses of a host one after the other, looks the name up where that cannot
//! hang, and shares the time. [`Deadline::socket`](crate::Deadline::socket) names the connection's descriptor to those whose
//! client hides it. [`Attempt::new`](crate::Attempt::new) is for your tests.
//!
//! # A manager around one of ours
//!
//! A newtype over `redis::Client` or `PostgresManager` (to run a command after each connect, say) is protected when its
//! `connect` calls theirs: the attempt of the pool is [known to the thread](crate::Attempt::current). To keep everything else,
//! delegate `connect_within`, `is_valid_within`, `descriptors`, `on_unread`, `resets`, `reset`, `goodbye`, `classify`, `hosts` and
//! `target`, too; `#[deny(clippy::missing_trait_methods)]` on the `impl` sees to it that none is forgotten.
//!
//! The plain `connect` and `is_valid` of ours keep the pool's deadline without being told it: it is known to the thread, too.
//!
//! # Several clients in one connection
//!
//! A master and a replica, or a Redis and a PostgreSQL client. Managers of ours publish their own, and what one of them gives up
//! is nobody else's. Publish the others: with [`Attempt::own`](crate::Attempt::own) in a `connect_within`, which is not asked for
//! `descriptors` once a manager has published anything in it, or by `descriptors` beside a plain `connect`. A manager that tries
//! several hosts by itself does so in a [part](crate::Attempt::part) of the attempt:
//!
#![cfg_attr(all(feature = "redis", feature = "postgres"), doc = "```")]
#![cfg_attr(not(all(feature = "redis", feature = "postgres")), doc = "```ignore")]
//! use forksafe::postgres::PostgresManager;
//! use forksafe::{Attempt, Deadline, ManageConnection};
//! use std::error::Error;
//!
//! type Failed = Box<dyn Error + Send + Sync>;
//!
//! #[derive(Debug, thiserror::Error)]
//! #[error(transparent)]
//! struct Either(#[from] Failed);
//!
//! struct Both(redis::Client, PostgresManager<postgres::NoTls>);
//!
//! impl ManageConnection for Both {
//!     type Connection = (redis::Connection, postgres::Client);
//!     type Error = Either;
//!
//!     fn connect(&self) -> Result<Self::Connection, Either> {
//!         let first = ManageConnection::connect(&self.0).map_err(Failed::from)?;
//!         Ok((first, self.1.connect().map_err(Failed::from)?))
//!     }
//!     fn is_valid(&self, conn: &mut Self::Connection) -> Result<(), Either> {
//!         self.0.is_valid(&mut conn.0).map_err(Failed::from)?;
//!         Ok(self.1.is_valid(&mut conn.1).map_err(Failed::from)?)
//!     }
//!     fn has_broken(&self, conn: &mut Self::Connection) -> bool {
//!         self.0.has_broken(&mut conn.0) || self.1.has_broken(&mut conn.1)
//!     }
//! }
//! # let _ = |both: Both| forksafe::Pool::new(both);
//! ```
//!
//! A deadline [names the socket](crate::Deadline::socket) of the first. Where `is_valid_within` or `reset` is delegated for another,
//! pass `Deadline::never().sooner(deadline)`, which names none. Between two tests the pool looks at the first socket only.
//!
//! # Errors
//!
//! [`classify`](crate::ManageConnection::classify) says what an error means. What is the [caller's own](crate::Fault::Caller) (a
//! thread that may not wait, a configuration that can never work) is returned at once, and costs no connection. Nothing need be
//! said of a caller who had hardly any time: neither his address nor the server is held to have failed then.
//!
//! # A client that is replaced in place
//!
//! `*conn = reconnect()?` and `mem::swap` of two guards put a client where the pool has published another. A manager with
//! `socket` notices at the return, any manager at the next test; from then on the new one is protected. If you may fork before
//! that, call [`PooledConnection::republish`](crate::PooledConnection::republish).
