//! An error is an answer; no answer, or half of one, is given up in time; and nobody is shown another's.

use crate::kit;
use crate::redis_fake::{Fake, Says, says, usual};
use crate::servers::Server;
use forksafe::redis::RedisManager;
use forksafe::testing::{self, PrivateRedis, clean_process};
use forksafe::{Deadline, ManageConnection, PooledConnection};
use redis::cmd;
use std::error::Error as _;
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

fn cycles(client: redis::Client) {
    let pool = kit::tested().max_size(2).build(client).unwrap();
    for n in 0..20 {
        let mut conn = pool.get().unwrap_or_else(|error| panic!("cycle {n}: {error:#}"));
        cmd("GET").arg("key").exec(&mut conn).unwrap_or_else(|error| panic!("cycle {n}: {error}"));
    }
}

/// What a server or proxy makes of commands that it does not accept.
fn refused(words: &[String], how: &str) -> Says {
    match how {
        "hangs up" => Says::HangUp,
        "forbids" => {
            says(format!("-NOPERM this user has no permissions to run the '{}' command\r\n", words[0].to_lowercase()))
        }
        _ => says(format!("-ERR unknown command '{}', with args beginning with: \r\n", words[0])),
    }
}

const ALL: [&str; 6] = ["CLIENT", "UNWATCH", "SELECT", "ECHO", "UNSUBSCRIBE", "RESET"];

/// Whatever a server does not accept is learned with the first connection: none that is healthy is replaced.
#[test]
fn what_a_server_does_not_accept_is_learned_once() {
    clean_process(|| {
        for how in ["hangs up", "forbids", "does not know"] {
            for (unknown, takes_text) in [
                (&["CLIENT"][..], true),
                (&["ECHO"], true),
                (&["PING"], true),
                (&["UNWATCH", "SELECT"], true),
                (&ALL, true),
                (&ALL, false),
                (&["PING", "ECHO", "SELECT"], true),
            ] {
                if how == "hangs up" && unknown.contains(&"PING") && unknown.contains(&"ECHO") {
                    continue; // Then there is nothing to say.
                }
                let fake = Fake::start(move |_, _, words| match words[0].as_str() {
                    word if unknown.contains(&word) => refused(words, how),
                    "PING" if words.len() > 1 && !takes_text && how == "hangs up" => Says::HangUp,
                    "PING" if words.len() > 1 && !takes_text => {
                        says("-ERR wrong number of arguments for 'ping' command\r\n")
                    }
                    _ => Says::Usual,
                });
                cycles(fake.client());
                // Each that hangs up costs a connection, once.
                let most = if how == "hangs up" { 4 } else { 1 };
                assert!(fake.accepted() <= most, "{how} at {unknown:?}: {} connections", fake.accepted());
                // And its children know.
                let before = fake.accepted();
                let (url, known) = (fake.url(), how != "hangs up");
                testing::child(move || {
                    if known {
                        cycles(redis::Client::open(url).unwrap());
                    }
                })
                .join();
                assert!(fake.accepted() <= before + 1, "{how} at {unknown:?}: {} in a child", fake.accepted() - before);
            }
        }
    });
}

/// A proxy has words of its own. To a server without `SELECT` there is one database.
#[test]
fn a_refusal_in_any_words_is_one() {
    clean_process(|| {
        for refused in ["UNWATCH", "SELECT", "CLIENT"] {
            let fake = Fake::start(move |_, _, words| match words[0].as_str() {
                word if word == refused => says("-PROXY we do not do that here\r\n"),
                _ => Says::Usual,
            });
            cycles(fake.client());
            assert_eq!(fake.accepted(), 1, "{refused}");
        }
        let fake = Fake::start(|_, _, words| match words[0].as_str() {
            "SELECT" => says("-PROXY we do not do that here\r\n"),
            _ => Says::Usual,
        });
        let client = redis::Client::open(format!("{}5", fake.url())).unwrap();
        assert!(forksafe::Pool::new(client).unwrap().get().unwrap_err().is_connect(), "which is asked for");
    });
}

