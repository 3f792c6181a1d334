//! What a PostgreSQL server needs before it can start: the installed programs, a user who may run them, and a folder
//! with an empty cluster.

use nix::unistd::{Uid, User};
use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// A folder with an empty cluster. It is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Cluster {
    installed: Installed,
    folder: PathBuf,
}

impl Cluster {
    /// A copy of the template: to make one takes ten times as long.
    #[track_caller]
    pub(super) fn new() -> Self {
        let installed = Installed::find();
        let template = installed.template();
        let cluster = Self { folder: installed.new_folder(&roomy_folder(), "cluster"), installed };
        run(cluster.installed.command("cp").arg("-a").arg(template.join(".")).arg(&cluster.folder));
        cluster
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The server, run in this folder by the user whose it is.
    pub(super) fn server(&self) -> Command {
        let mut server = self.installed.program("postgres");
        server.current_dir(&self.folder).arg("-D").arg(&self.folder);
        server
    }

    /// Puts a file there that only the server's user can read.
    #[track_caller]
    pub(super) fn write(&self, name: &str, content: &str) {
        let path = self.folder.join(name);
        let written = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = written.and_then(|mut file| io::Write::write_all(&mut file, content.as_bytes()));
        written.and_then(|()| self.installed.give(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[derive(Debug)]
struct Installed {
    programs: PathBuf,
    /// For root, as whom PostgreSQL refuses to run.
    user: Option<User>,
}

impl Installed {
    /// On the `PATH`, or where Debian keeps them: in a folder for each version.
    #[track_caller]
    fn find() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let has_both = |folder: &PathBuf| ["postgres", "initdb"].iter().all(|name| folder.join(name).is_file());
        let programs = env::split_paths(&path).chain(debians()).find(has_both).unwrap_or_else(|| {
            panic!(
                "these tests need a PostgreSQL server, and `postgres` and `initdb` are neither on the PATH nor in \
                 /usr/lib/postgresql: run `cargo xtask test --install` as root, or install Debian's package \
                 postgresql, or set DATABASE_URL"
            )
        });
        let user = Uid::effective().is_root().then(|| {
            let known = ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
            known.expect("PostgreSQL does not run as root, and there is neither a user `postgres` nor a `nobody`")
        });
        Self { programs, user }
    }

    fn program(&self, name: &str) -> Command {
        self.command(self.programs.join(name))
    }

    /// A program that is run by the server's user, in a folder where that user may be.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(env::temp_dir()).stdin(Stdio::null());
        if let Some(user) = &self.user {
            // Drops root's other groups, too.
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Makes the server's user the owner.
    fn give(&self, path: &Path) -> io::Result<()> {
        self.user.as_ref().map_or(Ok(()), |user| chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())))
    }

    #[track_caller]
    fn new_folder(&self, parent: &Path, what: &str) -> PathBuf {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
        let name = format!("forksafe-postgres-{what}-{}-{now:x}", std::process::id());
        let folder = parent.join(name);
        let made = DirBuilder::new().mode(0o700).create(&folder).and_then(|()| self.give(&folder));
        made.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        folder
    }

    /// A cluster to be copied. It is made once for each version and user, and stays. Many processes may come for it at
    /// the same time: it gets its name when it is whole.
    #[track_caller]
    fn template(&self) -> PathBuf {
        let version = run(self.program("postgres").arg("--version"));
        // `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`
        let version = version.split_whitespace().nth(2).unwrap_or("unknown");
        let user = self.user.as_ref().map_or(Uid::effective(), |user| user.uid);
        let template = env::temp_dir().join(format!("forksafe-postgres-template-{version}-{user}"));
        if !template.exists() {
            let new = self.new_folder(&env::temp_dir(), "template");
            run(self
                .program("initdb")
                .args(["--no-sync", "--wal-segsize=1", "--auth=trust", "--username=postgres"])
                .args(["--locale=C", "--encoding=UTF8", "--pgdata"])
                .arg(&new));
            if fs::rename(&new, &template).is_err() {
                // Another was first.
                let _ = fs::remove_dir_all(&new);
            }
        }
        // Anybody may put a folder there, and a configuration can name programs to run.
        let owner = fs::symlink_metadata(&template).map(|template| template.is_dir().then(|| template.uid()));
        let is_ours = owner.as_ref().is_ok_and(|owner| *owner == Some(user.as_raw()));
        assert!(is_ours, "{} is not a folder of user {user}: {owner:?}", template.display());
        template
    }
}

/// Memory, if there is enough of it and nobody says otherwise. A cluster has a thousand files, and ext4 looks at every
/// inode that was freed within a minute before it takes a new one: the tenth test waited a second for its copy.
fn roomy_folder() -> PathBuf {
    const ENOUGH: u64 = 1 << 30;
    // SAFETY: a C string and a struct of ours, for which all zeros is a valid value.
    let room = unsafe {
        let mut memory: libc::statvfs = std::mem::zeroed();
        let known = libc::statvfs(c"/dev/shm".as_ptr(), &raw mut memory) == 0;
        if known { memory.f_bavail * memory.f_frsize } else { 0 }
    };
    if room < ENOUGH || env::var_os("TMPDIR").is_some() { env::temp_dir() } else { "/dev/shm".into() }
}

/// The newest first.
fn debians() -> Vec<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number = |version: &fs::DirEntry| version.file_name().to_str()?.parse::<u32>().ok();
    let mut versions: Vec<_> = versions.filter_map(|version| Some((number(&version)?, version.path()))).collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, folder)| folder.join("bin")).collect()
}

/// What it prints. It has to succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (printed, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{printed}{errors}", output.status);
    printed.into_owned()
}
