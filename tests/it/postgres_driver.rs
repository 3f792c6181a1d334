//! What is particular to the PostgreSQL driver: a runtime of its own, hidden descriptors, words at the end.

use crate::kit::{self, StopOnDrop, exit_code, is_same_file, leave};
use crate::servers::Server;
use forksafe::postgres::{self as pg, OnReturn, PostgresManager};
use forksafe::testing::{self, Outcome, PrivatePostgres, clean_process};
use forksafe::{Error, Pool, PooledConnection, fork};
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Config, GenericClient, NoTls, Socket, tls::MakeTlsConnect};
use std::collections::BTreeMap;
use std::error::Error as _;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

type Manager = PostgresManager<NoTls>;

fn pool_of(config: Config) -> Pool<Manager> {
    kit::tested().build(PostgresManager::new(config, NoTls)).unwrap()
}

/// A number that was never asked for, and its answer.
fn answers(client: &mut Client) -> Result<(), postgres::Error> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = (std::process::id() as i32 % 10_000) * 10_000 + NEXT.fetch_add(1, SeqCst) as i32;
    assert_eq!(client.query_one("SELECT $1::int", &[&number])?.get::<_, i32>(0), number, "a wrong answer");
    Ok(())
}

fn session(client: &mut Client) -> u64 {
    PrivatePostgres::ask(client)
}

/// The error of a get within `timeout`; generous, but far from the next thing that could end it.
#[track_caller]
fn fails_within(pool: &Pool<Manager>, timeout: Duration) -> Error {
    let begin = Instant::now();
    let error = pool.get_timeout(timeout).map(drop).unwrap_err();
    let took = begin.elapsed();
    assert!(took < timeout + Duration::from_secs(2), "{took:?} for a timeout of {timeout:?}: {error}");
    error
}

fn why(error: &Error) -> &pg::Error {
    error.source().and_then(|source| source.downcast_ref()).unwrap_or_else(|| panic!("of another kind: {error:?}"))
}

fn open_descriptors() -> BTreeMap<RawFd, String> {
    let all = testing::descriptors(std::process::id());
    // What the look itself has open.
    all.into_iter().filter(|(_, name)| !name.starts_with("/proc/")).collect()
}

/// All that a client is made of.
fn of_clients() -> BTreeMap<RawFd, String> {
    let is = |name: &str| {
        ["socket:", "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/memfd:forksafe"]
            .iter()
            .any(|kind| name.starts_with(kind))
    };
    open_descriptors().into_iter().filter(|(_, name)| is(name)).collect()
}

#[test]
fn every_kind_of_address_works_and_is_protected() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let (port, unix) = (server.port().unwrap(), server.unix_config().unwrap());
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let tcp = |text: &str| format!("user=postgres {text}").parse::<Config>().unwrap();
        for (name, config) in [
            ("an address", tcp(&format!("host=127.0.0.1 port={port}"))),
            ("a name", tcp(&format!("host=localhost port={port}"))),
            ("a name, TLS if there is any", tcp(&format!("host=localhost port={port} sslmode=prefer"))),
            ("a unix socket", unix),
            ("hostaddr", tcp(&format!("hostaddr=127.0.0.1 port={port}"))),
            ("host and hostaddr", tcp(&format!("host=no-such-host.invalid hostaddr=127.0.0.1 port={port}"))),
            ("the second of two", tcp(&format!("host=127.0.0.1,localhost port={nobody},{port}"))),
            ("a name that is unknown before", tcp(&format!("host=no-such-host.invalid,localhost port={port}"))),
            ("the second of two addresses", tcp(&format!("hostaddr=127.0.0.1,127.0.0.1 port={nobody},{port}"))),
            ("any of three", tcp(&format!("host=localhost,127.0.0.1,localhost port={port} load_balance_hosts=random"))),
            ("one that may be written to", tcp(&format!("host=localhost port={port} target_session_attrs=read-write"))),
            ("a url", format!("postgresql://postgres@localhost:{port}/postgres").parse().unwrap()),
        ] {
            let pool = pool_of(config);
            let mut conn = pool.get().unwrap_or_else(|error| panic!("{name}: {error}"));
            let here = session(&mut conn);
            let mut held = Some(conn);
            let there = testing::child(|| {
                drop(held.take());
                session(&mut pool.get().unwrap())
            });
            assert_ne!(there.join(), here, "{name}");
            assert_eq!(session(held.as_mut().unwrap()), here, "{name}");
        }
    });
}

