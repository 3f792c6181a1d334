//! Rows 3, 4, 5, 16: connections that were lent when the fork came.

use crate::churn::sockets_to;
use crate::kit::{self, Door, WhenDropped, ways};
use crate::servers::{Server, scenarios};
use forksafe::testing::{self, Outcome, Witness, clean_process};
use forksafe::{ManageConnection, PooledConnection, fork};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

scenarios! {
    /// Row 3: whatever the child does with the guard, the parent's session goes on.
    fn a_guard_in_a_child_harms_nobody<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let mut held = Some(pool.get().unwrap());
        let session = S::ask(held.as_mut().unwrap());
        let deeds = ["use", "look", "drop", "forget", "discard", "detach", "unwind", "keep"];
        for (way, deed) in ways().flat_map(|way| deeds.map(|deed| (way, deed))) {
            let child = way.child(|| {
                let mut guard = held.take().unwrap();
                assert!(PooledConnection::is_inherited(&guard));
                assert_ne!(PooledConnection::origin(&guard).pid, std::process::id());
                assert!(PooledConnection::try_as_ref(&guard).is_err_and(|error| error.is_inherited()));
                assert!(PooledConnection::try_as_mut(&mut guard).is_err_and(|error| error.is_inherited()));
                match deed {
                    "use" => drop(S::ask(&mut guard)),
                    "look" => _ = &*guard,
                    "drop" => drop(guard),
                    "forget" => std::mem::forget(guard),
                    "discard" => {
                        let own = S::session(&pool);
                        PooledConnection::discard(guard);
                        assert_eq!((S::session(&pool), pool.state().connections), (own, 1), "its slot is the parent's");
                    }
                    "detach" => assert!(PooledConnection::detach(guard).is_err_and(|error| error.is_inherited())),
                    "unwind" => panic!("through the guard"),
                    _ => assert_ne!(S::session(&pool), session),
                }
            });
            let parent = std::process::id();
            match (deed, child.outcome()) {
                ("use" | "look", Outcome::Panicked { message, .. }) => {
                    assert!(message.contains(&format!("process {parent} ")), "{message}");
                    assert!(message.contains("inherited") && message.contains("check out one in this process"), "{message}");
                }
                ("unwind", Outcome::Panicked { message, .. }) => assert_eq!(message, "through the guard"),
                ("use" | "look" | "unwind", other) => panic!("{way}, {deed}: {other:?}"),
                (_, Outcome::Returned(())) => {}
                (_, other) => panic!("{way}, {deed}: {other:?}"),
            }
            assert_eq!(S::ask(held.as_mut().unwrap()), session, "{way}: after {deed}");
        }
        server.judge();
    }

    /// Row 3: in a child that panics, code that unwinds and uses the connection once more finds a dead socket. A second
    /// panic would abort the process.
    fn unwinding_code_finds_a_dead_socket_and_not_an_abort<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let mut held = Some(pool.get().unwrap());
        let session = S::ask(held.as_mut().unwrap());
        for way in ways() {
            let mut survived = way.child(|| {
                let answered = Cell::new(None);
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    let _uses = UsesItWhenDropped::<S>(held.take().unwrap(), &answered);
                    panic!("on purpose");
                }));
                assert!(unwound.is_err());
                answered.get()
            })
            .join();
            assert_eq!(survived.take(), Some(false), "{way}: used while unwinding, and not answered");
            assert_eq!(S::ask(held.as_mut().unwrap()), session, "{way}");
        }
        server.judge();
    }

    /// Row 4: the holders are not in the child, and neither are their claims.
    fn what_other_threads_held_does_not_count_in_the_child<S: Server>() {
        let server = S::start();
        let pool = server.pool_of(2);
        let (holding, done) = (Door::new(), Door::new());
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut held = pool.get().unwrap();
                    let session = S::ask(&mut held);
                    holding.open();
                    done.pass();
                    assert_eq!(S::ask(&mut held), session);
                });
            }
            let _done = WhenDropped(|| {
                done.open();
                done.open();
            });
            holding.pass();
            holding.pass();
            for way in ways() {
                let sessions = way.child(|| {
                    assert_eq!(pool.state().connections, 0);
                    let mut both = [pool.get().unwrap(), pool.get().unwrap()];
                    both.each_mut().map(|conn| S::ask(conn))
                })
                .join();
                assert_ne!(sessions[0], sessions[1], "{way}");
            }
        });
        server.judge();
    }

    /// Row 5: the queue is the parent's.
    fn a_child_of_an_exhausted_pool_is_served_and_so_are_the_parents_waiters<S: Server>() {
        let server = S::start();
        let pool = server.pool_of(1);
        let mut held = pool.get().unwrap();
        let session = S::ask(&mut held);
        thread::scope(|scope| {
            let waiters: Vec<_> = (0..3).map(|_| scope.spawn(|| S::session(&pool))).collect();
            while pool.state().waiting < 3 {
                thread::yield_now();
            }
            for way in ways() {
                let child = way.child(|| {
                    assert_eq!(pool.state().waiting, 0);
                    S::session(&pool)
                });
                assert_ne!(child.join(), session, "{way}");
            }
            drop(held);
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap(), session, "there is but one");
            }
        });
        server.judge();
    }

    /// Row 16: the number under an inherited guard stays taken, so nothing else ever gets it.
    fn new_descriptors_of_the_child_never_meet_an_inherited_guard<S: Server>() {
        let server = S::start();
        let pool = server.pool();
        let mut held = Some(pool.get().unwrap());
        let session = S::ask(held.as_mut().unwrap());
        let before: BTreeSet<i32> = testing::descriptors(std::process::id()).into_keys().collect();
        testing::child(|| {
            let mut files: Vec<File> = (0..50).map(|_| tempfile()).collect();
            let mine: BTreeSet<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
            let mut guard = held.take().unwrap();
            let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| S::ask(&mut guard)));
            assert!(refused.is_err());
            drop(guard);
            let sessions = [S::session(&pool), S::session(&pool)];
            assert!(!sessions.contains(&session));
            for file in &mut files {
                file.write_all(b"mine").unwrap();
                assert_eq!(file.metadata().unwrap().len(), 4, "only what was written here");
            }
            let now: BTreeSet<i32> = testing::descriptors(std::process::id()).into_keys().collect();
            assert!(mine.is_subset(&now), "one of the child's files was closed: {mine:?}, {now:?}");
            before
        })
        .join();
        assert_eq!(S::ask(held.as_mut().unwrap()), session);
        server.judge();
    }
}

