//! Words for people.

#[cfg(any(feature = "postgres", feature = "redis"))]
use std::error::Error;

/// "1 host", "2 hosts".
pub(super) fn counted(number: u64, thing: &str) -> String {
    let ending = match thing {
        _ if number == 1 => "",
        thing if thing.ends_with('s') => "es",
        _ => "s",
    };
    format!("{number} {thing}{ending}")
}

/// What somebody else said, fit for a line of a log: no control characters, and no password, should it be an url.
pub(super) fn safe(text: &str) -> String {
    let text: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let Some((scheme, rest)) = text.split_once("://") else { return text };
    // A password may have an @ or a slash of its own, if it was not encoded.
    match rest.rsplit_once('@') {
        Some((_secret, host)) => format!("{scheme}://{host}"),
        None => text,
    }
}

/// "a", "a or b", "a, or b, or c": each may be long.
pub(super) fn either(ways: &[String]) -> String {
    match ways {
        [] | [_] => ways.concat(),
        _ => format!("either {}", ways.join(", or ")),
    }
}

/// With a capital.
pub(super) fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// An error with its sources, but those that the one above them says itself.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) fn in_full(error: &(dyn Error + 'static)) -> String {
    let mut said = error.to_string();
    for source in std::iter::successors(error.source(), |&error| error.source()) {
        let more = source.to_string();
        if !said.contains(&more) {
            said = format!("{said}: {more}");
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_url_loses_its_password() {
        assert_eq!(safe("postgres://app:s3:c@r/et@db.example.com/x"), "postgres://db.example.com/x");
        assert_eq!(safe("redis://:secret@cache:6379/0"), "redis://cache:6379/0");
        assert_eq!(safe("a user@host, no url"), "a user@host, no url");
        assert_eq!(safe("app\n\u{1b}[31mrole"), "app  [31mrole");
    }
}