/// The driver tries the hosts in their order, each with all its addresses; and so do we.
#[test]
fn hosts_are_tried_in_the_order_of_the_configuration() {
    clean_process(|| {
        let servers = [PrivatePostgres::start_with(&[]), PrivatePostgres::start()];
        let ports = servers.each_ref().map(|server| server.port().unwrap());
        let text = format!("user=postgres host=localhost,127.0.0.1 port={},{}", ports[0], ports[1]);
        let port_of = |pool: &Pool<Manager>| {
            let row = pool.get().unwrap().query_one("SELECT inet_server_port()", &[]).unwrap();
            row.get::<_, i32>(0) as u16
        };
        assert_eq!(port_of(&pool_of(text.parse().unwrap())), ports[0]);
        // Each worker of a server is a copy of its parent: their choices must differ all the same.
        let pool = pool_of(format!("{text} load_balance_hosts=random").parse().unwrap());
        let chosen: Vec<u16> = (0..24).map(|_| testing::child(|| port_of(&pool)).join()).collect();
        assert!(ports.iter().all(|port| chosen.contains(port)), "{chosen:?}");
    });
}

/// Found among others that come and go, by threads that connect at the same time.
#[test]
fn the_descriptors_are_found_exactly() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let noise =
                            (TcpStream::connect(("127.0.0.1", server.port().unwrap())), File::open("/dev/null"));
                        drop(noise);
                    }
                });
            }
            let connecting: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let pool = server.pool();
                        for _ in 0..50 {
                            let mut conn = pool.get().unwrap();
                            answers(&mut conn).unwrap();
                            PooledConnection::discard(conn);
                        }
                    })
                })
                .collect();
            for thread in connecting {
                thread.join().unwrap();
            }
        });
    });
}

/// Every socket, epoll and eventfd of the parent's clients is closed in the child, or is the child's own.
#[test]
fn nothing_that_a_client_is_made_of_is_shared() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool_of(3);
        let mut held = [pool.get().unwrap(), pool.get().unwrap()];
        drop(pool.get().unwrap());
        let (parent, here) = (std::process::id(), of_clients());
        assert_eq!(here.len(), 12, "a socket, an epoll under two numbers and an eventfd each: {here:?}");
        let child = testing::child(|| {
            let there = of_clients();
            let shared: Vec<_> =
                there.keys().filter(|fd| here.contains_key(fd) && is_same_file(parent, **fd)).collect();
            assert!(shared.is_empty(), "{shared:?} of {there:?}");
            // And so it is for a child of the child, whose parent's loops are its own. (No loop watches its eventfds.)
            let parent = std::process::id();
            let mut there = there;
            there.retain(|_, name| !name.contains("eventfd") && !name.contains("memfd"));
            let shared: Vec<RawFd> =
                testing::child(|| there.keys().copied().filter(|fd| is_same_file(parent, *fd)).collect()).join();
            assert!(shared.is_empty(), "{shared:?} of {there:?} in a grandchild");
            of_clients().len()
        });
        assert_eq!(child.join(), 8 + 1, "the lent ones' numbers stay taken; of the idle one's only the eventfd's");
        held.iter_mut().for_each(|conn| answers(conn).unwrap());
    });
}

/// What a child may do to the client that it has in hand. It is not the child's, and it is in the middle of something.
fn do_the_worst(client: &mut Client) {
    assert!(client.batch_execute("ROLLBACK").is_err());
    assert!(client.query("SELECT 1", &[]).is_err());
    assert!(client.is_closed());
    assert!(client.is_valid(Duration::from_secs(10)).is_err());
    assert!(client.transaction().is_err());
}

static CHILD: AtomicI32 = AtomicI32::new(0);

/// Row 18 and 19: the fork comes inside a notice callback, so the child is in the middle of the parent's query, and goes on.
#[test]
fn a_fork_inside_a_notice_callback_leaves_the_query_to_the_parent() {
    fn forks(way: fn() -> Option<i32>) {
        let server = PrivatePostgres::start_with(&[]);
        for config in [server.config(), server.unix_config().unwrap()] {
            let mut config = config;
            config.notice_callback(move |_| match way() {
                Some(child) => CHILD.store(child, SeqCst),
                None => {
                    CHILD.store(0, SeqCst);
                    fork::enter();
                }
            });
            let pool = pool_of(config);
            let mut held = pool.get().unwrap();
            let here = session(&mut held);
            let query = "DO $$ BEGIN RAISE NOTICE 'now'; PERFORM pg_sleep(0.3); END $$";
            let ended = match PooledConnection::try_as_mut(&mut held) {
                Ok(client) => client.batch_execute(query),
                Err(error) => panic!("{error}"),
            };
            if PooledConnection::is_inherited(&held) {
                leave(|| {
                    assert!(ended.is_err(), "the query is the parent's");
                    assert_ne!(session(&mut pool.get().unwrap()), here);
                });
            }
            ended.unwrap();
            assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
            assert_eq!(session(&mut held), here);
            answers(&mut held).unwrap();
        }
    }
    clean_process(|| {
        forks(kit::fork);
        forks(kit::raw_fork);
    });
}

