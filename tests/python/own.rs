//! Whose sessions the children have.

use crate::host::Host;
use crate::tally::Seen;
use std::collections::BTreeSet;
use std::fs;

/// Those that survive.
pub(crate) const SURVIVING: [&str; 5] = ["tokio", "sqlx", "redis", "reqwest", "rayon"];
/// Of those, who has a session with a number.
const WITH_SESSION: [&str; 2] = ["sqlx", "redis"];
/// And who has a connection.
const CONNECTED: [&str; 3] = ["sqlx", "redis", "reqwest"];

/// Of each child, what it has written down: its pid, a client, and that client's session.
fn of_children(host: &Host) -> Vec<(u32, String, String)> {
    let text = fs::read_to_string(host.folder().join("children")).unwrap_or_default();
    let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .map(|words| match words[..] {
            [pid, client, session] => (pid.parse().expect("a pid"), client.to_owned(), session.to_owned()),
            _ => panic!("{words:?} is a line of a child"),
        })
        .collect()
}

/// Every answer is right, every child has sessions of its own, the parent's are its own to the end, and the net has taken them from each
/// child.
#[track_caller]
pub(crate) fn assert_everybody_has_his_own(what: &str, host: &Host, seen: &Seen) {
    seen.assert_kept(what, &[]);
    let children = seen.children();
    assert!(children.len() > 1, "{what}: more than one child has answered");
    let own = of_children(host);
    assert_eq!(own.len(), children.len() * WITH_SESSION.len(), "{what}: each child has a session for each: {own:?}");
    let parents = host.sessions("before");
    assert_eq!(parents.len(), WITH_SESSION.len(), "{what}: so has the parent: {parents:?}");
    let all = own.iter().map(|(_, client, session)| (client, session)).chain(&parents);
    let distinct: BTreeSet<_> = all.collect();
    assert_eq!(distinct.len(), own.len() + parents.len(), "{what}: no session is another's: {own:?}, {parents:?}");
    let is_taken = |child: &u32| seen.taken.get(child) == Some(&CONNECTED.len());
    assert!(
        children.iter().all(is_taken),
        "{what}: the net takes those of {CONNECTED:?} from each child: {:?}",
        seen.taken
    );
}
