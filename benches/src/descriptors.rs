//! Room for descriptors, and descriptors to fill it.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::os::unix::net::UnixDatagram;

/// Raises this process's limit as far as it goes, and says how far that is.
pub fn raise_limit() -> u64 {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open descriptors");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raising it to its maximum");
    most
}

/// Opens sockets, as a busy server has them, until this process has `total` descriptors.
pub fn fill_up(total: usize) -> Vec<UnixDatagram> {
    // Listing them takes one more.
    let open = fs::read_dir("/proc/self/fd").expect("/proc/self/fd").count() - 1;
    (open..total).map(|_| UnixDatagram::unbound().expect("a socket")).collect()
}
