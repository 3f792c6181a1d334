//! What an error says of its connection and server.

use crate::{Fault, NoCredentials};
use ::redis::{ErrorKind, RedisError, ServerError};
use std::error::Error;
use std::fmt;
use std::io;

/// The driver's error for want of credentials. An `io::Error` shows not what it wraps, but the source of that: so it is wrapped
/// twice.
pub(super) fn no_credentials(why: NoCredentials) -> RedisError {
    io::Error::other(Wrapper(why)).into()
}

#[derive(Debug)]
struct Wrapper(NoCredentials);

impl fmt::Display for Wrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Wrapper {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// The gravest of what the error and its sources say.
pub(super) fn of(error: &(dyn Error + 'static)) -> Fault {
    let mut next = Some(error);
    while let Some(error) = next {
        // What comes after it is said of another server.
        if error.is::<NoCredentials>() {
            break;
        }
        let fault = match (error.downcast_ref(), error.downcast_ref()) {
            (Some(error), _) => of_drivers(error),
            (_, Some(error)) => of_servers(error),
            _ => Fault::Unknown,
        };
        if fault != Fault::Unknown {
            return fault;
        }
        next = error.source();
    }
    Fault::Unknown
}

fn of_drivers(error: &RedisError) -> Fault {
    // A pipeline's has several.
    if let Some(errors) = error.clone().into_server_errors() {
        let faults = errors.iter().map(|(_, error)| of_servers(error));
        return faults.max_by_key(|fault| gravity(*fault)).unwrap_or(Fault::Unknown);
    }
    match error.kind() {
        ErrorKind::AuthenticationFailed => Fault::Harmless,
        ErrorKind::InvalidClientConfig | ErrorKind::RESP3NotSupported => Fault::Caller,
        _ if error.is_connection_dropped() => Fault::Connection,
        _ => Fault::Unknown,
    }
}

fn of_servers(error: &ServerError) -> Fault {
    let details = error.details().unwrap_or_default();
    match error.code() {
        // A master that is one no more. `MOVED` is not like it: one key lives elsewhere in the cluster.
        "READONLY" => Fault::Server,
        // What old servers make of it, in a script.
        "ERR" if details.contains("READONLY You can't write against a read only") => Fault::Server,
        "UNBLOCKED" => Fault::Server,
        "ERR" if details.contains("max number of clients") => Fault::NoRoom,
        // The session has lost its user.
        "NOAUTH" => Fault::Connection,
        _ => Fault::Harmless,
    }
}

fn gravity(fault: Fault) -> u8 {
    match fault {
        Fault::Server => 3,
        Fault::NoRoom => 2,
        Fault::Connection => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::redis::{Value, parse_redis_value};
    use std::fmt;
    use std::io;

    fn said(what: &str) -> RedisError {
        match parse_redis_value(format!("-{what}\r\n").as_bytes()) {
            Ok(Value::ServerError(error)) => error.into(),
            other => panic!("{other:?}"),
        }
    }

    #[derive(Debug)]
    struct Wrapped(RedisError);

    impl fmt::Display for Wrapped {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("wrapped")
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn servers_errors_say_what_is_to_become_of_the_connection() {
        for (what, fault) in [
            ("READONLY You can't write against a read only replica.", Fault::Server),
            (
                "ERR Error running script: @user_script:1: -READONLY You can't write against a read only replica.",
                Fault::Server,
            ),
            ("MOVED 3999 127.0.0.1:6381", Fault::Harmless),
            (
                "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
                Fault::Server,
            ),
            ("ASK 3999 127.0.0.1:6381", Fault::Harmless),
            ("LOADING Redis is loading the dataset in memory", Fault::Harmless),
            ("BUSY Redis is busy running a script", Fault::Harmless),
            ("MASTERDOWN Link with MASTER is down", Fault::Harmless),
            ("CLUSTERDOWN The cluster is down", Fault::Harmless),
            ("NOPERM this user has no permissions", Fault::Harmless),
            ("WRONGPASS invalid username-password pair", Fault::Harmless),
            ("WRONGTYPE Operation against a key", Fault::Harmless),
            ("ERR syntax error", Fault::Harmless),
            ("NOAUTH Authentication required.", Fault::Connection),
            ("ERR max number of clients reached", Fault::NoRoom),
        ] {
            assert_eq!(of(&said(what)), fault, "{what}");
            assert_eq!(of(&Wrapped(said(what))), fault, "{what}, wrapped");
        }
        let io = |kind: io::ErrorKind| of(&RedisError::from(io::Error::from(kind)));
        assert_eq!(io(io::ErrorKind::UnexpectedEof), Fault::Connection);
        assert_eq!(io(io::ErrorKind::TimedOut), Fault::Unknown);
        assert_eq!(of(&io::Error::other("of another make")), Fault::Unknown);
        let wildcard = RedisError::from((ErrorKind::InvalidClientConfig, "cannot connect to a wildcard address"));
        assert_eq!(of(&wildcard), Fault::Caller);
    }
}
