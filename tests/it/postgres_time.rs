//! Deadlines with PostgreSQL: hosts of all kinds that cannot be reached, sessions that fall silent, managers that wrap ours.

use crate::churn::sockets_to;
use crate::kit;
use forksafe::postgres::{self as pg, OnReturn, PostgresManager};
use forksafe::testing::{self, PrivatePostgres, clean_process};
use forksafe::{Deadline, ManageConnection, PooledConnection};
use postgres::{Client, Config, NoTls};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

type Manager = PostgresManager<NoTls>;

fn session(client: &mut Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)
}

/// A server whose queue is full: what is said to it is never answered.
fn unreachable() -> (TcpListener, Vec<TcpStream>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // SAFETY: takes numbers; the descriptor is ours.
    assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
    let address = listener.local_addr().unwrap();
    let mut fill = Vec::new();
    while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        fill.push(one);
    }
    (listener, fill, address)
}

/// Accepts and is silent.
fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn hosts_of_all_kinds_together_keep_the_deadline() {
    clean_process(|| {
        let (_listener, _fill, away) = unreachable();
        let (_silent, mute) = silent();
        let folder = std::env::temp_dir();
        let text = |hosts: &[&str], ports: &[u16]| {
            let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
            format!("host={} port={} user=x", hosts.join(","), ports.join(","))
        };
        let (a, m) = (away.port(), mute.port());
        let unix = folder.to_str().unwrap();
        let ten = vec!["127.0.0.1"; 10];
        let mut mixed = ten.clone();
        mixed.push(unix);
        for (name, text) in [
            ("ten that cannot be reached", text(&ten, &[a; 10])),
            ("ten and a unix socket", text(&mixed, &[a; 11])),
            ("silent ones and a unix socket", text(&[unix, "127.0.0.1", "127.0.0.1"], &[m, m, m])),
            ("a name and a unix socket", text(&["localhost", unix, "localhost"], &[a, a, m])),
            ("hostaddr", format!("hostaddr=127.0.0.1,127.0.0.1,127.0.0.1 port={a},{m},{a} user=x")),
        ] {
            let pool = kit::tested().build(Manager::new(text.parse().unwrap(), NoTls)).unwrap();
            let begin = Instant::now();
            let error = pool.get_timeout(Duration::from_secs(2)).map(drop).unwrap_err();
            let took = begin.elapsed();
            assert!(took < Duration::from_millis(3000), "{name}: {took:?} for 2 s: {error:#}");
        }
    });
}

/// The name of a host of a mixed configuration may have many addresses: each of them has its part.
#[test]
fn a_name_with_ten_addresses_beside_a_unix_socket_keeps_the_deadline() {
    clean_process(|| {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        // SAFETY: takes numbers; the descriptor is ours.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let port = listener.local_addr().unwrap().port();
        let mut fill = Vec::new();
        let local = SocketAddr::from(([127, 0, 0, 1], port));
        while let Ok(one) = TcpStream::connect_timeout(&local, Duration::from_millis(300)) {
            fill.push(one);
        }
        let names = std::env::temp_dir().join(format!("forksafe-names-{}", std::process::id()));
        let lines: Vec<String> = (1..=10).map(|n| format!("127.0.0.{n} ten.invalid\n")).collect();
        std::fs::write(&names, lines.concat()).unwrap();
        let path = std::ffi::CString::new(names.to_str().unwrap()).unwrap();
        // SAFETY: takes numbers and C strings.
        unsafe {
            let (none, private) = (c"none".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
            assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "this test needs root");
            assert_eq!(libc::mount(none, c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()), 0);
            let (hosts, bind) = (c"/etc/hosts".as_ptr(), libc::MS_BIND);
            assert_eq!(libc::mount(path.as_ptr(), hosts, std::ptr::null(), bind, std::ptr::null()), 0);
        }
        std::fs::remove_file(&names).unwrap();
        let folder = std::env::temp_dir();
        let text = format!("host=ten.invalid,{} port={port} user=x", folder.display());
        let pool = kit::tested().build(Manager::new(text.parse().unwrap(), NoTls)).unwrap();
        let begin = Instant::now();
        let error = pool.get_timeout(Duration::from_secs(2)).map(drop).unwrap_err();
        assert!(begin.elapsed() < Duration::from_millis(3500), "{:?} for 2 s: {error:#}", begin.elapsed());
        assert!(begin.elapsed() > Duration::from_millis(500), "not tried: {error:#}");
    });
}

#[test]
fn a_unix_socket_among_names_leaves_time_for_it() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let (_listener, _fill, away) = unreachable();
        let mut config: Config = format!("host=localhost port={} user=postgres", away.port()).parse().unwrap();
        let unix = server.unix_config().unwrap();
        let postgres::config::Host::Unix(folder) = &unix.get_hosts()[0] else { panic!("{unix:?}") };
        config.host_path(folder).port(server.port().unwrap());
        for load_balance in ["disable", "random"] {
            if load_balance == "random" {
                config.load_balance_hosts(postgres::config::LoadBalanceHosts::Random);
            }
            let pool = kit::tested().build(Manager::new(config.clone(), NoTls)).unwrap();
            session(&mut pool.get_timeout(Duration::from_secs(4)).unwrap());
        }
    });
}

