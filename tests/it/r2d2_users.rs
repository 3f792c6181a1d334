//! What users of r2d2 rely on, under r2d2's names. Each test is about what the test of the same name in r2d2's suite is about;
//! `migrating` in the documentation says what differs, and why.

use forksafe::event::{AcquireEvent, CheckinEvent, CheckoutEvent, HandleEvent, ReleaseEvent, TimeoutEvent};
use forksafe::testing::{self, advance_clock, clean_process};
use forksafe::{Builder, CustomizeConnection, ManageConnection, Pool, PooledConnection, State};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

#[derive(Debug, thiserror::Error)]
#[error("blammo")]
struct Blammo;

/// r2d2's three methods, and nothing else.
#[derive(Clone)]
struct Manager {
    /// How many connects will succeed.
    left: Arc<AtomicU32>,
    dropped: Arc<AtomicU32>,
    is_broken: bool,
}

impl Manager {
    fn with(left: u32) -> Self {
        Self { left: Arc::new(AtomicU32::new(left)), dropped: Arc::default(), is_broken: false }
    }

    fn dropped(&self) -> u32 {
        self.dropped.load(SeqCst)
    }
}

struct Conn(u32, Arc<AtomicU32>);

impl Drop for Conn {
    fn drop(&mut self) {
        self.1.fetch_add(1, SeqCst);
    }
}

impl ManageConnection for Manager {
    type Connection = Conn;
    type Error = Blammo;
    fn connect(&self) -> Result<Conn, Blammo> {
        let taken = self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        taken.map(|_| Conn(0, Arc::clone(&self.dropped))).map_err(|_| Blammo)
    }
    fn is_valid(&self, _: &mut Conn) -> Result<(), Blammo> {
        Ok(())
    }
    fn has_broken(&self, _: &mut Conn) -> bool {
        self.is_broken
    }
}

/// The settings by which a pool does what one of r2d2's does.
fn as_in_r2d2(size: u32) -> Builder<Manager> {
    Builder::new().max_size(size).min_idle(Some(size)).test_after(Duration::ZERO).retry_connect(true)
}

fn counts<M: ManageConnection>(pool: &Pool<M>) -> (u32, u32) {
    let State { connections, idle_connections, .. } = pool.state();
    (connections, idle_connections)
}

#[test]
fn max_size_ok() {
    let pool = as_in_r2d2(5).build(Manager::with(5)).unwrap();
    let all: Vec<_> = (0..5).map(|_| pool.get().unwrap()).collect();
    assert_eq!(all.len(), 5);
}

#[test]
fn acquire_release_and_try_get() {
    let pool = as_in_r2d2(2).build(Manager::with(2)).unwrap();
    let (first, second) = (pool.try_get().unwrap(), pool.get().unwrap());
    assert!(pool.try_get().is_none());
    drop(first);
    let third = pool.try_get().unwrap();
    drop((second, third));
    assert_eq!(counts(&pool), (2, 2));
}

#[test]
fn get_timeout() {
    let pool = as_in_r2d2(1).connection_timeout(Duration::from_millis(20)).build(Manager::with(1)).unwrap();
    let held = pool.get_timeout(testing::patience()).unwrap();
    let begun = Instant::now();
    assert!(pool.get().is_err());
    assert!(begun.elapsed() >= Duration::from_millis(20));
    thread::scope(|scope| {
        let waits = scope.spawn(|| pool.get_timeout(testing::patience()).is_ok());
        testing::wait_until("it waits", || pool.state().waiting == 1);
        drop(held);
        assert!(waits.join().unwrap());
    });
}

#[test]
fn what_is_sent_and_shared() {
    fn is_send_sync<T: Send + Sync>() {}
    fn is_debug<T: std::fmt::Debug>() {}
    is_send_sync::<Pool<Manager>>();
    is_send_sync::<PooledConnection<Manager>>();
    is_debug::<Pool<Manager>>();
    is_debug::<Builder<Manager>>();
    is_debug::<PooledConnection<Manager>>();
    is_debug::<State>();
}

