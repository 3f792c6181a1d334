//! Row 20, with each of the driver's two TLS libraries.
//!
//! A TLS session is numbered record by record: one byte of another process's on its socket, a goodbye (`close_notify`)
//! above all, and the server ends it. So the session that goes on, seen by its `CLIENT ID`, is the proof.

use forksafe::testing::{self, Outcome, PrivateRedis, Tap, clean_process};
use forksafe::{Pool, PooledConnection};
use redis::{Client, Connection, InfoDict, TlsCertificates, cmd};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;

#[cfg(not(any(feature = "rustls", feature = "native-tls")))]
compile_error!("choose a TLS library: --features rustls or --features native-tls");

/// A Redis with a TLS port and a certificate that it signed itself.
struct TlsRedis {
    server: PrivateRedis,
    url: String,
    certificate: String,
    _folder: TempDir,
}

impl TlsRedis {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let identity = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let certificate = identity.cert.pem();
        let file = |name, content: &str| {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let certificate_file = file("certificate.pem", &certificate);
        let key_file = file("key.pem", &identity.signing_key.serialize_pem());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let server = PrivateRedis::start_with(
            &[
                ["--tls-port", &port],
                ["--tls-cert-file", &certificate_file],
                ["--tls-key-file", &key_file],
                ["--tls-auth-clients", "no"],
            ]
            .concat(),
        );
        Self { server, url: format!("rediss://127.0.0.1:{port}/"), certificate, _folder: folder }
    }

    fn pool(&self) -> Pool<Client> {
        let certificates = TlsCertificates { client_tls: None, root_cert: Some(self.certificate.clone().into_bytes()) };
        Pool::new(Client::build_with_tls(self.url.as_str(), certificates).unwrap()).unwrap()
    }

    fn address(&self) -> SocketAddr {
        self.url.trim_start_matches("rediss://").trim_end_matches('/').parse().unwrap()
    }

    fn pid(&self) -> libc::pid_t {
        let mut without_tls = Client::open(self.server.url()).unwrap().get_connection().unwrap();
        let info: InfoDict = cmd("INFO").arg("server").query(&mut without_tls).unwrap();
        info.get("process_id").unwrap()
    }
}

