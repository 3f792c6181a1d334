//! Whether the connections of a cluster's workers fit: what `sizing` knows, told to the master.

use super::settings::{Builder, Room};
use crate::sizing::{Plan, Report, Surge};

impl Builder {
    /// The plan of this cluster on one host, without pools: its workers, their threads, and how many more there are in a restart.
    ///
    /// ```
    /// use forksafe::cluster::Builder;
    /// use forksafe::sizing::{Capacity, Limit, Report};
    ///
    /// let cluster = Builder::default().workers(2).threads(5);
    /// let plan = cluster.plan().hosts(4).pool("db", 5);
    /// // One would ask the server: `Capacity::postgres`.
    /// let report = Report::new(plan).server("db", Capacity::of([Limit::new("max_connections", 63).reserved(3)]));
    /// let cluster = cluster.sized(&report, true); // A third worker has room, and a fourth has not.
    /// # let _ = cluster;
    /// ```
    #[must_use]
    pub fn plan(&self) -> Plan {
        let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let extra_workers = number(self.max_surge);
        Plan::new()
            .workers(number(self.workers))
            .threads(number(self.threads))
            .surge(Surge::PhasedRestart { extra_workers })
    }

    /// Prints the report when the cluster begins, and grants no more workers afterwards (to `TTIN`, or over the control socket) than
    /// [fit](Report::workers_at_most). When those that it begins with do not fit it warns, by the report, or, if `refuse`, does not begin.
    #[must_use]
    pub fn sized(mut self, report: &Report, refuse: bool) -> Self {
        let most = report.workers_at_most();
        self.room = Some(Room {
            most_workers: most.map_or(usize::MAX, |workers| workers as usize),
            why: most.map_or(String::new(), |most| why_no_more_than(most, report)),
            report: report.to_string(),
            refuses: refuse,
        });
        self
    }
}

/// What one worker more would need, and where that is not to be had.
fn why_no_more_than(most: u32, report: &Report) -> String {
    let more = report.of_plan(report.plan().clone().workers(most.saturating_add(1)));
    let too_small = more.standings().filter(|standing| standing.too_many() > 0).filter_map(|standing| {
        let limit = standing.capacity()?.tightest()?;
        let (server, needed) = (standing.server(), standing.demand().at_worst());
        Some(format!("{server} would need {needed} connections, and has {} ({})", limit.to_be_had(), limit.what()))
    });
    too_small.collect::<Vec<_>>().join("; ")
}
