//! What a PostgreSQL allows.

use super::limit::{Capacity, Limit};
use super::pgbouncer::{self, Between, own_port};
use super::text::in_full;
use crate::postgres::{PostgresManager, socket_of};
use crate::{Deadline, Fault, ManageConnection};
use ::postgres::tls::{MakeTlsConnect, TlsConnect};
use ::postgres::{Client, SimpleQueryMessage, Socket};
use std::error::Error;
use std::time::Duration;

/// In simple words, which go through any proxy. Limits of -1 are none, and superusers have none.
///
/// The rows of `pg_stat_activity` are everybody's to see, but other roles' `backend_type` is not: of those, all that have a role and a database
/// count, which takes a parallel worker for one more connection.
const QUESTION: &str = "\
WITH me AS (
    SELECT r.oid AS role, d.oid AS database, r.rolname, d.datname, r.rolsuper, r.rolconnlimit, d.datconnlimit,
        EXISTS (SELECT FROM pg_catalog.pg_roles AS reserved WHERE reserved.rolname = 'pg_use_reserved_connections'
            AND pg_catalog.pg_has_role(r.oid, reserved.oid, 'USAGE')) AS may_use_reserved
    FROM pg_catalog.pg_roles AS r, pg_catalog.pg_database AS d
    WHERE r.rolname = session_user AND d.datname = pg_catalog.current_database()
), sessions AS (
    SELECT usesysid = role AS of_role, datid = database AS of_database
    FROM pg_catalog.pg_stat_activity, me
    WHERE pid <> pg_catalog.pg_backend_pid() AND usesysid IS NOT NULL AND datid IS NOT NULL
        AND (backend_type IS NULL OR backend_type = 'client backend')
)
SELECT me.*,
    pg_catalog.current_setting('max_connections') AS max_connections,
    pg_catalog.current_setting('superuser_reserved_connections') AS for_superusers,
    pg_catalog.current_setting('reserved_connections', true) AS for_reserved,
    pg_catalog.inet_client_port() AS client_port,
    (SELECT count(*) FROM sessions) AS open,
    (SELECT count(*) FROM sessions WHERE of_role) AS open_of_role,
    (SELECT count(*) FROM sessions WHERE of_database) AS open_of_database,
    (SELECT count(*) FROM sessions WHERE of_role AND of_database) AS own
FROM me";

impl Capacity {
    /// What a PostgreSQL allows the user of this manager, in its database. Asked within `timeout`, on a connection of its own.
    ///
    /// | limit | |
    /// | --- | --- |
    /// | `max_connections` | less `superuser_reserved_connections` and, from PostgreSQL 16 on, `reserved_connections`; not of a superuser, and less only the former of a member of `pg_use_reserved_connections` |
    /// | `ALTER ROLE ... CONNECTION LIMIT` | not of a superuser |
    /// | `ALTER DATABASE ... CONNECTION LIMIT` | not of a superuser |
    ///
    /// The sessions of the same role in the same database are taken to be the plan's own; all others, of `pg_stat_activity`, are others'. So a
    /// deployment should have a role of its own.
    ///
    /// # PgBouncer
    ///
    /// Where one is in between, its `max_client_conn` is the limit, and its `pool_size` in session mode; what the server behind it allows is for
    /// its own pools. It tells so at its console (the database `pgbouncer`), to `stats_users` and `admin_users`; to others it is
    /// unknown, but noticed. To find that out, a second connection is tried, unless the server sees our own port; of a server of PostgreSQL its log
    /// says then that there is no database `pgbouncer`. Other proxies go unnoticed.
    ///
    /// # When it is not known
    ///
    /// The server is away, refuses us or does not answer in time: [unknown](Self::unknown), with what it said. It turns us away because it has no
    /// room: [full](Self::full). This thread runs async code: unknown; use `spawn_blocking`. PostgreSQL 10 or later is needed.
    ///
    /// ```no_run
    /// use forksafe::{postgres::PostgresManager, sizing::{Capacity, Plan, Report}};
    /// use std::time::Duration;
    ///
    /// let manager = PostgresManager::new("host=db.example.com user=app".parse()?, postgres::NoTls);
    /// let db = Capacity::of_postgres(&manager, Duration::from_secs(2));
    /// let report = Report::new(Plan::new().workers(4).threads(5).pool("db", 5)).server("db", db);
    /// if report.fits() == Some(false) {
    ///     eprintln!("{report}");
    /// }
    /// # Ok::<_, postgres::Error>(())
    /// ```
    pub fn of_postgres<T>(manager: &PostgresManager<T>, timeout: Duration) -> Self
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::TlsConnect: Send,
        T::Stream: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        let deadline = Deadline::after(timeout);
        let said = match manager.ask_within(deadline, ask) {
            Ok(Some(said)) => said,
            Ok(None) => return Self::unknown("it does not tell what it allows"),
            Err(error) if manager.classify(&error) == Fault::NoRoom || is_full_pgbouncer(&error) => {
                return Self::full(in_full(&error));
            }
            Err(error) => return Self::unknown(in_full(&error)),
        };
        // As the configuration says, for a PgBouncer may have another at the server.
        let user = manager.config().get_user().unwrap_or(&said.role);
        let between = if said.is_direct { Between::Nobody } else { pgbouncer::ask(manager, user, deadline) };
        match between {
            Between::Nobody => Self::of(said.limits),
            Between::PgBouncer(Ok(limits)) => Self::of(limits).note("a PgBouncer is in between, these are its limits"),
            Between::PgBouncer(Err(why)) => {
                Self::unknown(format!("a PgBouncer is in between, and does not tell its max_client_conn: {why}"))
            }
            Between::Unclear(why) => Self::of(said.limits)
                .note(format!("whether a PgBouncer is in between, with limits of its own, cannot be told: {why}")),
        }
    }
}

