//! What the features `tracing` and `metrics` make of what happens in a pool.
//!
//! Never on the shortest way of a connection out of the pool or back: what is lent there is counted, and told when
//! [`maintain`](crate::Pool::maintain) is called.

use super::error::Usage;
use super::{Closed, Holder};
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

/// Of the pool of this name.
#[cfg_attr(not(any(feature = "tracing", feature = "metrics")), allow(dead_code, reason = "nobody is told"))]
pub(super) struct Telemetry<'a>(pub(super) Option<&'a Arc<str>>);

/// Says a thing to a subscriber, with the name of the pool.
macro_rules! say {
    ($telemetry:ident, $level:ident, $($rest:tt)*) => {
        #[cfg(feature = "tracing")]
        tracing::$level!(target: "forksafe", pool = $telemetry.0.map(|name| &**name), $($rest)*)
    };
}

/// Hands a number to a recorder, with the name of the pool.
macro_rules! record {
    ($telemetry:ident, $kind:ident $name:literal $([$label:literal => $value:expr])?, $does:ident($number:expr)) => {
        #[cfg(feature = "metrics")]
        metrics::$kind!($name, "pool" => $telemetry.label() $(, $label => $value)?).$does($number)
    };
}

#[cfg_attr(not(all(feature = "tracing", feature = "metrics")), allow(unused_variables, reason = "each tells a part"))]
impl Telemetry<'_> {
    #[cfg(feature = "metrics")]
    fn label(&self) -> metrics::SharedString {
        self.0.map_or(metrics::SharedString::const_str(""), |name| metrics::SharedString::from_shared(Arc::clone(name)))
    }

    pub(super) fn begun(&self, inherited: u64) {
        say!(self, debug, inherited, generation = %crate::fork::generation(), "first use of the pool in this process");
        record!(self, counter "forksafe_connections_inherited_total", increment(inherited));
    }

    pub(super) fn opened(&self, id: u64, took: Duration) {
        say!(self, debug, connection = id, ?took, "connection opened");
        record!(self, counter "forksafe_connections_opened_total", increment(1));
        record!(self, histogram "forksafe_connect_seconds", record(took));
    }

    pub(super) fn not_opened(&self, why: &str) {
        say!(self, warn, error = why, "cannot open a connection");
        record!(self, counter "forksafe_connections_failed_total", increment(1));
    }

    pub(super) fn tested(&self, took: Duration) {
        record!(self, histogram "forksafe_test_seconds", record(took));
    }

    pub(super) fn ended(&self, id: u64, age: Duration, why: Closed) {
        say!(self, debug, connection = id, ?age, reason = why.as_str(), "connection closed");
        record!(self, counter "forksafe_connections_closed_total" ["reason" => why.as_str()], increment(1));
    }

    pub(super) fn slow(&self, took: Duration, place: &'static Location<'static>) {
        say!(self, warn, ?took, location = %place, "slow checkout");
        record!(self, counter "forksafe_checkouts_slow_total", increment(1));
    }

    pub(super) fn waited(&self, time: Duration) {
        record!(self, histogram "forksafe_wait_seconds", record(time));
    }

    pub(super) fn timed_out(&self, timeout: Duration, usage: &Usage) {
        say!(self, warn, ?timeout, %usage, "timed out");
        record!(self, counter "forksafe_checkouts_timed_out_total", increment(1));
    }

    pub(super) fn turned_away(&self, usage: &Usage) {
        say!(self, warn, %usage, "turned away");
        record!(self, counter "forksafe_checkouts_turned_away_total", increment(1));
    }

    pub(super) fn leaks(&self, holder: Holder) {
        say!(self, warn, held_for = ?holder.held_for, location = %holder.location, "a connection is held for too long");
        record!(self, counter "forksafe_leaks_total", increment(1));
    }

    pub(super) fn state(&self, usage: &Usage, lent: u64) {
        record!(self, counter "forksafe_checkouts_total", absolute(lent));
        record!(self, gauge "forksafe_connections" ["state" => "idle"], set(usage.idle));
        record!(self, gauge "forksafe_connections" ["state" => "in use"], set(usage.in_use));
        record!(self, gauge "forksafe_connections_max", set(usage.max_size));
        record!(self, gauge "forksafe_waiting", set(u32::try_from(usage.waiting).unwrap_or(u32::MAX)));
    }
}
