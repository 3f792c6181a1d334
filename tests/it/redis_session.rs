//! What a holder leaves on a Redis connection, and what the next one finds.

use crate::churn;
use crate::kit;
use crate::redis_fake::{Fake, Says};
use crate::servers::Server;
use forksafe::redis::{Clean, RedisManager, Test};
use forksafe::testing::{self, PrivateRedis, clean_process};
use forksafe::{Deadline, Fault, ManageConnection, Pool, Unread};
use redis::{Connection, ConnectionLike, Value, cmd};
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A socket's timeouts for reading and writing, in seconds and microseconds.
pub(crate) fn timeouts(socket: RawFd) -> [(i64, i64); 2] {
    [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO].map(|which| {
        // SAFETY: `time` is ours and `size` says how large; all zeros is a valid timeval.
        let time = unsafe {
            let mut time: libc::timeval = std::mem::zeroed();
            let mut size = size_of_val(&time) as libc::socklen_t;
            let at = (&raw mut time).cast();
            assert_eq!(libc::getsockopt(socket, libc::SOL_SOCKET, which, at, &raw mut size), 0);
            time
        };
        (time.tv_sec, time.tv_usec)
    })
}

fn pool_of_one(manager: RedisManager) -> Pool<RedisManager> {
    kit::tested().max_size(1).connection_timeout(testing::patience() / 4).build(manager).unwrap()
}

fn manager(redis: &PrivateRedis) -> RedisManager {
    RedisManager::new(redis.manager())
}

/// What a holder can leave, and how the next one sees it.
type Left = (&'static str, fn(&mut Connection), fn(&mut Connection) -> bool);

fn run(conn: &mut Connection, words: &[&str]) -> Value {
    let mut command = cmd(words[0]);
    words[1..].iter().for_each(|word| _ = command.arg(word));
    command.query(conn).unwrap()
}

const LEFTOVERS: [Left; 3] = [
    (
        "WATCH",
        |conn| drop(run(conn, &["WATCH", "stock"])),
        |conn| {
            // Somebody else changes the key.
            run(conn, &["CLIENT", "NO-EVICT", "OFF"]);
            redis::pipe().cmd("SET").arg("stock").arg(1).exec(conn).unwrap();
            redis::pipe().atomic().cmd("SET").arg("mine").arg(1).query::<Option<(String,)>>(conn).unwrap().is_none()
        },
    ),
    (
        "MULTI",
        |conn| drop(run(conn, &["MULTI"])),
        |conn| matches!(run(conn, &["GET", "who"]), Value::SimpleString(said) if said == "QUEUED"),
    ),
    (
        "SELECT",
        |conn| drop(run(conn, &["SELECT", "5"])),
        |conn| {
            let info: String = cmd("CLIENT").arg("INFO").query(conn).unwrap();
            !info.contains(" db=0 ")
        },
    ),
];

#[test]
fn what_nobody_wants_to_find_is_undone_with_the_test() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        for (what, leave, is_there) in LEFTOVERS {
            for (clean, keeps) in [(Clean::Nothing, true), (Clean::Leftovers, false), (Clean::Everything, false)] {
                let pool = pool_of_one(manager(&redis).on_check_out(clean));
                let session = PrivateRedis::ask(&mut pool.get().unwrap());
                leave(&mut pool.get().unwrap());
                let mut next = pool.get().unwrap();
                // An open transaction answers no test: it ends with any.
                let keeps = keeps && what != "MULTI";
                assert_eq!(is_there(&mut next), keeps, "{what}, {clean:?}");
                if !keeps {
                    assert_eq!(PrivateRedis::ask(&mut next), session, "{what}, {clean:?}: the same connection");
                }
            }
        }
    });
}

/// Its connection is the default user's after `RESET`, which may be allowed more.
#[test]
fn who_cannot_be_made_the_urls_user_is_not_lent() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let mut admin = redis.manager().get_connection().unwrap();
        for path in ["", "?protocol=resp3"] {
            run(&mut admin, &["ACL", "SETUSER", "app", "reset", "on", ">old", "~*", "&*", "+@all"]);
            let url = format!("redis://app:old@{}/{path}", redis.address());
            let pool = pool_of_one(RedisManager::open(url).unwrap().on_check_out(Clean::Everything));
            drop(pool.get().unwrap());
            run(&mut admin, &["ACL", "SETUSER", "app", "<old", ">new"]);
            let error = pool.get().unwrap_err();
            assert!(error.is_connect() && format!("{error:#}").contains("username-password"), "{path}: {error:#}");
        }
    });
}

