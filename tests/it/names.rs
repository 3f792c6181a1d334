//! Names age: a host that moves to another server is followed, by its parent, its children and theirs (row 36).

use crate::kit::Door;
use forksafe::fork::Descriptors;
use forksafe::testing::{self, advance_clock, clean_process, patience};
use forksafe::{Attempt, Deadline, Dial, DialError, ManageConnection, Pool, Target};
use std::ffi::CString;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

const NAME: &str = "db.names.test";

/// This process's own `/etc/hosts`, and its children's.
struct Hosts(PathBuf);

impl Hosts {
    fn new(ip: &str) -> Self {
        let file = std::env::temp_dir().join(format!("forksafe-hosts-{}", std::process::id()));
        let hosts = Self(file);
        hosts.point_at(ip);
        let text = |path: &Path| CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: C strings of ours; the new namespace is this process's own.
        unsafe {
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "a mount namespace: {}", io::Error::last_os_error());
            let (nothing, private) = (std::ptr::null(), libc::MS_REC | libc::MS_PRIVATE);
            assert_eq!(libc::mount(nothing, c"/".as_ptr(), nothing, private, nothing.cast()), 0);
            let from = text(&hosts.0);
            assert_eq!(libc::mount(from.as_ptr(), c"/etc/hosts".as_ptr(), nothing, libc::MS_BIND, nothing.cast()), 0);
        }
        hosts
    }

    fn point_at(&self, ip: &str) {
        std::fs::write(&self.0, format!("127.0.0.1 localhost\n{ip} {NAME}\n")).unwrap();
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Says one letter to whoever connects.
fn server(address: &str, letter: u8) -> SocketAddr {
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(&[letter]);
            std::mem::forget(client);
        }
    });
    address
}

struct Letters(u16);

impl ManageConnection for Letters {
    type Connection = (TcpStream, char);
    type Error = io::Error;

    fn connect(&self) -> io::Result<Self::Connection> {
        unreachable!("connect_within is what is called")
    }
    fn connect_within(&self, at: &mut Attempt) -> io::Result<Self::Connection> {
        let open = |target: Target| {
            let mut stream = TcpStream::connect_timeout(&target.address, target.deadline.socket_timeout()?)?;
            at.own(Descriptors::of(&stream));
            stream.set_read_timeout(Some(target.deadline.socket_timeout()?))?;
            let mut letter = [0];
            stream.read_exact(&mut letter)?;
            Ok((stream, letter[0] as char))
        };
        let opened = at.dial(&self.hosts(), |target| open(target).map_err(Dial::Unreachable));
        opened.map_err(|error: DialError<io::Error>| match error {
            DialError::Connect(error) => error,
            other => io::Error::other(other.to_string()),
        })
    }
    fn is_valid(&self, _: &mut Self::Connection) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut Self::Connection) -> bool {
        false
    }
    fn hosts(&self) -> Vec<(String, u16)> {
        vec![(NAME.to_owned(), self.0)]
    }
}

fn letter(pool: &Pool<Letters>) -> char {
    pool.get().map(|conn| conn.1).unwrap_or_else(|error| panic!("{error:#}"))
}

fn pool_of(port: u16) -> Pool<Letters> {
    Pool::builder().max_size(2).connection_timeout(patience() / 2).build(Letters(port)).unwrap()
}

const LATER: Duration = Duration::from_secs(3600);

/// The old server still answers, so nothing but age says that the name has moved.
#[test]
fn a_name_that_moves_is_followed_within_its_age() {
    clean_process(|| {
        let hosts = Hosts::new("127.0.0.2");
        let port = server("127.0.0.2:0", b'A').port();
        server(&format!("127.0.0.3:{port}"), b'B');
        let pool = pool_of(port);
        assert_eq!(letter(&pool), 'A');
        let moves = Door::new();
        let child = testing::child(|| {
            let before = letter(&pool);
            moves.pass();
            advance_clock(Duration::from_secs(30));
            pool.disconnect();
            let young = letter(&pool);
            advance_clock(LATER); // The connection has expired, and what is known of the name is old.
            let after = letter(&pool);
            (before, young, after, testing::child(|| letter(&pool)).join())
        });
        hosts.point_at("127.0.0.3");
        moves.open();
        assert_eq!(
            child.join(),
            ('A', 'A', 'B', 'B'),
            "the child before, within the minute, after it; and its own child"
        );
        pool.disconnect();
        assert_eq!(letter(&pool), 'A', "what is known is not an hour old here");
        advance_clock(LATER);
        assert_eq!(letter(&pool), 'B', "the parent");
    });
}

