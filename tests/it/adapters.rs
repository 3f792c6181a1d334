//! `R2d2`: managers that were written for r2d2. The real ones are in `tests/drivers`.

use crate::churn::sockets_to;
use crate::kit::{self, deny};
use forksafe::fork::Descriptors;
use forksafe::r2d2::R2d2;
use forksafe::testing::{self, Tap, Witness, WitnessClient, clean_process};
use forksafe::{Attempt, Deadline, Fault, ManageConnection, Pool};
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A client of the witness, and threads that live as long as it.
struct Client(WitnessClient, Vec<thread::JoinHandle<()>>, Option<std::sync::mpsc::Sender<()>>);

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.2.take());
        self.1.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

struct Manager {
    server: SocketAddr,
    has_threads: bool,
    connects: Arc<AtomicU32>,
    /// Its connects leave a thread that takes its time to end.
    lingers: Arc<AtomicBool>,
    /// As a manager of this crate that is inside.
    publishes: bool,
    /// Its connects, if 1.
    panics: Arc<AtomicU32>,
    sets_timeout: bool,
}

impl Manager {
    fn of(server: SocketAddr) -> Self {
        Self {
            server,
            has_threads: false,
            connects: Arc::default(),
            lingers: Arc::default(),
            publishes: false,
            panics: Arc::default(),
            sets_timeout: false,
        }
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = Client;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Client> {
        self.connects.fetch_add(1, SeqCst);
        assert_ne!(self.panics.load(SeqCst), 1, "as a driver may");
        if self.lingers.load(SeqCst) {
            thread::spawn(|| thread::sleep(testing::patience()));
        }
        let (end, ends): (_, Receiver<()>) = channel();
        let threads = self.has_threads.then(|| thread::spawn(move || while ends.recv().is_ok() {}));
        let client = WitnessClient::connect(self.server)?;
        if let Some(at) = Attempt::current().filter(|_| self.publishes && self.connects.load(SeqCst) == 1) {
            at.own(Descriptors::of(client.stream()));
        }
        Ok(Client(client, threads.into_iter().collect(), Some(end)))
    }
    fn is_valid(&self, client: &mut Client) -> io::Result<()> {
        client.0.ask("valid?")?;
        if self.sets_timeout {
            let stream = client.0.stream().as_fd().try_clone_to_owned()?;
            TcpStream::from(stream).set_read_timeout(Some(Duration::from_secs(777)))?;
        }
        Ok(())
    }
    fn has_broken(&self, _: &mut Client) -> bool {
        false
    }
}

/// It is tried once; from then on its connections are made without.
#[test]
fn a_driver_that_cannot_be_observed_is_left_to_itself() {
    clean_process(|| {
        let witness = Witness::start();
        let manager = Manager { has_threads: true, ..Manager::of(witness.address()) };
        let connects = Arc::clone(&manager.connects);
        let pool = Pool::new(R2d2::new(manager)).unwrap();
        let mut all = Vec::new();
        for (known, connected) in [2, 3, 4].into_iter().enumerate() {
            all.push(pool.get().unwrap());
            assert_eq!((pool.state().unknown_descriptors, connects.load(SeqCst)), (known as u32 + 1, connected));
        }
        assert!(all.iter_mut().all(|client| client.0.ask("who").is_ok()));
        let own = testing::child(|| pool.get().unwrap().0.ask("who").unwrap().connection).join();
        assert!(own > 4, "{own}");
        assert!(all.iter_mut().all(|client| client.0.ask("who").is_ok()));
        let manager = Manager { has_threads: true, ..Manager::of(witness.address()) };
        let strict = Pool::builder().require_known_descriptors(true).build(R2d2::new(manager)).unwrap();
        assert!(strict.get().unwrap_err().is_unprotected());
        drop(all);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

#[test]
fn a_driver_that_shows_its_descriptor_is_asked() {
    clean_process(|| {
        let witness = Witness::start();
        let manager = R2d2::new(Manager::of(witness.address()));
        let pool =
            Pool::new(manager.descriptors_by(|client| Descriptors::of_raw(client.0.stream().as_raw_fd()))).unwrap();
        let _lent = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 0);
        assert_eq!(testing::child(|| sockets_to(witness.address()).len()).join(), 0);
    });
}

/// By one with threads, which must not keep another from it that has none; and not for one connect that went wrong.
#[test]
fn each_process_sees_for_itself_whether_a_driver_can_be_observed() {
    clean_process(|| {
        let witness = Witness::start();
        let denied = Pool::new(R2d2::new(Manager::of(witness.address()))).unwrap();
        deny(libc::SYS_unshare, None, libc::EPERM);
        deny(libc::SYS_close_range, Some((2, libc::CLOSE_RANGE_UNSHARE)), libc::EPERM);
        let _lent = denied.get().unwrap();
        assert_eq!(denied.state().unknown_descriptors, 1);
        assert_eq!(
            testing::child(|| {
                let _own = denied.get().unwrap();
                denied.state().unknown_descriptors
            })
            .join(),
            0
        );
        let strict = Pool::builder().require_known_descriptors(true).build(R2d2::new(Manager::of(witness.address())));
        let strict = strict.unwrap();
        for _ in 0..2 {
            let refused = strict.get().unwrap_err();
            assert!(refused.is_unprotected() && refused.to_string().contains("table of its own"), "{refused}");
        }
    });
}

#[test]
fn a_driver_that_has_been_observed_is_observed_again_after_one_failure() {
    clean_process(|| {
        let witness = Witness::start();
        let is_slow = Arc::new(AtomicBool::new(false));
        let manager = Manager { lingers: Arc::clone(&is_slow), ..Manager::of(witness.address()) };
        let pool = Pool::new(R2d2::new(manager)).unwrap();
        let _known = pool.get().unwrap();
        is_slow.store(true, SeqCst);
        let _unknown = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 1);
        is_slow.store(false, SeqCst);
        let _known = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 1);
    });
}

/// What a manager inside had published is gone with the client that was not kept: it must not count for the one that was made without.
#[test]
fn a_connection_that_is_made_unobserved_is_unknown_whatever_was_published_before() {
    clean_process(|| {
        let witness = Witness::start();
        let manager = Manager { has_threads: true, publishes: true, ..Manager::of(witness.address()) };
        let pool = Pool::new(R2d2::new(manager)).unwrap();
        let _lent = pool.get().unwrap();
        assert_eq!(pool.state().unknown_descriptors, 1);
    });
}

/// Its settings may be what makes a child lose what it writes: it is not even opened.
#[test]
fn a_child_that_has_inherited_files_opens_none() {
    clean_process(|| {
        let witness = Witness::start();
        let manager = Manager::of(witness.address());
        let connects = Arc::clone(&manager.connects);
        let pool = Pool::new(Arc::new(R2d2::new(manager).in_files())).unwrap();
        let lent = pool.get().unwrap();
        let opens = || {
            let refused = pool.get().err();
            assert!(
                refused.as_ref().is_none_or(|error| error.is_unprotected() && error.to_string().contains("disconnect"))
            );
            (refused.is_none(), connects.load(SeqCst))
        };
        assert_eq!(testing::child(opens).join(), (false, 1));
        assert_eq!(testing::child(|| testing::child(opens).join()).join(), (false, 1));
        drop(lent);
        pool.disconnect();
        assert_eq!(testing::child(opens).join(), (true, 2));
    });
}

/// The child of a goodbye comes back into it, and counts nothing down: what its parent had open then it has inherited.
#[test]
fn files_that_are_closed_by_a_fork_or_a_panic_are_counted_once() {
    clean_process(|| {
        let witness = Witness::start();
        let fails = Arc::new(AtomicU32::new(0));
        let does = Arc::clone(&fails);
        let manager = R2d2::new(Manager { panics: Arc::clone(&fails), ..Manager::of(witness.address()) }).in_files();
        let pool = Pool::new(manager.goodbye_by(move |client, _| {
            drop(client);
            match does.load(SeqCst) {
                2 => panic!("as a driver may"),
                3 => {
                    let child = kit::fork();
                    FORKED.store(child.unwrap_or(0), SeqCst);
                    IN_CHILD.store(child.is_none(), SeqCst);
                }
                _ => {}
            }
        }))
        .unwrap();
        let panics = |what, call: &dyn Fn()| {
            fails.store(what, SeqCst);
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err());
            fails.store(0, SeqCst);
        };
        panics(1, &|| drop(pool.get()));
        drop(pool.get().unwrap());
        panics(2, &|| pool.disconnect());
        assert!(testing::child(|| pool.get().is_ok()).join(), "a panic has left one counted");
        drop(pool.get().unwrap());
        fails.store(3, SeqCst);
        pool.disconnect();
        if IN_CHILD.load(SeqCst) {
            kit::leave(|| {
                fails.store(0, SeqCst);
                assert!(pool.get().unwrap_err().is_unprotected(), "its parent's was open");
            });
        }
        assert_eq!(kit::exit_code(FORKED.load(SeqCst)), 0);
        fails.store(0, SeqCst);
        assert!(testing::child(|| pool.get().is_ok()).join());
    });
}

