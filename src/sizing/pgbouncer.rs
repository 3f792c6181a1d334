//! Whether a PgBouncer is between us and the server, and what it allows.
//!
//! It passes on what the server says of itself, so a session cannot tell. But its console is a database of the name `pgbouncer`,
//! which no server has unless somebody made one: a server says that there is none, a PgBouncer lets us in or says that we may not.
//! That attempt is a line in the server's log, so it is not made where the server sees the very port that our socket has. (With a
//! PgBouncer in between it sees that one's. The two are equal by chance once in some ten thousand times.)

use super::limit::Limit;
use super::text::in_full;
use crate::Deadline;
use crate::postgres::{Error, PostgresManager};
use ::postgres::error::SqlState;
use ::postgres::tls::{MakeTlsConnect, TlsConnect};
use ::postgres::{Client, SimpleQueryMessage, SimpleQueryRow, Socket};
use std::fs;
use std::os::fd::RawFd;

/// Its console.
const CONSOLE: &str = "pgbouncer";

pub(super) enum Between {
    Nobody,
    /// Its limits, or why they are not known.
    PgBouncer(Result<Vec<Limit>, String>),
    /// Why it cannot be told.
    Unclear(String),
}

/// Asks at the console.
pub(super) fn ask<T>(manager: &PostgresManager<T>, user: &str, deadline: Deadline) -> Between
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let database = manager.config().get_dbname().unwrap_or(user);
    let console = manager.to_database(CONSOLE);
    let answer = console.ask_within(deadline, |client| {
        // A server of PostgreSQL that has such a database knows no such setting.
        client.simple_query("SHOW VERSION")?;
        Ok(limits(client, user, database).map_err(|error| in_full(&error)))
    });
    match answer {
        Ok(limits) => Between::PgBouncer(limits),
        Err(Error::Driver(error)) if is_server(error.code()) => Between::Nobody,
        Err(Error::Driver(error)) if error.code() == Some(&SqlState::PROTOCOL_VIOLATION) => Between::PgBouncer(Err(
            format!("its console is closed to user {user} ({CONSOLE}'s stats_users): {}", in_full(&error)),
        )),
        Err(error) => Between::Unclear(in_full(&error)),
    }
}

/// There is no such database; it is an ordinary one; we may not connect to it, though to ours.
fn is_server(code: Option<&SqlState>) -> bool {
    let codes = [SqlState::UNDEFINED_DATABASE, SqlState::UNDEFINED_OBJECT, SqlState::INSUFFICIENT_PRIVILEGE];
    code.is_some_and(|code| codes.contains(code))
}

fn limits(client: &mut Client, user: &str, database: &str) -> Result<Vec<Limit>, ::postgres::Error> {
    let config = rows(client, "SHOW CONFIG")?;
    let setting = |key: &str| {
        let row = config.iter().find(|row| row.try_get("key").ok().flatten() == Some(key))?;
        row.try_get("value").ok().flatten()
    };
    let clients = rows(client, "SHOW CLIENTS")?;
    let is = |row: &SimpleQueryRow, column: &str, value: &str| row.try_get(column).ok().flatten() == Some(value);
    let own = clients.iter().filter(|row| is(row, "user", user) && is(row, "database", database)).count();
    // All but the one that asks, which is of another database.
    let open = (clients.len() as u64).saturating_sub(1);
    let mut limits = Vec::new();
    if let Some(total) = setting("max_client_conn").and_then(|total| total.parse().ok()) {
        let others = open.saturating_sub(own as u64);
        limits.push(Limit::new("max_client_conn of PgBouncer", total).in_use(open, Some(others)));
    }
    let databases = rows(client, "SHOW DATABASES")?;
    if let Some(row) = databases.iter().find(|row| is(row, "name", database)) {
        limits.extend(pool(row, setting("pool_mode"), user, database));
    }
    Ok(limits)
}

/// In session mode each client keeps a connection of the server's to itself: more clients than that wait.
fn pool(row: &SimpleQueryRow, usual_mode: Option<&str>, user: &str, database: &str) -> Option<Limit> {
    let column = |name: &str| row.try_get(name).ok().flatten();
    let mode = column("pool_mode").or(usual_mode)?;
    let number = |name: &str| column(name).and_then(|value| value.parse::<u64>().ok());
    let size = number("pool_size")?.saturating_add(number("reserve_pool").unwrap_or(0));
    let limit = Limit::new("pool_size of PgBouncer (pool_mode session)", size);
    (mode == "session").then(|| limit.whom(format!("user {user} in database {database}")))
}

fn rows(client: &mut Client, query: &str) -> Result<Vec<SimpleQueryRow>, ::postgres::Error> {
    let messages = client.simple_query(query)?;
    let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
    Ok(messages.into_iter().filter_map(row).collect())
}

/// The port that a TCP socket of this process has here.
pub(super) fn own_port(socket: RawFd) -> Option<u16> {
    let link = fs::read_link(format!("/proc/self/fd/{socket}")).ok()?;
    let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned();
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"].iter().find_map(|table| {
        let table = fs::read_to_string(table).ok()?;
        let line = table.lines().find(|line| line.split_whitespace().nth(9) == Some(&inode))?;
        let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
}