/// `RESET` is allowed while a script runs, and `SELECT` is not.
#[test]
fn a_session_that_a_busy_server_made_as_new_is_not_lent_with_another_database() {
    clean_process(|| {
        let redis = PrivateRedis::start_with(&["--busy-reply-threshold", "1"]);
        let url = format!("redis://{}/3", redis.address());
        let pool = pool_of_one(RedisManager::open(url).unwrap().on_check_out(Clean::Everything));
        drop(pool.get().unwrap());
        let (mut runs, mut admin) =
            (redis.manager().get_connection().unwrap(), redis.manager().get_connection().unwrap());
        let script = std::thread::spawn(move || cmd("EVAL").arg("while true do end").arg(0).exec(&mut runs));
        testing::wait_until("it is busy", || cmd("PING").exec(&mut admin).is_err());
        let meanwhile = pool.get();
        cmd("SCRIPT").arg("KILL").exec(&mut admin).unwrap();
        assert!(script.join().unwrap().is_err());
        testing::wait_until("it is well", || cmd("PING").exec(&mut admin).is_ok());
        for mut conn in meanwhile.into_iter().chain(pool.try_get()) {
            let info: String = cmd("CLIENT").arg("INFO").query(&mut conn).unwrap();
            assert!(info.contains(" db=3 "), "{info}");
        }
    });
}

/// What is refused to one is not refused to all.
#[test]
fn who_says_no_password_teaches_nothing_to_who_does() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let mut admin = redis.manager().get_connection().unwrap();
        run(&mut admin, &["CONFIG", "SET", "requirepass", "pw"]);
        assert!(pool_of_one(manager(&redis)).get().unwrap_err().is_connect());
        let pool = pool_of_one(RedisManager::open(format!("redis://:pw@{}/3", redis.address())).unwrap());
        drop(run(&mut pool.get().unwrap(), &["SELECT", "5"]));
        let info: String = cmd("CLIENT").arg("INFO").query(&mut pool.get().unwrap()).unwrap();
        assert!(info.contains(" db=3 "), "{info}");
    });
}

#[test]
fn a_test_of_ones_own_does_not_pass_a_subscription_on() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = pool_of_one(manager(&redis).test(Test::command(cmd("TIME"))));
        let mut conn = pool.get().unwrap();
        conn.send_packed_command(&cmd("SUBSCRIBE").arg("news").get_packed_command()).unwrap();
        conn.recv_response().unwrap();
        drop(conn);
        assert_eq!(run(&mut pool.get().unwrap(), &["GET", "key"]), Value::Nil);
    });
}

/// A limit, and its two cures. A connection that was tested a moment ago is lent as it is.
#[test]
fn what_a_holder_leaves_is_found_by_the_next_one_within_test_after() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let (_, leave, is_there) = LEFTOVERS[2];
        for (rest, on_return, is_found) in [
            (testing::patience() * 10, Clean::Nothing, true),
            (testing::patience() * 10, Clean::Leftovers, false),
            (Duration::ZERO, Clean::Nothing, false),
        ] {
            let builder = Pool::builder().max_size(1).test_after(rest);
            let pool = builder.build(manager(&redis).on_return(on_return)).unwrap();
            leave(&mut pool.get().unwrap());
            assert_eq!(is_there(&mut pool.get().unwrap()), is_found, "{rest:?}, {on_return:?}");
        }
    });
}

/// The refusal of the test is an answer like any other, but in a transaction it is not the only one.
#[test]
fn who_may_neither_ping_nor_echo_finds_no_transaction_either() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let mut admin = redis.manager().get_connection().unwrap();
        run(&mut admin, &["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-ping", "-echo"]);
        let (_, leave, is_there) = LEFTOVERS[1];
        for clean in [Clean::Leftovers, Clean::Everything] {
            let url = format!("redis://app:pw@{}/", redis.address());
            let pool = pool_of_one(RedisManager::open(url).unwrap().on_check_out(clean));
            let id = |conn: &mut Connection| run(conn, &["CLIENT", "ID"]);
            let session = id(&mut pool.get().unwrap());
            leave(&mut pool.get().unwrap());
            let mut next = pool.get().unwrap();
            assert!(!is_there(&mut next), "{clean:?}");
            assert_eq!(id(&mut next), session, "{clean:?}: the same connection");
        }
    });
}

