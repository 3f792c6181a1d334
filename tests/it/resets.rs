//! What a manager does about a connection that is returned, and at its end.

use crate::kit::{self, exit_code, leave};
use forksafe::testing::{self, Witness, WitnessClient, WitnessManager, clean_process};
use forksafe::{Deadline, ManageConnection, Pool, PooledConnection, Reset, fork};
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq)]
enum Does {
    Keep,
    Discard,
    Fail,
    Panic,
    Fork,
}

struct Resets {
    witness: WitnessManager,
    does: Mutex<Does>,
    asked: AtomicU32,
    resets: bool,
}

static CHILD: AtomicI32 = AtomicI32::new(0);
static GOODBYES: AtomicU32 = AtomicU32::new(0);

impl ManageConnection for Resets {
    type Connection = WitnessClient;
    type Error = io::Error;

    fn connect(&self) -> io::Result<WitnessClient> {
        self.witness.connect()
    }
    fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
        self.witness.is_valid(conn)
    }
    fn has_broken(&self, conn: &mut WitnessClient) -> bool {
        self.witness.has_broken(conn)
    }
    fn descriptors(&self, conn: &WitnessClient) -> fork::Descriptors {
        self.witness.descriptors(conn)
    }
    fn resets(&self) -> bool {
        self.resets
    }
    fn reset(&self, conn: &mut WitnessClient, deadline: Deadline) -> io::Result<Reset> {
        self.asked.fetch_add(1, SeqCst);
        assert!(deadline.remaining() > Duration::from_secs(10) && deadline.remaining() <= Duration::from_secs(30));
        let does = *self.does.lock().unwrap();
        match does {
            Does::Keep => conn.ask("as good as new").map(|_| Reset::Keep),
            Does::Discard => Ok(Reset::Discard),
            Does::Fail => Err(io::Error::other("on purpose")),
            Does::Panic => panic!("on purpose"),
            Does::Fork => {
                CHILD.store(kit::fork().unwrap_or(0), SeqCst);
                Ok(Reset::Keep)
            }
        }
    }
    fn goodbye(&self, client: WitnessClient, deadline: Deadline) {
        GOODBYES.fetch_add(1, SeqCst);
        assert!(deadline.remaining() > Duration::ZERO && deadline.remaining() <= Duration::from_secs(5));
        drop(client);
    }
}

fn pool_of(witness: &Witness, resets: bool) -> Pool<Arc<Resets>> {
    let (witness, does, asked) = (witness.manager(), Mutex::new(Does::Keep), AtomicU32::new(0));
    let manager = Arc::new(Resets { witness, does, asked, resets });
    kit::tested().max_size(1).test_on_check_out(false).build(manager).unwrap()
}

fn session(pool: &Pool<Arc<Resets>>) -> u64 {
    pool.get().unwrap().ask("who am I to you").unwrap().connection
}

#[test]
fn a_returned_connection_is_reset_before_it_is_lent_again() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = pool_of(&witness, true);
        let does = |does| *pool.manager().does.lock().unwrap() = does;
        let mut last = session(&pool);
        for unfit in [Does::Discard, Does::Fail] {
            does(unfit);
            assert_eq!(session(&pool), last, "lent before it is reset");
            assert_eq!(pool.state().connections, 0, "and closed for want of it");
            does(Does::Keep);
            assert_ne!(session(&pool), last);
            last = session(&pool);
        }
        does(Does::Panic);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session(&pool))).is_err());
        assert_eq!(pool.state().connections, 0);
        does(Does::Keep);
        assert_ne!(session(&pool), last, "the slot is not lost");
        assert_eq!(GOODBYES.load(SeqCst), 3);
        let asked = pool.manager().asked.load(SeqCst);
        let mut guard = Some(pool.get().unwrap());
        let there = testing::child(|| {
            drop(guard.take());
            pool.manager().asked.load(SeqCst)
        });
        assert_eq!(there.join(), asked, "an inherited one is nobody's to reset");
        PooledConnection::discard(guard.take().unwrap());
        assert_eq!(pool.manager().asked.load(SeqCst), asked, "nor is a discarded one");
        assert_eq!(GOODBYES.load(SeqCst), 4);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

#[test]
fn a_manager_that_does_not_reset_is_not_asked_to() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = pool_of(&witness, false);
        assert_eq!(session(&pool), session(&pool));
        assert_eq!(pool.manager().asked.load(SeqCst), 0);
    });
}

/// Row 18: the child comes back into the return of a connection that is its parent's.
#[test]
fn a_child_that_was_forked_by_a_reset_abandons_the_connection() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = pool_of(&witness, true);
        let mut conn = pool.get().unwrap();
        let here = conn.ask("who am I to you").unwrap().connection;
        let parent = std::process::id();
        *pool.manager().does.lock().unwrap() = Does::Fork;
        drop(conn);
        if std::process::id() != parent {
            leave(|| {
                *pool.manager().does.lock().unwrap() = Does::Keep;
                assert_eq!(pool.state().connections, 0);
                assert_ne!(session(&pool), here);
            });
        }
        assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
        *pool.manager().does.lock().unwrap() = Does::Keep;
        assert_eq!(session(&pool), here);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}
