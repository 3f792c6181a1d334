//! One round: what is chosen, and that it comes out right.

use crate::first_use;
use crate::trouble::{Ill, Weather};
use crate::world::{Lent, Owner, Pools, Service, World};
use fastrand::Rng;
use forksafe::fork;
use forksafe::testing::{self, Outcome, Spawn, Steps, Way};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// What a round is made of. All of it is chosen before the fork.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    way: Way,
    /// What the parent's main thread has lent at the fork.
    held: Vec<Service>,
    in_a_transaction: bool,
    /// After what time of doing something else it forks.
    delay: Duration,
    acts: Vec<Act>,
    end: End,
    /// What becomes of the network meanwhile.
    weather: Option<Weather>,
    /// Whether another process begins meanwhile, of which this is the seed.
    first_use: Option<u64>,
    /// Whether the parent looks at the child's descriptors before it goes on.
    is_inspected: bool,
}

/// What a child does.
#[derive(Clone, Debug)]
enum Act {
    Use(Service),
    /// So many threads race for the first connection.
    UseInThreads(usize, Service),
    UseInherited,
    DropInherited,
    UnwindThroughInherited,
    Disconnect,
    Execute(Spawn),
    /// A connect that fails.
    Fail(Ill),
    AskThroughTheWeather,
    /// A child of its own.
    Fork(Way, Vec<Act>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Return,
    ThenExit,
    Exit,
    Panic,
    Abort,
    /// By its parent, wherever it is then.
    Killed(Duration),
}

fn choose<T: Copy>(rng: &mut Rng, all: &[T]) -> T {
    all[rng.usize(..all.len())]
}

/// To try them out takes a while.
fn permitted() -> &'static [Way] {
    static WAYS: OnceLock<Vec<Way>> = OnceLock::new();
    WAYS.get_or_init(|| Way::ALL.iter().copied().filter(|way| way.available().is_ok()).collect())
}

impl Script {
    pub(crate) fn choose(rng: &mut Rng) -> Self {
        // Half of them by fork, as everybody does.
        let way = if rng.bool() { Way::Fork } else { choose(rng, permitted()) };
        let acts = acts(rng, 2);
        let end = match rng.u8(..12) {
            0 => End::ThenExit,
            1 => End::Exit,
            2 => End::Panic,
            3 => End::Abort,
            4 | 5 => End::Killed(Duration::from_micros(rng.u64(..20_000))),
            _ => End::Return,
        };
        let held = Service::ALL.into_iter().filter(|_| rng.bool()).collect();
        let (in_a_transaction, is_inspected) = (rng.bool(), rng.u8(..4) == 0);
        let delay = Duration::from_micros(if rng.bool() { 0 } else { rng.u64(..3000) });
        // The tap's thread allocates, and only libc's fork puts that in order.
        let weather = (way.runs_handlers() && rng.u8(..6) == 0).then(|| choose(rng, &Weather::ALL));
        let first_use = (rng.u8(..8) == 0).then(|| rng.u64(..));
        Self { way, held, in_a_transaction, delay, acts, end, weather, first_use, is_inspected }
    }

    pub(crate) fn play(&self, world: &World, round: u64, rng: &mut Rng) {
        let me = std::process::id();
        let mut held: Vec<Lent> = self.held.iter().map(|&service| world.pools.lend(service)).collect();
        let before: Vec<_> = held.iter_mut().map(Lent::ask).collect();
        before.iter().for_each(|session| world.note(session, Owner::Parent));
        let transactions: Vec<_> =
            held.iter_mut().map(|lent| if self.in_a_transaction { lent.begin() } else { None }).collect();
        if let Some(weather) = self.weather {
            // So that the child inherits one that leads through it.
            world.pools.trouble.ask_through_the_weather("before the storm");
            world.pools.trouble.change(weather, rng);
        }
        let forks_at = Instant::now() + self.delay;
        while Instant::now() < forks_at {
            std::hint::spin_loop();
        }

        let steps = Steps::new(&["the child has taken stock", "it has been looked at", "it has begun"]);
        let child = {
            let _quiet = (!self.way.runs_handlers()).then(|| world.quiet());
            let body = || self.be_the_child(&world.pools, &mut held, &steps);
            if self.end == End::ThenExit { self.way.child_then_exit(body) } else { self.way.child(body) }
        };
        if self.is_inspected {
            steps.wait_for("the child has taken stock");
            testing::assert_nothing_shared(&[me, child.pid()]);
            // Not even one that its parent has closed since: it has not opened any.
            testing::wait_until("the child holds no live connection", || world.is_unconnected(child.pid()));
            steps.take("it has been looked at");
        }
        // What the parent does meanwhile, or not.
        for lent in held.iter_mut().filter(|_| rng.bool()) {
            world.note(&lent.ask(), Owner::Parent);
        }
        if let End::Killed(after) = self.end {
            steps.wait_for("it has begun");
            thread::sleep(after);
            // SAFETY: takes numbers. It has not been waited for, so the pid is its own.
            unsafe { libc::kill(child.pid() as libc::pid_t, libc::SIGKILL) };
        }
        let pid = child.pid();
        match (self.end, child.outcome()) {
            (End::Return | End::ThenExit, Outcome::Returned(sessions)) => {
                sessions.iter().for_each(|(session, pid)| world.note(session, Owner::Child { round, pid: *pid }));
            }
            (End::Exit, Outcome::Exited(3)) => {}
            (End::Panic, Outcome::Panicked { message, .. }) if message == "on purpose" => {}
            // A process that is the first of its namespace has no other way than to crash.
            (End::Abort, Outcome::Killed { signal: libc::SIGABRT | libc::SIGSEGV }) => {}
            (End::Killed(_), Outcome::Killed { signal: libc::SIGKILL }) => {}
            (_, outcome) => panic!("child {pid}: {outcome:?}"),
        }

        for ((lent, transaction), before) in held.iter_mut().zip(transactions).zip(before) {
            assert_eq!(lent.ask(), before, "the parent's session is another one");
            if let Some(number) = transaction {
                lent.commit(number);
            }
        }
        if self.weather.is_some() {
            world.pools.trouble.clear_up();
        }
        if let Some(seed) = self.first_use {
            first_use::race(seed, world.witness.address());
        }
        assert_eq!(world.witness.violations(), Vec::<String>::new());
    }

