//! SQLite, of which a child must not close what it inherited: r2d2_sqlite's, and Diesel's.

use crate::scenario::{is_never_closed, pool};
use diesel::connection::SimpleConnection;
use diesel::dsl::sql;
use diesel::r2d2::ConnectionManager;
use diesel::sql_types::BigInt;
use diesel::{RunQueryDsl, SqliteConnection, select};
use forksafe::r2d2::R2d2;
use forksafe::testing::clean_process;
use r2d2_sqlite::SqliteConnectionManager;

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

/// Its locks would be lost: it is not observed, though nobody has said that it is a file.
#[test]
fn a_database_in_a_file_is_not_observed() {
    clean_process(|| {
        let folder = tempfile::tempdir().unwrap();
        let manager = R2d2::new(SqliteConnectionManager::file(folder.path().join("x.db")));
        assert!(format!("{manager:?}").contains("abandoned"), "{manager:?}");
        let pool = pool(manager);
        let _conn = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 1);
    });
}
