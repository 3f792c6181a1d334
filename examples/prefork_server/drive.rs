//! `--drive`: a process that sends requests, never touches the pool, and keeps a record of who answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread;

/// Enough to have seen.
const MOST_WRONG: usize = 50;

/// The pid, the thread and the connection of an answer.
type Answer = [u64; 3];

/// Sends the requests from several threads, prints what came back, and returns the exit code. `master` is what the
/// master was answered before the fork.
pub(crate) fn drive(url: &str, requests: u32, clients: u32, master: Answer) -> u8 {
    let (answers, wrong) = send(url, requests, clients);
    println!("\n{:>8} {:>7} {:>11} {:>9}", "worker", "thread", "connection", "requests");
    for ([pid, thread, connection], times) in &answers {
        println!("{pid:>8} {thread:>7} {connection:>11} {times:>9}");
    }
    println!();

    let mut held = BTreeMap::<u64, BTreeSet<u64>>::new();
    let mut holders = BTreeMap::<u64, BTreeSet<u64>>::new();
    for &[pid, _, connection] in answers.keys().chain([&master]) {
        held.entry(pid).or_default().insert(connection);
        holders.entry(connection).or_default().insert(pid);
    }
    for (pid, connections) in held {
        let who = if pid == master[0] { "master" } else { "worker" };
        println!("{who} {pid} holds {} of the connections: {}", connections.len(), list(&connections));
    }
    holders.retain(|_, pids| pids.len() > 1);
    for (connection, pids) in &holders {
        println!("SHARED: connection {connection} was used by processes {}", list(pids));
    }
    wrong.iter().take(5).for_each(|error| println!("WRONG: {error}"));
    let stopped = if wrong.len() == MOST_WRONG { ": stopped" } else { "" };
    let answered = answers.values().sum::<u32>();
    println!("{answered} right answers, {} wrong answers or errors{stopped}", wrong.len());
    if holders.is_empty() && wrong.is_empty() {
        println!("no connection is shared between processes");
        return 0;
    }
    1
}

/// How often each answer came, and what came instead of one.
fn send(url: &str, requests: u32, clients: u32) -> (BTreeMap<Answer, u32>, Vec<String>) {
    let (mut answers, mut wrong) = (BTreeMap::new(), Vec::new());
    let sent = AtomicU32::new(0);
    thread::scope(|scope| {
        let (tell, results) = mpsc::channel();
        for _ in 0..clients {
            let (tell, sent) = (tell.clone(), &sent);
            scope.spawn(move || while sent.fetch_add(1, Relaxed) < requests && tell.send(request(url)).is_ok() {});
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
fn request(url: &str) -> Result<Answer, String> {
    let response = minreq::get(url).with_timeout(3).send().map_err(|error| error.to_string())?;
    let text = response.as_str().map_err(|error| error.to_string())?.trim();
    let numbers: Vec<u64> = text.split(|c: char| !c.is_ascii_digit()).flat_map(str::parse).collect();
    match (response.status_code, &numbers[..]) {
        (200, &[pid, thread, connection]) => Ok([pid, thread, connection]),
        (status, _) => Err(format!("{status} {text}")),
    }
}

fn list(numbers: &BTreeSet<u64>) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}
