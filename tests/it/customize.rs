//! What a program wants done about a pool's connections, and told of them.

use crate::kit::{self, exit_code, leave};
use forksafe::event::{AcquireEvent, CheckinEvent, CheckoutEvent, HandleEvent, LeakEvent, ReleaseEvent, TimeoutEvent};
use forksafe::fork::{self, Descriptors};
use forksafe::testing::{self, Witness, WitnessClient, WitnessManager, clean_process};
use forksafe::{
    Closed, CustomizeConnection, Deadline, HandleError, LoggingErrorHandler, ManageConnection, NopConnectionCustomizer,
    NopErrorHandler, Pool, PooledConnection,
};
use std::cell::Cell;
use std::error::Error as _;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was done, in its order.
#[derive(Clone, Debug, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

impl Diary {
    fn note(&self, what: impl ToString) {
        self.0.lock().unwrap().push(what.to_string());
    }

    fn read(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// Numbered connections that write down what becomes of them.
struct Numbers {
    diary: Diary,
    made: AtomicU32,
    is_away: AtomicBool,
    is_broken: AtomicBool,
    is_valid: AtomicBool,
}

impl Numbers {
    fn new(diary: &Diary) -> Self {
        Self {
            diary: diary.clone(),
            made: AtomicU32::new(0),
            is_away: AtomicBool::new(false),
            is_broken: AtomicBool::new(false),
            is_valid: AtomicBool::new(true),
        }
    }
}

struct Number(u32, Diary);

impl Drop for Number {
    fn drop(&mut self) {
        self.1.note(format!("drop {}", self.0));
    }
}

impl ManageConnection for Numbers {
    type Connection = Number;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Number> {
        if self.is_away.load(SeqCst) {
            return Err(io::Error::other("the server is away"));
        }
        let number = self.made.fetch_add(1, SeqCst) + 1;
        self.diary.note(format!("connect {number}"));
        Ok(Number(number, self.diary.clone()))
    }
    fn is_valid(&self, conn: &mut Number) -> io::Result<()> {
        self.diary.note(format!("test {}", conn.0));
        if self.is_valid.load(SeqCst) { Ok(()) } else { Err(io::Error::other("gone stale")) }
    }
    fn has_broken(&self, _: &mut Number) -> bool {
        self.is_broken.load(SeqCst)
    }
    fn goodbye(&self, conn: Number, _: Deadline) {
        self.diary.note(format!("goodbye {}", conn.0));
    }
    fn descriptors(&self, _: &Number) -> Descriptors {
        Descriptors::none()
    }
}

#[test]
fn hooks_are_asked_in_their_order_and_with_the_deadline() {
    let diary = Diary::default();
    let (a, b, c, d) = (diary.clone(), diary.clone(), diary.clone(), diary.clone());
    let in_time = |deadline: Deadline| assert!(deadline.remaining() <= Duration::from_secs(30), "{deadline:?}");
    let pool = kit::tested()
        .after_connect(move |conn: &mut Number, deadline| {
            in_time(deadline);
            a.note(format!("after connect {}", conn.0));
            Ok(())
        })
        .before_acquire(move |conn: &mut Number, deadline| {
            in_time(deadline);
            b.note(format!("before acquire {}", conn.0));
            Ok(())
        })
        .after_release(move |conn: &mut Number, deadline| {
            in_time(deadline);
            c.note(format!("after release {}", conn.0));
            Ok(())
        })
        .before_close(move |conn: &mut Number, deadline| {
            in_time(deadline);
            d.note(format!("before close {}", conn.0));
        })
        .build(Numbers::new(&diary))
        .unwrap();
    drop(pool.get().unwrap());
    assert_eq!(diary.read(), ["connect 1", "after connect 1", "before acquire 1", "after release 1"]);
    drop(pool.get().unwrap());
    assert_eq!(diary.read(), ["test 1", "before acquire 1", "after release 1"]);
    pool.close();
    assert_eq!(diary.read(), ["before close 1", "goodbye 1", "drop 1"]);
}

#[test]
fn each_hook_may_refuse() {
    let diary = Diary::default();
    let refuses = Arc::new(Mutex::new(""));
    let hook = |name: &'static str| {
        let refuses = Arc::clone(&refuses);
        move |_: &mut Number, _| match *refuses.lock().unwrap() {
            refused if refused == name => Err(io::Error::other(name)),
            _ => Ok(()),
        }
    };
    let pool = kit::tested()
        .after_connect(hook("after connect"))
        .before_acquire(hook("before acquire"))
        .after_release(hook("after release"))
        .build(Numbers::new(&diary))
        .unwrap();
    let refuse = |name| *refuses.lock().unwrap() = name;

    for name in ["after connect", "before acquire"] {
        refuse(name);
        let error = pool.get().unwrap_err();
        assert!(error.is_connect(), "{error}");
        assert_eq!(error.source().unwrap().to_string(), name);
        assert_eq!(pool.state().connections, 0, "{name}");
    }
    assert_eq!(diary.read(), ["connect 1", "goodbye 1", "drop 1", "connect 2", "goodbye 2", "drop 2"]);

    refuse("");
    let first = pool.get().unwrap();
    refuse("after release");
    drop(first);
    assert_eq!((pool.state().connections, diary.read().len()), (0, 3));

    // In the place of an idle one that is refused a new one is made, and refused.
    refuse("");
    drop([pool.get().unwrap(), pool.get().unwrap()]);
    assert_eq!(pool.state().idle_connections, 2);
    refuse("before acquire");
    assert_eq!(pool.get().unwrap_err().source().unwrap().to_string(), "before acquire");
    assert_eq!(pool.state().connections, 1);
    let closed = pool.statistics().unwrap().closed;
    assert_eq!(closed.of(Closed::Refused), 4, "one new, one returned, one idle, one new: {closed:?}");
    // What after_connect refused was never one of the pool's.
    assert_eq!(closed.total(), 4);
}

/// What is refused is not the pool's, and says goodbye as its manager has it.
#[test]
fn a_customizer_has_what_leaves_the_pool() {
    #[derive(Debug)]
    struct Customizer(Diary, AtomicBool);
    impl CustomizeConnection<Number, io::Error> for Customizer {
        fn on_acquire(&self, conn: &mut Number) -> io::Result<()> {
            self.0.note(format!("acquire {}", conn.0));
            if self.1.swap(true, SeqCst) { Ok(()) } else { Err(io::Error::other("not the first")) }
        }
        fn on_release(&self, conn: Number) {
            self.0.note(format!("release {}", conn.0));
        }
    }
    let diary = Diary::default();
    let customizer = Box::new(Customizer(diary.clone(), AtomicBool::new(false)));
    let pool = Pool::builder().connection_customizer(customizer).build(Numbers::new(&diary)).unwrap();
    assert_eq!(pool.get().unwrap_err().source().unwrap().to_string(), "not the first");
    assert_eq!(diary.read(), ["connect 1", "acquire 1", "goodbye 1", "drop 1"]);
    let conn = pool.get().unwrap();
    pool.manager().is_broken.store(true, SeqCst);
    drop(conn);
    assert_eq!(diary.read(), ["connect 2", "acquire 2", "release 2", "drop 2"]);
}

#[test]
fn nop_is_what_there_is_without_one() {
    let diary = Diary::default();
    let pool = Pool::builder()
        .connection_customizer(Box::new(NopConnectionCustomizer))
        .error_handler(Box::new(NopErrorHandler))
        .event_handler(Box::new(forksafe::event::NopEventHandler))
        .build(Numbers::new(&diary))
        .unwrap();
    drop(pool.get().unwrap());
    drop(pool);
    assert_eq!(diary.read(), ["connect 1", "drop 1"]);
}

#[derive(Debug)]
struct Errors(Diary);

impl HandleError<io::Error> for Errors {
    fn handle_error(&self, error: io::Error) {
        self.0.note(error);
    }
}

#[test]
fn an_error_handler_has_the_errors_and_who_waits_their_text() {
    let diary = Diary::default();
    let errors = Diary::default();
    let pool = kit::tested().error_handler(Box::new(Errors(errors.clone()))).build(Numbers::new(&diary)).unwrap();
    let manager = pool.manager();
    manager.is_away.store(true, SeqCst);
    let error = pool.get().unwrap_err();
    assert_eq!(format!("{error:#}"), "cannot connect: the server is away");
    assert_eq!(errors.read(), ["the server is away"]);

    manager.is_away.store(false, SeqCst);
    drop(pool.get().unwrap());
    manager.is_valid.store(false, SeqCst);
    drop(pool.get().unwrap());
    assert_eq!(errors.read(), ["gone stale"]);
}

#[test]
fn the_logging_handler_says_errors_with_their_sources() {
    let child = testing::child(|| {
        let (read, write) = io::pipe().unwrap();
        // SAFETY: takes numbers; the child says nothing else on its standard error.
        let duplicated = unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&write), 2) };
        assert_eq!(duplicated, 2);
        let pool = Pool::builder()
            .error_handler(Box::new(LoggingErrorHandler))
            .build(Numbers { is_away: AtomicBool::new(true), ..Numbers::new(&Diary::default()) })
            .unwrap();
        assert!(pool.get().is_err());
        let mut bytes = [0; 100];
        let length = io::Read::read(&mut &read, &mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    });
    assert_eq!(child.join(), "forksafe: the server is away\n");
}

