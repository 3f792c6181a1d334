//! Questions to a server without a pool: from the connect to the last answer within one deadline.

use super::dialogue::{Dialogue, Last};
use super::{RedisManager, find};
use crate::{Attempt, Deadline, ManageConnection};
use ::redis::{Cmd, ConnectionAddr, RedisResult, Value};
use std::io;

impl RedisManager {
    /// The replies, in the order of the questions. What the server refuses is a [`Value::ServerError`]. The connection is closed
    /// afterwards. A child that is forked meanwhile drops it, as any that a pool makes.
    pub(crate) fn ask_within(&self, deadline: Deadline, questions: &[&Cmd]) -> RedisResult<Vec<Value>> {
        // As long as it lives, what it has published is protected.
        let mut at = Attempt::new(deadline);
        let mut conn = self.connect_within(&mut at)?;
        let is_plain = !matches!(self.driver().addr(), ConnectionAddr::TcpTls { .. });
        let (socket, _) = find::with_timeouts(&conn)?;
        let dialogue = Dialogue { socket: is_plain.then_some(socket), deadline };
        let answer = dialogue.ask(&mut conn, questions, |_| Last::Here)?;
        match answer.cut {
            Some(cut) => Err(cut),
            None => answer
                .replies
                .into_iter()
                .collect::<Option<_>>()
                .ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut).into()),
        }
    }
}
