//! Managers as people write them: each method overridden alone, clients replaced or swapped through a guard (row 33).

use crate::churn::sockets_to;
use crate::kit;
use crate::postgres_faults::refuses;
use crate::redis_fake::{Fake, Says};
use crate::redis_opening::live_to;
use crate::servers::Server;
use forksafe::fork::Descriptors;
use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, PrivatePostgres, PrivateRedis, Tap, Witness, WitnessClient, WitnessManager};
use forksafe::testing::{assert_nothing_shared, clean_process};
use forksafe::{Attempt, Deadline, ManageConnection, PooledConnection};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// A newtype over another manager, with r2d2's three methods and whatever `$more` says.
macro_rules! newtype {
    ($name:ident { $($more:tt)* }) => {
        struct $name(WitnessManager);

        impl ManageConnection for $name {
            type Connection = WitnessClient;
            type Error = io::Error;

            fn connect(&self) -> io::Result<WitnessClient> {
                self.0.connect()
            }
            fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
                self.0.is_valid(conn)
            }
            fn has_broken(&self, conn: &mut WitnessClient) -> bool {
                self.0.has_broken(conn)
            }
            $($more)*
        }
    };
}

newtype!(NamesNothing {});
newtype!(OverridesConnectWithin {
    fn connect_within(&self, at: &mut Attempt) -> io::Result<WitnessClient> {
        assert!(!at.deadline().is_over());
        self.0.connect()
    }
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        Descriptors::of(conn.stream())
    }
});
newtype!(NamesDescriptors {
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        Descriptors::of(conn.stream())
    }
});
newtype!(ShowsItsSocket {
    fn socket<'c>(&self, conn: &'c WitnessClient) -> Option<BorrowedFd<'c>> {
        Some(conn.stream().as_fd())
    }
});
newtype!(OverridesTheTest {
    fn is_valid_within(&self, conn: &mut WitnessClient, _: Deadline) -> io::Result<()> {
        self.0.is_valid(conn)
    }
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        self.0.descriptors(conn)
    }
});

newtype!(KnowsAtTimes {
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        if KNOWS.load(SeqCst) { Descriptors::of(conn.stream()) } else { Descriptors::unknown() }
    }
    fn is_valid_within(&self, conn: &mut WitnessClient, _: Deadline) -> io::Result<()> {
        assert!(!PANICS.load(SeqCst));
        self.0.is_valid(conn)
    }
});
static KNOWS: AtomicBool = AtomicBool::new(true);
static PANICS: AtomicBool = AtomicBool::new(false);

/// Idle and lent connections of the parent are dead in the child, whoever made the manager.
fn is_protected<M: ManageConnection<Connection = WitnessClient>>(witness: &Witness, make: fn(WitnessManager) -> M) {
    let pool = kit::tested().max_size(3).require_known_descriptors(true).build(make(witness.manager())).unwrap();
    let mut held = pool.get().unwrap();
    held.ask("before").unwrap();
    drop(pool.get().unwrap());
    assert_eq!(pool.state().unknown_descriptors, 0);
    let stays = crate::kit::Door::new();
    let child = testing::child(|| {
        pool.get().unwrap().ask("here").unwrap();
        stays.pass();
    });
    assert_nothing_shared(&[std::process::id(), child.pid()]);
    stays.open();
    child.join();
    held.ask("after").unwrap();
}

#[test]
fn a_manager_that_names_its_descriptors_in_any_way_is_protected() {
    clean_process(|| {
        let witness = Witness::start();
        is_protected(&witness, OverridesConnectWithin);
        is_protected(&witness, NamesDescriptors);
        is_protected(&witness, ShowsItsSocket);
        is_protected(&witness, OverridesTheTest);
        is_protected(&witness, |manager| std::sync::Arc::new(OverridesConnectWithin(manager)));
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// What nobody names is never silent.
#[test]
fn unknown_descriptors_are_counted_shown_and_refused_if_asked() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(2).build(NamesNothing(witness.manager())).unwrap();
        let held = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 1);
        assert!(format!("{pool:?}").contains("unknown_descriptors: 1"), "{pool:?}");
        PooledConnection::discard(held);
        assert_eq!(pool.state().unknown_descriptors, 0);

        let strict = kit::tested().require_known_descriptors(true).build(NamesNothing(witness.manager())).unwrap();
        let error = strict.get().unwrap_err();
        assert!(error.is_unprotected() && error.to_string().contains("require_known_descriptors"), "{error}");
        assert_eq!((strict.state().connections, strict.state().unknown_descriptors), (0, 0));
    });
}

