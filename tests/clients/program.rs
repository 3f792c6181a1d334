//! A program that connects, forks, and goes on with what it has, in parent and children.

use forksafe::fork::{self, net::Policy};
use forksafe::testing::{self, Holdings, Steps};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::mem;
use std::thread;
use std::time::{Duration, Instant};

const CHILDREN: usize = 3;
const QUESTIONS: usize = 20;
/// In a row, after which nobody expects an answer any more.
const ERRORS: usize = 2;
/// For children that wait for a thread that they do not have.
pub(crate) const HANG: Duration = Duration::from_secs(3);
/// Steps: each child has asked in its turn, and the parent has looked at what they hold.
const TURNS: [&str; CHILDREN] =
    ["the first child has asked", "the second child has asked", "the third child has asked"];
const LOOKED: &str = "the parent has looked";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Net {
    /// The control.
    Off,
    On,
}

/// What a server answers: the word that was asked, and what it calls the session in which it was asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) word: String,
    pub(crate) session: String,
}

pub(crate) type Answered = Result<Answer, String>;

/// For clients with errors of whatever kind.
pub(crate) fn answer<S: ToString, E: Display>(answer: Result<(String, S), E>) -> Answered {
    answer.map(|(word, session)| Answer { word, session: session.to_string() }).map_err(|error| error.to_string())
}

/// What becomes of a client in a child that has inherited it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Heals {
    /// Nobody notices.
    AtOnce,
    /// The first question is answered by an error, and no other.
    AfterAnError,
    /// Each question is answered by an error.
    Never,
    /// The first question is not answered.
    Hangs,
}

/// What one process heard.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Heard {
    /// Each word that was asked, with the answer.
    all: Vec<(String, Answered)>,
    /// How long the first answer took.
    first_took: Duration,
    /// How many connections it has inherited, as far as the net knows.
    inherited: u64,
}

/// What was seen of the program.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The session of the parent before it forked.
    before: String,
    parent: Heard,
    /// `None` of those that hang.
    children: Vec<Option<Heard>>,
    /// Connections that a child held with its parent.
    held: Vec<String>,
}

/// Runs it: `connect` makes the client, which the parent uses before it forks, and `ask` asks it for a word.
///
/// With the net parent and children ask at the same time, and a child drops its copy of the client at the end, as programs do. Without it
/// each child asks once and in its turn, and drops nothing, so that what goes wrong is always the same.
pub(crate) fn run<C>(net: Net, connect: impl FnOnce() -> C, ask: impl Fn(&mut C, &str) -> Answered) -> Seen {
    run_until(None, net, connect, ask)
}

/// The same, with a client that may hang in a child.
pub(crate) fn run_in_vain<C>(net: Net, connect: impl FnOnce() -> C, ask: impl Fn(&mut C, &str) -> Answered) -> Seen {
    run_until(Some(HANG), net, connect, ask)
}

fn run_until<C>(
    patience: Option<Duration>,
    net: Net,
    connect: impl FnOnce() -> C,
    ask: impl Fn(&mut C, &str) -> Answered,
) -> Seen {
    if net == Net::On {
        Policy::tcp().set().unwrap();
    }
    let mut client = Some(connect());
    let before = ask(client.as_mut().unwrap(), "before the fork").unwrap().session;
    let steps = Steps::new(&[&TURNS[..], &[LOOKED]].concat());
    let questions = if net == Net::On { QUESTIONS } else { 1 };
    let work = |number: usize, client: Option<C>| {
        if net == Net::Off && number > 0 {
            steps.wait_for(TURNS[number - 1]);
        }
        let mut client = client.unwrap();
        let heard = hear(questions, &format!("child {number}"), |word| ask(&mut client, word));
        steps.take(TURNS[number]);
        // For as long as the client is there.
        steps.wait_for(LOOKED);
        match net {
            Net::On => drop(client),
            Net::Off => mem::forget(client),
        }
        heard
    };
    let children: Vec<_> = (0..CHILDREN).map(|number| testing::child(|| work(number, client.take()))).collect();
    let pids: Vec<_> = children.iter().map(testing::Child::pid).chain([std::process::id()]).collect();
    let mut held = Vec::new();
    match net {
        Net::On => testing::assert_nothing_shared(&pids),
        Net::Off => held = Holdings::of(&pids).unwrap().shared_connections().iter().map(ToString::to_string).collect(),
    }
    steps.take(LOOKED);
    let client = client.as_mut().unwrap();
    let mut parent = Heard::default();
    if net == Net::On {
        parent = hear(questions, "parent, meanwhile", |word| ask(client, word));
    }
    let until = patience.map(|patience| Instant::now() + patience);
    let heard_of = |(number, child): (usize, testing::Child<Heard>)| {
        let has_heard = || steps.taken(TURNS[number]) > 0;
        while until.is_some_and(|until| Instant::now() < until) && !has_heard() {
            thread::sleep(Duration::from_millis(2));
        }
        let hangs = until.is_some() && !has_heard() && waits_for_a_thread(child.pid());
        if hangs { None } else { Some(child.join()) }
    };
    let children = children.into_iter().enumerate().map(heard_of).collect();
    parent.all.extend(hear(questions, "parent, at the end", |word| ask(client, word)).all);
    Seen { before, parent, children, held }
}

