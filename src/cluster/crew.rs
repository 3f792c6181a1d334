//! Who there is, who should be, and what follows from it: decisions, and nothing that acts on anybody.

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::process::ExitStatus;

/// So many rounds of workers that never served, with none left that does, are a crash loop.
pub(super) const CRASHES: u32 = 10;

/// So many replacements that do not come to serve are enough to give up a restart.
const FAILED_REPLACEMENTS: u32 = 3;

/// A worker that lived shorter than this is not followed at once.
const SHORT_LIFE: u64 = 1_000;

/// All workers, and what is wanted of them.
#[derive(Debug, Default)]
pub(super) struct Crew {
    pub(super) members: Vec<Member>,
    /// How many workers there should be.
    pub(super) wanted: usize,
    /// How many more there may be while some are replaced. With none, each ends before another takes its place.
    pub(super) surge: usize,
    /// Which restart this is.
    pub(super) phase: u64,
    restart: Option<Restart>,
    /// It was asked for in the middle of one.
    restarts_again: bool,
    /// The last restart that came to nothing.
    given_up: Option<u64>,
    pub(super) back_off: BackOff,
    born: u64,
    /// Whoever was born before was so under another master.
    taken_over: u64,
}

#[derive(Debug, Default)]
struct Restart {
    failed: u32,
    /// One of the new workers has come to serve.
    is_proved: bool,
}

/// A worker, from outside. All of it is left to the next master, after a restart by exec.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) index: usize,
    /// On the board.
    pub(super) place: usize,
    #[serde(with = "pid")]
    pub(super) pid: Pid,
    phase: u64,
    /// Which of all that there have been.
    birth: u64,
    pub(super) forked_at: u64,
    pub(super) has_served: bool,
    /// Since when it has been told to, or has said that it will.
    pub(super) ends_since: Option<u64>,
    /// It ends because nobody wants it any more.
    pub(super) was_told_to_end: bool,
    /// From when on it is to be killed.
    pub(super) given_up_at: Option<u64>,
    pub(super) is_killed: bool,
    /// It serves, but another should.
    pub(super) is_worn: bool,
    /// After so many requests it is.
    pub(super) most_requests: u64,
}

mod pid {
    use super::Pid;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(pid: &Pid, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_i32(pid.as_raw())
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Pid, D::Error> {
        i32::deserialize(from).map(Pid::from_raw)
    }
}

impl Member {
    pub(super) fn stays(&self) -> bool {
        self.ends_since.is_none()
    }

    fn serves(&self) -> bool {
        self.has_served && self.stays()
    }

    fn is_older_than(&self, other: &Self) -> bool {
        self.index == other.index && self.birth < other.birth
    }
}

/// How a worker is replaced by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replace {
    /// The other one is forked beside it: by its index.
    Beside(usize),
    /// It ends first: by its place among the members.
    After(usize),
}

impl Crew {
    pub(super) fn new(wanted: usize, surge: usize) -> Self {
        Self { wanted, surge, ..Self::default() }
    }

    /// Takes over the workers of the master before this one, who serve until others do.
    pub(super) fn take_over(&mut self, members: Vec<Member>, phase: u64) {
        self.phase = phase;
        self.born = members.iter().map(|member| member.birth).max().unwrap_or(0);
        self.taken_over = self.born;
        self.members = members;
        if !self.members.is_empty() {
            self.restart();
        }
    }

    /// Whether it was [taken over](Self::take_over).
    pub(super) fn was_taken_over(&self, number: usize) -> bool {
        self.members[number].birth <= self.taken_over
    }

    /// One that was forked just now.
    pub(super) fn join(&mut self, index: usize, place: usize, pid: Pid, now: u64, most_requests: u64) {
        self.born += 1;
        self.members.push(Member {
            index,
            place,
            pid,
            phase: self.phase,
            birth: self.born,
            forked_at: now,
            has_served: false,
            ends_since: None,
            was_told_to_end: false,
            given_up_at: None,
            is_killed: false,
            is_worn: false,
            most_requests,
        });
    }

