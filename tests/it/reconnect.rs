//! Row 23: a hundred children of one parent want their connections at the same moment.

use crate::kit;
use crate::servers::Server;
use forksafe::testing::{self, Address, PrivatePostgres, PrivateRedis, Steps, Tap, Witness, clean_process};
use forksafe::{Builder, ManageConnection, Pool, postgres::PostgresManager};
use postgres::NoTls;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

const CHILDREN: usize = 100;
const SIZE: usize = 2;
/// More threads than a pool has connections.
const THREADS: usize = 4;
/// What there must be room for: the connection that the parent goes on holding is one.
const ALL: usize = CHILDREN * SIZE + 1;
/// Where that is not to be had: the parent's connection, and those of 59 children.
const FEW: usize = 60;

fn pool<M: ManageConnection>(manager: M) -> Pool<M> {
    let builder: Builder<M> = kit::tested().max_size(SIZE as u32).connection_timeout(testing::patience() * 3 / 4);
    builder.build(manager).unwrap()
}

/// Each child's threads fill its pool; when all children have, the server has as many connections as there can be, and has
/// been knocked at as often.
fn all_are_served_at_the_first_knock<S: Server>(server: &S, manager: S::Manager, knocks: impl Fn() -> usize) {
    let pool = pool(manager);
    let mut held = pool.get().unwrap();
    let session = S::ask(&mut held);
    let steps = Steps::new(&["ready", "go", "full", "end"]);
    let children: Vec<_> = (0..CHILDREN)
        .map(|_| {
            testing::child(|| {
                steps.take("ready");
                steps.wait_for("go");
                let full = Barrier::new(SIZE);
                let sessions = thread::scope(|scope| {
                    let fills = || {
                        let mut held = pool.get().unwrap();
                        let session = S::ask(&mut held);
                        if full.wait().is_leader() {
                            steps.take("full");
                        }
                        steps.wait_for("end");
                        session
                    };
                    let filling: Vec<_> = (0..SIZE).map(|_| scope.spawn(fills)).collect();
                    // They come to a pool that is full, or about to be.
                    let waiting: Vec<_> = (SIZE..THREADS).map(|_| scope.spawn(|| S::session(&pool))).collect();
                    let all = filling.into_iter().chain(waiting);
                    all.map(|thread| thread.join().unwrap()).collect::<BTreeSet<u64>>()
                });
                assert!(sessions.len() <= SIZE, "{sessions:?}");
                sessions
            })
            .deadline(testing::patience() * 3)
        })
        .collect();
    steps.wait_for_times("ready", CHILDREN as u32);
    let begin = Instant::now();
    steps.take("go");
    wait_for_all(&steps, "full");
    println!("{CHILDREN} children have {SIZE} connections each after {:?}", begin.elapsed());
    assert_eq!(server.open().len(), ALL);
    assert_eq!(knocks(), ALL, "attempts to connect");
    steps.take("end");
    let mut seen = BTreeSet::from([session]);
    for child in children {
        let sessions = child.join();
        assert!(seen.is_disjoint(&sessions), "{seen:?} and {sessions:?}");
        seen.extend(sessions);
    }
    assert_eq!(S::ask(&mut held), session);
    assert_eq!(knocks(), ALL, "and no more came later");
    server.wait_until("the children's connections have ended", |open| *open == [session]);
    server.judge();
}

/// A hundred processes on two cores take their time, and patience is for one.
fn wait_for_all(steps: &Steps, step: &str) {
    let until = Instant::now() + testing::patience() * 2;
    while steps.taken(step) < CHILDREN as u32 {
        assert!(Instant::now() < until, "{} of {CHILDREN} came to {step:?}", steps.taken(step));
        thread::sleep(Duration::from_millis(1));
    }
}