/// With RESP3 the number of subscriptions is told in reply to `UNSUBSCRIBE` only. Who may not say that, from the beginning or
/// from some moment on, keeps its connection, and finds what it left subscribed: a limit.
#[test]
fn who_may_not_unsubscribe_is_answered_all_the_same() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let mut admin = redis.manager().get_connection().unwrap();
        for when in ["from the beginning", "later"] {
            let user = when.replace(' ', "-");
            run(&mut admin, &["ACL", "SETUSER", &user, "on", ">pw", "~*", "&*", "+@all"]);
            let mut forbid = || run(&mut admin, &["ACL", "SETUSER", &user, "-unsubscribe"]);
            if when != "later" {
                forbid();
            }
            let url = format!("redis://{user}:pw@{}/?protocol=resp3", redis.address());
            let pool = pool_of_one(RedisManager::open(url).unwrap());
            let session = PrivateRedis::ask(&mut pool.get().unwrap());
            forbid();
            let mut conn = pool.get().unwrap();
            assert_eq!(PrivateRedis::ask(&mut conn), session, "{when}");
            conn.send_packed_command(&cmd("SUBSCRIBE").arg("news").get_packed_command()).unwrap();
            conn.recv_response().unwrap();
            drop(conn);
            assert_eq!(PrivateRedis::ask(&mut pool.get().unwrap()), session, "{when}");
            assert_ne!(run(&mut admin, &["PUBSUB", "CHANNELS"]), Value::Array(Vec::new()), "{when}");
        }
    });
}

/// The round trip of the test is the only one: one packet, and its answer.
#[test]
fn undoing_takes_no_round_trip_of_its_own() {
    clean_process(|| {
        let packets = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&packets);
        let fake = Fake::start(move |_, _, words| {
            seen.lock().unwrap().push(words[0].clone());
            Says::Usual
        });
        let pool = kit::tested().max_size(1).build(fake.client()).unwrap();
        drop(pool.get().unwrap());
        packets.lock().unwrap().clear();
        for _ in 0..3 {
            drop(pool.get().unwrap());
        }
        assert_eq!(*packets.lock().unwrap(), ["UNWATCH", "SELECT", "PING"].repeat(3));
        assert_eq!(fake.accepted(), 1);
    });
}

#[test]
fn everything_is_undone_if_that_is_asked_for() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let mut admin = redis.manager().get_connection().unwrap();
        run(&mut admin, &["ACL", "SETUSER", "other", "on", ">pw", "~*", "&*", "+@all"]);
        run(&mut admin, &["ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all"]);
        for (who, path, name) in [("", "", "default"), ("app:pw@", "5", "app"), ("app:pw@", "5?protocol=resp3", "app")]
        {
            let url = format!("redis://{who}{}/{path}", redis.address());
            let pool = pool_of_one(RedisManager::open(url.as_str()).unwrap().on_check_out(Clean::Everything));
            let session = PrivateRedis::ask(&mut pool.get().unwrap());
            let deeds: [&[&str]; 6] = [
                &["AUTH", "other", "pw"],
                &["CLIENT", "SETNAME", "mine"],
                &["SELECT", "7"],
                &["SUBSCRIBE", "news"],
                &["CLIENT", "REPLY", "OFF"],
                &["CLIENT", "REPLY", "SKIP"],
            ];
            for deed in deeds {
                let mut conn = pool.get().unwrap();
                let mut command = cmd(deed[0]);
                deed[1..].iter().for_each(|word| _ = command.arg(word));
                conn.send_packed_command(&command.get_packed_command()).unwrap();
                if deed[0] != "SUBSCRIBE" && deed[1] != "REPLY" {
                    conn.recv_response().unwrap();
                } else if deed[0] == "SUBSCRIBE" {
                    while !matches!(conn.recv_response().unwrap(), Value::Array(_) | Value::Push { .. }) {}
                }
                drop(conn);
                let mut conn = pool.get().unwrap();
                assert_eq!(run(&mut conn, &["ACL", "WHOAMI"]), Value::BulkString(name.into()), "{url} {deed:?}");
                let info: String = cmd("CLIENT").arg("INFO").query(&mut *conn).unwrap();
                let db = if path.is_empty() { 0 } else { 5 };
                assert!(info.contains(&format!(" db={db} ")) && info.contains(" name= "), "{url} {deed:?}: {info}");
                assert!(info.contains(" sub=0 "), "{url} {deed:?}: {info}");
                assert_eq!(PrivateRedis::ask(&mut conn), session, "{url} {deed:?}");
            }
        }
    });
}

