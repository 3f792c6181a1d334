//! How long a reply is that lies in front of us, without reading it: the driver reads.

/// The replies that some bytes begin with.
#[derive(Debug, Default)]
pub(super) struct Replies<'a> {
    /// Replies to questions. What the server sends of its own accord (`>`) is not among them; but what it sends in reply to an
    /// `UNSUBSCRIBE` of [ours](OURS) is.
    pub(super) whole: Vec<&'a [u8]>,
    /// Messages that the server sends of its own accord.
    pub(super) pushed: Vec<&'a [u8]>,
    /// What comes after the last whole one.
    pub(super) rest: &'a [u8],
    pub(super) is_nonsense: bool,
}

impl<'a> Replies<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        let mut replies = Self { rest: bytes, ..Self::default() };
        loop {
            match extent(replies.rest, 0) {
                Extent::Whole(size) => {
                    let (reply, rest) = replies.rest.split_at(size);
                    let is_news = reply[0] == b'>' && !is_of_ours(reply);
                    if is_news { &mut replies.pushed } else { &mut replies.whole }.push(reply);
                    replies.rest = rest;
                }
                Extent::Part => return replies,
                Extent::Nonsense => return Self { is_nonsense: true, ..replies },
            }
        }
    }
}

/// What texts of our own begin with.
pub(super) const OURS: &str = "forksafe's own ";

/// Whether a message is the reply to an `UNSUBSCRIBE` of ours.
fn is_of_ours(message: &[u8]) -> bool {
    let has = |text: &[u8]| message.windows(text.len()).any(|part| part == text);
    has(b"\r\nunsubscribe\r\n") && has(OURS.as_bytes())
}

enum Extent {
    Whole(usize),
    Part,
    Nonsense,
}

/// Deeper ones than any server sends are nonsense.
const MAX_DEPTH: u32 = 32;

fn extent(bytes: &[u8], depth: u32) -> Extent {
    let Some(&kind) = bytes.first() else { return Extent::Part };
    if depth > MAX_DEPTH || !b"+-:_,#($!=*~>%|".contains(&kind) {
        return Extent::Nonsense;
    }
    let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") else { return Extent::Part };
    let (line, after) = (&bytes[1..end], end + 2);
    if b"+-:_,#(".contains(&kind) {
        return Extent::Whole(after);
    }
    let count = std::str::from_utf8(line).ok().and_then(|line| line.parse::<i64>().ok());
    let count = match count {
        Some(-1) => return Extent::Whole(after),
        Some(count @ 0..=0xffff_ffff) => count as usize,
        _ => return Extent::Nonsense,
    };
    if b"$!=".contains(&kind) {
        let size = after + count + 2;
        return match bytes.get(size - 2..size) {
            Some(b"\r\n") => Extent::Whole(size),
            Some(_) => Extent::Nonsense,
            None => Extent::Part,
        };
    }
    // An attribute stands before what it is said of.
    let parts = match kind {
        b'%' => count * 2,
        b'|' => count * 2 + 1,
        _ => count,
    };
    let mut size = after;
    for _ in 0..parts {
        match extent(&bytes[size..], depth + 1) {
            Extent::Whole(part) => size += part,
            other => return other,
        }
    }
    Extent::Whole(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extent_of_every_kind_of_reply_is_known() {
        for reply in [
            &b"+OK\r\n"[..],
            b"-ERR no\r\n",
            b":-42\r\n",
            b"$-1\r\n",
            b"$0\r\n\r\n",
            b"$4\r\na\r\nb\r\n",
            b"*-1\r\n",
            b"*2\r\n$4\r\npong\r\n*1\r\n:1\r\n",
            b"%1\r\n+key\r\n~2\r\n:1\r\n#t\r\n",
            b"|1\r\n+ttl\r\n:1\r\n+OK\r\n",
            b"=6\r\ntxt:ok\r\n",
            b"_\r\n",
        ] {
            for end in 0..reply.len() {
                let part = Replies::of(&reply[..end]);
                assert!(part.whole.is_empty() && !part.is_nonsense && part.rest.len() == end, "{end} of {reply:?}");
            }
            let twice = [reply, reply].concat();
            let whole = Replies::of(&twice);
            assert!(whole.whole == [reply, reply] && whole.rest.is_empty() && !whole.is_nonsense, "{reply:?}");
        }
        for nonsense in [&b"hello"[..], b"$x\r\n", b"$1\r\nabc", b"*1\r\nx"] {
            assert!(Replies::of(nonsense).is_nonsense, "{nonsense:?}");
        }
        let pushed = Replies::of(b">2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n+OK\r\n");
        assert_eq!((pushed.pushed.len(), pushed.whole), (1, vec![&b"+OK\r\n"[..]]));
        for (channel, is_ours) in [("forksafe's own 1.2", true), ("news", false)] {
            let reply = format!(">3\r\n$11\r\nunsubscribe\r\n${}\r\n{channel}\r\n:0\r\n", channel.len());
            assert_eq!(Replies::of(reply.as_bytes()).whole.len(), usize::from(is_ours));
        }
    }
}
