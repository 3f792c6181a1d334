//! What errors and unread bytes say of a PostgreSQL connection, and what a test makes of an error.

use crate::churn::sockets_to;
use crate::kit;
use forksafe::postgres::{self as pg, PostgresManager};
use forksafe::testing::{self, PrivatePostgres, clean_process};
use forksafe::{Deadline, Error, Fault, ManageConnection, Pool, Unread};
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, Config, NoTls};
use std::error::Error as StdError;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::RawFd;
use std::thread;
use std::time::{Duration, Instant};

type Manager = PostgresManager<NoTls>;

fn manager_of(config: Config) -> Manager {
    PostgresManager::new(config, NoTls)
}

fn pool_of(manager: Manager) -> Pool<Manager> {
    kit::tested().max_size(1).build(manager).unwrap()
}

fn session(client: &mut Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)
}

fn why(error: &Error) -> &pg::Error {
    error.source().and_then(|source| source.downcast_ref()).unwrap_or_else(|| panic!("of another kind: {error:?}"))
}

#[test]
fn errors_of_a_holder_are_told_apart_by_their_code() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let manager = manager_of(server.config());
        let mut client = server.config().connect(NoTls).unwrap();
        client.batch_execute("CREATE TABLE t (email text UNIQUE); INSERT INTO t VALUES ('a')").unwrap();
        for (query, fault) in [
            ("INSERT INTO t VALUES ('a')", Fault::Harmless),
            ("SELECT 1/0", Fault::Harmless),
            ("a word", Fault::Harmless),
            ("SELECT * FROM nowhere", Fault::Harmless),
            ("SET statement_timeout = 10; SELECT pg_sleep(9)", Fault::Harmless),
            ("SET statement_timeout = 0; BEGIN; SELECT 1/0", Fault::Harmless),
            ("SELECT 1", Fault::Harmless), // In a failed transaction.
            ("ROLLBACK; SET TRANSACTION READ ONLY; INSERT INTO t VALUES ('b')", Fault::Server),
            ("EXECUTE nothing", Fault::Connection),
            ("DO $$ BEGIN RAISE USING ERRCODE = '08006'; END $$", Fault::Connection),
            ("DO $$ BEGIN RAISE USING ERRCODE = '57P02'; END $$", Fault::Server),
            ("DO $$ BEGIN RAISE USING ERRCODE = '40001'; END $$", Fault::Harmless),
            ("SELECT pg_terminate_backend(pg_backend_pid())", Fault::Connection),
            ("", Fault::Connection), // Closed.
        ] {
            let error = client.batch_execute(query).unwrap_err();
            assert_eq!(manager.classify(&error), fault, "{query}: {error:?}");
            let ours = pg::Error::from(error);
            assert_eq!(manager.classify(&ours), fault, "{query}: {ours:?}");
            let wrapped = std::io::Error::other(ours);
            assert_eq!(manager.classify(&wrapped), fault, "{query}: {wrapped:?}");
        }
        let error = Config::new().user("x").connect(NoTls).map(drop).unwrap_err();
        assert_eq!(manager.classify(&error), Fault::Caller, "there is no host: {error:?}");
        assert_eq!(manager.classify(&pg::Error::InsideRuntime), Fault::Caller);
        let mut client = server.config().connect(NoTls).unwrap();
        let error = client.query_one("SELECT 1 WHERE false", &[]).unwrap_err();
        assert_eq!(manager.classify(&error), Fault::Unknown, "{error:?}");
        let error = client.query_one("SELECT 1", &[]).unwrap().try_get::<_, String>(0).unwrap_err();
        assert_eq!(manager.classify(&error), Fault::Unknown, "{error:?}");
        let file = std::fs::File::open("/nowhere").unwrap_err();
        assert_eq!(manager.classify(&file), Fault::Unknown, "a file of the holder's own");
        // The driver's writer wraps the driver's error.
        client.batch_execute("CREATE TEMP TABLE n (n int)").unwrap();
        let mut copy = client.copy_in("COPY n FROM STDIN").unwrap();
        copy.write_all(b"no number\n").unwrap();
        let error = copy.finish().unwrap_err();
        assert_eq!(manager.classify(&error), Fault::Harmless, "{error:?}");
        // The driver has no other word for these.
        let pid = session(&mut client) as u32;
        kit::kill(pid, libc::SIGSTOP);
        let error = client.is_valid(Duration::from_millis(50)).unwrap_err();
        kit::kill(pid, libc::SIGCONT);
        assert_eq!(manager.classify(&error), Fault::Connection, "{error:?}");
    });
}

