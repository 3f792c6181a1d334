//! How many connections a plan needs of one server.
//!
//! Sums and products saturate: what is more than a `u64` can hold fits nowhere.

use super::plan::{Held, Plan};
use super::surge::Surge;

/// How many connections a plan needs of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    at_work: u64,
    at_worst: u64,
    when: Option<Surge>,
}

impl Demand {
    /// On an ordinary day, with all pools full.
    pub fn at_work(&self) -> u64 {
        self.at_work
    }

    /// At the worst moment.
    pub fn at_worst(&self) -> u64 {
        self.at_worst
    }

    /// When that is. `None`: no moment is worse than the others.
    pub fn when(&self) -> Option<Surge> {
        self.when
    }
}

/// The numbers that a report looks for better ones of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) hosts: u32,
    /// Processes that serve, on each host.
    pub(super) serving: u32,
    /// Connections of each of those to the server: of all of its pools together.
    pub(super) pooled: u64,
}

impl Plan {
    /// How many connections it needs of a server. None, if it does not know the server.
    pub fn demand(&self, server: &str) -> Demand {
        self.demand_in(self.shape(server), server)
    }

    pub(super) fn shape(&self, server: &str) -> Shape {
        Shape { hosts: self.hosts, serving: self.serving(), pooled: of(&self.pools, server) }
    }

    /// It never falls when one of the numbers of the shape rises.
    pub(super) fn demand_in(&self, shape: Shape, server: &str) -> Demand {
        let at_work = self.connections(shape, server);
        let mut demand = Demand { at_work, at_worst: at_work, when: None };
        for &surge in &self.surges {
            let then = self.connections(self.swollen(shape, surge), server);
            if then > demand.at_worst {
                demand = Demand { at_worst: then, when: Some(surge), ..demand };
            }
        }
        demand
    }

    fn swollen(&self, Shape { hosts, serving, pooled }: Shape, surge: Surge) -> Swollen {
        let (hosts, serving) = (u64::from(hosts), u64::from(serving));
        let (hosts, serving) = match surge {
            Surge::Preboot => (hosts * 2, serving),
            // Without a master there is nobody to do it.
            Surge::PhasedRestart { .. } if self.workers == 0 => (hosts, serving),
            Surge::PhasedRestart { extra_workers } => (hosts, serving + u64::from(extra_workers)),
            Surge::RollingDeploy { extra_hosts } => (hosts + u64::from(extra_hosts), serving),
        };
        Swollen { hosts, serving, pooled }
    }

    fn connections(&self, shape: impl Into<Swollen>, server: &str) -> u64 {
        let Swollen { hosts, serving, pooled } = shape.into();
        let masters = if self.workers == 0 { 0 } else { of(&self.masters, server) };
        let of_host = serving.saturating_mul(pooled).saturating_add(masters);
        hosts.saturating_mul(of_host).saturating_add(self.in_background(server))
    }

    fn in_background(&self, server: &str) -> u64 {
        let each = |group: &super::plan::Background| u64::from(group.processes).saturating_mul(of(&group.each, server));
        self.background.iter().map(each).fold(0, u64::saturating_add)
    }
}

/// A shape at a moment: twice a `u32` is none.
struct Swollen {
    hosts: u64,
    serving: u64,
    pooled: u64,
}

impl From<Shape> for Swollen {
    fn from(Shape { hosts, serving, pooled }: Shape) -> Self {
        Self { hosts: hosts.into(), serving: serving.into(), pooled }
    }
}

fn of(held: &[Held], server: &str) -> u64 {
    held.iter()
        .filter(|held| held.server == server)
        .map(|held| u64::from(held.connections))
        .fold(0, u64::saturating_add)
}