static FORKED: AtomicI32 = AtomicI32::new(0);
static IN_CHILD: AtomicBool = AtomicBool::new(false);

mod sqlite_to_pg {
    /// Of a crate that has something to do with a database in files.
    pub(super) struct PgManager(pub(super) super::Manager);
}

mod other {
    pub(super) struct SqliteManager(pub(super) super::Manager);
}

macro_rules! delegates {
    ($($manager:ty),*) => {$(
        impl r2d2::ManageConnection for $manager {
            type Connection = Client;
            type Error = io::Error;

            fn connect(&self) -> io::Result<Client> {
                self.0.connect()
            }
            fn is_valid(&self, client: &mut Client) -> io::Result<()> {
                self.0.is_valid(client)
            }
            fn has_broken(&self, client: &mut Client) -> bool {
                self.0.has_broken(client)
            }
        }
    )*};
}

delegates!(sqlite_to_pg::PgManager, other::SqliteManager);

/// Only what its user has said of it makes it known.
#[test]
fn of_a_database_in_files_its_name_is_a_guess() {
    clean_process(|| {
        let witness = Witness::start();
        let manager = || Manager::of(witness.address());
        let observed = Pool::new(R2d2::new(sqlite_to_pg::PgManager(manager()))).unwrap();
        let _lent = observed.get().unwrap();
        assert_eq!(observed.state().unknown_descriptors, 0);
        assert_eq!(testing::child(|| sockets_to(witness.address()).len()).join(), 0);
        let guessed = Pool::new(R2d2::new(other::SqliteManager(manager()))).unwrap();
        let _lent = guessed.get().unwrap();
        assert_eq!(guessed.state().unknown_descriptors, 1);
        assert!(testing::child(|| guessed.get().is_err_and(|error| error.is_unprotected())).join());
        let strict = Pool::builder().require_known_descriptors(true);
        let strict = strict.build(R2d2::new(other::SqliteManager(manager()))).unwrap();
        let refused = strict.get().unwrap_err();
        assert!(refused.is_unprotected() && refused.to_string().contains("in_files"), "{refused}");
        let said = Pool::new(R2d2::new(other::SqliteManager(manager())).in_files()).unwrap();
        let _lent = said.get().unwrap();
        assert_eq!(said.state().unknown_descriptors, 0);
    });
}