#[test]
fn a_real_account_that_may_do_little_keeps_its_connection() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let mut admin = redis.manager().get_connection().unwrap();
        for allowed in [&["+get", "+ping"][..], &["+get", "+echo"], &["+get"]] {
            let rule = [&["reset", "on", ">pw", "~*"], allowed].concat();
            cmd("ACL").arg("SETUSER").arg("app").arg(&rule).exec(&mut admin).unwrap();
            let before = redis.open().len();
            let pool = kit::tested()
                .max_size(2)
                .build(redis::Client::open(format!("redis://app:pw@{}/", redis.address())).unwrap());
            let pool = pool.unwrap();
            for _ in 0..20 {
                cmd("GET").arg("key").exec(&mut pool.get().unwrap()).unwrap();
                assert_eq!(redis.open().len(), before + 1);
            }
            let info: String = cmd("INFO").arg("stats").query(&mut admin).unwrap();
            assert!(info.contains("total_connections_received:"), "{info}");
            let session = redis.open();
            drop(pool.get().unwrap());
            assert_eq!(redis.open(), session, "{allowed:?}: the same");
            drop(pool);
            redis.wait_until("closed", |open| open.len() == before);
        }
    });
}

/// It loads its data, is busy, has no master: it is alive, and so is the connection.
#[test]
fn a_server_in_trouble_keeps_its_connections() {
    clean_process(|| {
        for trouble in [
            "-LOADING Redis is loading the dataset in memory\r\n",
            "-BUSY Redis is busy running a script.\r\n",
            "-MASTERDOWN Link with MASTER is down\r\n",
            "-MISCONF Errors writing to the AOF file\r\n",
        ] {
            for from in [0, 1] {
                let pings = AtomicUsize::new(0);
                let fake = Fake::start(move |_, _, words| match words[0].as_str() {
                    "PING" if pings.fetch_add(1, SeqCst) >= from => says(trouble),
                    "UNWATCH" | "SELECT" | "CLIENT" if from == 0 => says(trouble),
                    _ => Says::Usual,
                });
                cycles(fake.client());
                assert_eq!(fake.accepted(), 1, "{trouble}");
            }
        }
    });
}

/// A script that runs too long: no storm of connections, from the first second to the last.
#[test]
fn a_busy_redis_is_not_stormed() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--busy-reply-threshold", "1"]);
        let pool = kit::tested().max_size(2).build(redis.manager()).unwrap();
        let session = PrivateRedis::session(&pool);
        let (mut runs, mut admin) =
            (redis.manager().get_connection().unwrap(), redis.manager().get_connection().unwrap());
        let script = thread::spawn(move || cmd("EVAL").arg("while true do end").arg(0).exec(&mut runs));
        testing::wait_until("it is busy", || cmd("PING").exec(&mut admin).is_err());
        for _ in 0..20 {
            drop(pool.get().unwrap());
        }
        cmd("SCRIPT").arg("KILL").exec(&mut admin).unwrap();
        assert!(script.join().unwrap().is_err());
        assert_eq!(PrivateRedis::session(&pool), session);
    });
}

/// A server in trouble answers everything alike, so it does not show which answer is the test's.
#[test]
fn one_answer_too_many_is_noticed_in_trouble_too() {
    clean_process(|| {
        let busy = Arc::new(AtomicBool::new(false));
        let is_busy = Arc::clone(&busy);
        let fake = Fake::start(move |connection, _, words| match words[0].as_str() {
            "GET" => says("$1\r\na\r\n"),
            // All three at once, as a server that is asked at once does.
            "UNWATCH" | "SELECT" if connection == 0 && is_busy.load(SeqCst) => says(""),
            "PING" if connection == 0 && is_busy.load(SeqCst) => {
                says("-BUSY Redis is busy running a script.\r\n".repeat(3))
            }
            _ => Says::Usual,
        });
        let pool = kit::tested().max_size(1).build(fake.client()).unwrap();
        let mut conn = pool.get().unwrap();
        conn.send_packed_command(&cmd("GET").arg("key").get_packed_command()).unwrap();
        busy.store(true, SeqCst);
        drop(conn);
        let mut conn = pool.get().unwrap();
        busy.store(false, SeqCst);
        assert_eq!(cmd("GET").arg("key").query::<String>(&mut conn).unwrap(), "a");
        assert_eq!(fake.accepted(), 2);
    });
}

/// An error that is nobody's answer to this question is another's.
#[test]
fn a_late_error_is_out_of_step() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let client = redis.manager();
        let pool = redis.pool_of(1);
        let mut conn = pool.get().unwrap();
        conn.send_packed_command(&cmd("NOSUCHCOMMAND").arg("s3cr3t").get_packed_command()).unwrap();
        let error = client.is_valid(&mut conn).unwrap_err();
        assert!(error.to_string().contains("out of step"), "{error}");
        assert!(!error.to_string().contains("s3cr3t"), "{error}");
        PooledConnection::discard(conn);
    });
}

