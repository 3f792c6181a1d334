//! How a program moves here from r2d2. (Documentation only.)
//!
//! # The `use` lines
//!
//! A program that pools its connections with r2d2, has a manager of its own, and looks at what happens:
//!
//! ```
//! use r2d2::event::{HandleEvent, TimeoutEvent};
//! use r2d2::{CustomizeConnection, ManageConnection, Pool};
//! # use std::io::{self, BufRead, BufReader, Write};
//! # use std::net::{SocketAddr, TcpListener, TcpStream};
//! # use std::time::Duration;
//!
//! struct Lines(SocketAddr);
//!
//! impl ManageConnection for Lines {
//!     type Connection = TcpStream;
//!     type Error = io::Error;
//!
//!     fn connect(&self) -> io::Result<TcpStream> {
//!         TcpStream::connect(self.0)
//!     }
//!     fn is_valid(&self, conn: &mut TcpStream) -> io::Result<()> {
//!         conn.write_all(b"are you there\n")?;
//!         BufReader::new(conn).read_line(&mut String::new()).map(drop)
//!     }
//!     fn has_broken(&self, _: &mut TcpStream) -> bool {
//!         false
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct NoDelay;
//!
//! impl CustomizeConnection<TcpStream, io::Error> for NoDelay {
//!     fn on_acquire(&self, conn: &mut TcpStream) -> io::Result<()> {
//!         conn.set_nodelay(true)
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct Alarm;
//!
//! impl HandleEvent for Alarm {
//!     fn handle_timeout(&self, event: TimeoutEvent) {
//!         eprintln!("nothing came free in {:?}", event.timeout());
//!     }
//! }
//!
//! # let server = TcpListener::bind("127.0.0.1:0")?;
//! # let address = server.local_addr()?;
//! let pool = Pool::builder()
//!     .max_size(5)
//!     .connection_timeout(Duration::from_secs(2))
//!     .connection_customizer(Box::new(NoDelay))
//!     .event_handler(Box::new(Alarm))
//!     .build(Lines(address))?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! Here it is again. Two lines are others (`r2d2` is `forksafe` in them), and one was added, which makes it safe from a fork:
//!
//! ```
//! use forksafe::event::{HandleEvent, TimeoutEvent};
//! use forksafe::{CustomizeConnection, ManageConnection, Pool};
//! # use std::io::{self, BufRead, BufReader, Write};
//! # use std::net::{SocketAddr, TcpListener, TcpStream};
//! # use std::os::fd::{AsFd, BorrowedFd};
//! # use std::time::Duration;
//!
//! struct Lines(SocketAddr);
//!
//! impl ManageConnection for Lines {
//!     type Connection = TcpStream;
//!     type Error = io::Error;
//!
//!     fn connect(&self) -> io::Result<TcpStream> {
//!         TcpStream::connect(self.0)
//!     }
//!     fn is_valid(&self, conn: &mut TcpStream) -> io::Result<()> {
//!         conn.write_all(b"are you there\n")?;
//!         BufReader::new(conn).read_line(&mut String::new()).map(drop)
//!     }
//!     fn has_broken(&self, _: &mut TcpStream) -> bool {
//!         false
//!     }
//!     fn socket<'c>(&self, conn: &'c TcpStream) -> Option<BorrowedFd<'c>> { Some(conn.as_fd()) } // the line
//! }
//!
//! #[derive(Debug)]
//! struct NoDelay;
//!
//! impl CustomizeConnection<TcpStream, io::Error> for NoDelay {
//!     fn on_acquire(&self, conn: &mut TcpStream) -> io::Result<()> {
//!         conn.set_nodelay(true)
//!     }
//! }
//!
//! #[derive(Debug)]
//! struct Alarm;
//!
//! impl HandleEvent for Alarm {
//!     fn handle_timeout(&self, event: TimeoutEvent) {
//!         eprintln!("nothing came free in {:?}", event.timeout());
//!     }
//! }
//!
//! # let server = TcpListener::bind("127.0.0.1:0")?;
//! # let address = server.local_addr()?;
//! let pool = Pool::builder()
//!     .max_size(5)
//!     .connection_timeout(Duration::from_secs(2))
//!     .connection_customizer(Box::new(NoDelay))
//!     .event_handler(Box::new(Alarm))
//!     .build(Lines(address))?;
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```
//!
//! Without that line it works as well, and says [`State::unknown_descriptors`](crate::State::unknown_descriptors): a child does
//! not use what it inherits, but holds it open. A manager of somebody else's crate goes in as it is, with the feature
//! `r2d2` (`forksafe::r2d2::R2d2`). Of Diesel's functions those that want a connection want `&mut *guard`.
//!
//! # What differs on purpose
//!
//! | | r2d2 | forksafe | why |
//! | --- | --- | --- | --- |
//! | [`min_idle`](crate::Builder::min_idle) `None` | as many as `max_size` | none | a master that builds its pool and forks should have no sockets to be inherited. `min_idle(Some(n))` opens them in `build`, [`warm_up`](crate::Pool::warm_up) in a worker |
//! | a connect that fails | tried again until the timeout, which hides why | told at once | a wrong password should not look like a slow server. [`retry_connect`](crate::Builder::retry_connect) brings it back, with the cause as the source |
//! | the test at checkout | each time | when it rested for longer than [`test_after`](crate::Builder::test_after), 500 ms | a round trip less. `test_after(Duration::ZERO)` brings it back |
//! | the threads of `thread_pool` | close what is idle for too long, open what is missing | none: returns see to the former now and then, [`maintain`](crate::Pool::maintain) to both | threads do not survive a fork |
//! | errors | one, a timeout with a text | seven [kinds](crate::ErrorKind); `{}` is what the pool has to say, `{:#}` that and the driver's words | somebody has to act on them |
//! | [`error_handler`](crate::Builder::error_handler), by default | logs | nobody | who waits is told. [`LoggingErrorHandler`](crate::LoggingErrorHandler) writes to standard error |
//! | `on_release` | what is left of the connection | the same, and the manager's [`goodbye`](crate::ManageConnection::goodbye) is not said | it is the callee's. [`before_close`](crate::Builder::before_close) only looks |
//! | events | | also why a connection was closed, how long it took to open, and leaks; `try_get` tells of a checkout, too. Ids are counted in each process | |
//! | `max_lifetime` | exactly | up to a tenth earlier, by chance | all at once is a storm |
//! | a manager's error | `Error` | `Error + Send + Sync` | it travels in ours |
//! | `Debug` of a guard | the connection's | where it comes from | an inherited connection had better be let alone |
//! | a connection whose holder panics | goes back | is closed | nobody knows in which state it is |
