//! Whether the library gets into a program. The loader puts it there; so not where there is none (a program that is linked statically), and
//! not where it takes no orders from whoever starts it (a program with rights that he has not).

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::ptr;

/// Of scripts whose interpreters are scripts. The kernel follows no more.
const MOST: usize = 5;

/// The file that is executed, looked for as `exec` does. `None` if it will not find it either.
pub(crate) fn find(program: &OsStr) -> Option<PathBuf> {
    if program.as_bytes().contains(&b'/') {
        return Some(program.into()).filter(|path: &PathBuf| path.is_file());
    }
    let folders = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    std::env::split_paths(&folders).map(|folder| folder.join(program)).find(|path| is_executable(path))
}

/// What it says is why the library does not get there. A file that may not be read passes: nothing can be known of it.
pub(crate) fn check(program: &Path, library: &Path) -> Result<(), String> {
    let mut program = program.to_owned();
    for _ in 0..MOST {
        match look(&program) {
            Some(Is::Script(next)) => program = next,
            Some(Is::Program(elf)) => return check_program(&program, &elf, library),
            None => break,
        }
    }
    Ok(())
}

enum Is {
    /// And what runs it.
    Script(PathBuf),
    Program(Elf),
}

fn check_program(program: &Path, elf: &Elf, library: &Path) -> Result<(), String> {
    let name = program.display();
    if let Some(Is::Program(ours)) = look(library)
        && ours.machine != elf.machine
    {
        return Err(format!("{name} is for another kind of machine than {}", library.display()));
    }
    let loader = elf.loader.as_deref().or_else(|| is_loader(program).then_some(program));
    match loader {
        None => {
            return Err(format!(
                "{name} is linked statically, so nothing can be loaded into it; \
                 if it only starts another (gosu, su-exec), forksafe-run goes after it: `gosu www-data forksafe-run puma`"
            ));
        }
        Some(loader) if is_of_another_libc(loader) => {
            return Err(format!("{name} is for another C library than {}", library.display()));
        }
        Some(_) => {}
    }
    match more_rights(program) {
        Ok(Some(why)) => Err(format!("{name} {why}, so the loader ignores LD_PRELOAD in it")),
        Ok(None) | Err(_) => Ok(()),
    }
}

/// `/lib64/ld-linux-x86-64.so.2 PROGRAM`.
fn is_loader(program: &Path) -> bool {
    is_named(program, &["ld-", "ld.so"])
}

/// The loader is a part of it, and each has its own name.
fn is_of_another_libc(loader: &Path) -> bool {
    is_named(loader, if cfg!(target_env = "musl") { &["ld-linux", "ld64.so"] } else { &["ld-musl-"] })
}

fn is_named(path: &Path, begins: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().as_bytes();
    begins.iter().any(|begin| name.starts_with(begin.as_bytes()))
}

/// Why it gets rights that this process has not, if it does.
fn more_rights(program: &Path) -> io::Result<Option<&'static str>> {
    let file = fs::metadata(program)?;
    let has = |bits| file.mode() & bits == bits;
    // SAFETY: take nothing, and cannot fail.
    let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
    let why = if has(libc::S_ISUID) && file.uid() != user {
        "is setuid"
    } else if has(libc::S_ISGID | libc::S_IXGRP) && file.gid() != group {
        "is setgid"
    } else if user != 0 && has_capabilities(program)? {
        "has capabilities"
    } else {
        return Ok(None);
    };
    Ok(Some(why).filter(|_| gives_rights(program)))
}

fn has_capabilities(program: &Path) -> io::Result<bool> {
    let path = CString::new(program.as_os_str().as_bytes())?;
    // SAFETY: C strings; nothing is written where there is no room.
    Ok(unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), ptr::null_mut(), 0) > 0 })
}

