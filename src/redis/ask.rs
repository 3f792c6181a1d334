//! Questions to a server without a pool: from the connect to the last answer within one deadline.

use super::RedisManager;
use super::dialogue::{Dialogue, Last};
use crate::{Attempt, Deadline, ManageConnection};
use ::redis::{Cmd, ConnectionAddr, RedisResult, Value};
use std::io;

impl RedisManager {
    /// The replies, in the order of the questions. What the server refuses is a [`Value::ServerError`]. The connection is closed
    /// afterwards. A child that is forked meanwhile drops it, as any that a pool makes.
    pub(crate) fn ask_within(&self, deadline: Deadline, questions: &[&Cmd]) -> RedisResult<Vec<Value>> {
        let mut at = Attempt::new(deadline);
        let mut conn = self.connect_within(&mut at)?;
        let registration = at.finish();
        let is_plain = !matches!(self.driver().addr(), ConnectionAddr::TcpTls { .. });
        let dialogue = Dialogue { socket: registration.first().filter(|_| is_plain), deadline };
        let answer = dialogue.ask(&mut conn, questions, |_| Last::Here);
        // Before the driver closes it.
        registration.bury();
        drop(conn);
        let answer = answer?;
        match answer.cut {
            Some(cut) => Err(cut),
            None => {
                let replies = answer.replies.into_iter().collect::<Option<_>>();
                replies.ok_or_else(|| io::Error::from(io::ErrorKind::TimedOut).into())
            }
        }
    }
}