/// Where connections are not tested, and where nothing may wait for the next checkout.
#[test]
fn a_return_can_undo_it_too() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        for (what, leave, is_there) in LEFTOVERS {
            for (clean, keeps) in [(Clean::Nothing, true), (Clean::Leftovers, false), (Clean::Everything, false)] {
                let untested = kit::tested().max_size(1).test_on_check_out(false);
                let pool = untested.build(manager(&redis).on_return(clean)).unwrap();
                leave(&mut pool.get().unwrap());
                assert_eq!(is_there(&mut pool.get().unwrap()), keeps, "{what}, {clean:?}");
            }
        }
    });
}

/// It answers no question, or not as an ordinary connection does: it must not reach the next holder.
#[test]
fn a_connection_that_was_left_subscribed_or_mute_is_replaced() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        for path in ["", "?protocol=resp3"] {
            for deed in [&["SUBSCRIBE", "news"][..], &["PSUBSCRIBE", "n*"], &["CLIENT", "REPLY", "OFF"]] {
                let url = format!("{}{path}", redis.url());
                let pool = pool_of_one(RedisManager::open(url).unwrap());
                let mut conn = pool.get().unwrap();
                let session = PrivateRedis::ask(&mut conn);
                let mut command = cmd(deed[0]);
                deed[1..].iter().for_each(|word| _ = command.arg(word));
                conn.send_packed_command(&command.get_packed_command()).unwrap();
                if deed[1] != "REPLY" {
                    conn.recv_response().unwrap();
                }
                let begin = Instant::now();
                let tested = pool.manager().is_valid_within(&mut conn, Deadline::after(Duration::from_millis(200)));
                assert!(tested.is_err(), "{path} {deed:?}");
                assert!(begin.elapsed() < testing::patience() / 4, "{path} {deed:?}");
                forksafe::PooledConnection::discard(conn);
                assert_ne!(PrivateRedis::session(&redis.pool()), session);
            }
        }
    });
}

/// `CLIENT REPLY SKIP` costs the next command its answer, and that is the test's.
#[test]
fn a_reply_that_a_holder_had_skipped_is_no_harm() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = redis.pool_of(1);
        let session = PrivateRedis::session(&pool);
        let skip = cmd("CLIENT").arg("REPLY").arg("SKIP").get_packed_command();
        pool.get().unwrap().send_packed_command(&skip).unwrap();
        assert_eq!(PrivateRedis::session(&pool), session);
    });
}

/// At each return, and with the test: whatever the holder set is not the next one's.
#[test]
fn timeouts_of_a_holder_are_put_back() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let millis = Duration::from_millis;
        for (usual, expected) in [(None, [(0, 0); 2]), (Some(millis(2500)), [(2, 500_000); 2])] {
            for tested in [true, false] {
                let manager = manager(&redis).read_timeout(usual).write_timeout(usual);
                let pool = kit::tested().max_size(1).test_on_check_out(tested).build(manager).unwrap();
                let conn = pool.get().unwrap();
                let socket = churn::sockets_to(redis.address().parse().unwrap())[0];
                assert_eq!(timeouts(socket), expected, "new");
                conn.set_read_timeout(Some(millis(50))).unwrap();
                conn.set_write_timeout(Some(millis(60))).unwrap();
                drop(conn);
                assert_eq!(timeouts(socket), expected, "returned; tested: {tested}");
                let mut conn = pool.get().unwrap();
                assert_eq!(timeouts(socket), expected, "lent; tested: {tested}");
                assert!(conn.check_connection());
            }
        }
    });
}

