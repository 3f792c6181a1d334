//! What came back of what was asked, and whether that is what the net promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Of one client, in each child of one host.
#[derive(Default, Clone)]
pub(crate) struct Tally {
    children: BTreeMap<u32, Child>,
    wrong: Vec<String>,
    hung: usize,
}

#[derive(Default, Clone)]
struct Child {
    right: usize,
    errors: Vec<String>,
}

impl Tally {
    /// `answer` is a line of an application: a pid, whether that is an answer, and what it is. `None` if none came in time.
    pub(crate) fn add(&mut self, word: &str, answer: Option<&str>) {
        let Some((pid, outcome)) = answer.and_then(|answer| answer.split_once(' ')) else {
            self.hung += 1;
            return;
        };
        if outcome == "hung" {
            self.hung += 1;
            return;
        }
        let child = self.children.entry(pid.parse().unwrap_or_default()).or_default();
        match outcome.split_once(' ') {
            Some(("answer", value)) if value == word => child.right += 1,
            Some(("error", error)) => child.errors.push(error.to_owned()),
            _ => self.wrong.push(format!("{word} was answered by {outcome}")),
        }
    }

    /// Of lines with a word each, and what came back.
    pub(crate) fn of_lines_that(text: &str, is_meant: impl Fn(&str) -> bool) -> Self {
        let mut tally = Self::default();
        for (word, answer) in text.lines().filter_map(|line| line.split_once(' ')) {
            if is_meant(word) {
                tally.add(word, Some(answer));
            }
        }
        tally
    }

    /// How many questions it tells of.
    pub(crate) fn all(&self) -> usize {
        let answered: usize = self.children.values().map(|child| child.right + child.errors.len()).sum();
        answered + self.wrong.len() + self.hung
    }

    /// Whether something has gone wrong for certain: an error may have been the only one.
    pub(crate) fn is_bad(&self) -> bool {
        let errs = |child: &Child| child.errors.len() > 1;
        self.hung > 0 || !self.wrong.is_empty() || self.children.values().any(errs)
    }

    /// How many have answered.
    pub(crate) fn children(&self) -> usize {
        self.children.len()
    }

    fn right(&self) -> usize {
        self.children.values().map(|child| child.right).sum()
    }

    /// In what it is not as promised: every answer is right, but for at most one error in each child, which is one of those that
    /// the client's users know (by the beginnings of their texts), and after which all is well.
    pub(crate) fn faults(&self, known: &[&str]) -> Vec<String> {
        let mut faults = Vec::new();
        if let Some(first) = self.wrong.first() {
            faults.push(format!("{} wrong answers: {first}, ...", self.wrong.len()));
        }
        if self.hung > 0 {
            faults.push(format!("{} were not answered", self.hung));
        }
        for (pid, Child { errors, .. }) in &self.children {
            let is_known = |error: &String| known.iter().any(|known| error.starts_with(known));
            if errors.len() > 1 || !errors.iter().all(is_known) {
                faults.push(format!("{} errors in child {pid}, such as {:?}", errors.len(), errors.last()));
            }
        }
        if self.right() == 0 {
            faults.push("there is no right answer".to_owned());
        }
        faults
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors: usize = self.children.values().map(|child| child.errors.len()).sum();
        let (right, wrong, hung) = (self.right(), self.wrong.len(), self.hung);
        write!(
            f,
            "{right} right, {wrong} wrong, {errors} errors, {hung} without an answer; {} children",
            self.children.len()
        )?;
        let first = self.children.values().find_map(|child| child.errors.first());
        first.map_or(Ok(()), |error| write!(f, "; {error}"))
    }
}

/// What was seen of a host.
pub(crate) struct Seen {
    pub(crate) tallies: BTreeMap<&'static str, Tally>,
    /// What is wrong with the connections of the parent.
    pub(crate) faults_of_parent: Vec<String>,
    /// How many connections the net has taken, in each child.
    pub(crate) taken: BTreeMap<u32, usize>,
}

impl Seen {
    /// The children that have answered.
    pub(crate) fn children(&self) -> BTreeSet<u32> {
        self.tallies.values().flat_map(|tally| tally.children.keys().copied()).collect()
    }

    /// Prints what came of it, for the table in the documentation, and says in what it is not as promised.
    fn faults(&self, host: &str, known: &[(&str, &[&str])]) -> Vec<String> {
        let mut faults = self.faults_of_parent.clone();
        for (client, tally) in &self.tallies {
            println!("{host}, {client}: {tally}");
            let known = known.iter().find(|(name, _)| name == client).map_or(&[][..], |(_, known)| known);
            faults.extend(tally.faults(known).into_iter().map(|fault| format!("{client}: {fault}")));
        }
        faults
    }

    /// Every child is right.
    #[track_caller]
    pub(crate) fn assert_kept(&self, host: &str, known: &[(&str, &[&str])]) {
        let faults = self.faults(host, known);
        assert!(faults.is_empty(), "{host}: {faults:#?}");
    }

    /// Every child is right, and it is the net's doing: one connection for each client was taken in each, at least.
    #[track_caller]
    pub(crate) fn assert_kept_by_the_net(&self, host: &str, known: &[(&str, &[&str])]) {
        self.assert_kept(host, known);
        assert!(self.children().len() > 1, "{host}: more than one child has answered");
        let inherited = self.tallies.len();
        let is_taken = |child: &u32| self.taken.get(child).is_some_and(|taken| *taken >= inherited);
        assert!(self.children().iter().all(is_taken), "{inherited} connections in each child: {:?}", self.taken);
    }

    /// The control: something is wrong.
    #[track_caller]
    pub(crate) fn assert_broken(&self, host: &str, known: &[(&str, &[&str])]) {
        let faults = self.faults(host, known);
        println!("{faults:#?}");
        assert!(!faults.is_empty(), "{host} needs no net");
    }
}