/// Row 17 and 19: an iterator in the middle of its rows.
#[test]
fn rows_that_the_parent_is_reading_are_not_the_childs() {
    const ROWS: i32 = 200_000;
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool();
        let mut held = pool.get().unwrap();
        let rows = "SELECT n, repeat('x', 100) FROM generate_series(1, 200000) n";
        let none: [i32; 0] = [];
        let mut iterator = Some(held.query_raw(rows, none.iter()).unwrap());
        assert_eq!(iterator.as_mut().unwrap().next().unwrap().unwrap().get::<_, i32>(0), 1);
        for _ in 0..20 {
            let child = testing::child(|| {
                // Some rows are in memory already.
                let (mut read, mut iterator) = (0, iterator.take().unwrap());
                loop {
                    match iterator.next() {
                        Ok(Some(_)) => read += 1,
                        Ok(None) => panic!("all of them"),
                        Err(_) => break,
                    }
                }
                drop(iterator);
                read < ROWS - 1
            });
            assert!(child.join());
        }
        let (mut expected, mut iterator) = (2, iterator.take().unwrap());
        while let Some(row) = iterator.next().unwrap() {
            assert_eq!(row.get::<_, i32>(0), expected);
            expected += 1;
        }
        assert_eq!(expected, ROWS + 1);
    });
}

/// Row 17: what a child does to a transaction that it inherited is nobody's business but its own.
#[test]
fn an_open_transaction_survives_two_hundred_children_that_do_their_worst() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool();
        pool.get().unwrap().batch_execute("CREATE TABLE held (n int)").unwrap();
        let mut held = pool.get().unwrap();
        let statement = held.prepare("INSERT INTO held VALUES ($1)").unwrap();
        let mut transaction = Some(held.transaction().unwrap());
        let mut statement = Some(statement);
        for n in 0..200 {
            transaction.as_mut().unwrap().execute(statement.as_ref().unwrap(), &[&n]).unwrap();
            let child = testing::child(|| {
                let mut inherited = transaction.take().unwrap();
                match n % 8 {
                    0 => drop(inherited),
                    1 => assert!(inherited.commit().is_err()),
                    2 => assert!(inherited.rollback().is_err()),
                    3 => assert!(inherited.execute("DELETE FROM held", &[]).is_err()),
                    4 => assert!(inherited.transaction().is_err()),
                    5 => assert!(inherited.execute(statement.as_ref().unwrap(), &[&1000]).is_err()),
                    6 => {
                        drop(statement.take());
                        std::mem::forget(inherited);
                    }
                    _ => panic!("through the transaction"),
                }
                // And it works with its own.
                pool.get().unwrap().query_one("SELECT count(*) FROM held", &[]).unwrap().get::<_, i64>(0)
            });
            match child.outcome() {
                Outcome::Returned(0) => {}
                Outcome::Panicked { message, .. } if n % 8 == 7 => assert_eq!(message, "through the transaction"),
                other => panic!("child {n}: {other:?}"),
            }
        }
        transaction.take().unwrap().commit().unwrap();
        let rows = pool.get().unwrap().query_one("SELECT count(*), sum(n) FROM held", &[]).unwrap();
        assert_eq!((rows.get::<_, i64>(0), rows.get::<_, i64>(1)), (200, 199 * 200 / 2));
    });
}

/// What was borrowed as the client itself.
#[test]
fn a_borrowed_client_finds_a_dead_socket() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        for config in [server.config(), server.unix_config().unwrap()] {
            let pool = pool_of(config);
            let mut held = pool.get().unwrap();
            let here = session(&mut held);
            let client: &mut Client = &mut held;
            for _ in 0..10 {
                testing::child(|| do_the_worst(client)).join();
            }
            assert_eq!(session(client), here);
        }
    });
}

/// Row 17: a subscription.
#[test]
fn notifications_go_on_reaching_the_parent() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool();
        let mut held = pool.get().unwrap();
        let listening: &mut Client = &mut held;
        listening.batch_execute("LISTEN news").unwrap();
        for n in 0..20 {
            let child = testing::child(|| {
                assert!(listening.batch_execute("UNLISTEN *").is_err(), "the child speaks for its parent");
                let client: &mut Client = &mut pool.get().unwrap();
                client.execute("SELECT pg_notify('news', $1)", &[&n.to_string()]).map(drop).unwrap();
            });
            child.join();
            let news = listening.notifications().timeout_iter(testing::patience()).next().unwrap().unwrap();
            assert_eq!(news.payload(), n.to_string());
        }
    });
}