/// Reads what a client says first, and answers with an error.
pub(crate) fn refuses(severity: &'static str, code: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let fields = format!("S{severity}\0V{severity}\0C{code}\0Mgo away\0\0");
            let length = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
            let _ = stream.write_all(&[b"E", &length[..], fields.as_bytes()].concat());
        }
    });
    port
}

#[test]
fn a_refused_connect_says_whether_to_wait_to_go_elsewhere_or_to_give_up() {
    clean_process(|| {
        let server =
            PrivatePostgres::start_with(&["-c", "max_connections=4", "-c", "superuser_reserved_connections=1"]);
        let real = server.port().unwrap();
        let config = |ports: &str| -> Config {
            let hosts = ports.replace(|c: char| c.is_ascii_digit(), "").replace(',', "127.0.0.1,") + "127.0.0.1";
            format!("host={hosts} port={ports} user=postgres").parse().unwrap()
        };
        for (code, fault, goes_on) in [
            ("57P03", Fault::Server, true),
            ("53300", Fault::NoRoom, true),
            ("28P01", Fault::Connection, false),
            ("3D000", Fault::Connection, false),
            ("28000", Fault::Connection, false),
        ] {
            let port = refuses("FATAL", code);
            let begin = Instant::now();
            let pool = pool_of(manager_of(config(&port.to_string())));
            let error = pool.get_timeout(Duration::from_secs(10)).map(drop).unwrap_err();
            assert!(begin.elapsed() < Duration::from_secs(5), "{code}: {:?}", begin.elapsed());
            assert_eq!(pool.manager().classify(&error), fault, "{code}: {error:?}");
            let two = pool_of(manager_of(config(&format!("{port},{real}"))));
            let got = two.get_timeout(Duration::from_secs(10)).map(drop);
            assert_eq!(got.is_ok(), goes_on, "{code}: {got:?}");
            // One that has no room will have some: that is what the pool has to know, and not that the other is away.
            let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let two = manager_of(config(&format!("{port},{nobody}")));
            let error = pool_of(two.clone()).get_timeout(Duration::from_secs(10)).map(drop).unwrap_err();
            if code == "53300" {
                assert_eq!(two.classify(&error), Fault::NoRoom, "{error:?}");
            }
        }
        let mut admin = server.config().connect(NoTls).unwrap();
        admin.batch_execute("CREATE ROLE app LOGIN; CREATE ROLE one LOGIN CONNECTION LIMIT 0").unwrap();
        let of =
            |user: &str| manager_of(format!("host=127.0.0.1 port={real} dbname=postgres user={user}").parse().unwrap());
        let limited = pool_of(of("one"));
        let error = limited.get_timeout(Duration::from_secs(10)).map(drop).unwrap_err();
        assert_eq!(limited.manager().classify(&error), Fault::NoRoom, "{error:?}");
        // The rest is reserved.
        let mut held = Vec::new();
        while held.len() < 2 {
            held.extend(of("app").connect());
        }
        let full = pool_of(of("app"));
        let error = full.get_timeout(Duration::from_secs(10)).map(drop).unwrap_err();
        assert_eq!(full.manager().classify(&error), Fault::NoRoom, "{error:?}");
    });
}

fn peeked(fd: RawFd) -> Vec<u8> {
    let mut bytes = vec![0_u8; 1024];
    let until = Instant::now() + testing::patience();
    while Instant::now() < until {
        // SAFETY: the pointer and the length are those of a buffer of ours.
        let got =
            unsafe { libc::recv(fd, bytes.as_mut_ptr().cast(), bytes.len(), libc::MSG_PEEK | libc::MSG_DONTWAIT) };
        if got > 0 {
            bytes.truncate(got as usize);
            return bytes;
        }
        thread::yield_now();
    }
    panic!("nothing came")
}