/// Not in a process that has sworn off more rights, and not on a disk that is not trusted with them.
fn gives_rights(program: &Path) -> bool {
    let Ok(path) = CString::new(program.as_os_str().as_bytes()) else { return true };
    // SAFETY: numbers, a C string, and memory of ours, which is plain numbers.
    unsafe {
        let mut disk = std::mem::zeroed::<libc::statvfs>();
        libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1
            && (libc::statvfs(path.as_ptr(), &raw mut disk) != 0 || disk.f_flag & libc::ST_NOSUID == 0)
    }
}

fn is_executable(path: &Path) -> bool {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a C string.
    path.is_file() && unsafe { libc::access(name.as_ptr(), libc::X_OK) == 0 }
}

/// `None` if it cannot be told: then the kernel says what is wrong with it, or a shell takes it for a script.
fn look(path: &Path) -> Option<Is> {
    let file = File::open(path).ok()?;
    let mut head = [0; 256];
    let read = file.read_at(&mut head, 0).ok()?;
    let head = head.get(..read)?;
    match head.strip_prefix(b"#!") {
        Some(line) => interpreter(line).map(Is::Script),
        None => Elf::read(&file, head).map(Is::Program),
    }
}

/// `/bin/sh -e`; or `/usr/bin/env python3`, where it is not `env` that matters.
fn interpreter(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).map(OsStr::from_bytes);
    let interpreter = Path::new(words.next()?);
    let is_env = interpreter.file_name().is_some_and(|name| name == "env");
    let is_name = |word: &&OsStr| !word.as_bytes().starts_with(b"-") && !word.as_bytes().contains(&b'=');
    match words.find(is_name).filter(|_| is_env) {
        Some(program) => find(program),
        None => Some(interpreter.to_owned()),
    }
}

/// The head of a program or a library, in the kernel's words `struct elfhdr`.
struct Elf {
    /// The size of its words, their order, and its kind.
    machine: ([u8; 2], [u8; 2]),
    /// What it names.
    loader: Option<PathBuf>,
}

impl Elf {
    fn read(file: &File, head: &[u8]) -> Option<Self> {
        /// Of an entry of the program header that names the loader.
        const PT_INTERP: u32 = 3;
        const WIDE: bool = cfg!(target_pointer_width = "64");
        if !head.starts_with(b"\x7fELF") {
            return None;
        }
        let machine = (bytes(head, 4)?, bytes(head, 18)?);
        if machine.0 != [if WIDE { 2 } else { 1 }, if cfg!(target_endian = "little") { 1 } else { 2 }] {
            // That is reason enough.
            return Some(Self { machine, loader: None });
        }
        let (table, [size, count]) = if WIDE {
            (u64::from_ne_bytes(bytes(head, 32)?), [54, 56])
        } else {
            (u32::from_ne_bytes(bytes(head, 28)?).into(), [42, 44])
        };
        let [size, count] = [u16::from_ne_bytes(bytes(head, size)?), u16::from_ne_bytes(bytes(head, count)?)];
        let word = |at| {
            let mut word = [0; size_of::<usize>()];
            file.read_exact_at(&mut word, at).ok().map(|()| usize::from_ne_bytes(word))
        };
        let mut loader = None;
        for entry in 0..count {
            let entry = table + u64::from(size) * u64::from(entry);
            let mut kind = [0; 4];
            file.read_exact_at(&mut kind, entry).ok()?;
            if u32::from_ne_bytes(kind) == PT_INTERP {
                let [at, length] = if WIDE { [8, 32] } else { [4, 16] };
                let mut path = vec![0; word(entry + length)?.min(libc::PATH_MAX as usize)];
                file.read_exact_at(&mut path, word(entry + at)? as u64).ok()?;
                let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
                loader = Some(OsStr::from_bytes(path).into());
            }
        }
        Some(Self { machine, loader })
    }
}

fn bytes<const N: usize>(head: &[u8], at: usize) -> Option<[u8; N]> {
    head.get(at..)?.first_chunk().copied()
}
