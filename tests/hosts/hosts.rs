//! Programs that fork and know nothing of this crate, with clients that know nothing of it: what becomes of them when a client connects
//! before the fork, without anything, and under the preloaded net. And programs that must not notice the net at all.
//!
//! The hosts and clients are Debian's. Every test runs in a process of its own, with servers of its own.

mod handed_on;
mod host;
mod net;
mod on_celery;
mod on_forks;
mod on_gunicorn;
mod on_puma;
mod servers;
mod sshd;
mod tally;
mod unaware;
mod web;
