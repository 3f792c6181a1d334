//! Runs a command under forksafe's net, for those who do not want to know of `LD_PRELOAD`.
//!
//! The command gets everything as this program got it: signals that are ignored or blocked, descriptors that are open or closed. So it has no
//! `fn main`, for the standard library's start ignores SIGPIPE and opens what is closed of 0 to 2, and its `exec` resets SIGPIPE and
//! the mask.

#![no_main]

mod programs;
mod reach;
mod report;
mod wrappers;

use forksafe::fork::net::Policy;
use pico_args::Arguments;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{CStr, CString, NulError, OsStr, OsString};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::ptr;

const USAGE: &str = "\
Runs a command in whose forked children every connection that their parent has made is dead.

  forksafe-run [OPTION]... COMMAND [ARGUMENT]...

  --report          leave all as it is, and say on standard error what would have been shared
  --deny            end each child at once that inherits a connection, with exit status 86
  --net WHAT        what is taken: tcp, udp, unix:/run/postgresql/*, with commas between  [tcp]
  --keep WHAT       what is not: 10.0.0.5:6379, *:6379, unix:PATTERN, fd:7, program:NAME, with commas between
  --say WHERE       stderr, or the absolute path of a file, at whose end is written what was found

--keep=WHAT is the same as --keep WHAT.
The same can be said in the environment: FORKSAFE_MODE=report or deny, FORKSAFE_NET, FORKSAFE_KEEP, FORKSAFE_REPORT.
A variable whose name is nearly one of these is refused. Others that begin with FORKSAFE_ are somebody else's.
Programs that hand on what they connect, and are right to, are kept without a word: PROGRAMS.
What nothing can be loaded into is not run: programs that are linked statically, for another C library, or setuid or the like.
su -, runuser -l, sudo and env -i start their command without the library: put forksafe-run after them.
So with gosu and su-exec, which are linked statically: gosu www-data forksafe-run puma.
Exit code: the command's, 2 if it was not run.
";

/// Options with a value, and the variable that says the same.
const SETTINGS: [(&str, &str); 3] =
    [("--net", "FORKSAFE_NET"), ("--keep", "FORKSAFE_KEEP"), ("--say", "FORKSAFE_REPORT")];

const LIBRARY: &str = "libforksafe_preload.so";

#[unsafe(no_mangle)]
extern "C" fn main(count: libc::c_int, arguments: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: the C library calls it with so many C strings, which stay where they are.
    let argument = |at| unsafe { OsStr::from_bytes(CStr::from_ptr(*arguments.add(at)).to_bytes()).to_owned() };
    match run((1..usize::try_from(count).unwrap_or(0)).map(argument).collect()) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(io::stderr(), "forksafe-run: {error}");
            2
        }
    }
}

/// Returns only if the command was not run.
fn run(arguments: Vec<OsString>) -> Result<(), Box<dyn Error>> {
    let (options, command) = split(arguments);
    let mut options = Arguments::from_vec(options);
    if options.contains(["-h", "--help"]) {
        io::stdout().write_all(USAGE.replace("PROGRAMS", &programs::KEPT.join(", ")).as_bytes())?;
        return Ok(io::stdout().flush()?);
    }
    let (report, deny) = (options.contains("--report"), options.contains("--deny"));
    let mut variables: Vec<(&str, OsString)> = Vec::new();
    for (option, variable) in SETTINGS {
        let value =
            options.opt_value_from_os_str(option, |value| Ok::<_, std::convert::Infallible>(value.to_owned()))?;
        variables.extend(value.map(|value| (variable, value)));
    }
    if let Some(unknown) = options.finish().first() {
        return Err(format!("{unknown:?} is no option; --help tells what there is").into());
    }
    match (report, deny) {
        (true, true) => return Err("--report and --deny: one of them".into()),
        (true, false) => variables.push(("FORKSAFE_MODE", "report".into())),
        (false, true) => variables.push(("FORKSAFE_MODE", "deny".into())),
        (false, false) => {}
    }
    let says_where = variables.iter().any(|(variable, _)| *variable == "FORKSAFE_REPORT");
    if report && !says_where {
        variables.push(("FORKSAFE_REPORT", "stderr".into()));
    }
    let Some(program) = command.first() else {
        return Err("what shall I run? --help tells what there is".into());
    };
    let mut environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    environment.extend(variables.into_iter().map(|(variable, value)| (variable.into(), value)));
    // Rather here than in the command, which would run without.
    let policy = Policy::from_variables(environment.clone())?;
    let library = library()?;
    if let Some(file) = reach::find(program) {
        reach::check(&file, &library)?;
    }
    if let Some(file) = environment.get(OsStr::new("FORKSAFE_REPORT")).filter(|_| policy.is_some()) {
        report::check(Path::new(file)).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    if let Some(why) = wrappers::warning(&command) {
        let _ = writeln!(io::stderr(), "forksafe-run: warning: {why}");
    }
    environment.insert("LD_PRELOAD".into(), before(library, environment.get(OsStr::new("LD_PRELOAD")).cloned())?);
    let error = execute(&command, environment)?;
    Err(format!("{}: {error}", program.display()).into())
}

/// Returns only if it fails. A shell runs a file that is neither a program nor says whose script it is, as ever.
fn execute(command: &[OsString], environment: BTreeMap<OsString, OsString>) -> Result<io::Error, NulError> {
    let command: Vec<_> = command.iter().map(|word| CString::new(word.as_bytes())).collect::<Result<_, _>>()?;
    let environment = environment.into_iter().map(|(mut variable, value)| {
        variable.push("=");
        variable.push(value);
        CString::new(variable.into_vec())
    });
    let environment: Vec<_> = environment.collect::<Result<_, _>>()?;
    let pointers =
        |strings: &[CString]| -> Vec<_> { strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect() };
    let (words, variables) = (pointers(&command), pointers(&environment));
    if let [program, ..] = &command[..] {
        // SAFETY: C strings, in lists that end with a null pointer.
        unsafe { libc::execvpe(program.as_ptr(), words.as_ptr(), variables.as_ptr()) };
    }
    Ok(io::Error::last_os_error())
}

/// What comes after the first that is no option is the command's. An option and its value are two words in what is returned.
fn split(arguments: Vec<OsString>) -> (Vec<OsString>, Vec<OsString>) {
    let takes_value = |option: &[u8]| SETTINGS.iter().any(|(known, _)| option == known.as_bytes());
    let mut options = Vec::new();
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next_if(|argument| argument.as_bytes().starts_with(b"-") && argument != "--") {
        let word = argument.as_bytes();
        let equals = word.iter().position(|&byte| byte == b'=').filter(|&at| takes_value(word.split_at(at).0));
        if let Some(at) = equals {
            let (option, value) = word.split_at(at);
            options
                .extend([option, value.strip_prefix(b"=").unwrap_or(value)].map(|word| OsStr::from_bytes(word).into()));
        } else {
            let value = if takes_value(word) { arguments.next() } else { None };
            options.extend([argument].into_iter().chain(value));
        }
    }
    let _ = arguments.next_if(|argument| argument == "--");
    (options, arguments.collect())
}

/// Beside this program, or where libraries lie beside the folder of programs.
fn library() -> Result<PathBuf, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let folder = program.parent().unwrap_or(&program);
    let places = [folder.join(LIBRARY), folder.join("../lib").join(LIBRARY)];
    let found = places.iter().find(|place| place.is_file());
    Ok(found.ok_or_else(|| format!("{LIBRARY} is not in {} or its ../lib", folder.display()))?.canonicalize()?)
}

/// The loader takes a list, with colons or spaces between.
fn before(library: PathBuf, others: Option<OsString>) -> io::Result<OsString> {
    let mut list = library.into_os_string();
    if list.as_encoded_bytes().iter().any(|byte| matches!(byte, b':' | b' ')) {
        return Err(io::Error::other(format!(
            "the loader cannot load {}: its path has a colon or a space",
            list.display()
        )));
    }
    if let Some(others) = others.filter(|others| others != OsStr::new("")) {
        list.push(":");
        list.push(others);
    }
    Ok(list)
}
