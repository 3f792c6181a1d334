//! The module that the documentation shows, as it is.

use crate::host::debian;
use crate::net;
use crate::servers::Servers;
use forksafe::testing::{clean_process, patience};
use std::collections::BTreeSet;
use std::process::Command;

/// The parent asks, then each of its children; last the parent again. Who has not answered in time ends by a signal, with all.
const PROGRAM: &str = "
import os, signal, sys, quotes

signal.alarm(int(sys.argv[1]))
print(quotes.backend(), flush=True)
for child in range(3):
    if os.fork() == 0:
        signal.alarm(int(sys.argv[1]))
        print(quotes.backend(), flush=True)
        os._exit(0)
    os.wait()
print(quotes.backend(), flush=True)
";

#[test]
fn the_module_of_the_guide_has_a_backend_for_each_process() {
    clean_process(|| {
        let servers = Servers::start();
        let mut python = Command::new(debian("python3"));
        python.args(["-c", PROGRAM, &patience().as_secs().to_string()]).env("DATABASE_URL", servers.postgres.url());
        let output = python.env("PYTHONPATH", net::python_path()).output().expect("Debian's Python");
        let said = String::from_utf8(output.stdout).expect("numbers");
        let backends: Vec<&str> = said.lines().collect();
        assert!(output.status.success() && backends.len() == 5, "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(backends[0], backends[4], "the parent's own lives on");
        assert_eq!(BTreeSet::from_iter(&backends).len(), 4, "and is nobody else's: {backends:?}");
    });
}
