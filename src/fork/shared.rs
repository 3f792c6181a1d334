//! Words that a process and its children have in common, for as long as any of them lives.

use std::io;
use std::ops::Deref;
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU64;

/// Zero at first. A child made by fork sees what its parent writes, and the other way round.
#[derive(Debug)]
pub(crate) struct SharedWords {
    start: *const AtomicU64,
    length: usize,
}

// SAFETY: they are atomics, and what is shared of them is only references.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let bytes = length.max(1) * size_of::<AtomicU64>();
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), length })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `new` mapped so many, zeroed and aligned to a page; they are unmapped only when `self` goes.
        unsafe { slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let bytes = self.length.max(1) * size_of::<AtomicU64>();
        // SAFETY: the mapping of `new`, which nobody borrows any more. Other processes keep theirs.
        unsafe { libc::munmap(self.start.cast_mut().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::SeqCst;

    #[test]
    fn a_child_writes_what_its_parent_reads() {
        let words = SharedWords::new(3).unwrap();
        // SAFETY: the child stores a number and leaves.
        match unsafe { libc::fork() } {
            0 => {
                words[2].store(7, SeqCst);
                // SAFETY: ends the process.
                unsafe { libc::_exit(0) }
            }
            child => {
                // SAFETY: takes numbers.
                assert_eq!(unsafe { libc::waitpid(child, ptr::null_mut(), 0) }, child);
                assert_eq!(words.iter().map(|word| word.load(SeqCst)).collect::<Vec<_>>(), [0, 0, 7]);
            }
        }
    }
}
