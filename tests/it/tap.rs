//! The tap: it passes everything on, and misses nothing.

use crate::kit::{self, ways};
use crate::servers::Server;
use forksafe::Pool;
use forksafe::postgres::PostgresManager;
use forksafe::testing::{self, Address, PrivatePostgres, PrivateRedis, Steps, Tap, Witness, clean_process};
use postgres::{Client, NoTls};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

fn before_redis(redis: &PrivateRedis) -> (Tap, Pool<redis::Client>) {
    let tap = Tap::before(redis.address().parse::<SocketAddr>().unwrap());
    let client = redis::Client::open(format!("redis://{}/", tap.address())).unwrap();
    (tap, kit::tested().connection_timeout(testing::patience() / 2).max_size(2).build(client).unwrap())
}

/// Row 1 and row 3, as the server sees them.
#[test]
fn no_byte_of_a_child_travels_on_its_parents_redis_connections() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let (tap, pool) = before_redis(&redis);
        let mut held = Some(pool.get().unwrap());
        let (lent, idle) = (PrivateRedis::ask(held.as_mut().unwrap()), PrivateRedis::session(&pool));
        for way in ways() {
            for what in ["use", "drop", "nothing"] {
                tap.assert_untouched(|| {
                    way.child(|| match what {
                        "use" => assert!(![lent, idle].contains(&PrivateRedis::session(&pool)), "{way}"),
                        "drop" => drop(held.take()),
                        _ => {}
                    })
                    .join();
                });
            }
        }
        assert_eq!((PrivateRedis::ask(held.as_mut().unwrap()), PrivateRedis::session(&pool)), (lent, idle));
    });
}

/// The same for a session with a transaction, which its driver would roll back, and one that waits in the pool.
#[test]
fn no_byte_of_a_child_travels_on_its_parents_postgres_connections() {
    clean_process(|| {
        let postgres = PrivatePostgres::start_with(&[]);
        let tap = Tap::before(SocketAddr::from(([127, 0, 0, 1], postgres.port().unwrap())));
        let Address::Tcp(address) = tap.address() else { panic!("{tap:?}") };
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(address.port()).user("postgres").dbname("postgres");
        let pool = kit::tested().build(PostgresManager::new(config, NoTls)).unwrap();
        let pid = |client: &mut Client| client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get::<_, i32>(0);
        let (mut lent, mut other) = (pool.get().unwrap(), pool.get().unwrap());
        let (here, idle) = (pid(&mut lent), pid(&mut other));
        drop(other);
        let mut transaction = Some(lent.transaction().unwrap());
        for way in ways() {
            for what in ["use", "drop", "nothing"] {
                tap.assert_untouched(|| {
                    way.child(|| {
                        // For those that are made without handlers.
                        forksafe::fork::enter();
                        match what {
                            "use" => assert!(![here, idle].contains(&pid(&mut pool.get().unwrap())), "{way}"),
                            "drop" => drop(transaction.take()),
                            _ => {}
                        }
                    })
                    .join();
                });
            }
        }
        transaction.unwrap().commit().unwrap();
        assert_eq!((pid(&mut lent), pid(&mut pool.get().unwrap())), (here, idle));
    });
}

/// That the tests above can fail.
#[test]
fn bytes_of_a_child_on_its_parents_connections_are_shown() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let (tap, pool) = before_redis(&redis);
        PrivateRedis::session(&pool);
        testing::unsafe_share();
        let touched = catch_unwind(AssertUnwindSafe(|| {
            tap.assert_untouched(|| {
                testing::child(|| redis::cmd("PING").exec(&mut pool.get().unwrap()).unwrap()).join();
            });
        }));
        let text = *touched.unwrap_err().downcast::<String>().unwrap();
        assert!(text.contains("\n  on connection 1 "), "{text}");
        assert!(text.contains("bytes were sent to the server: \"") && text.contains("PING\\r\\n"), "{text}");

        // A shutdown is a goodbye as well.
        let client = TcpStream::connect(tap.address().to_string()).unwrap();
        let touched = catch_unwind(AssertUnwindSafe(|| {
            tap.assert_untouched(|| testing::child(|| client.shutdown(Shutdown::Both).unwrap()).join());
        }));
        let text = *touched.unwrap_err().downcast::<String>().unwrap();
        assert!(text.ends_with("\n  connection 2 was ended by its client"), "{text}");
    });
}

/// What was written before the question is in the answer, though nobody waited for it to arrive.
#[test]
fn nothing_that_was_written_is_still_on_its_way() {
    clean_process(|| {
        let witnesses = [Witness::start(), Witness::start_unix()];
        for witness in &witnesses {
            let tap = Tap::before(witness.place().clone());
            let mut stream = testing::Stream::connect(tap.address()).unwrap();
            let mut expected = Vec::new();
            for round in 0..100_u32 {
                let text = format!("round {round}\n").repeat(1 + round as usize % 7 * 300);
                stream.write_all(text.as_bytes()).unwrap();
                expected.extend(text.into_bytes());
                assert!(tap.connections()[&1].sent == expected, "round {round}");
            }
            for round in 2..50 {
                drop(testing::Stream::connect(tap.address()).unwrap());
                let ended = tap.connections().get(&round).map(|relayed| relayed.client_ended);
                assert_eq!(ended, Some(true), "round {round}");
            }
        }
    });
}