struct UsesItWhenDropped<'a, S: Server>(PooledConnection<S::Manager>, &'a Cell<Option<bool>>);

impl<S: Server> Drop for UsesItWhenDropped<'_, S> {
    fn drop(&mut self) {
        self.1.set(Some(S::answers(&mut self.0)));
    }
}

fn tempfile() -> File {
    let path = std::env::temp_dir().join(format!("forksafe-{}-{:?}", std::process::id(), std::time::Instant::now()));
    let file = File::create_new(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// Row 16: a client that is user-held and hides behind no pool.
#[test]
fn a_guarded_client_is_refused_in_a_child_and_lives_on_here() {
    clean_process(|| {
        let witness = Witness::start();
        let client = testing::WitnessClient::connect(witness.address()).unwrap();
        let mut client = fork::Guarded::new(client, |client| fork::Descriptors::of(client.stream())).unwrap();
        let session = client.ask("before").unwrap().connection;
        let message = match testing::child(|| drop(client.ask("in the child"))).outcome() {
            Outcome::Panicked { message, .. } => message,
            other => panic!("{other:?}"),
        };
        assert!(message.contains("inherited"), "{message}");
        testing::child(|| {
            let refused = fork::Guarded::try_mut(&mut client).err().unwrap();
            assert!(refused.owner.generation < refused.here.generation, "{refused}");
            assert!(forksafe::Error::from(refused).is_inherited());
            assert!(fork::Guarded::is_inherited(&client));
        })
        .join();
        assert_eq!(client.ask("after").unwrap().connection, session);
        drop(client);
        witness.wait_until("the client has said goodbye", |seen| seen[&session].ended);
        assert!(witness.connections()[&session].goodbye.is_some());
        witness.judge();
    });
}

/// Rows 3 and 17 in small: what was borrowed from a guard before the fork writes through the client, not through the
/// guard; the dead socket under it is what protects the parent.
#[test]
fn what_was_borrowed_before_the_fork_finds_a_dead_socket() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = witness.pool();
        let mut held = pool.get().unwrap();
        let borrowed: &mut testing::WitnessClient = &mut held;
        let session = borrowed.ask("before").unwrap().connection;
        let error =
            testing::child(|| borrowed.ask("in the child").unwrap_err().to_string()).deadline(Duration::from_secs(5));
        println!("the borrowed client in the child: {}", error.join());
        assert_eq!(borrowed.ask("after").unwrap().connection, session);
        witness.judge();
    });
}

