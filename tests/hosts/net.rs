//! The net as its users meet it: a command that is put before theirs.

use crate::host::debian;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Net {
    /// Nothing is loaded: the control.
    Off,
    On,
}

pub(crate) const LIBRARY: &str = "libforksafe_preload.so";

/// The folder with `forksafe-run` and the library, built as they are released.
pub(crate) static BUILT: LazyLock<PathBuf> = LazyLock::new(|| {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("it is a folder of the target folder");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--profile", "preload", "--package", "forksafe-preload"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"), "--target-dir"])
        .arg(target)
        .status();
    assert!(built.as_ref().is_ok_and(|status| status.success()), "the library is not built: {built:?}");
    target.join("preload")
});

impl Net {
    /// The program, with or without the net.
    pub(crate) fn command(self, program: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Off => Command::new(program),
            Self::On => {
                let mut command = Command::new(BUILT.join("forksafe-run"));
                command.arg("--").arg(program);
                command
            }
        }
    }

    /// That a test tests what it says.
    #[track_caller]
    pub(crate) fn assert_in(self, pid: u32) {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the memory of a process of ours");
        assert_eq!(maps.contains(LIBRARY), self == Self::On, "{LIBRARY} in process {pid}");
    }
}

/// A folder for a test, with a file in which the net says what it finds. Everybody may write there: some programs change their user.
pub(crate) struct Said {
    folder: TempDir,
}

impl Said {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("a folder of ours");
        Self { folder }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("said")
    }

    /// The program under the net, in this folder.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Net::On.command(program);
        command.env("FORKSAFE_REPORT", self.file()).current_dir(self.folder());
        command
    }

    /// A copy of the program, in this folder, that the library does not know by its name.
    pub(crate) fn under_another_name(&self, program: &str) -> PathBuf {
        self.copy(&debian(program), &format!("another_{program}"))
    }

    pub(crate) fn copy(&self, program: &Path, name: &str) -> PathBuf {
        let copy = self.folder().join(name);
        fs::copy(program, &copy).expect("a copy of the program");
        copy
    }

    /// A line for each connection that a child has inherited.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = fs::read_to_string(self.file()).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}
