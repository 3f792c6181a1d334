//! What comes on top for a moment.

use super::text::counted;
use std::fmt;

/// What comes on top of the ordinary connections for a moment, while a new version goes out. Displays as "while ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Surge {
    /// Two sets of hosts at once: Heroku's preboot, a blue-green deployment. Also two masters on each host, as `USR2` makes of
    /// unicorn and gunicorn.
    Preboot,
    /// So many workers more on each host, while its master replaces them one after the other. A master that starts all new ones before the
    /// old ones end has as many as it has workers.
    PhasedRestart {
        /// On each host, beside its ordinary workers.
        extra_workers: u32,
    },
    /// So many hosts more at a time: `maxSurge` of a Kubernetes deployment.
    RollingDeploy {
        /// In all.
        extra_hosts: u32,
    },
}

impl fmt::Display for Surge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Preboot => f.write_str("while preboot keeps two sets of hosts"),
            Self::PhasedRestart { .. } => f.write_str("while a phased restart is under way"),
            Self::RollingDeploy { extra_hosts } => {
                write!(f, "while a deployment has {} more", counted(extra_hosts.into(), "host"))
            }
        }
    }
}