/// Nobody answers at the old address: the packets are lost. The first get of parent and child finds the new one.
#[test]
fn a_name_whose_server_is_gone_is_looked_up_within_the_same_get() {
    clean_process(|| {
        let hosts = Hosts::new("127.0.0.2");
        // A full backlog: who connects waits.
        let gone = TcpListener::bind("127.0.0.2:0").unwrap();
        let port = gone.local_addr().unwrap().port();
        // SAFETY: takes numbers and no memory.
        unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&gone), 0) };
        let _fill: Vec<_> = (0..3)
            .map(|_| TcpStream::connect_timeout(&gone.local_addr().unwrap(), Duration::from_millis(100)))
            .collect();
        let pool = Pool::builder().connection_timeout(testing::patience() / 4).build(Letters(port)).unwrap();
        server(&format!("127.0.0.3:{port}"), b'B');
        hosts.point_at("127.0.0.3");
        assert_eq!(testing::child(|| letter(&pool)).join(), 'B');
        assert_eq!(letter(&pool), 'B');
        // And it is remembered which address failed.
        let begun = Instant::now();
        pool.disconnect();
        assert_eq!(letter(&pool), 'B');
        assert!(begun.elapsed() < testing::patience() / 10, "the dead address is not tried first again");
    });
}

/// Its manager does not list the name.
struct Unlisted(Letters);

impl ManageConnection for Unlisted {
    type Connection = (TcpStream, char);
    type Error = io::Error;

    fn connect(&self) -> io::Result<Self::Connection> {
        unreachable!("connect_within is what is called")
    }
    fn connect_within(&self, at: &mut Attempt) -> io::Result<Self::Connection> {
        self.0.connect_within(at)
    }
    fn is_valid(&self, _: &mut Self::Connection) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut Self::Connection) -> bool {
        false
    }
}

/// A name that is asked for without being listed ages like the others, and children inherit it.
#[test]
fn a_name_that_nobody_lists_is_known_and_ages() {
    clean_process(|| {
        let hosts = Hosts::new("127.0.0.2");
        let port = server("127.0.0.2:0", b'A').port();
        server(&format!("127.0.0.3:{port}"), b'B');
        let pool = Pool::builder().connection_timeout(patience() / 2).build(Unlisted(Letters(port))).unwrap();
        let letter = || pool.get().unwrap().1;
        assert_eq!(letter(), 'A');
        hosts.point_at("127.0.0.3");
        pool.disconnect();
        assert_eq!((testing::child(letter).join(), letter()), ('A', 'A'), "it is known");
        advance_clock(LATER);
        assert_eq!((testing::child(letter).join(), letter()), ('B', 'B'), "it is old");
    });
}

type Outcome = fn(io::Error) -> Dial<io::Error>;

/// Is told no, or cannot reach anybody; and says where it was.
struct Nowhere {
    outcome: Outcome,
    tried: Mutex<Vec<String>>,
}

impl ManageConnection for Nowhere {
    type Connection = ();
    type Error = io::Error;

    fn connect(&self) -> io::Result<()> {
        unreachable!("connect_within is what is called")
    }
    fn connect_within(&self, at: &mut Attempt) -> io::Result<()> {
        let opened = at.dial(&self.hosts(), |target| {
            self.tried.lock().unwrap().push(target.address.ip().to_string());
            Err((self.outcome)(io::Error::other("no")))
        });
        opened.map_err(|error: DialError<io::Error>| io::Error::other(error.to_string()))
    }
    fn is_valid(&self, _: &mut ()) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut ()) -> bool {
        false
    }
    fn hosts(&self) -> Vec<(String, u16)> {
        vec![(NAME.to_owned(), 1)]
    }
}

/// A connect that fails for another reason (a wrong password) is no reason to look the name up.
#[test]
fn only_an_address_that_cannot_be_reached_is_doubted() {
    clean_process(|| {
        let known = "127.0.0.2";
        let outcomes: [(Outcome, &[&str]); 2] =
            [(Dial::Failed, &[known, known]), (Dial::Unreachable, &[known, "127.0.0.9"])];
        let hosts = Hosts::new(known);
        for (outcome, expected) in outcomes {
            hosts.point_at(known);
            let pool = Pool::new(Nowhere { outcome, tried: Mutex::default() }).unwrap();
            hosts.point_at("127.0.0.9");
            while pool.manager().tried.lock().unwrap().len() < 2 {
                assert!(pool.get().is_err_and(|error| error.is_connect()));
            }
            assert_eq!(*pool.manager().tried.lock().unwrap(), expected);
        }
    });
}

