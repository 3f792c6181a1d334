//! Row 18: the fork comes from inside a callback, or in an exit handler.

use crate::kit::{self, exit_code, leave};
use forksafe::fork::{self, Descriptors, PerProcess};
use forksafe::testing::{self, Outcome, Witness, WitnessClient, WitnessManager, clean_process};
use forksafe::{Deadline, Fault, ManageConnection, Pool, PooledConnection, Reset, Unread};
use std::cell::Cell;
use std::error::Error;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

thread_local! {
    static FORK_AT: Cell<&'static str> = const { Cell::new("") };
    static FORK_BY: Cell<fn() -> Option<i32>> = const { Cell::new(kit::fork) };
}
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Forks here if that was asked for, once. In the child it just goes on, as in the parent.
fn callback(name: &str) {
    if FORK_AT.get() == name {
        FORK_AT.set("");
        CHILD.store(FORK_BY.get()().unwrap_or(0), SeqCst);
    }
}

struct Forks(WitnessManager);

/// With the pid of the process that made it.
struct Client(WitnessClient, u32);

/// How often something was done to a client of another process.
static STRANGE: AtomicU32 = AtomicU32::new(0);

impl Client {
    fn new(client: WitnessClient) -> Self {
        Self(client, std::process::id())
    }

    fn ask_of(&mut self) -> &mut WitnessClient {
        self.is_touched();
        &mut self.0
    }

    fn is_touched(&self) {
        if self.1 != std::process::id() {
            STRANGE.fetch_add(1, SeqCst);
        }
    }

    /// Its socket once more, for the test to speak on.
    fn second(&self) -> TcpStream {
        self.0.stream().as_fd().try_clone_to_owned().unwrap().into()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.is_touched();
        callback("close");
    }
}

/// An error that tells its manager what to make of it.
#[derive(Debug, thiserror::Error)]
#[error("on purpose: {0:?}")]
struct Says(Fault);

/// How many errors were dropped.
static DROPPED: AtomicU32 = AtomicU32::new(0);

impl Drop for Says {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, SeqCst);
    }
}

impl From<io::Error> for Says {
    fn from(_: io::Error) -> Self {
        Self(Fault::Unknown)
    }
}

thread_local! {
    /// What the next test says, or the next connect.
    static SAYS: Cell<Option<Fault>> = const { Cell::new(None) };
}

fn say() -> Result<(), Says> {
    SAYS.take().map_or(Ok(()), |fault| Err(Says(fault)))
}

impl ManageConnection for Forks {
    type Connection = Client;
    type Error = Says;

    fn connect(&self) -> Result<Client, Says> {
        say()?;
        if FORK_AT.get() == "failing connect" {
            callback("failing connect");
            return Err(Says(Fault::Unknown));
        }
        let client = self.0.connect();
        callback("connect");
        Ok(Client::new(client?))
    }
    fn is_valid(&self, conn: &mut Client) -> Result<(), Says> {
        self.0.is_valid(conn.ask_of())?;
        callback("is_valid");
        say()
    }
    fn has_broken(&self, conn: &mut Client) -> bool {
        let has_broken = self.0.has_broken(conn.ask_of());
        callback("has_broken");
        has_broken
    }
    fn socket<'c>(&self, conn: &'c Client) -> Option<BorrowedFd<'c>> {
        conn.is_touched();
        callback("socket");
        Some(conn.0.stream().as_fd())
    }
    fn descriptors(&self, conn: &Client) -> Descriptors {
        conn.is_touched();
        callback("descriptors");
        self.0.descriptors(&conn.0)
    }
    fn on_unread(&self, conn: &mut Client, peeked: &[u8]) -> Unread {
        // Taken, so that it is not the answer to what is asked next.
        conn.is_touched();
        conn.second().read_exact(&mut vec![0; peeked.len()]).unwrap();
        callback("on_unread");
        Unread::Fine
    }
    fn resets(&self) -> bool {
        callback("resets");
        true
    }
    fn reset(&self, conn: &mut Client, _: Deadline) -> Result<Reset, Says> {
        conn.ask_of().ask("as good as new")?;
        callback("reset");
        Ok(Reset::Keep)
    }
    fn classify(&self, error: &(dyn Error + 'static)) -> Fault {
        callback("classify");
        error.downcast_ref().map_or(Fault::Unknown, |Says(fault)| *fault)
    }
    fn target(&self) -> String {
        callback("target");
        String::new()
    }
}

fn session(pool: &Pool<Forks>) -> u64 {
    pool.get().unwrap().0.ask("who am I to you").unwrap().connection
}

