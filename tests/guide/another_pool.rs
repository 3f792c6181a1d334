use forksafe::testing::{self, PrivateRedis, Snapshot, Tap};
use redis::RedisError;
use std::net::SocketAddr;

/// The program under test: it has a pool of another make.
struct Manager(redis::Client);

impl r2d2::ManageConnection for Manager {
    type Connection = redis::Connection;
    type Error = RedisError;

    fn connect(&self) -> Result<redis::Connection, RedisError> {
        self.0.get_connection()
    }

    fn is_valid(&self, conn: &mut redis::Connection) -> Result<(), RedisError> {
        redis::cmd("PING").exec(conn)
    }

    fn has_broken(&self, _: &mut redis::Connection) -> bool {
        false
    }
}

fn pool(tap: &Tap) -> r2d2::Pool<Manager> {
    let client = redis::Client::open(format!("redis://{}/", tap.address())).expect("a url of Redis");
    r2d2::Pool::builder().max_size(2).build(Manager(client)).expect("a pool")
}

fn count(pool: &r2d2::Pool<Manager>) -> u64 {
    redis::cmd("INCR").arg("visits").query(&mut *pool.get().expect("a connection")).expect("an answer")
}

/// A pool that does not notice a fork lends the parent's connections to the child.
#[test]
#[should_panic(expected = "connections were touched that should not have been:")]
fn workers_use_their_masters_connections() {
    testing::clean_process(|| {
        let server = PrivateRedis::start();
        let tap = Tap::before(server.address().parse::<SocketAddr>().expect("an address"));
        let pool = pool(&tap);
        count(&pool);
        tap.assert_untouched(|| testing::child(|| count(&pool)).join());
    });
}

/// What such a program has to do: fork first, connect then. The kit watches over it from then on.
#[test]
fn workers_that_make_their_own_pool_share_nothing() {
    testing::clean_process(|| {
        let server = PrivateRedis::start();
        let tap = Tap::before(server.address().parse::<SocketAddr>().expect("an address"));
        let before = Snapshot::of(std::process::id());
        let workers = [(); 2].map(|()| testing::child(|| count(&pool(&tap))));
        let mut counts = workers.map(testing::Child::join);
        counts.sort_unstable();
        assert_eq!(counts, [1, 2]);
        before.assert_nothing_leaked();
    });
}
