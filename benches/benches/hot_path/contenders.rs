//! The pools, each with eight idle connections and none of them asking a server whether it is still there.

use crossbeam_queue::ArrayQueue;
use forksafe_benches::numbers::{Numbers, Sockets};
use std::hint::black_box;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

const CONNECTIONS: u32 = 8;

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// Checks out and returns so many times, on the calling thread.
    pub(crate) check_out: Box<dyn Fn(u64) + Sync>,
}

impl Contender {
    fn new(name: &'static str, check_out: impl Fn(u64) + Sync + 'static) -> Self {
        Self { name, check_out: Box::new(check_out) }
    }
}

pub(crate) fn contenders() -> Vec<Contender> {
    vec![
        array_queue(),
        forksafe("forksafe", Duration::MAX, Numbers),
        forksafe("forksafe, looks each 500 ms", Duration::from_millis(500), Numbers),
        forksafe("forksafe, 1 descriptor", Duration::MAX, Sockets),
        watched(),
        nearly_all_lent(),
        r2d2(),
        bb8(),
        deadpool(),
    ]
}

/// No pool, but the floor under any that keeps its connections in a queue.
fn array_queue() -> Contender {
    let queue = ArrayQueue::new(CONNECTIONS as usize);
    (0..CONNECTIONS).for_each(|n| queue.push(n).expect("room"));
    Contender::new("crossbeam ArrayQueue", move |times| {
        for _ in 0..times {
            let connection = black_box(queue.pop().expect("one for each thread"));
            queue.push(connection).expect("its place");
        }
    })
}

/// Who never looks at a connection again, as r2d2 without its test, sets `test_after` to more than any lifetime.
fn forksafe<M: forksafe::ManageConnection>(name: &'static str, test_after: Duration, manager: M) -> Contender {
    let pool = forksafe::Pool::builder()
        .test_after(test_after)
        .max_size(CONNECTIONS)
        .min_idle(Some(CONNECTIONS))
        .test_on_check_out(false)
        .build(manager)
        .expect("a pool");
    Contender::new(name, move |times| {
        for _ in 0..times {
            black_box(pool.get().expect("one for each thread"));
        }
    })
}

/// Each checkout and each return is told to somebody, who does nothing about it.
fn watched() -> Contender {
    let pool = forksafe::Pool::builder()
        .test_after(Duration::MAX)
        .max_size(CONNECTIONS)
        .min_idle(Some(CONNECTIONS))
        .event_handler(Box::new(forksafe::event::NopEventHandler))
        .build(Numbers)
        .expect("a pool");
    Contender::new("forksafe, each loan is told", move |times| {
        for _ in 0..times {
            black_box(pool.get().expect("one for each thread"));
        }
    })
}

/// Of a thousand connections as many as usual are idle, and all others lent.
fn nearly_all_lent() -> Contender {
    const ALL: u32 = 1000;
    let pool = forksafe::Pool::builder().test_after(Duration::MAX).max_size(ALL).min_idle(Some(ALL));
    let pool = pool.test_on_check_out(false).build(Numbers).expect("a pool");
    let lent: Vec<_> = (CONNECTIONS..ALL).map(|_| pool.get().expect("an idle one")).collect();
    Contender::new("forksafe, 992 of 1000 lent", move |times| {
        let _lent = &lent;
        for _ in 0..times {
            black_box(pool.get().expect("one for each thread"));
        }
    })
}

fn r2d2() -> Contender {
    let pool = r2d2::Pool::builder().max_size(CONNECTIONS).test_on_check_out(false).build(Numbers).expect("a pool");
    Contender::new("r2d2", move |times| {
        for _ in 0..times {
            black_box(pool.get().expect("one for each thread"));
        }
    })
}

/// For an asynchronous pool the kindest way to be used: one runtime per thread, entered once for all the checkouts.
fn bb8() -> Contender {
    let reaper = runtime();
    let pool = bb8::Pool::builder().max_size(CONNECTIONS).min_idle(CONNECTIONS).test_on_check_out(false);
    let pool = reaper.block_on(pool.build(Numbers)).expect("a pool");
    Contender::new("bb8", move |times| {
        let _alive = &reaper;
        runtime().block_on(async {
            for _ in 0..times {
                black_box(pool.get().await.expect("one for each thread"));
            }
        });
    })
}

fn deadpool() -> Contender {
    let pool = deadpool::managed::Pool::<Numbers>::builder(Numbers).max_size(CONNECTIONS as usize);
    let pool = pool.build().expect("a pool");
    Contender::new("deadpool", move |times| {
        runtime().block_on(async {
            for _ in 0..times {
                let _returned = black_box(pool.get().await.expect("one for each thread"));
            }
        });
    })
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}