/// What is done, and which callback forks in the middle of it.
const STAGES: [(&str, &str); 18] = [
    ("get", "connect"),
    ("fail", "failing connect"),
    ("fail with a fault", "classify"),
    ("fail with a fault", "target"),
    ("get", "is_valid"),
    ("test harmless", "classify"),
    ("test broken", "classify"),
    ("test condemned", "classify"),
    ("test of the caller's", "classify"),
    ("test of the caller's", "target"),
    ("look", "on_unread"),
    ("get", "has_broken"),
    ("get", "resets"),
    ("get", "reset"),
    ("replace", "socket"),
    ("replace", "descriptors"),
    ("report", "classify"),
    ("disconnect", "close"),
];

#[test]
fn a_child_that_was_forked_in_a_callback_starts_over() {
    clean_process(|| {
        // Without the handlers it is the look at the generation after the callback that tells the child what it is.
        let ways = [kit::fork as fn() -> Option<i32>, kit::raw_fork];
        let all = STAGES.into_iter().flat_map(|stage| ways.map(|way| (stage, way)));
        // But not after a goodbye, which is said before the child comes to anything of ours.
        let sound =
            |&((_, callback), way): &((_, &str), _)| !(callback == "close" && std::ptr::fn_addr_eq(way, ways[1]));
        for ((deed, callback), way) in all.filter(sound) {
            FORK_BY.set(way);
            let stage = format!("{deed}, {callback}");
            let witness = Witness::start();
            let builder = kit::tested().max_size(2).test_on_check_out(deed != "look");
            let pool = builder.build(Forks(witness.manager())).unwrap();
            let connects = deed.starts_with("fail") || callback == "connect";
            let before = (!connects).then(|| session(&pool));
            let here = std::process::id();
            let dropped = DROPPED.load(SeqCst);
            let condemns = Says(Fault::Server);
            // The child comes out of one of these as well.
            let got = match deed {
                "disconnect" => {
                    FORK_AT.set(callback);
                    pool.disconnect();
                    None
                }
                "fail" | "fail with a fault" | "test of the caller's" => {
                    FORK_AT.set(callback);
                    SAYS.set(match deed {
                        "fail" => None,
                        "fail with a fault" => Some(Fault::NoRoom),
                        _ => Some(Fault::Caller),
                    });
                    pool.get().err().map(|_| 0)
                }
                "replace" => {
                    let mut conn = pool.get().unwrap();
                    *conn = pool.manager().connect().unwrap();
                    FORK_AT.set(callback);
                    drop(conn);
                    None
                }
                "report" => {
                    let mut conn = pool.get().unwrap();
                    FORK_AT.set(callback);
                    PooledConnection::report(&mut conn, &condemns);
                    None
                }
                "look" => {
                    let conn = pool.get().unwrap();
                    let mut second = conn.second();
                    drop(conn);
                    second.write_all(WitnessClient::frame("a notice").as_bytes()).unwrap();
                    assert!(second.peek(&mut [0]).unwrap() > 0);
                    drop(second);
                    FORK_AT.set(callback);
                    Some(session(&pool))
                }
                _ => {
                    SAYS.set(match deed {
                        "test harmless" => Some(Fault::Harmless),
                        "test broken" => Some(Fault::Connection),
                        "test condemned" => Some(Fault::Server),
                        _ => None,
                    });
                    FORK_AT.set(callback);
                    Some(session(&pool))
                }
            };
            if std::process::id() != here {
                leave(|| {
                    assert_eq!(DROPPED.load(SeqCst), dropped, "what the callback returned is not the child's to drop");
                    let own = session(&pool);
                    let asked_before = ["has_broken", "resets", "reset"].contains(&callback);
                    assert!(got.is_none_or(|got| asked_before || got == own), "nor does the parent's error count");
                    assert_eq!(pool.state().connections, 1, "and nothing is lost");
                    // Both slots can be had.
                    let both = [pool.get().unwrap(), pool.get().unwrap()];
                    drop(both);
                    assert_eq!(STRANGE.load(SeqCst), 0, "nor is the parent's client");
                });
            }
            assert_eq!(exit_code(CHILD.load(SeqCst)), 0, "the child that was forked in {stage}");
            match (deed, before) {
                ("disconnect" | "report", _) => assert_eq!(pool.state().connections, 0, "{stage}"),
                ("replace" | "test broken" | "test condemned", before) => {
                    assert_ne!(Some(session(&pool)), before, "{stage}")
                }
                (_, Some(before)) => assert_eq!(session(&pool), before, "{stage}"),
                _ => drop(session(&pool)),
            }
            assert_eq!(witness.violations(), Vec::<String>::new(), "{stage}");
        }
    });
}

