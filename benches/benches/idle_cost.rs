//! What an idle client of PostgreSQL takes: memory and descriptors, in a pool and alone.

use forksafe::postgres::PostgresManager;
use forksafe::testing::PrivatePostgres;
use forksafe::{ManageConnection, Pool};
use std::env;
use std::fs;
use std::process::Command;

const CLIENTS: u32 = 100;

fn main() {
    if let [_, kind, url] = &env::args().collect::<Vec<_>>()[..]
        && let Ok(config) = url.parse()
    {
        return report(kind, PostgresManager::new(config, postgres::NoTls));
    }
    let postgres = PrivatePostgres::start_with(&["-c", "max_connections=200"]);
    println!("one of {CLIENTS} idle clients of PostgreSQL");
    for kind in ["driver", "pool"] {
        let this = env::current_exe().expect("the path of this program");
        let ended = Command::new(this).args([kind, postgres.url()]).status().expect("starting this program again");
        assert!(ended.success());
    }
}

fn report(kind: &str, manager: PostgresManager<postgres::NoTls>) {
    let ask = |client: &mut postgres::Client| drop(client.query_one("SELECT 1", &[]).expect("an answer"));
    // What a process has once for all of them is not theirs.
    ask(&mut manager.connect().expect("a connection"));
    let before = (memory(), descriptors());
    let (clients, pool): (Vec<_>, _) = match kind {
        "driver" => ((0..CLIENTS).map(|_| manager.connect().expect("a connection")).collect(), None),
        _ => (Vec::new(), Some(Pool::builder().max_size(CLIENTS).build(manager).expect("a pool"))),
    };
    let mut clients = clients;
    clients.iter_mut().for_each(ask);
    if let Some(pool) = &pool {
        let mut lent: Vec<_> = (0..CLIENTS).map(|_| pool.get().expect("a connection")).collect();
        lent.iter_mut().for_each(|client| ask(client));
    }
    let after = (memory(), descriptors());
    let each = |difference: usize| difference as f64 / f64::from(CLIENTS);
    println!("{kind:>8}: {:>6.1} KB, {:.1} descriptors", each(after.0 - before.0), each(after.1 - before.1));
}

/// In KB, that this process has written to.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc/self/status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count()
}
