//! Every interleaving of a few threads at the slots and in line, with the memory orderings as written.
//! `cargo xtask verify loom` runs these.

use super::bag::{Bag, Refusal, Taken, Wish};
use super::slots;
use crate::Deadline;
use crate::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use loom::thread;
use std::cell::Cell;
use std::sync::LazyLock;
use std::time::Instant;

thread_local! {
    /// Whether the first in line is handed what comes back, however short it has waited. (Time does not pass in a model; and all
    /// its threads run on one.)
    pub(super) static HANDS_OVER: Cell<bool> = const { Cell::new(false) };
}

/// A connection that keeps its bag alive, and notices when it is held twice.
struct Item {
    bag: Arc<Bag<Item>>,
    slot: usize,
    holders: Arc<AtomicUsize>,
}

type Shared = (Arc<Bag<Item>>, Arc<AtomicUsize>);

fn stocked(size: usize, idle: usize) -> Shared {
    let (bag, holders) = (Arc::new(Bag::new(size)), Arc::new(AtomicUsize::new(0)));
    for _ in 0..idle {
        let slot = bag.slots.take_vacant().unwrap();
        let item = Box::new(Item { bag: Arc::clone(&bag), slot, holders: Arc::clone(&holders) });
        assert!(bag.restore(slot, item).is_none());
    }
    (bag, holders)
}

fn give_back(item: Box<Item>) {
    if let Err(item) = slots::put(item, |item| item.bag.slots.slot(item.slot)) {
        let (bag, slot) = (Arc::clone(&item.bag), item.slot);
        if let Some(item) = bag.restore(slot, item) {
            drop(item);
            bag.vacate(slot);
        }
    }
}

/// All have come at the same time: which of them is first in line is for the model to say, not for the clock.
fn patient() -> Wish {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    Wish { near: 0, since: *START, deadline: Deadline::NEVER, connect_by: Deadline::NEVER, max_waiting: usize::MAX }
}

/// As the pool does it: takes, uses, and puts back; or makes what is missing.
fn use_one((bag, holders): &Shared) {
    let item = match bag.acquire(patient()).outcome {
        Ok(Taken::Idle(_, item)) => item,
        Ok(Taken::Vacant(slot)) => Box::new(Item { bag: Arc::clone(bag), slot, holders: Arc::clone(holders) }),
        Err(Refusal::Closed) => return,
        Err(Refusal::Timeout | Refusal::Full) => unreachable!("never is not too late, and nobody is one too many"),
    };
    hold(item);
}

fn hold(item: Box<Item>) {
    assert_eq!(item.holders.fetch_add(1, SeqCst), 0, "two threads hold the one slot");
    item.holders.fetch_sub(1, SeqCst);
    give_back(item);
}

fn also(shared: &Shared, does: fn(&Shared)) -> thread::JoinHandle<()> {
    let shared = (Arc::clone(&shared.0), Arc::clone(&shared.1));
    thread::spawn(move || does(&shared))
}

/// With and without hand-over. (With three preemptions they pass as well, and take minutes.)
fn model(run: impl Fn() + Send + Sync + Copy + 'static) {
    for hands_over in [false, true] {
        HANDS_OVER.set(hands_over);
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(run);
    }
}

#[test]
fn loom_nobody_waits_in_vain_and_nothing_is_held_twice() {
    model(|| {
        let shared = stocked(1, 1);
        let threads = [also(&shared, use_one), also(&shared, use_one)];
        use_one(&shared);
        threads.map(|thread| thread.join().unwrap());
        assert_eq!((shared.0.slots.occupied(), shared.0.slots.idle(), shared.0.waiting()), (1, 1, 0));
        drop(shared.0.close());
    });
}

/// One of those in line gives up at any moment: what it was told or given is not lost to the other.
#[test]
fn loom_a_wake_up_of_one_who_leaves_is_passed_on() {
    model(|| {
        let shared = stocked(1, 1);
        let (slot, item) = shared.0.slots.take_idle(0).unwrap();
        let waits = also(&shared, use_one);
        let leaves = also(&shared, |shared| {
            if let Some(Taken::Idle(_, item)) = shared.0.acquire_or_leave(patient()) {
                hold(item);
            }
        });
        assert_eq!(slot, item.slot);
        give_back(item);
        waits.join().unwrap();
        leaves.join().unwrap();
        assert_eq!((shared.0.slots.idle(), shared.0.waiting()), (1, 0));
        drop(shared.0.close());
    });
}

#[test]
fn loom_a_vacated_slot_goes_to_who_waits() {
    model(|| {
        let shared = stocked(1, 0);
        let slot = shared.0.slots.take_vacant().unwrap();
        let waits = also(&shared, use_one);
        shared.0.vacate(slot);
        waits.join().unwrap();
        assert_eq!(shared.0.slots.idle(), 1);
        drop(shared.0.close());
    });
}

/// A return races with a close that frees the bag: the last reference goes with the connection.
#[test]
fn loom_a_return_does_not_outlive_its_bag() {
    model(|| {
        let (bag, _) = stocked(1, 1);
        let (_, item) = bag.slots.take_idle(0).unwrap();
        let returns = thread::spawn(move || give_back(item));
        drop(bag.close());
        drop(bag);
        returns.join().unwrap();
    });
}

/// One slot is idle and one is vacant: neither is to be had afterwards, whoever comes by without having heard.
#[test]
fn loom_a_closed_bag_gives_nothing_out() {
    model(|| {
        let shared = stocked(2, 1);
        let other = also(&shared, use_one);
        drop(shared.0.close());
        assert!(matches!(shared.0.acquire(patient()).outcome, Err(Refusal::Closed)));
        other.join().unwrap();
        assert_eq!(shared.0.slots.occupied(), 0);
    });
}

#[test]
fn loom_closing_ends_every_wait_and_empties_the_bag() {
    model(|| {
        let shared = stocked(1, 1);
        let threads = [also(&shared, use_one), also(&shared, use_one)];
        drop(shared.0.close());
        assert!(shared.0.wait_until_empty(Deadline::NEVER));
        threads.map(|thread| thread.join().unwrap());
        assert_eq!(shared.0.slots.occupied(), 0);
    });
}

/// Each way to come to the one slot that is left: idle, lent, or waited for.
#[test]
fn loom_a_bag_that_shrinks_keeps_what_is_left_to_be_had() {
    model(|| {
        let shared = stocked(2, 1);
        let other = also(&shared, use_one);
        for (slot, item) in shared.0.resize(|| 1) {
            drop(item);
            shared.0.vacate(slot);
        }
        use_one(&shared);
        other.join().unwrap();
        assert_eq!((shared.0.slots.size(), shared.0.slots.occupied(), shared.0.waiting()), (1, 1, 0));
        drop(shared.0.close());
    });
}

/// What is lent stays so until who waits has been served.
#[test]
fn loom_who_waits_hears_of_a_bag_that_grows() {
    model(|| {
        let shared = stocked(1, 1);
        let (_, item) = shared.0.slots.take_idle(0).unwrap();
        let waits = also(&shared, use_one);
        assert!(shared.0.resize(|| 2).is_empty());
        waits.join().unwrap();
        give_back(item);
        assert_eq!((shared.0.slots.size(), shared.0.slots.idle()), (2, 2));
        drop(shared.0.close());
    });
}