/// Writes down events without their times.
#[derive(Debug)]
struct Events(Diary);

impl HandleEvent for Events {
    fn handle_acquire(&self, event: AcquireEvent) {
        self.0.note(format!("acquire {}", event.connection_id()));
        assert!(event.duration() < testing::patience());
    }
    fn handle_release(&self, event: ReleaseEvent) {
        self.0.note(format!("release {}: {}", event.connection_id(), event.why()));
        assert!(event.age() < testing::patience());
    }
    fn handle_checkout(&self, event: CheckoutEvent) {
        self.0.note(format!("checkout {}", event.connection_id()));
        assert!(event.duration() < testing::patience());
    }
    fn handle_timeout(&self, event: TimeoutEvent) {
        self.0.note(format!("timeout {:?}", event.timeout()));
    }
    fn handle_checkin(&self, event: CheckinEvent) {
        self.0.note(format!("checkin {}", event.connection_id()));
        assert!(event.duration() < testing::patience());
    }
    fn handle_leak(&self, event: LeakEvent) {
        self.0.note(format!("leak of line {}", event.holder().location.line()));
    }
}

#[test]
fn events_tell_what_happens() {
    let events = Diary::default();
    let pool = Pool::builder()
        .max_size(1)
        .event_handler(Box::new(Events(events.clone())))
        .build(Numbers::new(&Diary::default()))
        .unwrap();
    let conn = pool.get().unwrap();
    assert!(pool.get_timeout(Duration::from_millis(12)).is_err());
    assert!(pool.try_get().is_none(), "which is nothing to tell of");
    drop(conn);
    // Every one of them, though it was proved alive a moment ago.
    for _ in 0..3 {
        drop(pool.get().unwrap());
    }
    PooledConnection::discard(pool.get().unwrap());
    let guarded = PooledConnection::detach(pool.get().unwrap()).unwrap();
    drop(pool);
    drop(guarded);
    let mut expected = vec!["acquire 0", "checkout 0", "timeout 12ms", "checkin 0"];
    expected.extend(["checkout 0", "checkin 0"].repeat(3));
    expected.extend(["checkout 0", "checkin 0", "release 0: discarded"]);
    expected.extend(["acquire 1", "checkout 1", "checkin 1", "release 1: detached"]);
    assert_eq!(events.read(), expected);
}

