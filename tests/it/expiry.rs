//! Age and rest, on a clock that the tests move: what is lent, what is closed, and by whom.

use crate::kit::tested;
use forksafe::fork::Descriptors;
use forksafe::testing::{advance_clock, clean_process};
use forksafe::{ManageConnection, Pool, PooledConnection};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// Numbers its connections, knows how many there are, and counts what is asked of it.
#[derive(Default)]
struct Counts {
    opened: AtomicU64,
    closed: Arc<AtomicU64>,
    tested: AtomicU64,
}

struct Counted(u64, Arc<AtomicU64>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, SeqCst);
    }
}

impl ManageConnection for Counts {
    type Connection = Counted;
    type Error = Infallible;

    fn connect(&self) -> Result<Counted, Infallible> {
        Ok(Counted(self.opened.fetch_add(1, SeqCst), Arc::clone(&self.closed)))
    }
    fn is_valid(&self, _: &mut Counted) -> Result<(), Infallible> {
        self.tested.fetch_add(1, SeqCst);
        Ok(())
    }
    fn has_broken(&self, _: &mut Counted) -> bool {
        false
    }
    fn descriptors(&self, _: &Counted) -> Descriptors {
        Descriptors::none()
    }
}

const MINUTE: Duration = Duration::from_secs(60);

fn fill(pool: &Pool<Counts>, number: usize) {
    drop((0..number).map(|_| pool.get().unwrap()).collect::<Vec<_>>());
}

/// What was opened together is not replaced together.
#[test]
fn lifetimes_have_jitter_that_is_fixed_at_birth() {
    clean_process(|| {
        let lifetime = MINUTE * 60;
        let pool = Pool::builder()
            .max_size(40)
            .max_lifetime(Some(lifetime))
            .idle_timeout(None)
            .build(Counts::default())
            .unwrap();
        fill(&pool, 40);
        let left = || {
            fill(&pool, 40); // Who has expired is replaced.
            40 - (pool.manager().opened.load(SeqCst) - 40).min(40)
        };
        advance_clock(lifetime * 89 / 100);
        assert_eq!(left(), 40, "none goes more than a tenth early");
        advance_clock(lifetime * 6 / 100);
        let half = left();
        assert!((5..=35).contains(&half), "half way through the jitter some are left: {half}");
        assert_eq!(left(), half, "it is not rolled again");
        advance_clock(lifetime * 6 / 100);
        assert_eq!(left(), 0, "and none is older than the lifetime");
    });
}

/// Workers of one server differ in it, though they are copies of one another.
#[test]
fn siblings_do_not_expire_together() {
    clean_process(|| {
        let lifetime = MINUTE * 60;
        let pool = Pool::builder()
            .max_size(5)
            .max_lifetime(Some(lifetime))
            .idle_timeout(None)
            .build(Counts::default())
            .unwrap();
        let children: Vec<_> = (0..8)
            .map(|_| {
                forksafe::testing::child(|| {
                    fill(&pool, 5);
                    advance_clock(lifetime * 90 / 100);
                    // In steps of a thousandth: when has each been replaced?
                    let mut ends = Vec::new();
                    for step in 0..102_u64 {
                        let before = pool.manager().opened.load(SeqCst);
                        fill(&pool, 5);
                        ends.extend(vec![step; (pool.manager().opened.load(SeqCst) - before) as usize]);
                        advance_clock(lifetime / 1000);
                    }
                    ends.truncate(5);
                    ends
                })
            })
            .collect();
        let mut ends: Vec<u64> = children.into_iter().flat_map(|child| child.join()).collect();
        assert_eq!(ends.len(), 40);
        ends.sort_unstable();
        let most = ends.chunk_by(|a, b| a == b).map(<[u64]>::len).max().unwrap();
        assert!(most < 8, "{most} of 40 in the same thousandth of the lifetime: {ends:?}");
    });
}

/// A burst's surplus goes by ordinary traffic, down to `min_idle`, without anybody calling `maintain`.
#[test]
fn a_bursts_surplus_is_closed_by_ordinary_traffic() {
    clean_process(|| {
        let pool = Pool::builder()
            .max_size(20)
            .min_idle(Some(3))
            .idle_timeout(Some(MINUTE))
            .max_lifetime(None)
            .build(Counts::default())
            .unwrap();
        fill(&pool, 20);
        assert_eq!(pool.state().connections, 20);
        for _ in 0..20 {
            advance_clock(MINUTE / 10);
            drop(pool.get().unwrap());
            assert!(pool.state().connections >= 3, "never below min_idle");
        }
        assert_eq!(pool.state().connections, 3, "one that is used, and what min_idle keeps");
        assert_eq!(pool.manager().opened.load(SeqCst), 20, "and nothing was opened in their stead");
    });
}