/// Two are wanted, and the fork comes when one of them is there: the child opens two of its own, and says so.
#[test]
fn a_child_that_was_forked_in_a_warm_up_starts_over() {
    struct ForksAtSecond(Forks, AtomicU32);
    impl ManageConnection for ForksAtSecond {
        type Connection = Client;
        type Error = Says;
        fn connect(&self) -> Result<Client, Says> {
            if self.1.fetch_add(1, SeqCst) == 1 {
                FORK_AT.set("connect");
            }
            self.0.connect()
        }
        fn is_valid(&self, conn: &mut Client) -> Result<(), Says> {
            self.0.is_valid(conn)
        }
        fn has_broken(&self, conn: &mut Client) -> bool {
            self.0.has_broken(conn)
        }
        fn descriptors(&self, conn: &Client) -> Descriptors {
            self.0.descriptors(conn)
        }
    }
    clean_process(|| {
        let witness = Witness::start();
        let here = std::process::id();
        let pool = kit::tested().build(ForksAtSecond(Forks(witness.manager()), AtomicU32::new(0))).unwrap();
        let opened = pool.warm_up(2);
        if std::process::id() != here {
            leave(|| assert_eq!((opened.unwrap(), pool.state().idle_connections), (2, 2)));
        }
        assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
        assert_eq!((opened.unwrap(), pool.state().idle_connections), (2, 2));
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// The fork comes in the test of a connection, while others queue for it and the lock of their queue is never long free:
/// the child gives the slot back to nobody.
#[test]
fn a_child_that_was_forked_in_a_callback_leaves_its_parents_queue_alone() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().max_size(1).build(Forks(witness.manager())).unwrap();
        session(&pool);
        let here = std::process::id();
        for _ in 0..40 {
            let held = Mutex::new(Some(pool.get().unwrap()));
            let (tested, stop) = (AtomicBool::new(false), AtomicBool::new(false));
            thread::scope(|scope| {
                let _stop = kit::StopOnDrop(&stop);
                // The first in line tests what it gets, and forks.
                scope.spawn(|| {
                    FORK_AT.set("is_valid");
                    let conn = pool.get();
                    if std::process::id() != here {
                        leave(|| drop(conn.unwrap().0.ask("who am I to you").unwrap()));
                    }
                    let _tested = kit::WhenDropped(|| tested.store(true, SeqCst));
                    assert_eq!(exit_code(CHILD.load(SeqCst)), 0, "the child that was forked in the middle");
                });
                while pool.state().waiting < 1 {
                    thread::yield_now();
                }
                scope.spawn(|| drop(pool.get().unwrap()));
                for _ in 0..3 {
                    scope.spawn(|| {
                        while !stop.load(SeqCst) {
                            pool.state();
                        }
                    });
                }
                while pool.state().waiting < 2 {
                    thread::yield_now();
                }
                drop(held.lock().unwrap().take());
                while !tested.load(SeqCst) {
                    thread::yield_now();
                }
            });
        }
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

static POOL: OnceLock<Pool<UsesPool>> = OnceLock::new();

/// A goodbye that forks if that was asked for; the child uses the pool in the middle of it.
struct UsesPool(WitnessManager);

struct Uses(Option<WitnessClient>);

impl Drop for Uses {
    fn drop(&mut self) {
        if FORK_AT.get() == "goodbye" {
            callback("goodbye");
            if CHILD.load(SeqCst) == 0 {
                drop(POOL.get().unwrap().get());
            }
        }
    }
}

thread_local! {
    /// The pool is closed by the next method of its manager.
    static CLOSES: Cell<bool> = const { Cell::new(false) };
}

fn close_if_told_to() {
    if CLOSES.take() {
        POOL.get().unwrap().close();
    }
}

impl ManageConnection for UsesPool {
    type Connection = Uses;
    type Error = io::Error;
    fn connect(&self) -> io::Result<Uses> {
        close_if_told_to();
        self.0.connect().map(|client| Uses(Some(client)))
    }
    fn is_valid(&self, _: &mut Uses) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut Uses) -> bool {
        false
    }
    fn descriptors(&self, conn: &Uses) -> Descriptors {
        close_if_told_to();
        Descriptors::of(conn.0.as_ref().unwrap().stream())
    }
}

/// The child comes out of its parent's goodbye with a connection of its own in the slot that the parent gives up.
#[test]
fn a_child_that_was_forked_in_a_goodbye_keeps_the_slots_that_it_has() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = POOL.get_or_init(|| kit::tested().build(UsesPool(witness.manager())).unwrap());
        let here = std::process::id();
        let conn = pool.get().unwrap();
        FORK_AT.set("goodbye");
        PooledConnection::discard(conn);
        if std::process::id() != here {
            leave(|| assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1)));
        }
        assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
        assert_eq!(pool.state().connections, 0);
    });
}