/// Who has no time to wait has time to be asked all the same: otherwise one look would close all that is idle.
#[test]
fn a_hook_that_needs_time_has_some() {
    let diary = Diary::default();
    let pool = Pool::builder()
        .before_acquire(|_: &mut Number, deadline| deadline.socket_timeout().map(drop))
        .build(Numbers::new(&diary))
        .unwrap();
    drop([pool.get().unwrap(), pool.get().unwrap()]);
    assert!(pool.try_get().is_some());
    assert!(pool.get_timeout(Duration::ZERO).is_ok());
    assert_eq!(pool.state().connections, 2);
}

#[test]
fn extensions_stay_with_their_connection_and_go_before_it() {
    struct Statement(Diary);
    impl Drop for Statement {
        fn drop(&mut self) {
            self.0.note("drop statement");
        }
    }
    let diary = Diary::default();
    let pool = Pool::new(Numbers::new(&diary)).unwrap();
    let mut conn = pool.get().unwrap();
    PooledConnection::extensions_mut(&mut conn).insert(Statement(diary.clone()));
    let other = pool.get().unwrap();
    assert!(PooledConnection::extensions(&other).get::<Statement>().is_none());
    drop(conn);
    let conn = pool.get().unwrap();
    assert!(PooledConnection::extensions(&conn).get::<Statement>().is_some());
    assert_eq!(PooledConnection::id(&conn), 0);
    assert!(PooledConnection::age(&conn) < testing::patience());
    diary.read();
    PooledConnection::discard(conn);
    assert_eq!(diary.read(), ["drop statement", "goodbye 1", "drop 1"]);
}

