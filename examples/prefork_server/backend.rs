//! What the workers query.

use crate::Result;
use crate::family::{Family, Role};
use forksafe::testing::{Witness, WitnessManager};
use forksafe::{ManageConnection, Pool};
use nix::sys::signal::Signal::SIGTERM;
use std::fmt;
use std::io::{self, Write};
use std::num::NonZeroU8;
use std::time::Duration;

/// How long a request waits for a connection, and for an answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The pool of the whole program, built once, in the master.
pub(crate) enum Backend {
    Embedded(Pool<WitnessManager>),
    Redis(Pool<redis::Client>),
}

/// A connection for each thread. Without a test at checkout: it would heal some of what `--unsafe-share` is to show.
fn pool<M: ManageConnection>(manager: M, threads: NonZeroU8) -> Result<Pool<M>> {
    let settings = Pool::builder().max_size(threads.get().into()).connection_timeout(PATIENCE);
    Ok(settings.test_on_check_out(false).build(manager)?)
}

impl Backend {
    pub(crate) fn redis(url: &str, threads: NonZeroU8) -> Result<Self> {
        let client = redis::Client::open(url).map_err(|error| format!("--redis: {error}"))?;
        Ok(Self::Redis(pool(client, threads)?))
    }

    /// Starts a server that numbers its connections and knows which process wrote each byte. It is a process of its own,
    /// forked while there is nothing to inherit.
    pub(crate) fn embedded(family: &mut Family, threads: NonZeroU8) -> Result<Self> {
        let (address, mut tell) = io::pipe()?;
        family.fork(Role::Backend, move |signals| {
            let witness = Witness::start();
            write!(tell, "{}", witness.address())?;
            drop(tell);
            while signals.wait()? != SIGTERM {} // Ctrl-C is for the master to answer.
            Ok(verdict(&witness))
        })?;
        let address = io::read_to_string(address)?.parse().map_err(|_| "the embedded backend did not start")?;
        Ok(Self::Embedded(pool(WitnessManager::at(address), threads)?))
    }

    /// Asks the backend to say `text` back. Returns its number for the connection; another answer is an error.
    pub(crate) fn ask(&self, text: &str) -> Result<u64> {
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
                if echo == text { Ok(connection) } else { Err(format!("asked {text:?}, was answered {echo:?}").into()) }
            }
        }
    }

    /// Closes the connections of this process.
    pub(crate) fn close(&self) {
        match self {
            Self::Embedded(pool) => pool.close(),
            Self::Redis(pool) => pool.close(),
        }
    }
}

fn verdict(witness: &Witness) -> u8 {
    let (violations, seen) = (witness.violations(), witness.connections().len());
    violations.iter().for_each(|violation| println!("THE BACKEND SAW: {violation}"));
    if violations.is_empty() && seen > 0 {
        println!("the backend saw {seen} connections, each used by one process only");
    }
    u8::from(!violations.is_empty())
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(_) => f.write_str("embedded"),
            // Not the url, which may hold a password.
            Self::Redis(pool) => write!(f, "redis at {}", pool.manager().get_connection_info().addr()),
        }
    }
}
