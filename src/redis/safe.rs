//! What may be said of a reply: its kind and its length. Its content is another user's, or a secret that the server repeats.

use ::redis::{ErrorKind, RedisError, RedisResult, ServerError, Value, parse_redis_value};

/// Codes that are words of servers, not of scripts.
const CODES: [&str; 20] = [
    "BUSY",
    "BUSYKEY",
    "CLUSTERDOWN",
    "DENIED",
    "ERR",
    "EXECABORT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "NOPROTO",
    "NOREPLICAS",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "UNBLOCKED",
    "WRONGPASS",
    "WRONGTYPE",
];

/// Sentences that servers say, without what they put into them.
const SENTENCES: [&str; 22] = [
    "invalid username-password pair or user is disabled",
    "invalid password",
    "without any password configured",
    "no password is set",
    "Authentication required",
    "max number of clients",
    "running in protected mode",
    "unknown command",
    "unknown subcommand",
    "wrong number of arguments",
    "no permissions to run",
    "DB index is out of range",
    "invalid DB index",
    "SELECT is not allowed in cluster mode",
    "unsupported protocol version",
    "loading the dataset in memory",
    "busy running a script",
    "Link with MASTER is down",
    "against a read only replica",
    "not allowed when used memory",
    "only (P|S)SUBSCRIBE",
    "not enabled",
];

/// A server's error as it may be shown: its code, and the sentence if it is one of those that all servers say.
pub(super) fn shown(error: &ServerError) -> RedisError {
    let code = if CODES.contains(&error.code()) { error.code() } else { "ERR" };
    let details = error.details().unwrap_or_default();
    let sentence = SENTENCES.iter().find(|sentence| details.contains(**sentence));
    let sentence =
        sentence.map_or_else(|| format!("({} bytes that are not shown)", details.len()), ToString::to_string);
    match parse_redis_value(format!("-{code} {sentence}\r\n").as_bytes()) {
        Ok(Value::ServerError(shown)) => shown.into(),
        _ => (ErrorKind::Extension, "the server refuses").into(),
    }
}

/// The driver's own error, without what it repeats of a reply.
pub(super) fn without_content(error: RedisError) -> RedisError {
    match (error.kind(), ServerError::try_from(error)) {
        (_, Ok(error)) => shown(&error),
        (ErrorKind::Parse, _) => (ErrorKind::Parse, "what came is not a reply").into(),
        // "Redis server refused to switch database", with the server's words.
        (kind @ ErrorKind::Server(_), Err(error)) => match error.detail() {
            Some(detail) if !SENTENCES.contains(&detail) => (kind, "the server refuses what the url asks for").into(),
            _ => error,
        },
        (_, Err(error)) => error,
    }
}

/// A reply for people.
pub(super) fn describe(value: &Value) -> String {
    let (what, size) = match value {
        Value::Nil => return "nothing (nil)".to_owned(),
        Value::Okay => return "OK".to_owned(),
        Value::Int(_) => return "a number".to_owned(),
        Value::ServerError(error) if CODES.contains(&error.code()) => return format!("an error ({})", error.code()),
        Value::ServerError(_) => return "an error".to_owned(),
        Value::BulkString(bytes) => ("bytes", bytes.len()),
        Value::SimpleString(text) => ("characters", text.len()),
        Value::Array(parts) | Value::Set(parts) => ("parts", parts.len()),
        Value::Map(pairs) => ("pairs", pairs.len()),
        _ => return "a reply of another kind".to_owned(),
    };
    format!("{size} {what}")
}

pub(super) fn out_of_step(sent: &str, got: &str) -> RedisError {
    let detail = format!("sent {sent}, got {got}");
    (ErrorKind::UnexpectedReturnType, "the connection is out of step with the server", detail).into()
}

/// Whether a signal ended a system call, which is to be made again.
pub(super) fn is_interrupted<T>(result: &RedisResult<T>) -> bool {
    let interrupted = || std::io::Error::from(std::io::ErrorKind::Interrupted);
    let by_kernel = || std::io::Error::from_raw_os_error(libc::EINTR);
    result.as_ref().err().filter(|error| error.is_io_error()).is_some_and(|error| {
        // The driver keeps its source to itself, and TLS libraries pass on no more than the text.
        let said = error.to_string();
        said == interrupted().to_string() || said.contains(&by_kernel().to_string())
    })
}
