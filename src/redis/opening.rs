//! The beginning of a connection: a socket of ours under the driver, and the first words.

use super::dialogue::{Answer, Dialogue, Last};
use super::knowledge::{Knowledge, Level, Optional};
use super::question::{self, Question, is_farewell};
use super::safe::{is_interrupted, shown, without_content};
use super::{Driver, find, stand_in, time_left};
use crate::fork::{Descriptors, socket};
use crate::{Attempt, Deadline, Dial};
use ::redis::{Client, Cmd, Connection, ConnectionAddr, RedisError, RedisResult, Value};
use socket::Peer;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;

type Outcome<T> = Result<T, Dial<RedisError>>;

/// One target: an address, and until when.
pub(super) struct Opening<'a> {
    pub(super) driver: Driver<'a>,
    pub(super) at: &'a Attempt,
    pub(super) deadline: Deadline,
}

/// What became of the first words.
enum Said {
    All,
    /// The server hung up at a command that it need not know.
    HungUp(RedisError),
}

impl Opening<'_> {
    /// Opens a connection, over again if the server hangs up at a command that we can do without.
    pub(super) fn open(&self, open: impl Fn(&Self) -> Outcome<Opened>) -> Outcome<Connection> {
        let knowledge = self.driver.knowledge();
        let mut level = knowledge.level_to_try();
        loop {
            let mut opened = open(self)?;
            let said = self.introduce(&mut opened, level, knowledge);
            if said.is_err() || matches!(said, Ok(Said::HungUp(_))) {
                // Shut down, for a child that was forked meanwhile and has a copy.
                self.at.forget_all();
            }
            match said {
                Ok(Said::All) => {
                    knowledge.works_at(level);
                    self.driver.put_back_timeouts(&opened.conn).map_err(Dial::Failed)?;
                    return Ok(opened.conn);
                }
                Ok(Said::HungUp(error)) => level = level.next().ok_or(Dial::Unreachable(error))?,
                Err(error) if is_interrupted(&Err::<(), _>(inner(&error))) && !self.deadline.is_over() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Over a socket of ours.
    pub(super) fn over(&self, peer: Peer<'_>) -> Outcome<Opened> {
        let info = self.driver.client.get_connection_info();
        let (conn, fd) = match stand_in::connection(info, self.deadline) {
            Ok(made) => made,
            // There was no time for it, so there is none for the driver.
            Err(error) if self.deadline.remaining() < stand_in::PATIENCE => return Err(Dial::Unreachable(error)),
            Err(_) => {
                return self.by_driver(match peer {
                    Peer::Tcp(address) => ConnectionAddr::Tcp(host_of(address), address.port()),
                    Peer::Unix(path) => ConnectionAddr::Unix(path.to_owned()),
                });
            }
        };
        socket::put_new_socket(fd, peer).map_err(|error| Dial::Failed(error.into()))?;
        // Before it is connected with anybody.
        self.at.own(Descriptors::none().and_raw(fd));
        socket::connect(fd, peer, self.deadline).map_err(|error| {
            self.at.forget_all();
            Dial::Unreachable(error.into())
        })?;
        Ok(Opened { conn, fd, is_plain: true, is_introduced: false })
    }

    /// As the driver opens it: over TLS, or where we cannot. It then says itself what it would remember of the url.
    pub(super) fn by_driver(&self, addr: ConnectionAddr) -> Outcome<Opened> {
        let info = self.driver.client.get_connection_info();
        let is_plain = !matches!(addr, ConnectionAddr::TcpTls { .. });
        let asked = info.redis_settings();
        let speaks = question::is_resp3(info) || asked.db() != 0;
        let told = if speaks { asked.clone() } else { Default::default() }.set_skip_set_lib_name();
        let told = info.clone().set_addr(addr).set_redis_settings(told);
        let client = Client::open(told).map_err(Dial::Failed)?;
        // It waits for each reply anew.
        let waits = u32::from(question::is_resp3(info) || asked.password().is_some()) + u32::from(asked.db() != 0);
        let (conn, expected) = loop {
            let time = time_left(self.deadline).map_err(Dial::Unreachable)? / waits.max(1);
            let expected = socket::next_number();
            match client.get_connection_with_timeout(time) {
                error if is_interrupted(&error) => {}
                Ok(conn) => break (conn, expected),
                Err(error) if error.is_io_error() => return Err(Dial::Unreachable(error)),
                Err(error) => return Err(Dial::Failed(without_content(error))),
            }
        };
        let fd = match find::socket_of(&conn, expected).map_err(Dial::Failed)? {
            Ok(fd) => fd,
            Err(why) => {
                self.at.refuse(&why);
                return Err(Dial::Failed(io::Error::other(why).into()));
            }
        };
        self.at.own(Descriptors::none().and_raw(fd));
        Ok(Opened { conn, fd, is_plain, is_introduced: speaks })
    }

    /// Says who we are and what we want, and asks what the server accepts if nobody knows.
    fn introduce(&self, opened: &mut Opened, level: Level, knowledge: Knowledge) -> Outcome<Said> {
        let dialogue = Dialogue { socket: opened.is_plain.then_some(opened.fd), deadline: self.deadline };
        let mut proof = self.driver.options.test.proof(level, knowledge);
        let mut questions = self.introduction(opened.is_introduced, level, knowledge);
        loop {
            let asked: Vec<&Question> = questions.iter().chain(proof.iter().map(|proof| &proof.question)).collect();
            if asked.is_empty() {
                break;
            }
            let cmds: Vec<&Cmd> = asked.iter().map(|question| &question.cmd).collect();
            // A new connection has nobody else's replies. One that is missing is not waited for if the last is there.
            let is_last = |reply: &[u8]| match proof.as_ref().map(|proof| proof.is_last(reply)) {
                Some(Last::Surely) => Last::Surely,
                _ => Last::Here,
            };
            let answer = dialogue.ask(&mut opened.conn, &cmds, is_last).map_err(graded)?;
            if let Some(error) = hung_up(&answer, &asked)? {
                return Ok(Said::HungUp(error));
            }
            for (question, reply) in asked.iter().zip(&answer.replies) {
                if let Some(Value::ServerError(error)) = reply {
                    question.judge(error, knowledge).map_err(Dial::Failed)?;
                }
            }
            let Some(asked) = proof else { break };
            answer.replies.last().into_iter().flatten().for_each(|reply| asked.learn(reply, knowledge));
            proof = self.driver.options.test.proof(level, knowledge);
            if proof.as_ref().is_none_or(|proof| proof.question.optional == asked.question.optional) {
                break;
            }
            questions.clear();
        }
        if level == Level::All {
            knowledge.complete();
        }
        Ok(Said::All)
    }

    fn introduction(&self, is_introduced: bool, level: Level, knowledge: Knowledge) -> Vec<Question> {
        let info = self.driver.client.get_connection_info();
        let mut questions = Vec::new();
        let tries = level == Level::All && !knowledge.is_complete();
        if tries && self.driver.options.makes_as_new() && !is_introduced {
            questions.push(Question::optional(::redis::cmd("RESET"), Optional::Reset));
        }
        if !is_introduced {
            questions.extend(question::who(info));
            let selects = info.redis_settings().db() != 0;
            questions.extend(selects.then(|| Question::required(question::select(info))));
        }
        if level == Level::All {
            questions.extend(question::set_info(info));
        }
        if tries {
            questions.extend(question::leftovers(info, knowledge));
        }
        questions.retain(|question| question.optional.is_none_or(|optional| knowledge.accepts(optional)));
        questions
    }
}

/// A connection of which the descriptor is published.
pub(super) struct Opened {
    conn: Connection,
    fd: RawFd,
    is_plain: bool,
    /// The driver has said who we are.
    is_introduced: bool,
}

/// Why the replies did not all come, if the question that has none is one that we can do without.
fn hung_up(answer: &Answer, asked: &[&Question]) -> Outcome<Option<RedisError>> {
    let farewell = answer.replies.iter().flatten().find_map(|reply| match reply {
        Value::ServerError(error) if is_farewell(error) => Some(error),
        _ => None,
    });
    if let Some(farewell) = farewell {
        return Err(Dial::Failed(shown(farewell)));
    }
    let Some(cut) = &answer.cut else { return Ok(None) };
    match (asked.get(answer.replies.len()), answer.replies.last()) {
        (Some(question), _) if question.optional.is_some() => Ok(Some(cut.clone())),
        // It has said why it hangs up.
        (_, Some(Some(Value::ServerError(why)))) => Err(Dial::Failed(shown(why))),
        _ => Err(Dial::Unreachable(cut.clone())),
    }
}

/// Nobody there, or somebody who says no.
fn graded(error: RedisError) -> Dial<RedisError> {
    if error.is_io_error() { Dial::Unreachable(error) } else { Dial::Failed(error) }
}

pub(super) fn inner(error: &Dial<RedisError>) -> RedisError {
    let (Dial::Unreachable(error) | Dial::Failed(error)) = error;
    error.clone()
}

/// As the driver takes it.
fn host_of(address: SocketAddr) -> String {
    match address {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("{}%{}", v6.ip(), v6.scope_id()),
        _ => address.ip().to_string(),
    }
}

/// What the outcome of an opening is to one who does not try another address.
pub(super) fn settled(outcome: Outcome<Connection>) -> RedisResult<Connection> {
    outcome.map_err(|error| inner(&error))
}
