//! What goes wrong by itself: connects that fail, a server that says nothing, and a network of the worse kind.

use fastrand::Rng;
use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, Address, PrivateRedis, Tap};
use forksafe::{Pool, PooledConnection};
use postgres::NoTls;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

/// For whom nobody has to wait long.
const SHORT: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Ill {
    /// Nobody listens there.
    Refused,
    /// Redis has no database of that number.
    WrongDatabase,
    /// PostgreSQL has none of that name.
    NoDatabase,
    /// It accepts and says nothing.
    Silent,
}

impl Ill {
    pub(crate) const ALL: [Self; 4] = [Self::Refused, Self::WrongDatabase, Self::NoDatabase, Self::Silent];
}

/// What the network between this family and Redis is like for a round.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weather {
    Frozen,
    Cut,
    Slow,
    Split,
    Drips,
}

impl Weather {
    pub(crate) const ALL: [Self; 5] = [Self::Frozen, Self::Cut, Self::Slow, Self::Split, Self::Drips];
}

pub(crate) struct Trouble {
    refused: Pool<redis::Client>,
    wrong_database: Pool<redis::Client>,
    no_database: Pool<PostgresManager<NoTls>>,
    silent: Pool<PostgresManager<NoTls>>,
    /// Redis, through the tap.
    tapped: Pool<redis::Client>,
    tap: Tap,
    /// One more, for the tap's own sockets are in every child.
    _behind_the_tap: PrivateRedis,
    /// Whose queue has room for all who come.
    _listener: TcpListener,
}

impl Trouble {
    pub(crate) fn new(redis: SocketAddr, postgres: &postgres::Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let mut no_database = postgres.clone();
        no_database.dbname("there_is_none");
        let mut silent = postgres::Config::new();
        silent.host("127.0.0.1").port(listener.local_addr().expect("an address").port()).user("nobody");
        let behind_the_tap = PrivateRedis::start_with(&["--databases", "1"]);
        let tap = Tap::before(behind_the_tap.address().parse::<SocketAddr>().expect("an address"));
        Self {
            // The port of a service that nobody runs.
            refused: redis_at("127.0.0.1:1/"),
            wrong_database: redis_at(&format!("{redis}/7")),
            no_database: lazy(PostgresManager::new(no_database, NoTls)),
            silent: lazy(PostgresManager::new(silent, NoTls)),
            tapped: redis_at(&format!("{}/", tap.address())),
            tap,
            _behind_the_tap: behind_the_tap,
            _listener: listener,
        }
    }

    pub(crate) fn address(&self) -> &Address {
        self.tap.address()
    }

    /// It fails, in time, and says why.
    pub(crate) fn meet(&self, ill: Ill) {
        let begun = Instant::now();
        let error = match ill {
            Ill::Refused => self.refused.get().err(),
            Ill::WrongDatabase => self.wrong_database.get().err(),
            Ill::NoDatabase => self.no_database.get().err(),
            Ill::Silent => self.silent.get_timeout(SHORT).err(),
        };
        let error = error.unwrap_or_else(|| panic!("{ill:?}: it was served"));
        assert!(error.is_connect() || error.is_timeout(), "{ill:?}: {error}");
        assert!(begun.elapsed() < testing::patience(), "{ill:?} took {:?}", begun.elapsed());
    }

    /// Whatever the weather, it comes to an end in time, and no answer is another's.
    pub(crate) fn ask_through_the_weather(&self, text: &str) -> bool {
        let begun = Instant::now();
        let asked = self.tapped.get_timeout(SHORT).ok().is_some_and(|mut conn| {
            let answer =
                conn.set_read_timeout(Some(SHORT)).and_then(|()| redis::cmd("ECHO").arg(text).query(&mut conn));
            match answer {
                Ok(answer) => {
                    let answer: String = answer;
                    assert_eq!(answer, text, "a wrong answer of Redis");
                    conn.set_read_timeout(None).is_ok()
                }
                Err(_) => {
                    PooledConnection::discard(conn);
                    false
                }
            }
        });
        assert!(begun.elapsed() < testing::patience(), "it took {:?}", begun.elapsed());
        asked
    }

    /// Only in the parent: the tap is its.
    pub(crate) fn change(&self, weather: Weather, rng: &mut Rng) {
        let pause = Duration::from_millis(rng.u64(1..60));
        match weather {
            Weather::Frozen => self.tap.freeze(),
            Weather::Cut => self.tap.cut(),
            Weather::Slow => self.tap.slow(pause),
            Weather::Split => self.tap.split_replies(rng.usize(1..8), pause),
            Weather::Drips => self.tap.drip(rng.usize(1..4), pause / 8),
        }
    }

    /// And then it is served again.
    pub(crate) fn clear_up(&self) {
        self.tap.slow(Duration::ZERO);
        testing::wait_until("Redis is reached again", || self.ask_through_the_weather("after the storm"));
    }

    /// Nothing of it is left at the servers.
    pub(crate) fn end(&self) {
        self.tapped.disconnect();
        self.tap.cut();
    }
}

fn redis_at(place: &str) -> Pool<redis::Client> {
    lazy(redis::Client::open(format!("redis://{place}")).expect("a url"))
}

fn lazy<M: forksafe::ManageConnection>(manager: M) -> Pool<M> {
    Pool::builder().max_size(2).connection_timeout(testing::patience() / 2).build(manager).expect("a pool")
}