/// Guards where the driver's own traits are asked for.
#[test]
fn guards_serve_wherever_a_client_does() {
    fn names(client: &mut impl GenericClient) -> Vec<String> {
        client.query("SELECT name FROM people ORDER BY name", &[]).unwrap().iter().map(|row| row.get(0)).collect()
    }
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool();
        let mut conn = pool.get().unwrap();
        conn.batch_execute("CREATE TABLE people (name text)").unwrap();
        let mut copy = conn.copy_in("COPY people FROM STDIN").unwrap();
        copy.write_all(b"ada\ngrace\n").unwrap();
        assert_eq!(copy.finish().unwrap(), 2);
        assert_eq!(names(&mut *conn), ["ada", "grace"]);
        let mut transaction = conn.transaction().unwrap();
        transaction.execute("INSERT INTO people VALUES ('edsger')", &[]).unwrap();
        assert_eq!(names(&mut transaction).len(), 3);
        drop(transaction);
        assert_eq!(names(&mut *conn).len(), 2, "rolled back");
        let mut out = String::new();
        conn.copy_out("COPY people TO STDOUT").unwrap().read_to_string(&mut out).unwrap();
        assert_eq!(out, "ada\ngrace\n");
    });
}

/// A fork inside the one callback of the user's that a connect has.
#[derive(Clone)]
struct ForksOnce;

impl MakeTlsConnect<Socket> for ForksOnce {
    type Stream = <NoTls as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = <NoTls as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = <NoTls as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
        if CHILD.load(SeqCst) == 0 {
            CHILD.store(-1, SeqCst);
            CHILD.store(kit::fork().unwrap_or(-1), SeqCst);
        }
        MakeTlsConnect::<Socket>::make_tls_connect(&mut NoTls, domain)
    }
}

/// Row 6 and 18.
#[test]
fn a_child_that_was_forked_during_a_connect_starts_over() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = kit::tested().build(PostgresManager::new(server.config(), ForksOnce)).unwrap();
        let parent = std::process::id();
        let mut conn = pool.get().unwrap();
        let here = session(&mut conn);
        answers(&mut conn).unwrap();
        if std::process::id() != parent {
            leave(|| assert_eq!(of_clients().len(), 4, "its own: the driver gave up the parent's"));
        }
        assert_eq!(exit_code(CHILD.load(SeqCst)), 0);
        assert_eq!(session(&mut conn), here);
    });
}

/// Accepts, and then each connection is `serve`d on a thread of its own.
fn fake(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Pool<Manager> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, serve) = (stream.unwrap(), std::sync::Arc::clone(&serve));
            thread::spawn(move || serve(stream));
        }
    });
    pool_of(format!("host=127.0.0.1 port={port} user=nobody password=secret").parse().unwrap())
}

/// Row 25: servers that never come to the point.
#[test]
fn a_server_that_never_lets_one_in_is_given_up_in_time() {
    clean_process(|| {
        let silent = || fake(|mut stream| while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {});
        let dripping = |bytes: &'static [u8]| {
            fake(move |mut stream| {
                let _ = stream.read(&mut [0; 1024]);
                // A length of 2 GB, and what comes of it.
                for byte in bytes.iter().chain(std::iter::repeat(&b'a')) {
                    if stream.write_all(&[*byte]).is_err() {
                        return;
                    }
                    thread::sleep(Duration::from_millis(50));
                }
            })
        };
        for (name, pool) in [
            ("silent", silent()),
            ("dripping", dripping(b"R\x7f\xff\xff\xff")),
            ("chatty", dripping(b"NNNNNN")),
            ("half-authenticated", dripping(b"R\0\0\0\x08\0\0\0\0S\0\0\x7f\xff")),
        ] {
            let before = open_descriptors().len();
            let error = fails_within(&pool, Duration::from_millis(500));
            assert!(error.is_connect(), "{name}: {error}");
            if name != "chatty" {
                assert!(matches!(why(&error), pg::Error::TimedOut(_)), "{name}: {error}");
            }
            assert_eq!(pool.state().connections, 0);
            assert!(open_descriptors().len() <= before + 1, "the server's side of it may still be open");
            testing::child(|| drop(fails_within(&pool, Duration::from_millis(500)))).join();
        }
    });
}

/// A deadline is for the connect. What comes later has its own.
#[test]
fn the_deadline_of_a_connect_does_not_end_the_connection() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool();
        let mut conn = pool.get_timeout(Duration::from_secs(1)).unwrap();
        conn.batch_execute("SELECT pg_sleep(1.5)").unwrap();
        answers(&mut conn).unwrap();
    });
}

/// Nor does that of a reset.
#[test]
fn the_deadline_of_a_reset_does_not_end_the_connection() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let manager = PostgresManager::new(server.config(), NoTls).on_return(OnReturn::RollBack);
        let pool = kit::tested().max_size(1).connection_timeout(Duration::from_secs(1)).build(manager).unwrap();
        let here = session(&mut pool.get().unwrap());
        let mut conn = pool.get().unwrap();
        conn.batch_execute("SELECT pg_sleep(1.5)").unwrap();
        assert_eq!(session(&mut conn), here);
    });
}

