//! What the net takes, as a program says it.

use super::place::Place;
use super::preloaded;
use super::settings;
use crate::fork::generation;
use crate::fork::handler::birth;
use crate::fork::handler::net::learn_given_ports;
use crate::fork::handler::net::rules::{self, Mode, Report, Rules};
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Which of the inherited connections that nobody has registered a child disowns, and what else it does about them. The
/// [module](super) says what is taken and what is left alone.
///
/// ```
/// use forksafe::fork::net::{Mode, Policy};
/// use std::net::{IpAddr, Ipv4Addr};
///
/// Policy::tcp()
///     .unix("/run/postgresql/*")
///     .udp()
///     .keep(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 5)))
///     .mode(Mode::Report)
///     .report_to_stderr()
///     .set()?;
/// # Ok::<_, forksafe::fork::net::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "it does nothing before it is set"]
pub struct Policy {
    rules: Rules,
}

impl Policy {
    /// Takes TCP.
    pub fn tcp() -> Self {
        Self { rules: Rules { tcp: true, ..Rules::default() } }
    }

    /// Takes nothing that is not added.
    pub fn none() -> Self {
        Self { rules: Rules::default() }
    }

    /// The policy that the environment asks for.
    ///
    /// | variable | | default |
    /// | --- | --- | --- |
    /// | `FORKSAFE_NET` | `off`, or what is taken, with commas between: `tcp`, `udp`, `unix:/run/postgresql/*` | `tcp` |
    /// | `FORKSAFE_KEEP` | what is not, with commas between: [places](Place), numbers as `fd:7`, [programs](Self::keep_program) as `program:ssh` | nothing |
    /// | `FORKSAFE_REPORT` | `stderr`, or the absolute path of a file, at whose end is written what was found | nowhere |
    /// | `FORKSAFE_MODE` | `disown`, `report`, `deny`: see [`Mode`] | `disown` |
    ///
    /// `None` if it says `off`. Spaces around commas are of no meaning.
    ///
    /// # Errors
    ///
    /// A setting that means nothing, with what it could be. And a variable that is not empty, whose name begins with a setting's or is one but for two
    /// letters: with `FORKSAFE_MODES=report` nobody wants connections to be taken. All other names pass in silence, `FORKSAFE_ENABLED` for example; so do
    /// those that end in `_PORT` or have `_PORT_` or `_SERVICE_` in them: Kubernetes sets `FORKSAFE_PORT` where a service is called `forksafe`.
    pub fn from_env() -> Result<Option<Self>, Error> {
        Self::from_variables(std::env::vars_os())
    }

