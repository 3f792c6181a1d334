//! Whether what is loaded into programs of others is small, needs libc alone, exports nothing but its own, and stays when it is closed.

use crate::steps::Steps;
use anyhow::{Result, ensure};
use std::fs;
use xshell::{Shell, cmd};

const LIBRARY: &str = "target/preload/libforksafe_preload.so";

/// In bytes.
const MOST: u64 = 500_000;

/// For programs that have a net of their own.
const EXPORTED: &str = "forksafe_preload_stand_down";

/// Libraries that are libc, on one machine or another.
const LIBC: [&str; 3] = ["libc.so.6", "ld-linux-", "libpthread.so.0"];

pub fn run(sh: &Shell, steps: &mut Steps) -> Result<()> {
    steps.run(cmd!(sh, "cargo build --profile preload --package forksafe-preload"))?;
    let size = fs::metadata(sh.current_dir().join(LIBRARY))?.len();
    ensure!(size < MOST, "{LIBRARY} has {size} bytes, and may have {MOST}");
    let dynamic = cmd!(sh, "readelf --dynamic --wide {LIBRARY}").read()?;
    let needed: Vec<&str> = dynamic.lines().filter(|line| line.contains("(NEEDED)")).collect();
    let is_libc = |line: &&str| LIBC.iter().any(|name| line.contains(name));
    ensure!(!needed.is_empty() && needed.iter().all(is_libc), "{LIBRARY} needs more than libc: {needed:#?}");
    ensure!(dynamic.contains("NODELETE"), "{LIBRARY} would be unloaded by dlclose:\n{dynamic}");
    let exported = cmd!(sh, "nm --dynamic --defined-only --format=just-symbols {LIBRARY}").read()?;
    ensure!(exported == EXPORTED, "{LIBRARY} exports what may hide a symbol of the program's:\n{exported}");
    eprintln!("{LIBRARY}: {size} bytes, libc alone, {EXPORTED} exported");
    Ok(())
}