/// There is room for some of the children. Each of the others is refused at once, clearly, and after one attempt; and is
/// served when there is room.
fn who_finds_no_room_is_told_so_after_one_knock<S: Server>(server: &S, manager: S::Manager, tap: &Tap, clear: &str) {
    let knocks = || tap.connections().len();
    let pool = pool(manager);
    let mut held = pool.get().unwrap();
    let session = S::ask(&mut held);
    let steps = Steps::new(&["ready", "go", "tried", "leave", "room"]);
    let children: Vec<_> = (0..CHILDREN)
        .map(|_| {
            testing::child(|| {
                steps.take("ready");
                steps.wait_for("go");
                let begin = Instant::now();
                let got = pool.get().map(|mut conn| {
                    S::ask(&mut conn);
                    conn
                });
                let took = begin.elapsed();
                steps.take("tried");
                match got {
                    Ok(conn) => {
                        steps.wait_for("leave");
                        drop(conn);
                        None
                    }
                    Err(error) => {
                        assert!(error.is_connect(), "{error:#}");
                        assert!(format!("{error:#}").contains(clear), "{error:#}");
                        assert_eq!(pool.state().connections, 0, "nothing is left of the attempt");
                        steps.wait_for("room");
                        S::session(&pool);
                        Some(took.as_millis() as u64)
                    }
                }
            })
            .deadline(testing::patience() * 3)
        })
        .collect();
    steps.wait_for_times("ready", CHILDREN as u32);
    steps.take("go");
    wait_for_all(&steps, "tried");
    assert_eq!(knocks(), CHILDREN + 1, "one attempt each");
    steps.take("leave");
    // The server is still too full to be asked.
    tap.wait_until("there is room", |seen| seen.values().filter(|wire| !wire.server_ended).count() == 1);
    steps.take("room");
    let refused: Vec<u64> = children.into_iter().filter_map(|child| child.join()).collect();
    println!("{} of {CHILDREN} were refused, the last after {:?} ms", refused.len(), refused.iter().max());
    assert_eq!(refused.len(), CHILDREN + 1 - FEW);
    assert_eq!(knocks(), CHILDREN + 1 + refused.len(), "and one each when there was room");
    assert_eq!(S::ask(&mut held), session);
    server.judge();
}

#[test]
fn a_hundred_children_open_what_their_pools_may_hold_and_no_more() {
    clean_process(|| {
        let witness = Witness::start();
        all_are_served_at_the_first_knock(&witness, witness.manager(), || witness.connections().len());
    });
}

/// One more, for the test's own questions to the server.
fn settings(room: usize) -> [String; 2] {
    ["-c".to_owned(), format!("max_connections={}", room + 1)]
}

fn redis(room: usize, database: &str) -> (PrivateRedis, Tap, redis::Client) {
    let server = PrivateRedis::start_with(&["--maxclients", &(room + 1).to_string()]);
    let tap = Tap::before(server.address().parse::<SocketAddr>().unwrap());
    let client = redis::Client::open(format!("redis://{}/{database}", tap.address())).unwrap();
    (server, tap, client)
}

#[test]
fn a_hundred_children_fit_a_redis_that_has_just_room_for_them() {
    clean_process(|| {
        let (server, tap, client) = redis(ALL, "");
        all_are_served_at_the_first_knock(&server, client, || tap.connections().len());
    });
}

/// With a database to select, because the answer to that counts.
#[test]
fn who_finds_redis_full_is_told_so_after_one_attempt() {
    clean_process(|| {
        let (server, tap, client) = redis(FEW - 1, "1");
        who_finds_no_room_is_told_so_after_one_knock(&server, client, &tap, "max number of clients");
    });
}

fn postgres(room: usize) -> (PrivatePostgres, Tap, PostgresManager<NoTls>) {
    let settings = settings(room);
    let server = PrivatePostgres::start_with(&settings.each_ref().map(String::as_str));
    let tap = Tap::before(SocketAddr::from(([127, 0, 0, 1], server.port().unwrap())));
    let Address::Tcp(address) = tap.address() else { unreachable!("as its server") };
    // The name by which the server's sessions are told from the test's own questions.
    let name = server.manager().config().get_application_name().unwrap().to_owned();
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(address.port()).user("postgres").dbname("postgres").application_name(&name);
    (server, tap, PostgresManager::new(config, NoTls))
}

#[test]
fn a_hundred_children_fit_a_postgres_that_has_just_room_for_them() {
    clean_process(|| {
        let (server, tap, manager) = postgres(ALL);
        all_are_served_at_the_first_knock(&server, manager, || tap.connections().len());
    });
}

#[test]
fn who_finds_postgres_full_is_told_so_after_one_attempt() {
    clean_process(|| {
        let (server, tap, manager) = postgres(FEW - 1);
        who_finds_no_room_is_told_so_after_one_knock(&server, manager, &tap, "too many clients");
    });
}
