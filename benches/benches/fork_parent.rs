//! What forksafe's fork handlers cost the parent: `fork` in a process that never used forksafe, and in one that did but
//! has no connections.
//!
//! Two processes that do exactly the same differ as well, by where their memory happens to lie. So there are many of
//! each kind, and a second kind that never used forksafe: by how much those two differ is the noise.

use forksafe_benches::forking;
use forksafe_benches::subject::{self, Sample, Subject};

const KINDS: [&str; 3] = ["without", "without, again", "with"];
const PROCESSES: usize = 20;
const ROUNDS: usize = 25;
const BATCH: usize = 20;

fn main() {
    subject::serve(prepare);

    let mut subjects: Vec<Subject> = (0..PROCESSES).flat_map(|_| KINDS).map(|kind| Subject::start(&[kind])).collect();
    subject::take_turns(&mut subjects, ROUNDS, BATCH);

    println!("fork as its parent sees it, medians of {} in {PROCESSES} processes", PROCESSES * ROUNDS * BATCH);
    println!("{:<15} {:>8} {:>8}", "forksafe", "µs", "ratio");
    let medians: Vec<f64> =
        (0..KINDS.len()).map(|kind| subject::median(subjects.iter().skip(kind).step_by(KINDS.len()))).collect();
    for (kind, median) in KINDS.iter().zip(&medians) {
        println!("{kind:<15} {median:>8.2} {:>8.4}", median / medians[0]);
    }
}

fn prepare(case: &[&str]) -> Sample {
    if case == ["with"] {
        forksafe::fork::enter();
    }
    Box::new(forking::in_parent)
}
