//! What is said on a connection at its start and at a checkout, and what the server's replies mean.

use super::dialogue::Last;
use super::find::unused_number;
use super::knowledge::{Knowledge, Level, Optional};
use super::safe::{describe, out_of_step, shown};
use super::wire::OURS;
use ::redis::{Cmd, ConnectionInfo, ErrorKind, ProtocolVersion, RedisError, RedisResult, ServerError, Value, cmd};

/// A command, and what its reply is for.
pub(super) struct Question {
    pub(super) cmd: Cmd,
    /// What is learned if the server refuses it. `None`: then there is no connection.
    pub(super) optional: Option<Optional>,
    /// Its reply matters to nobody.
    pub(super) is_casual: bool,
    /// The user's own test. An error is an answer to it.
    pub(super) is_test: bool,
}

impl Question {
    pub(super) fn required(cmd: Cmd) -> Self {
        Self { cmd, optional: None, is_casual: false, is_test: false }
    }

    pub(super) fn optional(cmd: Cmd, optional: Optional) -> Self {
        Self { optional: Some(optional), ..Self::required(cmd) }
    }

    pub(super) fn test(cmd: Cmd) -> Self {
        Self { is_test: true, ..Self::required(cmd) }
    }

    fn casual(cmd: Cmd) -> Self {
        Self { is_casual: true, ..Self::required(cmd) }
    }

    /// What an error in reply to it means.
    ///
    /// # Errors
    ///
    /// The connection does not become, or is not any more, what the url asks for.
    pub(super) fn judge(&self, error: &ServerError, knowledge: Knowledge) -> RedisResult<()> {
        match self.optional {
            _ if self.is_casual || is_trouble(error) && self.optional.is_some() => Ok(()),
            Some(optional) if is_refusal(error) => {
                knowledge.refuses(optional);
                Ok(())
            }
            // In words of its own. Without `SELECT` there is no database but 0; nothing is learned from words that nobody knows.
            Some(Optional::Select) if self.asks_for_another_database() || error.code() == "NOAUTH" => Err(shown(error)),
            Some(_) => Ok(()),
            None if self.says("HELLO") && error.details().is_some_and(|said| said.contains("unknown command")) => {
                Err((ErrorKind::RESP3NotSupported, "this server does not know HELLO, and so no RESP3").into())
            }
            None => Err(shown(error)),
        }
    }

    /// Than 0, which a new session has.
    pub(super) fn asks_for_another_database(&self) -> bool {
        self.says("SELECT") && !matches!(self.cmd.args_iter().nth(1), Some(::redis::Arg::Simple(b"0")))
    }

    fn says(&self, word: &str) -> bool {
        matches!(self.cmd.args_iter().next(), Some(::redis::Arg::Simple(first)) if first == word.as_bytes())
    }
}

/// Who this is, as the url says.
pub(super) fn who(info: &ConnectionInfo) -> Option<Question> {
    let asked = info.redis_settings();
    let mut who = cmd(if is_resp3(info) { "HELLO" } else { "AUTH" });
    match (is_resp3(info), asked.password()) {
        (false, None) => return None,
        (false, Some(password)) => who.arg(asked.username()).arg(password),
        (true, None) => who.arg(3),
        (true, Some(password)) => who.arg(3).arg("AUTH").arg(asked.username().unwrap_or("default")).arg(password),
    };
    Some(Question::required(who))
}

pub(super) fn is_resp3(info: &ConnectionInfo) -> bool {
    info.redis_settings().protocol() != ProtocolVersion::RESP2
}

pub(super) fn select(info: &ConnectionInfo) -> Cmd {
    let mut select = cmd("SELECT");
    select.arg(info.redis_settings().db());
    select
}

