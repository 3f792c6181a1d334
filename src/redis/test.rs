//! The test of a connection, and what a holder left that is undone with it.

use super::Driver;
use super::dialogue::{Dialogue, Last, subscriptions};
use super::knowledge::{Knowledge, Level};
use super::question::{self, Proof, Question, is_subscribers, is_trouble, not_the_urls, subscribed};
use super::safe::{is_interrupted, out_of_step, shown};
use crate::Deadline;
use crate::fork::socket;
use ::redis::{Cmd, Connection, ErrorKind, RedisResult, Value, cmd};
use std::fmt;
use std::io;
use std::sync::Arc;

type Function = dyn Fn(&mut Connection, Deadline) -> RedisResult<()> + Send + Sync;

/// How it is found out whether a connection is still good. See [`RedisManager::test`](super::RedisManager::test).
#[derive(Clone, Default)]
pub struct Test(Kind);

#[derive(Clone, Default)]
enum Kind {
    #[default]
    Learned,
    Command(Cmd),
    Function(Arc<Function>),
}

impl Test {
    /// The best that the server accepts, which is learned from its answers: `PING` with a text that was never used before
    /// and has to come back, `ECHO` with one, or a bare `PING`. The default. See
    /// [`RedisManager`](super::RedisManager#the-test).
    pub fn learned() -> Self {
        Self::default()
    }

    /// Any command. An error in reply is an answer like any other, unless it [condemns](crate::Fault) the connection or its
    /// server. Whether the reply is the one to this question is not noticed.
    ///
    /// ```
    /// use forksafe::redis::Test;
    ///
    /// let test = Test::command(redis::cmd("TIME"));
    /// # let _ = test;
    /// ```
    pub fn command(command: Cmd) -> Self {
        Self(Kind::Command(command))
    }

    /// A function of your own. The connection's timeouts are what is left until the deadline when it is called, and are put
    /// back afterwards.
    ///
    /// ```
    /// use forksafe::redis::Test;
    ///
    /// let is_a_master = Test::with(|conn, _deadline| match redis::cmd("ROLE").query::<Vec<redis::Value>>(conn)?.first() {
    ///     Some(redis::Value::BulkString(role)) if role == b"master" => Ok(()),
    ///     _ => Err((redis::ErrorKind::Client, "not a master").into()),
    /// });
    /// # let _ = is_a_master;
    /// ```
    pub fn with(test: impl Fn(&mut Connection, Deadline) -> RedisResult<()> + Send + Sync + 'static) -> Self {
        Self(Kind::Function(Arc::new(test)))
    }

    pub(super) const fn default_one() -> Self {
        Self(Kind::Learned)
    }

    /// The question that shows that a connection is in step, if that is what is asked.
    pub(super) fn proof(&self, level: Level, knowledge: Knowledge) -> Option<Proof> {
        match self.0 {
            Kind::Learned => Some(Proof::at(level, knowledge)),
            _ => None,
        }
    }
}

impl fmt::Debug for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::Learned => "learned",
            Kind::Command(_) => "a command",
            Kind::Function(_) => "a function",
        })
    }
}

/// What is undone of what a holder of a connection left there.
///
/// Timeouts are put back always, and a connection that a holder left subscribed (RESP2), or with replies switched off, is
/// always noticed by the test and replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Clean {
    /// Nothing.
    Nothing,
    /// What nobody wants to find: `WATCH`ed keys, an open `MULTI`, another database than the url's; with RESP3 a
    /// connection that was left subscribed is replaced. Two commands in the same packet as the test's. Keeps what a manager
    /// of your own may have set up when it connected: the user, the connection's name, tracking.
    Leftovers,
    /// The session is as new: `RESET`, and then who the url says we are, and its database, in the same packet as the test's.
    /// For connections of which holders change the user (`AUTH`), or leave subscriptions, tracking, or replies switched off.
    /// Servers older than Redis 6.2 have no `RESET`; there transactions, replies and, if the url has a password, the user
    /// are put back one by one.
    Everything,
}

/// What a test has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    InStep,
    /// In a transaction that a holder left open.
    Queued,
}

