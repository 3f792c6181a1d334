//! A process whose first use of the crate races with forks of another thread; and what holds in it afterwards.
//!
//! It takes a fresh process, so this program is run again.

use fastrand::Rng;
use forksafe::testing::{WitnessClient, WitnessManager};
use forksafe::{Attempt, ManageConnection, Pool};
use std::io;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;

pub(crate) const OPTION: &str = "--first-use";

/// How often it has connected.
struct Counting(WitnessManager, AtomicU32);

impl ManageConnection for Counting {
    type Connection = WitnessClient;
    type Error = io::Error;

    fn connect(&self) -> io::Result<WitnessClient> {
        self.0.connect()
    }
    fn connect_within(&self, at: &mut Attempt) -> io::Result<WitnessClient> {
        self.1.fetch_add(1, SeqCst);
        self.0.connect_within(at)
    }
    fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
        self.0.is_valid(conn)
    }
    fn has_broken(&self, conn: &mut WitnessClient) -> bool {
        self.0.has_broken(conn)
    }
}

/// Runs some, each in a process of its own: the moment that matters is short.
pub(crate) fn race(seed: u64, witness: SocketAddr) {
    (0..8).for_each(|n| run_again(seed.wrapping_add(n), witness));
}

fn run_again(seed: u64, witness: SocketAddr) {
    let ran = Command::new(std::env::current_exe().expect("the path of this program"))
        .args([OPTION, &seed.to_string(), &witness.to_string()])
        .stdin(Stdio::null())
        .output()
        .expect("this program again");
    assert!(ran.status.success(), "{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr));
}

/// The process itself.
pub(crate) fn be_it(seed: &str, witness: &str) {
    let mut rng = Rng::with_seed(seed.parse().expect("a seed"));
    let (spins, begin) = (rng.u32(..2000), Barrier::new(2));
    let witness: SocketAddr = witness.parse().expect("an address");
    let pool = thread::scope(|scope| {
        let first = scope.spawn(|| {
            begin.wait();
            (0..spins).for_each(|_| std::hint::spin_loop());
            Pool::builder()
                .max_size(8)
                .build(std::sync::Arc::new(Counting(WitnessManager::at(witness), AtomicU32::new(0))))
        });
        begin.wait();
        for _ in 0..4 {
            (0..rng.u32(..2000)).for_each(|_| std::hint::spin_loop());
            // SAFETY: the child leaves at once; the parent waits for it and takes no status.
            unsafe {
                match libc::fork() {
                    0 => libc::_exit(0),
                    child => libc::waitpid(child, std::ptr::null_mut(), 0),
                }
            };
        }
        first.join().expect("the first use").expect("a pool")
    });
    // Nobody forks any more.
    let before = pool.manager().1.load(SeqCst);
    let held: Vec<_> = (0..4).map(|_| pool.get().expect("a connection")).collect();
    let made = pool.manager().1.load(SeqCst) - before;
    assert_eq!(made as usize, held.len(), "a connect was made again though nobody forked");
}
