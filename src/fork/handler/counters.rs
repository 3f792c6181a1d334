//! Forks begun and ended, counted by the prepare and parent handlers.
//!
//! The kernel copies the descriptor table before it copies memory. A connection that one thread opens while another
//! forks can therefore be in the child's table without being in the child's memory. No order of publishing helps; what
//! does is to notice the overlap and make the connection again: [`Watch`](crate::fork::forks::Watch).
//!
//! It is one word: how many forks are in progress, and the number of all that ever began. With two words, one for the beginnings
//! and one for the ends, a process whose first use raced with a fork counted the beginning and missed the end, for ever.
//! One word cannot go out of step: an end that finds nothing in progress changes nothing, and a new process begins with
//! a word of its own.

use super::{page, sys};
use std::sync::atomic::{AtomicU64, Ordering::*, fence};

/// In progress: the lowest 16 bits. Begun: the next 24. Whose count it is: the highest 24.
const COUNT: u64 = (1 << 16) - 1;
const ONE_BEGUN: u64 = 1 << 16;
const OWNER_SHIFT: u32 = 40;
const OWNER: u64 = u64::MAX << OWNER_SHIFT;
const BEGUN: u64 = !(OWNER | COUNT);

/// What was seen of the forks of a process at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::fork) struct Seen(u64);

impl Seen {
    pub(in crate::fork) fn is_in_progress(self) -> bool {
        self.0 & COUNT != 0
    }

    /// Whether a fork was in progress at any moment between the two. (Unless 16 million have begun in between.)
    pub(in crate::fork) fn overlaps(self, later: Self) -> bool {
        self.is_in_progress() || self.0 & BEGUN != later.0 & BEGUN
    }
}

/// The primitives, which are others in a model.
trait Word {
    fn load(&self) -> u64;
    fn exchange(&self, expected: u64, new: u64) -> Result<u64, u64>;
    fn fence();
}

impl Word for AtomicU64 {
    fn load(&self) -> u64 {
        self.load(SeqCst)
    }
    fn exchange(&self, expected: u64, new: u64) -> Result<u64, u64> {
        self.compare_exchange(expected, new, SeqCst, SeqCst)
    }
    fn fence() {
        fence(SeqCst);
    }
}

/// The word of one process, or of another from which it was inherited: then it is as good as zero.
struct Forks<'a, W> {
    word: &'a W,
    owner: u64,
}

impl<W: Word> Forks<'_, W> {
    fn ours(&self, word: u64) -> u64 {
        if word >> OWNER_SHIFT == self.owner { word } else { self.owner << OWNER_SHIFT | word & BEGUN }
    }

    fn update(&self, change: impl Fn(u64) -> u64) {
        let mut now = self.word.load();
        while let Err(other) = self.word.exchange(now, change(self.ours(now))) {
            now = other;
        }
    }

    fn begin(&self) {
        self.update(|now| {
            let count = now & COUNT;
            now & OWNER | now.wrapping_add(ONE_BEGUN) & BEGUN | (count + 1).min(COUNT)
        });
        // What the fork copies is read after this.
        W::fence();
    }

    fn end(&self) {
        self.update(|now| now - u64::from(now & COUNT > 0));
    }

    /// What was published before this is in the memory that a fork copies if its beginning is not seen here.
    fn look(&self) -> Seen {
        W::fence();
        Seen(self.ours(self.word.load()))
    }
}

/// Where there is no page: what tells a child from its parent, the pid, tells its count apart, too.
static WITHOUT_PAGE: AtomicU64 = AtomicU64::new(0);

/// Where there is a page the word is in it: it is 0 in a new process, and a parent that writes to ordinary memory after a
/// fork has that copied first, which takes as long as all the rest of what we do there.
fn forks() -> Forks<'static, AtomicU64> {
    match page::beside() {
        Some(word) => Forks { word, owner: 0 },
        None => Forks { word: &WITHOUT_PAGE, owner: u64::from(sys::pid()) },
    }
}

/// The prepare handler: a few atomic instructions, and `getpid` where there is no page. No lock, no allocation, no panic, no
/// thread-local; the loop goes round again only if another fork began or ended in between.
pub(super) extern "C" fn prepare() {
    forks().begin();
}