/// What a server repeats of a question may be a password, and a late reply is another user's.
#[test]
fn no_error_shows_what_a_reply_said() {
    clean_process(|| {
        let secret = "s3cr3t-of-another-user";
        let is_silent_about = |error: &dyn std::error::Error| {
            let mut next = Some(error);
            while let Some(error) = next {
                assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
                next = error.source();
            }
        };
        // As Redis and proxies do that do not know the command.
        let fake = Fake::start(|_, _, words| {
            says(format!(
                "-ERR unknown command '{}', with args beginning with: '{}'\r\n",
                words[0],
                words[1..].join("' '")
            ))
        });
        for path in ["", "5", "?protocol=resp3"] {
            let url = format!("redis://somebody:{secret}@{}/{path}", fake.address);
            let error = kit::tested().build(redis::Client::open(url).unwrap()).unwrap().get().unwrap_err();
            is_silent_about(&error);
            assert!(format!("{error:#}").contains("unknown command") || path.contains("resp3"), "{error:#}");
        }
        let redis = PrivateRedis::start();
        let client = redis.manager();
        let mut admin = client.get_connection().unwrap();
        cmd("RPUSH").arg("list").arg(secret).exec(&mut admin).unwrap();
        cmd("SET").arg("key").arg(secret).exec(&mut admin).unwrap();
        for late in [cmd("GET").arg("key"), cmd("LRANGE").arg("list").arg(0).arg(-1), cmd("ECHO").arg("s3cr3t")] {
            let pool = redis.pool_of(1);
            let mut conn = pool.get().unwrap();
            conn.send_packed_command(&late.get_packed_command()).unwrap();
            is_silent_about(&client.is_valid(&mut conn).unwrap_err());
            PooledConnection::discard(conn);
        }
    });
}

/// One connection that gives this, once, when it is tested, and then `then` every so often.
fn gives_when_tested(first: Vec<u8>, then: &'static [u8], every: Duration) -> String {
    crate::limits::server(move |mut stream| {
        let mut asked = [0; 4096];
        let mut count = 0;
        loop {
            let Ok(n @ 1..) = stream.read(&mut asked) else { return };
            let mut input = &asked[..n];
            let mut reply = Vec::new();
            while let Some(words) = crate::redis_fake::read_command(&mut input) {
                reply.extend(usual(&words));
            }
            count += 1;
            if count == 1 {
                let _ = stream.write_all(&reply);
                continue;
            }
            let _ = stream.write_all(&first);
            while stream.write_all(then).is_ok() {
                thread::sleep(every);
            }
        }
    })
}

fn test_fails_within(address: &str, deadline: Duration, most: Duration) {
    let client = redis::Client::open(format!("redis://{address}/")).unwrap();
    let pool = kit::tested().max_size(1).build(client).unwrap();
    let mut conn = pool.get().unwrap();
    let begin = Instant::now();
    let error = pool.manager().is_valid_within(&mut conn, Deadline::after(deadline)).unwrap_err();
    assert!(begin.elapsed() < most, "{:?}: {error}", begin.elapsed());
    PooledConnection::discard(conn);
}

/// Row 35: more than any answer has cannot become one.
#[test]
fn a_reply_that_drips_after_many_bytes_fails_the_test_at_once() {
    clean_process(|| {
        let mut large = b"$1000000\r\n".to_vec();
        large.resize(5000, b'a');
        let address = gives_when_tested(large, b"a", Duration::from_millis(50));
        test_fails_within(&address, testing::patience(), testing::patience() / 4);
    });
}

/// Row 35: and less is waited for no longer than until the deadline.
#[test]
fn a_test_keeps_its_deadline_whatever_drips() {
    clean_process(|| {
        for first in [&b""[..], b"$40\r\n", b"+OK\r\n+OK\r\n$", b"+OK\r\n+OK\r\n+late\r\n", b":1\r\n:2\r\n:3\r\n:4"] {
            let address = gives_when_tested(first.to_vec(), b"1", Duration::from_millis(20));
            test_fails_within(&address, Duration::from_millis(300), testing::patience() / 4);
        }
    });
}

