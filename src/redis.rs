//! `redis::Client` as a manager.
//!
//! The driver shows neither its socket nor the moment at which it opens it. The socket is found by marking it: a read
//! timeout that nobody else has is set through the driver's own method, and the descriptor that has it is the one. What
//! the driver would say to the server at the start is said here, after the socket was found and published: so a fork in the middle of it finds the socket, and a server that drips its answer is held to the deadline, which
//! the driver applies to each read and to each reply anew.

use crate::fork::{Descriptors, socket};
use crate::{Attempt, Deadline, ManageConnection};
use ::redis::{
    Client, Cmd, Connection, ConnectionAddr, ConnectionInfo, ConnectionLike, ErrorKind, Parser, ProtocolVersion,
    RedisError, RedisResult, ServerError, Value, cmd,
};
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Connections to Redis, or to anything that speaks its protocol.
///
/// ```no_run
/// use forksafe::Pool;
/// use redis::TypedCommands;
///
/// let pool = Pool::new(redis::Client::open("redis://127.0.0.1/")?)?;
/// pool.get()?.set("key", 42)?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// All urls of the driver work: `redis://`, `rediss://` (with the driver's `tls-rustls` or `tls-native-tls`),
/// `redis+unix://`; and so do `valkey` ones. A host name is resolved when the pool is built, so that a child need not;
/// not for `rediss://`, where the driver wants the name itself. A user name needs Redis 6 or later.
///
/// # Validation
///
/// Sends `ECHO` with a text that was never used before and expects it back: a connection that is out of step (a reply
/// that somebody else should have read) is noticed, which a `PING` would not do.
///
/// # What the deadline cannot bound
///
/// - looking up a host name (by libc), when it is not a child's first attempt;
/// - connecting to a unix socket whose server's backlog is full;
/// - the TLS handshake of native-tls. That of rustls is bounded per read;
/// - a server that drips its replies over TLS, or while the driver itself speaks to it: a url with a database number or
///   with RESP3 leaves `AUTH`, `HELLO` and `SELECT` to the driver. A silent one is bounded there too.
impl ManageConnection for Client {
    type Connection = Connection;
    type Error = RedisError;

    /// The driver's own connect: no deadline, nothing published. A pool uses [`connect_within`](Self::connect_within).
    fn connect(&self) -> RedisResult<Connection> {
        self.get_connection()
    }

    fn is_valid(&self, conn: &mut Connection) -> RedisResult<()> {
        self.is_valid_within(conn, Deadline::never())
    }

    fn has_broken(&self, conn: &mut Connection) -> bool {
        !conn.is_open()
    }

    fn connect_within(&self, at: &mut Attempt) -> RedisResult<Connection> {
        let info = self.get_connection_info();
        let opening = Opening::of(info);
        let mut targets = targets(info.addr(), at)?;
        // The last one's error is the one to report.
        while targets.len() > 1 {
            let share = time_left(at.deadline())? / targets.len() as u32;
            if let Ok(conn) = opening.connect(targets.remove(0), share, at) {
                return Ok(conn);
            }
        }
        opening.connect(targets.remove(0), time_left(at.deadline())?, at)
    }

    fn is_valid_within(&self, conn: &mut Connection, deadline: Deadline) -> RedisResult<()> {
        // The number alone is inherited by children, and siblings would say the same.
        let sent = format!("forksafe {}.{}", std::process::id(), unused_number());
        let plain = !matches!(self.get_connection_info().addr(), ConnectionAddr::TcpTls { .. });
        let before = deadline.socket().map_or((None, None), socket::timeouts);
        let dialogue = Dialogue { socket: deadline.socket().filter(|_| plain), deadline };
        let echoed = dialogue.ask(conn, &[cmd("ECHO").arg(&sent).clone()])?.remove(0);
        conn.set_read_timeout(before.0)?;
        conn.set_write_timeout(before.1)?;
        match echoed {
            Value::BulkString(bytes) if bytes == sent.as_bytes() => Ok(()),
            Value::ServerError(error) => Err(error.into()),
            other => Err(out_of_step(&sent, &other)),
        }
    }

    fn hosts(&self) -> Vec<(String, u16)> {
        match self.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) => vec![(host.clone(), *port)],
            _ => Vec::new(),
        }
    }
}

