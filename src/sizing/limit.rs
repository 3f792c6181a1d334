//! What a server allows.

use super::text::safe;

/// One of the limits of a server: how many connections it allows, and to whom.
///
/// ```
/// use forksafe::sizing::Limit;
///
/// let limit = Limit::new("max_connections of the server", 100).reserved(3).whom("role app").in_use(42, Some(30));
/// assert_eq!(limit.to_be_had(), 67);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    what: String,
    total: u64,
    reserved: u64,
    in_use: Option<u64>,
    of_others: Option<u64>,
    is_uncounted: bool,
    whom: Option<String>,
}

impl Limit {
    /// What limits ("max_connections of the server"), and to how many.
    pub fn new(what: impl Into<String>, total: u64) -> Self {
        Self {
            what: safe(&what.into()),
            total,
            reserved: 0,
            in_use: None,
            of_others: None,
            is_uncounted: false,
            whom: None,
        }
    }

    /// So many of them are kept for others. Default: none.
    #[must_use]
    pub fn reserved(mut self, reserved: u64) -> Self {
        self.reserved = reserved;
        self
    }

    /// So many connections count towards it now; and how many of those are others', not the [plan's](super::Plan) own. `None`: nobody
    /// can tell.
    ///
    /// Default: nothing is known to be in use.
    #[must_use]
    pub fn in_use(mut self, in_use: u64, of_others: Option<u64>) -> Self {
        self.in_use = Some(in_use);
        self.of_others = of_others;
        self
    }

    /// How many count towards it now, nobody can tell. So it cannot be told that anything fits; but what is more than the limit does
    /// surely not.
    #[must_use]
    pub fn in_use_unknown(mut self) -> Self {
        self.is_uncounted = true;
        self
    }

    /// Whom it limits: "role app". Default: everybody.
    #[must_use]
    pub fn whom(mut self, whom: impl Into<String>) -> Self {
        self.whom = Some(safe(&whom.into()));
        self
    }

    /// What limits.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// How many it allows in all.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many of them are kept for others.
    pub fn kept(&self) -> u64 {
        self.reserved
    }

    /// How many connections count towards it now, the plan's own as well, if that is known.
    pub fn now(&self) -> Option<u64> {
        self.in_use
    }

    /// How many of those are others', if that is known.
    pub fn others(&self) -> Option<u64> {
        self.of_others
    }

    /// Whom it limits, if not everybody.
    pub fn for_whom(&self) -> Option<&str> {
        self.whom.as_deref()
    }

    /// How many a plan can have. If nobody can tell whose the open ones are, they are taken to be its own.
    pub fn to_be_had(&self) -> u64 {
        self.total.saturating_sub(self.beside())
    }

    /// How many a plan can have for certain: whose nobody can tell is another's.
    pub fn surely_to_be_had(&self) -> u64 {
        if self.is_uncounted {
            return 0;
        }
        let others = self.of_others.or(self.in_use).unwrap_or(0);
        self.total.saturating_sub(self.reserved.saturating_add(others))
    }

    /// What it would have to be for so many.
    pub(super) fn total_for(&self, connections: u64) -> u64 {
        connections.saturating_add(self.beside())
    }

    /// What is known not to be the plan's.
    fn beside(&self) -> u64 {
        self.reserved.saturating_add(self.of_others.unwrap_or(0))
    }

    /// The open ones, if whose they are cannot be told.
    pub(super) fn unattributed(&self) -> Option<u64> {
        self.in_use.filter(|&open| self.of_others.is_none() && open > 0)
    }
}

/// What a server allows: all of its limits, or why they are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub(super) state: State,
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Known(Vec<Limit>),
    Unknown(String),
    Full(String),
}

impl Capacity {
    fn new(state: State) -> Self {
        Self { state, notes: Vec::new() }
    }

    /// All of these limits hold. None: there is no limit.
    pub fn of(limits: impl IntoIterator<Item = Limit>) -> Self {
        Self::new(State::Known(limits.into_iter().collect()))
    }

    /// Nobody knows, and why.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::new(State::Unknown(safe(&why.into())))
    }

    /// The server has no room for one more connection now, and so could not be asked; with what it said.
    pub fn full(said: impl Into<String>) -> Self {
        Self::new(State::Full(safe(&said.into())))
    }

    /// Something that a reader of the [report](super::Report) should know.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(safe(&note.into()));
        self
    }

    /// What a reader should know.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What is known.
    pub fn limits(&self) -> &[Limit] {
        if let State::Known(limits) = &self.state { limits } else { &[] }
    }

    /// The limit that leaves least.
    pub fn tightest(&self) -> Option<&Limit> {
        self.limits().iter().min_by_key(|limit| (limit.to_be_had(), limit.surely_to_be_had()))
    }

    /// Why the limits are not known.
    pub fn why_unknown(&self) -> Option<&str> {
        match &self.state {
            State::Known(_) => None,
            State::Unknown(why) | State::Full(why) => Some(why),
        }
    }

    /// Whether the server had no room for one more connection when it was asked.
    pub fn is_full(&self) -> bool {
        matches!(self.state, State::Full(_))
    }

    /// Whether so many fit. `None`: it cannot be told.
    pub fn fits(&self, connections: u64) -> Option<bool> {
        let State::Known(limits) = &self.state else {
            return (connections > 0 && self.is_full()).then_some(false);
        };
        if limits.iter().any(|limit| connections > limit.to_be_had()) {
            Some(false)
        } else if limits.iter().all(|limit| connections <= limit.surely_to_be_had()) {
            Some(true)
        } else {
            None
        }
    }

    /// The limit because of which it cannot be told whether so many fit.
    pub(super) fn in_doubt(&self, connections: u64) -> Option<&Limit> {
        self.limits().iter().find(|limit| connections > limit.surely_to_be_had())
    }
}
