//! Words that a process and its children have in common, for as long as any of them lives.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::slice;
use std::sync::atomic::AtomicU64;

/// Zero at first. They lie in a file without a name, and so can be handed to a program that comes after this one. A child made by fork sees what its parent writes, and the other way round.
#[derive(Debug)]
pub(crate) struct SharedWords {
    start: *const AtomicU64,
    length: usize,
    file: File,
}

// SAFETY: they are atomics, and what is shared of them is only references.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a name of ours; what is returned is a new descriptor, or an error.
        let file = unsafe {
            match libc::memfd_create(c"forksafe".as_ptr(), libc::MFD_CLOEXEC) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        // SAFETY: takes numbers.
        if unsafe { libc::ftruncate(file.as_raw_fd(), bytes(length) as libc::off_t) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Self::of(file, length)
    }

    /// Those of a program that was here before this one, by its [file](AsFd).
    ///
    /// # Errors
    ///
    /// They are fewer.
    pub(crate) fn of(file: OwnedFd, length: usize) -> io::Result<Self> {
        let file = File::from(file);
        if file.metadata()?.len() < bytes(length) as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel likes, of a file that has so many bytes, and that nobody makes shorter.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), bytes(length), access, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: start.cast(), length, file })
    }
}

fn bytes(length: usize) -> usize {
    length.max(1) * size_of::<AtomicU64>()
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `of` mapped so many, aligned to a page; they are unmapped only when `self` goes.
        unsafe { slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`, which nobody borrows any more. Other processes keep theirs.
        unsafe { libc::munmap(self.start.cast_mut().cast(), bytes(self.length)) };
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