fn out_of_step(sent: &str, got: &Value) -> RedisError {
    let detail = format!("sent ECHO {sent}, got {got:?}");
    (ErrorKind::UnexpectedReturnType, "the connection is out of step with the server", detail).into()
}

/// Where to connect, best first, never empty.
fn targets(addr: &ConnectionAddr, at: &Attempt) -> RedisResult<Vec<ConnectionAddr>> {
    Ok(match addr {
        ConnectionAddr::Tcp(host, port) => {
            let resolved = at.addresses(host, *port)?.into_iter();
            let named = |address: SocketAddr| match address {
                // The driver takes a name, and a bare address would lose its interface.
                SocketAddr::V6(v6) if v6.scope_id() != 0 => host.clone(),
                _ => address.ip().to_string(),
            };
            resolved.map(|address| ConnectionAddr::Tcp(named(address), address.port())).collect()
        }
        other => vec![other.clone()],
    })
}

/// Who says what at the start of a connection.
struct Opening {
    /// What the driver is told. It remembers the database and the protocol, so those are its own to ask for.
    driver: ConnectionInfo,
    /// The replies that the driver waits for, each with the timeout anew.
    driver_waits: u32,
    /// What is left for us to say. The first is an `AUTH` if `authenticates`, the others may fail.
    ours: Vec<Cmd>,
    authenticates: bool,
    plain: bool,
}

impl Opening {
    fn of(info: &ConnectionInfo) -> Self {
        let asked = info.redis_settings();
        let resp3 = asked.protocol() != ProtocolVersion::RESP2;
        let by_driver = resp3 || asked.db() != 0;
        let mut ours = Vec::new();
        let mut settings = asked.clone().set_skip_set_lib_name();
        let mut authenticates = false;
        if !by_driver && let Some(password) = asked.password() {
            ours.push(auth(asked.username(), password));
            authenticates = true;
            settings = Default::default();
            settings = settings.set_protocol(asked.protocol()).set_skip_set_lib_name();
        }
        if !asked.skip_set_lib_name() {
            let name = concat!("redis-rs(forksafe_v", env!("CARGO_PKG_VERSION"), ")");
            ours.push(set_info("LIB-NAME", asked.lib_name().unwrap_or(name)));
            ours.extend(asked.lib_ver().map(|version| set_info("LIB-VER", version)));
        }
        let plain = !matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        if !plain && ours.is_empty() && !by_driver {
            // rustls shakes hands with the first word that is said: that should be within the deadline, too.
            ours.push(cmd("PING"));
        }
        let waits = [by_driver && (resp3 || asked.password().is_some()), asked.db() != 0];
        Self {
            driver: info.clone().set_redis_settings(settings),
            driver_waits: waits.into_iter().filter(|&wait| wait).count() as u32,
            ours,
            authenticates,
            plain,
        }
    }

    fn connect(&self, target: ConnectionAddr, time: Duration, at: &Attempt) -> RedisResult<Connection> {
        let until = Deadline::after(time);
        let client = Client::open(self.driver.clone().set_addr(target))?;
        let expected = socket::next_number();
        let mut conn = client.get_connection_with_timeout(time / self.driver_waits.max(1))?;
        let fd = match find_socket(&conn, expected)? {
            Ok(fd) => fd,
            Err(why) => {
                at.refuse(why);
                return Ok(conn); // The pool closes it.
            }
        };
        at.own(Descriptors::none().and_raw(fd));
        if let Err(error) = self.introduce(&mut conn, fd, until) {
            at.forget_all(); // And shuts it down, for a child that was forked meanwhile and has a copy.
            return Err(error);
        }
        conn.set_read_timeout(None)?;
        conn.set_write_timeout(None)?;
        Ok(conn)
    }