    /// As [`from_env`](Self::from_env), with these variables. Of two of one name the last counts.
    ///
    /// ```
    /// use forksafe::fork::net::Policy;
    ///
    /// let policy = Policy::from_variables([("FORKSAFE_NET".into(), "tcp, udp".into())])?;
    /// assert_eq!(policy, Some(Policy::tcp().udp()));
    /// # Ok::<_, forksafe::fork::net::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`from_env`](Self::from_env).
    pub fn from_variables(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Result<Option<Self>, Error> {
        settings::read(variables)
    }

    /// Takes TCP, too.
    pub fn and_tcp(mut self) -> Self {
        self.rules.tcp = true;
        self
    }

    /// Takes unix streams whose peer's path fits the pattern, too: `*` stands for any number of bytes, `/` included, and `?` for one.
    /// An abstract name begins with `@`.
    pub fn unix(mut self, pattern: impl AsRef<OsStr>) -> Self {
        self.rules.unix.push(pattern.as_ref().as_bytes().into());
        self
    }

    /// Takes UDP that is connected, too: that of name resolvers, of metrics. Whoever writes there and waits for no answer may as
    /// well share it.
    pub fn udp(mut self) -> Self {
        self.rules.udp = true;
        self
    }

    /// Leaves connections to these peers alone.
    pub fn keep(mut self, place: impl Into<Place>) -> Self {
        self.rules.kept.push(place.into().0);
        self
    }

    /// Leaves this number alone, whatever it is.
    pub fn keep_descriptor(mut self, number: RawFd) -> Self {
        self.rules.kept_numbers.push(number);
        self
    }

    /// Does nothing in a process of this program: it hands on what it connects, [and is right to](super#what-it-cannot-know). For a policy that
    /// many programs have, by their environment.
    ///
    /// It is the name of the file that is executed, without its folder, as `/proc/self/exe` has it when the policy is [set](Self::set):
    /// links are followed, and of a script it is the interpreter's. `*` stands for any number of bytes, and `?` for one.
    pub fn keep_program(mut self, name: impl AsRef<OsStr>) -> Self {
        self.rules.kept_programs.push(name.as_ref().as_bytes().into());
        self
    }

    /// What a child does. Default: [`Mode::Disown`].
    pub fn mode(mut self, mode: Mode) -> Self {
        self.rules.mode = mode;
        self
    }

    /// Has each child say what it found, if it found anything: a line for each connection on standard error, 128 at most, and how many
    /// more there are.
    ///
    /// It is said at the birth of the child, inside `fork`. Nobody is waited for: what finds no room in a pipe that is full, or in a terminal that
    /// stands still, is lost, and counted in that last line if there is room for it. (Where `/proc` cannot be used, or the pipe is another
    /// user's, somebody else's line may take the room first, and then it waits.)
    ///
    /// Number 2 may be something else by then: a program closes it, and its next connection or data file is number 2. So it is written into
    /// only if it is the same file as when the policy was set, or a file on a disk that is opened to append and not close-on-exec:
    /// a log that the program has redirected its standard error to. (A program that redirects it to a new pipe or terminal had better
    /// [name a file](Self::report_to).) That goes for the lines of [`Mode::Deny`], too.
    pub fn report_to_stderr(mut self) -> Self {
        self.rules.report = Report::StandardError;
        self
    }

    /// As [`report_to_stderr`](Self::report_to_stderr), to the end of a file. It is opened by the child, and made if it is not there;
    /// give an absolute path. A named pipe will do if somebody reads it; a symbolic link is not followed, for in a folder like `/tmp` it is anybody's.
    ///
    /// # Panics
    ///
    /// When the path has a zero byte in it.
    #[track_caller]
    pub fn report_to(mut self, file: impl AsRef<Path>) -> Self {
        let path = CString::new(file.as_ref().as_os_str().as_bytes()).expect("a path without a zero byte");
        self.rules.report = Report::File(path);
        self
    }

    /// Sets it, for every child that is made from here on, and theirs. First thing in `main` is a good moment: what fork handlers
    /// are registered later come after ours in a child.
    ///
    /// In a program under the preloaded library this is the policy that holds from then on.
    ///
    /// # Errors
    ///
    /// [`is_already_set`](Error::is_already_set): it is set once in the life of a program, and never changed. And when no fork handler could be
    /// registered for want of memory, or the file for reports is a symbolic link.
    pub fn set(self) -> Result<(), Error> {
        self.check_report()?;
        generation();
        birth::ensure_handlers();
        if !birth::has_handlers() {
            return Err(Error(Kind::NoHandlers));
        }
        learn_given_ports();
        let is_kept =
            !self.rules.kept_programs.is_empty() && program().is_some_and(|name| self.rules.keep_program(&name));
        if !rules::set(if is_kept { Rules::default() } else { self.rules }) {
            return Err(Error(Kind::AlreadySet));
        }
        preloaded::have_the_other_stand_down();
        Ok(())
    }

    /// What can be told before somebody has made a link of it.
    pub(super) fn check_report(&self) -> Result<(), Error> {
        let Report::File(path) = &self.rules.report else { return Ok(()) };
        let path = Path::new(OsStr::from_bytes(path.as_bytes()));
        if path.is_symlink() { Err(Error(Kind::Link(path.to_owned()))) } else { Ok(()) }
    }
}

/// The file of which this process is, without its folder.
fn program() -> Option<Vec<u8>> {
    let path = std::env::current_exe().ok()?;
    let name = path.file_name()?.as_bytes();
    // It has been replaced by a newer one.
    Some(name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec())
}

/// Why there is no [`Policy`], or not this one.
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(pub(super) Kind);

#[derive(Debug, thiserror::Error)]
pub(super) enum Kind {
    #[error("a policy has been set already, and cannot be changed")]
    AlreadySet,
    #[error("there is no memory for a fork handler")]
    NoHandlers,
    #[error("nothing is reported through a symbolic link: {}", .0.display())]
    Link(PathBuf),
    #[error("{variable}={value}: {part:?} is not {wanted}")]
    Setting { variable: &'static str, value: String, part: String, wanted: &'static str },
    #[error("{name} is no setting: if {meant} is meant, rename it, and if not, unset it")]
    NoSetting { name: String, meant: &'static str },
}

impl Error {
    /// It is set once in the life of a program.
    pub fn is_already_set(&self) -> bool {
        matches!(self.0, Kind::AlreadySet)
    }

    /// What the environment says means nothing.
    pub fn is_wrong_setting(&self) -> bool {
        matches!(self.0, Kind::Setting { .. } | Kind::NoSetting { .. })
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
