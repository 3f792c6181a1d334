//! What is particular to the Redis driver.

use crate::kit::{self, StopOnDrop, deny};
use crate::redis_fake::{Fake, Says, says};
use crate::servers::Server;
use forksafe::testing::{self, PrivateRedis, clean_process};
use forksafe::{ManageConnection, PooledConnection};
use redis::Commands;
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn every_kind_of_url_works_and_is_protected() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--requirepass", "secret"]);
        let (address, unix) = (redis.address(), redis.unix_url().unwrap());
        let port = address.rsplit(':').next().unwrap();
        for url in [
            format!("redis://:secret@{address}/"),
            format!("redis://default:secret@{address}/"),
            format!("redis://:secret@{address}/5"),
            format!("redis://:secret@{address}/?protocol=resp3"),
            format!("redis://:secret@{address}/5?protocol=resp3"),
            format!("redis://:secret@localhost:{port}/"),
            format!("{unix}?pass=secret"),
            format!("{unix}?pass=secret&db=5"),
        ] {
            let pool = kit::tested().build(redis::Client::open(url.as_str()).unwrap()).unwrap();
            let mut conn = pool.get().unwrap_or_else(|error| panic!("{url}: {error}"));
            let session = PrivateRedis::ask(&mut conn);
            let info: String = redis::cmd("CLIENT").arg("INFO").query(&mut *conn).unwrap();
            let db = if url.contains('5') && (url.contains("/5") || url.contains("db=5")) { 5 } else { 0 };
            assert!(info.contains(&format!(" db={db} ")), "{url}: {info}");
            assert_eq!(redis::ConnectionLike::get_db(&*conn), db, "{url}");
            let mut held = Some(conn);
            let child = testing::child(|| {
                drop(held.take());
                PrivateRedis::session(&pool)
            });
            assert_ne!(child.join(), session, "{url}");
            assert_eq!(PrivateRedis::ask(held.as_mut().unwrap()), session, "{url}");
        }
    });
}

/// The socket is found among others that come and go, by threads that connect at the same time.
#[test]
fn the_socket_is_found_exactly() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let address = redis.address().to_owned();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let noise = (TcpStream::connect(&address), std::fs::File::open("/dev/null"));
                        drop(noise);
                    }
                });
            }
            let connecting: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..250 {
                            let pool = redis.pool();
                            let mut conn = pool.get().unwrap();
                            let info: String = redis::cmd("CLIENT").arg("INFO").query(&mut *conn).unwrap();
                            let client = info.split("addr=").nth(1).unwrap().split(' ').next().unwrap();
                            assert!(client.starts_with("127.0.0.1:"), "{info}");
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

/// What is registered is the very socket that the server sees: the child, told by `/proc`, shares none of them.
#[test]
fn no_socket_of_the_parent_is_in_the_child() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = redis.pool_of(3);
        let held = [pool.get().unwrap(), pool.get().unwrap()];
        drop(pool.get().unwrap());
        let sockets = |_: ()| {
            let all = testing::descriptors(std::process::id()).into_values();
            all.filter(|name| name.starts_with("socket:")).collect::<BTreeSet<_>>()
        };
        let here = sockets(());
        assert_eq!(here.len(), 3);
        let there = testing::child(|| sockets(())).join();
        assert!(here.is_disjoint(&there), "{here:?} and {there:?}");
        drop(held);
    });
}

#[test]
fn a_connection_out_of_step_fails_its_test() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let client = redis.manager();
        let pool = redis.pool_of(1);
        let session = PrivateRedis::session(&pool);
        let mut conn = pool.get().unwrap();
        client.is_valid(&mut conn).unwrap();
        // A question whose answer nobody reads.
        conn.send_packed_command(&redis::cmd("ECHO").arg("left behind").get_packed_command()).unwrap();
        let error = client.is_valid(&mut conn).unwrap_err();
        assert!(error.to_string().contains("out of step"), "{error}");
        conn.send_packed_command(&redis::cmd("PING").get_packed_command()).unwrap();
        drop(conn);
        assert_ne!(PrivateRedis::session(&pool), session, "closed and replaced");
    });
}

