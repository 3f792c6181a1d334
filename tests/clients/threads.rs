//! Runtimes for clients that need one, and the threads of others.

use forksafe::testing::wait_until;
use std::fs;
use tokio::runtime::{Builder, Runtime};

pub(crate) fn with_a_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Of the current thread.
pub(crate) fn without_threads() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A thread that is awake at the fork may hold a lock of its pool's, and then a child hangs in it.
#[track_caller]
pub(crate) fn wait_until_others_sleep() {
    // SAFETY: takes nothing.
    let this = unsafe { libc::gettid() }.to_string();
    wait_until("all other threads wait", || {
        let threads = fs::read_dir("/proc/self/task").unwrap().map(|thread| thread.unwrap());
        let mut others = threads.filter(|thread| *thread.file_name() != *this);
        others.all(|thread| {
            let call = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
            call.starts_with(&format!("{} ", libc::SYS_futex))
        })
    });
}
