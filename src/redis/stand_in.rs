//! A server for the driver to connect with, before its socket is given another one.
//!
//! The driver takes an address, not a socket, and speaks to the server before anybody can ask it for anything. So it is
//! given the address of a listener of this process, which agrees to whatever it says: it does not learn the password, and
//! remembers the database and the protocol that the url names. What it has connected with is then gone.

use super::find;
use super::safe::is_interrupted;
use crate::Deadline;
use crate::fork::{Descriptors, Registration, socket};
use ::redis::{Client, Connection, ConnectionAddr, ConnectionInfo, ProtocolVersion, RedisConnectionInfo, RedisResult};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

/// How long it may take at most: nothing here leaves the machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// A connection of the driver's that is not connected with anybody, and its descriptor.
///
/// # Errors
///
/// Here is no loopback network, or no room for descriptors or a thread; or the descriptor cannot be told.
pub(super) fn connection(info: &ConnectionInfo, deadline: Deadline) -> RedisResult<(Connection, RawFd)> {
    let until = deadline.or_sooner(PATIENCE.min(deadline.remaining() / 4));
    loop {
        let made = make(info, until);
        if !is_interrupted(&made) || until.is_over() {
            return made;
        }
    }
}

fn make(info: &ConnectionInfo, until: Deadline) -> RedisResult<(Connection, RawFd)> {
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    // A child closes it at birth.
    let registration = Registration::publish(Descriptors::of(&*listener))?;
    registration.rest();
    let asked = info.redis_settings();
    let told = RedisConnectionInfo::default().set_skip_set_lib_name();
    let told = told.set_protocol(asked.protocol()).set_db(asked.db());
    let says = u32::from(asked.protocol() != ProtocolVersion::RESP2) + u32::from(asked.db() != 0);
    let address = ConnectionAddr::Tcp(Ipv4Addr::LOCALHOST.to_string(), listener.local_addr()?.port());
    let client = Client::open(info.clone().set_addr(address).set_redis_settings(told))?;
    let expected = socket::next_number();
    let connect = || client.get_connection_with_timeout(super::time_left(until)?);
    let (conn, stream) = match says {
        0 => (connect()?, accept(&listener, until)?),
        // The driver waits for the answers: somebody else has to give them.
        _ => {
            let (tells, told) = mpsc::channel();
            let listens = Arc::clone(&listener);
            let agree = move || {
                let agreed = accept(&listens, until).and_then(|mut stream| {
                    (0..says).try_for_each(|_| stream.write_all(b"+OK\r\n"))?;
                    Ok(stream)
                });
                let _ = tells.send(agreed);
            };
            // Not waited for beyond the deadline: in a child a new thread may hang before it begins.
            thread::Builder::new().name("forksafe redis".to_owned()).spawn(agree)?;
            // If it fails nobody comes.
            let conn = connect().inspect_err(|_| socket::shut_down(&*listener))?;
            let agreed = told.recv_timeout(until.socket_timeout()?);
            (conn, agreed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
        }
    };
    let fd = find::socket_of(&conn, expected)?.map_err(io::Error::other)?;
    socket::reset_when_closed(&stream);
    Ok((conn, fd))
}

fn accept(listener: &TcpListener, until: Deadline) -> io::Result<TcpStream> {
    socket::wait_readable(listener.as_raw_fd(), until)?;
    listener.accept().map(|(stream, _)| stream)
}