fn signal(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: takes numbers.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Which session this is.
fn id(client: &mut Connection) -> u64 {
    cmd("CLIENT").arg("ID").query(client).unwrap()
}

#[test]
fn each_process_has_its_own_session() {
    clean_process(|| {
        let redis = TlsRedis::start();
        let pool = redis.pool();
        let here = id(&mut pool.get().unwrap());
        for _ in 0..3 {
            let (there, answer) = testing::child(|| {
                let mut client = pool.get().unwrap();
                (id(&mut client), cmd("ECHO").arg("hello").query::<String>(&mut client).unwrap())
            })
            .join();
            assert_ne!(there, here);
            assert_eq!(answer, "hello");
            assert_eq!(id(&mut pool.get().unwrap()), here);
        }
    });
}

/// Not that the session survives, but that there was nothing to survive: no record, no `close_notify`.
#[test]
fn no_byte_of_a_child_travels_on_its_parents_connections() {
    clean_process(|| {
        let mut redis = TlsRedis::start();
        let tap = Tap::before(redis.address());
        redis.url = format!("rediss://{}/", tap.address());
        let pool = redis.pool();
        let mut guard = Some(pool.get().unwrap());
        let here = id(guard.as_mut().unwrap());
        for uses_it in [false, true] {
            tap.assert_untouched(|| {
                testing::child(|| {
                    assert!(!uses_it || id(&mut pool.get().unwrap()) != here);
                    drop(guard.take());
                    pool.close();
                })
                .join();
            });
        }
        assert_eq!(id(guard.as_mut().unwrap()), here);
        let relayed = &tap.connections()[&1];
        // A handshake is the first that travels.
        assert!(relayed.sent.starts_with(&[22, 3]) && relayed.received.starts_with(&[22, 3]), "{relayed:?}");
    });
}

#[test]
fn closing_what_was_inherited_says_nothing() {
    clean_process(|| {
        let redis = TlsRedis::start();
        let pool = redis.pool();
        let mut guard = Some(pool.get().unwrap());
        let here = id(guard.as_mut().unwrap());
        testing::child(|| {
            drop(guard.take());
            pool.close();
        })
        .join();
        assert_eq!(id(guard.as_mut().unwrap()), here);
    });
}

/// What some guards of other libraries do when they are dropped.
struct LastWords(PooledConnection<Client>);

impl Drop for LastWords {
    fn drop(&mut self) {
        let _ = cmd("SET").arg("last words").arg("rollback").exec(&mut self.0);
    }
}

#[test]
fn unwinding_through_an_inherited_guard_says_nothing() {
    clean_process(|| {
        let redis = TlsRedis::start();
        let pool = redis.pool();
        let mut guard = Some(LastWords(pool.get().unwrap()));
        let here = id(&mut guard.as_mut().unwrap().0);
        let child = testing::child(|| {
            let _guard = guard.take();
            panic!("as if something had gone wrong");
        });
        assert!(matches!(child.outcome(), Outcome::<()>::Panicked { message, .. } if message.starts_with("as if")));
        let client = &mut guard.as_mut().unwrap().0;
        assert_eq!(id(client), here);
        assert!(!cmd("EXISTS").arg("last words").query::<bool>(client).unwrap());
    });
}

#[test]
fn a_client_borrowed_before_the_fork_is_dead_in_the_child() {
    clean_process(|| {
        let redis = TlsRedis::start();
        let pool = redis.pool();
        let mut guard = pool.get().unwrap();
        let client: &mut Connection = &mut guard;
        let here = id(client);
        let set = |client: &mut Connection| cmd("SET").arg("key").arg("value").exec(client);
        assert!(testing::child(|| set(client).is_err()).join());
        assert!(!cmd("EXISTS").arg("key").query::<bool>(client).unwrap());
        assert_eq!(id(client), here);
    });
}

/// The driver shows its socket only after the handshake, if it makes one in the middle of connecting.
#[test]
fn a_fork_in_the_middle_of_a_handshake_shares_no_session() {
    clean_process(|| {
        let redis = TlsRedis::start();
        let pool = redis.pool();
        let server = redis.pid();
        let sockets = || {
            let all = testing::descriptors(std::process::id()).into_values();
            all.filter(|name| name.starts_with("socket:")).collect::<BTreeSet<_>>()
        };
        let before = sockets();
        let (mut end, mut ends) = io::pipe().unwrap();
        signal(server, libc::SIGSTOP);
        let (mut guard, child) = thread::scope(|scope| {
            let connecting = scope.spawn(|| pool.get().unwrap());
            while sockets() == before {
                thread::yield_now();
            }
            // Until it waits for the server's part.
            thread::sleep(Duration::from_millis(100));
            let child = testing::child(|| {
                let there = id(&mut pool.get().unwrap());
                end.read_exact(&mut [0]).unwrap();
                there
            });
            signal(server, libc::SIGCONT);
            (connecting.join().unwrap(), child)
        });
        let here = id(&mut guard);
        let shared = testing::shared_sockets(std::process::id(), child.pid());
        assert!(shared.iter().all(|(_, _, name)| before.contains(name)), "{shared:?}");
        ends.write_all(&[1]).unwrap();
        assert_ne!(child.join(), here);
        assert_eq!(id(&mut guard), here);
    });
}

/// With nothing to say at the start, the handshake is still made before the connection is lent.
#[cfg(feature = "rustls")]
#[test]
fn a_connection_is_not_lent_before_its_handshake() {
    use redis::IntoConnectionInfo;
    clean_process(|| {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let info = format!("rediss://{}/", silent.local_addr().unwrap()).into_connection_info().unwrap();
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let pool = Pool::new(Client::open(info.set_redis_settings(settings)).unwrap()).unwrap();
        assert!(pool.get_timeout(Duration::from_secs(1)).is_err_and(|error| error.is_connect()));
    });
}

/// The handshake of native-tls cannot be bounded: see the documentation of the manager.
#[cfg(feature = "rustls")]
#[test]
fn a_server_that_never_answers_the_handshake_is_an_error_in_time() {
    clean_process(|| {
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let pool = Pool::new(Client::open(format!("rediss://{}/", silent.local_addr().unwrap())).unwrap()).unwrap();
        let fails_in_time = || {
            let begin = std::time::Instant::now();
            let error = pool.get_timeout(Duration::from_secs(1)).err();
            assert!(error.as_ref().is_some_and(|error| error.is_connect() || error.is_timeout()), "{error:?}");
            assert!(begin.elapsed() < Duration::from_secs(5), "took {:?}", begin.elapsed());
        };
        fails_in_time();
        testing::child(fails_in_time).join();
    });
}
