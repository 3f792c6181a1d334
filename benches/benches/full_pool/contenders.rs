//! The pools, each with as many connections as it may have, and none of them asking a server whether it is still there.

use forksafe_benches::crowd::Turns;
use forksafe_benches::numbers::Numbers;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use tokio::runtime::{Builder, Runtime};

pub(crate) const NAMES: [&str; 6] = ["forksafe", "r2d2", "Mutex + Condvar", "bb8", "deadpool", "mobc"];

/// What one thread does with a pool.
pub(crate) type Work = Box<dyn Fn(&mut Turns) + Sync>;

pub(crate) fn open(name: &str, connections: u32) -> Work {
    match name {
        "forksafe" => forksafe(connections),
        "r2d2" => r2d2(connections),
        "bb8" => bb8(connections),
        "deadpool" => deadpool(connections),
        "mobc" => mobc(connections),
        _ => condvar(connections),
    }
}

fn forksafe(connections: u32) -> Work {
    let pool = forksafe::Pool::builder().max_size(connections).min_idle(Some(connections)).test_on_check_out(false);
    let pool = pool.build(Numbers).expect("a pool");
    Box::new(move |turns| {
        while turns.goes_on() {
            let _conn = pool.get().expect("a connection");
            turns.has_it();
        }
    })
}

fn r2d2(connections: u32) -> Work {
    let pool = r2d2::Pool::builder().max_size(connections).test_on_check_out(false).build(Numbers).expect("a pool");
    Box::new(move |turns| {
        while turns.goes_on() {
            let _conn = pool.get().expect("a connection");
            turns.has_it();
        }
    })
}

/// What everybody writes at first: no deadlines, no health, no fork.
fn condvar(connections: u32) -> Work {
    let (idle, comes_back) = (Mutex::new((0..connections).collect::<VecDeque<_>>()), Condvar::new());
    Box::new(move |turns| {
        while turns.goes_on() {
            let conn = {
                let mut idle =
                    comes_back.wait_while(idle.lock().expect("no panic"), |idle| idle.is_empty()).expect("no panic");
                idle.pop_front().expect("not empty")
            };
            turns.has_it();
            idle.lock().expect("no panic").push_back(conn);
            comes_back.notify_one();
        }
    })
}

/// For an asynchronous pool the kindest way to be used by threads: a runtime each, entered once.
fn bb8(connections: u32) -> Work {
    let reaper = runtime();
    let pool = bb8::Pool::builder().max_size(connections).min_idle(connections).test_on_check_out(false);
    let pool = reaper.block_on(pool.build(Numbers)).expect("a pool");
    Box::new(move |turns| {
        let _alive = &reaper;
        runtime().block_on(async {
            while turns.goes_on() {
                let _conn = pool.get().await.expect("a connection");
                turns.has_it();
            }
        });
    })
}

fn deadpool(connections: u32) -> Work {
    let pool = deadpool::managed::Pool::<Numbers>::builder(Numbers).max_size(connections as usize);
    let pool = pool.build().expect("a pool");
    Box::new(move |turns| {
        runtime().block_on(async {
            while turns.goes_on() {
                let _conn = pool.get().await.expect("a connection");
                turns.has_it();
            }
        });
    })
}

fn mobc(connections: u32) -> Work {
    let size = u64::from(connections);
    let pool = mobc::Pool::builder().max_open(size).max_idle(size).test_on_check_out(false).build(Numbers);
    Box::new(move |turns| {
        runtime().block_on(async {
            while turns.goes_on() {
                let _conn = pool.get().await.expect("a connection");
                turns.has_it();
            }
        });
    })
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}