/// A statement that is dropped would be closed on its connection, which is the parent's.
#[test]
fn a_child_leaks_what_its_parent_attached() {
    static DROPPED: AtomicU32 = AtomicU32::new(0);
    struct Statement;
    impl Drop for Statement {
        fn drop(&mut self) {
            DROPPED.fetch_add(1, SeqCst);
        }
    }
    let witness = Witness::start();
    let pool = kit::tested().build(witness.manager()).unwrap();
    let mut idle = pool.get().unwrap();
    PooledConnection::extensions_mut(&mut idle).insert(Statement);
    let mut lent = pool.get().unwrap();
    PooledConnection::extensions_mut(&mut lent).insert(Statement);
    drop(idle);
    let child = testing::child(|| {
        kit::ask(&pool);
        drop(lent);
        pool.close();
        drop(pool);
        DROPPED.load(SeqCst)
    });
    assert_eq!(child.join(), 0);
}

thread_local! {
    static FORK_AT: Cell<&'static str> = const { Cell::new("") };
}
static CHILD: AtomicI32 = AtomicI32::new(0);

/// Forks here if that was asked for, once.
fn callback(name: &str) {
    if FORK_AT.get() == name {
        FORK_AT.set("");
        CHILD.store(kit::fork().unwrap_or(0), SeqCst);
    }
}

/// Forks in whatever it is told.
#[derive(Debug)]
struct Forks;

impl HandleEvent for Forks {
    fn handle_acquire(&self, _: AcquireEvent) {
        callback("handle_acquire");
    }
    fn handle_release(&self, _: ReleaseEvent) {
        callback("handle_release");
    }
    fn handle_checkout(&self, _: CheckoutEvent) {
        callback("handle_checkout");
    }
    fn handle_checkin(&self, _: CheckinEvent) {
        callback("handle_checkin");
    }
    fn handle_timeout(&self, _: TimeoutEvent) {
        callback("handle_timeout");
    }
}

impl HandleError<io::Error> for Forks {
    fn handle_error(&self, _: io::Error) {
        callback("handle_error");
    }
}

impl CustomizeConnection<WitnessClient, io::Error> for Forks {
    fn on_acquire(&self, _: &mut WitnessClient) -> io::Result<()> {
        callback("on_acquire");
        Ok(())
    }
    fn on_release(&self, conn: WitnessClient) {
        callback("on_release");
        drop(conn);
    }
}

/// Fails its tests when told to.
struct Doubts(WitnessManager, AtomicBool);

impl ManageConnection for Doubts {
    type Connection = WitnessClient;
    type Error = io::Error;
    fn connect(&self) -> io::Result<WitnessClient> {
        self.0.connect()
    }
    fn is_valid(&self, conn: &mut WitnessClient) -> io::Result<()> {
        if self.1.load(SeqCst) { Err(io::Error::other("in doubt")) } else { self.0.is_valid(conn) }
    }
    fn has_broken(&self, conn: &mut WitnessClient) -> bool {
        self.0.has_broken(conn)
    }
    fn descriptors(&self, conn: &WitnessClient) -> Descriptors {
        self.0.descriptors(conn)
    }
}

