//! PostgreSQL over TLS, with each of two TLS libraries: row 20, and the long run over every kind of connection.

use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, Outcome, PrivatePostgres, clean_process};
use forksafe::{Pool, PooledConnection};
use postgres::{Client, Config, NoTls};
use std::collections::BTreeSet;
use std::error::Error as _;
use std::fmt::Debug;
use std::io::Read;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(all(feature = "native-tls", not(feature = "rustls")))]
type Tls = postgres_native_tls::MakeTlsConnector;
#[cfg(feature = "rustls")]
type Tls = tokio_postgres_rustls::MakeRustlsConnect;
#[cfg(not(any(feature = "rustls", feature = "native-tls")))]
compile_error!("choose a TLS library: --features rustls or --features native-tls");

/// A PostgreSQL with a certificate that it signed itself, and what trusts it.
struct TlsPostgres {
    server: PrivatePostgres,
    certificate: rcgen::Certificate,
}

impl TlsPostgres {
    fn start() -> Self {
        let identity = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let server = PrivatePostgres::start_with_tls(&identity.cert.pem(), &identity.signing_key.serialize_pem());
        Self { server, certificate: identity.cert }
    }

    #[cfg(all(feature = "native-tls", not(feature = "rustls")))]
    fn tls(&self) -> Tls {
        let certificate = native_tls::Certificate::from_pem(self.certificate.pem().as_bytes()).unwrap();
        let connector = native_tls::TlsConnector::builder().add_root_certificate(certificate).build().unwrap();
        postgres_native_tls::MakeTlsConnector::new(connector)
    }

    #[cfg(feature = "rustls")]
    fn tls(&self) -> Tls {
        use rustls::{ClientConfig, RootCertStore, crypto::ring, version};
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
        let builder = builder.with_protocol_versions(&[&version::TLS13]).unwrap();
        Tls::new(builder.with_root_certificates(roots).with_no_client_auth())
    }

    fn config(&self, more: &str) -> Config {
        format!("user=postgres port={} {more}", self.server.port().unwrap()).parse().unwrap()
    }

    fn pool(&self, more: &str) -> Pool<PostgresManager<Tls>> {
        Pool::new(PostgresManager::new(self.config(more), self.tls())).unwrap()
    }

    /// The sessions that there are, but for the one that asks.
    fn sessions(&self) -> i64 {
        let question = "SELECT count(*) FROM pg_stat_activity \
                        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        self.server.config().connect(NoTls).unwrap().query_one(question, &[]).unwrap().get(0)
    }
}

/// Which session this is, and whether it is encrypted.
fn id(client: &mut Client) -> (i32, bool) {
    let row = client.query_one("SELECT pid, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).unwrap();
    (row.get(0), row.get(1))
}

/// A number that nobody else asks for, and its answer.
fn ask(client: &mut Client) -> Result<(), postgres::Error> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = i64::from(std::process::id()) << 32 | i64::from(NEXT.fetch_add(1, SeqCst));
    assert_eq!(client.query_one("SELECT $1::bigint", &[&number])?.get::<_, i64>(0), number, "a wrong answer");
    Ok(())
}

#[test]
fn every_sslmode_is_what_it_says_and_is_protected() {
    clean_process(|| {
        let postgres = TlsPostgres::start();
        for (mode, encrypted) in [("disable", false), ("prefer", true), ("require", true)] {
            let pool = postgres.pool(&format!("host=localhost sslmode={mode}"));
            let mut held = Some(pool.get().unwrap());
            let here = id(held.as_mut().unwrap());
            assert_eq!(here.1, encrypted, "{mode}");
            for _ in 0..3 {
                let there = testing::child(|| {
                    drop(held.take());
                    id(&mut pool.get().unwrap())
                });
                assert_ne!(there.join().0, here.0);
                assert_eq!(id(held.as_mut().unwrap()), here, "{mode}");
            }
        }
    });
}

/// The address comes from us; the name that the certificate is checked against is the one of the configuration.
#[test]
fn a_certificate_for_another_name_is_refused() {
    clean_process(|| {
        let postgres = TlsPostgres::start();
        let error = postgres.pool("host=127.0.0.1 sslmode=require").get().unwrap_err();
        assert!(error.is_connect(), "{error}");
        let told = format!("{error:#}").to_lowercase();
        assert!(told.contains("certificate") || told.contains("mismatch"), "{told}");
        let other = postgres.pool("host=localhost hostaddr=127.0.0.1 sslmode=require");
        assert!(id(&mut other.get().unwrap()).1);
    });
}

/// A TLS session is numbered record by record: one byte of another process's, a `close_notify` above all, would end it.
#[test]
fn what_was_borrowed_over_tls_says_nothing_in_a_child() {
    clean_process(|| {
        let postgres = TlsPostgres::start();
        let pool = postgres.pool("host=localhost sslmode=require");
        let mut held = pool.get().unwrap();
        let here = id(&mut held);
        held.batch_execute("CREATE TABLE t (n int)").unwrap();
        let mut transaction = Some(held.transaction().unwrap());
        transaction.as_mut().unwrap().execute("INSERT INTO t VALUES (1)", &[]).unwrap();
        for n in 0..20 {
            testing::child(|| {
                let mut inherited = transaction.take().unwrap();
                match n % 3 {
                    0 => drop(inherited),
                    1 => assert!(inherited.commit().is_err()),
                    _ => assert!(inherited.query("SELECT 1", &[]).is_err()),
                }
                pool.close();
            })
            .join();
        }
        transaction.unwrap().commit().unwrap();
        assert_eq!(id(&mut held), here);
        assert_eq!(held.query_one("SELECT count(*) FROM t", &[]).unwrap().get::<_, i64>(0), 1);
    });
}