/// Neither a question to the manager nor the client's own `Drop`: an inherited client is abandoned.
#[test]
fn an_inherited_client_is_let_be() {
    static TOUCHED: AtomicU32 = AtomicU32::new(0);
    struct Touched;
    struct Notices;
    impl Drop for Touched {
        fn drop(&mut self) {
            TOUCHED.fetch_add(1, SeqCst);
        }
    }
    impl ManageConnection for Notices {
        type Connection = Touched;
        type Error = io::Error;
        fn connect(&self) -> io::Result<Touched> {
            Ok(Touched)
        }
        fn is_valid(&self, _: &mut Touched) -> io::Result<()> {
            Ok(())
        }
        fn has_broken(&self, _: &mut Touched) -> bool {
            TOUCHED.fetch_add(1, SeqCst);
            false
        }
        fn descriptors(&self, _: &Touched) -> fork::Descriptors {
            fork::Descriptors::none()
        }
    }
    clean_process(|| {
        let pool = kit::tested().build(Notices).unwrap();
        let mut held = Some(pool.get().unwrap());
        let mut guarded = Some(fork::Guarded::new(Touched, |_| fork::Descriptors::none()).unwrap());
        let touched = testing::child(|| {
            drop((held.take(), guarded.take()));
            TOUCHED.load(SeqCst)
        });
        assert_eq!(touched.join(), 0);
        drop((held, guarded));
        assert_eq!(TOUCHED.load(SeqCst), 2, "and here it is asked about, or closed");
    });
}

/// A dead socket keeps the number of what was lent; the number of what lay idle is free.
#[test]
fn numbers_of_lent_connections_stay_taken_and_those_of_idle_ones_are_free() {
    clean_process(|| {
        let witness = Witness::start();
        // Taken out of the rack by way of the test, and as it is.
        for test in [true, false] {
            let builder = kit::tested().max_size(3).min_idle(Some(3)).test_on_check_out(test);
            let pool = builder.build(witness.manager()).unwrap();
            // SAFETY: takes numbers.
            let is_open = |number: &i32| unsafe { libc::fcntl(*number, libc::F_GETFD) >= 0 };
            let taken = |lent: &[i32]| {
                let numbers = sockets_to(witness.address());
                assert_eq!(numbers.len(), 3);
                let there = testing::child(|| numbers.iter().copied().filter(is_open).collect::<Vec<_>>());
                assert_eq!(there.join(), lent, "test_on_check_out({test})");
            };
            taken(&[]);
            let held = pool.get().unwrap();
            taken(&[held.stream().as_raw_fd()]);
            drop(held);
            taken(&[]);
            pool.disconnect();
        }
    });
}