    pub(super) fn free_place(&self, places: usize) -> Option<usize> {
        (0..places).find(|place| self.members.iter().all(|member| member.place != *place))
    }

    pub(super) fn serving(&self) -> usize {
        self.members.iter().filter(|member| member.serves()).count()
    }

    /// Whether one should be forked. Without a surge not before the other one is gone.
    pub(super) fn is_missing(&self, index: usize) -> bool {
        !self.members.iter().any(|member| member.index == index && (member.stays() || self.surge == 0))
    }

    /// The next one for whom another should come: in a restart those of before, and as many at a time as there may be more; otherwise
    /// those who are worn, one at a time. Nobody, while too many are on their way already.
    pub(super) fn next_to_replace(&self) -> Option<Replace> {
        let on_their_way = self.members.iter().filter(|member| !member.serves()).count();
        let at_a_time = match &self.restart {
            Some(restart) if restart.is_proved => self.surge.max(1),
            Some(_) | None => 1,
        };
        if on_their_way >= at_a_time || (0..self.wanted).any(|index| self.is_missing(index)) {
            return None;
        }
        let should_go =
            |member: &Member| if self.restart.is_some() { member.phase < self.phase } else { member.is_worn };
        let has_another = |member: &Member| self.members.iter().any(|other| member.is_older_than(other));
        let all = self.members.iter().enumerate();
        let next = all.filter(|(_, member)| member.stays() && should_go(member) && !has_another(member));
        let (number, member) = next.min_by_key(|(_, member)| (member.index, member.birth))?;
        Some(if self.surge == 0 { Replace::After(number) } else { Replace::Beside(member.index) })
    }

    /// Whether nobody wants it any more: another serves in its place, or they are too many.
    pub(super) fn is_surplus(&self, number: usize) -> bool {
        let member = &self.members[number];
        member.index >= self.wanted || self.members.iter().any(|other| member.is_older_than(other) && other.serves())
    }

    /// Replaces all, or, in the middle of that, once more. Which phase it will be.
    pub(super) fn restart(&mut self) -> u64 {
        if self.restart.is_some() {
            self.restarts_again = true;
            return self.phase + 1;
        }
        self.phase += 1;
        self.restart = Some(Restart::default());
        self.phase
    }

    pub(super) fn is_restarting(&self) -> bool {
        self.restart.is_some()
    }

    /// Whether the restart has just come to its end.
    pub(super) fn is_through(&mut self) -> bool {
        let all_are_new = self.members.iter().all(|member| member.phase == self.phase && member.has_served);
        let all_are_there = (0..self.wanted).all(|index| !self.is_missing(index));
        self.restart.take_if(|_| all_are_new && all_are_there).is_some()
    }

    /// Whether there is another one to begin.
    pub(super) fn restarts_again(&mut self) -> bool {
        self.restart.is_none() && std::mem::take(&mut self.restarts_again)
    }

    /// How the restart to this phase came out, if it did.
    pub(super) fn outcome(&self, phase: u64) -> Option<Result<(), ()>> {
        let is_over = self.phase > phase || self.phase == phase && self.restart.is_none();
        is_over.then(|| if self.given_up == Some(phase) { Err(()) } else { Ok(()) })
    }

    pub(super) fn has_come_to_serve(&mut self, number: usize) {
        let member = &mut self.members[number];
        member.has_served = true;
        let is_new = member.phase == self.phase;
        self.back_off.failures = 0;
        if let Some(restart) = self.restart.as_mut().filter(|_| is_new) {
            restart.is_proved = true;
        }
    }

    /// It is gone, and nobody had told it to. Whether the restart came to nothing by that: then some may be [surplus](Self::is_surplus).
    pub(super) fn has_failed(&mut self, member: &Member, status: ExitStatus, now: u64) -> bool {
        if member.has_served {
            if now.saturating_sub(member.forked_at) < SHORT_LIFE {
                self.back_off.pause(now);
            }
            return false;
        }
        self.back_off.last = status;
        self.back_off.failed(now);
        let Some(restart) = self.restart.as_mut().filter(|_| member.phase == self.phase) else { return false };
        restart.failed += 1;
        if restart.is_proved && restart.failed < FAILED_REPLACEMENTS {
            return false;
        }
        self.give_up();
        true
    }

