//! What a Redis allows.

use super::limit::{Capacity, Limit};
use super::text::in_full;
use crate::redis::RedisManager;
use crate::{Deadline, Fault, ManageConnection};
use ::redis::{FromRedisValue, Value, cmd};
use std::collections::HashMap;
use std::time::Duration;

impl Capacity {
    /// What a Redis, or anything that speaks its protocol, allows: its `maxclients`. Asked within `timeout`, on a connection of its own, by
    /// `CONFIG GET maxclients`, `INFO clients` and `INFO replication`.
    ///
    /// Replicas and links of a cluster count towards it, and are reserved here. Whose the other connections are Redis does not
    /// tell: an account is mostly everybody's. If that makes the difference, the report says so.
    ///
    /// Where an account may ask neither (managed servers forbid the former; the latter needs `+info`), it is
    /// [unknown](Self::unknown). So it is if the server is away or does not answer in time. A server that turns us away because
    /// it has no room is [full](Self::full).
    ///
    /// ```no_run
    /// use forksafe::{redis::RedisManager, sizing::{Capacity, Plan, Report}};
    /// use std::time::Duration;
    ///
    /// let manager = RedisManager::open("redis://127.0.0.1/")?;
    /// let cache = Capacity::of_redis(&manager, Duration::from_secs(2));
    /// println!("{}", Report::new(Plan::new().workers(4).pool("cache", 5)).server("cache", cache));
    /// # Ok::<_, redis::RedisError>(())
    /// ```
    pub fn of_redis(manager: &RedisManager, timeout: Duration) -> Self {
        let config = {
            let mut config = cmd("CONFIG");
            config.arg("GET").arg("maxclients");
            config
        };
        let info = |section| {
            let mut info = cmd("INFO");
            info.arg(section);
            info
        };
        let (clients, replication) = (info("clients"), info("replication"));
        let answer = manager.ask_within(Deadline::after(timeout), &[&config, &clients, &replication]);
        match answer.as_deref() {
            Ok([config, clients, replication]) => of(config, &fields(clients), &fields(replication)),
            Ok(_) => Self::unknown("it answers something else than it was asked"),
            Err(error) if manager.classify(error) == Fault::NoRoom => Self::full(in_full(error)),
            Err(error) => Self::unknown(in_full(error)),
        }
    }
}

/// `key:value` lines. None, if it may not be asked.
type Fields = HashMap<String, u64>;

fn of(config: &Value, clients: &Fields, replication: &Fields) -> Capacity {
    let configured = HashMap::<String, u64>::from_redis_value_ref(config).ok();
    let total = configured.and_then(|settings| settings.get("maxclients").copied());
    let Some(total) = total.or_else(|| clients.get("maxclients").copied()) else {
        return Capacity::unknown("this account may ask neither CONFIG GET maxclients nor INFO for it");
    };
    let limit = Limit::new("maxclients", total);
    let Some(connected) = clients.get("connected_clients") else {
        return Capacity::of([limit.in_use_unknown()]);
    };
    let links = |field: &str, from: &Fields| from.get(field).copied().unwrap_or(0);
    let reserved = links("cluster_connections", clients).saturating_add(links("connected_slaves", replication));
    // All but the one that asks.
    let others = connected.saturating_sub(1);
    Capacity::of([limit.reserved(reserved).in_use(others, (others == 0).then_some(0))])
}

/// Those that are numbers.
fn fields(info: &Value) -> Fields {
    let text = String::from_redis_value_ref(info).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?))).collect()
}
