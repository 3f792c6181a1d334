//! One program for all scenarios; `tests/README.md` says which test shows which.
//!
//! Every test runs in a process of its own and every child has a deadline. What differs between the servers is behind
//! [`servers::Server`]; a scenario is written once and run against each.

mod assertions;
mod audit;
mod bad_networks;
mod callbacks;
mod children;
mod churn;
mod control;
mod credentials;
mod denied;
mod ends;
mod example;
mod exec;
mod expiry;
mod fork_clients;
mod fork_first_use;
mod fork_generations;
mod fork_table;
mod hooks;
mod idle;
mod inflight;
mod killed;
mod kit;
mod lent;
mod limits;
mod liveness;
mod managers;
mod names;
mod overload;
mod per_process;
mod pool;
mod postgres_corners;
mod postgres_driver;
mod postgres_faults;
mod postgres_interrupted;
mod postgres_runtime;
mod postgres_sessions;
mod postgres_time;
mod private_postgres;
mod reconnect;
mod redis_answers;
mod redis_driver;
mod redis_fake;
mod redis_opening;
mod redis_session;
mod registry;
mod resets;
mod secrets;
mod servers;
mod storm;
mod tap;
mod witness;