/// Such a child has lost its socket, which says nothing of the address. It starts over with its own `get`.
#[test]
fn a_child_that_is_forked_while_somebody_dials_dials_no_further() {
    clean_process(|| {
        let at = Attempt::new(Deadline::after(patience()));
        let hosts = ["127.0.0.2", "127.0.0.3"].map(|host| (host.to_owned(), 1));
        let (mut tried, mut child) = (0, 0);
        let dialled = at.dial(&hosts, |_| {
            tried += 1;
            if tried == 1 {
                // SAFETY: there is no other thread but the harness's, and the child only counts.
                child = unsafe { libc::fork() };
            }
            Err::<(), _>(Dial::Unreachable(io::Error::other("nobody")))
        });
        assert!(dialled.is_err());
        if child == 0 {
            // SAFETY: ends the child, with what it counted.
            unsafe { libc::_exit(tried) };
        }
        let mut status = 0;
        // SAFETY: the child is ours, and `status` takes how it ended.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((tried, libc::WEXITSTATUS(status)), (2, 1));
    });
}

/// Connects with nobody, to the second of two hosts if the first is silent.
#[derive(Default)]
struct TwoHosts {
    silent: AtomicBool,
    tried: Mutex<Vec<usize>>,
}

impl ManageConnection for TwoHosts {
    type Connection = usize;
    type Error = io::Error;

    fn connect(&self) -> io::Result<usize> {
        unreachable!("connect_within is what is called")
    }
    fn connect_within(&self, at: &mut Attempt) -> io::Result<usize> {
        let hosts = ["127.0.0.2", "127.0.0.3"].map(|host| (host.to_owned(), 1));
        let opened = at.dial(&hosts, |target| {
            self.tried.lock().unwrap().push(target.host);
            if target.host == 0 && self.silent.load(SeqCst) {
                thread::sleep(target.deadline.remaining());
                return Err(Dial::Unreachable(io::ErrorKind::TimedOut.into()));
            }
            Ok(target.host)
        });
        opened.map_err(|error: DialError<io::Error>| io::Error::other(error))
    }
    fn is_valid(&self, _: &mut usize) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut usize) -> bool {
        false
    }
    fn descriptors(&self, _: &usize) -> Descriptors {
        Descriptors::none()
    }
}

/// An address that failed is tried last the next time; but not because somebody had hardly any time for it.
#[test]
fn an_address_that_somebody_had_no_time_for_has_not_failed() {
    clean_process(|| {
        let pool = Pool::builder().build(TwoHosts::default()).unwrap();
        let tried = |timeout, silent| {
            pool.manager().silent.store(silent, SeqCst);
            pool.manager().tried.lock().unwrap().clear();
            let _ = pool.get_timeout(timeout);
            pool.disconnect();
            pool.manager().tried.lock().unwrap().clone()
        };
        assert_eq!(tried(Duration::from_millis(200), true)[0], 0);
        assert_eq!(tried(patience(), false), [0], "it has not failed");
        assert_eq!(tried(Duration::from_secs(2), true), [0, 1]);
        assert_eq!(tried(patience(), false), [1], "it has failed");
    });
}

/// Who waits for ever waits no longer than that for the first of several.
#[test]
fn no_address_has_for_ever_while_there_are_others() {
    let hosts = [("127.0.0.2".to_owned(), 1), ("127.0.0.3".to_owned(), 1)];
    let mut shares = Vec::new();
    let at = Attempt::new(Deadline::never());
    let _ = at.dial(&hosts, |target| {
        shares.push(target.deadline.remaining());
        Err::<(), _>(Dial::Unreachable(()))
    });
    assert!(shares[0] <= Duration::from_secs(30) && shares[1] == Duration::MAX, "{shares:?}");
}

/// Several addresses, of which the first fails: it has its share of the time, and is tried last the next time.
#[test]
fn an_address_that_failed_is_tried_last() {
    clean_process(|| {
        let hosts = [("127.0.0.2".to_owned(), 1), ("127.0.0.3".to_owned(), 1)];
        let at = Attempt::new(Deadline::after(Duration::from_secs(8)));
        let mut shares = Vec::new();
        let reached = at.dial(&hosts, |target| {
            shares.push(target.deadline.remaining());
            if target.host == 0 { Err(Dial::Unreachable(io::Error::other("gone"))) } else { Ok(target.host) }
        });
        assert_eq!(reached.unwrap(), 1);
        assert!(shares[0] <= Duration::from_secs(4), "its share of the time: {shares:?}");
        assert!(shares[1] > Duration::from_secs(4), "and what the first has left: {shares:?}");
    });
}