/// Whatever becomes of it, the count is right.
#[test]
fn a_connection_whose_descriptors_become_unknown_is_counted_or_refused() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(1).build(KnowsAtTimes(witness.manager())).unwrap();
        let unknown = || pool.state().unknown_descriptors;
        let replace = |conn: &mut WitnessClient| *conn = witness.manager().connect().unwrap();
        let get = |knows| {
            let mut conn = pool.get().unwrap();
            replace(&mut conn);
            KNOWS.store(knows, SeqCst);
            PooledConnection::republish(&mut conn).unwrap();
            conn
        };
        drop(get(false));
        assert_eq!(unknown(), 1);
        drop(get(true));
        assert_eq!(unknown(), 0);
        PooledConnection::discard(get(false));
        assert_eq!(unknown(), 0);
        drop(pool.get().unwrap());
        assert_eq!(unknown(), 1);
        PANICS.store(true, SeqCst);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.get().map(drop))).is_err());
        assert_eq!((unknown(), pool.state().connections), (0, 0), "closed by a panic");

        let builder = kit::tested().max_size(1).require_known_descriptors(true);
        let strict = builder.build(KnowsAtTimes(witness.manager())).unwrap();
        let state = || (strict.state().connections, strict.state().unknown_descriptors);
        PANICS.store(false, SeqCst);
        for says_so in [true, false] {
            KNOWS.store(true, SeqCst);
            let mut conn = strict.get().unwrap();
            replace(&mut conn);
            KNOWS.store(false, SeqCst);
            if says_so {
                assert!(PooledConnection::republish(&mut conn).unwrap_err().is_unprotected());
            }
            drop(conn);
            // By its return, or by its next test.
            assert!(strict.get().is_err_and(|error| error.is_unprotected()));
            assert_eq!(state(), (0, 0));
        }
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// r2d2's idiom of reconnecting in place: the new client is as protected as the old one was, from its return on; or at once
/// if it is said.
#[test]
fn a_client_that_takes_anothers_place_is_protected() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(1).build(ShowsItsSocket(witness.manager())).unwrap();
        for says_so in [false, true] {
            let mut conn = pool.get().unwrap();
            *conn = pool.manager().connect().unwrap();
            let session = conn.ask("who am I").unwrap().connection;
            let held = if says_so {
                PooledConnection::republish(&mut conn).unwrap();
                Some(conn)
            } else {
                drop(conn);
                None
            };
            let stays = crate::kit::Door::new();
            let child = testing::child(|| stays.pass());
            assert_nothing_shared(&[std::process::id(), child.pid()]);
            stays.open();
            child.join();
            drop(held);
            assert_eq!(pool.get().unwrap().ask("who am I").unwrap().connection, session, "and it goes on");
        }
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// A client that closes its socket and opens another has the same number again: the identity tells, at the next test.
#[test]
fn a_client_that_reconnected_by_itself_is_protected_from_its_next_test_on() {
    struct Reconnects(WitnessManager);
    impl ManageConnection for Reconnects {
        type Connection = Option<WitnessClient>;
        type Error = io::Error;
        fn connect(&self) -> io::Result<Self::Connection> {
            self.0.connect().map(Some)
        }
        fn is_valid(&self, conn: &mut Self::Connection) -> io::Result<()> {
            self.0.is_valid(conn.as_mut().unwrap())
        }
        fn has_broken(&self, _: &mut Self::Connection) -> bool {
            false
        }
        fn descriptors(&self, conn: &Self::Connection) -> Descriptors {
            conn.as_ref().map_or_else(Descriptors::none, |conn| self.0.descriptors(conn))
        }
    }
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(1).build(Reconnects(witness.manager())).unwrap();
        let mut conn = pool.get().unwrap();
        *conn = None;
        *conn = Some(WitnessClient::connect(witness.address()).unwrap());
        let session = conn.as_mut().unwrap().ask("who am I").unwrap().connection;
        drop(conn);
        assert_eq!(pool.get().unwrap().as_mut().unwrap().ask("who am I").unwrap().connection, session, "tested, kept");
        let stays = crate::kit::Door::new();
        let child = testing::child(|| stays.pass());
        assert_nothing_shared(&[std::process::id(), child.pid()]);
        stays.open();
        child.join();
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// Two guards exchange their clients: discarding one does not kill the other.
#[test]
fn guards_that_exchanged_their_clients_do_not_kill_each_other() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(2).build(NamesDescriptors(witness.manager())).unwrap();
        let (mut one, mut two) = (pool.get().unwrap(), pool.get().unwrap());
        let session = one.ask("who am I").unwrap().connection;
        std::mem::swap(&mut *one, &mut *two);
        PooledConnection::discard(one);
        assert_eq!(two.ask("still here?").unwrap().connection, session);
        drop(two);
        let mut conn = pool.get().unwrap();
        conn.ask("and in order").unwrap();
    });
}

