//! To lend and to take back allocates nothing. A program of its own, for its allocator counts.

use forksafe::event::NopEventHandler;
use forksafe::fork::Descriptors;
use forksafe::{ManageConnection, Pool};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::hint::black_box;
use std::time::Duration;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: the system's allocator does it; beside that a number of this thread's is counted up.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) };
    }
}

fn allocations(of: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    of();
    ALLOCATIONS.get() - before
}

struct Numbers;

impl ManageConnection for Numbers {
    type Connection = u64;
    type Error = Infallible;
    fn connect(&self) -> Result<u64, Infallible> {
        Ok(7)
    }
    fn is_valid(&self, _: &mut u64) -> Result<(), Infallible> {
        Ok(())
    }
    fn has_broken(&self, _: &mut u64) -> bool {
        false
    }
    fn descriptors(&self, _: &u64) -> Descriptors {
        Descriptors::none()
    }
}

#[test]
fn a_loan_allocates_nothing() {
    // A machine that stands still for half a second is not to have it tested: that allocates.
    let builder = || Pool::builder().max_size(2).test_after(Duration::MAX);
    let pools = [
        ("as it is", builder()),
        ("each event is told", builder().event_handler(Box::new(NopEventHandler))),
        ("hooks are asked", builder().before_acquire(|_, _| Ok(())).after_release(|_, _| Ok(()))),
        (
            "limits are kept",
            builder().max_uses(Some(u32::MAX)).max_waiting(Some(1)).leak_threshold(Some(Duration::MAX)),
        ),
    ];
    for (what, builder) in pools {
        let pool = builder.build(Numbers).unwrap();
        assert!(allocations(|| drop(pool.get().unwrap())) > 0, "the first one is made: this counts");
        let number = allocations(|| {
            for _ in 0..100_000 {
                black_box(pool.get().unwrap());
            }
        });
        assert_eq!(number, 0, "{what}");
    }
}