/// Of a process that has only the thread that forked.
fn waits_for_a_thread(pid: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).expect("a process of ours");
    call.starts_with(&format!("{} ", libc::SYS_futex))
}

fn hear(questions: usize, who: &str, mut ask: impl FnMut(&str) -> Answered) -> Heard {
    let mut all = Vec::new();
    let (mut errors, mut first_took, begun) = (0, None, Instant::now());
    for question in 0..questions {
        let word = format!("question {question} of {who}");
        let answered = ask(&word);
        first_took.get_or_insert(begun.elapsed());
        errors = if answered.is_err() { errors + 1 } else { 0 };
        all.push((word, answered));
        if errors == ERRORS {
            break;
        }
    }
    Heard { all, first_took: first_took.unwrap_or_default(), inherited: fork::inherited().total }
}

impl Heard {
    fn errors(&self) -> Vec<&str> {
        self.all.iter().filter_map(|(_, answered)| answered.as_ref().err()).map(|error| &**error).collect()
    }

    fn heals(&self) -> Option<Heals> {
        let errors = self.errors().len();
        let begins_with_one = self.all.first().is_some_and(|(_, answered)| answered.is_err());
        match errors {
            0 => Some(Heals::AtOnce),
            1 if begins_with_one && self.all.len() > 1 => Some(Heals::AfterAnError),
            _ if errors == self.all.len() => Some(Heals::Never),
            _ => None,
        }
    }
}

impl Seen {
    /// Nothing is shared, the net has taken what there was, and a child's client does what the documentation says.
    #[track_caller]
    pub(crate) fn assert_protected(&self, expected: Heals) {
        self.print();
        assert_eq!(self.faults(), Vec::<String>::new());
        for child in &self.children {
            match child {
                Some(heard) => {
                    assert_eq!(heard.heals(), Some(expected), "{heard:#?}");
                    assert!(heard.inherited > 0, "the net had nothing to do: {heard:#?}");
                }
                None => assert_eq!(expected, Heals::Hangs),
            }
        }
    }

    /// What it takes before the first answer comes.
    #[track_caller]
    pub(crate) fn assert_first_takes(&self, at_least: Duration) {
        for heard in self.children.iter().flatten() {
            assert!(heard.first_took >= at_least, "{heard:#?}");
        }
    }

    /// The control for clients that wait for a thread that no child has: they do so without the net, too.
    #[track_caller]
    pub(crate) fn assert_hangs_all_the_same(&self) {
        assert!(self.children.iter().all(Option::is_none), "{self:#?}");
    }

    /// The control for clients that each process makes for itself: what a child does not use it holds all the same, so that the
    /// server sees the parent's session end when the last child ends.
    #[track_caller]
    pub(crate) fn assert_only_held(&self) {
        assert_eq!(self.faults(), Vec::<String>::new());
        assert!(!self.held.is_empty(), "the children hold nothing of their parent's");
    }

    /// The control.
    #[track_caller]
    pub(crate) fn assert_shared(&self) {
        self.print();
        let faults = self.faults();
        println!("{faults:#?}");
        assert!(!faults.is_empty(), "the client needs no net");
    }

    /// Signs that processes share a connection: they are in one session, an answer is another's, the parent's session is lost.
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut users = BTreeMap::from([(&*self.before, BTreeSet::from(["the parent".to_owned()]))]);
        let children = self.children.iter().enumerate();
        let children = children.filter_map(|(n, child)| Some((format!("child {n}"), child.as_ref()?)));
        for (who, heard) in [("the parent".to_owned(), &self.parent)].into_iter().chain(children) {
            for (word, answered) in &heard.all {
                match answered {
                    Ok(answer) if answer.word == *word => {
                        users.entry(&answer.session).or_default().insert(who.clone());
                        if who == "the parent" && answer.session != self.before {
                            faults.push(format!("the parent had session {}, and has {}", self.before, answer.session));
                        }
                    }
                    Ok(answer) => faults.push(format!("{word:?} was answered by {:?}", answer.word)),
                    Err(error) if who == "the parent" => faults.push(format!("{word:?} was not answered: {error}")),
                    Err(_) => {}
                }
            }
        }
        let shared = users.iter().filter(|(_, users)| users.len() > 1);
        faults.extend(shared.map(|(session, users)| format!("session {session} is that of {users:?}")));
        faults
    }

    fn print(&self) {
        for child in &self.children {
            match child {
                Some(heard) => {
                    println!("{:?} after {:?}, {:?}", heard.heals(), heard.first_took, heard.errors().first());
                }
                None => println!("hangs"),
            }
        }
    }
}
