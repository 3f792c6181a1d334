//! The library in programs that know nothing of it: Python, which has fork, sockets and event loops of its own.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

/// The program beside the library, as they are installed. Cargo leaves them in different folders.
static RUN: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed");
    fs::create_dir_all(&folder).unwrap();
    let (run, built) = (folder.join("forksafe-run"), std::env::current_exe().unwrap());
    fs::copy(env!("CARGO_BIN_EXE_forksafe-run"), &run).unwrap();
    fs::copy(built.with_file_name(LIBRARY), folder.join(LIBRARY)).unwrap();
    run
});

const LIBRARY: &str = "libforksafe_preload.so";

fn library() -> PathBuf {
    RUN.with_file_name(LIBRARY)
}

/// Runs a script under `forksafe-run` with these options.
fn python(options: &[&str], script: &str) -> Output {
    let mut command = Command::new(&*RUN);
    command.args(options).args(["python3", "-c"]).arg(format!("{PRELUDE}{script}"));
    command.output().expect("python3, which is Debian's package python3")
}

/// What it printed. It has to end well.
#[track_caller]
fn prints(options: &[&str], script: &str) -> String {
    let output = python(options, script);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

const PRELUDE: &str = r#"
import os, select, selectors, socket, subprocess, sys
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
def connect():
    made = socket.create_connection(listener.getsockname())
    return made, listener.accept()[0]
def dead(s):
    try: return not isinstance(s.getpeername(), tuple)
    except OSError: return True
def child(f):
    pid = os.fork()
    if pid == 0:
        try: code = f()
        except BaseException as e: print(repr(e), file=sys.stderr); code = 99
        os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status)
made, accepted = connect()
"#;

const WHAT_IS_DEAD: &str = "print(child(lambda: 2 * dead(made) + dead(accepted)))";

#[test]
fn what_the_parent_has_connected_is_dead_in_its_children_and_with_the_net_off_it_is_shared() {
    assert_eq!(prints(&[], WHAT_IS_DEAD), "2");
    assert_eq!(prints(&["--net", "off"], WHAT_IS_DEAD), "0", "the control");
    assert_eq!(prints(&["--net", "udp"], WHAT_IS_DEAD), "0");
    assert_eq!(prints(&["--keep", "127.0.0.1"], WHAT_IS_DEAD), "0");
}

/// A client that asks and reads in the parent and in its children: the control shows what it is that the net prevents.
#[test]
fn a_child_gets_no_answer_that_is_its_parents() {
    let script = r#"
accepted.sendall(b"the answer of the parent")
print(child(lambda: len(made.recv(100))), made.recv(100, socket.MSG_DONTWAIT).decode())
"#;
    assert_eq!(prints(&[], script), "0 the answer of the parent");
    let control = python(&["--net", "off"], script);
    assert!(!control.status.success(), "the child has taken it, and the parent finds nothing");
}

#[test]
fn event_loops_of_the_parent_go_on() {
    let script = r#"
loop = selectors.DefaultSelector(); loop.register(made, selectors.EVENT_READ)
other = select.poll(); other.register(made, select.POLLIN)
for n in range(20):
    assert child(lambda: 0 if dead(made) else 1) == 0
    accepted.sendall(b"x")
    assert len(loop.select(10)) == 1 and len(other.poll(10000)) == 1
    made.recv(1)
print("through")
"#;
    assert_eq!(prints(&[], script), "through");
}

