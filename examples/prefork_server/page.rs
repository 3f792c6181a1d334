//! `/status`: who is at work, for people. It asks for itself again every few seconds, and needs no script for that.

use forksafe::cluster::{Status, WorkerStatus};
use std::collections::BTreeSet;

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="refresh" content="2">
<title>prefork_server</title>
<style>
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin: 0 0 2rem; }
dl div { border-top: 2px solid; padding-top: .25rem; }
dt { font-size: .875rem; }
dd { margin: 0; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: bold; padding-bottom: .5rem; }
th, td { text-align: right; vertical-align: top; padding: .375rem 0 .375rem 1rem; border-top: 1px solid #8888; }
th:first-child { padding-left: 0; }
thead th { font-size: .875rem; font-weight: normal; white-space: nowrap; border: 0; }
.text { text-align: left; }
@media (max-width: 40rem) {
  thead { display: none; }
  tbody tr { display: block; border-top: 2px solid; padding: .25rem 0 1rem; }
  tbody th, tbody td { display: flex; justify-content: space-between; gap: 1rem; padding: .125rem 0; border: 0; text-align: right; }
  tbody th::before, tbody td::before { content: attr(data-of); font-size: .875rem; font-weight: normal; }
}
footer { margin-top: 2rem; font-size: .875rem; }
</style>
</head>
"#;

const TEXT: &str = " class=\"text\"";

const COLUMNS: [(&str, &str); 7] = [
    ("Worker", TEXT),
    ("Process", ""),
    ("State", TEXT),
    ("Restart", ""),
    ("Busy threads", ""),
    ("Requests", ""),
    ("Connections", TEXT),
];

/// `answering` is the worker's own process.
pub(crate) fn page(status: &Status, answering: u32) -> String {
    let Status { pid, started_at, workers, phase, booted_workers, worker_status, .. } = status;
    let threads = worker_status.iter().map(|worker| worker.last_status.max_threads).sum::<usize>();
    let busy = worker_status.iter().map(|worker| worker.last_status.busy_threads).sum::<usize>();
    let connections: BTreeSet<_> = worker_status.iter().flat_map(|worker| &worker.last_status.connections).collect();
    let since = started_at.replace('T', " ").replace('Z', " UTC");
    let facts = [
        ("Master", format!("process {pid}")),
        ("Workers that serve", format!("{booted_workers} of {workers}")),
        ("Threads at work", format!("{busy} of {threads}")),
        ("Connections", connections.len().to_string()),
        ("Restarts", phase.to_string()),
    ];
    let facts = facts.map(|(what, much)| format!("<div><dt>{what}</dt><dd>{much}</dd></div>\n")).concat();
    let columns = COLUMNS.map(|(what, class)| format!("<th scope=\"col\"{class}>{what}</th>")).concat();
    let rows = worker_status.iter().map(row).collect::<String>();
    format!(
        "{HEAD}<body>\n<main>\n<h1>prefork_server</h1>\n<dl>\n{facts}</dl>\n\
         <table>\n<caption>Workers, and the server's numbers of their connections</caption>\n\
         <thead><tr>{columns}</tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</main>\n\
         <footer>Since <time datetime=\"{started_at}\">{since}</time>. Worker process {answering} has answered.</footer>\n\
         </body>\n</html>\n"
    )
}

fn row(worker: &WorkerStatus) -> String {
    let WorkerStatus { pid, index, phase, booted, ending, last_status: threads, .. } = worker;
    let state = match (booted, ending) {
        (_, true) => "ends",
        (false, false) => "boots",
        (true, false) => "serves",
    };
    let (busy, most, requests) = (threads.busy_threads, threads.max_threads, threads.requests_count);
    let connections = match &threads.connections[..] {
        [] => "none yet".into(),
        some => some.iter().map(u64::to_string).collect::<Vec<_>>().join(" "),
    };
    let cells = [
        index.to_string(),
        pid.to_string(),
        state.into(),
        phase.to_string(),
        format!("{busy} of {most}"),
        requests.to_string(),
        connections,
    ];
    let cells = COLUMNS.iter().zip(cells).enumerate().map(|(number, ((what, class), cell))| {
        let (begin, end) = if number == 0 { ("th scope=\"row\"", "th") } else { ("td", "td") };
        format!("<{begin} data-of=\"{what}\"{class}>{cell}</{end}>")
    });
    format!("<tr>{}</tr>\n", cells.collect::<String>())
}
