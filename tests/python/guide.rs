//! What the documentation shows, as it is.

use crate::host::debian;
use crate::net;
use crate::servers::Servers;
use forksafe::testing::{clean_process, patience};
use std::collections::BTreeSet;
use std::process::Command;

/// The parent asks, then each of its children; last the parent again. Who has not answered in time ends by a signal, with all.
const PROGRAM: &str = "
import importlib, os, signal, sys

seconds, module, question = sys.argv[1:]
module = importlib.import_module(module)

def ask():
    signal.alarm(int(seconds))
    print(eval(question), flush=True)

ask()
for child in range(3):
    if os.fork() == 0:
        ask()
        os._exit(0)
    os.wait()
ask()
";

fn answers(module: &str, question: &str, complete: impl FnOnce(&mut Command)) -> Vec<String> {
    let mut python = Command::new(debian("python3"));
    python.args(["-c", PROGRAM, &patience().as_secs().to_string(), module, question]);
    complete(python.env("PYTHONPATH", net::python_path()));
    let output = python.output().expect("Debian's Python");
    let said = String::from_utf8(output.stdout).expect("text");
    let answers: Vec<String> = said.lines().map(str::to_owned).collect();
    assert!(output.status.success() && answers.len() == 5, "{said}{}", String::from_utf8_lossy(&output.stderr));
    answers
}

#[test]
fn the_module_has_a_backend_for_each_process() {
    clean_process(|| {
        let servers = Servers::start();
        let backends = answers("quotes", "module.backend()", |python| {
            python.env("DATABASE_URL", servers.postgres.url());
        });
        assert_eq!(backends[0], backends[4], "the parent's own lives on");
        assert_eq!(BTreeSet::from_iter(&backends).len(), 4, "and is nobody else's: {backends:?}");
    });
}

#[test]
fn rayon_has_threads_in_each_process() {
    clean_process(|| {
        assert_eq!(answers("survivor", "module.total(range(1001))", |_| {}), ["500500"; 5]);
    });
}