struct Stopped(u32);

impl Stopped {
    fn the_backend_of(client: &mut Client) -> Self {
        let pid = session(client) as u32;
        kit::kill(pid, libc::SIGSTOP);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kit::kill(self.0, libc::SIGCONT);
    }
}

/// Also when nobody tells the manager which socket is the client's, and when the client was not made by it.
#[test]
fn a_silent_session_fails_its_test_within_the_time_that_is_given_and_ends_at_once() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        for query in [None, Some("SELECT 1")] {
            let manager = Manager::new(server.config(), NoTls);
            let manager = query.into_iter().fold(manager, |manager, query| manager.test_query(query));
            let pool = kit::tested().max_size(3).build(manager.clone()).unwrap();
            let (mut ours, mut replaced) = (pool.get().unwrap(), pool.get().unwrap());
            let mut theirs = server.config().connect(NoTls).unwrap();
            *replaced = server.config().connect(NoTls).unwrap();
            for client in [&mut *ours, &mut *replaced, &mut theirs] {
                let _stopped = Stopped::the_backend_of(client);
                let begin = Instant::now();
                let within = Duration::from_millis(200);
                let error = manager.is_valid_within(client, Deadline::after(within)).unwrap_err();
                assert!(begin.elapsed() < testing::patience() / 4, "{:?}: {error:?}", begin.elapsed());
                assert!(matches!(error, pg::Error::TimedOut(_)), "{error:?}");
                let begin = Instant::now();
                assert!(client.batch_execute("SELECT 1").is_err(), "its socket is shut down");
                assert!(begin.elapsed() < testing::patience() / 4, "{:?}", begin.elapsed());
            }
            let begin = Instant::now();
            drop(theirs);
            PooledConnection::discard(replaced);
            PooledConnection::discard(ours);
            assert!(begin.elapsed() < testing::patience() / 8, "{:?} for three goodbyes", begin.elapsed());
        }
    });
}

/// A test, a reset or a goodbye of one client sets nobody else's clock, whichever guards the clients are in.
#[test]
fn clients_that_were_swapped_keep_their_deadlines_apart() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let manager = Manager::new(server.config(), NoTls).on_return(OnReturn::RollBack);
        let pool = kit::tested().max_size(2).connection_timeout(Duration::from_millis(700)).build(manager).unwrap();
        let (mut one, mut two) = (pool.get().unwrap(), pool.get().unwrap());
        std::mem::swap(&mut *one, &mut *two);
        let stopped = Stopped::the_backend_of(&mut one);
        std::thread::scope(|scope| {
            let queries = scope.spawn(|| two.batch_execute("SELECT pg_sleep(1.5)"));
            // Its reset is not answered in time; its client is shut down, and nobody else's.
            let begin = Instant::now();
            drop(one);
            assert!(begin.elapsed() < Duration::from_millis(1400), "{:?}", begin.elapsed());
            let _ = queries.join().unwrap();
        });
        drop(stopped);
    });
}

/// Another's manager around ours, with the three methods that r2d2's had.
struct Wraps(Manager);

impl ManageConnection for Wraps {
    type Connection = Client;
    type Error = pg::Error;

    fn connect(&self) -> Result<Client, pg::Error> {
        self.0.connect()
    }
    fn is_valid(&self, conn: &mut Client) -> Result<(), pg::Error> {
        self.0.is_valid(conn)
    }
    fn has_broken(&self, conn: &mut Client) -> bool {
        self.0.has_broken(conn)
    }
}

#[test]
fn a_manager_that_wraps_ours_is_protected_and_keeps_its_deadlines() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let port = server.port().unwrap();
        let pool =
            |text: String| kit::tested().max_size(1).build(Wraps(Manager::new(text.parse().unwrap(), NoTls))).unwrap();
        let wrapped = pool(format!("host=localhost port={port} user=postgres"));
        let mut held = wrapped.get().unwrap();
        let here = session(&mut held);
        let inherited = [([127, 0, 0, 1], port).into(), SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port))];
        let inherited: Vec<_> = inherited.into_iter().flat_map(sockets_to).collect();
        assert_eq!(inherited.len(), 1);
        let parent = std::process::id();
        let there = testing::child(|| {
            assert!(!kit::is_same_file(parent, inherited[0]), "a live socket of the parent's");
            session(&mut wrapped.get().unwrap())
        });
        assert_ne!(there.join(), here);
        assert_eq!(session(&mut held), here);
        let stopped = Stopped::the_backend_of(&mut held);
        drop(held);
        let begin = Instant::now();
        let got = wrapped.get_timeout(Duration::from_secs(4)).map(|mut conn| session(&mut conn));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}: {got:?}", begin.elapsed());
        assert!(got.is_ok_and(|session| session != here));
        drop(stopped);
        let (_silent, mute) = silent();
        let begin = Instant::now();
        let never = pool(format!("host=127.0.0.1 port={} user=x", mute.port()));
        let error = never.get_timeout(Duration::from_millis(500)).map(drop).unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}: {error:#}", begin.elapsed());
    });
}