/// The user's own limit for TCP counts, too.
#[test]
fn the_connect_timeout_of_the_configuration_is_heeded() {
    clean_process(|| {
        // A queue that is full: what is said to it is never answered.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) }, 0);
        let address = listener.local_addr().unwrap();
        let mut fill = Vec::new();
        while let Ok(one) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            fill.push(one);
        }
        let pool = pool_of(format!("host=127.0.0.1 port={} user=x connect_timeout=1", address.port()).parse().unwrap());
        let begin = Instant::now();
        let error = pool.get_timeout(Duration::from_secs(30)).map(drop).unwrap_err();
        assert!(error.is_connect() && begin.elapsed() < Duration::from_secs(10), "{:?}: {error}", begin.elapsed());
    });
}

/// A server that stops in the middle of everything.
struct Stopped(u32);

impl Stopped {
    fn the_backend_of(client: &mut Client) -> Self {
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get::<_, i32>(0) as u32;
        kit::kill(pid, libc::SIGSTOP);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kit::kill(self.0, libc::SIGCONT);
    }
}

#[test]
fn a_session_that_falls_silent_fails_its_test_in_time() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let builder = server.builder().max_size(1).test_timeout(Duration::from_secs(1));
        let pool = builder.build(server.manager()).unwrap();
        let stopped = Stopped::the_backend_of(&mut pool.get().unwrap());
        let begin = Instant::now();
        answers(&mut pool.get().unwrap()).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(8), "one second for the test: {:?}", begin.elapsed());
        drop(stopped);
    });
}

#[test]
fn a_reset_that_is_not_answered_is_given_up_in_time() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let manager = PostgresManager::new(server.config(), NoTls).on_return(OnReturn::RollBack);
        let pool = kit::tested().connection_timeout(Duration::from_secs(2)).build(manager).unwrap();
        let mut conn = pool.get().unwrap();
        let stopped = Stopped::the_backend_of(&mut conn);
        let begin = Instant::now();
        drop(conn);
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        assert_eq!(pool.state().connections, 0, "and it is discarded");
        drop(stopped);
    });
}

#[test]
fn what_the_server_refuses_is_told_at_once_and_leaves_nothing() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let before = open_descriptors();
        for (text, code) in [
            ("user=nobody-of-this-name", postgres::error::SqlState::INVALID_AUTHORIZATION_SPECIFICATION),
            ("user=postgres dbname=no-such-database", postgres::error::SqlState::INVALID_CATALOG_NAME),
        ] {
            let pool = pool_of(format!("host=localhost port={} {text}", server.port().unwrap()).parse().unwrap());
            for _ in 0..3 {
                let error = fails_within(&pool, Duration::from_secs(10));
                assert!(error.is_connect(), "{error}");
                assert!(format!("{error:#}").contains("does not exist"), "{error:#}");
                match why(&error) {
                    pg::Error::Driver(error) => assert_eq!(error.code(), Some(&code)),
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(pool.state().connections, 0);
        }
        assert_eq!(open_descriptors(), before);
        assert_eq!(server.open(), Vec::<u64>::new());
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let refused = pool_of(format!("host=127.0.0.1 port={nobody} user=x").parse().unwrap());
        let error = fails_within(&refused, Duration::from_secs(10));
        assert!(error.is_connect() && format!("{error:#}").contains("refused"), "{error:#}");
        let unknown = pool_of("host=no-such-host.invalid user=x".parse().unwrap()).get().unwrap_err();
        assert!(matches!(why(&unknown), pg::Error::LookUp { host, .. } if host == "no-such-host.invalid"), "{unknown}");
        let encrypted = format!("host=localhost port={} user=postgres sslmode=require", server.port().unwrap());
        let error = pool_of(encrypted.parse().unwrap()).get().unwrap_err();
        assert!(error.is_connect() && format!("{error:#}").contains("TLS"), "{error:#}");
    });
}

#[test]
fn a_wrong_password_is_told_at_once_and_the_right_one_serves_children_too() {
    clean_process(|| {
        let rules = std::env::temp_dir().join(format!("forksafe-hba-{}", std::process::id()));
        std::fs::write(&rules, "local all all trust\nhost all all all scram-sha-256\n").unwrap();
        let server = PrivatePostgres::start_with(&["-c", &format!("hba_file={}", rules.display())]);
        let mut admin = server.unix_config().unwrap().connect(NoTls).unwrap();
        admin.batch_execute("CREATE ROLE app LOGIN PASSWORD 'right'").unwrap();
        let with = |password: &str| {
            let port = server.port().unwrap();
            pool_of(format!("host=localhost port={port} user=app dbname=postgres password={password}").parse().unwrap())
        };
        let error = fails_within(&with("wrong"), Duration::from_secs(10));
        match why(&error) {
            pg::Error::Driver(error) => assert_eq!(error.code(), Some(&postgres::error::SqlState::INVALID_PASSWORD)),
            other => panic!("{other:?}"),
        }
        assert!(!format!("{error} {error:?}").contains("wrong"), "{error:?}");
        let pool = with("right");
        assert!(!format!("{:?}", pool.manager()).contains("right"), "{:?}", pool.manager());
        answers(&mut pool.get().unwrap()).unwrap();
        testing::child(|| answers(&mut pool.get().unwrap()).unwrap()).join();
        std::fs::remove_file(rules).unwrap();
    });
}