#[test]
fn programs_that_are_started_work_and_are_protected_in_their_turn() {
    let script = r#"
import multiprocessing
assert subprocess.run(["sh", "-c", "echo a | (cat; echo b) | cat >/dev/null; exit 7"]).returncode == 7
assert subprocess.run(["true"], preexec_fn=lambda: None, pass_fds=[accepted.fileno()]).returncode == 0
with multiprocessing.get_context("fork").Pool(2) as pool: assert pool.map(abs, [-1, 2]) == [1, 2]
print(subprocess.run([sys.executable, "-c", os.environ["AGAIN"]], stdout=subprocess.PIPE).stdout.decode())
"#;
    let again = format!("{PRELUDE}{WHAT_IS_DEAD}");
    let mut command = Command::new(&*RUN);
    let output =
        command.env("AGAIN", again).args(["python3", "-c"]).arg(format!("{PRELUDE}{script}")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "2", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_report_says_what_would_have_been_shared() {
    let output = python(&["--report"], WHAT_IS_DEAD);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("has inherited tcp 127.0.0.1:") && told.ends_with(": left as it is\n"), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
}

#[test]
fn a_report_goes_into_a_file() {
    let file = std::env::temp_dir().join(format!("forksafe-preload-{}", std::process::id()));
    assert_eq!(prints(&["--say", file.to_str().unwrap()], WHAT_IS_DEAD), "2");
    let told = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    assert!(told.ends_with(": disowned\n"), "{told}");
}

#[test]
fn a_child_that_is_denied_its_inheritance_ends_with_86() {
    let output = python(&["--deny"], "print(child(lambda: 0)); made.close(); print(child(lambda: 0))");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "86\n0\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains(": denied\n"));
}

/// It goes on being called by `fork`.
#[test]
fn a_library_that_is_closed_stays_where_it_is() {
    let script = format!(
        r#"
import ctypes, _ctypes
library = ctypes.CDLL("{}")
for n in range(3): _ctypes.dlclose(library._handle)
print(child(lambda: 2 * dead(made) + dead(accepted)))
"#,
        library().display()
    );
    // Loaded by hand, and not before the program.
    let output = Command::new("python3").args(["-c", &format!("{PRELUDE}{script}")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "2", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn it_opens_nothing_and_starts_no_thread() {
    let script = r#"
print(sorted(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task").__len__())
child(lambda: 0)
print(sorted(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task").__len__())
"#;
    let there = prints(&[], script);
    let lines: Vec<_> = there.lines().collect();
    assert_eq!(lines[0], lines[1]);
    assert_eq!(there, prints(&["--net", "off"], script));
}

#[test]
fn a_wrong_setting_is_said_and_nothing_is_done() {
    let loads = |setting: (&str, &str)| {
        let mut command = Command::new("python3");
        command
            .args(["-c", &format!("{PRELUDE}{WHAT_IS_DEAD}")])
            .env("LD_PRELOAD", library())
            .env(setting.0, setting.1);
        let output = command.output().unwrap();
        (String::from_utf8_lossy(&output.stdout).trim().to_owned(), String::from_utf8(output.stderr).unwrap())
    };
    let (dead, said) = loads(("FORKSAFE_NET", "tcp,everything"));
    assert_eq!(dead, "0");
    let wanted = "forksafe: nothing is protected: FORKSAFE_NET=tcp,everything: \"everything\" is not tcp, udp, unix:PATTERN or off\n";
    assert!(said.starts_with(wanted), "{said}");
    assert_eq!(loads(("FORKSAFE_NET", "tcp")), ("2".into(), String::new()));

    let wanted = "forksafe: nothing is protected: FORKSAFE_MODES is no setting: if FORKSAFE_MODE is meant, ";
    let (dead, said) = loads(("FORKSAFE_MODES", "report"));
    assert!(dead == "0" && said.starts_with(wanted), "{dead}: {said}");
    for somebody_elses in ["FORKSAFE_PORT", "FORKSAFE_SERVICE_HOST", "FORKSAFE_ENABLED"] {
        assert_eq!(loads((somebody_elses, "tcp://10.0.0.1:80")), ("2".into(), String::new()));
    }

    refuses(Command::new(&*RUN).args(["--keep", "localhost:1", "echo", "ran"]), "localhost:1");
    refuses(Command::new(&*RUN).args(["echo", "ran"]).env("FORKSAFE_KEEPS", "*:1"), "FORKSAFE_KEEPS is no setting: ");
}

#[test]
fn an_option_and_its_value_are_two_words_or_one() {
    assert_eq!(prints(&["--net=off"], WHAT_IS_DEAD), "0");
    assert_eq!(prints(&["--keep=127.0.0.1", "--net=tcp"], WHAT_IS_DEAD), "0");
    assert_eq!(prints(&["--keep=unix:a=b", "--"], WHAT_IS_DEAD), "2", "the first = only");
    let output = python(&["--say=stderr", "--report"], WHAT_IS_DEAD);
    assert!(String::from_utf8_lossy(&output.stderr).ends_with(": left as it is\n"));
    // What looks like an option is a value here.
    refuses(Command::new(&*RUN).args(["--net", "--keep=*:1", "echo", "ran"]), "FORKSAFE_NET=--keep=*:1");
    for wrong in ["--deny=yes", "--keeps=*:1", "-=x"] {
        refuses(Command::new(&*RUN).args([wrong, "echo", "ran"]), &format!("{wrong:?} is no option"));
    }
    let own = Command::new(&*RUN).args(["--net=off", "echo", "--net=what"]).output().unwrap();
    assert_eq!(own.stdout, b"--net=what\n");
}

/// And runs nothing.
#[track_caller]
fn refuses(command: &mut Command, why: &str) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!((status.code(), stdout), (Some(2), Vec::new()), "{said}");
    assert!(said.starts_with("forksafe-run: ") && said.contains(why), "{said}");
}

/// The library has something to say before the program has begun.
#[test]
fn a_wrong_setting_that_nobody_hears_neither_ends_the_program_nor_holds_it_up() {
    let (reader, mut full) = std::io::pipe().unwrap();
    // SAFETY: takes numbers.
    let size = unsafe { libc::fcntl(full.as_raw_fd(), libc::F_GETPIPE_SZ) };
    full.write_all(&vec![0; size as usize]).unwrap();
    let (_, unread) = std::io::pipe().unwrap();
    for stderr in [unread, full] {
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]).env("LD_PRELOAD", library()).env("FORKSAFE_NET", "everything");
        let mut program = command.stderr(stderr).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(40);
        let status = loop {
            match program.try_wait().unwrap() {
                None if Instant::now() > until => program.kill().unwrap(),
                None => thread::sleep(Duration::from_millis(2)),
                Some(status) => break status,
            }
        };
        assert_eq!(status.code(), Some(7), "{status}");
    }
    drop(reader);
}

#[test]
fn a_report_through_a_link_is_refused() {
    let link = std::env::temp_dir().join(format!("forksafe-preload-link-{}", std::process::id()));
    symlink("/dev/null", &link).unwrap();
    let link = link.to_str().unwrap();
    refuses(Command::new(&*RUN).args(["--say", link, "echo", "ran"]), "nothing is reported through a symbolic link");
    fs::remove_file(link).unwrap();
}

#[test]
fn a_report_that_cannot_be_written_is_refused_and_none_is_begun() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reports");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    let [missing, taken, report, pipe] = ["missing/x", "taken", "report", "pipe"].map(|name| folder.join(name));
    fs::create_dir(&taken).unwrap();
    let say = |file: &Path| {
        let mut command = Command::new(&*RUN);
        command.arg("--say").arg(file).args(["echo", "ran"]);
        command
    };
    refuses(&mut say(&missing), &format!("{}: No such file or directory", missing.display()));
    refuses(&mut say(&taken), &format!("{}: Is a directory", taken.display()));
    refuses(Command::new(&*RUN).args(["echo", "ran"]).env("FORKSAFE_REPORT", &missing), "No such file or directory");
    refuses(&mut say(Path::new("/proc/version/x")), "Not a directory");
    assert!(say(&report).status().unwrap().success());
    assert!(!report.exists(), "whoever reports makes it: that may be another user");
    fs::write(&report, "a line\n").unwrap();
    assert!(say(&report).status().unwrap().success());
    assert_eq!(fs::read_to_string(&report).unwrap(), "a line\n");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(say(&pipe).status().unwrap().success(), "somebody may read it later");
    assert!(say(&missing).env("FORKSAFE_NET", "off").status().unwrap().success(), "nothing is found");
}

#[test]
fn a_command_that_starts_another_without_the_library_is_warned_of() {
    let shell = "case $LD_PRELOAD in *forksafe*) echo protected;; *) echo not;; esac";
    let run = |command: &[&str]| {
        let Output { status, stdout, stderr } = Command::new(&*RUN).args(command).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert!(status.success(), "{command:?}: {stderr}");
        let warned = stderr.contains("forksafe-run: warning: ") && stderr.contains(" without the library");
        (String::from_utf8(stdout).unwrap().trim().to_owned(), warned)
    };
    let (protected, not) = (("protected".to_owned(), false), ("not".to_owned(), true));
    for options in [&["-i"][..], &["-"], &["--ignore-environment"], &["-u", "A", "-vi"], &["--chdir=/", "-i", "B=c"]] {
        assert_eq!(run(&[&["env"], options, &["/bin/sh", "-c", shell]].concat()), not, "{options:?}");
    }
    for options in [&[][..], &["-u", "i"], &["-ui"], &["A=b"], &["-C", "/", "B=c"]] {
        let command = [&["/usr/bin/env"], options, &["/bin/sh", "-c", shell, "-i", "-"]].concat();
        assert_eq!(run(&command), protected, "{options:?}");
    }
    // SAFETY: takes nothing, and cannot fail.
    if unsafe { libc::getuid() } != 0 {
        println!("NOT RUN: only root can change its user");
        return;
    }
    for name in ["su", "runuser"] {
        for same in
            [&[name, "root", "-s", "/bin/sh", "-c", shell][..], &[name, "-s/bin/sh", "root", "-c", shell, "--", "-l"]]
        {
            assert_eq!(run(same), protected, "{same:?}");
        }
        for login in ["-", "-l", "--login", "-pl"] {
            // A login's shell may say something of its own first.
            let (said, warned) = run(&[name, login, "root", "-s", "/bin/sh", "-c", shell]);
            assert!(said.ends_with("not") && warned, "{name} {login}: {said}");
        }
    }
    let sudo = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sudo");
    fs::copy("/bin/true", &sudo).unwrap();
    assert!(run(&[sudo.to_str().unwrap(), "echo"]).1);
}

/// What is ignored, blocked, open and closed.
#[test]
fn the_command_gets_signals_and_descriptors_as_they_were() {
    let cat =
        "while read -r line; do case $line in Sig*) echo \"$line\";; esac; done </proc/$$/status; echo /proc/$$/fd/*";
    for (ignored, blocked) in
        [(vec![], vec![]), (vec![libc::SIGPIPE, libc::SIGHUP], vec![libc::SIGUSR1]), (vec![], vec![libc::SIGPIPE])]
    {
        let see = |mut command: Command| {
            let (ignored, blocked) = (ignored.clone(), blocked.clone());
            let prepare = move || {
                // SAFETY: takes numbers, and a set of ours.
                unsafe {
                    for &signal in &ignored {
                        libc::signal(signal, libc::SIG_IGN);
                    }
                    let mut set = std::mem::zeroed();
                    for &signal in &blocked {
                        libc::sigaddset(&raw mut set, signal);
                    }
                    libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
                    libc::close(0);
                    libc::close(2);
                }
                Ok(())
            };
            // SAFETY: system calls only.
            let output = unsafe { command.args(["bash", "-c", cat]).pre_exec(prepare) }.output().unwrap();
            let seen = String::from_utf8(output.stdout).unwrap();
            // The numbers of the process are not the same.
            seen.split_whitespace().map(|word| word.rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let with = see(Command::new(&*RUN));
        assert_eq!(with, see(Command::new("env")));
        assert!(with.len() > 10, "{with:?}");
    }
}

#[test]
fn what_the_library_does_not_get_into_is_not_run() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unreached");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    let make = |name: &str, content: &[u8], mode| {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        path
    };
    let run = |program: &dyn AsRef<std::ffi::OsStr>| {
        let mut command = Command::new(&*RUN);
        command.arg(program);
        command
    };
    let usual = fs::read("/bin/true").unwrap();
    let usual_true = make("usual", &usual, 0o755);
    assert!(run(&usual_true).status().unwrap().success());
    // The entry that names the loader is no longer one.
    let mut fixed = usual.clone();
    let word = |at: usize| u64::from_ne_bytes(*usual[at..].first_chunk().unwrap()) as usize;
    let (table, size) = (word(32), usual[54] as usize);
    let entry = (0..64).map(|entry| table + entry * size).find(|&entry| usual[entry..entry + 4] == [3, 0, 0, 0]);
    let entry = entry.unwrap();
    fixed[entry] = 0;
    let fixed_bytes = fixed;
    let fixed = make("static", &fixed_bytes, 0o755);
    let is_static = format!("{} is linked statically", fixed.display());
    refuses(&mut run(&fixed), &is_static);
    refuses(run(&"static").env("PATH", &folder), &is_static);
    refuses(&mut run(&fixed), "`gosu www-data forksafe-run puma`");
    // As long as Debian's loaders are, or shorter.
    let mut of_musl = usual.clone();
    let (loader, length) = (word(entry + 8), word(entry + 32));
    of_musl[loader..loader + length].fill(0);
    of_musl[loader..][..24].copy_from_slice(b"/lib/ld-musl-x86_64.so.1");
    let is_of_musl = "of_musl is for another C library than ";
    refuses(&mut run(&make("of_musl", &of_musl, 0o755)), is_of_musl);
    refuses(
        &mut run(&make("ld-musl-x86_64.so.1", &fixed_bytes, 0o755)),
        "ld-musl-x86_64.so.1 is for another C library than ",
    );
    let script = |name: &str, first: String| make(name, format!("#!{first}\n").as_bytes(), 0o755);
    refuses(&mut run(&script("script", format!(" {} -x", fixed.display()))), &is_static);
    refuses(run(&script("by_env", "/usr/bin/env -S A=b static".into())).env("PATH", &folder), &is_static);
    refuses(&mut run(&script("of_script", folder.join("script").display().to_string())), &is_static);
    assert!(run(&script("usual_script", "/bin/sh".into())).status().unwrap().success());
    assert!(run(&make("no_name_of_interpreter", b"exit 0", 0o755)).status().unwrap().success());
    let mut narrow = usual.clone();
    narrow[4] = 1;
    refuses(&mut run(&make("narrow", &narrow, 0o755)), "is for another kind of machine");
    refuses(&mut run(&"not/there"), "No such file");
    refuses(&mut run(&"not_there_either"), "No such file");

    // SAFETY: takes nothing, and cannot fail.
    if unsafe { libc::getuid() } != 0 {
        println!("NOT RUN: only root can give away a file");
        return;
    }
    let nobody = 65534;
    let own = make("setuid_and_own", &usual, 0o4755);
    assert!(run(&own).status().unwrap().success(), "root gains nothing by root's rights");
    for (name, user, group, mode, why) in
        [("setuid", Some(nobody), None, 0o4755, "is setuid"), ("setgid", None, Some(nobody), 0o2755, "is setgid")]
    {
        let path = make(name, &usual, 0o755);
        chown(&path, user, group).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        refuses(&mut run(&path), why);
        // In a process that has sworn off more rights the loader obeys.
        let mut command = run(&path);
        // SAFETY: a system call.
        let sworn = unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
                Ok(())
            })
        };
        assert!(sworn.status().unwrap().success());
    }
    let capable = make("capable", &usual, 0o755);
    let path = std::ffi::CString::new(capable.to_str().unwrap()).unwrap();
    // `cap_net_bind_service=ep`, as `setcap` writes it.
    let mut capabilities = [0_u8; 20];
    capabilities[..8].copy_from_slice(&[1, 0, 0, 2, 0, 4, 0, 0]);
    // SAFETY: C strings, and bytes of ours.
    let set =
        unsafe { libc::setxattr(path.as_ptr(), c"security.capability".as_ptr(), capabilities.as_ptr().cast(), 20, 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    assert!(run(&capable).status().unwrap().success(), "root has them");
    // Where nobody may come.
    let place = std::env::temp_dir().join(format!("forksafe-preload-reach-{}", std::process::id()));
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, PermissionsExt::from_mode(0o755)).unwrap();
    let [there, library_there, capable_there] = [&*RUN, &library(), &capable].map(|file| {
        let copy = place.join(file.file_name().unwrap());
        fs::copy(file, &copy).unwrap();
        copy
    });
    let path = std::ffi::CString::new(capable_there.to_str().unwrap()).unwrap();
    let as_nobody = |program: &Path| {
        let mut command = Command::new(&there);
        command.arg(program).uid(nobody).gid(nobody);
        command
    };
    assert!(as_nobody(Path::new("/bin/true")).status().unwrap().success() && library_there.exists());
    let report = place.join("report");
    refuses(as_nobody(Path::new("/bin/true")).env("FORKSAFE_REPORT", &report), "Permission denied");
    fs::write(&report, "").unwrap();
    refuses(as_nobody(Path::new("/bin/true")).env("FORKSAFE_REPORT", &report), "Permission denied");
    // SAFETY: C strings, and bytes of ours.
    let set =
        unsafe { libc::setxattr(path.as_ptr(), c"security.capability".as_ptr(), capabilities.as_ptr().cast(), 20, 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    refuses(&mut as_nobody(&capable_there), "has capabilities");
    fs::remove_dir_all(place).unwrap();
}

#[test]
fn the_help_names_the_programs_that_are_kept_and_those_that_lose_the_library() {
    let help = Command::new(&*RUN).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("kept without a word: ssh, rsync, git, git-*, bash, zsh, socat, pg_basebackup.\n"), "{help}");
    assert!(help.contains("su -, runuser -l, sudo and env -i start their command without the library"), "{help}");
}

#[test]
fn a_program_that_is_kept_by_its_name_shares_what_it_shares() {
    let python = fs::canonicalize("/usr/bin/python3").unwrap();
    let name = python.file_name().unwrap().to_str().unwrap();
    assert_eq!(prints(&["--keep", &format!("fd:99, program:{name}")], WHAT_IS_DEAD), "0");
    assert_eq!(prints(&["--keep", "program:python?*"], WHAT_IS_DEAD), "0");
    assert_eq!(prints(&["--keep", "program:python"], WHAT_IS_DEAD), "2", "that is a link, and not the file");
}

#[test]
fn what_is_preloaded_already_stays_and_options_after_the_command_are_its_own() {
    let other = if Path::new("/lib/x86_64-linux-gnu/libm.so.6").exists() { "libm.so.6" } else { "libc.so.6" };
    let output = Command::new(&*RUN)
        .env("LD_PRELOAD", other)
        .args(["sh", "-c", "echo $LD_PRELOAD $0", "--deny"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.trim(), format!("{}:{other} --deny", library().canonicalize().unwrap().display()));
}

/// libuv keeps an epoll, and forks its children by hand.
#[test]
fn node_goes_on() {
    let script = r#"
const net = require("net"), { spawnSync } = require("child_process");
const server = net.createServer(peer => peer.on("data", data => peer.write(data))).listen(0, "127.0.0.1", () => {
  const client = net.connect(server.address().port, "127.0.0.1");
  let n = 0;
  client.on("data", () => {
    if (++n == 20) { console.log("through"); process.exit(0); }
    if (spawnSync("true").status != 0) process.exit(1);
    client.write("x");
  });
  client.write("x");
});
"#;
    let output = Command::new(&*RUN).args(["node", "-e", script]).output();
    match output {
        Ok(output) if output.status.code() != Some(2) => {
            assert_eq!(
                String::from_utf8_lossy(&output.stdout).trim(),
                "through",
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        _ => panic!("node, which is Debian's package nodejs"),
    }
}
