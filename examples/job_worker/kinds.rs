//! What jobs do. A real runner has yours here; these show what can become of one.

use crate::Result;
use crate::job::Job;
use postgres::Transaction;
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;

pub(crate) const KINDS: &str = "insert, sleep, flaky, fail, panic";

/// A job to show what one of this kind does.
pub(crate) fn example(kind: &str, number: u64, time: Option<Duration>) -> Result<Job> {
    let time = |otherwise: u64| time.map_or(otherwise, |time| time.as_millis() as u64);
    let payload = match kind {
        "insert" => json!({ "words": format!("number {number}"), "ms": time(0) }),
        "sleep" => json!({ "ms": time(100) }),
        "flaky" => json!({ "words": format!("number {number}"), "fails": 2 }),
        "fail" | "panic" => Value::Null,
        other => return Err(format!("--kind {other}: there are {KINDS}").into()),
    };
    Ok(Job::new(kind, payload))
}

/// The part that needs no database: a connection is not held meanwhile. It is done again if the worker is killed, so an e-mail
/// sent from here may be sent twice.
pub(crate) fn work(job: &Job) -> Result<()> {
    match job.kind.as_str() {
        "insert" | "sleep" => thread::sleep(Duration::from_millis(job.number("ms", 0))),
        "flaky" if u64::from(job.attempts) < job.number("fails", 1) => return Err("not yet".into()),
        "flaky" => {}
        "fail" => return Err("it always does".into()),
        "panic" => panic!("on purpose"),
        // Newer programs may have left it: there is time until it is dead.
        other => return Err(format!("there is no kind {other:?} here").into()),
    }
    Ok(())
}

/// The part that happens once, whatever happens: together with the mark that the job is done, or not at all.
pub(crate) fn write(
    job: &Job,
    queue: &str,
    transaction: &mut Transaction<'_>,
) -> std::result::Result<(), postgres::Error> {
    if let Some(words) = job.payload.get("words").and_then(Value::as_str) {
        transaction.execute(
            "INSERT INTO job_worker_rows (queue, job, words) VALUES ($1, $2, $3)",
            &[&queue, &job.id, &words],
        )?;
    }
    Ok(())
}