/// The parent handler, which also runs after a fork that failed. As [`prepare`].
pub(super) extern "C" fn parent() {
    forks().end();
}

pub(in crate::fork) fn look() -> Seen {
    forks().look()
}

/// In the child handler, where there is no page and the child has its parent's pid: the forks in progress are the parent's.
/// One atomic store.
pub(super) fn forget() {
    WITHOUT_PAGE.store(0, SeqCst);
}

/// `cargo xtask verify loom` runs these.
#[cfg(all(test, forksafe_loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;
    use loom::sync::atomic::{AtomicBool, AtomicU64 as Modelled, fence as modelled_fence};
    use loom::thread;

    impl Word for Modelled {
        fn load(&self) -> u64 {
            self.load(SeqCst)
        }
        fn exchange(&self, expected: u64, new: u64) -> Result<u64, u64> {
            self.compare_exchange(expected, new, SeqCst, SeqCst)
        }
        fn fence() {
            modelled_fence(SeqCst);
        }
    }

    fn of(word: &Modelled) -> Forks<'_, Modelled> {
        Forks { word, owner: 0 }
    }

    /// The word; and of a connection, that the descriptor table has it and that memory names it.
    #[derive(Default)]
    struct Process {
        word: Modelled,
        open: AtomicBool,
        published: AtomicBool,
    }

    impl Process {
        /// As the kernel does it: the table first. True when the child has the socket and does not know of it.
        fn fork(&self) -> bool {
            of(&self.word).begin();
            let in_table = self.open.load(Relaxed);
            let in_memory = self.published.load(Relaxed);
            of(&self.word).end();
            in_table && !in_memory
        }

        /// As a connect does it. True when it may be kept.
        fn connect(&self) -> bool {
            let begin = of(&self.word).look();
            self.open.store(true, Relaxed);
            self.published.store(true, Release);
            !begin.overlaps(of(&self.word).look())
        }

        fn is_quiet(&self) -> bool {
            !of(&self.word).look().is_in_progress()
        }
    }

    #[test]
    fn loom_a_connect_that_is_kept_was_not_in_the_middle_of_a_fork() {
        loom::model(|| {
            let process = Arc::new(Process::default());
            let forks = {
                let process = Arc::clone(&process);
                thread::spawn(move || process.fork())
            };
            let kept = process.connect();
            let stray = forks.join().unwrap();
            assert!(!(kept && stray), "a child has a live socket that it does not know of");
            assert!(process.is_quiet(), "every fork has ended");
        });
    }

    #[test]
    fn loom_forks_of_two_threads_all_end() {
        loom::model(|| {
            let process = Arc::new(Process::default());
            let forks = {
                let process = Arc::clone(&process);
                thread::spawn(move || process.fork())
            };
            process.fork();
            forks.join().unwrap();
            assert!(process.is_quiet() && process.connect(), "nobody forks any more");
        });
    }

    /// As if the handlers had been registered while a fork was in progress: its end is counted, its beginning was not.
    #[test]
    fn loom_an_end_without_a_beginning_puts_nothing_out_of_step() {
        loom::model(|| {
            let process = Arc::new(Process::default());
            let ends = {
                let process = Arc::clone(&process);
                thread::spawn(move || of(&process.word).end())
            };
            process.connect();
            ends.join().unwrap();
            assert!(process.is_quiet() && process.connect(), "nobody forks");
        });
    }

    /// A child without a page: the count in its memory is its parent's, and a thread forks before another has looked.
    #[test]
    fn loom_an_inherited_count_is_as_good_as_none() {
        loom::model(|| {
            let word = Arc::new(Modelled::new(0));
            Forks { word: &*word, owner: 1 }.begin();
            let forks = {
                let word = Arc::clone(&word);
                thread::spawn(move || {
                    Forks { word: &*word, owner: 2 }.begin();
                    Forks { word: &*word, owner: 2 }.end();
                })
            };
            let _ = Forks { word: &*word, owner: 2 }.look();
            forks.join().unwrap();
            assert!(!Forks { word: &*word, owner: 2 }.look().is_in_progress());
        });
    }
}
