//! What an error says of its connection and its server.
//! <https://www.postgresql.org/docs/current/errcodes-appendix.html>

use super::Error;
use crate::Fault;
use ::postgres::error::{DbError, Severity, SqlState};
use std::error::Error as StdError;
use std::io;

type Any = dyn StdError + 'static;

/// Of the driver's error, or of one that has it somewhere among its sources.
pub(super) fn of(error: &Any) -> Fault {
    causes(error).find_map(told_by).unwrap_or(Fault::Unknown)
}

/// The error, its source, the source of that, and so on.
fn causes(error: &Any) -> impl Iterator<Item = &Any> {
    std::iter::successors(Some(error), |&error| cause_of(error))
}

fn cause_of(error: &Any) -> Option<&Any> {
    match error.downcast_ref::<io::Error>() {
        // Its source is the source of what it wraps: as the driver's writers and readers do.
        Some(wrapper) => wrapper.get_ref().map(|inner| -> &Any { inner }),
        None => error.source(),
    }
}

/// `None`: its source may know more.
fn told_by(error: &Any) -> Option<Fault> {
    if let Some(error) = error.downcast_ref::<Error>() {
        return match error {
            // Its source is the driver's source, and not the driver's error.
            Error::Driver(error) => of_driver(error),
            Error::TimedOut(_) => Some(Fault::Connection),
            Error::InsideRuntime => Some(Fault::Caller),
            // Its sources speak of another server.
            Error::NoCredentials(_) => Some(Fault::Unknown),
            Error::Refused { code, .. } => Some(of_code(code).unwrap_or(Fault::Connection)),
            _ => None,
        };
    }
    if let Some(error) = error.downcast_ref::<DbError>() {
        let ends_session = matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic));
        let otherwise = if ends_session { Fault::Connection } else { Fault::Harmless };
        return Some(of_code(error.code()).unwrap_or(otherwise));
    }
    if let Some(error) = error.downcast_ref::<::postgres::Error>() {
        return of_driver(error);
    }
    let error = error.downcast_ref::<io::Error>()?;
    has_ended(error.kind()).then_some(Fault::Connection)
}

fn of_driver(error: &::postgres::Error) -> Option<Fault> {
    // The driver keeps the kind to itself, but for its words.
    if error.to_string() == "invalid configuration" {
        return Some(Fault::Caller);
    }
    // What has no source may be out of step, or never answered.
    let words = ["unexpected message from server", "timeout waiting for server"];
    let is_lost = error.is_closed() || (error.source().is_none() && words.contains(&&*error.to_string()));
    // An error of the system's: between the driver and its server, unless a value could not be written or read.
    let of_system = error.source().is_some_and(|source| source.is::<io::Error>());
    let of_values = error.to_string().contains("serializing");
    (is_lost || (of_system && !of_values)).then_some(Fault::Connection)
}

fn has_ended(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

/// `None`: its severity tells.
fn of_code(code: &SqlState) -> Option<Fault> {
    match code.code() {
        "53300" => Some(Fault::NoRoom),
        // It became a replica; it crashed; it starts, shuts down or recovers.
        "25006" | "57P02" | "57P03" => Some(Fault::Server),
        // One session that was ended, or whose prepared statements are gone, the driver's own among them.
        "57P01" | "57P04" | "57P05" | "25P03" | "25P04" | "26000" => Some(Fault::Connection),
        exception if exception.starts_with("08") => Some(Fault::Connection),
        _ => None,
    }
}

/// Whether the session is in a transaction that has failed: it hears nothing but the end of that.
pub(super) fn is_in_failed_transaction(error: &::postgres::Error) -> bool {
    error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION)
}

/// Whether another address, or the same name looked up anew, may do where this one did not. A server that has no room is
/// given up for others if there are any.
pub(super) fn asks_for_another(error: &Error, several_hosts: bool) -> bool {
    let error = match error {
        Error::TimedOut(_) => return true,
        Error::Driver(error) => error,
        _ => return false,
    };
    if error.is_closed() {
        return true;
    }
    match error.code() {
        Some(code) => match of_code(code) {
            Some(Fault::NoRoom) => several_hosts,
            Some(fault) => fault == Fault::Server || *code == SqlState::ADMIN_SHUTDOWN,
            None => false,
        },
        None => causes(error).find_map(|cause| cause.downcast_ref::<io::Error>()).is_some_and(|of_system| {
            // What TLS has against a certificate comes as the former, a wrong setting as the latter.
            !matches!(of_system.kind(), io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
        }),
    }
}

pub(super) fn is_no_room(error: &Error) -> bool {
    of(error) == Fault::NoRoom
}
