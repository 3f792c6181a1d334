//! The servers, the pools, and what is known of their sessions.

use crate::trouble::{Ill, Trouble};
use fastrand::Rng;
use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, PrivatePostgres, PrivateRedis, SocketState, Witness, WitnessClient, WitnessManager};
use forksafe::{ManageConnection, Pool, PooledConnection};
use postgres::{Client, NoTls};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, RwLock, RwLockWriteGuard};

const MOST: u32 = 5;

pub(crate) struct World {
    pub(crate) witness: Witness,
    pub(crate) pools: Pools,
    redis: PrivateRedis,
    postgres: PrivatePostgres,
    /// Which process each session belongs to. Only the parent comes here.
    owners: Mutex<HashMap<String, Owner>>,
    /// Held by the busy threads while they are at it.
    gate: RwLock<()>,
    stopping: AtomicBool,
    failed: AtomicBool,
}

pub(crate) struct Pools {
    witness: Pool<WitnessManager>,
    redis: Pool<redis::Client>,
    postgres: Pool<PostgresManager<NoTls>>,
    pub(crate) trouble: Trouble,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Service {
    Witness,
    Redis,
    Postgres,
}

impl Service {
    pub(crate) const ALL: [Self; 3] = [Self::Witness, Self::Redis, Self::Postgres];
}

/// Whose a session is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Owner {
    Parent,
    /// A child or a descendant. Its pid is that of its namespace, so the round belongs to it.
    Child {
        round: u64,
        pid: u32,
    },
}

/// A connection of one of the pools, lent.
pub(crate) enum Lent {
    Witness(PooledConnection<WitnessManager>),
    Redis(PooledConnection<redis::Client>),
    Postgres(PooledConnection<PostgresManager<NoTls>>),
}

fn pool<M: ManageConnection>(manager: M) -> Pool<M> {
    Pool::builder().max_size(MOST).connection_timeout(testing::patience() * 3 / 4).build(manager).expect("a pool")
}

/// Never the same twice, in any process.
fn unheard_of() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{:?}-{}", std::process::id(), std::thread::current().id(), NEXT.fetch_add(1, SeqCst))
}

impl Lent {
    /// Asks what was never asked before, checks the answer, and returns the server's name for the session.
    pub(crate) fn ask(&mut self) -> String {
        let text = unheard_of();
        match self {
            Self::Witness(conn) => ask_witness(conn, &text),
            Self::Redis(conn) => ask_redis(conn, &text),
            Self::Postgres(conn) => ask_postgres(conn, &text),
        }
    }

    /// Whether a use of it is refused, because it is another process's.
    pub(crate) fn is_refused(&mut self) -> bool {
        let refused = match self {
            Self::Witness(conn) => PooledConnection::try_as_mut(conn).err(),
            Self::Redis(conn) => PooledConnection::try_as_mut(conn).err(),
            Self::Postgres(conn) => PooledConnection::try_as_mut(conn).err(),
        };
        refused.is_some_and(|error| error.is_inherited())
    }

    /// In PostgreSQL a transaction is open from here on; returns its number.
    pub(crate) fn begin(&mut self) -> Option<i64> {
        let Self::Postgres(conn) = self else { return None };
        conn.batch_execute("BEGIN").expect("a transaction");
        Some(transaction(conn))
    }

    /// It must still be the same.
    pub(crate) fn commit(&mut self, number: i64) {
        let Self::Postgres(conn) = self else { return };
        assert_eq!(transaction(conn), number, "the parent's transaction is another one");
        conn.batch_execute("COMMIT").expect("a commit");
    }
}

fn ask_witness(conn: &mut WitnessClient, text: &str) -> String {
    format!("witness {}", conn.ask(text).expect("an answer").connection)
}

fn ask_redis(conn: &mut redis::Connection, text: &str) -> String {
    let mut both = redis::pipe();
    let (id, echo): (u64, String) =
        both.cmd("CLIENT").arg("ID").cmd("ECHO").arg(text).query(conn).expect("an answer of Redis");
    assert_eq!(echo, text, "a wrong answer of Redis");
    format!("redis {id}")
}

fn ask_postgres(conn: &mut Client, text: &str) -> String {
    let question = "SELECT pid || '.' || extract(epoch FROM backend_start), $1::text FROM pg_stat_activity \
                    WHERE pid = pg_backend_pid()";
    let row = conn.query_one(question, &[&text]).expect("an answer of PostgreSQL");
    assert_eq!(row.get::<_, &str>(1), text, "a wrong answer of PostgreSQL");
    format!("postgres {}", row.get::<_, &str>(0))
}

fn transaction(conn: &mut Client) -> i64 {
    conn.query_one("SELECT txid_current()", &[]).expect("the number of a transaction").get(0)
}

