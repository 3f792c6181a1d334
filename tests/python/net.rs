//! The module, with its net or without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tempfile::TempDir;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Net {
    /// The control, with what is written without this crate.
    Off,
    On,
}

/// The modules under their names for Python, in a folder where nothing else is. Both are in one library.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    // Beside this program.
    let this = std::env::current_exe().expect("the path of the test program");
    let built = this.parent().map(|folder| folder.join("libsurvivor.so")).filter(|file| file.is_file());
    let built =
        built.unwrap_or_else(|| panic!("cargo builds libsurvivor.so with {}, and it is not there", this.display()));
    for module in ["survivor", "quotes"] {
        let name = folder.path().join(format!("{module}.abi3.so"));
        std::os::unix::fs::symlink(&built, name).expect("a folder of ours");
    }
    folder
});

/// Where the applications of the hosts' tests are.
const APPS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../hosts/apps");

/// Where Python finds its modules: first this package's, which are used in the place of those of the hosts' tests.
pub(crate) fn python_path() -> String {
    [Path::new(crate::host::APPS), Path::new(APPS), FOLDER.path()].map(|folder| folder.display().to_string()).join(":")
}

/// The settings of the hosts' tests.
pub(crate) fn gunicorn_settings() -> PathBuf {
    Path::new(APPS).join("gunicorn_settings.py")
}

impl Net {
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if self == Self::Off {
            command.env("FORKSAFE_NET", "off");
        }
        command
    }

    /// That a test tests what it says.
    #[track_caller]
    pub(crate) fn assert_in(self, pid: u32) {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the memory of a process of ours");
        assert!(maps.contains("libsurvivor.so"), "the module is in process {pid}");
    }
}
