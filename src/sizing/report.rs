//! A plan beside what the servers allow.

use super::demand::{Demand, Shape};
use super::limit::{Capacity, Limit};
use super::plan::Plan;
use super::remedy;
use super::text::safe;

/// A [`Plan`] beside what the servers allow. Displays as a small table, with a line below it for each server that something is to be
/// said of: what will not fit, by how much, and what to change.
///
/// No password is in it: names that are urls are kept without them, and servers are named as the plan names them.
///
/// ```
/// use forksafe::sizing::{Capacity, Limit, Plan, Report};
///
/// let plan = Plan::new().workers(5).threads(5).pool("db", 5).pool("cache", 5);
/// let report = Report::new(plan)
///     .server("db", Capacity::of([Limit::new("max_connections of the server", 25).reserved(3)]))
///     .server("cache", Capacity::unknown("its maxclients may not be asked for"));
/// assert_eq!(report.fits(), Some(false));
/// let db = report.standing("db").unwrap();
/// assert_eq!((db.demand().at_worst(), db.too_many()), (25, 3));
/// assert_eq!(db.remedies()[0], "max_size of pool \"db\" 5 -> 4");
/// ```
#[derive(Clone, Debug)]
pub struct Report {
    pub(super) plan: Plan,
    answers: Vec<(String, Capacity)>,
}

impl Report {
    /// Of a plan, with no server asked yet: each is unknown.
    pub fn new(plan: Plan) -> Self {
        Self { plan, answers: Vec::new() }
    }

    /// The same servers beside another plan.
    #[cfg(feature = "cluster")]
    pub(crate) fn of_plan(&self, plan: Plan) -> Self {
        Self { plan, answers: self.answers.clone() }
    }

    /// What a server allows. The name is one of the [plan's](Plan::pool). Given again, the last counts.
    #[must_use]
    pub fn server(mut self, name: impl Into<String>, capacity: Capacity) -> Self {
        let name = safe(&name.into());
        self.answers.retain(|(known, _)| *known != name);
        self.answers.push((name, capacity));
        self
    }

    /// What it is about.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether everything fits, at the worst moment, too. `Some(false)`: surely not, somewhere. `None`: of one server at least it cannot be
    /// told, and none is known to be too small.
    pub fn fits(&self) -> Option<bool> {
        let verdicts: Vec<_> = self.standings().map(|standing| standing.fits()).collect();
        if verdicts.contains(&Some(false)) {
            return Some(false);
        }
        (!verdicts.contains(&None)).then_some(true)
    }

    /// Each server of the plan, in its order, and after them those that were asked and are not in it.
    pub fn standings(&self) -> impl Iterator<Item = Standing<'_>> {
        let planned = self.plan.servers();
        let others = self.answers.iter().map(|(name, _)| &**name).filter(|name| !planned.contains(name));
        let names: Vec<_> = planned.iter().copied().chain(others).collect();
        names.into_iter().map(|name| self.of(name))
    }

    /// One of them.
    pub fn standing(&self, server: &str) -> Option<Standing<'_>> {
        self.standings().find(|standing| standing.server == server)
    }

    fn of<'a>(&'a self, server: &'a str) -> Standing<'a> {
        let capacity = self.answers.iter().find(|(name, _)| name == server).map(|(_, capacity)| capacity);
        Standing { report: self, server, demand: self.plan.demand(server), capacity }
    }

    /// How many workers each host can have at most, everything else being as it is planned: one more does surely not fit. 0:
    /// not even one does. `None`: nothing that is known limits them.
    ///
    /// What is [not known](Capacity::unknown) does not limit them, and open connections of which nobody can tell whose they are
    /// count as the plan's own. So a master that must not grow beyond what fits can ask this when it has workers already.
    ///
    /// ```
    /// use forksafe::sizing::{Capacity, Limit, Plan, Report, Surge};
    ///
    /// let plan = Plan::new().workers(2).threads(5).pool("db", 5).surge(Surge::PhasedRestart { extra_workers: 1 });
    /// let report = Report::new(plan).server("db", Capacity::of([Limit::new("CONNECTION LIMIT of role app", 23)]));
    /// assert_eq!(report.workers_at_most(), Some(3)); // and a fourth while they are restarted
    /// ```
    pub fn workers_at_most(&self) -> Option<u32> {
        let limited = |standing: Standing<'_>| {
            let limit = standing.capacity?.tightest()?.to_be_had();
            let shape = self.plan.shape(standing.server);
            let fits = |serving| standing.demand_of(Shape { serving, ..shape }) <= limit;
            Some(remedy::largest(0, u32::MAX, fits).unwrap_or(0))
        };
        self.standings().filter_map(limited).min().filter(|&workers| workers < u32::MAX)
    }
}

/// How one server stands.
#[derive(Clone, Copy, Debug)]
pub struct Standing<'a> {
    pub(super) report: &'a Report,
    server: &'a str,
    demand: Demand,
    capacity: Option<&'a Capacity>,
}

impl<'a> Standing<'a> {
    /// Its name in the plan.
    pub fn server(&self) -> &'a str {
        self.server
    }

    /// What the plan needs of it.
    pub fn demand(&self) -> Demand {
        self.demand
    }

    /// What it allows. `None`: it has not been asked.
    pub fn capacity(&self) -> Option<&'a Capacity> {
        self.capacity
    }

    /// Whether it is enough at the worst moment. `None`: it cannot be told.
    pub fn fits(&self) -> Option<bool> {
        match self.capacity {
            None => (self.demand.at_worst() == 0).then_some(true),
            Some(capacity) => capacity.fits(self.demand.at_worst()),
        }
    }

    /// Connections that will surely be refused at the worst moment. 0 also if nothing is known.
    pub fn too_many(&self) -> u64 {
        let limit = self.tightest().map_or(u64::MAX, Limit::to_be_had);
        self.demand.at_worst().saturating_sub(limit)
    }

    /// What could be changed so that it fits, each by itself: "max_size of pool \"db\" 5 -> 2". Empty if it is not known to be too small.
    pub fn remedies(&self) -> Vec<String> {
        remedy::all(self)
    }

    pub(super) fn tightest(&self) -> Option<&'a Limit> {
        self.capacity.and_then(Capacity::tightest)
    }

    pub(super) fn demand_of(&self, shape: Shape) -> u64 {
        self.report.plan.demand_in(shape, self.server).at_worst()
    }
}