    /// The old ones stay, and of the new ones those that have taken an old one's place.
    fn give_up(&mut self) {
        self.restart = None;
        self.given_up = Some(self.phase);
        self.back_off.failures = 0;
        self.members.iter_mut().for_each(|member| member.phase = self.phase);
    }

    /// The youngest of an index who have not come to serve, where an older one still does: after a restart that was given up.
    pub(super) fn is_needless(&self, number: usize) -> bool {
        let member = &self.members[number];
        !member.has_served && self.members.iter().any(|other| other.is_older_than(member) && other.serves())
    }
}

/// How long nobody is forked after workers that ended too soon.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    /// Rounds in a row.
    pub(super) failures: u32,
    not_before: u64,
    pub(super) last: ExitStatus,
}

impl BackOff {
    const FIRST: u64 = 100;
    const LONGEST: u64 = 5_000;

    pub(super) fn is_over(&self, now: u64) -> bool {
        now >= self.not_before
    }

    /// Nothing has failed; but it should not go on like that without a pause.
    fn pause(&mut self, now: u64) {
        self.not_before = self.not_before.max(now + Self::FIRST);
    }

    /// Those who fail together count once.
    pub(super) fn failed(&mut self, now: u64) {
        if self.is_over(now) {
            self.not_before = now + (Self::FIRST << self.failures.min(16)).min(Self::LONGEST);
            self.failures += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Forks what there should be, and ends what there should not, until nothing follows any more; each fork is told to `at_fork`.
    struct Play {
        crew: Crew,
        now: u64,
        most_at_a_time: usize,
        least_serving: usize,
    }

    impl Play {
        fn new(wanted: usize, surge: usize) -> Self {
            let mut play =
                Self { crew: Crew::new(wanted, surge), now: 0, most_at_a_time: 0, least_serving: usize::MAX };
            play.rounds(|_| true);
            (play.most_at_a_time, play.least_serving) = (0, usize::MAX);
            play
        }

        fn fork(&mut self, index: usize) {
            let place = self.crew.free_place(64).unwrap();
            self.crew.join(index, place, Pid::from_raw(1), self.now, u64::MAX);
        }

        /// Some rounds, in which those of whom `serves` says so come to serve, and the others end at once.
        fn rounds(&mut self, serves: impl Fn(usize) -> bool) {
            for _ in 0..100 {
                self.now += 10_000;
                for index in 0..self.crew.wanted {
                    if self.crew.is_missing(index) {
                        self.fork(index);
                    }
                }
                match self.crew.next_to_replace() {
                    Some(Replace::Beside(index)) => self.fork(index),
                    Some(Replace::After(number)) => self.crew.members[number].ends_since = Some(self.now),
                    None => {}
                }
                self.most_at_a_time = self.most_at_a_time.max(self.crew.members.len());
                let mut number = 0;
                while number < self.crew.members.len() {
                    let member = &self.crew.members[number];
                    if member.ends_since.is_some_and(|since| since < self.now) {
                        self.crew.members.remove(number);
                    } else if !member.has_served && !serves(member.index) {
                        let member = self.crew.members.remove(number);
                        self.crew.has_failed(&member, ExitStatus::default(), self.now);
                    } else {
                        if !member.has_served {
                            self.crew.has_come_to_serve(number);
                        }
                        number += 1;
                    }
                }
                self.least_serving = self.least_serving.min(self.crew.serving());
                for number in 0..self.crew.members.len() {
                    if self.crew.is_surplus(number) {
                        self.crew.members[number].ends_since = Some(self.now);
                    }
                }
                self.crew.is_through();
                if self.crew.restarts_again() {
                    self.crew.restart();
                }
            }
        }

        fn births(&self) -> Vec<u64> {
            let mut births: Vec<u64> = self.crew.members.iter().map(|member| member.birth).collect();
            births.sort_unstable();
            births
        }
    }

    #[test]
    fn a_restart_replaces_each_and_never_has_fewer_that_serve() {
        let mut play = Play::new(3, 1);
        let phase = play.crew.restart();
        assert_eq!(play.crew.outcome(phase), None);
        play.rounds(|_| true);
        assert_eq!(play.births(), [4, 5, 6]);
        assert_eq!((play.most_at_a_time, play.least_serving), (4, 3));
        assert_eq!(play.crew.outcome(phase), Some(Ok(())));
    }

    #[test]
    fn a_restart_without_room_has_one_fewer_instead_of_one_more() {
        let mut play = Play::new(3, 0);
        play.crew.restart();
        play.rounds(|_| true);
        assert_eq!(play.births(), [4, 5, 6]);
        assert_eq!((play.most_at_a_time, play.least_serving), (3, 2));
    }

    #[test]
    fn more_at_a_time_come_when_the_first_has_proved_itself() {
        let mut play = Play::new(6, 3);
        play.crew.restart();
        assert_eq!(play.crew.next_to_replace(), Some(Replace::Beside(0)));
        play.fork(0);
        assert_eq!(play.crew.next_to_replace(), None, "the first one is alone");
        play.rounds(|_| true);
        assert_eq!(play.births(), (7..=12).collect::<Vec<_>>());
        assert_eq!(play.least_serving, 6);
        assert!(play.most_at_a_time > 7, "{}", play.most_at_a_time);
    }

    #[test]
    fn a_restart_whose_first_fails_leaves_all_as_they_were() {
        let mut play = Play::new(3, 1);
        let phase = play.crew.restart();
        play.rounds(|_| false);
        assert_eq!(play.births(), [1, 2, 3]);
        assert_eq!(play.crew.outcome(phase), Some(Err(())));
    }

    #[test]
    fn one_of_a_restart_in_the_middle_of_a_restart_follows_it() {
        let mut play = Play::new(2, 1);
        assert_eq!((play.crew.restart(), play.crew.restart(), play.crew.restart()), (1, 2, 2));
        play.rounds(|_| true);
        assert_eq!(play.births(), [5, 6]);
        assert_eq!((play.crew.outcome(1), play.crew.outcome(2)), (Some(Ok(())), Some(Ok(()))));
    }

    #[test]
    fn who_is_worn_is_replaced_one_at_a_time() {
        let mut play = Play::new(4, 3);
        play.crew.members.iter_mut().for_each(|member| member.is_worn = true);
        play.rounds(|_| true);
        assert_eq!(play.births(), [5, 6, 7, 8]);
        assert_eq!((play.most_at_a_time, play.least_serving), (5, 4));
    }

    #[test]
    fn who_is_worn_stays_until_another_serves() {
        let mut play = Play::new(2, 1);
        play.crew.members[0].is_worn = true;
        play.rounds(|_| false);
        assert_eq!(play.births(), [1, 2]);
        assert_eq!(play.least_serving, 2);
    }

    #[test]
    fn fewer_are_wanted_in_the_middle_of_a_restart() {
        let mut play = Play::new(4, 1);
        play.crew.restart();
        play.fork(0);
        play.crew.wanted = 1;
        play.rounds(|_| true);
        assert_eq!(play.births(), [5]);
        assert!(!play.crew.is_restarting());
        play.crew.wanted = 3;
        play.rounds(|_| true);
        assert_eq!(play.births(), [5, 6, 7]);
    }

    #[test]
    fn failures_grow_farther_apart_and_those_together_count_once() {
        let mut back_off = BackOff::default();
        back_off.failed(0);
        back_off.failed(50);
        assert_eq!((back_off.failures, back_off.is_over(99), back_off.is_over(100)), (1, false, true));
        back_off.failed(100);
        assert_eq!((back_off.failures, back_off.is_over(299), back_off.is_over(300)), (2, false, true));
        (0..100).for_each(|_| back_off.failed(u64::MAX / 2));
        assert!(back_off.is_over(u64::MAX / 2 + BackOff::LONGEST));
    }
}
