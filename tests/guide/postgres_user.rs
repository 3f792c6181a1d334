use forksafe::Pool;
use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, PrivatePostgres, Steps, Way};
use postgres::{Client, NoTls};

type Db = Pool<PostgresManager<NoTls>>;

fn open(server: &PrivatePostgres) -> Db {
    Pool::new(PostgresManager::new(server.config(), NoTls)).expect("a pool")
}

/// The name that the server has for the session: its process, and when that began.
fn session(client: &mut Client) -> String {
    let row = "SELECT pid || ' since ' || backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    client.query_one(row, &[]).expect("an answer").get(0)
}

#[test]
fn workers_have_sessions_of_their_own_however_they_are_made() {
    testing::clean_process(|| {
        let server = PrivatePostgres::start();
        let mut db = open(&server);
        let ask = |db: &mut Db| session(&mut db.get().expect("a connection"));
        let here = ask(&mut db); // On the connection that children inherit.
        testing::assert_kept("the master's session", &mut db, ask, |db| {
            for way in Way::ALL.iter().filter(|way| way.available().is_ok()) {
                let there = way.child(|| ask(db)).join();
                assert_ne!(there, here, "{way}");
            }
        });
    });
}

#[test]
fn a_transaction_survives_what_workers_do() {
    testing::clean_process(|| {
        let server = PrivatePostgres::start();
        let db = open(&server);
        let mut here = db.get().expect("a connection");
        here.batch_execute("CREATE TABLE visits (page text)").expect("a table");
        let mut transaction = Some(here.transaction().expect("a transaction"));
        transaction.as_mut().unwrap().execute("INSERT INTO visits VALUES ('/')", &[]).expect("a row");

        // A worker, forked in the middle of it, drops its copy of the transaction: that rolls back, says the driver's code.
        let steps = Steps::new(&["the worker has dropped it", "the master has committed"]);
        let worker = testing::child(|| {
            drop(transaction.take());
            steps.take("the worker has dropped it");
            steps.wait_for("the master has committed");
            let mut own = db.get().expect("a connection");
            own.query_one("SELECT count(*) FROM visits", &[]).expect("an answer").get::<_, i64>(0)
        });
        steps.wait_for("the worker has dropped it");
        transaction.take().unwrap().commit().expect("a commit");
        testing::assert_nothing_shared(&[std::process::id(), worker.pid()]);
        steps.take("the master has committed");
        assert_eq!(worker.join(), 1);
    });
}
