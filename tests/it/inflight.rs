//! Row 6: the fork comes while another thread is in the middle of something.

use crate::kit::{self, Door, WhenDropped, ask, ways};
use forksafe::fork::Descriptors;
use forksafe::testing::{self, Way, Witness, WitnessClient, WitnessManager, clean_process};
use forksafe::{ManageConnection, Pool};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

/// Where a manager stops, once, until it is let go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Connect,
    Validate,
    Return,
    Close,
}

struct StopsOnce {
    inner: WitnessManager,
    stop: Mutex<Option<Stage>>,
    stopped: Door,
    go_on: Door,
    connects: AtomicU32,
}

struct Client {
    inner: WitnessClient,
    manager: Arc<StopsOnce>,
}

impl StopsOnce {
    fn pass(&self, stage: Stage) {
        let stops = self.stop.lock().unwrap().take_if(|stop| *stop == stage).is_some();
        if stops {
            self.stopped.open();
            self.go_on.pass();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.manager.pass(Stage::Close);
    }
}

struct Manager(Arc<StopsOnce>);

impl ManageConnection for Manager {
    type Connection = Client;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Client> {
        self.0.connects.fetch_add(1, SeqCst);
        let inner = self.0.inner.connect()?;
        self.0.pass(Stage::Connect);
        Ok(Client { inner, manager: Arc::clone(&self.0) })
    }
    fn is_valid(&self, conn: &mut Client) -> io::Result<()> {
        self.0.pass(Stage::Validate);
        self.0.inner.is_valid(&mut conn.inner)
    }
    fn has_broken(&self, conn: &mut Client) -> bool {
        self.0.pass(Stage::Return);
        self.0.inner.has_broken(&mut conn.inner)
    }
    fn descriptors(&self, conn: &Client) -> Descriptors {
        self.0.inner.descriptors(&conn.inner)
    }
}

fn stops_at(witness: &Witness, stage: Stage) -> Arc<StopsOnce> {
    Arc::new(StopsOnce {
        inner: witness.manager(),
        stop: Mutex::new(Some(stage)),
        stopped: Door::new(),
        go_on: Door::new(),
        connects: AtomicU32::new(0),
    })
}

/// A pool whose one slot the other thread has at the fork.
fn single(manager: &Arc<StopsOnce>) -> Pool<Manager> {
    let builder = kit::tested().max_size(1).connection_timeout(testing::patience() / 2);
    builder.build(Manager(Arc::clone(manager))).unwrap()
}

fn session(pool: &Pool<Manager>) -> u64 {
    pool.get().unwrap().inner.ask("who am I to you").unwrap().connection
}

/// Another thread runs `deed` and is stopped in the middle of it; then this one makes a child, which uses the pool.
/// Returns the child's session.
fn fork_during(pool: &Pool<Manager>, manager: &StopsOnce, way: Way, deed: impl FnOnce() + Send) -> u64 {
    thread::scope(|scope| {
        let busy = scope.spawn(deed);
        manager.stopped.pass();
        let child = way.child(|| session(pool)).outcome();
        // First of all, or the other thread would be waited for in vain when the child has failed.
        manager.go_on.open();
        busy.join().unwrap();
        match child {
            testing::Outcome::Returned(session) => session,
            other => panic!("{way}: {other:?}"),
        }
    })
}

/// In its parent, which counts the forks that run handlers. A grandchild with a reused pid has a parent made by one.
fn is_noticed(way: Way) -> bool {
    way.runs_handlers() || way == Way::ReusedPid
}

/// The connect is noticed to have overlapped the fork, and done again: the child may hold a copy of the first socket
/// that its memory does not name. A child without handlers is not noticed; it, too, opens its own.
#[test]
fn a_connect_that_overlaps_a_fork_is_done_again() {
    clean_process(|| {
        for way in ways() {
            let witness = Witness::start();
            let manager = stops_at(&witness, Stage::Connect);
            let pool = kit::tested().build(Manager(Arc::clone(&manager))).unwrap();
            let child = fork_during(&pool, &manager, way, || drop(pool.get().unwrap()));
            let connects = if is_noticed(way) { 2 } else { 1 };
            assert_eq!(manager.connects.load(SeqCst), connects, "{way}; the child's own do not count here");
            let here = session(&pool);
            assert_ne!(child, here, "{way}");
            assert_eq!(pool.state().connections, 1, "{way}");
            witness.wait_until("all but ours have ended", |seen| {
                seen.iter().filter(|(_, seen)| !seen.ended).map(|(id, _)| *id).eq([here])
            });
            assert_eq!(witness.violations(), Vec::<String>::new(), "{way}");
        }
    });
}

/// The child of a fork in the middle of a connect lives on: the overlapped socket is dead at the server all the same.
#[test]
fn an_overlapped_socket_is_dead_although_a_child_still_holds_it() {
    clean_process(|| {
        let witness = Witness::start();
        let manager = stops_at(&witness, Stage::Connect);
        let pool = kit::tested().build(Manager(Arc::clone(&manager))).unwrap();
        let leave = Door::new();
        thread::scope(|scope| {
            let busy = scope.spawn(|| drop(pool.get().unwrap()));
            manager.stopped.pass();
            let child = testing::child(|| leave.pass());
            manager.go_on.open();
            busy.join().unwrap();
            let here = session(&pool);
            witness.wait_until("the overlapped connection has ended", |seen| {
                seen.iter().all(|(id, seen)| seen.ended || *id == here)
            });
            leave.open();
            child.join();
        });
    });
}

#[test]
fn a_fork_during_validation_harms_nobody() {
    clean_process(|| {
        for way in ways() {
            let witness = Witness::start();
            let manager = stops_at(&witness, Stage::Validate);
            let pool = single(&manager);
            let here = session(&pool);
            let child = fork_during(&pool, &manager, way, || assert_eq!(session(&pool), here));
            assert_ne!(child, here, "{way}");
            assert_eq!(session(&pool), here, "{way}");
            assert_eq!(witness.violations(), Vec::<String>::new(), "{way}");
        }
    });
}

#[test]
fn a_fork_during_a_return_harms_nobody() {
    clean_process(|| {
        for way in ways() {
            let witness = Witness::start();
            let manager = stops_at(&witness, Stage::Return);
            let pool = single(&manager);
            let guard = pool.get().unwrap();
            let child = fork_during(&pool, &manager, way, || drop(guard));
            assert_ne!(child, session(&pool), "{way}");
            assert_eq!(manager.connects.load(SeqCst), 1, "{way}");
            assert_eq!(witness.violations(), Vec::<String>::new(), "{way}");
        }
    });
}

/// Reaping, `disconnect`, `close` and the drop of a pool end in the drop of a client; here the fork comes right there.
#[test]
fn a_fork_during_a_close_leaves_no_child_with_the_socket() {
    clean_process(|| {
        let hows = ["disconnect", "close", "discard", "drop of the pool"];
        for (way, how) in ways().flat_map(|way| hows.map(|how| (way, how))) {
            let witness = Witness::start();
            let manager = stops_at(&witness, Stage::Close);
            let pool = kit::tested().build(Manager(Arc::clone(&manager))).unwrap();
            let here = session(&pool);
            let leave = Door::new();
            thread::scope(|scope| {
                let busy = scope.spawn(move || match how {
                    "disconnect" => pool.disconnect(),
                    "close" => pool.close(),
                    "discard" => forksafe::PooledConnection::discard(pool.get().unwrap()),
                    _ => drop(pool),
                });
                manager.stopped.pass();
                let child = way.child(|| leave.pass());
                manager.go_on.open();
                busy.join().unwrap();
                witness.wait_until("the closed connection has ended", |seen| seen[&here].ended);
                leave.open();
                child.join();
            });
            assert!(witness.connections()[&here].goodbye.is_some(), "{way}, {how}: a polite end");
            assert_eq!(witness.violations(), Vec::<String>::new(), "{way}, {how}");
        }
    });
}

/// A pool that is being built with `min_idle` while another thread forks.
#[test]
fn a_fork_during_a_build_harms_nobody() {
    clean_process(|| {
        for way in ways() {
            let witness = Witness::start();
            let manager = stops_at(&witness, Stage::Connect);
            let other = kit::tested().build(witness.manager()).unwrap();
            let before = ask(&other);
            thread::scope(|scope| {
                let built = scope.spawn(|| {
                    kit::tested().max_size(3).min_idle(Some(2)).build(Manager(Arc::clone(&manager))).unwrap()
                });
                manager.stopped.pass();
                let child = way.child(|| ask(&other)).outcome();
                manager.go_on.open();
                let built = built.join().unwrap();
                assert!(matches!(child, testing::Outcome::Returned(child) if child != before), "{way}: {child:?}");
                assert_eq!(built.state().idle_connections, 2, "{way}");
                let connects = if is_noticed(way) { 3 } else { 2 };
                assert_eq!(manager.connects.load(SeqCst), connects, "{way}: an overlapped one is done again");
            });
            assert_eq!(witness.violations(), Vec::<String>::new(), "{way}");
        }
    });
}

/// A fork that another library holds up, after our prepare handler has counted it and before the kernel copies anything.
mod held_up {
    use super::*;
    use std::sync::OnceLock;

