//! Async clients in a module of Python's, under hosts that fork: as `forksafe::asynchronous` says how to write it, and without that.
//!
//! The module is the library of this package. The hosts are Debian's, and the same as in `tests/hosts`. Every test runs in a process of its
//! own, with servers of its own.

// What starts the hosts, asks them and judges them is the hosts' tests', which use all of it.
mod guide;
#[allow(dead_code, reason = "shared with the tests of hosts, which need more of it")]
#[path = "../hosts/host.rs"]
mod host;
mod net;
mod on_forks;
mod on_gunicorn;
mod own;
#[path = "../hosts/servers.rs"]
mod servers;
#[allow(dead_code, reason = "shared with the tests of hosts, which need more of it")]
#[path = "../hosts/tally.rs"]
mod tally;
#[path = "../hosts/web.rs"]
mod web;
mod website;
