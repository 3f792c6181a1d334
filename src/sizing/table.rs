//! A report for logs and terminals.

use super::limit::{Limit, State};
use super::plan::Plan;
use super::report::{Report, Standing};
use super::text::{counted, either, sentence};
use std::fmt;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = table(self.standings().map(|standing| row(&standing)).collect());
        let notes: Vec<_> = self.standings().flat_map(|standing| notes(&standing)).collect();
        let parts = [vec![headline(&self.plan)], table, notes];
        let parts: Vec<_> = parts.iter().filter(|lines| !lines.is_empty()).map(|lines| lines.join("\n")).collect();
        f.write_str(&parts.join("\n\n"))
    }
}

/// Lines with columns of equal width, the first to the left, the others to the right.
fn table(mut rows: Vec<[String; 6]>) -> Vec<String> {
    if rows.is_empty() {
        return Vec::new();
    }
    rows.insert(0, ["server", "pool", "at work", "at worst", "to be had", "verdict"].map(str::to_owned));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let line = |row: &[String; 6]| {
        let first = format!("{:<1$}", row[0], width(0));
        let others = row.iter().enumerate().skip(1).map(|(column, cell)| format!("  {cell:>0$}", width(column)));
        first + &others.collect::<String>()
    };
    rows.iter().map(line).collect()
}

fn headline(plan: &Plan) -> String {
    let workers = match plan.workers {
        0 => "1 process".to_owned(),
        workers => counted(workers.into(), "worker"),
    };
    let (hosts, threads) = (counted(plan.hosts.into(), "host"), counted(plan.threads.into(), "thread"));
    let mut line = format!("{hosts} x {workers} x {threads} = parallelism {}", plan.parallelism());
    for group in &plan.background {
        line += &format!(", beside {} x {}", group.processes, group.name);
    }
    line
}

fn row(standing: &Standing<'_>) -> [String; 6] {
    let pools = standing.report.plan.pools().filter(|pool| pool.server() == standing.server());
    let sizes: Vec<_> = pools.map(|pool| pool.max_size().to_string()).collect();
    let demand = standing.demand();
    [
        standing.server().to_owned(),
        if sizes.is_empty() { "-".to_owned() } else { sizes.join("+") },
        demand.at_work().to_string(),
        demand.at_worst().to_string(),
        room(standing),
        verdict(standing),
    ]
}

fn room(standing: &Standing<'_>) -> String {
    match (standing.capacity().map(|capacity| &capacity.state), standing.tightest()) {
        (_, Some(limit)) => format!("{} of {}", limit.to_be_had(), limit.total()),
        (Some(State::Known(_)), None) => "no limit".to_owned(),
        (Some(State::Full(_)), None) => "none now".to_owned(),
        (Some(State::Unknown(_)) | None, None) => "?".to_owned(),
    }
}

fn verdict(standing: &Standing<'_>) -> String {
    match (standing.fits(), standing.too_many()) {
        (Some(true), _) => "fits".to_owned(),
        (Some(false), 0) => "is full".to_owned(),
        (Some(false), many) => format!("{many} too many"),
        (None, _) => "unknown".to_owned(),
    }
}

/// What is to be said of a server: one line each.
fn notes(standing: &Standing<'_>) -> Vec<String> {
    let server = standing.server();
    let of_server = [what_is_wrong(standing), what_is_unknown(standing)];
    let known = standing.capacity().map_or(&[][..], |capacity| capacity.notes()).iter().cloned();
    let of_pools = standing.report.plan.pools().filter(|pool| pool.server() == server).filter_map(|pool| {
        let threads = counted((pool.max_size() - pool.wasted() + pool.waiting()).into(), "thread");
        let so = format!("a pool of {} for {threads}", pool.max_size());
        match (pool.waiting(), pool.wasted()) {
            (0, 0) => None,
            (0, 1) => Some(format!("{so}: 1 connection is never needed")),
            (0, wasted) => Some(format!("{so}: {wasted} connections are never needed")),
            (1, _) => Some(format!("{so}: 1 thread of a worker waits when all want a connection")),
            (waiting, _) => Some(format!("{so}: {waiting} threads of a worker wait when all want a connection")),
        }
    });
    of_server.into_iter().flatten().chain(known).chain(of_pools).map(|note| format!("{server}: {note}")).collect()
}

fn what_is_wrong(standing: &Standing<'_>) -> Option<String> {
    let many = standing.too_many();
    if let (true, Some(limit)) = (many > 0, standing.tightest()) {
        let remedies = sentence(&either(&standing.remedies()));
        let doubt = if limit.unattributed().is_some() { " at least" } else { "" };
        return Some(format!("{}, but {}: {many} too many{doubt}. {remedies}", needed(standing), had(limit)));
    }
    match standing.capacity().map(|capacity| &capacity.state) {
        Some(State::Full(said)) => Some(format!("{}, but it has no room for one more now: {said}", needed(standing))),
        _ => None,
    }
}

fn what_is_unknown(standing: &Standing<'_>) -> Option<String> {
    let worst = standing.demand().at_worst();
    if worst == 0 {
        return Some("nobody has connections to it in this plan".to_owned());
    }
    if standing.fits().is_some() {
        return None;
    }
    let needed = needed(standing);
    let Some(capacity) = standing.capacity() else {
        return Some(format!("{needed}; what it allows was not asked"));
    };
    Some(match (&capacity.state, capacity.in_doubt(worst)) {
        (State::Unknown(why) | State::Full(why), _) => format!("{needed}; what it allows is not known: {why}"),
        (_, Some(limit)) => match limit.unattributed() {
            Some(open) => {
                let sure = limit.surely_to_be_had();
                format!("{needed}, and {}; but only {sure} if the {open} that are open now are not its own", had(limit))
            }
            None => format!("{needed}, and {}, less what is open now: that cannot be asked", had(limit)),
        },
        _ => needed,
    })
}

fn needed(standing: &Standing<'_>) -> String {
    let demand = standing.demand();
    match demand.when() {
        Some(surge) => format!("{} at work and {} {surge}", demand.at_work(), demand.at_worst()),
        None => format!("{} at work", demand.at_work()),
    }
}

fn had(limit: &Limit) -> String {
    let by = limit.for_whom().map(|whom| format!(" by {whom}")).unwrap_or_default();
    let gone = [(limit.kept(), "reserved"), (limit.others().unwrap_or(0), "in use by others")];
    let gone: Vec<_> =
        gone.iter().filter(|(number, _)| *number > 0).map(|(number, how)| format!("{number} {how}")).collect();
    let gone = if gone.is_empty() { String::new() } else { format!(" ({})", gone.join(", ")) };
    format!("{} of {} can be had{by}{gone}", limit.to_be_had(), limit.total())
}

#[cfg(test)]
mod tests {
    use crate::sizing::{Capacity, Limit, Plan, Report, Surge};

    #[test]
    fn the_table_is_the_one_in_the_documentation() {
        let plan = Plan::new().hosts(4).workers(2).threads(5).pool("db", 5).background("job workers", 1, [("db", 10)]);
        let plan = plan.surge(Surge::PhasedRestart { extra_workers: 1 });
        let limit = Limit::new("max_connections of the server", 60).reserved(3);
        let report = Report::new(plan).server("db", Capacity::of([limit])).to_string();
        let documentation = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//!"));
        let shown: Vec<_> =
            documentation.skip_while(|line| *line != " ```text").skip(1).take_while(|line| *line != " ```").collect();
        let told: Vec<_> = report.lines().map(|line| format!(" {line}").trim_end().to_owned()).collect();
        assert_eq!(told, shown);
    }
}