    fn introduce(&self, conn: &mut Connection, fd: RawFd, deadline: Deadline) -> RedisResult<()> {
        if self.ours.is_empty() {
            return Ok(());
        }
        let dialogue = Dialogue { socket: self.plain.then_some(fd), deadline };
        let replies = dialogue.ask(conn, &self.ours)?;
        match replies.into_iter().next() {
            Some(Value::ServerError(error)) if self.authenticates || is_farewell(&error, fd) => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// Whether the server has nothing more to say. A full one says so to whatever it is asked, and hangs up.
fn is_farewell(error: &ServerError, fd: RawFd) -> bool {
    socket::has_ended(fd) || error.details().is_some_and(|details| details.contains("max number of clients"))
}

fn auth(username: Option<&str>, password: &str) -> Cmd {
    let mut auth = cmd("AUTH");
    auth.arg(username).arg(password);
    auth
}

fn set_info(what: &str, value: &str) -> Cmd {
    let mut set_info = cmd("CLIENT");
    set_info.arg("SETINFO").arg(what).arg(value);
    set_info
}

/// The connection's one descriptor, or why it cannot be told.
///
/// It most likely has the number that was free before the connect: what is there now was opened since, and if it has the
/// mark it is the one. Otherwise all descriptors are looked at, which takes a new process some 4 µs for each (`/proc` makes
/// its entries when they are first asked for).
fn find_socket(conn: &Connection, expected: Option<RawFd>) -> RedisResult<Result<RawFd, String>> {
    let mut hits = Vec::new();
    for _ in 0..3 {
        let mark = mark();
        conn.set_read_timeout(Some(Duration::from_secs(mark)))?;
        if let Some(fd) = expected.filter(|&fd| socket::has_receive_timeout(fd, mark)) {
            return Ok(Ok(fd));
        }
        hits = match socket::with_receive_timeout(mark) {
            Ok(hits) => hits,
            Err(why) => return Ok(Err(format!("finding the socket of a redis connection needs /proc/self/fd: {why}"))),
        };
        if let [fd] = hits[..] {
            return Ok(Ok(fd));
        }
    }
    Ok(Err(format!("{} descriptors could be the socket of a redis connection, not one: {hits:?}", hits.len())))
}

/// A number of seconds that no other socket has for a timeout. A child that holds a copy of its parent's unfinished
/// socket sees the parent's marks on it: the pid tells them apart.
fn mark() -> u64 {
    1_000_000_000 + (u64::from(std::process::id()) << 20) + unused_number() % (1 << 20)
}

fn unused_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Relaxed)
}

/// What is left, as a timeout that sockets accept.
fn time_left(deadline: Deadline) -> RedisResult<Duration> {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    match deadline.remaining() {
        Duration::ZERO => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        left => Ok(left.clamp(Duration::from_millis(1), YEAR)),
    }
}

/// Questions and answers before a deadline.
struct Dialogue {
    /// The socket, where its bytes are the server's own and not TLS: then a reply is waited for until it is whole.
    socket: Option<RawFd>,
    deadline: Deadline,
}

impl Dialogue {
    /// Sends all at once; one reply each.
    fn ask(&self, conn: &mut Connection, questions: &[Cmd]) -> RedisResult<Vec<Value>> {
        let packed: Vec<u8> = questions.iter().flat_map(Cmd::get_packed_command).collect();
        conn.set_write_timeout(Some(time_left(self.deadline)?))?;
        conn.set_read_timeout(Some(time_left(self.deadline)?))?;
        conn.send_packed_command(&packed)?;
        if let Some(fd) = self.socket {
            // All of them first: the driver reads ahead, and what it has read is not in the socket any more.
            socket::await_whole(fd, self.deadline, |bytes| are_whole(questions.len(), bytes))?;
            // What is read now is there. A driver that wants more (it skips replies that came too late for an earlier
            // holder of the connection) is out of step, and is not waited for.
            conn.set_read_timeout(Some(time_left(self.deadline)?.min(Duration::from_millis(100))))?;
        }
        let mut replies = Vec::with_capacity(questions.len());
        for _ in questions {
            match (reply(conn), replies.last()) {
                (Ok(reply), _) => replies.push(reply),
                // It has said why it hangs up.
                (Err(_), Some(Value::ServerError(why))) => return Err(why.clone().into()),
                (Err(error), _) => return Err(error),
            }
        }
        Ok(replies)
    }
}

fn reply(conn: &mut Connection) -> RedisResult<Value> {
    loop {
        match conn.recv_response()? {
            Value::Push { .. } => {}
            reply => return Ok(reply),
        }
    }
}

/// Whether the driver can read so many replies, or an error, without waiting for more.
fn are_whole(replies: usize, mut bytes: &[u8]) -> bool {
    let mut parser = Parser::new();
    let mut found = 0;
    while found < replies {
        match parser.parse_value(&mut bytes) {
            Ok(Value::Push { .. }) => {}
            Ok(_) => found += 1,
            // Parsing a slice has one i/o error: the slice ends too early.
            Err(error) => return error.kind() != ErrorKind::Io,
        }
    }
    true
}
