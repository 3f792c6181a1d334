//! The servers that the scenarios run against.

use crate::kit;
use forksafe::postgres::PostgresManager;
use forksafe::testing::{PrivatePostgres, PrivateRedis, Witness, WitnessManager, patience};
use forksafe::{Builder, ManageConnection, Pool};
use postgres::NoTls;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

pub(crate) trait Server {
    type Manager: ManageConnection + Clone;

    /// How many children a storm is made of.
    const STORM: usize = 1000;

    fn start() -> Self;
    fn manager(&self) -> Self::Manager;

    /// Asks something that was never asked before, checks the answer, and returns the server's name for the connection.
    fn ask(conn: &mut <Self::Manager as ManageConnection>::Connection) -> u64;

    /// Whether a question is answered at all.
    fn answers(conn: &mut <Self::Manager as ManageConnection>::Connection) -> bool;

    /// The connections that the server has now, its own helpers' not counted.
    fn open(&self) -> Vec<u64>;

    /// What the server knows of wrongs; the answers are judged by `ask`.
    #[track_caller]
    fn judge(&self);

    fn pool(&self) -> Pool<Self::Manager> {
        self.pool_of(4)
    }

    fn pool_of(&self, max_size: u32) -> Pool<Self::Manager> {
        self.builder().max_size(max_size).build(self.manager()).unwrap()
    }

    fn builder(&self) -> Builder<Self::Manager> {
        kit::tested().connection_timeout(patience() * 3 / 4)
    }

    /// One connection of the pool, asked.
    #[track_caller]
    fn session(pool: &Pool<Self::Manager>) -> u64 {
        Self::ask(&mut pool.get().unwrap())
    }

    #[track_caller]
    fn wait_until(&self, what: &str, enough: impl Fn(&[u64]) -> bool) {
        let until = Instant::now() + patience();
        while !enough(&self.open()) {
            assert!(Instant::now() < until, "waited in vain until {what}; open: {:?}", self.open());
            std::thread::yield_now();
        }
    }

    #[track_caller]
    fn wait_for_end(&self, session: u64) {
        self.wait_until(&format!("connection {session} has ended"), |open| !open.contains(&session));
    }
}

fn unheard_of() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{:?}-{}", std::process::id(), std::thread::current().id(), NEXT.fetch_add(1, Relaxed))
}

impl Server for Witness {
    type Manager = WitnessManager;

    fn start() -> Self {
        Witness::start()
    }

    fn manager(&self) -> WitnessManager {
        self.manager()
    }

    fn ask(conn: &mut forksafe::testing::WitnessClient) -> u64 {
        conn.ask(&unheard_of()).unwrap().connection
    }

    fn answers(conn: &mut forksafe::testing::WitnessClient) -> bool {
        conn.ask("anybody there").is_ok()
    }

    fn open(&self) -> Vec<u64> {
        self.connections().into_iter().filter(|(_, seen)| !seen.ended).map(|(id, _)| id).collect()
    }

    fn judge(&self) {
        assert_eq!(self.violations(), Vec::<String>::new());
    }
}

impl Server for PrivateRedis {
    type Manager = redis::Client;

    fn start() -> Self {
        PrivateRedis::start()
    }

    fn manager(&self) -> redis::Client {
        redis::Client::open(self.url()).unwrap()
    }

    fn ask(conn: &mut redis::Connection) -> u64 {
        let text = unheard_of();
        let echoed: String = redis::cmd("ECHO").arg(&text).query(conn).unwrap();
        assert_eq!(echoed, text, "a wrong answer");
        redis::cmd("CLIENT").arg("ID").query(conn).unwrap()
    }

    fn answers(conn: &mut redis::Connection) -> bool {
        redis::cmd("PING").query::<String>(conn).is_ok()
    }

    fn open(&self) -> Vec<u64> {
        let mut admin = self.manager().get_connection().unwrap();
        let me: u64 = redis::cmd("CLIENT").arg("ID").query(&mut admin).unwrap();
        let list: String = redis::cmd("CLIENT").arg("LIST").query(&mut admin).unwrap();
        let ids = list.lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse().ok());
        ids.filter(|&id| id != me).collect()
    }

    fn judge(&self) {}
}

/// The pid alone may be used again.
const NAME: &str = "(extract(epoch FROM backend_start) * 1000000)::bigint << 22 | pid";

/// What the sessions of this test are called, in its children, too: a server of `DATABASE_URL` has those of other tests.
static TEST: LazyLock<String> = LazyLock::new(|| format!("forksafe {}", std::process::id()));

impl Server for PrivatePostgres {
    type Manager = PostgresManager<NoTls>;

    /// A session is a process of the server's, and each child has four: a thousand children take over a minute.
    const STORM: usize = 200;

    fn start() -> Self {
        LazyLock::force(&TEST);
        PrivatePostgres::start()
    }

    fn manager(&self) -> PostgresManager<NoTls> {
        let mut config = self.config();
        config.application_name(&TEST);
        PostgresManager::new(config, NoTls)
    }

    fn ask(conn: &mut postgres::Client) -> u64 {
        let text = unheard_of();
        let question = format!("SELECT $1::text, {NAME} FROM pg_stat_get_activity(pg_backend_pid())");
        let row = conn.query_one(&question, &[&text]).unwrap();
        assert_eq!(row.get::<_, &str>(0), text, "a wrong answer");
        row.get::<_, i64>(1).cast_unsigned()
    }

    fn answers(conn: &mut postgres::Client) -> bool {
        conn.simple_query("SELECT 1").is_ok()
    }

    fn open(&self) -> Vec<u64> {
        let question = format!(
            "SELECT {NAME} FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
             AND application_name = $1"
        );
        let sessions = self.config().connect(NoTls).unwrap().query(&question, &[&*TEST]).unwrap();
        sessions.iter().map(|session| session.get::<_, i64>(0).cast_unsigned()).collect()
    }

    fn judge(&self) {}
}

/// A scenario, run against each server in a process of its own.
macro_rules! scenarios {
    ($($(#[$doc:meta])* fn $name:ident<S: Server>() $body:block)*) => { $(
        $(#[$doc])*
        mod $name {
            #[allow(unused_imports, reason = "each body needs some of them")]
            use super::*;

            fn body<S: $crate::servers::Server>() $body

            #[test]
            fn witness() {
                forksafe::testing::clean_process(|| body::<forksafe::testing::Witness>());
            }

            #[test]
            fn redis() {
                forksafe::testing::clean_process(|| body::<forksafe::testing::PrivateRedis>());
            }

            #[test]
            fn postgres() {
                forksafe::testing::clean_process(|| body::<forksafe::testing::PrivatePostgres>());
            }
        }
    )* };
}
pub(crate) use scenarios;
