//! Row 47: what must be made after the fork, and is refused in a child when it was not.

use crate::kit::{self, Door, StopOnDrop};
use forksafe::fork::{self, MadeHere, NotMadeHere, PerProcess};
use forksafe::testing::{self, Way, clean_process};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::id;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

/// Who was told to have made it, if it was refused.
fn maker<T>(asked: Result<T, NotMadeHere>) -> Option<u32> {
    asked.err().map(|refused| refused.pid)
}

struct Counts(Arc<AtomicU32>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// In each way of making a child, and in the child's child.
#[test]
fn a_value_is_its_makers_alone() {
    clean_process(|| {
        let here = id();
        let value = MadeHere::new(7);
        for way in kit::ways() {
            let told = || maker(value.get());
            let (child, grandchild) = way.child(|| (told(), testing::child(told).join())).join();
            assert_eq!((child, grandchild), (Some(here), Some(here)), "{way:?}");
        }
        assert_eq!(value.origin(), fork::Origin::current());
        assert_eq!(value.get(), Ok(&7));
        let mut value = value;
        *value.get_mut().unwrap() += 1;
        assert!(testing::child(|| value.get_mut().is_err()).join());
        assert_eq!(value.into_inner(), Ok(8));
    });
}

#[test]
fn a_value_is_dropped_by_its_maker_alone() {
    clean_process(|| {
        let drops = Arc::new(AtomicU32::new(0));
        let make = || Some(MadeHere::new(Counts(Arc::clone(&drops))));
        let mut value = make();
        let dropped = testing::child(|| {
            drop(value.take());
            drops.load(SeqCst)
        });
        assert_eq!(dropped.join(), 0, "forgotten");
        let taken = testing::child(|| (maker(value.take().unwrap().into_inner()), drops.load(SeqCst)));
        assert_eq!(taken.join(), (Some(id()), 0), "refused and forgotten");
        drop(value.take());
        assert_eq!(drops.load(SeqCst), 1);
        drop(make().unwrap().into_inner().unwrap());
        assert_eq!(drops.load(SeqCst), 2, "once");
        let own = testing::child(|| {
            drop(make());
            drops.load(SeqCst)
        });
        assert_eq!(own.join(), 3, "a child's own");
    });
}

#[test]
fn the_error_says_whose_it_is_and_what_to_do() {
    clean_process(|| {
        let value = MadeHere::new(());
        let text = testing::child(|| value.get().unwrap_err().to_string()).join();
        assert_eq!(
            text,
            format!(
                "this was first used in process {}, before the fork that led to this one, and does not work in its \
                 children: use it only after the fork, in each process for itself",
                id()
            )
        );
    });
}

/// By every way of making a child, and by the child's child, however often it asks.
#[test]
fn what_an_ancestor_made_is_refused() {
    clean_process(|| {
        static VALUE: PerProcess<u32> = PerProcess::new(id);
        let here = id();
        let told = || maker(PerProcess::get_unless_inherited(&VALUE));
        assert_eq!(PerProcess::get_unless_inherited(&VALUE), Ok(&here));
        assert_eq!(PerProcess::get_unless_inherited(&VALUE), Ok(&here), "and again");
        for way in kit::ways() {
            let (child, again, grandchild) = way.child(|| (told(), told(), testing::child(told).join())).join();
            assert_eq!((child, again, grandchild), (Some(here), Some(here), Some(here)), "{way:?}");
        }
        assert_eq!(PerProcess::get_unless_inherited(&VALUE), Ok(&here), "in the parent it goes on");
    });
}

#[test]
fn what_no_ancestor_has_begun_is_each_childs_own() {
    clean_process(|| {
        static VALUE: PerProcess<u32> = PerProcess::new(id);
        assert_eq!(PerProcess::existing(&VALUE), None, "to look begins nothing");
        for way in kit::ways().filter(|way| *way != Way::NewPidNamespace) {
            let child = way.child(|| {
                let is_own = PerProcess::get_unless_inherited(&VALUE) == Ok(&id());
                (is_own, id(), testing::child(|| maker(PerProcess::get_unless_inherited(&VALUE))).join())
            });
            let (is_own, pid, told) = child.join();
            assert!(is_own, "{way:?}");
            assert_eq!(told, Some(pid), "of its child it is the parent, {way:?}");
        }
        assert_eq!(PerProcess::get_unless_inherited(&VALUE), Ok(&id()), "what children made is not the parent's");
    });
}

/// Whoever asks with `get` has one. That an ancestor began is true all the same, and so it is for the children.
#[test]
fn a_child_with_a_value_of_its_own_is_refused_all_the_same() {
    clean_process(|| {
        static VALUE: PerProcess<u32> = PerProcess::new(id);
        let here = *VALUE;
        let told = || maker(PerProcess::get_unless_inherited(&VALUE));
        let child = testing::child(|| {
            let before = told();
            let is_own = *VALUE == id();
            (before, is_own, told(), testing::child(told).join())
        });
        assert_eq!(child.join(), (Some(here), true, Some(here), Some(here)));
    });
}

/// A thread of the parent is inside the initialiser when the fork comes: the child is refused, and waits for nobody.
#[test]
fn what_a_thread_of_the_parent_is_making_is_refused_at_once() {
    clean_process(|| {
        let (inside, leave) = (Door::new(), Door::new());
        let made = AtomicU32::new(0);
        let value = PerProcess::new(|| {
            made.fetch_add(1, SeqCst);
            inside.open();
            leave.pass();
            id()
        });
        thread::scope(|scope| {
            let maker_thread = scope.spawn(|| *value);
            inside.pass();
            let child = testing::child(|| {
                let told = maker(PerProcess::get_unless_inherited(&value));
                (told, testing::child(|| maker(PerProcess::get_unless_inherited(&value))).join(), made.load(SeqCst))
            });
            assert_eq!(child.join(), (Some(id()), Some(id()), 1), "and made nothing");
            leave.open();
            assert_eq!(maker_thread.join().unwrap(), id());
        });
    });
}

#[test]
fn what_an_ancestor_began_in_vain_is_refused() {
    clean_process(|| {
        let here = id();
        let fails: PerProcess<u32, _> =
            PerProcess::new(|| if id() == here { Err(io("the server is away")) } else { Ok(id()) });
        assert_eq!(PerProcess::try_get_unless_inherited(&fails).unwrap_err().to_string(), "the server is away");
        let told = testing::child(|| PerProcess::try_get_unless_inherited(&fails).unwrap_err().to_string()).join();
        assert!(told.starts_with(&format!("this was first used in process {here}, ")), "{told}");
        let has_own = || *PerProcess::try_get(&fails).unwrap() == id();
        assert!(testing::child(has_own).join(), "with get there is one");

        let panics = PerProcess::new(|| assert_ne!(id(), here));
        assert!(catch_unwind(AssertUnwindSafe(|| PerProcess::get_unless_inherited(&panics))).is_err());
        assert_eq!(testing::child(|| maker(PerProcess::get_unless_inherited(&panics))).join(), Some(here));
    });
}

fn io(text: &str) -> Box<dyn std::error::Error> {
    std::io::Error::other(text.to_owned()).into()
}

/// The child comes out of its parent's initialiser, with something half of which is the parent's: it makes no other.
#[test]
fn a_child_that_was_forked_by_the_initialiser_is_refused() {
    clean_process(|| {
        let here = id();
        let calls = AtomicU32::new(0);
        let value = PerProcess::new(|| {
            calls.fetch_add(1, SeqCst);
            kit::fork()
        });
        let asked = PerProcess::get_unless_inherited(&value);
        if id() != here {
            kit::leave(|| assert_eq!((maker(asked), calls.load(SeqCst)), (Some(here), 1)));
        }
        let child = asked.ok().copied().flatten().expect("the parent has what it made");
        assert_eq!(kit::exit_code(child), 0);
    });
}

/// Threads of the parent begin with value after value, and children are forked meanwhile. Each child has each value either for
/// its own, or is told that it is its parent's: nothing else, and without waiting. What is there before the fork is refused.
#[test]
fn a_first_use_that_races_with_forks_is_the_childs_or_refused() {
    clean_process(|| {
        const FORKS: usize = 200;
        type Value = PerProcess<u32, fn() -> u32>;
        let newest = Mutex::new(Arc::new(Value::new(id)));
        let (stop, here) = (AtomicBool::new(false), id());
        let (mut refused, mut was_there) = (0, 0);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop);
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        let value = Arc::clone(&newest.lock().unwrap());
                        assert_eq!(PerProcess::get_unless_inherited(&value), Ok(&here));
                    }
                });
            }
            for n in 0..FORKS {
                let value = Arc::new(Value::new(id));
                *newest.lock().unwrap() = Arc::clone(&value);
                (0..n % 8).for_each(|_| thread::yield_now());
                let is_there = PerProcess::existing(&value).is_some();
                was_there += usize::from(is_there);
                let child = testing::child(|| match PerProcess::get_unless_inherited(&value) {
                    Ok(own) => (*own == id(), None),
                    Err(NotMadeHere { pid, .. }) => (false, Some(pid)),
                });
                match child.join() {
                    (true, None) if !is_there => {}
                    (false, Some(maker)) if maker == here => refused += 1,
                    other => panic!("{other:?}"),
                }
            }
        });
        println!("{refused} of {FORKS} were refused, {was_there} of them for what was there for certain");
        assert!(was_there > 0);
    });
}

/// A hook that uses it in the child makes it the child's own; it runs before the answer, as with `get`.
#[test]
fn the_hooks_of_a_child_run_before_it_is_asked() {
    clean_process(|| {
        static VALUE: PerProcess<u32> = PerProcess::new(id);
        static RUN: AtomicU32 = AtomicU32::new(0);
        fork::on_child(|| {
            RUN.fetch_add(1, SeqCst);
            assert_eq!(PerProcess::get_unless_inherited(&VALUE), Ok(&id()));
        });
        let child = testing::child(|| (PerProcess::get_unless_inherited(&VALUE) == Ok(&id()), RUN.load(SeqCst)));
        assert_eq!(child.join(), (true, 1));
    });
}
