//! PostgreSQL on threads that tokio has to do with: row 34. And on one whose process has lost its main thread.

use crate::kit::{self, StopOnDrop, exit_code, leave};
use crate::servers::Server;
use forksafe::postgres::{self as pg, PostgresManager};
use forksafe::testing::{self, PrivatePostgres, clean_process};
use forksafe::{Error, Pool, PooledConnection};
use postgres::{Client, NoTls};
use std::error::Error as _;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task;

const CHILDREN: usize = 60;

fn threads_of(runtime: Runtime, body: impl FnOnce(&Runtime)) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..3 {
            // Each takes a lock of the runtime's, for a moment.
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    runtime.handle().block_on(async {});
                }
            });
        }
        body(&runtime);
    });
    runtime.shutdown_background();
}

fn many_threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

type PgPool = Pool<PostgresManager<NoTls>>;

fn session(pool: &PgPool) -> u64 {
    PrivatePostgres::ask(&mut pool.get().unwrap())
}

fn children_connect(pool: &PgPool) {
    let here = session(pool);
    for _ in 0..CHILDREN {
        assert_ne!(testing::child(|| session(pool)).join(), here);
    }
    assert_eq!(session(pool), here);
}

#[test]
fn children_of_a_spawn_blocking_thread_never_wait_for_their_parents_runtime() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool();
        threads_of(many_threads(), |runtime| {
            let theirs = pool.clone();
            runtime.block_on(runtime.spawn_blocking(move || children_connect(&theirs))).unwrap();
        });
    });
}

#[test]
fn children_of_a_block_in_place_thread_never_wait_for_their_parents_runtime() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool();
        threads_of(many_threads(), |runtime| {
            runtime.block_on(async { task::block_in_place(|| children_connect(&pool)) });
        });
    });
}

/// A thread that is in a runtime's context, and in none of its futures.
#[test]
fn children_of_a_thread_that_has_entered_a_runtime_never_wait_for_it() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool();
        threads_of(one_thread(), |runtime| {
            let _inside = runtime.enter();
            children_connect(&pool);
        });
    });
}

static PANICS: AtomicU32 = AtomicU32::new(0);

fn is_refused_without_a_panic(pool: &PgPool) {
    std::panic::set_hook(Box::new(|_| {
        PANICS.fetch_add(1, SeqCst);
    }));
    let error = pool.get_timeout(Duration::from_secs(5)).map(drop).unwrap_err();
    assert!(is_inside_runtime(&error), "{error:#}");
    assert_eq!(PANICS.load(SeqCst), 0, "tokio was asked by a panic, which takes locks and writes on stderr");
}

fn is_inside_runtime(error: &Error) -> bool {
    let source = error.source().and_then(|source| source.downcast_ref());
    matches!(source, Some(pg::Error::InsideRuntime))
}

/// The child is inside of a future of its parent's.
#[test]
fn children_of_async_code_are_told_so_and_connect_on_a_thread_of_their_own() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool();
        for runtime in [one_thread(), many_threads()] {
            threads_of(runtime, |runtime| {
                runtime.block_on(async {
                    for _ in 0..CHILDREN / 2 {
                        let child = testing::child(|| {
                            is_refused_without_a_panic(&pool);
                            thread::scope(|scope| scope.spawn(|| session(&pool)).join().unwrap());
                        });
                        child.join();
                    }
                });
            });
        }
    });
}

#[test]
fn async_code_is_told_so_without_a_panic_and_keeps_its_budget() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool();
        for runtime in [one_thread(), many_threads()] {
            runtime.block_on(async {
                is_refused_without_a_panic(&pool);
                // What tokio lets a future do in one go: none of it was used up.
                let mut here = std::task::Context::from_waker(std::task::Waker::noop());
                for _ in 0..128 {
                    match task::coop::poll_proceed(&mut here) {
                        std::task::Poll::Ready(step) => step.made_progress(),
                        std::task::Poll::Pending => panic!("the budget is spent"),
                    }
                }
                assert!(task::coop::poll_proceed(&mut here).is_pending());
                is_refused_without_a_panic(&pool);
            });
        }
        // Nobody but tokio knows of this one.
        let error = one_thread().block_on(task::unconstrained(async { pool.get().map(drop).unwrap_err() }));
        assert!(is_inside_runtime(&error), "{error:#}");
        assert_eq!(PANICS.load(SeqCst), 1);
        assert!(Handle::try_current().is_err());
        session(&pool);
    });
}

struct Stopped(u32);

