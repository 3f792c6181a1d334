//! A program that has forksafe of its own, under the preloaded library: two copies that know nothing of each other's registry.

use forksafe::fork::net::{Mode, Policy};
use forksafe::fork::{self, Descriptors, Guarded};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;

const INSIDE: &str = "PRELOAD_TEST_INSIDE";

/// Runs the body in a process of its own, once alone and once under the library.
#[track_caller]
fn with_and_without_the_library(test: &str, body: fn(bool)) {
    if let Ok(inside) = std::env::var(INSIDE) {
        return body(inside == "loaded");
    }
    let program = std::env::current_exe().unwrap();
    let library: PathBuf = program.with_file_name("libforksafe_preload.so");
    for inside in ["alone", "loaded"] {
        let mut command = Command::new(&program);
        command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, inside);
        if inside == "loaded" {
            command.env("LD_PRELOAD", &library);
        }
        let output = command.output().unwrap();
        let [said, errors] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success() && said.contains("1 passed"), "{inside}: {said}\n{errors}");
    }
}

/// A connection of this side, and its other end.
fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let made = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (made, listener.accept().unwrap().0)
}

fn is_dead(stream: &TcpStream) -> bool {
    stream.peer_addr().is_err()
}

/// What it says, in a child, of so many things.
fn child<const N: usize>(look: impl FnOnce() -> [bool; N]) -> [bool; N] {
    let mut bits = 0;
    // SAFETY: the child makes system calls and ends.
    match unsafe { libc::fork() } {
        0 => {
            look().iter().enumerate().for_each(|(at, &bit)| bits |= i32::from(bit) << at);
            // SAFETY: ends the process.
            unsafe { libc::_exit(bits) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: `status` is ours.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            assert!(libc::WIFEXITED(status), "{status:#x}");
            std::array::from_fn(|at| libc::WEXITSTATUS(status) >> at & 1 == 1)
        }
    }
}

fn assert_works((made, accepted): &mut (TcpStream, TcpStream)) {
    accepted.write_all(b"x").unwrap();
    made.read_exact(&mut [0]).unwrap();
}

fn assert_loaded(is: bool) {
    assert_eq!(std::fs::read_to_string("/proc/self/maps").unwrap().contains("libforksafe_preload.so"), is);
}

#[test]
fn a_policy_of_the_programs_own_is_the_one_that_holds() {
    with_and_without_the_library("a_policy_of_the_programs_own_is_the_one_that_holds", |is_loaded| {
        assert_loaded(is_loaded);
        let (mut kept, mut by_number, mut other) = (connected(), connected(), connected());
        let dead = || child(|| [&kept, &by_number, &other].map(|one| is_dead(&one.0)));
        assert_eq!(dead(), [is_loaded; 3], "it has said nothing yet");
        Policy::tcp().keep_descriptor(std::os::fd::AsRawFd::as_raw_fd(&by_number.0)).set().unwrap();
        let guard = fork::keep(&kept.0).unwrap();
        assert_eq!(dead(), [false, false, true]);
        drop(guard);
        [&mut kept, &mut by_number, &mut other].into_iter().for_each(assert_works);
    });
}

#[test]
fn a_program_that_only_wants_to_be_told_is_only_told() {
    with_and_without_the_library("a_program_that_only_wants_to_be_told_is_only_told", |is_loaded| {
        assert_loaded(is_loaded);
        let mut one = connected();
        Policy::tcp().mode(Mode::Report).set().unwrap();
        assert_eq!(child(|| [is_dead(&one.0), fork::inherited().total == 1]), [false, true]);
        assert_works(&mut one);
    });
}

/// The library takes them first, and the registry finds that they are gone.
#[test]
fn what_a_program_without_a_policy_has_registered_is_refused_in_a_child_as_ever() {
    with_and_without_the_library(
        "what_a_program_without_a_policy_has_registered_is_refused_in_a_child_as_ever",
        |is| {
            assert_loaded(is);
            let (made, mut accepted) = connected();
            let mut guarded = Guarded::new(made, Descriptors::of).unwrap();
            let mut other = connected();
            for _ in 0..3 {
                let refused = child(|| [Guarded::try_ref(&guarded).is_err(), is_dead(&other.0)]);
                assert_eq!(refused, [true, is]);
            }
            accepted.write_all(b"x").unwrap();
            Guarded::try_mut(&mut guarded).unwrap().read_exact(&mut [0]).unwrap();
            assert_works(&mut other);
        },
    );
}
