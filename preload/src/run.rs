//! Runs a command under forksafe's net, for those who do not want to know of `LD_PRELOAD`.

use forksafe::fork::net::Policy;
use pico_args::Arguments;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

const USAGE: &str = "\
Runs a command in whose forked children every connection that their parent has made is dead.

  forksafe-run [OPTION]... COMMAND [ARGUMENT]...

  --report          leave all as it is, and say on standard error what would have been shared
  --deny            end each child at once that inherits a connection, with exit status 86
  --net WHAT        what is taken: tcp, udp, unix:/run/postgresql/*, with commas between  [tcp]
  --keep WHAT       what is not: 10.0.0.5:6379, *:6379, unix:PATTERN, fd:7, with commas between
  --say WHERE       stderr, or the absolute path of a file, at whose end is written what was found

The same can be said in the environment: FORKSAFE_MODE=report or deny, FORKSAFE_NET, FORKSAFE_KEEP, FORKSAFE_REPORT.
Exit code: the command's, 2 if it was not run.
";

/// Options with a value, and the variable that says the same.
const SETTINGS: [(&str, &str); 3] =
    [("--net", "FORKSAFE_NET"), ("--keep", "FORKSAFE_KEEP"), ("--say", "FORKSAFE_REPORT")];

const LIBRARY: &str = "libforksafe_preload.so";

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("forksafe-run: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns only if the command was not run.
fn run(mut arguments: Vec<OsString>) -> Result<ExitCode, Box<dyn Error>> {
    let mut command = arguments.split_off(length_of_options(&arguments));
    if command.first().is_some_and(|first| first == "--") {
        command.remove(0);
    }
    let mut options = Arguments::from_vec(arguments);
    if options.contains(["-h", "--help"]) {
        print!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
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
    let Some((program, arguments)) = command.split_first() else {
        return Err("what shall I run? --help tells what there is".into());
    };
    let setting = |name: &str| {
        let said = variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| value.clone());
        said.or_else(|| std::env::var_os(name))
    };
    // Rather here than in the command, which would run without.
    Policy::from_settings(setting)?;
    let error = Command::new(program)
        .args(arguments)
        .envs(variables)
        .env("LD_PRELOAD", before(library()?, std::env::var_os("LD_PRELOAD"))?)
        .exec();
    Err(format!("{}: {error}", program.display()).into())
}

/// What comes after the first that is no option is the command's.
fn length_of_options(arguments: &[OsString]) -> usize {
    let mut length = 0;
    while let Some(argument) = arguments.get(length).filter(|argument| argument.as_encoded_bytes().starts_with(b"-")) {
        if argument == "--" {
            break;
        }
        length += if SETTINGS.iter().any(|(option, _)| argument == option) { 2 } else { 1 };
    }
    length.min(arguments.len())
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
