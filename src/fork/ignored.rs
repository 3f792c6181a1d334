//! Signals that are ignored for a while, also by the program that this one becomes.

use std::io;
use std::mem;

/// As long as it lives they are ignored; then what was done about them before is done again.
pub(crate) struct Ignored(Vec<(libc::c_int, libc::sigaction)>);

impl Ignored {
    pub(crate) fn new(signals: &[libc::c_int]) -> io::Result<Self> {
        let mut ignored = Self(Vec::with_capacity(signals.len()));
        for &signal in signals {
            ignored.0.push((signal, set(signal, &action(libc::SIG_IGN))?));
        }
        Ok(ignored)
    }
}

impl Drop for Ignored {
    fn drop(&mut self) {
        for (signal, before) in &self.0 {
            let _ = set(*signal, before);
        }
    }
}

/// In the program that came after one that ignored them.
pub(crate) fn no_more(signals: &[libc::c_int]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| set(*signal, &action(libc::SIG_DFL)).map(drop))
}

fn action(what: libc::sighandler_t) -> libc::sigaction {
    // SAFETY: all zero is an action without flags and mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = what;
    action
}

/// Returns what was done before.
fn set(signal: libc::c_int, action: *const libc::sigaction) -> io::Result<libc::sigaction> {
    // SAFETY: as above.
    let mut before: libc::sigaction = unsafe { mem::zeroed() };
    // SAFETY: both are whole; the action is one of the two that have no handler, or was the program's own.
    match unsafe { libc::sigaction(signal, action, &raw mut before) } {
        0 => Ok(before),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr;

    #[test]
    fn what_was_done_before_is_done_again() {
        let now = || set(libc::SIGURG, ptr::null()).unwrap().sa_sigaction;
        let before = now();
        let ignored = Ignored::new(&[libc::SIGURG]).unwrap();
        assert_eq!(now(), libc::SIG_IGN);
        drop(ignored);
        assert_eq!(now(), before);
    }
}
