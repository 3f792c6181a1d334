//! Random ways of making children, at random moments, that do random things; and everything is checked, always.
//!
//! `cargo xtask soak --duration 10m` runs it for long, `cargo test` for a few seconds. All choices come from a seed, which
//! is printed: `--seed N` makes the same ones again, and `--round K` makes those of one round again and again. What the
//! scheduler does is not ours to choose, so a replay is a likely one and not a certain one.

mod first_use;
mod script;
mod trouble;
mod world;

use fastrand::Rng;
use forksafe::testing;
use script::Script;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicPtr, Ordering::SeqCst};
use std::time::{Duration, Instant};
use std::{io, ptr, thread};
use world::World;

/// As a part of `cargo test`.
const BRIEFLY: Duration = Duration::from_secs(5);
/// No round takes longer: all that waits in it has a deadline of its own.
const LONGEST_ROUND: Duration = Duration::from_secs(120);

struct Options {
    duration: Duration,
    seed: u64,
    round: Option<u64>,
    unsafe_share: bool,
}

fn main() -> ExitCode {
    // A filter or an option for the other tests, which have a harness.
    let is_for_others = |arg: &String| !arg.starts_with("--") || arg == "--list";
    let ours = ["--duration", "--seed", "--round", "--unsafe-share"];
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [option, seed, witness] = &arguments[..]
        && option == first_use::OPTION
    {
        first_use::be_it(seed, witness);
        return ExitCode::SUCCESS;
    }
    if !arguments.iter().any(|arg| ours.contains(&&**arg)) && arguments.iter().any(is_for_others) {
        return ExitCode::SUCCESS;
    }
    match options() {
        Ok(options) => soak(&options),
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

fn options() -> Result<Options, pico_args::Error> {
    let mut arguments = pico_args::Arguments::from_env();
    let duration = arguments.opt_value_from_str("--duration")?.map_or(BRIEFLY, Duration::from_secs);
    let seed = arguments.opt_value_from_str("--seed")?.unwrap_or_else(|| fastrand::u64(..));
    let round = arguments.opt_value_from_str("--round")?;
    Ok(Options { duration, seed, round, unsafe_share: arguments.contains("--unsafe-share") })
}

fn soak(options: &Options) -> ExitCode {
    let Options { duration, seed, .. } = *options;
    println!("soak: seed {seed}, for {duration:?}");
    if options.unsafe_share {
        testing::unsafe_share();
    }
    let world = World::build();
    let (until, mut rounds) = (Instant::now() + duration, 0);
    let begun = Barrier::new(4);
    let failed = thread::scope(|scope| {
        let _stop = world.stop_at_end();
        // A thread that is just starting holds a lock of std's, which no thread of a child could start without.
        for number in 0..3 {
            let (world, begun) = (&world, &begun);
            let rng = Rng::with_seed(seed ^ (number + 1));
            scope.spawn(move || {
                begun.wait();
                world.be_busy(rng);
            });
        }
        begun.wait();
        while Instant::now() < until {
            let round = options.round.unwrap_or(rounds);
            // Rounds must not follow one another in the same sequence of numbers.
            let mut rng = Rng::with_seed(seed.wrapping_add(round.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
            let script = Script::choose(&mut rng);
            let replay = format!("replay: cargo xtask soak --seed {seed} --round {round}\n{script:#?}\n");
            watch(format!("soak: round {round} took longer than {LONGEST_ROUND:?}\n{replay}"));
            if catch_unwind(AssertUnwindSafe(|| script.play(&world, rounds, &mut rng))).is_err() || world.has_failed() {
                eprintln!("soak: round {round} failed\n{replay}");
                return true;
            }
            rounds += 1;
        }
        false
    });
    // SAFETY: takes a number.
    unsafe { libc::alarm(LONGEST_ROUND.as_secs() as u32) };
    if failed || catch_unwind(AssertUnwindSafe(|| world.judge_the_end())).is_err() {
        eprintln!("soak: FAILED after {rounds} rounds with seed {seed}");
        return ExitCode::FAILURE;
    }
    println!("soak: {rounds} rounds, {} sessions, nothing wrong", world.sessions());
    ExitCode::SUCCESS
}

/// Should the parent itself hang, it ends with this. A child has no alarm of its parent's.
fn watch(message: String) {
    static MESSAGE: AtomicPtr<String> = AtomicPtr::new(ptr::null_mut());
    extern "C" fn late(_: libc::c_int) {
        // SAFETY: the string is never freed while it is here: the alarm is set anew first. A write and an exit are allowed
        // in a handler.
        unsafe {
            if let Some(message) = MESSAGE.load(SeqCst).as_ref() {
                libc::write(2, message.as_ptr().cast(), message.len());
            }
            libc::_exit(1);
        }
    }
    // SAFETY: the handler makes system calls only.
    unsafe {
        assert_ne!(
            libc::signal(libc::SIGALRM, late as extern "C" fn(libc::c_int) as libc::sighandler_t),
            libc::SIG_ERR,
            "{}",
            io::Error::last_os_error()
        );
        libc::alarm(LONGEST_ROUND.as_secs() as u32);
        let before = MESSAGE.swap(Box::into_raw(Box::new(message)), SeqCst);
        if !before.is_null() {
            drop(Box::from_raw(before));
        }
    }
}