/// Row 24: the server is away between the fork and the first use, and comes back.
#[test]
fn a_server_that_is_away_at_first_is_an_error_in_time_and_then_works() {
    clean_process(|| {
        let mut server = PrivatePostgres::start_with(&["-c", "max_connections=50"]);
        let pool = kit::tested().build(PostgresManager::new(server.config(), NoTls)).unwrap();
        answers(&mut pool.get().unwrap()).unwrap();
        let (refused, back) = (kit::Door::new(), kit::Door::new());
        let child = testing::child(|| {
            back.pass();
            let error = fails_within(&pool, Duration::from_secs(5));
            refused.open();
            back.pass();
            answers(&mut pool.get().unwrap()).unwrap();
            (error.is_connect(), error.to_string())
        });
        server.kill();
        back.open();
        refused.pass();
        let error = fails_within(&pool, Duration::from_secs(5));
        assert!(error.is_connect(), "the idle one is found dead, and no other is to be had: {error}");
        server.restart();
        back.open();
        let (is_connect, message) = child.join();
        assert!(is_connect, "{message}");
        answers(&mut pool.get().unwrap()).unwrap();
    });
}

/// Row 22: at every number of descriptors that may be left, there is an error or a connection, and never a panic.
#[test]
fn a_full_descriptor_table_is_an_error_and_not_a_panic() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool();
        let here = session(&mut pool.get().unwrap());
        let full = || {
            let fresh = server.pool();
            let before = open_descriptors();
            let mut fill = Vec::new();
            while let Ok(more) = File::open("/dev/null") {
                fill.push(more);
            }
            let mut left = 0;
            loop {
                let got = fresh.get_timeout(Duration::from_secs(10));
                match got {
                    Ok(conn) => {
                        PooledConnection::discard(conn);
                        break;
                    }
                    Err(error) => {
                        assert!(error.is_connect(), "{error}");
                        assert!(matches!(why(&error), pg::Error::NoDescriptors(_)), "{left} left: {error:?}");
                    }
                }
                left += 1;
                fill.truncate(fill.len() - 1);
                assert!(left < 12);
            }
            drop(fill);
            assert_eq!(open_descriptors(), before);
            left
        };
        println!("it takes {} descriptors", full());
        testing::child(full).join();
        assert_eq!(session(&mut pool.get().unwrap()), here);
    });
}

/// Row 22: no room for a dead socket, an epoll or an eventfd of the child's own.
#[test]
fn a_full_table_does_not_keep_a_child_from_disowning() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool_of(3);
        let mut held = [pool.get().unwrap(), pool.get().unwrap()];
        drop(pool.get().unwrap());
        let (parent, here) = (std::process::id(), of_clients());
        for left in 0..3 {
            let mut fill = Vec::new();
            while let Ok(more) = File::open("/dev/null") {
                fill.push(more);
            }
            fill.truncate(fill.len() - left);
            let child = kit::fork().unwrap_or_else(|| {
                leave(|| {
                    // Not by way of /proc, for which there is no room.
                    let shared: Vec<_> = here.keys().filter(|fd| is_same_file(parent, **fd)).collect();
                    assert!(shared.is_empty(), "{shared:?}");
                    fill.clear();
                    let client: &mut Client = &mut pool.get().unwrap();
                    answers(client).unwrap();
                })
            });
            drop(fill);
            assert_eq!(exit_code(child), 0, "{left} left");
            held.iter_mut().for_each(|conn| answers(conn).unwrap());
        }
    });
}

/// Row 29.
#[test]
fn dozens_of_generations_do_not_fill_the_descriptor_table() {
    fn generation(depth: u32, server: &PrivatePostgres, guards: Vec<PooledConnection<Manager>>) -> usize {
        let pool = server.pool_of(2);
        let mut guards = guards;
        guards.push(pool.get().unwrap());
        drop(pool.get().unwrap());
        let open = of_clients().len();
        if depth == 0 { open } else { testing::child(|| generation(depth - 1, server, guards)).join() }
    }
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let after = [5, 30].map(|depth| generation(depth, &server, Vec::new()));
        // What is held stays taken, four numbers for each generation; and so does the eventfd of what was idle in the last two,
        // for the sake of statements that outlive it. The last generation has all of its own.
        assert_eq!(after, [5 * 4 + 2 + 8, 30 * 4 + 2 + 8]);
    });
}

