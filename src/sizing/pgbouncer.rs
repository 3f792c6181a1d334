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
use std::collections::HashMap;
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
    let said = Said {
        config: rows(client, "SHOW CONFIG")?,
        clients: rows(client, "SHOW CLIENTS")?,
        databases: rows(client, "SHOW DATABASES")?,
        users: rows(client, "SHOW USERS")?,
    };
    Ok(said.limits(user, database))
}

/// Texts by their columns.
type Row = HashMap<String, String>;

fn rows(client: &mut Client, query: &str) -> Result<Vec<Row>, ::postgres::Error> {
    let cell = |row: &SimpleQueryRow, at: usize| {
        Some((row.columns().get(at)?.name().to_owned(), row.try_get(at).ok().flatten()?.to_owned()))
    };
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).filter_map(|at| cell(&row, at)).collect()),
        _ => None,
    };
    Ok(client.simple_query(query)?.into_iter().filter_map(row).collect())
}

/// What the console shows.
struct Said {
    config: Vec<Row>,
    clients: Vec<Row>,
    databases: Vec<Row>,
    users: Vec<Row>,
}

impl Said {
    /// Of connections to a database as a user. What is not shown does not limit: versions differ.
    fn limits(&self, user: &str, database: &str) -> Vec<Limit> {
        let (of_user, of_database) = (named(&self.users, user), named(&self.databases, database));
        let is_of = |row: &Row, column, value: &str| row.get(column).is_some_and(|text| text == value);
        let to_database = |row: &&Row| is_of(row, "database", database);
        let by_user = |row: &&Row| is_of(row, "user", user);
        let own = self.clients.iter().filter(by_user).filter(to_database).count();
        let limit = |what, total, open: usize| {
            Limit::new(format!("{what} of PgBouncer"), total).in_use(open as u64, Some(open.saturating_sub(own) as u64))
        };

        // All but the one that asks, which is of another database.
        let open = self.clients.len().saturating_sub(1);
        let whom = format!("user {user} in database {database}");
        let all = number(self.setting("max_client_conn")).map(|total| limit("max_client_conn", total, open));
        let mut limits: Vec<_> = all.into_iter().collect();
        // From version 1.24 on.
        let most = |row: Option<&Row>, column| number(row?.get(column)).filter(|&most| most > 0);
        if let Some(total) = most(of_database, "max_client_connections") {
            let open = self.clients.iter().filter(to_database).count();
            limits.push(limit("max_db_client_connections", total, open).whom(format!("database {database}")));
        }
        if let Some(total) = most(of_user, "max_user_client_connections") {
            let open = self.clients.iter().filter(by_user).count().saturating_sub(1);
            limits.push(limit("max_user_client_connections", total, open).whom(format!("user {user}")));
        }

        // In session mode each client keeps a connection of the server's to itself: more clients than there are of those wait.
        let mode = [of_user, of_database].into_iter().flatten().find_map(|row| row.get("pool_mode"));
        if mode.or(self.setting("pool_mode")).is_some_and(|mode| mode == "session") {
            let reserve =
                ["reserve_pool", "reserve_pool_size"].into_iter().find_map(|column| most(of_database, column));
            let size = most(of_user, "pool_size").or(most(of_database, "pool_size"));
            let size = size.map(|size| size.saturating_add(reserve.unwrap_or(0)));
            let limit = |total| Limit::new("pool_size of PgBouncer (pool_mode session)", total).whom(&whom);
            limits.extend(size.map(limit));
            let limit = |total| Limit::new("max_db_connections of PgBouncer (pool_mode session)", total).whom(&whom);
            limits.extend(most(of_database, "max_connections").map(limit));
        }
        limits
    }

    fn setting(&self, key: &str) -> Option<&String> {
        self.config.iter().find(|row| row.get("key").is_some_and(|text| text == key))?.get("value")
    }
}

fn named<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.get("name").is_some_and(|text| text == name))
}

fn number(text: Option<&String>) -> Option<u64> {
    text?.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::{Row, Said};

    fn row(cells: &[(&str, &str)]) -> Row {
        cells.iter().map(|(column, text)| ((*column).to_owned(), (*text).to_owned())).collect()
    }

    /// As version 1.24 shows it.
    fn said(database: &[(&str, &str)], user: &[(&str, &str)]) -> Vec<(String, u64, Option<u64>)> {
        let config = [("max_client_conn", "100"), ("pool_mode", "transaction")];
        let client = |user, database| row(&[("user", user), ("database", database)]);
        let said = Said {
            config: config.iter().map(|(key, value)| row(&[("key", key), ("value", value)])).collect(),
            clients: vec![
                client("app", "pgbouncer"),
                client("app", "db"),
                client("app", "other"),
                client("else", "db"),
            ],
            databases: vec![
                row(&[("name", "other")]),
                row(&[&[("name", "db"), ("pool_size", "20")], database].concat()),
            ],
            users: vec![row(&[("name", "else")]), row(&[&[("name", "app")], user].concat())],
        };
        let limits = said.limits("app", "db");
        limits.iter().map(|limit| (limit.what().replace(" of PgBouncer", ""), limit.total(), limit.others())).collect()
    }

    #[test]
    fn clients_of_a_database_and_of_a_user_are_limited() {
        let all = || ("max_client_conn".to_owned(), 100, Some(2));
        assert_eq!(said(&[("max_client_connections", "0")], &[("max_user_client_connections", "0")]), [all()]);
        let database = ("max_db_client_connections".to_owned(), 30, Some(1));
        assert_eq!(said(&[("max_client_connections", "30")], &[]), [all(), database]);
        let user = ("max_user_client_connections".to_owned(), 40, Some(1));
        assert_eq!(said(&[], &[("max_user_client_connections", "40")]), [all(), user]);
    }

    #[test]
    fn in_session_mode_its_own_connections_to_the_server_are_the_limit() {
        let modes = [(&[][..], &[("pool_mode", "session")][..]), (&[("pool_mode", "session")][..], &[][..])];
        for (database, user) in modes {
            let database = [database, &[("reserve_pool_size", "5"), ("max_connections", "22")]].concat();
            let told: Vec<_> = said(&database, user).into_iter().skip(1).map(|(_, total, _)| total).collect();
            assert_eq!(told, [25, 22]);
        }
        // The user's mode is stronger than the database's.
        assert_eq!(said(&[("pool_mode", "session")], &[("pool_mode", "transaction")]).len(), 1);
    }
}
