use forksafe::Pool;
use forksafe::testing::{self, PrivateRedis, Tap, Way};
use std::net::SocketAddr;

/// The program under test: it counts visits, in whichever process it runs.
struct Visits {
    pool: Pool<redis::Client>,
}

impl Visits {
    fn open(url: &str) -> Self {
        let client = redis::Client::open(url).expect("a url of Redis");
        Self { pool: Pool::new(client).expect("a pool") }
    }

    fn count(&self) -> u64 {
        redis::cmd("INCR").arg("visits").query(&mut self.pool.get().expect("a connection")).expect("an answer")
    }

    /// The name that the server has for the connection.
    fn session(&self) -> u64 {
        redis::cmd("CLIENT").arg("ID").query(&mut self.pool.get().expect("a connection")).expect("an answer")
    }
}

#[test]
fn workers_count_on_connections_of_their_own() {
    testing::clean_process(|| {
        let server = PrivateRedis::start();
        let mut visits = Visits::open(server.url());
        let before = visits.session(); // The connection that children inherit.
        testing::assert_kept(
            "the master's session",
            &mut visits,
            |visits| visits.session(),
            |visits| {
                for way in Way::ALL.iter().filter(|way| way.available().is_ok()) {
                    let (count, session) = way.child(|| (visits.count(), visits.session())).join();
                    assert_eq!(visits.count(), count + 1, "{way}");
                    assert_ne!(session, before, "{way}");
                }
            },
        );
    });
}

#[test]
fn a_child_is_silent_on_its_parents_connections() {
    testing::clean_process(|| {
        let server = PrivateRedis::start();
        let tap = Tap::before(server.address().parse::<SocketAddr>().expect("an address"));
        let visits = Visits::open(&format!("redis://{}/", tap.address()));
        let mut lent = Some(visits.pool.get().expect("a connection"));
        tap.assert_untouched(|| {
            testing::child(|| {
                drop(lent.take()); // What unwinding code does, or an exit handler.
                visits.count()
            })
            .join()
        });
    });
}
