//! What is known of servers: which of the commands that a pool would like to send they accept.
//!
//! A `redis::Client` has no room for it, so it is kept here, for each address and user. It is a hint that corrects itself,
//! and children inherit it: so it is one atomic word each, and a table that is full forgets the newcomers.

use ::redis::ConnectionAddr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A command that is sent only to servers that accept it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Optional {
    SetInfo = 1,
    Unwatch = 2,
    Select = 4,
    Unsubscribe = 8,
    Reset = 16,
    /// `PING` with a text, which comes back.
    PingText = 32,
    Echo = 64,
    Ping = 128,
}

/// Some servers, proxies mostly, hang up at commands that they do not know. How much they are asked at the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
pub(super) enum Level {
    /// All that is of use.
    All,
    /// What the url asks for, and the test.
    Test,
    /// What the url asks for, and a bare `PING`.
    Ping,
    /// What the url asks for, and `ECHO`.
    Echo,
}

impl Level {
    pub(super) fn next(self) -> Option<Self> {
        [Self::Test, Self::Ping, Self::Echo].into_iter().find(|&level| level > self)
    }
}

const SLOTS: usize = 256;
const LEVEL: u64 = 3 << 8;
/// The level was found twice: once may be a server that ended at that moment.
const SURE: u64 = 1 << 10;
/// The optional commands have been tried.
const TRIED: u64 = 1 << 11;
/// What remains of the word says whose it is. Never 0.
const WHO: u64 = !0xffff;

static TABLE: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
/// For who finds no place in it: what one learns all believe, until another learns otherwise.
static OTHERS: AtomicU64 = AtomicU64::new(0);

/// What is known of one server, for one user.
#[derive(Clone, Copy)]
pub(super) struct Knowledge(&'static AtomicU64);

impl Knowledge {
    pub(super) fn of(server: &ConnectionAddr, user: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        server.to_string().hash(&mut hasher);
        user.hash(&mut hasher);
        let hash = hasher.finish();
        let who = hash & WHO | 1 << 63;
        let places = (0..8).map(|step| &TABLE[(hash as usize + step) % SLOTS]);
        for place in places {
            let found = match place.compare_exchange(0, who, Relaxed, Relaxed) {
                Ok(_) => who,
                Err(found) => found,
            };
            if found & WHO == who {
                return Self(place);
            }
        }
        Self(&OTHERS)
    }

    pub(super) fn accepts(self, command: Optional) -> bool {
        self.0.load(Relaxed) & command as u64 == 0
    }

    pub(super) fn refuses(self, command: Optional) {
        self.0.fetch_or(command as u64, Relaxed);
    }

    /// Whether the optional commands have been tried at this server, and need not be at each connect.
    pub(super) fn is_complete(self) -> bool {
        self.0.load(Relaxed) & TRIED != 0
    }

    pub(super) fn complete(self) {
        self.0.fetch_or(TRIED, Relaxed);
    }

    /// How much may be asked on a connection that there is.
    pub(super) fn level(self) -> Level {
        match (self.0.load(Relaxed) & LEVEL) >> 8 {
            0 => Level::All,
            1 => Level::Test,
            2 => Level::Ping,
            _ => Level::Echo,
        }
    }

    /// How much is to be tried first on a new one.
    pub(super) fn level_to_try(self) -> Level {
        if self.0.load(Relaxed) & SURE == 0 { Level::All } else { self.level() }
    }

    /// A connect at this level succeeded, and at none above it.
    pub(super) fn works_at(self, level: Level) {
        let sure = if level == self.level() && level > Level::All { SURE } else { 0 };
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| {
            let word = if word & SURE == 0 { word & !LEVEL | (level as u64) << 8 } else { word };
            Some(word | sure)
        });
    }
}
