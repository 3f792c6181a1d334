//! What the workers query.

use crate::Result;
use crate::family::{Family, Role};
use forksafe::postgres::PostgresManager;
use forksafe::testing::{Witness, WitnessManager};
use forksafe::{ManageConnection, Pool};
use nix::sys::signal::Signal::SIGTERM;
use postgres::NoTls;
use postgres::config::{Config, Host};
use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

/// How long a request waits for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// All that there are; each request asks all of them.
pub(crate) struct Backends(Vec<Backend>);

/// A pool of the whole program, built once, in the master.
enum Backend {
    Embedded(Pool<WitnessManager>),
    Redis(Pool<redis::Client>),
    Postgres(Pool<PostgresManager<NoTls>>),
}

/// A connection for each thread. Without a test at checkout: it would heal some of what `--unsafe-share` is to show.
fn pool<M: ManageConnection>(manager: M, threads: usize) -> Result<Pool<M>> {
    let settings = Pool::builder().max_size(threads as u32).connection_timeout(PATIENCE);
    Ok(settings.test_on_check_out(false).build(manager)?)
}

impl Backends {
    /// Those whose urls are given, or the embedded one.
    pub(crate) fn open(
        redis: Option<&str>,
        postgres: Option<&str>,
        family: &mut Family,
        threads: usize,
    ) -> Result<Self> {
        let mut all = Vec::new();
        if let Some(url) = redis {
            all.push(Backend::redis(url, threads)?);
        }
        if let Some(url) = postgres {
            all.push(Backend::postgres(url, threads)?);
        }
        if all.is_empty() {
            all.push(Backend::embedded(family, threads)?);
        }
        Ok(Self(all))
    }

    /// Asks each to say `text` back. Returns their numbers for the connections; another answer is an error.
    pub(crate) fn ask(&self, text: &str) -> Result<Vec<u64>> {
        self.0.iter().map(|backend| backend.ask(text)).collect()
    }

    /// Closes the connections of this process.
    pub(crate) fn close(&self) {
        self.0.iter().for_each(Backend::close);
    }

    /// What the connections of each are called: just that, if there is only one.
    pub(crate) fn labels(&self) -> Vec<String> {
        match &self.0[..] {
            [_] => vec!["connection".into()],
            several => several.iter().map(|backend| format!("{} connection", backend.name())).collect(),
        }
    }

    /// Says which connections these are, one of each.
    pub(crate) fn list(&self, connections: &[u64]) -> String {
        let named = self.labels().into_iter().zip(connections).map(|(label, number)| format!("{label} {number}"));
        named.collect::<Vec<_>>().join(", ")
    }
}

impl Backend {
    fn redis(url: &str, threads: usize) -> Result<Self> {
        let client = redis::Client::open(url).map_err(|error| format!("--redis: {error}"))?;
        Ok(Self::Redis(pool(client, threads)?))
    }

    fn postgres(url: &str, threads: usize) -> Result<Self> {
        let config: Config = url.parse().map_err(|error| format!("--postgres: {error}"))?;
        Ok(Self::Postgres(pool(PostgresManager::new(config, NoTls), threads)?))
    }

    /// Starts a server that numbers its connections and knows which process wrote each byte. It is a process of its own,
    /// forked while there is nothing to inherit. After a restart by exec it is still there, and its old clients with it.
    fn embedded(family: &mut Family, threads: usize) -> Result<Self> {
        if let Some(address) = family.adopt(Role::Backend) {
            return Ok(Self::Embedded(pool(WitnessManager::at(address.parse()?), threads)?));
        }
        let (address, mut tell) = io::pipe()?;
        family.fork(Role::Backend, move |signals| {
            let witness = Witness::start();
            write!(tell, "{}", witness.address())?;
            drop(tell);
            while signals.wait()? != SIGTERM {} // Ctrl-C is for the master to answer.
            Ok(verdict(&witness))
        })?;
        let address = io::read_to_string(address)?;
        family.leave_to_the_next_program(Role::Backend, &address);
        let address = address.parse().map_err(|_| "the embedded backend did not start")?;
        Ok(Self::Embedded(pool(WitnessManager::at(address), threads)?))
    }

    fn ask(&self, text: &str) -> Result<u64> {
        match self {
            Self::Embedded(pool) => {
                let mut conn = pool.get()?;
                conn.stream().set_read_timeout(Some(PATIENCE))?;
                Ok(conn.ask(text)?.connection)
            }
            Self::Redis(pool) => {
                let mut conn = pool.get()?;
                conn.set_read_timeout(Some(PATIENCE))?;
                let both = redis::pipe().cmd("CLIENT").arg("ID").cmd("ECHO").arg(text).query(&mut *conn)?;
                let (connection, echo): (u64, String) = both;
                if echo == text { Ok(connection) } else { Err(wrong(text, &echo)) }
            }
            // The driver has no timeout for an answer: whoever asks must bear with one that another process has read.
            Self::Postgres(pool) => {
                let row = pool.get()?.query_one("SELECT pg_backend_pid(), $1::text", &[&text])?;
                let (connection, echo): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
                if echo == text { Ok(connection.try_into()?) } else { Err(wrong(text, &echo)) }
            }
        }
    }

    fn close(&self) {
        match self {
            Self::Embedded(pool) => pool.close(),
            Self::Redis(pool) => pool.close(),
            Self::Postgres(pool) => pool.close(),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Redis(_) => "redis",
            Self::Postgres(_) => "postgres",
        }
    }
}

fn wrong(asked: &str, answered: &str) -> Box<dyn Error> {
    format!("asked {asked:?}, was answered {answered:?}").into()
}

fn verdict(witness: &Witness) -> u8 {
    let (violations, seen) = (witness.violations(), witness.connections().len());
    violations.iter().for_each(|violation| println!("THE BACKEND SAW: {violation}"));
    if violations.is_empty() && seen > 0 {
        println!("the backend saw {seen} connections, each used by one process only");
    }
    u8::from(!violations.is_empty())
}

impl fmt::Display for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        // Not the url, which may hold a password.
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Redis(pool) => write!(f, " at {}", pool.manager().get_connection_info().addr()),
            Self::Postgres(pool) => {
                let hosts = pool.manager().config().get_hosts().iter().map(|host| match host {
                    Host::Tcp(name) => name.clone(),
                    Host::Unix(folder) => folder.display().to_string(),
                });
                write!(f, " at {}", hosts.collect::<Vec<_>>().join(", "))
            }
        }
    }
}