/// r2d2's issue 2.
#[test]
fn unlocked_during_is_valid() {
    struct Blocks(Barrier, Barrier, AtomicBool);
    impl ManageConnection for Blocks {
        type Connection = ();
        type Error = Blammo;
        fn connect(&self) -> Result<(), Blammo> {
            Ok(())
        }
        fn is_valid(&self, (): &mut ()) -> Result<(), Blammo> {
            if !self.2.swap(true, SeqCst) {
                self.0.wait();
                self.1.wait();
            }
            Ok(())
        }
        fn has_broken(&self, (): &mut ()) -> bool {
            false
        }
    }
    let manager = Blocks(Barrier::new(2), Barrier::new(2), AtomicBool::new(false));
    let pool = Builder::new().max_size(2).min_idle(Some(2)).test_after(Duration::ZERO).build(manager).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| drop(pool.get().unwrap()));
        pool.manager().0.wait();
        drop(pool.get().unwrap());
        pool.manager().1.wait();
    });
}

#[test]
fn drop_on_broken() {
    let manager = Manager { is_broken: true, ..Manager::with(1) };
    let pool = Pool::new(manager.clone()).unwrap();
    drop(pool.get().unwrap());
    assert_eq!(manager.dropped(), 1);
}

/// Told at once, and with its source; `{:#}` shows both.
#[test]
fn initialization_failure() {
    let error = Builder::new().min_idle(Some(1)).build(Manager::with(0)).unwrap_err();
    assert!(format!("{error:#}").contains("blammo"));
    let pool = Builder::new().min_idle(Some(1)).build_unchecked(Manager::with(0));
    assert!(format!("{:#}", pool.get().unwrap_err()).contains("blammo"));
}

#[test]
fn connection_customizer() {
    #[derive(Debug, Default)]
    struct Customizer(AtomicU32, Arc<AtomicU32>);
    impl CustomizeConnection<Conn, Blammo> for Customizer {
        fn on_acquire(&self, conn: &mut Conn) -> Result<(), Blammo> {
            conn.0 = self.0.fetch_add(1, SeqCst);
            if conn.0 == 0 { Err(Blammo) } else { Ok(()) }
        }
        fn on_release(&self, _: Conn) {
            self.1.fetch_add(1, SeqCst);
        }
    }
    let manager = Manager { is_broken: true, ..Manager::with(9) };
    let customizer = Customizer::default();
    let released = Arc::clone(&customizer.1);
    let pool = as_in_r2d2(1).min_idle(None).connection_customizer(Box::new(customizer)).build(manager.clone()).unwrap();
    let conn = pool.get().unwrap();
    assert_eq!(
        (conn.0, released.load(SeqCst), manager.dropped()),
        (1, 0, 1),
        "the first was refused, and is tried again"
    );
    drop(conn);
    assert_eq!((released.load(SeqCst), manager.dropped()), (1, 2));
}

/// Five are opened, four of them come back, and a minute goes by: what r2d2's thread does every thirty seconds. Then the fifth.
fn a_minute_later(builder: Builder<Manager>, then: impl FnOnce(&Pool<Manager>, &Manager)) {
    clean_process(|| {
        let manager = Manager::with(5);
        let pool = builder.max_size(5).build(manager.clone()).unwrap();
        let mut all: Vec<_> = (0..5).map(|_| pool.get().unwrap()).collect();
        let lent = all.pop().unwrap();
        drop(all);
        advance_clock(Duration::from_secs(61));
        pool.maintain();
        assert_eq!(manager.dropped(), 4);
        drop(lent);
        assert_eq!(manager.dropped(), 4);
        then(&pool, &manager);
    });
}

#[test]
fn idle_timeout() {
    a_minute_later(Builder::new().idle_timeout(Some(Duration::from_secs(60))), |_, _| {});
}

#[test]
fn max_lifetime() {
    a_minute_later(Builder::new().max_lifetime(Some(Duration::from_secs(60))), |pool, manager| {
        pool.maintain();
        assert_eq!(manager.dropped(), 5);
        assert!(pool.get().is_err());
    });
}

#[test]
fn min_idle() {
    let pool = Builder::new().max_size(5).min_idle(Some(2)).build(Manager::with(9)).unwrap();
    assert_eq!(counts(&pool), (2, 2));
    let held: Vec<_> = (0..3).map(|_| pool.get().unwrap()).collect();
    pool.maintain();
    assert_eq!(counts(&pool), (5, 2));
    drop(held);
    assert_eq!(counts(&pool), (5, 5));
}

