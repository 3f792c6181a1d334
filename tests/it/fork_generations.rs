//! Row 29, the long way: a host that forks each generation from the last, as Pitchfork does.

use crate::kit::{self, leave};

use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, PrivatePostgres, clean_process};
use postgres::NoTls;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};

/// How many descriptors of the kinds that clients are made of this process has.
fn of_clients() -> u8 {
    let kinds = ["socket:", "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/memfd:forksafe"];
    let all = testing::descriptors(std::process::id()).into_values();
    all.filter(|name| kinds.iter().any(|kind| name.starts_with(kind))).count().try_into().unwrap()
}

/// Each is forked from the last, which has an idle client then, and only waits for it from there on.
#[test]
fn three_hundred_generations_end_with_as_many_descriptors_as_the_third() {
    const GENERATIONS: usize = 300;
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = kit::tested().max_size(1).build(PostgresManager::new(server.config(), NoTls)).unwrap();
        let (mut report, mut tell) = std::io::pipe().unwrap();
        let mut counts = Vec::new();
        while counts.len() < GENERATIONS {
            pool.warm_up(1).unwrap();
            counts.push(of_clients());
            let Some(next) = kit::fork() else { continue };
            pool.disconnect();
            kit::wait(next);
            if counts.len() > 1 {
                leave(|| ());
            }
            drop(tell);
            let mut counts = Vec::new();
            report.read_to_end(&mut counts).unwrap();
            assert_eq!(counts.len(), GENERATIONS, "the last has been heard of");
            assert!(counts[2..].iter().all(|count| *count == counts[2]), "{counts:?}");
            return;
        }
        tell.write_all(&counts).unwrap();
        leave(|| ());
    });
}

/// A row that was fetched before the fork, dropped so many generations later: it writes to its client's eventfd, by number.
fn drops_after(generations: u32) -> (bool, Vec<u8>) {
    let server = PrivatePostgres::start_with(&[]);
    let pool = kit::tested().max_size(1).build(PostgresManager::new(server.config(), NoTls)).unwrap();
    let before: Vec<RawFd> = testing::descriptors(std::process::id()).into_keys().collect();
    let mut client = pool.get().unwrap();
    let row = client.query_one("SELECT 1", &[]).unwrap();
    drop(client);
    let mut of_client: Vec<RawFd> = testing::descriptors(std::process::id()).into_keys().collect();
    of_client.retain(|fd| !before.contains(fd));
    fn descend(generations: u32, row: postgres::Row, of_client: &[RawFd]) -> (bool, Vec<u8>) {
        let mut row = Some(row);
        if generations > 0 {
            return testing::child(|| descend(generations - 1, row.take().unwrap(), of_client)).join();
        }
        // Files of its own at all the numbers that are free.
        let path = std::env::temp_dir().join(format!("forksafe-generations-{}", std::process::id()));
        let opened = || File::options().append(true).create(true).open(&path).unwrap();
        let files: Vec<File> = (0..64).map(|_| opened()).collect();
        let taken = files.iter().any(|file| of_client.contains(&file.as_raw_fd()));
        drop(row.take());
        let mut written = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut written).unwrap();
        std::fs::remove_file(&path).unwrap();
        (taken, written)
    }
    descend(generations, row, &of_client)
}

/// The number of the eventfd stays taken in the child and in the grandchild.
#[test]
fn a_row_that_outlives_its_loan_writes_into_no_file_of_a_child_or_a_grandchild() {
    clean_process(|| {
        for generations in [1, 2] {
            let (took_some, written) = drops_after(generations);
            assert!(took_some, "the socket's number at least is free");
            assert_eq!(written, b"", "{generations} generations later");
        }
    });
}
