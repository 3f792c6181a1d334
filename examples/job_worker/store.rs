//! What jobs do to the database, in PostgreSQL.
//!
//! A job can come twice: its worker was killed after the commit and before it could tell Redis; or was held to be gone, and was not.
//! So a job's work and the mark that it is done are one transaction, and the mark's key is the job's id: the second finds the mark,
//! waits for the first if that is still about it, and does nothing.

use crate::Result;
use crate::job::Job;
use crate::kinds;
use crate::say::with_causes;
use forksafe::postgres::PostgresManager;
use forksafe::{Pool, PooledConnection};
use postgres::error::SqlState;
use postgres::{Config, NoTls};
use std::error::Error;
use std::io;
use std::process;
use std::time::Duration;

/// How long a job waits for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// In a transaction, behind a lock: two programs that start at once would both see that there is no table.
const TABLES: &str = "\
BEGIN;
SELECT pg_advisory_xact_lock(5707963267948966);
CREATE TABLE IF NOT EXISTS job_worker_done (
    queue text, id text, kind text NOT NULL, worker int NOT NULL, attempts int NOT NULL, interrupted int NOT NULL,
    done_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (queue, id));
CREATE TABLE IF NOT EXISTS job_worker_rows (queue text NOT NULL, job text NOT NULL, words text NOT NULL);
COMMIT";

pub(crate) struct Store {
    pool: Pool<PostgresManager<NoTls>>,
}

/// Why a job's work is not in the database.
pub(crate) enum Unstored {
    /// The server is not there. The job can do nothing for it.
    Away(Box<dyn Error + Send + Sync>),
    /// The job is wrong.
    Refused(String),
}

impl Store {
    pub(crate) fn open(url: &str) -> Result<Self> {
        let mut config: Config = url.parse().map_err(|error| format!("--postgres: {error}"))?;
        config.application_name("job_worker");
        let settings = Pool::builder().name("store").max_size(1).connection_timeout(PATIENCE);
        Ok(Self { pool: settings.build_unchecked(PostgresManager::new(config, NoTls)) })
    }

    pub(crate) fn serve_threads(&self, threads: usize) -> Result<()> {
        Ok(self.pool.resize(u32::try_from(threads)?)?)
    }

    pub(crate) fn close(&self) {
        self.pool.close();
    }

    pub(crate) fn make_tables(&self) -> Result<()> {
        Ok(self.pool.get()?.batch_execute(TABLES)?)
    }

    /// Does the work of a job, once. False if it had been done already.
    pub(crate) fn finish(&self, job: &Job, queue: &str) -> std::result::Result<bool, Unstored> {
        let mut conn = self.pool.get().map_err(|error| Unstored::Away(error.into()))?;
        let worker = process::id().cast_signed();
        let mut finish = || {
            let mut transaction = conn.transaction()?;
            let marked = transaction.execute(
                "INSERT INTO job_worker_done (queue, id, kind, worker, attempts, interrupted) \
                 VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
                &[&queue, &job.id, &job.kind, &worker, &job.attempts.cast_signed(), &job.interrupted.cast_signed()],
            )?;
            if marked == 1 {
                kinds::write(job, queue, &mut transaction)?;
            } else {
                // Its worker was gone after the mark.
                let late =
                    "UPDATE job_worker_done SET interrupted = greatest(interrupted, $3) WHERE queue = $1 AND id = $2";
                transaction.execute(late, &[&queue, &job.id, &job.interrupted.cast_signed()])?;
            }
            transaction.commit()?;
            Ok(marked == 1)
        };
        finish().map_err(|error: postgres::Error| {
            PooledConnection::report(&mut conn, &error);
            if is_of_the_server(&error) { Unstored::Away(error.into()) } else { Unstored::Refused(with_causes(&error)) }
        })
    }

    /// The ids of those that are done.
    pub(crate) fn done(&self, queue: &str) -> Result<Vec<String>> {
        let rows = self.pool.get()?.query("SELECT id FROM job_worker_done WHERE queue = $1", &[&queue])?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    pub(crate) fn count_done(&self, queue: &str) -> Result<i64> {
        let question = "SELECT count(*) FROM job_worker_done WHERE queue = $1";
        Ok(self.pool.get()?.query_one(question, &[&queue])?.try_get(0)?)
    }

    /// How many jobs have left more than one row. No key forbids that: it is for the mark to prevent.
    pub(crate) fn count_twice(&self, queue: &str) -> Result<i64> {
        let question = "SELECT count(*) FROM (SELECT FROM job_worker_rows WHERE queue = $1 GROUP BY job HAVING count(*) > 1) twice";
        Ok(self.pool.get()?.query_one(question, &[&queue])?.try_get(0)?)
    }
}

/// Whether it would have come with any other job, too.
fn is_of_the_server(error: &postgres::Error) -> bool {
    let is_io = error.source().is_some_and(|source| source.is::<io::Error>());
    let passing =
        [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED, SqlState::READ_ONLY_SQL_TRANSACTION];
    // It shuts down, it starts; connection trouble; no resources left.
    let of_server = |state: &SqlState| ["57P", "08", "53"].iter().any(|class| state.code().starts_with(class));
    error.is_closed() || is_io || error.code().is_some_and(|state| passing.contains(state) || of_server(state))
}