/// Somebody asked and did not wait; the reply comes while the next one's connection is tested.
#[test]
fn a_late_reply_to_an_earlier_holder_is_nobody_elses_answer() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = redis.pool_of(1);
        let mut pop = redis::cmd("BLPOP");
        pop.arg("nothing").arg(0.5);
        // The driver knows that a reply is missing, and skips it.
        let mut conn = pool.get().unwrap();
        conn.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(pop.query::<Option<String>>(&mut *conn).unwrap_err().is_timeout());
        conn.set_read_timeout(None).unwrap();
        drop(conn);
        let session = PrivateRedis::session(&pool);
        // It does not know: the test does.
        let mut conn = pool.get().unwrap();
        conn.send_packed_command(&pop.get_packed_command()).unwrap();
        drop(conn);
        assert_ne!(PrivateRedis::session(&pool), session, "closed and replaced");
        assert_eq!(pool.state().connections, 1);
    });
}

/// The late reply comes, and the one to the test's own question does not: what has come is no reason to wait for more.
#[test]
fn a_late_reply_and_then_none_fails_the_test_at_once() {
    clean_process(|| {
        // The answer to a bare PING comes with the next question, which has none.
        let fake = Fake::start(|connection, command, words| match (connection, words[0].as_str()) {
            (0, "PING") if words.len() == 1 => Says::Silence,
            (0, "PING") if command > 4 => says("+PONG\r\n"),
            _ => Says::Usual,
        });
        let pool = kit::tested().build(fake.client()).unwrap();
        let mut conn = pool.get().unwrap();
        conn.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(redis::cmd("PING").query::<String>(&mut *conn).unwrap_err().is_timeout());
        drop(conn);
        assert_eq!(pool.state().idle_connections, 1);
        let begin = Instant::now();
        drop(pool.get_timeout(testing::patience()).expect("another one"));
        assert!(begin.elapsed() < testing::patience() / 4, "{:?}", begin.elapsed());
    });
}

/// The driver opens its socket itself, the number where that was expected is another thread's, and two descriptors have its
/// mark: it is not guessed.
#[test]
fn a_socket_of_which_there_are_two_is_refused() {
    static COPIES: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    clean_process(|| {
        let fake = Fake::start(|_, _, words| {
            // The driver selects a database, and waits here while somebody makes a copy.
            if words[0] == "SELECT" {
                let mut copies = COPIES.lock().unwrap();
                copies.clear();
                // SAFETY: the driver has it open as long as it waits.
                let copy = |fd| unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().unwrap();
                copies.extend(crate::churn::sockets_to(*SERVER.get().unwrap()).into_iter().map(copy));
            }
            Says::Usual
        });
        SERVER.set(fake.address.parse().unwrap()).unwrap();
        deny(libc::SYS_listen, None, libc::EACCES);
        let pool = kit::tested().build(redis::Client::open(format!("{}1", fake.url())).unwrap()).unwrap();
        let _takes_numbers = crate::kit::TakesNumbers::begin();
        let mut refused = None;
        testing::wait_until("the expected number is another thread's", || {
            match pool.get() {
                Ok(conn) => PooledConnection::discard(conn),
                Err(error) => refused = Some(error),
            }
            refused.is_some()
        });
        let error = refused.unwrap();
        assert!(error.is_unprotected() && error.to_string().contains("2 descriptors could be"), "{error}");
        assert_eq!(pool.state().connections, 0);
    });
}