struct Said {
    role: String,
    limits: Vec<Limit>,
    /// Surely nobody is in between.
    is_direct: bool,
}

fn ask(client: &mut Client) -> Result<Option<Said>, ::postgres::Error> {
    let messages = client.simple_query(QUESTION)?;
    let Some(said) = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => limits(|column| row.try_get(column).ok().flatten()),
        _ => None,
    }) else {
        return Ok(None);
    };
    let (mut said, seen) = said;
    let own = socket_of(client).and_then(own_port);
    said.is_direct = own.is_some() && own == seen;
    Ok(Some(said))
}

/// With the port that the server sees.
fn limits<'a>(text: impl Fn(&str) -> Option<&'a str>) -> Option<(Said, Option<u16>)> {
    let number = |column: &str| text(column).and_then(|text| text.parse::<i64>().ok());
    let count = |column: &str| number(column).map(|number| u64::try_from(number).unwrap_or(0));
    let is = |column: &str| text(column) == Some("t");

    let (role, database) = (format!("role {}", text("rolname")?), text("datname")?);
    let own = count("own")?;
    let limit = |what: String, total: u64, open: u64| {
        Limit::new(what, total).in_use(open, Some(open.saturating_sub(own))).whom(&role)
    };
    let reserved = match (is("rolsuper"), is("may_use_reserved")) {
        (true, _) => 0,
        (false, true) => count("for_superusers")?,
        (false, false) => count("for_superusers")?.saturating_add(count("for_reserved").unwrap_or(0)),
    };
    let all = limit("max_connections of the server".to_owned(), count("max_connections")?, count("open")?);
    let mut limits = vec![all.reserved(reserved)];
    if !is("rolsuper") {
        let set = |column: &str| number(column).and_then(|limit| u64::try_from(limit).ok());
        if let Some(total) = set("rolconnlimit") {
            limits.push(limit(format!("CONNECTION LIMIT of {role}"), total, count("open_of_role")?));
        }
        if let Some(total) = set("datconnlimit") {
            let what = format!("CONNECTION LIMIT of database {database}");
            limits.push(limit(what, total, count("open_of_database")?));
        }
    }
    let seen = count("client_port").and_then(|port| port.try_into().ok());
    Some((Said { role: text("rolname")?.to_owned(), limits, is_direct: false }, seen))
}

/// Older ones say so by a code that means anything.
fn is_full_pgbouncer(error: &(dyn Error + 'static)) -> bool {
    in_full(error).contains("no more connections allowed")
}

#[cfg(test)]
mod tests {
    use super::limits;

    /// What is reserved, of a server that has reserves of both kinds, as from version 16 on.
    fn reserved(is_super: &'static str, may_use_reserved: &'static str) -> u64 {
        let said = limits(|column| match column {
            "rolname" | "datname" => Some("app"),
            "rolsuper" => Some(is_super),
            "may_use_reserved" => Some(may_use_reserved),
            "max_connections" => Some("100"),
            "for_superusers" => Some("3"),
            "for_reserved" => Some("5"),
            "rolconnlimit" | "datconnlimit" => Some("-1"),
            "client_port" => None,
            _ => Some("0"),
        });
        let (said, _) = said.expect("limits");
        assert_eq!(said.limits.len(), 1);
        said.limits[0].kept()
    }

    #[test]
    fn reserves_are_for_those_who_may_use_them() {
        assert_eq!(reserved("f", "f"), 8);
        assert_eq!(reserved("f", "t"), 3);
        assert_eq!(reserved("t", "t"), 0);
    }
}