#[test]
fn conns_drop_on_pool_drop() {
    let manager = Manager::with(10);
    drop(as_in_r2d2(10).build(manager.clone()).unwrap());
    assert_eq!(manager.dropped(), 10);
}

#[derive(Debug)]
enum Event {
    Acquire(AcquireEvent),
    Release(ReleaseEvent),
    Checkout(CheckoutEvent),
    Checkin(CheckinEvent),
    Timeout(TimeoutEvent),
}

#[derive(Debug, Clone, Default)]
struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl HandleEvent for Events {
    fn handle_acquire(&self, event: AcquireEvent) {
        self.push(Event::Acquire(event));
    }
    fn handle_release(&self, event: ReleaseEvent) {
        self.push(Event::Release(event));
    }
    fn handle_checkout(&self, event: CheckoutEvent) {
        self.push(Event::Checkout(event));
    }
    fn handle_timeout(&self, event: TimeoutEvent) {
        self.push(Event::Timeout(event));
    }
    fn handle_checkin(&self, event: CheckinEvent) {
        self.push(Event::Checkin(event));
    }
}

#[test]
fn events() {
    let events = Events::default();
    let manager = Manager { is_broken: true, ..Manager::with(2) };
    let created = Instant::now();
    let pool = Builder::new().max_size(1).event_handler(Box::new(events.clone())).build(manager).unwrap();
    let begun = Instant::now();
    let conn = pool.get().unwrap();
    let checkout = begun.elapsed();
    assert!(pool.get_timeout(Duration::from_millis(12)).is_err());
    drop(conn);
    let (checkin, release) = (begun.elapsed(), created.elapsed());
    let _again = pool.get().unwrap();

    let events = std::mem::take(&mut *events.0.lock().unwrap());
    let [
        Event::Acquire(first),
        Event::Checkout(lent),
        Event::Timeout(timeout),
        Event::Checkin(returned),
        Event::Release(closed),
        Event::Acquire(second),
        Event::Checkout(again),
    ] = &events[..]
    else {
        panic!("{events:?}")
    };
    let id = first.connection_id();
    assert_eq!([lent.connection_id(), returned.connection_id(), closed.connection_id()], [id; 3]);
    assert!(id < second.connection_id() && second.connection_id() == again.connection_id());
    assert!(lent.duration() <= checkout && returned.duration() <= checkin && closed.age() <= release);
    assert_eq!(timeout.timeout(), Duration::from_millis(12));
}

#[test]
fn extensions() {
    let pool = as_in_r2d2(2).build(Manager::with(2)).unwrap();
    let (mut first, mut second) = (pool.get().unwrap(), pool.get().unwrap());
    PooledConnection::extensions_mut(&mut first).insert(1);
    PooledConnection::extensions_mut(&mut second).insert(2);
    drop(first);
    let conn = pool.get().unwrap();
    assert_eq!(PooledConnection::extensions(&conn).get::<i32>(), Some(&1));
}

#[test]
fn getters() {
    let pool = Builder::new()
        .max_size(7)
        .min_idle(Some(0))
        .test_on_check_out(false)
        .max_lifetime(None)
        .idle_timeout(Some(Duration::from_secs(5)))
        .connection_timeout(Duration::from_secs(3))
        .build_unchecked(Manager::with(0));
    assert_eq!((pool.max_size(), pool.min_idle(), pool.test_on_check_out()), (7, Some(0), false));
    assert_eq!(pool.max_lifetime(), None);
    assert_eq!(pool.idle_timeout(), Some(Duration::from_secs(5)));
    assert_eq!(pool.connection_timeout(), Duration::from_secs(3));
}

#[test]
#[allow(deprecated, reason = "that is how the compiler tells r2d2's users")]
fn a_thread_pool_is_accepted() {
    let threads = Arc::new("a scheduled thread pool");
    let pool = Builder::new().thread_pool(Arc::clone(&threads)).build(Manager::with(1)).unwrap();
    assert!(pool.get().is_ok());
    assert_eq!(Arc::strong_count(&threads), 1, "and let go");
}
