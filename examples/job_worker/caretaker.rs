//! One thread of each worker's looks after what is nobody's: it says that this worker lives, queues again what those that do not have
//! left and what has rested long enough, and in the first worker shows how far it is.

use crate::Result;
use crate::outage::REDIS;
use crate::queue::{Counts, Rescued};
use crate::say::{say, show_progress};
use crate::shop::Shop;
use std::io::{self, IsTerminal};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often it looks.
const ROUND: Duration = Duration::from_millis(250);

/// How often it shows how far it is, where lines stay.
const LINES: Duration = Duration::from_secs(5);

/// Until the other end of `work_goes_on` is dropped.
pub(crate) fn look_after(shop: &Shop, lists: &[String], mut progress: Option<Progress>, work_goes_on: &Receiver<()>) {
    loop {
        let round = shop.queue.beat(lists).and_then(|()| look_around(shop));
        let round = round.and_then(|()| progress.as_mut().map_or(Ok(()), |progress| progress.show(shop, false)));
        match round {
            Ok(()) => REDIS.is_there(),
            Err(error) => REDIS.is_away(&*error),
        }
        if work_goes_on.recv_timeout(ROUND) == Err(RecvTimeoutError::Disconnected) {
            break;
        }
    }
    let _ = progress.map(|mut progress| progress.show(shop, true));
}

fn look_around(shop: &Shop) -> Result<()> {
    shop.queue.rescue(tell)?;
    while shop.queue.promote()? > 0 {}
    Ok(())
}

pub(crate) fn tell(Rescued { job, pid, times, is_dead }: &Rescued) {
    if *is_dead {
        say(&format!(
            "job {job} is dead: its worker was gone in the middle of it for the {times}th time (process {pid})"
        ));
    } else {
        say(&format!("job {job} of worker {pid} that is gone is run again (interruption {times})"));
    }
}

/// How far it is.
pub(crate) struct Progress {
    shown_at: Instant,
    done: Option<u64>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { shown_at: Instant::now(), done: None }
    }

    fn show(&mut self, shop: &Shop, is_last: bool) -> Result<()> {
        let since = self.shown_at.elapsed();
        if !is_last && since < if io::stdout().is_terminal() { ROUND } else { LINES } {
            return Ok(());
        }
        let counts = shop.queue.counts()?;
        let done = counts.done();
        let rate = done.saturating_sub(self.done.unwrap_or(done)) as f64 / since.as_secs_f64().max(0.001);
        (self.shown_at, self.done) = (Instant::now(), Some(done));
        let Counts { queue, working, retry, dead, .. } = counts;
        let line =
            format!("queue {queue}, working {working}, retry {retry}, dead {dead}, done {done}, {rate:.0} a second");
        show_progress(&line, is_last);
        Ok(())
    }
}