/// Rows 3 and 17: a subscription held across the fork goes on in the parent, whatever the child does with it.
#[test]
fn a_subscription_survives_its_copy_in_a_child() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = redis.pool();
        let mut held = pool.get().unwrap();
        let mut subscribed = held.as_pubsub();
        subscribed.subscribe("news").unwrap();
        let mut subscribed = Some(subscribed);
        for deed in ["drop", "read", "exit"] {
            testing::child(|| {
                let mut subscribed = subscribed.take().unwrap();
                match deed {
                    "drop" => drop(subscribed),
                    "read" => assert!(subscribed.get_message().is_err()),
                    // SAFETY: ends the process.
                    _ => drop(subscribed.unsubscribe("news")),
                }
            })
            .join();
            let told: i64 = pool.get().unwrap().publish("news", deed).unwrap();
            assert_eq!(told, 1, "after {deed}");
            let message = subscribed.as_mut().unwrap().get_message().unwrap();
            assert_eq!(message.get_payload::<String>().unwrap(), deed);
        }
    });
}

#[test]
fn a_connection_that_the_server_closed_is_replaced() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = redis.pool_of(1);
        let session = PrivateRedis::session(&pool);
        let mut admin = redis.manager().get_connection().unwrap();
        let killed: i64 = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(session).query(&mut admin).unwrap();
        assert_eq!(killed, 1);
        assert_ne!(PrivateRedis::session(&pool), session);
        // Without the test a look tells as much.
        let untested = kit::tested().max_size(1).test_on_check_out(false).build(redis.manager()).unwrap();
        let session = PrivateRedis::session(&untested);
        let _: i64 = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(session).query(&mut admin).unwrap();
        assert_ne!(PrivateRedis::session(&untested), session);
    });
}

/// What bounds the connect and the test does not stay behind to bound the user's own commands.
#[test]
fn a_lent_connection_has_no_timeouts() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = redis.pool_of(1);
        for how in ["new", "tested"] {
            let conn = pool.get().unwrap();
            let sockets = crate::churn::sockets_to(redis.address().parse().unwrap());
            assert_eq!(sockets.len(), 1);
            for which in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
                // SAFETY: `time` is ours and `size` says how large; all zeros is a valid timeval.
                let time = unsafe {
                    let mut time: libc::timeval = std::mem::zeroed();
                    let mut size = size_of_val(&time) as libc::socklen_t;
                    let time_at = (&raw mut time).cast();
                    assert_eq!(libc::getsockopt(sockets[0], libc::SOL_SOCKET, which, time_at, &raw mut size), 0);
                    time
                };
                assert_eq!((time.tv_sec, time.tv_usec), (0, 0), "{how}");
            }
            drop(conn);
        }
    });
}

/// RESP3: what the server says of its own accord is not taken for the answer to the test.
#[test]
fn a_push_message_does_not_fail_the_test_of_a_connection() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let url = format!("redis://{}/?protocol=resp3", redis.address());
        let pool = kit::tested().max_size(1).build(redis::Client::open(url).unwrap()).unwrap();
        let mut conn = pool.get().unwrap();
        let session = PrivateRedis::ask(&mut conn);
        redis::cmd("CLIENT").arg("TRACKING").arg("ON").exec(&mut *conn).unwrap();
        let _: Option<String> = conn.get("key").unwrap();
        drop(conn);
        redis.pool().get().unwrap().set::<_, _, ()>("key", "new").unwrap();
        assert_eq!(PrivateRedis::session(&pool), session, "told that the key is stale, and lent all the same");
    });
}

/// It says so and hangs up, whatever it was asked.
#[test]
fn a_full_redis_is_told_clearly() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--maxclients", "1"]);
        let admin = redis.pool();
        let _held = admin.get().unwrap();
        let mut unclear = Vec::new();
        for (who, what) in [("", ""), ("default:any@", ""), ("", "1"), ("", "?protocol=resp3")] {
            let url = format!("redis://{who}{}/{what}", redis.address());
            let pool = kit::tested().build(redis::Client::open(url.as_str()).unwrap()).unwrap();
            match pool.get() {
                Ok(mut conn) => {
                    unclear.push(format!("{url}: Ok, and then {:?}", redis::cmd("PING").query::<String>(&mut *conn)));
                }
                Err(error) if error.is_connect() && format!("{error:#}").contains("max number of clients") => {}
                Err(error) => unclear.push(format!("{url}: {error:#}")),
            }
        }
        assert!(unclear.is_empty(), "{unclear:#?}");
    });
}
