//! Diesel on PostgreSQL: libpq, which shows its socket to nobody and says goodbye when it is dropped.

use crate::scenario::is_disowned;
use diesel::dsl::sql;
use diesel::r2d2::ConnectionManager;
use diesel::sql_types::Integer;
use diesel::{PgConnection, RunQueryDsl, select};
use forksafe::r2d2::R2d2;
use forksafe::testing::{Address, PrivatePostgres, Tap, clean_process};
use std::net::SocketAddr;

fn session(conn: &mut PgConnection) -> String {
    let id: i32 = select(sql::<Integer>("pg_backend_pid()")).get_result(conn).unwrap();
    id.to_string()
}

#[test]
fn a_client_of_diesels_is_disowned() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let tap = Tap::before(SocketAddr::from(([127, 0, 0, 1], server.port().unwrap())));
        let Address::Tcp(address) = tap.address() else { panic!("{tap:?}") };
        let url = format!("postgresql://postgres@{address}/postgres");
        is_disowned(R2d2::new(ConnectionManager::new(url)), &tap, 200, session);
    });
}