    static DOORS: OnceLock<(Door, Door)> = OnceLock::new();

    extern "C" fn prepare() {
        if let Some((begun, go_on)) = DOORS.get() {
            begun.open();
            go_on.pass();
        }
    }

    /// Prepare handlers run in the reverse order of their registration, so this must come before the first use.
    pub(super) fn begin() {
        // SAFETY: a function that stays, and never unwinds.
        assert_eq!(unsafe { libc::pthread_atfork(Some(prepare), None, None) }, 0);
    }

    /// Runs `during` while a fork is in progress.
    pub(super) fn fork<T>(during: impl FnOnce() -> T) -> T {
        DOORS.set((Door::new(), Door::new())).ok().unwrap();
        let (begun, go_on) = DOORS.get().unwrap();
        thread::scope(|scope| {
            let forks = scope.spawn(|| testing::child(|| ()).join());
            begun.pass();
            let value = {
                let _go_on = WhenDropped(|| go_on.open());
                during()
            };
            forks.join().unwrap();
            value
        })
    }
}

/// Counts its connects; each takes as long as there is time, if it is told so.
struct Counts {
    inner: WitnessManager,
    connects: AtomicU32,
    takes_its_time: bool,
}

impl ManageConnection for Counts {
    type Connection = WitnessClient;
    type Error = io::Error;

