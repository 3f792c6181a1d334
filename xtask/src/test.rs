//! `cargo xtask test`.

use crate::needs;
use crate::postgres::Postgres;
use crate::redis::Redis;
use crate::steps::Steps;
use anyhow::{Context, Result};
use cargo_metadata::MetadataCommand;
use xshell::{Shell, cmd};

pub fn run(sh: &Shell, steps: &mut Steps, install: bool) -> Result<()> {
    needs::provide(sh, steps, needs::TESTS, install, "test")?;
    steps.run(cmd!(sh, "cargo test --all-features"))?;
    each_feature_alone(sh, steps)?;
    // One at a time: the driver prefers rustls when it has both.
    for tls in ["rustls", "native-tls"] {
        steps.run(cmd!(sh, "cargo test --package forksafe-tls-tests --no-default-features --features {tls}"))?;
    }
    steps.run(cmd!(sh, "cargo test --package forksafe-signal-tests"))?;
    steps.run(cmd!(sh, "cargo test --package forksafe-preload"))?;
    steps.run(cmd!(sh, "cargo test --package forksafe-driver-tests"))?;
    steps.run(cmd!(sh, "cargo test --package forksafe-client-tests"))?;
    steps.run(cmd!(sh, "cargo test --package forksafe-host-tests"))?;
    steps.run(cmd!(sh, "cargo test --package forksafe-python-tests"))?;
    // It has had its short run above. Without the protection it has to fail.
    steps.run_expecting(1, cmd!(sh, "cargo test --all-features --test soak -- --unsafe-share"))?;
    // This program itself has no children that share anything.
    let pid = std::process::id().to_string();
    steps.run(cmd!(sh, "cargo run --features testing --bin forksafe-audit -- {pid}"))?;
    drive_the_example(sh, steps)
}

/// Checked and not tested, because the tests' dependencies turn features on.
fn each_feature_alone(sh: &Shell, steps: &mut Steps) -> Result<()> {
    steps.run(cmd!(sh, "cargo check --package forksafe --lib --no-default-features"))?;
    let metadata = MetadataCommand::new().current_dir(sh.current_dir()).no_deps().exec()?;
    let package = metadata.root_package().context("the workspace has no root package")?;
    for feature in package.features.keys().filter(|feature| *feature != "default") {
        steps.run(cmd!(sh, "cargo check --package forksafe --lib --no-default-features --features {feature}"))?;
    }
    Ok(())
}

/// With its built-in witness, with Redis, with PostgreSQL, with both, and with the protection off, which it has to notice.
fn drive_the_example(sh: &Shell, steps: &mut Steps) -> Result<()> {
    let drive = ["run", "--release", "--example", "prefork_server", "--", "--drive", "2000"];
    steps.run(cmd!(sh, "cargo {drive...}"))?;
    // The servers may be somebody else's, and not installed here.
    let (own_redis, own_postgres);
    let redis = match sh.var("REDIS_URL") {
        Ok(url) => url,
        Err(_) => {
            own_redis = Redis::start(sh)?;
            own_redis.url.clone()
        }
    };
    let postgres = match sh.var("DATABASE_URL") {
        Ok(url) => url,
        Err(_) => {
            own_postgres = Postgres::start(sh)?;
            own_postgres.url.clone()
        }
    };
    steps.run(cmd!(sh, "cargo {drive...} --redis {redis}"))?;
    steps.run(cmd!(sh, "cargo {drive...} --postgres {postgres}"))?;
    steps.run(cmd!(sh, "cargo {drive...} --redis {redis} --postgres {postgres}"))?;
    steps.run_expecting(1, cmd!(sh, "cargo {drive...} --unsafe-share"))?;
    steps.run_expecting(1, cmd!(sh, "cargo {drive...} --unsafe-share --postgres {postgres}"))
}
