//! The `mysql` crate.

use crate::mariadb::MariaDb;
use crate::program::{Answered, Heals, Net, Seen, answer, run};
use forksafe::testing::clean_process;
use mysql::prelude::Queryable;
use mysql::{Conn, Opts, OptsBuilder, Pool, PoolConstraints, PoolOpts};

fn opts(server: &MariaDb) -> Opts {
    let pool = PoolOpts::new().with_constraints(PoolConstraints::new(1, 1).unwrap());
    let opts = OptsBuilder::new().ip_or_hostname(Some("127.0.0.1")).tcp_port(server.address.port());
    // Otherwise it would go to the server's unix socket.
    opts.user(Some("root")).prefer_socket(false).pool_opts(pool).into()
}

fn ask(conn: &mut impl Queryable, word: &str) -> Answered {
    let row = conn.exec_first::<(String, u64), _, _>("SELECT ?, CONNECTION_ID()", (word,));
    answer(row.map(|row| row.expect("a row")))
}

fn with_a_connection(net: Net) -> Seen {
    let server = MariaDb::start();
    run(net, || Conn::new(opts(&server)).unwrap(), ask)
}

fn with_its_pool(net: Net) -> Seen {
    let server = MariaDb::start();
    let ask = |pool: &mut Pool, word: &str| {
        pool.get_conn().map_err(|error| error.to_string()).and_then(|mut conn| ask(&mut conn, word))
    };
    run(net, || Pool::new(opts(&server)).unwrap(), ask)
}

#[test]
fn a_connection_never_heals() {
    clean_process(|| with_a_connection(Net::On).assert_protected(Heals::Never));
}

#[test]
fn without_the_net_a_connection_is_shared() {
    clean_process(|| with_a_connection(Net::Off).assert_shared());
}

#[test]
fn a_pool_heals_at_once() {
    clean_process(|| with_its_pool(Net::On).assert_protected(Heals::AtOnce));
}

#[test]
fn without_the_net_a_pool_is_shared() {
    clean_process(|| with_its_pool(Net::Off).assert_shared());
}
