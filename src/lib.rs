#![doc = "WIP"]
#[cfg(not(target_os = "linux"))]
compile_error!("forksafe supports Linux so far; the README's section on other Unixes says what is missing");

mod addresses;
mod deadline;
mod error;
pub mod fork;
mod manager;
mod pool;
#[cfg(feature = "redis")]
mod redis;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;

pub use deadline::Deadline;
pub use error::Error;
pub use manager::{Attempt, ManageConnection};
pub use pool::{Builder, Pool, PooledConnection, State, WeakPool};