#[test]
fn a_server_that_never_answers_the_handshake_is_an_error_in_time() {
    clean_process(|| {
        let postgres = TlsPostgres::start();
        // It agrees to TLS, and then has nothing to say.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 8]);
                let _ = std::io::Write::write_all(&mut stream, b"S");
                kept.push(stream);
            }
        });
        let config = format!("host=localhost port={port} user=postgres sslmode=require");
        let pool = Pool::new(PostgresManager::new(config.parse().unwrap(), postgres.tls())).unwrap();
        let fails_in_time = || {
            let begin = Instant::now();
            let error = pool.get_timeout(Duration::from_secs(1)).map(drop).unwrap_err();
            assert!(error.source().is_some_and(|why| why.to_string().contains("no answer in time")), "{error}");
            assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
        };
        fails_in_time();
        testing::child(fails_in_time).join();
    });
}

const FORKS: usize = 1500;

/// Threads of the parent query over tcp, unix and TLS at every moment of every fork. Each child uses what it inherited, and
/// then its own.
#[test]
fn fifteen_hundred_forks_of_a_parent_that_queries_over_tcp_unix_and_tls() {
    clean_process(|| {
        let postgres = TlsPostgres::start();
        let plain = |config: Config| Pool::new(PostgresManager::new(config, NoTls)).unwrap();
        let tcp = plain(postgres.config("host=localhost sslmode=disable"));
        let unix = plain(postgres.server.unix_config().unwrap());
        let tls = postgres.pool("host=localhost sslmode=require");

        let mut lent = (tcp.get().unwrap(), unix.get().unwrap(), tls.get().unwrap());
        let sessions =
            |lent: &mut (PooledConnection<_>, PooledConnection<_>, PooledConnection<PostgresManager<Tls>>)| {
                [id(&mut lent.0), id(&mut lent.1), id(&mut lent.2)]
            };
        let here = sessions(&mut lent);
        assert_eq!(here.map(|session| session.1), [false, false, true]);

        let (stop, asked) = (AtomicBool::new(false), AtomicU32::new(0));
        let hung = thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            queries(scope, &tcp, &stop, &asked);
            queries(scope, &unix, &stop, &asked);
            queries(scope, &tls, &stop, &asked);
            let mut borrowed: [&mut Client; 3] = [&mut lent.0, &mut lent.1, &mut lent.2];
            let mut hung = Vec::new();
            for n in 0..FORKS {
                let child = testing::child(|| {
                    assert!(ask(borrowed[n % 3]).is_err(), "a client of the parent's answered");
                    for _ in 0..3 {
                        match n % 3 {
                            0 => ask(&mut tcp.get().unwrap()).unwrap(),
                            1 => ask(&mut unix.get().unwrap()).unwrap(),
                            _ => ask(&mut tls.get().unwrap()).unwrap(),
                        }
                    }
                });
                match child.outcome() {
                    Outcome::Returned(()) => {}
                    Outcome::Hung { .. } if n % 3 == 2 => hung.push(n),
                    other => panic!("child {n}: {other:?}"),
                }
            }
            hung
        });
        println!("{FORKS} forks, {asked:?} answers in the parent, all right; hung in a TLS handshake: {hung:?}");
        // A handshake of OpenSSL that runs in another thread at the fork can hang the child: but nobody makes one here.
        assert!(hung.is_empty(), "{hung:?}");
        assert_eq!(sessions(&mut lent), here, "the parent has lost a session");
        drop((lent, tcp, unix, tls));
        let until = Instant::now() + testing::patience();
        while postgres.sessions() > 0 {
            assert!(Instant::now() < until, "{} sessions are left on the server", postgres.sessions());
        }
    });
}

fn queries<'scope, M>(
    scope: &'scope thread::Scope<'scope, '_>,
    pool: &'scope Pool<M>,
    stop: &'scope AtomicBool,
    asked: &'scope AtomicU32,
) where
    M: forksafe::ManageConnection<Connection = Client, Error: Debug>,
{
    scope.spawn(move || {
        let mut used = BTreeSet::new();
        while !stop.load(SeqCst) {
            let mut conn = pool.get().unwrap();
            used.insert(id(&mut conn));
            ask(&mut conn).unwrap();
            asked.fetch_add(1, SeqCst);
        }
        assert_eq!(used.len(), 1, "the thread has lost its session");
    });
}

/// Tells the other threads of a scope to end, also when this one panics: the scope waits for them.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn counts(_: libc::c_int) {
    SIGNALS.fetch_add(1, SeqCst);
}

/// Row 38: the thread gets a thousand signals each second, with and without `SA_RESTART`.
#[test]
fn signals_interrupt_no_handshake() {
    clean_process(|| {
        let postgres = TlsPostgres::start();
        for flags in [0, libc::SA_RESTART] {
            // SAFETY: a sigaction is plain data; the handler only counts.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                action.sa_sigaction = counts as extern "C" fn(libc::c_int) as libc::sighandler_t;
                action.sa_flags = flags;
                assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
            }
            // SAFETY: says who this is. The thread outlives the scope.
            let me = unsafe { libc::pthread_self() };
            let (before, stop) = (SIGNALS.load(SeqCst), AtomicBool::new(false));
            thread::scope(|scope| {
                let _stop = StopOnDrop(&stop);
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        // SAFETY: the thread lives, it waits for this one.
                        assert_eq!(unsafe { libc::pthread_kill(me, libc::SIGUSR1) }, 0);
                        thread::sleep(Duration::from_millis(1));
                    }
                });
                let pool = postgres.pool("host=localhost sslmode=require");
                while SIGNALS.load(SeqCst) < before + 200 {
                    let mut conn = pool.get().unwrap();
                    assert!(id(&mut conn).1);
                    PooledConnection::discard(conn);
                }
            });
        }
    });
}