/// As a manager's methods may: the child starts over.
#[test]
fn a_child_that_was_forked_in_a_hook_starts_over() {
    let stages = [
        "on_acquire",
        "after_connect",
        "before_acquire",
        "after_release",
        "before_close",
        "on_release",
        "handle_acquire",
        "handle_checkout",
        "handle_checkin",
        "handle_release",
        "handle_timeout",
        "handle_error",
        "connected",
        "resize",
    ];
    clean_process(|| {
        let here = std::process::id();
        for stage in stages {
            let witness = Witness::start();
            let ask = |name: &'static str| {
                move |_: &mut WitnessClient, _: Deadline| {
                    callback(name);
                    Ok(())
                }
            };
            let pool = kit::tested()
                .max_size(2)
                .connection_customizer(Box::new(Forks))
                .event_handler(Box::new(Forks))
                .error_handler(Box::new(Forks))
                .after_connect(ask("after_connect"))
                .before_acquire(ask("before_acquire"))
                .after_release(ask("after_release"))
                .before_close(|_, _| callback("before_close"))
                .build(Doubts(witness.manager(), AtomicBool::new(false)))
                .unwrap();
            let session = |pool: &Pool<Doubts>| pool.get().unwrap().ask("who am I to you").unwrap().connection;
            match stage {
                "on_acquire" | "after_connect" | "handle_acquire" => {
                    FORK_AT.set(stage);
                    session(&pool);
                }
                "resize" => {
                    drop([pool.get().unwrap(), pool.get().unwrap()]);
                    FORK_AT.set("before_close");
                    pool.resize(1).unwrap();
                    pool.resize(2).unwrap();
                }
                "connected" => {
                    // Asked about a connection that is new.
                    FORK_AT.set("before_acquire");
                    session(&pool);
                }
                "before_close" | "on_release" | "handle_release" => {
                    let conn = pool.get().unwrap();
                    FORK_AT.set(stage);
                    PooledConnection::discard(conn);
                }
                "handle_timeout" => {
                    let held = [pool.get().unwrap(), pool.get().unwrap()];
                    FORK_AT.set(stage);
                    assert!(pool.get_timeout(Duration::from_millis(1)).is_err());
                    drop(held);
                }
                "handle_error" => {
                    session(&pool);
                    pool.manager().1.store(true, SeqCst);
                    FORK_AT.set(stage);
                    session(&pool);
                    pool.manager().1.store(false, SeqCst);
                }
                _ => {
                    session(&pool);
                    FORK_AT.set(stage);
                    session(&pool);
                }
            }
            if std::process::id() != here {
                leave(|| {
                    session(&pool);
                    let both = [pool.get().unwrap(), pool.get().unwrap()];
                    drop(both);
                    assert_eq!(pool.state().connections, 2, "nothing is lost");
                });
            }
            assert_eq!(exit_code(CHILD.load(SeqCst)), 0, "the child that was forked in {stage}");
            session(&pool);
            let both = [pool.get().unwrap(), pool.get().unwrap()];
            drop(both);
            assert_eq!(pool.state().connections, 2, "nor in the parent: {stage}");
            assert_eq!(witness.violations(), Vec::<String>::new(), "{stage}");
        }
    });
}

/// Those who listen may have a lock that a thread of the parent's held: it is for a hook of the child's to put that right.
#[test]
fn a_child_is_told_of_nothing_before_its_hooks_are_through() {
    static TOLD: AtomicU32 = AtomicU32::new(0);
    #[derive(Debug)]
    struct Counts;
    impl HandleEvent for Counts {
        fn handle_acquire(&self, _: AcquireEvent) {
            TOLD.fetch_add(1, SeqCst);
        }
        fn handle_checkout(&self, _: CheckoutEvent) {
            TOLD.fetch_add(1, SeqCst);
        }
    }
    clean_process(|| {
        let witness = Witness::start();
        let pool = Pool::builder().event_handler(Box::new(Counts)).build(witness.manager()).unwrap();
        kit::ask(&pool);
        let told = TOLD.swap(0, SeqCst);
        assert_eq!(told, 2);
        static IN_HOOK: AtomicU32 = AtomicU32::new(u32::MAX);
        let uses = pool.clone();
        fork::on_child(move || {
            kit::ask(&uses);
            IN_HOOK.store(TOLD.load(SeqCst), SeqCst);
        });
        let child = testing::child(|| {
            kit::ask(&pool);
            (IN_HOOK.load(SeqCst), TOLD.load(SeqCst))
        });
        assert_eq!(child.join(), (0, 1), "nothing in the hook, and then the checkout of what that had opened");
    });
}