/// The pool is closed in the middle of a call; what the call then closes forks in its goodbye. The child is told what its own
/// pool has to say.
fn is_told_that_the_pool_is_closed<T>(call: impl FnOnce(&Pool<UsesPool>) -> Result<T, forksafe::Error>) {
    let here = std::process::id();
    let pool = POOL.get().unwrap();
    CLOSES.set(true);
    FORK_AT.set("goodbye");
    let told = call(pool).map(drop);
    if std::process::id() != here {
        leave(|| assert!(told.as_ref().is_err_and(|error| error.is_closed()), "{told:?}"));
    }
    assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
    assert_eq!(pool.state().connections, 0);
}

#[test]
fn a_child_that_was_forked_in_a_goodbye_of_a_warm_up_starts_over() {
    clean_process(|| {
        let witness = Witness::start();
        POOL.get_or_init(|| kit::tested().build(UsesPool(witness.manager())).unwrap());
        is_told_that_the_pool_is_closed(|pool| pool.warm_up(2));
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// There is no time to test the connection, so it goes back.
#[test]
fn a_child_that_was_forked_in_a_goodbye_of_an_untested_connection_starts_over() {
    clean_process(|| {
        let witness = Witness::start();
        let builder = kit::tested().test_timeout(Duration::from_nanos(1));
        let pool = POOL.get_or_init(|| builder.build(UsesPool(witness.manager())).unwrap());
        // Its descriptors are asked for once more.
        let mut conn = pool.get().unwrap();
        conn.0 = None;
        conn.0 = Some(WitnessClient::connect(witness.address()).unwrap());
        drop(conn);
        is_told_that_the_pool_is_closed(|pool| pool.get_timeout(Duration::ZERO));
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// A connection that cannot be protected is closed, and its goodbye forks: the child tries for itself.
#[test]
fn a_child_that_was_forked_in_a_goodbye_of_an_unprotected_connection_starts_over() {
    struct Nameless(AtomicU32);
    struct Forks;
    impl Drop for Forks {
        fn drop(&mut self) {
            callback("goodbye");
        }
    }
    impl ManageConnection for Nameless {
        type Connection = Forks;
        type Error = io::Error;
        fn connect(&self) -> io::Result<Forks> {
            self.0.fetch_add(1, SeqCst);
            Ok(Forks)
        }
        fn is_valid(&self, _: &mut Forks) -> io::Result<()> {
            Ok(())
        }
        fn has_broken(&self, _: &mut Forks) -> bool {
            false
        }
    }
    clean_process(|| {
        let here = std::process::id();
        let pool = kit::tested().require_known_descriptors(true).build(Nameless(AtomicU32::new(0))).unwrap();
        FORK_AT.set("goodbye");
        assert!(pool.get().is_err_and(|error| error.is_unprotected()));
        if std::process::id() != here {
            leave(|| assert_eq!(pool.manager().0.load(SeqCst), 2));
        }
        assert_eq!((exit_code(CHILD.load(SeqCst)), pool.manager().0.load(SeqCst)), (0, 1));
    });
}

/// The first of two has expired, and its goodbye forks: the second is not put into the child's own pool.
#[test]
fn a_child_that_was_forked_in_maintain_takes_nothing_of_its_parents() {
    clean_process(|| {
        let witness = Witness::start();
        let lifetime = Duration::from_secs(2);
        let builder = kit::tested().max_size(2).max_lifetime(Some(lifetime));
        let pool = POOL.get_or_init(|| builder.build(UsesPool(witness.manager())).unwrap());
        let here = std::process::id();
        let old = pool.get().unwrap();
        thread::sleep(lifetime * 3 / 4);
        drop((old, pool.get().unwrap()));
        thread::sleep(lifetime * 3 / 8);
        FORK_AT.set("goodbye");
        pool.maintain();
        if std::process::id() != here {
            leave(|| {
                assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1), "what it made itself");
                let both = [pool.get().unwrap(), pool.get().unwrap()];
                assert!(!both.iter().any(PooledConnection::is_inherited));
            });
        }
        assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
        assert_eq!((pool.state().connections, pool.state().idle_connections), (1, 1));
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// The pool is being closed, or is closed and the last connection comes back; the goodbye forks. The child finds the pool
/// closed and empty, and says nothing for what else its parent has to close.
#[test]
fn a_child_that_was_forked_in_a_goodbye_of_a_closed_pool_closes_nothing() {
    clean_process(|| {
        for how in ["close", "return"] {
            let witness = Witness::start();
            let pool = kit::tested().max_size(3).build(Forks(witness.manager())).unwrap();
            let here = std::process::id();
            let mut lent = Some(pool.get().unwrap());
            drop([pool.get().unwrap(), pool.get().unwrap()]);
            if how == "return" {
                pool.close();
            }
            FORK_AT.set("close");
            match how {
                "close" => pool.close(),
                _ => drop(lent.take()),
            }
            if std::process::id() != here {
                leave(|| {
                    assert!(pool.get().is_err_and(|error| error.is_closed()));
                    assert_eq!(pool.state().connections, 0);
                    pool.close_timeout(Duration::from_secs(1)).unwrap();
                    drop(lent.take());
                });
            }
            assert_eq!(exit_code(CHILD.load(SeqCst)), 0, "{how}");
            drop(lent);
            pool.close_timeout(testing::patience()).unwrap();
            witness.wait_until("all have ended", |seen| seen.values().all(|seen| seen.ended));
            let seen = witness.connections();
            assert!(seen.len() == 3 && seen.values().all(|seen| seen.goodbye.is_some()), "{how}: {seen:?}");
            assert_eq!(witness.violations(), Vec::<String>::new(), "{how}");
        }
    });
}

/// A fork in the test of a connection: the driver's frame in the child still has it, and finds a dead socket.
#[test]
fn a_connection_under_test_keeps_its_number_in_a_child() {
    struct Looks(WitnessManager);
    impl ManageConnection for Looks {
        type Connection = WitnessClient;
        type Error = io::Error;
        fn connect(&self) -> io::Result<WitnessClient> {
            self.0.connect()
        }
        fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
            use std::os::fd::AsRawFd;
            let (number, name) = (conn.stream().as_raw_fd(), testing::socket_of(conn.stream()));
            let there = testing::child(|| testing::descriptors(std::process::id()).get(&number).cloned()).join();
            assert!(there.as_ref().is_some_and(|there| there.starts_with("socket:") && *there != name), "{there:?}");
            Ok(())
        }
        fn has_broken(&self, _: &mut WitnessClient) -> bool {
            false
        }
        fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
            Descriptors::of(conn.stream())
        }
    }
    clean_process(|| {
        let witness = Witness::start();
        let pool = kit::tested().build(Looks(witness.manager())).unwrap();
        drop(pool.get().unwrap());
        drop(pool.get().unwrap());
        assert_eq!(pool.state().connections, 1);
    });
}

/// What an initialiser made in its parent's frame is not the child's to drop; and neither is the parent's failure its own.
#[test]
fn the_child_of_an_initialiser_that_forks_drops_nothing_and_tries_again() {
    static DROPS: AtomicU32 = AtomicU32::new(0);
    struct Counts;
    impl Drop for Counts {
        fn drop(&mut self) {
            DROPS.fetch_add(1, SeqCst);
        }
    }
    clean_process(|| {
        let here = std::process::id();
        for fails in [false, true] {
            let calls = AtomicU32::new(0);
            let value = PerProcess::new(|| {
                let first = calls.fetch_add(1, SeqCst) == 0;
                if first {
                    CHILD.store(kit::fork().unwrap_or(0), SeqCst);
                }
                if first && fails { Err("on purpose") } else { Ok(Counts) }
            });
            let got = PerProcess::try_get(&value).map(drop);
            if std::process::id() != here {
                leave(|| assert_eq!((got, calls.load(SeqCst), DROPS.load(SeqCst)), (Ok(()), 2, 0)));
            }
            assert_eq!(exit_code(CHILD.load(SeqCst)), 0, "fails: {fails}");
            assert_eq!(got.is_err(), fails);
            std::mem::forget(value);
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

/// A hook that forks: the grandchild runs the other hooks, the child goes on with the rest.
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
                leave(|| assert_eq!((FORKED.load(SeqCst), RUNS.load(SeqCst)), (1, 1)));
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
        let pool = POOL.get_or_init(|| kit::tested().build(witness.manager()).unwrap());
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