/// What a test has done to its socket stays as it is.
#[test]
fn timeouts_that_a_test_sets_itself_are_not_put_back() {
    clean_process(|| {
        let witness = Witness::start();
        let manager = R2d2::new(Manager { sets_timeout: true, ..Manager::of(witness.address()) });
        let pool = Pool::builder().test_after(Duration::ZERO).build(manager).unwrap();
        drop(pool.get().unwrap());
        let tested = pool.get().unwrap();
        assert_eq!(read_timeout(&tested), Some(Duration::from_secs(777)));
    });
}

#[test]
fn of_a_connection_in_files_nothing_is_closed() {
    clean_process(|| {
        let witness = Witness::start();
        let pool = Pool::new(R2d2::new(Manager::of(witness.address())).in_files()).unwrap();
        drop(pool.get().unwrap());
        assert_eq!(pool.state().unknown_descriptors, 0);
        assert_eq!(testing::child(|| sockets_to(witness.address()).len()).join(), 1);
    });
}

fn read_timeout(client: &Client) -> Option<Duration> {
    TcpStream::from(client.0.stream().as_fd().try_clone_to_owned().unwrap()).read_timeout().unwrap()
}

/// The witness's client waits longer than that for an answer.
#[test]
fn a_test_ends_at_its_deadline_and_leaves_the_socket_as_it_was() {
    clean_process(|| {
        let witness = Witness::start();
        let tap = Tap::before(witness.address());
        let testing::Address::Tcp(address) = *tap.address() else { panic!("{tap:?}") };
        let manager = R2d2::new(Manager::of(address));
        let pool = Pool::builder().test_after(Duration::ZERO).build(manager).unwrap();
        let first = pool.get().unwrap();
        let timeout = read_timeout(&first);
        assert_eq!(timeout, Some(testing::patience() / 2));
        drop(first);
        let again = pool.get().unwrap();
        assert_eq!(read_timeout(&again), timeout);
        drop(again);
        tap.freeze();
        let begin = Instant::now();
        let fresh = pool.get().unwrap();
        assert!(begin.elapsed() < testing::patience() / 4, "took {:?}", begin.elapsed());
        drop(fresh);
    });
}

#[test]
fn what_its_user_says_of_goodbyes_and_errors_is_heard() {
    clean_process(|| {
        let witness = Witness::start();
        let said = Arc::new(AtomicU32::new(0));
        let says = Arc::clone(&said);
        let manager = R2d2::new(Manager::of(witness.address()))
            .goodbye_by(move |client, _: Deadline| {
                says.fetch_add(1, SeqCst);
                drop(client);
            })
            .classify_by(|_| Fault::NoRoom);
        let error = io::Error::other("full");
        assert_eq!(manager.classify(&error as &(dyn Error + 'static)), Fault::NoRoom);
        assert_eq!(manager.inner().server, witness.address());
        let pool = Pool::new(manager).unwrap();
        drop(pool.get().unwrap());
        pool.close();
        assert_eq!(said.load(SeqCst), 1);
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}