    /// Returns the sessions that were used, each with the process that used it.
    fn be_the_child(&self, pools: &Pools, held: &mut Vec<Lent>, steps: &Steps) -> Vec<(String, u32)> {
        // With this even a child that was made without handlers is protected.
        fork::enter();
        steps.take("the child has taken stock");
        if self.is_inspected {
            steps.wait_for("it has been looked at");
        }
        steps.take("it has begun");
        let mut sessions = Vec::new();
        play(&self.acts, pools, held, &mut sessions);
        match self.end {
            End::Return | End::ThenExit => sessions,
            // SAFETY: ends this process.
            End::Exit => unsafe { libc::_exit(3) },
            End::Panic => panic!("on purpose"),
            End::Abort => std::process::abort(),
            End::Killed(_) => loop {
                thread::park();
            },
        }
    }
}

fn acts(rng: &mut Rng, depth: u32) -> Vec<Act> {
    (0..rng.usize(..5))
        .map(|_| match rng.u8(..14) {
            0..=3 => Act::Use(choose(rng, &Service::ALL)),
            4 => Act::UseInThreads(rng.usize(2..6), choose(rng, &Service::ALL)),
            5 => Act::UseInherited,
            6 => Act::DropInherited,
            7 => Act::UnwindThroughInherited,
            8 => Act::Disconnect,
            9 => Act::Execute(choose(rng, Spawn::ALL)),
            10 => Act::Fail(choose(rng, &Ill::ALL)),
            11 => Act::AskThroughTheWeather,
            _ if depth == 0 => Act::Use(Service::Witness),
            _ => Act::Fork(choose(rng, &[Way::Fork, Way::Clone, Way::SysFork]), acts(rng, depth - 1)),
        })
        .collect()
}

fn play(acts: &[Act], pools: &Pools, held: &mut Vec<Lent>, sessions: &mut Vec<(String, u32)>) {
    for act in acts {
        match act {
            Act::Use(service) => sessions.push((pools.ask(*service), std::process::id())),
            Act::UseInThreads(threads, service) => {
                let asked: Vec<_> = thread::scope(|scope| {
                    let threads: Vec<_> = (0..*threads).map(|_| scope.spawn(|| pools.ask(*service))).collect();
                    threads.into_iter().map(|thread| thread.join().expect("a thread of the child")).collect()
                });
                sessions.extend(asked.into_iter().map(|session| (session, std::process::id())));
            }
            Act::UseInherited => assert!(held.iter_mut().all(Lent::is_refused), "what is the parent's was handed out"),
            Act::DropInherited => drop(held.pop()),
            Act::UnwindThroughInherited => {
                let lent = held.pop();
                let unwound = catch_unwind(AssertUnwindSafe(|| {
                    let _lent = lent;
                    panic!("through a guard");
                }));
                assert!(unwound.is_err());
            }
            Act::Disconnect => pools.disconnect(),
            Act::Execute(spawn) => assert!(spawn.run("true", &[]).status.success(), "{spawn}"),
            Act::Fail(ill) => pools.trouble.meet(*ill),
            Act::AskThroughTheWeather => _ = pools.trouble.ask_through_the_weather("in the storm"),
            Act::Fork(way, acts) => {
                let child = way.child(|| {
                    let mut sessions = Vec::new();
                    // Where no handler ran it is this that makes a new process of it.
                    fork::enter();
                    play(acts, pools, held, &mut sessions);
                    sessions
                });
                sessions.extend(child.join());
            }
        }
    }
}
