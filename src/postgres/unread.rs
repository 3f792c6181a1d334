//! What bytes mean that lie unread in the socket of an idle connection.
//!
//! A server may speak without being asked: notices, changed settings, notifications, and its farewell. They stay in the
//! socket, because the driver reads only while it is asked something. TLS records begin with bytes that no message begins
//! with, so that they are never taken for one.
//! <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-ASYNC>

use crate::Unread;

/// What is not wholly there, or not wholly understood, is for the test to find out.
pub(super) fn meaning(mut bytes: &[u8]) -> Unread {
    if bytes.is_empty() {
        return Unread::Test;
    }
    while let Some((kind, body, rest)) = message(bytes) {
        match kind {
            b'N' | b'S' | b'A' => bytes = rest,
            b'E' if is_farewell(body) => return Unread::Discard,
            _ => return Unread::Test,
        }
    }
    if bytes.is_empty() { Unread::Fine } else { Unread::Test }
}

/// The first: what kind it is, what it says, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&kind, rest) = bytes.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?.checked_sub(4)?;
    let (body, rest) = rest.split_at_checked(length)?;
    Some((kind, body, rest))
}

/// An error after which the server ends the session: its severity, which is not translated, says so.
fn is_farewell(fields: &[u8]) -> bool {
    fields.split(|&byte| byte == 0).any(|field| matches!(field, b"VFATAL" | b"VPANIC"))
}

#[cfg(test)]
mod tests {
    use super::meaning;
    use crate::Unread::{Discard, Fine, Test};

    fn said(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind][..], &length, body].concat()
    }

    #[test]
    fn what_a_server_says_unasked_is_told_from_an_answer() {
        let notice = said(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0");
        let setting = said(b'S', b"TimeZone\0UTC\0");
        let news = said(b'A', b"\0\0\0\x01channel\0payload\0");
        let farewell = said(b'E', b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0");
        let error = said(b'E', b"SERROR\0VERROR\0C42601\0MVFATAL\0\0");
        for (bytes, expected) in [
            (vec![], Test),
            (notice.clone(), Fine),
            ([&notice[..], &setting, &news].concat(), Fine),
            ([&notice[..], &farewell].concat(), Discard),
            (farewell.clone(), Discard),
            (error, Test),
            (said(b'D', b"\0\x01"), Test),
            (said(b'Z', b"I"), Test),
            (farewell[..farewell.len() - 1].to_vec(), Test),
            (notice[..3].to_vec(), Test),
            (vec![b'N', 0, 0, 0, 3], Test),
            (vec![b'N', 0xff, 0xff, 0xff, 0xff], Test),
            // A TLS record.
            (vec![0x17, 3, 3, 0, 19, 1, 2, 3], Test),
        ] {
            assert_eq!(meaning(&bytes), expected, "{bytes:?}");
        }
    }
}
