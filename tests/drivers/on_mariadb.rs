//! The `mysql` crate: its client says goodbye for its session, and for each of its statements, when it is dropped.

use crate::mariadb::MariaDb;
use crate::scenario::{is_disowned, pool};
use forksafe::PooledConnection;
use forksafe::fork::Descriptors;
use forksafe::r2d2::R2d2;
use forksafe::testing::{self, Address, Tap, clean_process};
use mysql::prelude::Queryable;
use mysql::{Conn, Opts, OptsBuilder};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// As `r2d2_mysql` has it.
struct Manager(Opts);

impl r2d2::ManageConnection for Manager {
    type Connection = Conn;
    type Error = mysql::Error;

    fn connect(&self) -> mysql::Result<Conn> {
        Conn::new(self.0.clone())
    }
    fn is_valid(&self, conn: &mut Conn) -> mysql::Result<()> {
        conn.ping()
    }
    fn has_broken(&self, _: &mut Conn) -> bool {
        false
    }
}

fn manager(tap: &Tap) -> Manager {
    let Address::Tcp(address) = tap.address() else { panic!("{tap:?}") };
    let opts = OptsBuilder::new().ip_or_hostname(Some("127.0.0.1")).tcp_port(address.port());
    // Otherwise it would go to the server's unix socket, past the tap.
    Manager(opts.user(Some("root")).prefer_socket(false).into())
}

/// By a statement that the client keeps.
fn session(conn: &mut Conn) -> String {
    let (id, echo): (u64, u32) = conn.exec_first("SELECT CONNECTION_ID(), ?", (4711,)).unwrap().unwrap();
    assert_eq!((id, echo), (u64::from(conn.connection_id()), 4711));
    id.to_string()
}

#[test]
fn an_observed_client_is_disowned() {
    clean_process(|| {
        let server = MariaDb::start();
        let tap = Tap::before(server.address);
        is_disowned(R2d2::new(manager(&tap)), &tap, 200, session);
    });
}

#[test]
fn a_client_that_shows_its_socket_is_disowned() {
    clean_process(|| {
        let server = MariaDb::start();
        let tap = Tap::before(server.address);
        let manager = R2d2::new(manager(&tap)).descriptors_by(|conn| Descriptors::of_raw(conn.as_raw_fd()));
        is_disowned(manager, &tap, 50, session);
    });
}

/// What the documentation says of the class: the child says nothing, but it keeps the socket open.
#[test]
fn an_unobserved_client_is_abandoned() {
    clean_process(|| {
        let server = MariaDb::start();
        let tap = Tap::before(server.address);
        let pool = pool(R2d2::new(manager(&tap)).unobserved());
        let mut lent = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 1);
        let here = session(&mut lent);
        let socket = testing::descriptors(std::process::id())[&lent.as_raw_fd()].clone();
        let mut lent = Some(lent);
        let (is_there, own) = tap.assert_untouched(|| {
            testing::child(|| {
                drop(lent.take());
                let own = session(&mut pool.get().unwrap());
                (testing::descriptors(std::process::id()).into_values().any(|name| name == socket), own)
            })
            .join()
        });
        assert!(is_there);
        assert_ne!(own, here);
        assert_eq!(session(lent.as_mut().unwrap()), here);
    });
}

/// The control: the same children without this crate.
#[test]
fn without_forksafe_the_parents_session_is_lost() {
    clean_process(|| {
        let server = MariaDb::start();
        let tap = Tap::before(server.address);
        let mut pool = Some(r2d2::Pool::builder().max_size(1).build(manager(&tap)).unwrap());
        let here = session(&mut pool.as_ref().unwrap().get().unwrap());
        let mut guard = pool.as_ref().unwrap().get().unwrap();
        let there = testing::child(|| {
            // The child's copy of the client, with what every client does at its end.
            let there = session(&mut guard);
            // SAFETY: the memory is this process's own, and nothing uses it after.
            drop(unsafe { std::ptr::read(&raw const *guard) });
            std::mem::forget(pool.take());
            there
        })
        .join();
        assert_eq!(there, here, "r2d2 has begun to notice forks?");
        let lost = guard.query_first::<u64, _>("SELECT CONNECTION_ID()");
        assert!(lost.is_err(), "{lost:?}");
        println!("the parent's next query: {lost:?}");
    });
}

/// The driver has no timeout of its own here.
#[test]
fn a_session_that_has_fallen_silent_is_noticed_in_time() {
    clean_process(|| {
        let server = MariaDb::start();
        let tap = Tap::before(server.address);
        let pool = forksafe::Pool::builder().test_after(Duration::ZERO).build(R2d2::new(manager(&tap))).unwrap();
        let before = session(&mut pool.get().unwrap());
        tap.freeze();
        let begin = Instant::now();
        let mut conn = pool.get().unwrap();
        assert!(begin.elapsed() < testing::patience() / 2, "took {:?}", begin.elapsed());
        assert_ne!(session(&mut conn), before);
        // What the test has set on the socket is taken back.
        conn.query_drop("DO SLEEP(1.5)").unwrap();
        PooledConnection::discard(conn);
    });
}