/// A connection that is made of two clients, each by a manager of its own.
struct Two<A, B>(A, B);

impl<A, B> ManageConnection for Two<A, B>
where
    A: ManageConnection,
    B: ManageConnection<Error = A::Error>,
{
    type Connection = (A::Connection, B::Connection);
    type Error = A::Error;

    fn connect(&self) -> Result<Self::Connection, A::Error> {
        Ok((self.0.connect()?, self.1.connect()?))
    }
    fn is_valid(&self, conn: &mut Self::Connection) -> Result<(), A::Error> {
        self.0.is_valid(&mut conn.0)?;
        self.1.is_valid(&mut conn.1)
    }
    fn has_broken(&self, conn: &mut Self::Connection) -> bool {
        self.0.has_broken(&mut conn.0) || self.1.has_broken(&mut conn.1)
    }
}

/// The second is opened at a server that hangs up first: what was published for it is taken back, and nothing of the first's.
#[test]
fn a_connection_of_two_redis_clients_is_protected_whatever_the_second_gives_up() {
    clean_process(|| {
        let first = PrivateRedis::start();
        let second = Fake::start(|connection, _, words| match words[0].as_str() {
            "CLIENT" if connection == 0 => Says::HangUp,
            _ => Says::Usual,
        });
        let pool = kit::tested().max_size(1).build(Two(first.manager(), second.client())).unwrap();
        let mut conn = pool.get().unwrap();
        assert_eq!(second.accepted(), 2, "the second was opened twice");
        let session = PrivateRedis::ask(&mut conn.0);
        let servers = [first.address(), &second.address].map(|address| address.parse().unwrap());
        assert_eq!(servers.map(live_to), [1, 1]);
        assert_eq!(testing::child(|| servers.map(live_to)).join(), [0, 0]);
        assert_eq!(PrivateRedis::ask(&mut conn.0), session);
        drop(conn);
        assert_eq!(PrivateRedis::ask(&mut pool.get().unwrap().0), session, "tested, and kept");
    });
}

/// The same, where the first host of the second refuses.
#[test]
fn a_connection_of_two_postgres_clients_is_protected_whatever_the_second_gives_up() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let port = server.port().unwrap();
        let starts = refuses("FATAL", "57P03");
        let manager =
            |hosts: String| PostgresManager::new(format!("{hosts} user=postgres").parse().unwrap(), postgres::NoTls);
        let first = manager(format!("host=127.0.0.1 port={port}"));
        let second = manager(format!("host=127.0.0.1,127.0.0.1 port={starts},{port}"));
        let pool = kit::tested().max_size(1).build(Two(first, second)).unwrap();
        let mut conn = pool.get().unwrap();
        let sessions = (PrivatePostgres::ask(&mut conn.0), PrivatePostgres::ask(&mut conn.1));
        let sockets = sockets_to(([127, 0, 0, 1], port).into());
        assert_eq!(sockets.len(), 2);
        let parent = std::process::id();
        let shared = testing::child(|| sockets.iter().filter(|&&fd| kit::is_same_file(parent, fd)).count()).join();
        assert_eq!(shared, 0);
        assert_eq!((PrivatePostgres::ask(&mut conn.0), PrivatePostgres::ask(&mut conn.1)), sessions);
        drop(conn);
        assert_eq!(PrivatePostgres::ask(&mut pool.get().unwrap().0), sessions.0, "tested, and kept");
    });
}

/// One client is of a manager inside, which publishes it, the other is named by the manager itself.
struct AndAnother(redis::Client, WitnessManager);

impl ManageConnection for AndAnother {
    type Connection = (redis::Connection, WitnessClient);
    type Error = redis::RedisError;

    fn connect(&self) -> redis::RedisResult<Self::Connection> {
        Ok((ManageConnection::connect(&self.0)?, self.1.connect()?))
    }
    fn is_valid(&self, conn: &mut Self::Connection) -> redis::RedisResult<()> {
        Ok(self.1.is_valid(&mut conn.1)?)
    }
    fn has_broken(&self, _: &mut Self::Connection) -> bool {
        false
    }
    fn descriptors(&self, conn: &Self::Connection) -> Descriptors {
        if KNOWS.load(SeqCst) {
            Descriptors::of(conn.1.stream())
        } else {
            self.0.descriptors(&conn.0).and(conn.1.stream())
        }
    }
}