/// What `min_idle` keeps beyond its time is tested and lent, and not replaced one by one.
#[test]
fn what_min_idle_keeps_is_lent() {
    clean_process(|| {
        let pool = tested()
            .max_size(5)
            .min_idle(Some(3))
            .idle_timeout(Some(MINUTE))
            .max_lifetime(None)
            .build(Counts::default())
            .unwrap();
        for maintains in [true, false] {
            advance_clock(MINUTE * 2);
            let tested = pool.manager().tested.load(SeqCst);
            if maintains {
                pool.maintain();
                assert_eq!(pool.manager().tested.load(SeqCst), tested + 3);
            }
            let tested = pool.manager().tested.load(SeqCst);
            fill(&pool, 3);
            assert_eq!(pool.manager().opened.load(SeqCst), 3, "none was replaced; maintains: {maintains}");
            assert!(pool.manager().tested.load(SeqCst) > tested);
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Get,
    Return,
    Discard,
    Advance(u64),
    Maintain,
    Disconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Get),
        4 => Just(Step::Return),
        1 => Just(Step::Discard),
        3 => (1..120_u64).prop_map(Step::Advance),
        1 => Just(Step::Maintain),
        1 => Just(Step::Disconnect),
    ]
}

/// Whatever is done in whatever order: nobody gets a connection that is too old, what is open is what was opened and not closed,
/// never more than there may be, and reaping stops at `min_idle`.
#[test]
fn no_order_of_steps_breaks_the_rules_of_age() {
    clean_process(|| {
        let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
        let input = (proptest::collection::vec(step(), 1..60), 0..3_u32, any::<bool>());
        let run = |(steps, min_idle, test): (Vec<Step>, u32, bool)| {
            const LIFETIME: u64 = 300;
            let pool = Pool::builder()
                .max_size(4)
                .min_idle(Some(min_idle))
                .test_on_check_out(test)
                .idle_timeout(Some(Duration::from_secs(60)))
                .max_lifetime(Some(Duration::from_secs(LIFETIME)))
                .connection_timeout(Duration::ZERO)
                .build_unchecked(Counts::default());
            let (mut held, mut now, mut born) = (Vec::new(), 0, Vec::new());
            for step in steps {
                let idle = pool.state().idle_connections;
                match step {
                    // A pool without patience opens nothing: what there is was opened by maintain, or here.
                    Step::Get => {
                        if let Ok(conn) = pool.get_timeout(Duration::from_secs(1)) {
                            born.resize(born.len().max(conn.0 as usize + 1), now);
                            prop_assert!(now - born[conn.0 as usize] <= LIFETIME, "{} is too old", conn.0);
                            held.push(conn);
                        } else {
                            prop_assert_eq!(held.len(), 4, "refused though there was room");
                        }
                    }
                    Step::Return => drop(held.pop()),
                    Step::Discard => held.pop().into_iter().for_each(PooledConnection::discard),
                    Step::Advance(seconds) => {
                        now += seconds;
                        advance_clock(Duration::from_secs(seconds));
                    }
                    Step::Maintain => {
                        pool.maintain();
                        let free = 4 - held.len() as u32;
                        prop_assert!(pool.state().idle_connections >= min_idle.min(free).min(idle.max(min_idle)));
                    }
                    Step::Disconnect => {
                        pool.disconnect();
                        prop_assert_eq!(pool.state().idle_connections, 0);
                    }
                }
                born.resize(born.len().max(pool.manager().opened.load(SeqCst) as usize), now);
                let open = pool.manager().opened.load(SeqCst) - pool.manager().closed.load(SeqCst);
                let state = pool.state();
                prop_assert_eq!(u64::from(state.connections), open);
                prop_assert!(state.connections <= 4);
                prop_assert_eq!(state.connections - state.idle_connections, held.len() as u32);
            }
            Ok(())
        };
        TestRunner::new(config).run(&input, run).unwrap();
    });
}
