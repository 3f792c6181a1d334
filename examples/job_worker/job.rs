//! A job, and the text that it is in Redis.

use crate::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// No failed job rests longer than this.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Nobody else's, ever: by it PostgreSQL knows what has been done.
    pub(crate) id: String,
    /// See [`kinds`](crate::kinds).
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) payload: Value,
    /// How often it has failed.
    #[serde(default)]
    pub(crate) attempts: u32,
    /// How often its worker was gone in the middle of it.
    #[serde(default)]
    pub(crate) interrupted: u32,
    /// What it failed with last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Job {
    pub(crate) fn new(kind: &str, payload: Value) -> Self {
        let id = format!("{:032x}", fastrand::u128(..));
        Self { id, kind: kind.to_owned(), payload, attempts: 0, interrupted: 0, error: None }
    }

    pub(crate) fn text(&self) -> Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    /// A number of its payload, or what it is otherwise.
    pub(crate) fn number(&self, name: &str, otherwise: u64) -> u64 {
        self.payload.get(name).and_then(Value::as_u64).unwrap_or(otherwise)
    }

    /// How long it rests after it has failed for the `attempts`th time: twice as long each time. Half of it is left to chance, or
    /// all that failed together would come back together.
    pub(crate) fn back_off(&self, first: Duration) -> Duration {
        let doubled = first.saturating_mul(1 << self.attempts.saturating_sub(1).min(20)).min(LONGEST_BACK_OFF);
        doubled.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// A job as it lies in the list of the thread that took it: it is found there again by its very text.
pub(crate) struct Taken {
    pub(crate) text: String,
    /// What that says, or why it says nothing.
    pub(crate) job: std::result::Result<Job, String>,
}

impl From<String> for Taken {
    fn from(text: String) -> Self {
        let job = serde_json::from_str(&text).map_err(|error| format!("it is no job: {error}"));
        Self { text, job }
    }
}