impl Drop for Stopped {
    fn drop(&mut self) {
        kit::kill(self.0, libc::SIGCONT);
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn stop(conn: &mut Client) -> Stopped {
    let pid: i32 = conn.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    kit::kill(pid as u32, libc::SIGSTOP);
    Stopped(pid as u32)
}

/// The goodbyes wait for an answer that does not come.
#[test]
fn goodbyes_in_async_code_take_one_thread_and_one_deadline() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool_of(6);
        let mut guards: Vec<_> = (0..6).map(|_| pool.get().unwrap()).collect();
        let _stopped: Vec<Stopped> = guards.iter_mut().map(|conn| stop(conn)).collect();
        let runtime = Builder::new_multi_thread().worker_threads(6).build().unwrap();
        let (begin, before) = (Instant::now(), threads());
        let ends: Vec<_> =
            guards.drain(..).map(|conn| runtime.spawn(async { PooledConnection::discard(conn) })).collect();
        let mut most = before;
        while !ends.iter().all(|end| end.is_finished()) {
            most = most.max(threads());
            thread::yield_now();
        }
        assert!(most <= before + 1, "{} threads at once", most - before);
        assert!(begin.elapsed() < Duration::from_secs(9), "{:?} for all of them", begin.elapsed());
    });
}

/// Stops the session of a connection, so that its goodbye takes five seconds; begins it in async code.
fn begin_a_long_goodbye(runtime: &Runtime, pool: &PgPool) -> (Stopped, task::JoinHandle<()>) {
    let mut conn = pool.get().unwrap();
    let stopped = stop(&mut conn);
    let before = threads();
    let end = runtime.spawn(async { PooledConnection::discard(conn) });
    // It has begun when there is a thread for it.
    while threads() == before {
        thread::yield_now();
    }
    (stopped, end)
}

#[test]
fn a_goodbye_in_async_code_does_not_wait_for_anothers() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool_of(2);
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        drop([pool.get().unwrap(), pool.get().unwrap()]);
        let (_stopped, other) = begin_a_long_goodbye(&runtime, &pool);
        let begin = Instant::now();
        let closed = one_thread().block_on(async { pool.close_timeout(Duration::from_millis(500)) });
        assert!(closed.is_err(), "the other is still in use");
        assert!(!other.is_finished(), "within its own time: {:?}", begin.elapsed());
    });
}

/// The parent's thread is not there.
#[test]
fn a_goodbye_in_a_child_does_not_wait_for_its_parents() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool_of(1);
        let runtime = Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (_stopped, other) = begin_a_long_goodbye(&runtime, &pool);
        let child = testing::child(|| {
            let conn = pool.get().unwrap();
            one_thread().block_on(async { PooledConnection::discard(conn) });
        });
        child.join();
        assert!(!other.is_finished(), "the child did not wait for it");
    });
}

/// The session ends all the same.
#[test]
fn a_goodbye_in_async_code_for_which_there_is_no_thread_ends_the_session() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool_of(1);
        let conn = pool.get().unwrap();
        let runtime = one_thread();
        for call in [libc::SYS_clone, libc::SYS_clone3] {
            kit::deny(call, None, libc::EPERM);
        }
        runtime.block_on(async { PooledConnection::discard(conn) });
        server.wait_until("the session has ended", |open| open.is_empty());
    });
}

#[test]
fn a_process_whose_main_thread_has_ended_connects() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = server.pool();
        let child = kit::fork().unwrap_or_else(|| {
            let theirs = pool.clone();
            thread::spawn(move || {
                leave(|| {
                    let main = format!("/proc/{0}/task/{0}/stat", std::process::id());
                    while !std::fs::read_to_string(&main).unwrap().contains(") Z ") {
                        thread::yield_now();
                    }
                    session(&theirs);
                })
            });
            // SAFETY: ends this thread, and nothing else.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            unreachable!("the thread has ended")
        });
        assert_eq!(exit_code(child), 0);
    });
}

/// Who asks in the wrong place is told so, and destroys nothing.
#[test]
fn a_get_inside_async_code_leaves_the_idle_connection_alone() {
    clean_process(|| {
        let server = PrivatePostgres::start();
        let pool = kit::tested().retry_connect(true).build(server.manager()).unwrap();
        let here = session(&pool);
        one_thread().block_on(async {
            is_refused_without_a_panic(&pool);
            let both = [pool.try_get().is_some(), pool.get().is_ok()];
            assert_eq!((both, pool.state().connections), ([false; 2], 1));
        });
        assert_eq!(session(&pool), here);
    });
}