/// What the server's people want to know.
pub(super) fn set_info(info: &ConnectionInfo) -> Vec<Question> {
    let asked = info.redis_settings();
    if asked.skip_set_lib_name() {
        return Vec::new();
    }
    let name = concat!("redis-rs(forksafe_v", env!("CARGO_PKG_VERSION"), ")");
    let set_info = |what: &str, value: &str| {
        let mut set_info = cmd("CLIENT");
        set_info.arg("SETINFO").arg(what).arg(value);
        Question::optional(set_info, Optional::SetInfo)
    };
    let version = asked.lib_ver().map(|version| set_info("LIB-VER", version));
    [set_info("LIB-NAME", asked.lib_name().unwrap_or(name))].into_iter().chain(version).collect()
}

/// What undoes a transaction and a database that a holder left, and tells of subscriptions: of what the server accepts.
pub(super) fn leftovers(info: &ConnectionInfo, knowledge: Knowledge) -> Vec<Question> {
    let mut questions =
        vec![Question::optional(cmd("UNWATCH"), Optional::Unwatch), Question::optional(select(info), Optional::Select)];
    questions.extend(subscriptions(info));
    questions.retain(|question| question.optional.is_none_or(|optional| knowledge.accepts(optional)));
    questions
}

/// Asks for the number of subscriptions, where it does not show by itself: it is in the reply to the end of one that there is not.
fn subscriptions(info: &ConnectionInfo) -> Option<Question> {
    let mut unsubscribe = cmd("UNSUBSCRIBE");
    unsubscribe.arg(unused_text());
    is_resp3(info).then(|| Question::optional(unsubscribe, Optional::Unsubscribe))
}

/// What makes a session as new.
pub(super) fn everything(info: &ConnectionInfo, knowledge: Knowledge) -> Vec<Question> {
    let mut questions = if knowledge.accepts(Optional::Reset) {
        vec![Question::optional(cmd("RESET"), Optional::Reset)]
    } else {
        let mut reply = cmd("CLIENT");
        reply.arg("REPLY").arg("ON");
        [reply, cmd("DISCARD"), cmd("UNWATCH")].map(Question::casual).into()
    };
    questions.extend(who(info));
    questions.push(Question::optional(select(info), Optional::Select));
    questions.extend(subscriptions(info));
    questions.retain(|question| question.optional.is_none_or(|optional| knowledge.accepts(optional)));
    questions
}

fn unused_text() -> String {
    format!("{OURS}{}.{}", std::process::id(), unused_number())
}

/// The question whose answer shows that the server lives, and that its answers are those to the questions.
pub(super) struct Proof {
    pub(super) question: Question,
    /// Was never used before, and comes back. Empty for a bare `PING`.
    text: String,
}

impl Proof {
    /// The best that the server accepts.
    pub(super) fn at(level: Level, knowledge: Knowledge) -> Self {
        let text = unused_text();
        let accepted = |command| knowledge.accepts(command);
        let (name, optional, text) = match level {
            Level::All | Level::Test if accepted(Optional::PingText) => ("PING", Optional::PingText, text),
            Level::All | Level::Test | Level::Echo if accepted(Optional::Echo) => ("ECHO", Optional::Echo, text),
            _ if accepted(Optional::Ping) => ("PING", Optional::Ping, String::new()),
            // It refuses all of them, and its refusal is an answer, too.
            _ => ("PING", Optional::PingText, text),
        };
        let mut question = cmd(name);
        if !text.is_empty() {
            question.arg(&text);
        }
        Self { question: Question::optional(question, optional), text }
    }

