//! The servers that the applications are clients of.

use forksafe::testing::{PrivatePostgres, PrivateRedis};
use std::sync::Mutex;

pub(crate) struct Servers {
    pub(crate) postgres: PrivatePostgres,
    pub(crate) redis: PrivateRedis,
    /// Connections of the test's own.
    judge: Mutex<(postgres::Client, redis::Connection)>,
}

impl Servers {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let (postgres, redis) = (PrivatePostgres::start_with(&[]), PrivateRedis::start_with(&["--save", ""]));
        let to_postgres = postgres.config().connect(postgres::NoTls).expect("a server of ours");
        let to_redis = redis::Client::open(redis.url()).and_then(|client| client.get_connection());
        Self { postgres, redis, judge: Mutex::new((to_postgres, to_redis.expect("a server of ours"))) }
    }

    /// Whether there is a session with this number.
    pub(crate) fn serve(&self, client: &str, id: &str) -> bool {
        let (postgres, redis) = &mut *self.judge.lock().expect("nobody panics here");
        if client.contains("redis") {
            let list: String = redis::cmd("CLIENT").arg("LIST").query(redis).expect("a list");
            return list.lines().any(|line| line.starts_with(&format!("id={id} ")));
        }
        let sessions = postgres.query("select pid::text from pg_stat_activity", &[]).expect("a list");
        sessions.iter().any(|row| row.get::<_, String>(0) == id)
    }
}
