//! Whether the lowest versions that `Cargo.toml` allows of what the library depends on are enough for it.
//!
//! In a copy of the library alone: tests and chores need newer ones, and a workspace has one version of each.

use crate::steps::Steps;
use anyhow::{Result, ensure};
use xshell::{Shell, cmd};

/// What the library is built from: its documentation shows the tests of the guide.
const NEEDED: [&str; 3] = ["src", "tests/guide", "README.md"];

pub fn run(sh: &Shell, steps: &mut Steps) -> Result<()> {
    let copy = sh.create_temp_dir()?;
    let target = sh.current_dir().join("target/minimal");
    for needed in NEEDED {
        let to = copy.path().join(needed);
        sh.create_dir(to.parent().unwrap_or(copy.path()))?;
        cmd!(sh, "cp -r {needed} {to}").quiet().run()?;
    }
    let manifest = of_the_library(&sh.read_file("Cargo.toml")?);
    ensure!(!manifest.contains("dev-dependencies") && manifest.contains("\n[dependencies]"), "cannot read Cargo.toml");
    sh.write_file(copy.path().join("Cargo.toml"), manifest)?;
    let _there = sh.push_dir(copy.path());
    // The choice of versions wants an unstable cargo, or a stable one that is told to be.
    steps.run(cmd!(sh, "env RUSTC_BOOTSTRAP=1 cargo update --quiet -Zdirect-minimal-versions"))?;
    steps.run(cmd!(sh, "cargo check --all-features --target-dir {target}"))
}

/// Without the other members of the workspace, and what only tests need.
fn of_the_library(manifest: &str) -> String {
    let mut keeps = true;
    let mut kept = String::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            keeps =
                !["[dev-dependencies]", "[[example]]", "[[test]]"].contains(&line) && !line.starts_with("[profile.");
        }
        if keeps && !line.starts_with("members") && !line.starts_with("default-members") {
            kept += line;
            kept += "\n";
        }
    }
    kept
}