impl Pools {
    pub(crate) fn lend(&self, service: Service) -> Lent {
        match service {
            Service::Witness => Lent::Witness(self.witness.get().expect("a connection to the witness")),
            Service::Redis => Lent::Redis(self.redis.get().expect("a connection to Redis")),
            Service::Postgres => Lent::Postgres(self.postgres.get().expect("a connection to PostgreSQL")),
        }
    }

    pub(crate) fn ask(&self, service: Service) -> String {
        self.lend(service).ask()
    }

    pub(crate) fn disconnect(&self) {
        self.witness.disconnect();
        self.redis.disconnect();
        self.postgres.disconnect();
    }
}

impl World {
    pub(crate) fn build() -> Self {
        let witness = Witness::start();
        // Of our own, whatever the environment says: their sessions are counted.
        let (redis, postgres) = (PrivateRedis::start_with(&["--databases", "1"]), PrivatePostgres::start_with(&[]));
        let pools = Pools {
            witness: pool(witness.manager()),
            redis: pool(redis::Client::open(redis.url()).expect("a url")),
            postgres: pool(PostgresManager::new(postgres.config(), NoTls)),
            trouble: Trouble::new(redis.address().parse().expect("an address"), &postgres.config()),
        };
        let (owners, gate) = (Mutex::default(), RwLock::default());
        let (stopping, failed) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { witness, pools, redis, postgres, owners, gate, stopping, failed }
    }

    /// A thread of the parent that uses the pools all the while, and gives its connections up now and then.
    pub(crate) fn be_busy(&self, mut rng: Rng) {
        let work = || {
            while !self.stopping.load(SeqCst) {
                let at_work = self.gate.read().unwrap();
                let session = self.pools.ask(Service::ALL[rng.usize(..3)]);
                if rng.u8(..) < 4 {
                    self.pools.disconnect();
                }
                if rng.u8(..) < 64 {
                    self.pools.trouble.meet([Ill::Refused, Ill::WrongDatabase, Ill::NoDatabase][rng.usize(..3)]);
                }
                drop(at_work);
                self.note(&session, Owner::Parent);
            }
        };
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err() {
            self.failed.store(true, SeqCst);
        }
    }

    /// For a child that is made without fork handlers: it gets the allocator's locks as they are, so nobody may be at it.
    pub(crate) fn quiet(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap()
    }

    /// A session belongs to one process, from its beginning to its end.
    pub(crate) fn note(&self, session: &str, by: Owner) {
        let owner = *self.owners.lock().unwrap().entry(session.to_owned()).or_insert(by);
        assert_eq!(owner, by, "session {session:?} was used by two processes");
    }

    /// Whether none of the servers' connections is held by that process, and could still be used.
    pub(crate) fn is_unconnected(&self, pid: u32) -> bool {
        let postgres = format!("127.0.0.1:{}", self.postgres.port().expect("one of our own"));
        let tap = self.pools.trouble.address().to_string();
        let servers = [self.witness.address().to_string(), self.redis.address().to_owned(), postgres, tap];
        let held = testing::Holdings::of(&[pid]).expect("the child");
        // What the parent has shut down is not established.
        let is_live = |state: &SocketState| *state == SocketState::Connected("ESTABLISHED");
        let mut sockets = held.sockets().iter().map(|held| &held.socket);
        !sockets.any(|socket| is_live(&socket.state) && servers.contains(&socket.peer))
    }

    pub(crate) fn sessions(&self) -> usize {
        self.owners.lock().unwrap().len()
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(SeqCst)
    }

    pub(crate) fn stop_at_end(&self) -> impl Drop {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, SeqCst);
            }
        }
        Stop(&self.stopping)
    }

    /// Nothing of the children is left: no session at a server, no descriptor here.
    pub(crate) fn judge_the_end(&self) {
        assert!(!self.has_failed(), "a thread of the parent failed");
        self.pools.disconnect();
        self.pools.trouble.end();
        testing::assert_comes_to("open connections at the witness", 0, || {
            self.witness.connections().values().filter(|seen| !seen.ended).count()
        });
        assert_eq!(self.witness.violations(), Vec::<String>::new());
        let mut admin = redis::Client::open(self.redis.url()).unwrap().get_connection().unwrap();
        testing::assert_comes_to("sessions of Redis", 1, || {
            redis::cmd("CLIENT").arg("LIST").query::<String>(&mut admin).unwrap().lines().count()
        });
        let mut admin = self.postgres.config().connect(NoTls).unwrap();
        testing::assert_comes_to("sessions of PostgreSQL", 1, || {
            let sessions = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
            admin.query_one(sessions, &[]).unwrap().get::<_, i64>(0)
        });
        let open = testing::descriptors(std::process::id()).len();
        assert!(open < 60, "{open} descriptors are open here");
    }
}
