//! What becomes of a session between two holders.

use ::postgres::fallible_iterator::FallibleIterator;
use ::postgres::{Client, Error};

/// What becomes of a session when its connection is returned to the pool.
///
/// What the next holder finds of what the last one did:
///
/// | | `Nothing` | `RollBack` | `DiscardAll` |
/// | --- | --- | --- | --- |
/// | a transaction that was left open, or has failed | is there | rolled back | rolled back |
/// | `SET`, also `statement_timeout`; `SET ROLE`, `SET SESSION AUTHORIZATION` | in force | in force, unless set in what is rolled back | as the connection began: with the configuration's `options` |
/// | temporary tables | are there | are there | dropped |
/// | `LISTEN`, and notifications that have come | goes on | goes on | none |
/// | `pg_advisory_lock` | held | held | released |
/// | cursors `WITH HOLD` | are open | are open | closed |
/// | `currval` of sequences | known | known | unknown |
/// | `PREPARE` in words | is there | is there | is there |
/// | statements of the driver's: `prepare`, the types it has met | are there | are there | are there |
///
/// A holder must not say `DISCARD ALL` or `DEALLOCATE ALL`: the server then has lost the statements by which the driver looks up
/// types, and the driver does not know. Every later query with a type that the session has not met yet fails with SQLSTATE
/// 26000, for this holder and the next. Whoever [reports](crate::PooledConnection::report) that error is rid of the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum OnReturn {
    /// Nothing: no round trip. The driver's `Transaction` rolls back when it is dropped, so only a transaction that was
    /// begun in words (`batch_execute("BEGIN")`) or forgotten can be left open. The default.
    #[default]
    Nothing,
    /// A transaction that was left open, or has failed, is rolled back: one round trip, and another where it has failed.
    /// (`BEGIN; ROLLBACK`: the server has a warning for its log only if there was something to roll back.)
    RollBack,
    /// That, and the session forgets all that was done to it, but for prepared statements: `DISCARD ALL` without
    /// `DEALLOCATE ALL`, because the driver has prepared statements of its own and does not know how to lose them. One round
    /// trip more.
    DiscardAll,
}

/// What `DISCARD ALL` stands for, less `DEALLOCATE ALL` and `DISCARD PLANS`.
/// <https://www.postgresql.org/docs/current/sql-discard.html>
const DISCARD: &str = "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; UNLISTEN *; \
                       SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES";

impl OnReturn {
    pub(super) fn reset(self, conn: &mut Client) -> Result<(), Error> {
        if self == Self::Nothing {
            return Ok(());
        }
        // In a failed transaction the first word is refused, and the rest is not heard.
        conn.batch_execute("BEGIN; ROLLBACK").or_else(|_| conn.batch_execute("ROLLBACK"))?;
        if self == Self::DiscardAll {
            conn.batch_execute(DISCARD)?;
            // News that had come before.
            while FallibleIterator::next(&mut conn.notifications().iter())?.is_some() {}
        }
        Ok(())
    }
}