/// Row 30, in part: nothing tells which socket it is, so there is no connection.
#[test]
fn without_proc_there_is_an_error_and_no_connection() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = server.pool();
        let error = testing::child(|| {
            kit::hide_proc();
            let error = pool.get().unwrap_err();
            (error.is_unprotected(), format!("{error:#}"), pool.state().connections)
        });
        let (unprotected, message, connections) = error.join();
        assert!(unprotected && message.contains("/proc/thread-self/fdinfo"), "{message}");
        assert_eq!(connections, 0);
        server.wait_until("the refused session has ended", |open| open.is_empty());
    });
}

/// A child knows the addresses that its parent found, and asks nobody. Looking up a name reads files, which are gone here.
#[test]
fn a_child_looks_no_name_up() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let config = format!("host=localhost port={} user=postgres", server.port().unwrap());
        let pool = pool_of(config.parse().unwrap());
        let child = testing::child(|| {
            // SAFETY: takes numbers and C strings.
            unsafe {
                let (none, private) = (c"none".as_ptr(), libc::MS_REC | libc::MS_PRIVATE);
                assert_eq!(libc::unshare(libc::CLONE_NEWNS), 0, "this test needs root");
                assert_eq!(libc::mount(none, c"/".as_ptr(), std::ptr::null(), private, std::ptr::null()), 0);
                assert_eq!(libc::mount(none, c"/etc".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null()), 0);
            }
            let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
            let mut conn = pool.get().unwrap();
            answers(&mut conn).unwrap();
            threads()
        });
        assert_eq!(child.join(), 1, "and the driver starts no thread for it");
    });
}

#[test]
fn inside_an_async_runtime_there_is_an_error_and_not_a_panic() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let (pool, used) = (server.pool(), server.pool());
        drop(used.get().unwrap());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let error = pool.get().unwrap_err();
            assert!(matches!(why(&error), pg::Error::InsideRuntime), "{error}");
            assert!(format!("{error:#}").contains("spawn_blocking"), "{error:#}");
            // An idle one cannot be tested here, and stays.
            let error = used.get_timeout(Duration::from_secs(2)).unwrap_err();
            assert!(matches!(why(&error), pg::Error::InsideRuntime), "{error}");
            assert_eq!(used.state().idle_connections, 1);
            // To close it takes waiting, too.
            used.close();
            let theirs = pool.clone();
            tokio::task::spawn_blocking(move || answers(&mut theirs.get().unwrap()).unwrap()).await.unwrap();
            pool.close();
        });
        server.wait_until("both are closed", |open| open.is_empty());
    });
}

/// The holder panicked, or the server has ended the session.
#[test]
fn a_connection_that_may_be_spoilt_is_not_lent_again() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool =
            kit::tested().test_on_check_out(false).max_size(1).build(PostgresManager::new(server.config(), NoTls));
        let pool = pool.unwrap();
        let first = session(&mut pool.get().unwrap());
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _conn = pool.get().unwrap();
            panic!("on purpose");
        }));
        assert!(panics.is_err());
        let mut conn = pool.get().unwrap();
        let second = session(&mut conn);
        assert_ne!(first, second);
        assert!(conn.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())").is_err());
        // That was the server's last word; the driver sees the end of the stream when it looks again.
        assert!(answers(&mut conn).is_err());
        drop(conn);
        assert_ne!(session(&mut pool.get().unwrap()), second);
    });
}

fn pool_with(server: &PrivatePostgres, on_return: OnReturn) -> Pool<Manager> {
    let manager = PostgresManager::new(server.config(), NoTls).on_return(on_return);
    kit::tested().max_size(1).build(manager).unwrap()
}

/// Whether the session is in a transaction: only then do two statements have the same start of it.
fn in_transaction(client: &mut Client) -> bool {
    let at = |client: &mut Client| client.query_one("SELECT now()", &[]).unwrap().get::<_, std::time::SystemTime>(0);
    at(client) == at(client)
}

#[test]
fn a_transaction_that_was_left_open_is_rolled_back_if_one_asks_for_it() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let plain = pool_with(&server, OnReturn::Nothing);
        plain.get().unwrap().batch_execute("BEGIN").unwrap();
        assert!(in_transaction(&mut plain.get().unwrap()), "the default is to leave it");
        for on_return in [OnReturn::RollBack, OnReturn::DiscardAll] {
            let pool = pool_with(&server, on_return);
            let here = session(&mut pool.get().unwrap());
            for left_open in ["BEGIN", "BEGIN; SELECT 1", "BEGIN; SAVEPOINT s", "START TRANSACTION READ ONLY"] {
                pool.get().unwrap().batch_execute(left_open).unwrap();
                assert!(!in_transaction(&mut pool.get().unwrap()), "{on_return:?}: {left_open}");
            }
            assert!(pool.get().unwrap().batch_execute("BEGIN; SELECT 1/0").is_err());
            let mut conn = pool.get().unwrap();
            assert!(!in_transaction(&mut conn), "{on_return:?}: a failed one");
            assert_eq!(session(&mut conn), here, "the same session, made fit");
        }
    });
}

