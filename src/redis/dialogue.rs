//! Questions and answers before a deadline.

use super::safe::{is_interrupted, out_of_step, without_content};
use super::time_left;
use super::wire::{OURS, Replies};
use crate::Deadline;
use crate::fork::socket::{self, Heard};
use ::redis::{Cmd, Connection, PushKind, RedisError, RedisResult, Value};
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// The driver reads what is there. One that wants more (it skips replies that came too late for an earlier holder, or is in
/// the middle of one) is out of step.
const READ: Duration = Duration::from_millis(10);

pub(super) struct Dialogue {
    /// The socket, where its bytes are the server's own and not TLS: then replies are waited for until they are whole. If
    /// not, the driver waits, for each piece of a reply anew.
    pub(super) socket: Option<RawFd>,
    pub(super) deadline: Deadline,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Answer {
    /// In the order of the questions, as far as they came. `None`: one that a signal kept from us (over TLS).
    pub(super) replies: Vec<Option<Value>>,
    /// Why they did not all come: the stream has ended.
    pub(super) cut: Option<RedisError>,
}

impl Dialogue {
    /// Sends all questions at once. `is_last` knows the last reply.
    ///
    /// # Errors
    ///
    /// `TimedOut`; or the connection is out of step.
    pub(super) fn ask(
        &self,
        conn: &mut Connection,
        questions: &[&Cmd],
        is_last: impl Fn(&[u8]) -> Last,
    ) -> RedisResult<Answer> {
        let packed: Vec<u8> = questions.iter().flat_map(|cmd| cmd.get_packed_command()).collect();
        let mut wanted = questions.len();
        match self.socket {
            Some(fd) => {
                socket::wait_writable(fd, self.deadline)?;
                match conn.send_packed_command(&packed) {
                    // It may have said why it hung up.
                    Err(error) if !error.is_connection_dropped() => return Err(error),
                    _ => {}
                }
                // All of them first: the driver reads ahead, and what it has read is not in the socket any more.
                let mut there = wanted;
                let listen = |bytes: &[u8]| {
                    let (heard, replies) = listen(&Replies::of(bytes), wanted, &is_last);
                    there = replies;
                    heard
                };
                match socket::await_whole(fd, self.deadline, listen) {
                    Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                        return Err(out_of_step("a question", "something else than its answer"));
                    }
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error.into()),
                    // The driver will come upon the same.
                    _ => wanted = there,
                }
                conn.set_read_timeout(Some(READ))?;
            }
            None => {
                // Both: to send is to shake hands, the first time.
                conn.set_write_timeout(Some(time_left(self.deadline)?))?;
                conn.set_read_timeout(Some(time_left(self.deadline)?))?;
                conn.send_packed_command(&packed)?;
            }
        }
        self.read(conn, wanted)
    }

    fn read(&self, conn: &mut Connection, wanted: usize) -> RedisResult<Answer> {
        let mut answer = Answer::default();
        while answer.replies.len() < wanted {
            match self.reply(conn) {
                Ok(reply) => answer.replies.push(Some(reply)),
                // The driver skips it when it comes.
                error if self.socket.is_none() && is_interrupted(&error) => answer.replies.push(None),
                Err(error) if error.is_connection_dropped() => {
                    answer.cut = Some(error);
                    break;
                }
                Err(error) if self.socket.is_some() && error.is_timeout() => {
                    return Err(out_of_step("a question", "an answer that the driver takes for another's"));
                }
                Err(error) => return Err(without_content(error)),
            }
        }
        Ok(answer)
    }

    /// The next one that is not pushed, but for what answers an `UNSUBSCRIBE` of ours.
    fn reply(&self, conn: &mut Connection) -> RedisResult<Value> {
        loop {
            if self.socket.is_none() {
                conn.set_read_timeout(Some(time_left(self.deadline)?))?;
            }
            let reply = conn.recv_response()?;
            if !matches!(reply, Value::Push { .. }) || subscriptions(&reply).is_some() {
                return Ok(reply);
            }
        }
    }
}

/// How many subscriptions the connection has, if this is the answer to an `UNSUBSCRIBE` of ours.
pub(super) fn subscriptions(reply: &Value) -> Option<i64> {
    let Value::Push { kind: PushKind::Unsubscribe, data } = reply else { return None };
    match &data[..] {
        [Value::BulkString(channel), Value::Int(left)] if channel.starts_with(OURS.as_bytes()) => Some(*left),
        _ => None,
    }
}

/// What a reply looks like to one who waits for the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Last {
    /// It is another one's.
    No,
    /// If it is in the last place.
    Here,
    /// Nothing comes after it, wherever it is: a holder may have told the server to skip the reply before it.
    Surely,
}

/// What the bytes say, and how many replies the driver will find.
fn listen(replies: &Replies, wanted: usize, is_last: impl Fn(&[u8]) -> Last) -> (Heard, usize) {
    let count = replies.whole.len();
    let Some(&last) = replies.whole.last().filter(|_| !replies.is_nonsense) else {
        let heard = match replies.rest.first() {
            _ if replies.is_nonsense => Heard::Nonsense,
            None | Some(b'>') => Heard::News,
            Some(_) => Heard::Part,
        };
        return (heard, wanted);
    };
    match is_last(last) {
        _ if !replies.rest.is_empty() => (Heard::Part, wanted),
        Last::Surely => (Heard::Whole, wanted.min(count)),
        Last::Here if count == wanted => (Heard::Whole, wanted),
        // Whose are they all?
        Last::Here if count > wanted => (Heard::Nonsense, wanted),
        _ if count >= wanted => (Heard::TooEarly, wanted),
        _ => (Heard::Part, wanted),
    }
}