impl Driver<'_> {
    /// Undoes what is to be undone, and shows that the connection is good.
    pub(super) fn test(&self, conn: &mut Connection, dialogue: &Dialogue, clean: Clean) -> RedisResult<()> {
        let knowledge = self.knowledge();
        for _ in 0..4 {
            let proof = self.options.test.proof(knowledge.level(), knowledge);
            let mut questions = self.questions(clean, knowledge);
            if let Kind::Command(command) = &self.options.test.0 {
                questions.push(Question::test(command.clone()));
            }
            let verdict = match self.ask(conn, dialogue, &questions, proof.as_ref()) {
                // The driver skips the reply that it could not wait for.
                error if is_interrupted(&error) && !dialogue.deadline.is_over() => continue,
                other => other?,
            };
            match verdict {
                Verdict::InStep => {
                    let Kind::Function(function) = &self.options.test.0 else { return Ok(()) };
                    let time = Some(super::time_left(dialogue.deadline)?);
                    conn.set_read_timeout(time)?;
                    conn.set_write_timeout(time)?;
                    return function(conn, dialogue.deadline);
                }
                Verdict::Queued => {
                    let discard = [&cmd("DISCARD")];
                    dialogue.ask(conn, &discard, |_| Last::Here)?;
                }
            }
        }
        Err((ErrorKind::Client, "a holder of the connection has left it in a transaction").into())
    }

    fn questions(&self, clean: Clean, knowledge: Knowledge) -> Vec<Question> {
        let info = self.client.get_connection_info();
        match clean {
            _ if knowledge.level() != Level::All => Vec::new(),
            Clean::Nothing => Vec::new(),
            Clean::Leftovers => question::leftovers(info, knowledge),
            Clean::Everything => question::everything(info, knowledge),
        }
    }

    fn ask(
        &self,
        conn: &mut Connection,
        dialogue: &Dialogue,
        questions: &[Question],
        proof: Option<&Proof>,
    ) -> RedisResult<Verdict> {
        let all: Vec<&Question> = questions.iter().chain(proof.map(|proof| &proof.question)).collect();
        if all.is_empty() {
            return self.look(dialogue).map(|()| Verdict::InStep);
        }
        let cmds: Vec<&Cmd> = all.iter().map(|question| &question.cmd).collect();
        let answer = dialogue.ask(conn, &cmds, |reply| proof.map_or(Last::Here, |proof| proof.is_last(reply)))?;
        if let Some(error) = answer.cut {
            return Err(error);
        }
        let Some(Some(last)) = answer.replies.last() else {
            return Err(io::Error::from(io::ErrorKind::Interrupted).into());
        };
        // In a transaction each command that is not refused says so.
        let is_queued = |reply: &Value| matches!(reply, Value::SimpleString(said) if said == "QUEUED");
        if answer.replies.iter().flatten().any(is_queued) {
            return Ok(Verdict::Queued);
        }
        if let Some(proof) = proof {
            proof.judge(last, self.has_password(), self.knowledge())?;
        }
        if answer.replies.iter().flatten().filter_map(subscriptions).any(|left| left > 0) {
            return Err(subscribed());
        }
        if answer.replies.len() < all.len() {
            return Ok(Verdict::InStep); // The holder had the server skip a reply.
        }
        let was_reset =
            answer.replies.iter().flatten().any(|reply| matches!(reply, Value::SimpleString(said) if said == "RESET"));
        let others = all.len() - usize::from(proof.is_some());
        for (question, reply) in all.iter().zip(&answer.replies).take(others) {
            let Some(Value::ServerError(error)) = reply else { continue };
            match error {
                _ if is_subscribers(error) => return Err(subscribed()),
                // What was made as new has to be made the url's, too.
                _ if is_trouble(error) && !(was_reset && question.asks_for_another_database()) => {}
                _ if question.is_test => question.judge(error, self.knowledge())?,
                _ if is_trouble(error) => return Err(not_the_urls(shown(error))),
                _ => question.judge(error, self.knowledge()).map_err(not_the_urls)?,
            }
        }
        Ok(Verdict::InStep)
    }

    /// All there is to do where nothing is undone, before a function of the user's.
    fn look(&self, dialogue: &Dialogue) -> RedisResult<()> {
        let Some(fd) = dialogue.socket else { return Ok(()) };
        let mut unread = [0];
        match socket::look(fd, &mut unread)? {
            0 => Ok(()),
            _ if unread[0] == b'>' => Ok(()),
            _ => Err(out_of_step("nothing", "something")),
        }
    }
}
