//! A process in which one case is measured.
//!
//! What a process has once done to itself, such as a fork handler, cannot be undone: so each case has a process of its
//! own, which is this program started again. The cases take turns, so that whatever else the machine does, and how fast
//! its processor happens to run, hits all of them alike.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio, exit};
use std::time::Duration;

/// The argument that makes this program a subject; those after it are the case.
const SUBJECT: &str = "--subject";

/// What a subject repeats.
pub type Sample = Box<dyn FnMut() -> Duration>;

/// In a subject: prepares the case once, and samples it as often as asked. In the program that was started by hand:
/// returns.
pub fn serve(prepare: impl FnOnce(&[&str]) -> Sample) {
    let arguments: Vec<String> = env::args().skip_while(|argument| argument != SUBJECT).skip(1).collect();
    if arguments.is_empty() {
        return;
    }
    let case: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut sample = prepare(&case);
    for request in io::stdin().lines() {
        let times: usize = request.ok().and_then(|times| times.parse().ok()).expect("a number of samples");
        let samples: Vec<String> = (0..times).map(|_| sample().as_nanos().to_string()).collect();
        println!("{}", samples.join(" "));
    }
    // What a case has prepared is not of interest any more: 10,000 sockets need not be closed one by one.
    exit(0);
}

/// The process of one case, and what it has measured so far.
pub struct Subject {
    process: Child,
    replies: BufReader<ChildStdout>,
    nanos: Vec<u64>,
}

impl Subject {
    /// Starts a process that will [`serve`] this case.
    pub fn start(case: &[&str]) -> Self {
        let program = env::current_exe().expect("the path of this program");
        let mut command = Command::new(program);
        command.arg(SUBJECT).args(case).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("starting this program again");
        let replies = BufReader::new(process.stdout.take().expect("a pipe"));
        Self { process, replies, nanos: Vec::new() }
    }

    fn sample(&mut self, times: usize) {
        writeln!(self.process.stdin.as_mut().expect("a pipe"), "{times}").expect("a subject that listens");
        let mut reply = String::new();
        self.replies.read_line(&mut reply).expect("a subject that answers");
        let before = self.nanos.len();
        self.nanos.extend(reply.split_whitespace().map(|nanos| nanos.parse::<u64>().expect("nanoseconds")));
        assert_eq!(self.nanos.len() - before, times, "a subject failed");
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // This closes its standard input, upon which it ends.
        let _ = self.process.wait();
    }
}

/// Each subject in turn takes `batch` samples, and that `rounds` times over. What the first samples find cold is found
/// out beforehand.
pub fn take_turns(subjects: &mut [Subject], rounds: usize, batch: usize) {
    let (rounds, batch) = if crate::is_rehearsal() { (1, 1) } else { (rounds, batch) };
    for round in 0..=rounds {
        for subject in &mut *subjects {
            subject.sample(batch);
            if round == 0 {
                subject.nanos.clear();
            }
        }
    }
}

/// The median of all that these subjects have measured, in microseconds.
pub fn median<'a>(subjects: impl IntoIterator<Item = &'a Subject>) -> f64 {
    let mut nanos: Vec<u64> = subjects.into_iter().flat_map(|subject| subject.nanos.iter().copied()).collect();
    nanos.sort_unstable();
    nanos[nanos.len() / 2] as f64 / 1000.0
}