/// A holder asked for much and read none of it, or the half: it still comes while the connection is tested.
#[test]
fn a_reply_that_is_still_coming_fails_the_test_at_once() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let client = redis.manager();
        let mut admin = client.get_connection().unwrap();
        cmd("SETRANGE").arg("large").arg(64 << 20).arg("end").exec(&mut admin).unwrap();
        for reads in [false, true] {
            let pool = redis.pool_of(1);
            let mut conn = pool.get().unwrap();
            conn.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            conn.send_packed_command(&cmd("GET").arg("large").get_packed_command()).unwrap();
            if reads {
                let _ = conn.recv_response();
            }
            let begin = Instant::now();
            if client.is_valid(&mut conn).is_ok() {
                // All of it had come, and the driver skipped it.
                assert!(reads);
            }
            assert!(begin.elapsed() < testing::patience() / 4, "{:?}", begin.elapsed());
            PooledConnection::discard(conn);
        }
    });
}

/// RESP3: a server has much to say of its own accord while a connection is idle. None of it fails the test.
#[test]
fn push_messages_do_not_fail_a_test() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let url = format!("{}?protocol=resp3", redis.url());
        let pool = kit::tested().max_size(1).build(redis::Client::open(url).unwrap()).unwrap();
        let mut conn = pool.get().unwrap();
        let session = PrivateRedis::ask(&mut conn);
        cmd("CLIENT").arg("TRACKING").arg("ON").arg("BCAST").exec(&mut *conn).unwrap();
        drop(conn);
        let mut other = redis.manager().get_connection().unwrap();
        for n in 0..300 {
            cmd("SET").arg(format!("a key with a long name that is said to all {n}")).arg(n).exec(&mut other).unwrap();
        }
        assert_eq!(PrivateRedis::session(&pool), session);
        // More than a socket holds: the answer does not come through, and that is noticed at once.
        for n in 0..50_000 {
            let set =
                cmd("SET").arg(format!("a key with a long name that is said to all {n}")).arg(n).get_packed_command();
            other.send_packed_command(&set).unwrap();
            other.recv_response().unwrap();
        }
        let begin = Instant::now();
        drop(pool.get().unwrap());
        assert!(begin.elapsed() < testing::patience() / 4, "{:?}", begin.elapsed());
    });
}

extern "C" fn nothing(_: libc::c_int) {}

/// A profiler's, say: a hundred a second, to whichever thread it hits.
fn ring(micros: i64, flags: libc::c_int) {
    // SAFETY: the handler does nothing; the structures are ours and whole.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut()), 0);
        let every = libc::timeval { tv_sec: 0, tv_usec: micros };
        let timer = libc::itimerval { it_interval: every, it_value: every };
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()), 0);
    }
}

/// Row 38: connecting, the test and undoing are begun again.
#[test]
fn signals_fail_neither_connects_nor_tests() {
    clean_process(|| {
        // Slow, so that signals come while it is waited for.
        let fake = Fake::start(|_, _, _| {
            thread::sleep(Duration::from_millis(1));
            Says::Usual
        });
        for flags in [libc::SA_RESTART, 0] {
            for path in ["", "1", "?protocol=resp3"] {
                let client = redis::Client::open(format!("{}{path}", fake.url())).unwrap();
                let pool = kit::tested().max_size(1).build(RedisManager::new(client)).unwrap();
                ring(2000, flags);
                for n in 0..30 {
                    pool.get().unwrap_or_else(|error| panic!("connect {n}, /{path}: {error:#}"));
                    pool.get().unwrap_or_else(|error| panic!("test {n}, /{path}: {error:#}"));
                    pool.disconnect();
                }
                ring(0, flags);
            }
        }
    });
}

/// A server that was away for a moment as it was first asked: no lasting harm.
#[test]
fn a_server_that_hung_up_once_is_asked_for_all_again() {
    clean_process(|| {
        let seen = Arc::new(AtomicUsize::new(0));
        let unwatched = Arc::clone(&seen);
        let fake = Fake::start(move |connection, _, words| match words[0].as_str() {
            _ if connection == 0 => Says::HangUp,
            "UNWATCH" => {
                unwatched.fetch_add(1, SeqCst);
                Says::Usual
            }
            _ => Says::Usual,
        });
        let pool = kit::tested().max_size(2).build(fake.client()).unwrap();
        let first = pool.get().unwrap();
        assert_eq!(seen.load(SeqCst), 0);
        drop((first, pool.get().unwrap()));
        assert!(seen.load(SeqCst) > 0);
        let error =
            kit::tested().build(redis::Client::open("redis://127.0.0.1:1/").unwrap()).unwrap().get().unwrap_err();
        assert!(error.is_connect() && error.source().is_some());
    });
}
