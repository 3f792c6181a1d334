//! `R2d2`: managers that were written for r2d2. The real ones are in `tests/drivers`.

use crate::churn::sockets_to;
use forksafe::fork::Descriptors;
use forksafe::r2d2::R2d2;
use forksafe::testing::{self, Tap, Witness, WitnessClient, clean_process};
use forksafe::{Deadline, Fault, ManageConnection, Pool};
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
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
}

impl Manager {
    fn of(server: SocketAddr) -> Self {
        Self { server, has_threads: false, connects: Arc::default() }
    }
}

impl r2d2::ManageConnection for Manager {
    type Connection = Client;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Client> {
        self.connects.fetch_add(1, SeqCst);
        let (end, ends): (_, Receiver<()>) = channel();
        let threads = self.has_threads.then(|| thread::spawn(move || while ends.recv().is_ok() {}));
        Ok(Client(WitnessClient::connect(self.server)?, threads.into_iter().collect(), Some(end)))
    }
    fn is_valid(&self, client: &mut Client) -> io::Result<()> {
        client.0.ask("valid?").map(drop)
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