#[test]
fn what_lies_unread_in_an_idle_connection_is_understood() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let manager = manager_of(server.config());
        let address = ([127, 0, 0, 1], server.port().unwrap()).into();
        let mut client = manager.connect().unwrap();
        let socket = sockets_to(address)[0];
        client.batch_execute("LISTEN news").unwrap();
        let here = session(&mut client);
        let mut admin = server.config().connect(NoTls).unwrap();
        admin.batch_execute("NOTIFY news, 'hello'; NOTIFY news, 'again'").unwrap();
        let bytes = peeked(socket);
        assert_eq!(manager.on_unread(&mut client, &bytes), Unread::Fine, "{bytes:?}");
        let news = client.notifications().timeout_iter(testing::patience()).next().unwrap().unwrap();
        assert_eq!(news.payload(), "hello");
        // A result of which the driver was told to read the beginning.
        let none: [i32; 0] = [];
        let mut rows = client.query_raw("SELECT repeat('x', 100) FROM generate_series(1, 100000)", none).unwrap();
        rows.next().unwrap().unwrap();
        drop(rows);
        let bytes = peeked(socket);
        assert_eq!(manager.on_unread(&mut client, &bytes), Unread::Test);
        assert_eq!(session(&mut client), here);
        admin.query_one("SELECT pg_terminate_backend($1)", &[&here]).unwrap();
        let bytes = peeked(socket);
        assert_eq!(manager.on_unread(&mut client, &bytes), Unread::Discard, "{bytes:?}");
        assert!(!manager.has_broken(&mut client), "the driver has not looked");
    });
}

/// The test and what it makes of an error: whether the same session is lent again.
#[test]
fn an_error_is_an_answer_unless_it_condemns() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let raise = |code: &str| {
            format!(
                "DO $$ BEGIN RAISE 'said' USING ERRCODE = '{code}', DETAIL = 'Key (email)=(ada@example.org)'; END $$"
            )
        };
        for (query, kept) in [
            ("SELECT 1".to_owned(), true),
            ("SELECT * FROM nowhere".to_owned(), true),
            (raise("42501"), true),
            (raise("57014"), true),
            (raise("53200"), true),
            (raise("25006"), false),
            (raise("08006"), false),
        ] {
            let manager = manager_of(server.config()).test_query(query.clone());
            let pool = pool_of(manager.clone());
            let first = session(&mut pool.get().unwrap());
            let again = session(&mut pool.get_timeout(Duration::from_secs(10)).unwrap());
            assert_eq!(again == first, kept, "{query}");
            let mut client = manager.connect().unwrap();
            let begin = Instant::now();
            if let Err(error) = manager.is_valid_within(&mut client, Deadline::after(Duration::from_secs(10))) {
                assert!(!kept && matches!(error, pg::Error::Refused { .. }), "{error:?}");
                let told = format!("{error} {error:?}");
                assert!(told.contains("said") && !told.contains("ada"), "{told}");
                assert_ne!(manager.classify(&error), Fault::Harmless);
            }
            drop(client);
            assert!(begin.elapsed() < Duration::from_secs(5));
        }
    });
}

#[test]
fn a_failed_transaction_that_a_test_comes_upon_is_rolled_back() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let pool = pool_of(manager_of(server.config()).test_query("SELECT 1"));
        let mut conn = pool.get().unwrap();
        let here = session(&mut conn);
        conn.batch_execute("BEGIN; SELECT 1/0").unwrap_err();
        drop(conn);
        assert_eq!(session(&mut pool.get().unwrap()), here, "the same session, made fit");
    });
}

#[test]
fn an_error_says_each_thing_once_and_no_password() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let port = server.port().unwrap();
        let text = format!("host=127.0.0.1 port={port} user=postgres password=s3cr3t dbname=nowhere");
        let pool = pool_of(manager_of(text.parse().unwrap()));
        let error = pool.get().map(drop).unwrap_err();
        let told = format!("{error:#}");
        assert_eq!(told.matches("does not exist").count(), 1, "{told}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{port}/nowhere")), "{error}");
        let mut texts = vec![told, format!("{error:?} {:?}", pool.manager())];
        let mut next: Option<&dyn StdError> = Some(&error);
        let mut lines: Vec<String> = Vec::new();
        while let Some(error) = next {
            lines.push(error.to_string());
            next = error.source();
        }
        for (n, line) in lines.iter().enumerate() {
            assert!(!lines[n + 1..].iter().any(|source| line.contains(source)), "{lines:?}");
        }
        texts.extend(lines);
        assert!(texts.iter().all(|text| !text.contains("s3cr3t")), "{texts:?}");
        let driver = matches!(why(&error), pg::Error::Driver(error) if error.code().is_some());
        assert!(driver, "{error:?}");
    });
}

#[test]
fn a_target_is_told_without_user_and_password() {
    let target = |text: &str| manager_of(text.parse().unwrap()).target();
    assert_eq!(target("host=a,/run/pg,b port=1,2,3 user=u password=s3cr3t dbname=d"), "a:1,/run/pg:2,b:3/d");
    assert_eq!(target("hostaddr=10.0.0.1,::1 user=u"), "10.0.0.1:5432,[::1]:5432");
    assert_eq!(target("postgresql://u:s3cr3t@db.example/d"), "db.example:5432/d");
}