/// Outside a pool the connection is somebody's who goes on with it, whatever the test says.
#[test]
fn a_test_that_fails_leaves_the_timeouts_as_they_were() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let no = || Err((redis::ErrorKind::Client, "no").into());
        let subscribed =
            |conn: &mut Connection| drop(conn.send_packed_command(&cmd("SUBSCRIBE").arg("news").get_packed_command()));
        let of_ones_own = manager(&redis).test(Test::with(move |_, _| no()));
        let failing: [(_, fn(&mut Connection)); 2] = [(of_ones_own, |_| {}), (manager(&redis), subscribed)];
        for (manager, leave) in failing {
            let mut conn = redis.manager().get_connection().unwrap();
            let socket = *churn::sockets_to(redis.address().parse().unwrap()).last().unwrap();
            conn.set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
            conn.set_write_timeout(Some(Duration::from_millis(3500))).unwrap();
            leave(&mut conn);
            manager.is_valid(&mut conn).unwrap_err();
            assert_eq!(timeouts(socket), [(2, 500_000), (3, 500_000)], "{manager:?}");
        }
    });
}

/// The pool's number is not the client's that is there now: the pool notices at the next test, and publishes the new one.
#[test]
fn a_client_that_was_replaced_in_place_is_published_anew() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let pool = redis.pool_of(1);
        let mut conn = pool.get().unwrap();
        let session = PrivateRedis::ask(&mut conn);
        *conn = redis.manager().get_connection().unwrap();
        let other = PrivateRedis::ask(&mut conn);
        drop(conn);
        assert_ne!(other, session);
        assert_eq!(PrivateRedis::session(&pool), other);
        let stays = crate::kit::Door::new();
        let child = testing::child(|| stays.pass());
        testing::assert_nothing_shared(&[std::process::id(), child.pid()]);
        stays.open();
        child.join();
    });
}

#[test]
fn a_test_of_ones_own_decides() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let fails = Arc::new(Mutex::new(false));
        let asks = Arc::clone(&fails);
        let test = Test::with(move |conn, deadline| {
            assert!(!deadline.is_over() && conn.check_connection());
            if *asks.lock().unwrap() { Err(io::Error::other("not fit").into()) } else { Ok(()) }
        });
        let pool = pool_of_one(manager(&redis).test(test));
        let session = PrivateRedis::ask(&mut pool.get().unwrap());
        assert_eq!(PrivateRedis::ask(&mut pool.get().unwrap()), session);
        *fails.lock().unwrap() = true;
        assert_ne!(PrivateRedis::ask(&mut pool.get().unwrap()), session);
        // A command: that the server refuses it is an answer, too.
        for command in ["TIME", "NOSUCH"] {
            let pool = pool_of_one(manager(&redis).test(Test::command(cmd(command))));
            let session = PrivateRedis::ask(&mut pool.get().unwrap());
            assert_eq!(PrivateRedis::ask(&mut pool.get().unwrap()), session, "{command}");
        }
    });
}

#[test]
fn what_lies_unread_is_news_or_has_to_be_asked_about() {
    clean_process(|| {
        let redis = PrivateRedis::start();
        let client = redis.manager();
        let mut conn = client.get_connection().unwrap();
        for (bytes, means) in [
            (&b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n"[..], Unread::Fine),
            (b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\n", Unread::Test),
            (b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n", Unread::Test),
            (b"$2\r\nno\r\n", Unread::Test),
            (b"-ERR no\r\n", Unread::Test),
            (b"\x17\x03\x03", Unread::Test),
        ] {
            assert_eq!(client.on_unread(&mut conn, bytes), means, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(
            client.classify(&redis::RedisError::from(io::Error::from(io::ErrorKind::BrokenPipe))),
            Fault::Connection
        );
    });
}

#[test]
fn a_manager_shows_no_credentials() {
    let url = "redis://somebody:s3cr3t@127.0.0.1:6379/5";
    let manager = RedisManager::open(url).unwrap();
    assert_eq!(manager.target(), "127.0.0.1:6379");
    let shown = format!("{manager:?}");
    assert!(shown.contains("127.0.0.1:6379") && !shown.contains("s3cr3t") && !shown.contains("somebody"), "{shown}");
}