/// What a manager inside has published does not keep the rest from being asked for, whether it is named once more or not.
#[test]
fn a_client_beside_one_of_ours_is_protected_if_it_is_named() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let witness = Witness::start();
        for knows in [true, false] {
            KNOWS.store(knows, SeqCst);
            let pool = kit::tested().max_size(1).build(AndAnother(redis.manager(), witness.manager())).unwrap();
            let mut conn = pool.get().unwrap();
            let stays = kit::Door::new();
            let child = testing::child(|| stays.pass());
            assert_nothing_shared(&[std::process::id(), child.pid()]);
            stays.open();
            child.join();
            conn.1.ask("here").unwrap();
            PrivateRedis::ask(&mut conn.0);
        }
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// What a part has published is protected before it joins, and lives on with the whole; a part that is given up is shut down,
/// and nothing else is.
#[test]
fn a_part_of_an_attempt_gives_up_what_is_its_own() {
    clean_process(|| {
        let witness = Witness::start();
        let connect = || WitnessClient::connect(witness.address()).unwrap();
        let at = Attempt::new(Deadline::never());
        let (mut kept, mut joined, mut forgotten, mut dropped) = (connect(), connect(), connect(), connect());
        at.own(Descriptors::of(kept.stream()));
        let [joins, forgets, drops] = [&joined, &forgotten, &dropped].map(|client| {
            let part = at.part();
            part.own(Descriptors::of(client.stream()));
            part
        });
        let stays = kit::Door::new();
        let child = testing::child(|| stays.pass());
        assert_nothing_shared(&[std::process::id(), child.pid()]);
        stays.open();
        child.join();
        joins.join();
        forgets.forget_all();
        drop(drops);
        assert!(forgotten.ask("given up").is_err() && dropped.ask("given up").is_err());
        kept.ask("here").unwrap();
        joined.ask("here").unwrap();
        drop((at, forgets));
        assert!(kept.ask("given up").is_err() && joined.ask("given up").is_err());
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// A newtype with r2d2's three methods.
struct Plain<M>(M, fn(&M));

impl<M: ManageConnection> ManageConnection for Plain<M> {
    type Connection = M::Connection;
    type Error = M::Error;

    fn connect(&self) -> Result<M::Connection, M::Error> {
        self.0.connect()
    }
    fn is_valid(&self, conn: &mut M::Connection) -> Result<(), M::Error> {
        self.1(&self.0);
        self.0.is_valid(conn)
    }
    fn has_broken(&self, conn: &mut M::Connection) -> bool {
        self.0.has_broken(conn)
    }
}

/// Nobody passes the deadline of the pool's test on, and it is kept all the same.
#[test]
fn a_redis_test_that_is_passed_on_without_its_deadline_ends_in_time() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let tap = Tap::before(redis.address().parse::<SocketAddr>().unwrap());
        let client = redis::Client::open(format!("redis://{}/", tap.address())).unwrap();
        let builder = kit::tested().max_size(1).test_timeout(Duration::from_millis(200));
        let pool = builder.build(Plain(client, |_| ())).unwrap();
        let session = PrivateRedis::ask(&mut pool.get().unwrap());
        tap.freeze();
        let begun = Instant::now();
        assert_ne!(PrivateRedis::ask(&mut pool.get().unwrap()), session);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    });
}

/// Nor is it shorter than the pool's.
#[test]
fn a_postgres_test_that_is_passed_on_without_its_deadline_has_all_its_time() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let tap = Tap::before(SocketAddr::from(([127, 0, 0, 1], server.port().unwrap())));
        let port = tap.address().to_string().rsplit(':').next().unwrap().to_owned();
        let config = format!("host=127.0.0.1 port={port} user=postgres").parse().unwrap();
        let builder = kit::tested().max_size(1).test_timeout(testing::patience() / 2);
        let pool = builder.build(Plain(PostgresManager::new(config, postgres::NoTls), |_| ())).unwrap();
        let session = PrivatePostgres::ask(&mut pool.get().unwrap());
        tap.slow(Duration::from_millis(1500));
        assert_eq!(PrivatePostgres::ask(&mut pool.get().unwrap()), session);
    });
}

/// It is not the deadline of a child that was forked in the middle.
#[test]
fn a_child_that_was_forked_in_a_test_has_no_deadline_of_its_parents() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let tap = Tap::before(redis.address().parse::<SocketAddr>().unwrap());
        let client = redis::Client::open(format!("redis://{}/", tap.address())).unwrap();
        let builder = kit::tested().max_size(1).test_timeout(Duration::from_secs(1));
        let forks = |client: &redis::Client| {
            let answers = testing::child(|| client.is_valid(&mut client.get_connection().unwrap()).is_ok());
            assert!(answers.join(), "in the child");
        };
        let pool = builder.build(Plain(client, forks)).unwrap();
        drop(pool.get().unwrap());
        tap.slow(Duration::from_millis(1500));
        let _ = pool.get();
    });
}
