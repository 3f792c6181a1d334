//! Will all the connections fit? Told before the first request, by arithmetic and by what the servers say.
//!
//! A prefork deployment serves so many requests at once: hosts (dynos) x workers x threads, its *parallelism*. Each worker is
//! a process with pools of its own, so the same product of pool sizes has to fit what each server allows. So do the masters,
//! the processes in the background, and what comes on top for a moment while a new version goes out. A server that is
//! short of room says so late: at the peak, to whoever comes last.
//!
//! ```
//! use forksafe::sizing::{Capacity, Limit, Plan, Report, Surge};
//!
//! let plan = Plan::new()
//!     .hosts(4)
//!     .workers(2)
//!     .threads(5)
//!     .pool("db", 5)
//!     .background("job workers", 1, [("db", 10)])
//!     .surge(Surge::PhasedRestart { extra_workers: 1 });
//! assert_eq!(plan.parallelism(), 40);
//! assert_eq!(plan.demand("db").at_work(), 4 * 2 * 5 + 10);
//! assert_eq!(plan.demand("db").at_worst(), 4 * 3 * 5 + 10);
//!
//! // What the plan of a hosted database says. `Capacity::of_postgres` asks the server itself.
//! let limit = Limit::new("max_connections of the server", 60).reserved(3);
//! let report = Report::new(plan).server("db", Capacity::of([limit]));
//! assert_eq!(report.fits(), Some(false));
//! assert_eq!(report.workers_at_most(), Some(1));
//! println!("{report}");
//! ```
//!
//! That prints, for logs and terminals:
//!
//! ```text
//! 4 hosts x 2 workers x 5 threads = parallelism 40, beside 1 x job workers
//!
//! server  pool  at work  at worst  to be had      verdict
//! db         5       50        70   57 of 60  13 too many
//!
//! db: 50 at work and 70 while a phased restart is under way, but 57 of 60 can be had (3 reserved): 13 too many. Either max_size of pool "db" 5 -> 3, or 2 workers -> 1, or 4 hosts -> 3, or max_connections of the server -> 73
//! ```
//!
//! # Who counts as whom
//!
//! A [`Plan`] counts all connections of the deployment, those that are open already as well. So of the connections that a
//! server has now, only those of others lessen what can be had. Whose they are the servers tell as far as they can:
//! `Capacity::of_postgres` and `Capacity::of_redis` say how. Where it cannot be told and makes the difference, the answer is
//! "unknown" ([`Report::fits`] is `None`): nothing is guessed.
//!
//! # In a child
//!
//! Reports are for the master, before it forks. [`Plan::from_env`] takes the lock of the standard library's environment, which another
//! thread of the parent may have held at the fork; all else takes no lock that a child could inherit.

mod demand;
mod environment;
mod limit;
#[cfg(feature = "postgres")]
mod pgbouncer;
mod plan;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
mod remedy;
mod report;
mod surge;
mod table;
mod text;

pub use demand::Demand;
pub use environment::SettingError;
pub use limit::{Capacity, Limit};
pub use plan::{Plan, PoolFit};
pub use report::{Report, Standing};
pub use surge::Surge;