    fn name(&self) -> &'static str {
        if self.question.optional == Some(Optional::Echo) { "echo" } else { "ping" }
    }

    /// Whether a reply, not yet read, is the one.
    pub(super) fn is_last(&self, reply: &[u8]) -> Last {
        let has = |text: &str| reply.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes()));
        match reply {
            _ if !self.text.is_empty() && has(&self.text) => Last::Surely,
            [b'-', error @ ..] => {
                let code = error.split(|&byte| byte == b' ' || byte == b'\r').next().unwrap_or_default();
                let known = TROUBLE.iter().chain(&["NOAUTH"]).any(|known| known.as_bytes() == code);
                if known || has(self.name()) { Last::Here } else { Last::No }
            }
            _ if reply.starts_with(b"+QUEUED") => Last::Here,
            // A subscriber's.
            _ if self.text.is_empty() && (reply.starts_with(b"+PONG") || has("pong")) => Last::Here,
            _ => Last::No,
        }
    }

    /// What the reply means.
    ///
    /// # Errors
    ///
    /// The connection is of no use.
    pub(super) fn judge(&self, reply: &Value, has_password: bool, knowledge: Knowledge) -> RedisResult<()> {
        match reply {
            Value::BulkString(bytes) if !self.text.is_empty() && bytes == self.text.as_bytes() => Ok(()),
            Value::SimpleString(said) if self.text.is_empty() && said == "PONG" => Ok(()),
            Value::Array(_) if self.is_subscribers(reply) => Err(subscribed()),
            Value::ServerError(error) if is_trouble(error) => Ok(()),
            // There is nothing with which a new connection could do better.
            Value::ServerError(error) if error.code() == "NOAUTH" => match has_password {
                true => Err(shown(error)),
                false => Ok(()),
            },
            Value::ServerError(error) if is_refusal(error) && self.is_named_in(error) => {
                self.refused(error, knowledge);
                Ok(())
            }
            other => Err(out_of_step(&self.name().to_uppercase(), &describe(other))),
        }
    }

    /// What the reply on a new connection teaches: nobody else's can be there.
    pub(super) fn learn(&self, reply: &Value, knowledge: Knowledge) {
        match reply {
            Value::ServerError(error) if is_refusal(error) => self.refused(error, knowledge),
            // A proxy that answers PING itself.
            Value::SimpleString(_) if !self.text.is_empty() => knowledge.refuses(Optional::PingText),
            _ => {}
        }
    }

    fn refused(&self, error: &ServerError, knowledge: Knowledge) {
        self.question.optional.into_iter().for_each(|optional| knowledge.refuses(optional));
        if self.name() == "ping" && error.code() == "NOPERM" {
            knowledge.refuses(Optional::Ping);
        }
    }

    fn is_named_in(&self, error: &ServerError) -> bool {
        error.details().is_some_and(|said| said.to_ascii_lowercase().contains(self.name()))
    }

    fn is_subscribers(&self, reply: &Value) -> bool {
        let Value::Array(parts) = reply else { return false };
        matches!(&parts[..], [Value::BulkString(pong), Value::BulkString(text)]
            if pong == b"pong" && text == self.text.as_bytes())
    }
}

pub(super) fn subscribed() -> RedisError {
    (ErrorKind::Client, "a holder of the connection has left it subscribed to channels").into()
}

/// What only a connection is told that is subscribed (RESP2).
pub(super) fn is_subscribers(error: &ServerError) -> bool {
    error.details().is_some_and(|said| said.contains("only (P|S)SUBSCRIBE"))
}

/// The connection is alive and in step, but not what the url asks for, and cannot be made so: no answer like any other.
pub(super) fn not_the_urls(why: RedisError) -> RedisError {
    (ErrorKind::Client, "the session cannot be made what the url asks for", why.to_string()).into()
}

/// What a server says whose trouble will pass: to anybody, whatever is asked.
const TROUBLE: [&str; 7] = ["LOADING", "BUSY", "MASTERDOWN", "MISCONF", "TRYAGAIN", "CLUSTERDOWN", "NOREPLICAS"];

pub(super) fn is_trouble(error: &ServerError) -> bool {
    TROUBLE.contains(&error.code())
}

/// It will refuse this command next time, too.
fn is_refusal(error: &ServerError) -> bool {
    let said = error.details().unwrap_or_default();
    let says = |words: &str| said.contains(words);
    error.code() == "NOPERM"
        || error.code() == "ERR"
            && ([
                "nknown command",
                "nknown subcommand",
                "wrong number of arg",
                "not supported",
                "unsupported",
                "not allowed",
            ])
            .into_iter()
            .any(says)
}

/// Whether the server has nothing more to say, to whatever it was asked, and hangs up.
pub(super) fn is_farewell(error: &ServerError) -> bool {
    error.code() == "DENIED" || error.details().is_some_and(|said| said.contains("max number of clients"))
}
