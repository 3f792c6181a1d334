//! `--drive`: a process that sends requests, never touches the pool, and keeps a record of who answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;

/// Enough to have seen.
const MOST_WRONG: usize = 50;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Answer {
    pub(crate) pid: u64,
    pub(crate) thread: u64,
    /// One of each backend.
    pub(crate) connections: Vec<u64>,
}

/// Sends the requests from several threads, prints what came back, and returns the exit code. `master` is what the
/// master was answered before the fork, `labels` is what the connections are called.
pub(crate) fn drive(url: &str, requests: u32, clients: u32, master: &Answer, labels: &[String]) -> u8 {
    let (answers, wrong) = send(url, requests, clients, labels.len());
    let row = |worker: &str, thread: &str, connections: &[String], requests: &str| {
        let connections = connections.iter().zip(labels).map(|(text, label)| format!("{text:>0$} ", label.len() + 1));
        println!("{worker:>8} {thread:>7} {}{requests:>9}", connections.collect::<String>());
    };
    println!();
    row("worker", "thread", labels, "requests");
    for (Answer { pid, thread, connections }, times) in &answers {
        let connections: Vec<String> = connections.iter().map(u64::to_string).collect();
        row(&pid.to_string(), &thread.to_string(), &connections, &times.to_string());
    }
    println!();

    let mut shared = false;
    for (backend, label) in labels.iter().enumerate() {
        let mut held = BTreeMap::<u64, BTreeSet<u64>>::new();
        let mut holders = BTreeMap::<u64, BTreeSet<u64>>::new();
        for Answer { pid, connections, .. } in answers.keys().chain([master]) {
            held.entry(*pid).or_default().insert(connections[backend]);
            holders.entry(connections[backend]).or_default().insert(*pid);
        }
        for (pid, connections) in held {
            let who = if pid == master.pid { "master" } else { "worker" };
            println!("{who} {pid} holds {} of the {label}s: {}", connections.len(), list(&connections));
        }
        holders.retain(|_, pids| pids.len() > 1);
        for (connection, pids) in &holders {
            println!("SHARED: {label} {connection} was used by processes {}", list(pids));
        }
        shared |= !holders.is_empty();
    }
    wrong.iter().take(5).for_each(|error| println!("WRONG: {error}"));
    let stopped = if wrong.len() == MOST_WRONG { ": stopped" } else { "" };
    let answered = answers.values().sum::<u32>();
    println!("{answered} right answers, {} wrong answers or errors{stopped}", wrong.len());
    if !shared && wrong.is_empty() {
        println!("no connection is shared between processes");
        return 0;
    }
    1
}

/// How often each answer came, and what came instead of one.
fn send(url: &str, requests: u32, clients: u32, backends: usize) -> (BTreeMap<Answer, u32>, Vec<String>) {
    let (mut answers, mut wrong) = (BTreeMap::new(), Vec::new());
    let sent = AtomicU32::new(0);
    thread::scope(|scope| {
        let (tell, results) = mpsc::channel();
        for _ in 0..clients {
            let (tell, sent) = (tell.clone(), &sent);
            let request = move || request(url, backends);
            scope.spawn(move || while sent.fetch_add(1, Relaxed) < requests && tell.send(request()).is_ok() {});
        }
        drop(tell);
        for result in results {
            match result {
                Ok(answer) => *answers.entry(answer).or_default() += 1,
                Err(error) => wrong.push(error),
            }
            if wrong.len() == MOST_WRONG {
                break; // Which hangs up on the clients.
            }
        }
    });
    (answers, wrong)
}

/// One request on a connection of its own, so that the kernel picks a worker for it.
fn request(url: &str, backends: usize) -> Result<Answer, String> {
    let response = minreq::get(url).with_timeout(3).send().map_err(|error| error.to_string())?;
    let text = response.as_str().map_err(|error| error.to_string())?.trim();
    let numbers: Vec<u64> = text.split(|c: char| !c.is_ascii_digit()).flat_map(str::parse).collect();
    match (response.status_code, &numbers[..]) {
        (200, &[pid, thread, ref connections @ ..]) if connections.len() == backends => {
            Ok(Answer { pid, thread, connections: connections.to_vec() })
        }
        (status, _) => Err(format!("{status} {text}")),
    }
}

fn list(numbers: &BTreeSet<u64>) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}