/// A session that has nothing to roll back has nothing to complain about.
#[test]
fn a_reset_of_a_clean_session_leaves_no_word_in_the_log() {
    clean_process(|| {
        static NOTICES: AtomicU32 = AtomicU32::new(0);
        let server = PrivatePostgres::start_with(&[]);
        let mut config = server.config();
        config.notice_callback(|notice| {
            eprintln!("{notice}");
            NOTICES.fetch_add(1, SeqCst);
        });
        let manager = PostgresManager::new(config, NoTls).on_return(OnReturn::DiscardAll);
        let pool = kit::tested().build(manager).unwrap();
        for _ in 0..5 {
            answers(&mut pool.get().unwrap()).unwrap();
        }
        assert_eq!(NOTICES.load(SeqCst), 0);
        pool.get().unwrap().batch_execute("BEGIN").unwrap();
        assert_eq!(NOTICES.load(SeqCst), 1, "and one that has is told of");
    });
}

#[test]
fn a_session_that_discards_all_remembers_nothing_and_still_knows_its_types() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = pool_with(&server, OnReturn::DiscardAll);
        pool.get()
            .unwrap()
            .batch_execute("CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE hue AS ENUM ('red')")
            .unwrap();
        let here = session(&mut pool.get().unwrap());
        let mut conn = pool.get().unwrap();
        conn.batch_execute(
            "SET work_mem = '7MB'; CREATE TEMP TABLE mine (n int); LISTEN news; SELECT pg_advisory_lock(1)",
        )
        .unwrap();
        conn.batch_execute("CREATE ROLE other; SET ROLE other; RESET ROLE; SET SESSION AUTHORIZATION other").unwrap();
        // The driver prepares statements of its own for a type that it does not know.
        conn.query_one("SELECT 'sad'::mood", &[]).unwrap();
        drop(conn);
        let mut conn = pool.get().unwrap();
        assert_eq!(session(&mut conn), here);
        let asked = "SELECT current_setting('work_mem') <> '7MB' AND current_user = 'postgres' AND to_regclass('mine') IS NULL \
                     AND NOT EXISTS (SELECT FROM pg_listening_channels()) \
                     AND NOT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')";
        assert!(conn.query_one(asked, &[]).unwrap().get::<_, bool>(0));
        conn.query_one("SELECT 'red'::hue, 'happy'::mood", &[]).unwrap();
    });
}

/// Should this fail after an update of the driver, then discovery (`src/postgres/discovery.rs`) or disowning
/// (`src/fork/event_loop.rs`) rests on what is no longer so.
#[test]
fn the_driver_is_made_as_discovery_expects() {
    const CANARY: &str = "a version of postgres, tokio-postgres, tokio or mio (see `cargo tree`) has changed what \
                          forksafe relies on";
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let (before, parent) = (open_descriptors(), std::process::id());
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let threads_before = threads();
        let client = server.config().connect(NoTls).unwrap();
        let mut made = open_descriptors();
        made.retain(|fd, _| !before.contains_key(fd));
        let of =
            |kind: &str| made.iter().filter(|(_, name)| name.starts_with(kind)).map(|(fd, _)| *fd).collect::<Vec<_>>();
        let (epolls, wakers, sockets) = (of("anon_inode:[eventpoll]"), of("anon_inode:[eventfd]"), of("socket:"));
        let numbers = (made.len(), epolls.len(), wakers.len(), sockets.len());
        assert_eq!(numbers, (4, 2, 1, 1), "{CANARY}: a client is made of {made:?}");
        assert!(kit::are_same_file(parent, epolls[0], parent, epolls[1]), "{CANARY}: there are two epolls");
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epolls[0])).unwrap();
        let mut watched: Vec<RawFd> = info
            .lines()
            .filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok())
            .collect();
        watched.sort_unstable();
        let mut expected = [wakers[0], sockets[0]];
        expected.sort_unstable();
        assert_eq!(watched, expected, "{CANARY}: its epoll watches something else\n{info}");
        assert_eq!(threads(), threads_before, "{CANARY}: a client has threads");
        drop(client);
        assert_eq!(open_descriptors(), before, "{CANARY}: closing one leaves descriptors");
        let hook = CountsCalls(std::sync::Arc::default());
        let calls = std::sync::Arc::clone(&hook.0);
        drop(server.config().connect(hook).unwrap());
        assert_eq!(calls.load(SeqCst), 1, "{CANARY}: the connector is not asked once for each host");
    });
}

struct CountsCalls(std::sync::Arc<AtomicU32>);

impl MakeTlsConnect<Socket> for CountsCalls {
    type Stream = <NoTls as MakeTlsConnect<Socket>>::Stream;
    type TlsConnect = <NoTls as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = <NoTls as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
        self.0.fetch_add(1, SeqCst);
        MakeTlsConnect::<Socket>::make_tls_connect(&mut NoTls, domain)
    }
}
