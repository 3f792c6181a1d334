//! What each way of cleaning a session leaves to the next holder: each line of the table beside `OnReturn`.

use crate::kit;
use forksafe::postgres::{OnReturn, PostgresManager};
use forksafe::testing::{PrivatePostgres, clean_process};
use forksafe::{Fault, ManageConnection, Pool};
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, NoTls};

fn pool_of(server: &PrivatePostgres, on_return: OnReturn) -> Pool<PostgresManager<NoTls>> {
    let mut config = server.config();
    config.options("-c statement_timeout=7s");
    let manager = PostgresManager::new(config, NoTls).on_return(on_return);
    kit::tested().max_size(1).build(manager).unwrap()
}

/// Everything that a holder can leave.
fn leave_all(client: &mut Client, role: &str) {
    client
        .batch_execute(
            "CREATE TEMP TABLE mine (n int); CREATE TEMP SEQUENCE numbers; SELECT nextval('numbers'); LISTEN news; \
             SELECT pg_advisory_lock(42); BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT 1; COMMIT; \
             PREPARE spoken AS SELECT 1; SET statement_timeout = '9s'",
        )
        .unwrap();
    client.batch_execute(&format!("SET SESSION AUTHORIZATION {role}")).unwrap();
    client.batch_execute("NOTIFY news, 'old'").unwrap();
    // Undone with what it was said in.
    client.batch_execute("BEGIN; SET work_mem = '7MB'").unwrap();
}

/// What the next holder finds. Not in the order of the table: an open transaction has to be known first.
fn found(client: &mut Client) -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut note = |is_there: bool, what| found.extend(is_there.then_some(what));
    let at = |client: &mut Client| client.query_one("SELECT now()", &[]).unwrap().get::<_, std::time::SystemTime>(0);
    note(at(client) == at(client), "transaction");
    let mut asks = |question: &str| client.query_one(question, &[]).unwrap().get::<_, bool>(0);
    note(asks("SELECT current_setting('work_mem') = '7MB'"), "what was set in it");
    note(asks("SELECT current_setting('statement_timeout') = '9s'"), "setting");
    note(asks("SELECT current_setting('statement_timeout') = '7s'"), "options");
    note(asks("SELECT current_user <> 'postgres'"), "role");
    note(asks("SELECT to_regclass('mine') IS NOT NULL"), "table");
    note(asks("SELECT EXISTS (SELECT FROM pg_listening_channels())"), "listen");
    note(asks("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"), "lock");
    note(asks("SELECT EXISTS (SELECT FROM pg_cursors WHERE is_holdable)"), "cursor");
    note(asks("SELECT to_regclass('numbers') IS NOT NULL"), "sequence");
    note(asks("SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE name = 'spoken')"), "prepared");
    let news = client.notifications().iter().next().unwrap();
    note(news.is_some(), "news");
    found
}

#[test]
fn each_way_leaves_what_its_table_says() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        for (number, on_return) in [OnReturn::Nothing, OnReturn::RollBack, OnReturn::DiscardAll].into_iter().enumerate()
        {
            let role = format!("other{number}");
            server.config().connect(NoTls).unwrap().batch_execute(&format!("CREATE ROLE {role}")).unwrap();
            let pool = pool_of(&server, on_return);
            let mut conn = pool.get().unwrap();
            let here: i32 = conn.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
            leave_all(&mut conn, &role);
            drop(conn);
            let mut conn = pool.get().unwrap();
            assert_eq!(conn.query_one("SELECT pg_backend_pid()", &[]).unwrap().get::<_, i32>(0), here);
            let session = ["setting", "role", "table", "listen", "lock", "cursor", "sequence", "prepared", "news"];
            let expected = match on_return {
                OnReturn::Nothing => [&["transaction", "what was set in it"][..], &session].concat(),
                OnReturn::RollBack => session.to_vec(),
                _ => vec!["options", "prepared"],
            };
            assert_eq!(found(&mut conn), expected, "{on_return:?}");
        }
    });
}

/// `currval` is known as long as the sequence is: which an ordinary one is for everybody.
#[test]
fn only_discard_all_forgets_the_last_value_of_a_sequence() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        server.config().connect(NoTls).unwrap().batch_execute("CREATE SEQUENCE everybodys").unwrap();
        for on_return in [OnReturn::Nothing, OnReturn::RollBack, OnReturn::DiscardAll] {
            let pool = pool_of(&server, on_return);
            pool.get().unwrap().query_one("SELECT nextval('everybodys')", &[]).unwrap();
            let known = pool.get().unwrap().query_one("SELECT currval('everybodys')", &[]).is_ok();
            assert_eq!(known, on_return != OnReturn::DiscardAll, "{on_return:?}");
        }
    });
}

/// And whoever reports the error that comes of it is rid of the connection.
#[test]
fn a_holders_own_discard_all_breaks_the_drivers_look_up_of_types() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = pool_of(&server, OnReturn::DiscardAll);
        let mut conn = pool.get().unwrap();
        conn.batch_execute("CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE hue AS ENUM ('red')").unwrap();
        conn.query_one("SELECT 'sad'::mood", &[]).unwrap();
        conn.batch_execute("DISCARD ALL").unwrap();
        conn.query_one("SELECT 'sad'::mood", &[]).unwrap();
        let error = conn.query_one("SELECT 'red'::hue", &[]).unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("26000"), "{error:?}");
        assert_eq!(pool.manager().classify(&error), Fault::Connection);
        drop(conn);
        let error = pool.get().unwrap().query_one("SELECT 'red'::hue", &[]).unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("26000"), "and so for the next holder: {error:?}");
    });
}
