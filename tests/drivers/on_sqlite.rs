//! SQLite, of which a child must not close what it inherited: r2d2_sqlite's, and Diesel's.

use crate::scenario::{is_never_closed, pool};
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::r2d2::ConnectionManager;
use diesel::sql_types::BigInt;
use diesel::{RunQueryDsl, SqliteConnection, select};
use forksafe::Pool;
use forksafe::r2d2::R2d2;
use forksafe::testing::{self, Steps, clean_process};
use r2d2_sqlite::SqliteConnectionManager;
use std::path::Path;

const WRITE: &str = "PRAGMA journal_mode = WAL; CREATE TABLE IF NOT EXISTS t (n); INSERT INTO t VALUES (1);";

#[test]
fn a_connection_of_r2d2_sqlites_is_never_closed_in_a_child() {
    clean_process(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rusqlite.db");
        is_never_closed(
            R2d2::new(SqliteConnectionManager::file(&file)).in_files(),
            &file,
            |conn| conn.execute_batch(WRITE).unwrap(),
            |conn| {
                let whole: String = conn.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
                assert_eq!(whole, "ok");
                conn.query_row("SELECT count(*) FROM t", (), |row| row.get(0)).unwrap()
            },
        );
    });
}

#[test]
fn a_connection_of_diesels_is_never_closed_in_a_child() {
    clean_process(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("diesel.db");
        let manager = ConnectionManager::<SqliteConnection>::new(file.to_str().unwrap());
        is_never_closed(
            R2d2::new(manager).in_files(),
            &file,
            |conn| conn.batch_execute(WRITE).unwrap(),
            |conn| select(sql::<BigInt>("(SELECT count(*) FROM t)")).get_result(conn).unwrap(),
        );
    });
}

/// A child that writes, its parent that closes, and the child that writes once more: whether its log was there still, and the rows.
fn child_and_parent_write(
    there: &Pool<R2d2<SqliteConnectionManager>>,
    file: &Path,
    here: &Pool<R2d2<SqliteConnectionManager>>,
) -> (bool, i64) {
    let steps = Steps::new(&["written", "closed"]);
    let child = testing::child(|| {
        there.get().unwrap().execute_batch(WRITE).unwrap();
        steps.take("written");
        steps.wait_for("closed");
        let has_log = file.with_extension("db-wal").exists();
        there.get().unwrap().execute_batch(WRITE).unwrap();
        has_log
    });
    steps.wait_for("written");
    here.get().unwrap().execute_batch(WRITE).unwrap();
    here.close();
    steps.take("closed");
    let has_log = child.join();
    let fresh = r2d2::ManageConnection::connect(&SqliteConnectionManager::file(file)).unwrap();
    (has_log, fresh.query_row("SELECT count(*) FROM t", (), |row| row.get(0)).unwrap())
}

#[test]
fn disconnected_before_the_fork_parent_and_child_both_write() {
    clean_process(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        let pool = pool(R2d2::new(SqliteConnectionManager::file(&file)).in_files());
        pool.get().unwrap().execute_batch(WRITE).unwrap();
        pool.disconnect();
        assert_eq!(child_and_parent_write(&pool, &file, &pool), (true, 4));
    });
}

/// Why a child is refused: what happens to one that is not, by a pool of its own.
#[test]
fn what_a_child_commits_beside_an_inherited_connection_is_lost() {
    clean_process(|| {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.db");
        let pool_of = || pool(R2d2::new(SqliteConnectionManager::file(&file)).in_files());
        let (here, there) = (pool_of(), pool_of());
        here.get().unwrap().execute_batch(WRITE).unwrap();
        assert_eq!(child_and_parent_write(&there, &file, &here), (false, 3));
    });
}

/// Its locks would be lost: it is not observed, though nobody has said that it is a file.
#[test]
fn a_database_in_a_file_is_taken_for_one() {
    clean_process(|| {
        let folder = tempfile::tempdir().unwrap();
        let manager = R2d2::new(SqliteConnectionManager::file(folder.path().join("x.db")));
        assert!(format!("{manager:?}").contains("never closed"), "{manager:?}");
        let pool = pool(manager);
        let _conn = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 1, "it is a guess");
        assert!(testing::child(|| pool.get().is_err_and(|error| error.is_unprotected())).join());
    });
}
