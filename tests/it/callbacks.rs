//! Row 18: the fork comes from inside a callback, or in an exit handler.

use crate::kit::{self, exit_code, leave};
use forksafe::fork::{self, Descriptors, PerProcess};
use forksafe::testing::{self, Outcome, Witness, WitnessClient, WitnessManager, clean_process};
use forksafe::{ManageConnection, Pool};
use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};

thread_local!(static FORK_AT: Cell<&'static str> = const { Cell::new("") });
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Forks here if that was asked for, once. In the child it just goes on, as in the parent.
fn callback(name: &str) {
    if FORK_AT.get() == name {
        FORK_AT.set("");
        CHILD.store(kit::fork().unwrap_or(0), SeqCst);
    }
}

struct Forks(WitnessManager);

struct Client(WitnessClient);

impl Drop for Client {
    fn drop(&mut self) {
        callback("close");
    }
}

impl ManageConnection for Forks {
    type Connection = Client;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Client> {
        if FORK_AT.get() == "failing connect" {
            callback("failing connect");
            return Err(io::Error::other("on purpose"));
        }
        let client = self.0.connect();
        callback("connect");
        client.map(Client)
    }
    fn is_valid(&self, conn: &mut Client) -> io::Result<()> {
        self.0.is_valid(&mut conn.0)?;
        callback("is_valid");
        Ok(())
    }
    fn has_broken(&self, conn: &mut Client) -> bool {
        callback("has_broken");
        self.0.has_broken(&mut conn.0)
    }
    fn descriptors(&self, conn: &Client) -> Descriptors {
        self.0.descriptors(&conn.0)
    }
}

fn session(pool: &Pool<Forks>) -> u64 {
    pool.get().unwrap().0.ask("who am I to you").unwrap().connection
}

#[test]
fn a_child_that_was_forked_in_a_callback_starts_over() {
    clean_process(|| {
        for stage in ["connect", "failing connect", "is_valid", "has_broken", "close"] {
            let witness = Witness::start();
            let pool = Pool::builder().max_size(2).build(Forks(witness.manager())).unwrap();
            let before = (stage != "connect" && stage != "failing connect").then(|| session(&pool));
            let here = std::process::id();
            FORK_AT.set(stage);
            // The child comes out of one of these as well.
            let got = match stage {
                "close" => {
                    pool.disconnect();
                    None
                }
                "failing connect" => pool.get().err().map(|_| 0),
                _ => Some(session(&pool)),
            };
            if std::process::id() != here {
                leave(|| {
                    let own = session(&pool);
                    assert!(stage == "failing connect" || got.is_none_or(|got| stage == "has_broken" || got == own));
                    assert_eq!(pool.state().connections, 1, "and nothing is lost");
                    // Both slots can be had.
                    let both = [pool.get().unwrap(), pool.get().unwrap()];
                    drop(both);
                });
            }
            assert_eq!(exit_code(CHILD.load(SeqCst)), 0, "the child that was forked in {stage}");
            match (stage, before) {
                ("close", _) => assert_eq!(pool.state().connections, 0),
                (_, Some(before)) => assert_eq!(session(&pool), before, "{stage}"),
                _ => drop(session(&pool)),
            }
            assert_eq!(witness.violations(), Vec::<String>::new(), "{stage}");
        }
    });
}

/// An initialiser of a `PerProcess` that forks: the child makes its own value, the parent keeps the first.
#[test]
fn an_initialiser_that_forks_makes_two_values() {
    static MADE: AtomicU32 = AtomicU32::new(0);
    static VALUE: PerProcess<(u32, u32)> = PerProcess::new(|| {
        let nth = MADE.fetch_add(1, SeqCst);
        if nth == 0 {
            CHILD.store(kit::fork().unwrap_or(0), SeqCst);
        }
        (std::process::id(), nth)
    });
    clean_process(|| {
        let here = std::process::id();
        let value = *VALUE;
        if std::process::id() != here {
            leave(|| assert_eq!(value, (std::process::id(), 1)));
        }
        assert_eq!(value, (here, 0));
        assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
        assert_eq!(*VALUE, (here, 0));
    });
}

/// The client is the parent's, whatever the child's frame says.
#[test]
fn a_client_whose_descriptors_are_named_across_a_fork_is_its_parents() {
    clean_process(|| {
        let witness = Witness::start();
        let client = WitnessClient::connect(witness.address()).unwrap();
        let here = std::process::id();
        let guarded = fork::Guarded::new(client, |client| {
            CHILD.store(kit::fork().unwrap_or(0), SeqCst);
            Descriptors::of(client.stream())
        });
        if std::process::id() != here {
            leave(|| assert!(guarded.is_err()));
        }
        assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
        guarded.unwrap().ask("here").unwrap();
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// A hook that forks: the grandchild runs the hooks from the first, the child goes on with the rest.
#[test]
fn a_hook_that_forks_makes_a_child_with_hooks_of_its_own() {
    clean_process(|| {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        static FORKED: AtomicU32 = AtomicU32::new(0);
        fork::on_child(|| {
            if FORKED.fetch_add(1, SeqCst) == 0 {
                CHILD.store(kit::fork().unwrap_or(0), SeqCst);
            }
        });
        fork::on_child(|| {
            RUNS.fetch_add(1, SeqCst);
        });
        testing::child(|| {
            let here = std::process::id();
            fork::enter();
            if std::process::id() != here {
                leave(|| assert_eq!((FORKED.load(SeqCst), RUNS.load(SeqCst)), (2, 1)));
            }
            assert_eq!((FORKED.load(SeqCst), RUNS.load(SeqCst)), (1, 1));
            assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
        })
        .join();
    });
}

/// Exit handlers that were set in a master run in the workers of Puma, gunicorn and uWSGI: what they drop or close there
/// says nothing on inherited connections.
#[test]
fn an_exit_handler_that_closes_the_pool_in_a_child_says_nothing() {
    static POOL: OnceLock<Pool<WitnessManager>> = OnceLock::new();
    extern "C" fn at_exit() {
        let pool = POOL.get().unwrap();
        pool.disconnect();
        pool.close();
    }
    clean_process(|| {
        let witness = Witness::start();
        let pool = POOL.get_or_init(|| Pool::new(witness.manager()).unwrap());
        let mut held = pool.get().unwrap();
        let (lent, idle) = (held.ask("lent").unwrap().connection, kit::ask(pool));
        // SAFETY: the handler is a function that stays.
        unsafe { libc::atexit(at_exit) };
        for uses in [false, true] {
            let outcome = testing::child(|| -> () {
                if uses {
                    kit::ask(pool);
                }
                std::process::exit(7);
            });
            assert!(matches!(outcome.outcome(), Outcome::Exited(7)));
        }
        assert_eq!(held.ask("still").unwrap().connection, lent);
        assert_eq!(kit::ask(pool), idle);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}
