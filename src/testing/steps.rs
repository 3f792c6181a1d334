//! Steps that processes take in an order that the test decides.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};
use std::{mem, ptr, slice};

/// Steps that a process takes and that others wait for, so that a test forces an order instead of sleeping.
///
/// Made before the fork, it is one thing for parent, children and their children, however they are made. It is a page that
/// they share: no descriptor, no lock, no thread. Whoever waits longer than the kit's [patience](super::patience) panics
/// and says for what, and which steps were taken.
///
/// ```
/// use forksafe::testing::{self, Steps};
///
/// let steps = Steps::new(&["child has begun", "parent has seen it"]);
/// let child = testing::child(|| {
///     steps.take("child has begun");
///     steps.wait_for("parent has seen it");
/// });
/// steps.wait_for("child has begun");
/// steps.take("parent has seen it");
/// child.join();
/// ```
#[derive(Debug)]
pub struct Steps {
    names: Vec<String>,
    /// How often each was taken. Shared by all processes.
    taken: &'static [AtomicU32],
}

impl Steps {
    /// Steps by these names. None is taken yet.
    ///
    /// # Panics
    ///
    /// When there is no memory for them.
    #[track_caller]
    pub fn new(names: &[&str]) -> Self {
        super::environment::obey();
        let bytes = mem::size_of_val(names).max(1);
        // SAFETY: new memory at no particular address. It is zeroed, which is a valid counter, and it is never unmapped: a
        // child may still be at it.
        let taken = unsafe {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            let page = libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0);
            assert!(page != libc::MAP_FAILED, "a page to share: {}", io::Error::last_os_error());
            slice::from_raw_parts(page.cast::<AtomicU32>(), names.len())
        };
        Self { names: names.iter().map(ToString::to_string).collect(), taken }
    }

    /// Takes a step, and lets those go on who wait for it. It can be taken more than once.
    ///
    /// # Panics
    ///
    /// When there is no such step.
    #[track_caller]
    pub fn take(&self, step: &str) {
        let taken = self.counter(step);
        taken.fetch_add(1, SeqCst);
        // SAFETY: the counter is mapped for good, and the kernel only takes its address.
        unsafe { libc::syscall(libc::SYS_futex, taken.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0) };
    }

    /// Waits until a step has been taken.
    ///
    /// # Panics
    ///
    /// When that does not come, or there is no such step.
    #[track_caller]
    pub fn wait_for(&self, step: &str) {
        self.wait_for_times(step, 1);
    }

    /// Waits until a step has been taken so many times.
    ///
    /// # Panics
    ///
    /// When that does not come, or there is no such step.
    #[track_caller]
    pub fn wait_for_times(&self, step: &str, times: u32) {
        let counter = self.counter(step);
        let until = Instant::now() + super::patience();
        loop {
            let taken = counter.load(SeqCst);
            if taken >= times {
                return;
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for step {step:?} ({taken} of {times} times); {}", self.all());
            wait_while(counter, taken, left);
        }
    }

    /// Takes a step and waits until as many have done so: a barrier for that many processes or threads, once.
    ///
    /// # Panics
    ///
    /// When they do not come, or there is no such step.
    #[track_caller]
    pub fn meet(&self, step: &str, parties: u32) {
        self.take(step);
        self.wait_for_times(step, parties);
    }

    /// How often a step has been taken.
    ///
    /// # Panics
    ///
    /// When there is no such step.
    #[track_caller]
    pub fn taken(&self, step: &str) -> u32 {
        self.counter(step).load(SeqCst)
    }

    #[track_caller]
    fn counter(&self, step: &str) -> &AtomicU32 {
        let place = self.names.iter().position(|name| name == step);
        let place = place.unwrap_or_else(|| panic!("there is no step {step:?}: {:?}", self.names));
        &self.taken[place]
    }

    fn all(&self) -> String {
        let each = self.names.iter().zip(self.taken);
        let each: Vec<_> = each.map(|(name, taken)| format!("{name:?} {}", taken.load(SeqCst))).collect();
        format!("how often each was taken: {}", each.join(", "))
    }
}

/// Sleeps until the counter has another value, or something else wakes this thread.
fn wait_while(counter: &AtomicU32, value: u32, longest: Duration) {
    let longest = libc::timespec {
        tv_sec: longest.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: longest.subsec_nanos().into(),
    };
    // SAFETY: the counter is mapped for good; the time is ours and only read.
    unsafe {
        libc::syscall(libc::SYS_futex, counter.as_ptr(), libc::FUTEX_WAIT, value, &raw const longest, 0, 0);
    }
}
