//! Row 26: connections come and go on other threads at every moment of every fork.

use crate::kit::{StopOnDrop, ask};
use crate::servers::Server;
use forksafe::testing::{self, Witness, clean_process};
use forksafe::{Pool, PooledConnection};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// This process's connected sockets whose peer is `server`.
pub(crate) fn sockets_to(server: SocketAddr) -> Vec<RawFd> {
    let all = testing::descriptors(std::process::id()).into_iter();
    let sockets = all.filter(|(_, name)| name.starts_with("socket:"));
    sockets.map(|(fd, _)| fd).filter(|&fd| peer_of(fd) == Some(server)).collect()
}

/// By a copy: another thread may be about to close it.
fn peer_of(fd: RawFd) -> Option<SocketAddr> {
    // SAFETY: only the number is looked at, and it was open a moment ago.
    let stream = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()?;
    TcpStream::from(stream).peer_addr().ok()
}

/// Whether words on the socket could still reach its peer, after the parent had time to end it.
fn stays_live(fd: RawFd) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        // No bytes at all: nothing on the wire of what may be the parent's, in the middle of its connect; but an error
        // when the socket has been shut down.
        // SAFETY: no bytes are read.
        if unsafe { libc::send(fd, std::ptr::null(), 0, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) } < 0 {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

fn no_child_holds_a_live_socket<S: Server>(server: &S, address: SocketAddr, forks: u32) {
    let pool = server.pool_of(6);
    let (stop, churned) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut held = pool.get().unwrap();
    let session = S::ask(&mut held);
    let strays: u32 = thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let mut conn = pool.get().unwrap();
                    S::ask(&mut conn);
                    PooledConnection::discard(conn);
                    churned.fetch_add(1, SeqCst);
                }
            });
        }
        // On a slow machine each connect is made again and again: then there are more forks, until enough of them have ended.
        let is_enough = |n: u32| n >= forks && churned.load(SeqCst) > u64::from(forks) / 4;
        let strays = (0..).take_while(|&n| !is_enough(n)).map(|n| {
            let child = testing::child(|| {
                let inherited = sockets_to(address);
                let live: Vec<RawFd> = inherited.iter().copied().filter(|&fd| stays_live(fd)).collect();
                (inherited.len() as u32, live)
            })
            .deadline(Duration::from_secs(60));
            let (inherited, live) = child.join();
            assert_eq!(live, Vec::<RawFd>::new(), "child {n} holds live sockets that it did not make");
            inherited
        });
        strays.sum()
    });
    println!("{forks} forks, {churned:?} connections came and went; {strays} strays, all of them dead");
    assert_eq!(S::ask(&mut held), session);
    server.judge();
}

#[test]
fn no_child_of_two_thousand_holds_a_live_socket_that_it_did_not_make() {
    clean_process(|| {
        let witness = Witness::start();
        no_child_holds_a_live_socket(&witness, witness.address(), 2000);
    });
}

#[test]
fn no_child_of_a_redis_parent_holds_a_live_socket_either() {
    clean_process(|| {
        let redis = testing::PrivateRedis::start();
        let address = redis.address().parse().unwrap();
        no_child_holds_a_live_socket(&redis, address, 500);
    });
}

/// A client of PostgreSQL takes a while to make: most forks come in the middle of one.
#[test]
fn no_child_of_a_postgres_parent_holds_a_live_socket_either() {
    clean_process(|| {
        let postgres = testing::PrivatePostgres::start_with(&[]);
        let address = SocketAddr::from(([127, 0, 0, 1], postgres.port().unwrap()));
        no_child_holds_a_live_socket(&postgres, address, 300);
    });
}

/// Threads hammer one small pool in every way while children come and go: nothing is lost, nothing is lent twice.
#[test]
fn a_pool_under_every_kind_of_load_loses_nothing() {
    clean_process(|| {
        let witness = Witness::start();
        let pool: Pool<_> = witness.builder().max_size(3).test_on_check_out(false).build(witness.manager()).unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            for n in 0_u32..8 {
                let (pool, stop) = (&pool, &stop);
                scope.spawn(move || {
                    for turn in n.. {
                        if stop.load(SeqCst) {
                            return;
                        }
                        match turn % 16 {
                            0 => pool.disconnect(),
                            1 => pool.maintain(),
                            2 => PooledConnection::discard(pool.get().unwrap()),
                            3 => drop(PooledConnection::detach(pool.get().unwrap()).unwrap()),
                            4 => drop(pool.try_get()),
                            5 => drop(pool.get_timeout(Duration::from_micros(50))),
                            _ => drop(ask(pool)),
                        }
                        assert!(pool.state().connections <= 3);
                    }
                });
            }
            for _ in 0..100 {
                testing::child(|| ask(&pool)).join();
            }
        });
        let all: Vec<_> = (0..3).map(|_| pool.get().unwrap()).collect();
        assert_eq!(pool.state().connections, 3);
        assert!(pool.get_timeout(Duration::ZERO).unwrap_err().is_timeout());
        drop(all);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}