    fn connect(&self) -> io::Result<WitnessClient> {
        self.connects.fetch_add(1, SeqCst);
        self.inner.connect()
    }
    fn connect_within(&self, at: &mut forksafe::Attempt) -> io::Result<WitnessClient> {
        while self.takes_its_time && !at.deadline().is_over() {
            thread::yield_now();
        }
        let client = self.connect()?;
        at.own(self.descriptors(&client));
        Ok(client)
    }
    fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
        self.inner.is_valid(conn)
    }
    fn has_broken(&self, conn: &mut WitnessClient) -> bool {
        self.inner.has_broken(conn)
    }
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        self.inner.descriptors(conn)
    }
}

/// A fork that had begun before the connect counts as well; and one that does not end does not take the pool down.
#[test]
fn a_connect_in_the_middle_of_a_long_fork_is_done_eight_times_and_then_kept() {
    clean_process(|| {
        held_up::begin();
        let witness = Witness::start();
        let manager = Counts { inner: witness.manager(), connects: AtomicU32::new(0), takes_its_time: false };
        let pool = kit::tested().build(manager).unwrap();
        forksafe::fork::generation();
        let kept = held_up::fork(|| pool.get().unwrap().ask("still").unwrap().connection);
        assert_eq!(pool.manager().connects.load(SeqCst), 8);
        assert_eq!(pool.get().unwrap().ask("still").unwrap().connection, kept);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

/// Only as long as there is time: a connection at the deadline is better than an error.
#[test]
fn an_overlapped_connect_is_not_done_again_after_its_deadline() {
    clean_process(|| {
        held_up::begin();
        let witness = Witness::start();
        let manager = Counts { inner: witness.manager(), connects: AtomicU32::new(0), takes_its_time: true };
        let pool = kit::tested().build(manager).unwrap();
        forksafe::fork::generation();
        held_up::fork(|| drop(pool.get_timeout(std::time::Duration::from_secs(3)).unwrap()));
        assert_eq!(pool.manager().connects.load(SeqCst), 1);
    });
}