/// Each end comes through by itself: one that has said all may still listen.
#[test]
fn ends_of_streams_come_through_one_at_a_time() {
    clean_process(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tap = Tap::before(listener.local_addr().unwrap());
        let mut client = TcpStream::connect(tap.address().to_string()).unwrap();
        let mut server = listener.accept().unwrap().0;
        let ends = || tap.connections().get(&1).map(|relayed| (relayed.client_ended, relayed.server_ended));
        client.write_all(b"question").unwrap();
        assert_eq!(ends(), Some((false, false)));
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!((&*text, ends()), ("question", Some((true, false))));
        server.write_all(b"answer").unwrap();
        drop(server);
        text.clear();
        client.read_to_string(&mut text).unwrap();
        assert_eq!((&*text, ends()), ("answer", Some((true, true))));
        let relayed = tap.connections().remove(&1).unwrap();
        assert_eq!((&*relayed.sent, &*relayed.received), (&b"question"[..], &b"answer"[..]));
    });
}

/// More than all buffers hold, both ways at once, to readers who are late.
#[test]
fn a_flood_comes_through_whole() {
    clean_process(|| {
        let folder = std::env::temp_dir().join(format!("forksafe-tap-{}", std::process::id()));
        let listener = UnixListener::bind(&folder).unwrap();
        let tap = Tap::before(folder.clone());
        let Address::Unix(path) = tap.address() else { panic!("{tap:?}") };
        let client = UnixStream::connect(path).unwrap();
        let server = listener.accept().unwrap().0;
        std::fs::remove_file(folder).unwrap();
        let flood = |seed: u8| (0..8_000_000_u32).map(|n| (n % 251) as u8 ^ seed).collect::<Vec<_>>();
        thread::scope(|scope| {
            for (mut end, says, hears) in [(&client, 1, 2), (&server, 2, 1)] {
                scope.spawn(move || {
                    end.write_all(&flood(says)).unwrap();
                    let mut heard = vec![0; 8_000_000];
                    end.read_exact(&mut heard).unwrap();
                    assert!(heard == flood(hears));
                });
            }
        });
        let relayed = &tap.connections()[&1];
        assert!(relayed.sent == flood(1) && relayed.received == flood(2));
    });
}

#[test]
fn a_server_that_is_away_is_away_behind_the_tap() {
    clean_process(|| {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let tap = Tap::before(nobody);
        let mut client = TcpStream::connect(tap.address().to_string()).unwrap();
        match client.read(&mut [0]) {
            Ok(n) => assert_eq!(n, 0),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
        assert!(tap.connections()[&1].server_ended);
    });
}

/// Its sockets are copied to each child, too. Row 2 must not fail for the kit's own sake.
#[test]
fn a_child_that_lives_on_keeps_no_connection_open_that_goes_through_the_tap() {
    clean_process(|| {
        let witness = Witness::start();
        let tap = Tap::before(witness.address());
        let client = TcpStream::connect(tap.address().to_string()).unwrap();
        tap.wait_until("the client is there", |seen| seen.len() == 1);
        let steps = Steps::new(&["the end"]);
        let child = testing::child(|| {
            // What is the child's own doing: it closes what it has of the client.
            // SAFETY: this process uses it no more, and never drops the original.
            drop(unsafe { std::ptr::read(&raw const client) });
            steps.wait_for("the end");
        });
        testing::wait_until("the child has closed its copy", || {
            testing::shared_sockets(std::process::id(), child.pid())
                .iter()
                .all(|(_, _, name)| *name != testing::socket_of(&client))
        });
        drop(client);
        witness.wait_until("the end is seen", |seen| seen.values().all(|seen| seen.ended));
        tap.wait_until("the end is seen", |seen| seen[&1].client_ended && seen[&1].server_ended);
        steps.take("the end");
        child.join();
    });
}

/// The same when the tap goes first.
#[test]
fn a_tap_that_is_dropped_ends_what_goes_through_it_whoever_has_copies() {
    clean_process(|| {
        let witness = Witness::start_unix();
        let tap = Tap::before(witness.place().clone());
        let mut client = testing::Stream::connect(tap.address()).unwrap();
        client.set_read_timeout(Some(testing::patience())).unwrap();
        tap.wait_until("the client is there", |seen| seen.len() == 1);
        let child = testing::child(thread::park);
        drop(tap);
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        witness.wait_until("the end is seen", |seen| seen.values().all(|seen| seen.ended));
        child.kill();
    });
}

#[test]
fn a_tap_that_has_nothing_to_do_does_nothing() {
    /// What this process has had of a processor.
    fn time() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: a struct of ours.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }
    clean_process(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let tap = Tap::before(listener.local_addr().unwrap());
        let client = TcpStream::connect(tap.address().to_string()).unwrap();
        let _server = listener.accept().unwrap();
        let now = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: a struct of ours and its size.
        let set = unsafe {
            let size = size_of_val(&now) as libc::socklen_t;
            libc::setsockopt(client.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const now).cast(), size)
        };
        assert_eq!(set, 0);
        drop(client);
        tap.wait_until("the reset is seen", |seen| seen[&1].client_ended);
        let before = time();
        thread::sleep(Duration::from_millis(400));
        assert!(time() - before < Duration::from_millis(100), "{:?}", time() - before);
    });
}

#[test]
fn a_child_that_drops_its_copy_of_the_tap_ends_nothing() {
    clean_process(|| {
        let witness = Witness::start_unix();
        let mut tap = Some(Tap::before(witness.place().clone()));
        testing::child(|| drop(tap.take())).join();
        let tap = tap.unwrap();
        assert!(tap.connections().is_empty(), "the child did not knock");
        let Address::Unix(path) = tap.address().clone() else { panic!("{tap:?}") };
        let pool = Pool::builder().max_size(1).build(testing::WitnessManager::at_path(&path)).unwrap();
        kit::ask(&pool);
        drop(tap);
        assert!(!path.exists());
    });
}
