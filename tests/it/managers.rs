//! Managers as people write them: each method overridden alone, clients replaced or swapped through a guard (row 33).

use crate::kit;
use forksafe::fork::Descriptors;
use forksafe::testing::{self, Witness, WitnessClient, WitnessManager, assert_nothing_shared, clean_process};
use forksafe::{Attempt, Deadline, ManageConnection, PooledConnection};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// A newtype over another manager, with r2d2's three methods and whatever `$more` says.
macro_rules! newtype {
    ($name:ident { $($more:tt)* }) => {
        struct $name(WitnessManager);

        impl ManageConnection for $name {
            type Connection = WitnessClient;
            type Error = io::Error;

            fn connect(&self) -> io::Result<WitnessClient> {
                self.0.connect()
            }
            fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
                self.0.is_valid(conn)
            }
            fn has_broken(&self, conn: &mut WitnessClient) -> bool {
                self.0.has_broken(conn)
            }
            $($more)*
        }
    };
}

newtype!(NamesNothing {});
newtype!(OverridesConnectWithin {
    fn connect_within(&self, at: &mut Attempt) -> io::Result<WitnessClient> {
        assert!(!at.deadline().is_over());
        self.0.connect()
    }
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        Descriptors::of(conn.stream())
    }
});
newtype!(NamesDescriptors {
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        Descriptors::of(conn.stream())
    }
});
newtype!(ShowsItsSocket {
    fn socket<'c>(&self, conn: &'c WitnessClient) -> Option<BorrowedFd<'c>> {
        Some(conn.stream().as_fd())
    }
});
newtype!(OverridesTheTest {
    fn is_valid_within(&self, conn: &mut WitnessClient, _: Deadline) -> io::Result<()> {
        self.0.is_valid(conn)
    }
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        self.0.descriptors(conn)
    }
});

newtype!(KnowsAtTimes {
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        if KNOWS.load(SeqCst) { Descriptors::of(conn.stream()) } else { Descriptors::unknown() }
    }
    fn is_valid_within(&self, conn: &mut WitnessClient, _: Deadline) -> io::Result<()> {
        assert!(!PANICS.load(SeqCst));
        self.0.is_valid(conn)
    }
});
static KNOWS: AtomicBool = AtomicBool::new(true);
static PANICS: AtomicBool = AtomicBool::new(false);

/// Idle and lent connections of the parent are dead in the child, whoever made the manager.
fn is_protected<M: ManageConnection<Connection = WitnessClient>>(witness: &Witness, make: fn(WitnessManager) -> M) {
    let pool = kit::tested().max_size(3).require_known_descriptors(true).build(make(witness.manager())).unwrap();
    let mut held = pool.get().unwrap();
    held.ask("before").unwrap();
    drop(pool.get().unwrap());
    assert_eq!(pool.state().unknown_descriptors, 0);
    let stays = crate::kit::Door::new();
    let child = testing::child(|| {
        pool.get().unwrap().ask("here").unwrap();
        stays.pass();
    });
    assert_nothing_shared(&[std::process::id(), child.pid()]);
    stays.open();
    child.join();
    held.ask("after").unwrap();
}

#[test]
fn a_manager_that_names_its_descriptors_in_any_way_is_protected() {
    clean_process(|| {
        let witness = Witness::start();
        is_protected(&witness, OverridesConnectWithin);
        is_protected(&witness, NamesDescriptors);
        is_protected(&witness, ShowsItsSocket);
        is_protected(&witness, OverridesTheTest);
        is_protected(&witness, |manager| std::sync::Arc::new(OverridesConnectWithin(manager)));
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// What nobody names is never silent.
#[test]
fn unknown_descriptors_are_counted_shown_and_refused_if_asked() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(2).build(NamesNothing(witness.manager())).unwrap();
        let held = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 1);
        assert!(format!("{pool:?}").contains("unknown_descriptors: 1"), "{pool:?}");
        PooledConnection::discard(held);
        assert_eq!(pool.state().unknown_descriptors, 0);

        let strict = kit::tested().require_known_descriptors(true).build(NamesNothing(witness.manager())).unwrap();
        let error = strict.get().unwrap_err();
        assert!(error.is_unprotected() && error.to_string().contains("require_known_descriptors"), "{error}");
        assert_eq!((strict.state().connections, strict.state().unknown_descriptors), (0, 0));
    });
}

