//! Row 29, the long way: a host that forks each generation from the last, as Pitchfork does.

use crate::kit::{self, leave};

use forksafe::fork::{Descriptors, Guarded};
use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, PrivatePostgres, PrivateRedis, clean_process};
use forksafe::{ManageConnection, Pool};
use postgres::NoTls;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

/// How many descriptors of the kinds that clients are made of this process has.
fn of_clients() -> u8 {
    let kinds = ["socket:", "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/memfd:forksafe"];
    let all = testing::descriptors(std::process::id()).into_values();
    all.filter(|name| kinds.iter().any(|kind| name.starts_with(kind))).count().try_into().unwrap()
}

/// What a generation has when it forks the next.
#[derive(Clone, Copy, PartialEq)]
enum Has {
    /// One that is idle.
    Idle,
    /// One that is lent. The child drops its copy of the guard.
    Lent,
}

/// Each is forked from the last, and only waits for the next from there on. Counts what each has of clients before it forks: none
/// has more than the third.
fn three_hundred_generations<M: ManageConnection>(has: Has, pool: &Pool<M>) {
    const GENERATIONS: usize = 300;
    let (mut report, mut tell) = std::io::pipe().unwrap();
    let mut counts = Vec::new();
    while counts.len() < GENERATIONS {
        pool.warm_up(1).unwrap();
        let guard = (has == Has::Lent).then(|| pool.get().unwrap());
        counts.push(of_clients());
        let Some(next) = kit::fork() else {
            drop(guard);
            continue;
        };
        drop(guard);
        pool.disconnect();
        kit::wait(next);
        if counts.len() > 1 {
            leave(|| ());
        }
        drop(tell);
        let mut counts = Vec::new();
        report.read_to_end(&mut counts).unwrap();
        assert_eq!(counts.len(), GENERATIONS, "the last has been heard of");
        assert!(counts[3..].iter().all(|count| *count == counts[3]), "{counts:?}");
        return;
    }
    tell.write_all(&counts).unwrap();
    leave(|| ());
}

#[test]
fn three_hundred_generations_with_idle_clients_end_with_as_many_descriptors_as_the_fourth() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = kit::tested().max_size(1).build(PostgresManager::new(server.config(), NoTls)).unwrap();
        three_hundred_generations(Has::Idle, &pool);
    });
}

#[test]
fn three_hundred_generations_with_lent_clients_of_postgres_end_with_as_many_descriptors_as_the_fourth() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = kit::tested().max_size(1).build(PostgresManager::new(server.config(), NoTls)).unwrap();
        three_hundred_generations(Has::Lent, &pool);
    });
}

#[test]
fn three_hundred_generations_with_lent_clients_of_redis_end_with_as_many_descriptors_as_the_fourth() {
    clean_process(|| {
        let server = PrivateRedis::start();
        let pool = kit::tested().max_size(1).build(redis::Client::open(server.url()).unwrap()).unwrap();
        three_hundred_generations(Has::Lent, &pool);
    });
}

/// A guard that was lent at the fork protects its number until it is dropped, however many generations later: what was borrowed
/// from the client writes to it. Only the children of whoever has dropped it get the number.
#[test]
fn the_number_of_a_lent_client_is_taken_until_a_generation_after_its_guard_is_dropped() {
    fn is_open(number: RawFd) -> bool {
        // SAFETY: takes numbers.
        unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
    }
    clean_process(|| {
        let (near, mut far) = UnixStream::pair().unwrap();
        let number = near.as_raw_fd();
        let mut guarded = Some(Guarded::new(near, Descriptors::of).unwrap());
        let is_dead = || {
            // SAFETY: one byte of a static.
            is_open(number) && unsafe { libc::send(number, b"x".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) } < 0
        };
        let mut ends_with_the_guard = || {
            testing::child(|| {
                drop(guarded.take());
                assert!(is_dead(), "who has dropped it keeps the number");
                testing::child(|| assert!(!is_open(number), "nothing here can write to it")).join();
            })
            .join();
        };
        testing::child(|| {
            assert!(is_dead(), "in the second");
            testing::child(|| {
                assert!(is_dead(), "in the third");
                ends_with_the_guard();
                testing::child(|| assert!(is_dead(), "its guard is there")).join();
            })
            .join();
        })
        .join();
        far.set_nonblocking(true).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "and here it is alive");
        drop(guarded);
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
