//! Row 31: the first use of the crate in a process races with forks of another thread. And row 38, in part: another library
//! holds a fork up.

use crate::churn::sockets_to;
use crate::kit::{self, Door, StopOnDrop, exit_code, leave};
use forksafe::fork::Descriptors;
use forksafe::testing::{self, clean_process};
use forksafe::{ManageConnection, Pool, PooledConnection};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// Counts its connects.
struct Counts(SocketAddr, AtomicU32);

impl ManageConnection for Counts {
    type Connection = TcpStream;
    type Error = io::Error;
    fn connect(&self) -> io::Result<TcpStream> {
        self.1.fetch_add(1, SeqCst);
        TcpStream::connect(self.0)
    }
    fn is_valid(&self, _: &mut TcpStream) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut TcpStream) -> bool {
        false
    }
    fn descriptors(&self, conn: &TcpStream) -> Descriptors {
        Descriptors::of(conn)
    }
}

fn pool_of(address: SocketAddr) -> Pool<Counts> {
    kit::tested().max_size(8).build(Counts(address, AtomicU32::new(0))).unwrap()
}

fn is_live(fd: RawFd) -> bool {
    // SAFETY: no bytes are read.
    unsafe { libc::send(fd, std::ptr::null(), 0, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) == 0 }
}

/// One process: a thread forks all the while, another uses the crate for the first time. How many children there were, and
/// in how many of them a socket of their parent's was still live when it had opened all that it wanted.
fn race(address: SocketAddr, head_start: u32) -> (u32, u32) {
    let (stop, begun, look) = (AtomicBool::new(false), AtomicU32::new(0), Door::new());
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        let forks = scope.spawn(|| {
            let mut children = Vec::new();
            while !stop.load(SeqCst) && children.len() < 64 {
                begun.fetch_add(1, SeqCst);
                children.push(kit::fork().unwrap_or_else(|| {
                    // Not a word to the crate: a child that never uses it.
                    leave(|| {
                        look.pass();
                        assert!(!sockets_to(address).into_iter().any(is_live));
                    })
                }));
            }
            children
        });
        while begun.load(SeqCst) == 0 {
            thread::yield_now();
        }
        // From one moment of a fork to the other.
        (0..head_start).for_each(|_| std::hint::spin_loop());
        let pool = pool_of(address);
        let held: Vec<_> = (0..3).map(|_| pool.get().unwrap()).collect();
        stop.store(true, SeqCst);
        let children = forks.join().unwrap();
        children.iter().for_each(|_| look.open());
        let live = children.iter().filter(|&&child| exit_code(child) != 0).count();
        drop(held);

        // What holds afterwards is what holds everywhere.
        let before = pool.manager().1.load(SeqCst);
        (0..5).for_each(|_| PooledConnection::discard(pool.get().unwrap()));
        let after = pool.manager().1.load(SeqCst);
        assert!(after <= before + 5, "nobody forks, and {} connects were made for 5", after - before);
        (children.len() as u32, live as u32)
    })
}

#[test]
fn a_first_use_that_races_with_forks_leaves_the_process_as_any_other() {
    clean_process(|| {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        thread::spawn(move || {
            let _open: Vec<_> = server.incoming().collect();
        });
        let (begun, mut processes, mut children, mut live) = (Instant::now(), 0, 0, 0);
        // Fewer where each takes ten times as long, as under a sanitizer.
        while processes < 40 || processes < 120 && begun.elapsed() < Duration::from_secs(60) {
            let (some, of_them) = testing::child(|| race(address, processes * 400)).join();
            processes += 1;
            children += some;
            live += of_them;
        }
        println!("{children} children of {processes} processes, {live} with a live socket");
        assert!(children >= processes);
        assert_eq!(live, 0);
    });
}

static HOLDS_UP: AtomicBool = AtomicBool::new(false);
static HELD_UP: AtomicBool = AtomicBool::new(false);

/// Takes its time, as one that waits for a lock of its own.
extern "C" fn slow() {
    if HOLDS_UP.load(SeqCst) {
        HELD_UP.store(true, SeqCst);
        let until = Instant::now() + Duration::from_millis(30);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}

/// Eight connects would fall into the one fork, and the last be kept.
#[test]
fn a_connect_waits_for_a_fork_that_another_library_holds_up() {
    clean_process(|| {
        // SAFETY: a function that stays, and never unwinds. Before our own, so that it comes after it.
        assert_eq!(unsafe { libc::pthread_atfork(Some(slow), None, None) }, 0);
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let pool = pool_of(server.local_addr().unwrap());
        PooledConnection::discard(pool.get().unwrap());
        for _ in 0..5 {
            let before = pool.manager().1.load(SeqCst);
            HOLDS_UP.store(true, SeqCst);
            thread::scope(|scope| {
                let forks = scope.spawn(|| exit_code(kit::fork().unwrap_or_else(|| leave(|| ()))));
                while !HELD_UP.load(SeqCst) {
                    thread::yield_now();
                }
                PooledConnection::discard(pool.get().unwrap());
                HOLDS_UP.store(false, SeqCst);
                HELD_UP.store(false, SeqCst);
                assert_eq!(forks.join().unwrap(), 0);
            });
            assert_eq!(pool.manager().1.load(SeqCst) - before, 1);
        }
    });
}

/// Bounded by the deadline.
#[test]
fn a_connect_does_not_wait_for_a_fork_longer_than_it_may() {
    clean_process(|| {
        // SAFETY: as above.
        assert_eq!(unsafe { libc::pthread_atfork(Some(slow), None, None) }, 0);
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let pool = pool_of(server.local_addr().unwrap());
        PooledConnection::discard(pool.get().unwrap());
        HOLDS_UP.store(true, SeqCst);
        thread::scope(|scope| {
            let forks = scope.spawn(|| exit_code(kit::fork().unwrap_or_else(|| leave(|| ()))));
            while !HELD_UP.load(SeqCst) {
                thread::yield_now();
            }
            let begin = Instant::now();
            drop(pool.get_timeout(Duration::from_millis(5)));
            assert!(begin.elapsed() < Duration::from_millis(25), "{:?}", begin.elapsed());
            assert_eq!(forks.join().unwrap(), 0);
        });
    });
}