/// Whatever becomes of it, the count is right.
#[test]
fn a_connection_whose_descriptors_become_unknown_is_counted_or_refused() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(1).build(KnowsAtTimes(witness.manager())).unwrap();
        let unknown = || pool.state().unknown_descriptors;
        let replace = |conn: &mut WitnessClient| *conn = witness.manager().connect().unwrap();
        let get = |knows| {
            let mut conn = pool.get().unwrap();
            replace(&mut conn);
            KNOWS.store(knows, SeqCst);
            PooledConnection::republish(&mut conn).unwrap();
            conn
        };
        drop(get(false));
        assert_eq!(unknown(), 1);
        drop(get(true));
        assert_eq!(unknown(), 0);
        PooledConnection::discard(get(false));
        assert_eq!(unknown(), 0);
        drop(pool.get().unwrap());
        assert_eq!(unknown(), 1);
        PANICS.store(true, SeqCst);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.get().map(drop))).is_err());
        assert_eq!((unknown(), pool.state().connections), (0, 0), "closed by a panic");

        let builder = kit::tested().max_size(1).require_known_descriptors(true);
        let strict = builder.build(KnowsAtTimes(witness.manager())).unwrap();
        let state = || (strict.state().connections, strict.state().unknown_descriptors);
        PANICS.store(false, SeqCst);
        for says_so in [true, false] {
            KNOWS.store(true, SeqCst);
            let mut conn = strict.get().unwrap();
            replace(&mut conn);
            KNOWS.store(false, SeqCst);
            if says_so {
                assert!(PooledConnection::republish(&mut conn).unwrap_err().is_unprotected());
            }
            drop(conn);
            // By its return, or by its next test.
            assert!(strict.get().is_err_and(|error| error.is_unprotected()));
            assert_eq!(state(), (0, 0));
        }
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// r2d2's idiom of reconnecting in place: the new client is as protected as the old one was, from its return on; or at once
/// if it is said.
#[test]
fn a_client_that_takes_anothers_place_is_protected() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(1).build(ShowsItsSocket(witness.manager())).unwrap();
        for says_so in [false, true] {
            let mut conn = pool.get().unwrap();
            *conn = pool.manager().connect().unwrap();
            let session = conn.ask("who am I").unwrap().connection;
            let held = if says_so {
                PooledConnection::republish(&mut conn).unwrap();
                Some(conn)
            } else {
                drop(conn);
                None
            };
            let stays = crate::kit::Door::new();
            let child = testing::child(|| stays.pass());
            assert_nothing_shared(&[std::process::id(), child.pid()]);
            stays.open();
            child.join();
            drop(held);
            assert_eq!(pool.get().unwrap().ask("who am I").unwrap().connection, session, "and it goes on");
        }
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// A client that closes its socket and opens another has the same number again: the identity tells, at the next test.
#[test]
fn a_client_that_reconnected_by_itself_is_protected_from_its_next_test_on() {
    struct Reconnects(WitnessManager);
    impl ManageConnection for Reconnects {
        type Connection = Option<WitnessClient>;
        type Error = io::Error;
        fn connect(&self) -> io::Result<Self::Connection> {
            self.0.connect().map(Some)
        }
        fn is_valid(&self, conn: &mut Self::Connection) -> io::Result<()> {
            self.0.is_valid(conn.as_mut().unwrap())
        }
        fn has_broken(&self, _: &mut Self::Connection) -> bool {
            false
        }
        fn descriptors(&self, conn: &Self::Connection) -> Descriptors {
            conn.as_ref().map_or_else(Descriptors::none, |conn| self.0.descriptors(conn))
        }
    }
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(1).build(Reconnects(witness.manager())).unwrap();
        let mut conn = pool.get().unwrap();
        *conn = None;
        *conn = Some(WitnessClient::connect(witness.address()).unwrap());
        let session = conn.as_mut().unwrap().ask("who am I").unwrap().connection;
        drop(conn);
        assert_eq!(pool.get().unwrap().as_mut().unwrap().ask("who am I").unwrap().connection, session, "tested, kept");
        let stays = crate::kit::Door::new();
        let child = testing::child(|| stays.pass());
        assert_nothing_shared(&[std::process::id(), child.pid()]);
        stays.open();
        child.join();
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// Two guards exchange their clients: discarding one does not kill the other.
#[test]
fn guards_that_exchanged_their_clients_do_not_kill_each_other() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(2).build(NamesDescriptors(witness.manager())).unwrap();
        let (mut one, mut two) = (pool.get().unwrap(), pool.get().unwrap());
        let session = one.ask("who am I").unwrap().connection;
        std::mem::swap(&mut *one, &mut *two);
        PooledConnection::discard(one);
        assert_eq!(two.ask("still here?").unwrap().connection, session);
        drop(two);
        let mut conn = pool.get().unwrap();
        conn.ask("and in order").unwrap();
    });
}
