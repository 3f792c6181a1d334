//! Commands that start another with an environment that is not theirs: the library gets into them, and not into what is meant.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// If the command is one of those.
pub(crate) fn warning(command: &[OsString]) -> Option<String> {
    let (program, words) = command.split_first()?;
    let name = Path::new(program).file_name()?.to_str()?;
    let words = words.iter().map(OsString::as_os_str);
    let clears = match name {
        "sudo" => true,
        "su" | "runuser" => words.into_iter().take_while(|word| *word != "--").any(is_login),
        "env" => is_emptied(words),
        _ => false,
    };
    clears.then(|| format!("{name} starts its command without the library: forksafe-run goes after it"))
}

/// `su - USER`, `su -l USER`.
fn is_login(word: &OsStr) -> bool {
    word == "-" || word.as_bytes().starts_with(b"--l") || has_letter(word, b'l', b"cgGsuw")
}

/// `env -i COMMAND`. What comes after the options is the command's.
fn is_emptied<'a>(mut words: impl Iterator<Item = &'a OsStr>) -> bool {
    while let Some(word) = words.next().filter(|word| word.as_bytes().starts_with(b"-")) {
        if word == "-"
            || word.as_bytes().starts_with(b"--i") && !word.as_bytes().contains(&b'=')
            || has_letter(word, b'i', b"uCS")
        {
            return true;
        }
        if ["-u", "--unset", "-C", "--chdir"].iter().any(|option| word == *option) {
            words.next();
        }
    }
    false
}

/// One of `-abc`. After a letter that takes a value comes that.
fn has_letter(word: &OsStr, letter: u8, take_values: &[u8]) -> bool {
    let letters = word.as_bytes().strip_prefix(b"-").filter(|letters| !letters.starts_with(b"-"));
    let mut letters = letters.unwrap_or_default().iter().take_while(|letter| !take_values.contains(letter));
    letters.any(|&other| other == letter)
}
