//! The cluster, acted on from outside: its master is a process of its own, and a client counts what is answered.

use crate::kit::{self, has_ended, is_alive, kill};
use forksafe::Deadline;
use forksafe::cluster::{Builder, Command, Error, Worker};
use forksafe::sizing::{Capacity, Limit, Report};
use forksafe::testing::{self, Child, Witness, clean_process, patience, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// A folder for a test, with a socket in it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("forksafe-cluster-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Says who he is to each client, when the client has said a line; after `slow` a little later, after `hang` never.
fn serve(worker: &Worker) -> io::Result<()> {
    worker.run_threads(|thread| {
        while let Some(client) = thread.accept() {
            let mut client = BufReader::new(client);
            let mut line = String::new();
            let _ = client.read_line(&mut line);
            match line.trim() {
                "hang" => loop {
                    thread::park();
                },
                "slow" => thread::sleep(Duration::from_millis(300)),
                "very slow" => thread::sleep(Duration::from_secs(2)),
                "six seconds" => {
                    let until = Instant::now() + Duration::from_secs(6);
                    let _ = client.get_mut().write_all(b" "); // From now on.
                    thread::sleep(until.saturating_duration_since(Instant::now()));
                }
                "panic" => std::panic::resume_unwind(Box::new("on purpose")),
                _ => {}
            }
            let _ = writeln!(client.get_mut(), "{} {}", std::process::id(), worker.index());
        }
    });
    Ok(())
}

/// What a worker says of itself: its pid and its index.
type Who = (u32, usize);

fn call(socket: &Path, what: &str) -> io::Result<Who> {
    let mut client = UnixStream::connect(socket)?;
    client.set_read_timeout(Some(patience()))?;
    writeln!(client, "{what}")?;
    let mut text = String::new();
    client.read_to_string(&mut text)?;
    let mut words = text.split_whitespace().map(str::parse::<u64>);
    match (words.next(), words.next()) {
        (Some(Ok(pid)), Some(Ok(index))) => Ok((pid as u32, index as usize)),
        _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("answered {text:?}"))),
    }
}

fn ask(socket: &Path) -> Who {
    call(socket, "hello").expect("an answer")
}

/// Those who answer, as soon as there are so many.
fn workers(socket: &Path, number: usize) -> BTreeSet<Who> {
    let mut all = BTreeSet::new();
    wait_until("all workers answer", || {
        all.extend(call(socket, "hello"));
        let living: BTreeSet<Who> = all.iter().copied().filter(|(pid, _)| is_alive(*pid)).collect();
        all = living;
        all.len() >= number
    });
    all
}

/// How a master came back from [`Builder::run`].
fn master(settings: Builder, body: impl Fn(&Worker) -> io::Result<()>) -> String {
    match settings.run(body) {
        Ok(()) => "ended".to_owned(),
        Err(error) => error.to_string(),
    }
}

fn start(folder: &Folder, workers: usize, change: impl FnOnce(Builder) -> Builder) -> Child<String> {
    let socket = folder.socket();
    let child = testing::child(move || {
        let settings = Builder::default().workers(workers).threads(2).listen_unix(socket);
        master(change(settings), serve)
    });
    let socket = folder.socket();
    wait_until("somebody answers", || call(&socket, "hello").is_ok());
    child
}

fn end(master: Child<String>) {
    kill(master.pid(), libc::SIGTERM);
    assert_eq!(master.join(), "ended");
}

#[test]
fn workers_answer_and_end_with_their_master() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 2, |settings| settings);
        let all = workers(&folder.socket(), 2);
        assert_eq!(all.iter().map(|(_, index)| *index).collect::<BTreeSet<_>>(), BTreeSet::from([0, 1]));
        end(master);
        assert!(all.iter().all(|(pid, _)| has_ended(*pid)), "no orphans");
        assert!(UnixStream::connect(folder.socket()).is_err(), "nobody listens");
    });
}

#[test]
fn a_socket_that_a_dead_server_left_is_replaced_and_a_living_ones_is_not() {
    clean_process(|| {
        let folder = Folder::new();
        let first = start(&folder, 1, |settings| settings);
        let run = |path| master(Builder::default().listen_unix(path), serve);
        assert_eq!(
            run(folder.socket()),
            format!("cannot listen on {}: somebody listens there already", folder.socket().display())
        );
        end(first);
        assert!(folder.socket().exists());
        end(start(&folder, 1, |settings| settings));
        fs::write(folder.file("no socket"), "").unwrap();
        assert!(run(folder.file("no socket")).starts_with("cannot listen on "));
        assert!(folder.file("no socket").exists());
    });
}

#[test]
fn a_worker_that_is_killed_is_replaced_by_one_of_its_index() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 2, |settings| settings);
        let before = workers(&folder.socket(), 2);
        let (pid, index) = *before.first().unwrap();
        kill(pid, libc::SIGKILL);
        wait_until("its like", || {
            let now = workers(&folder.socket(), 2);
            now.iter().any(|who| who.1 == index && who.0 != pid)
        });
        end(master);
    });
}

/// Its process is alive, and its other thread answers: a thread that pings would see nothing.
#[test]
fn a_worker_with_a_wedged_thread_is_found_and_replaced() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 1, |settings| {
            settings.worker_timeout(Duration::from_secs(1)).worker_shutdown_timeout(Duration::from_secs(1))
        });
        let (before, _) = ask(&folder.socket());
        let socket = folder.socket();
        let hangs = thread::spawn(move || call(&socket, "hang").is_err());
        wait_until("another takes its place", || call(&folder.socket(), "hello").is_ok_and(|(pid, _)| pid != before));
        assert!(hangs.join().unwrap(), "its client is hung up on");
        end(master);
    });
}

/// What its other threads are about is finished, though nobody is about to end it otherwise.
#[test]
fn a_thread_that_panics_costs_its_worker_and_no_other_request() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 1, |settings| settings);
        let (before, _) = ask(&folder.socket());
        let mut slow = UnixStream::connect(folder.socket()).unwrap();
        writeln!(slow, "very slow").unwrap();
        wait_until("it has been accepted", || queue_is_empty(&folder.socket()));
        assert!(call(&folder.socket(), "panic").is_err());
        wait_until("another takes its place", || call(&folder.socket(), "hello").is_ok_and(|(pid, _)| pid != before));
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&before.to_string()), "{answer:?}");
        end(master);
    });
}

/// And one that has nothing to do is not wedged.
#[test]
fn a_worker_without_clients_is_left_alone() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 1, |settings| settings.worker_timeout(Duration::from_millis(300)));
        let before = ask(&folder.socket());
        // As long as several rounds of the master's.
        let until = Instant::now() + Duration::from_millis(1500);
        while Instant::now() < until {
            assert_eq!(ask(&folder.socket()).0, before.0);
            thread::sleep(Duration::from_millis(500));
        }
        end(master);
    });
}

#[test]
fn who_was_let_in_is_answered_at_the_end() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 1, |settings| settings);
        // More than it has threads: some are in the kernel's queue.
        let mut clients: Vec<UnixStream> = (0..8).map(|_| UnixStream::connect(folder.socket()).unwrap()).collect();
        clients.iter_mut().for_each(|client| writeln!(client, "slow").unwrap());
        kill(master.pid(), libc::SIGTERM);
        for client in &mut clients {
            client.set_read_timeout(Some(patience())).unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert!(!text.is_empty(), "an answer");
        }
        assert_eq!(master.join(), "ended");
    });
}

#[test]
fn who_does_not_end_in_time_is_killed() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 1, |settings| settings.worker_shutdown_timeout(Duration::from_millis(300)));
        let (worker, _) = ask(&folder.socket());
        let socket = folder.socket();
        thread::spawn(move || call(&socket, "hang"));
        // One of its two threads is about that for ever.
        wait_until("it has been accepted", || queue_is_empty(&folder.socket()));
        end(master);
        assert!(has_ended(worker));
    });
}

/// The other thread answers only when what came before it has been accepted.
fn queue_is_empty(socket: &Path) -> bool {
    call(socket, "hello").is_ok()
}

#[test]
fn a_crash_loop_ends_with_an_error_that_says_how() {
    clean_process(|| {
        let folder = Folder::new();
        let socket = folder.socket();
        let child = testing::child(move || {
            let hook = |_: &Worker| Err::<(), _>("the database is not there");
            master(Builder::default().workers(2).listen_unix(socket).on_worker_boot(hook), serve)
        });
        let error = child.deadline(patience() * 2).join();
        assert!(
            error.ends_with("workers in a row ended before they served, the last one with exit status: 1"),
            "{error}"
        );
    });
}

#[test]
fn workers_come_and_go_as_signals_say() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 1, |settings| settings);
        workers(&folder.socket(), 1);
        kill(master.pid(), libc::SIGTTIN);
        let two = workers(&folder.socket(), 2);
        kill(master.pid(), libc::SIGTTOU);
        let second = two.iter().find(|who| who.1 == 1).unwrap().0;
        wait_until("the second is gone", || has_ended(second));
        // Never below one.
        kill(master.pid(), libc::SIGTTOU);
        kill(master.pid(), libc::SIGHUP);
        assert_eq!(ask(&folder.socket()).1, 0);
        end(master);
    });
}

/// Calls all the time, and wants an answer each time.
fn under_load(socket: &Path, act: impl FnOnce()) {
    let (stop, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let _stop = kit::StopOnDrop(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    ask(socket);
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        act();
        wait_until("somebody was answered", || answered.load(SeqCst) > 0);
    });
}

#[test]
fn a_phased_restart_loses_no_request() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 3, |settings| settings);
        let before = workers(&folder.socket(), 3);
        under_load(&folder.socket(), || {
            kill(master.pid(), libc::SIGUSR1);
            wait_until("all are others", || before.iter().all(|(pid, _)| has_ended(*pid)));
        });
        let after = workers(&folder.socket(), 3);
        assert!(before.is_disjoint(&after) && after.iter().map(|who| who.1).eq(0..3), "{before:?} {after:?}");
        end(master);
    });
}

/// The queue that all workers share is never empty: whoever drained it would never end.
#[test]
fn a_phased_restart_under_more_load_than_there_are_threads_comes_to_an_end() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 2, |settings| settings);
        let before = workers(&folder.socket(), 2);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = kit::StopOnDrop(&stop);
            for _ in 0..16 {
                scope.spawn(|| {
                    while !stop.load(SeqCst) {
                        call(&folder.socket(), "slow").expect("an answer");
                    }
                });
            }
            kill(master.pid(), libc::SIGUSR1);
            wait_until("all are others", || before.iter().all(|(pid, _)| has_ended(*pid)));
        });
        end(master);
    });
}

/// Each of so many fails once: that is one failure and not as many.
#[test]
fn workers_that_fail_together_are_tried_again() {
    clean_process(|| {
        let folder = Folder::new();
        let (tried, begun) = (folder.file("tried"), Instant::now());
        let hook = move |_: &Worker| {
            if begun.elapsed() < Duration::from_millis(100) && !tried.exists() {
                return Err("the database is not there yet");
            }
            let _ = fs::write(&tried, "");
            Ok(())
        };
        let master = start(&folder, 16, |settings| settings.on_worker_boot(hook));
        workers(&folder.socket(), 16);
        end(master);
    });
}

#[test]
fn a_restart_whose_first_worker_does_not_serve_is_given_up() {
    clean_process(|| {
        let folder = Folder::new();
        let (broken, tried) = (folder.file("broken"), folder.file("tried"));
        let (is_broken, was_tried) = (broken.clone(), tried.clone());
        let master = start(&folder, 2, |settings| {
            settings.on_worker_boot(move |_| {
                if is_broken.exists() {
                    let file = fs::OpenOptions::new().create(true).append(true).open(&was_tried);
                    file.unwrap().write_all(b"x").unwrap();
                    return Err("broken");
                }
                Ok(())
            })
        });
        let before = workers(&folder.socket(), 2);
        fs::write(&broken, "").unwrap();
        under_load(&folder.socket(), || {
            kill(master.pid(), libc::SIGUSR1);
            wait_until("it was tried", || tried.exists());
            // Ten times as long as it would wait before it tries again.
            thread::sleep(Duration::from_secs(1));
        });
        assert_eq!(fs::read(&tried).unwrap(), b"x", "once");
        fs::remove_file(&broken).unwrap();
        assert_eq!(workers(&folder.socket(), 2), before, "the old ones stay");
        // And the next one goes through.
        wait_until("all are others", || {
            kill(master.pid(), libc::SIGUSR1);
            before.iter().all(|(pid, _)| has_ended(*pid))
        });
        end(master);
    });
}

fn control(folder: &Folder, what: &str, wait: bool) -> Result<String, String> {
    let command: Command = what.parse().unwrap();
    command.send(folder.file("control"), wait, Deadline::after(patience())).map_err(|error| error.to_string())
}

#[test]
fn who_waits_for_a_restart_that_is_given_up_is_told() {
    clean_process(|| {
        let folder = Folder::new();
        let broken = folder.file("broken");
        let master = start(&folder, 2, |settings| {
            settings
                .control_socket(folder.file("control"))
                .on_worker_boot(move |_| if broken.exists() { Err("broken") } else { Ok(()) })
        });
        let before = workers(&folder.socket(), 2);
        fs::write(folder.file("broken"), "").unwrap();
        let told = control(&folder, "restart", true).unwrap_err();
        assert_eq!(told, "restart 1 was given up: a replacement did not come to serve");
        assert_eq!(workers(&folder.socket(), 2), before);
        fs::remove_file(folder.file("broken")).unwrap();
        assert_eq!(control(&folder, "restart", true).unwrap(), "restart 2 is through: serving with 2 workers");
        end(master);
    });
}

#[test]
fn no_more_workers_are_had_than_have_connections() {
    clean_process(|| {
        let folder = Folder::new();
        let limit = |connections| Capacity::of([Limit::new("CONNECTION LIMIT of role app", connections)]);
        let report = |settings: &Builder, connections| {
            Report::new(settings.plan().pool("db", 5)).server("db", limit(connections))
        };
        let master = start(&folder, 2, |settings| {
            let report = report(&settings, 20);
            settings.sized(&report, true).control_socket(folder.file("control"))
        });
        assert_eq!(control(&folder, "scale 3", true).unwrap(), "serving with 3 workers");
        let told = control(&folder, "scale 4", true).unwrap_err();
        let why = "db would need 25 connections, and has 20 (CONNECTION LIMIT of role app)";
        assert_eq!(told, format!("there is room for 3 workers at most: {why}"));
        kill(master.pid(), libc::SIGTTIN);
        assert_eq!(control(&folder, "scale 3", true).unwrap(), "serving with 3 workers");
        assert_eq!(workers(&folder.socket(), 3).len(), 3);
        end(master);
        let settings = Builder::default().workers(2).threads(5);
        let report = report(&settings, 14);
        let refused = settings.sized(&report, true).run(serve).unwrap_err().to_string();
        assert!(refused.contains("2 workers where 1 fits"), "{refused}");
    });
}

#[test]
fn workers_come_and_go_in_the_middle_of_a_restart() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 3, |settings| settings.control_socket(folder.file("control")));
        let before = workers(&folder.socket(), 3);
        under_load(&folder.socket(), || {
            for signal in [libc::SIGUSR1, libc::SIGTTIN, libc::SIGUSR1, libc::SIGTTOU, libc::SIGTTOU, libc::SIGUSR1] {
                kill(master.pid(), signal);
                thread::sleep(Duration::from_millis(50));
            }
            control(&folder, "restart", true).unwrap();
        });
        assert!(before.iter().all(|(pid, _)| has_ended(*pid)));
        assert_eq!(control(&folder, "scale 2", true).unwrap(), "serving with 2 workers");
        end(master);
    });
}

/// Nobody else would wait for the workers, or end them.
#[test]
fn a_hook_that_panics_in_the_master_leaves_no_orphans() {
    clean_process(|| {
        let folder = Folder::new();
        let pids = folder.file("pids");
        let child = testing::child({
            let (pids, socket) = (pids.clone(), folder.socket());
            move || {
                let settings = Builder::default().workers(2).listen_unix(socket).after_worker_fork(move |_, pid| {
                    let mut file = fs::OpenOptions::new().create(true).append(true).open(&pids).unwrap();
                    writeln!(file, "{pid}").unwrap();
                });
                let settings = settings.after_booted(|| panic!("on purpose"));
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| settings.run(serve))).is_err()
            }
        });
        assert!(child.join(), "it panics on");
        let pids = fs::read_to_string(pids).unwrap();
        assert_eq!(pids.lines().count(), 2);
        assert!(pids.lines().all(|pid| has_ended(pid.parse().unwrap())));
    });
}

/// The master's child holds both ends of the pipe that says that the master lives, and the worker's child one.
#[test]
fn a_worker_sees_the_end_of_a_master_that_has_other_children() {
    clean_process(|| {
        let folder = Folder::new();
        let fork_one_that_stays = || {
            // SAFETY: the child makes system calls only. It is killed with the test.
            if unsafe { libc::fork() } == 0 {
                loop {
                    // SAFETY: takes nothing.
                    unsafe { libc::pause() };
                }
            }
        };
        let master = start(&folder, 1, |settings| {
            settings.before_fork(fork_one_that_stays).on_worker_boot(move |_| {
                fork_one_that_stays();
                io::Result::Ok(())
            })
        });
        let (pid, _) = ask(&folder.socket());
        kill(master.pid(), libc::SIGKILL);
        wait_until("it has left", || has_ended(pid));
        master.leave();
    });
}

#[test]
fn a_master_that_cannot_fork_says_so_and_goes_on() {
    clean_process(|| {
        let folder = Folder::new();
        let failed = folder.file("failed");
        let master = start(&folder, 1, |settings| {
            // Only who is not root is held to it.
            let limit = move |change: fn(&mut libc::rlimit)| {
                let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                // SAFETY: a limit of ours.
                unsafe {
                    assert_eq!(libc::getrlimit(libc::RLIMIT_NPROC, &raw mut limit), 0);
                    change(&mut limit);
                    assert_eq!(libc::setrlimit(libc::RLIMIT_NPROC, &raw const limit), 0);
                }
            };
            settings.before_worker_fork(move |index| {
                if index == 1 && !failed.exists() {
                    fs::write(&failed, "").unwrap();
                    limit(|limit| limit.rlim_cur = 0);
                    // SAFETY: takes numbers. This process is the test's own.
                    assert_eq!(unsafe { libc::setresuid(65534, 65534, 0) }, 0);
                } else if index == 1 {
                    // SAFETY: as above.
                    assert_eq!(unsafe { libc::setresuid(0, 0, 0) }, 0);
                    limit(|limit| limit.rlim_cur = limit.rlim_max);
                }
            })
        });
        let before = ask(&folder.socket());
        kill(master.pid(), libc::SIGTTIN);
        let all = workers(&folder.socket(), 2);
        assert!(all.contains(&before) && folder.file("failed").exists());
        end(master);
    });
}

#[test]
fn workers_leave_when_the_master_is_killed_and_answer_first() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 2, |settings| settings);
        let all = workers(&folder.socket(), 2);
        let mut slow = UnixStream::connect(folder.socket()).unwrap();
        writeln!(slow, "slow").unwrap();
        wait_until("it has been accepted", || queue_is_empty(&folder.socket()));
        kill(master.pid(), libc::SIGKILL);
        let mut text = String::new();
        slow.read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        wait_until("all have left", || all.iter().all(|(pid, _)| has_ended(*pid)));
        master.leave();
    });
}

/// Nor does one whose machine was asleep, in the middle of a request: less than its time is left to that after the stop, and
/// more than that was over when it came.
#[test]
fn a_master_that_was_stopped_kills_nobody() {
    clean_process(|| {
        let folder = Folder::new();
        let master = start(&folder, 1, |settings| {
            settings.worker_timeout(Duration::from_secs(3)).worker_shutdown_timeout(Duration::from_millis(1))
        });
        let before = ask(&folder.socket());
        let socket = folder.socket();
        let mut slow = UnixStream::connect(&socket).unwrap();
        writeln!(slow, "six seconds").unwrap();
        slow.read_exact(&mut [0]).unwrap();
        kill(master.pid(), libc::SIGSTOP);
        kill(before.0, libc::SIGSTOP);
        thread::sleep(Duration::from_secs(4));
        kill(before.0, libc::SIGCONT);
        kill(master.pid(), libc::SIGCONT);
        for _ in 0..20 {
            assert_eq!(ask(&folder.socket()).0, before.0);
            thread::sleep(Duration::from_millis(50));
        }
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with(&before.0.to_string()), "{answer:?}");
        end(master);
    });
}

#[test]
fn hooks_come_in_their_order() {
    clean_process(|| {
        let folder = Folder::new();
        let diary = folder.file("diary");
        let note = |what: &'static str| {
            let diary = diary.clone();
            move || {
                let file = fs::OpenOptions::new().create(true).append(true).open(&diary);
                writeln!(file.unwrap(), "{what}").unwrap();
            }
        };
        let notes = [
            note("before_fork"),
            note("before_worker_fork"),
            note("after_worker_fork"),
            note("on_worker_boot"),
            note("on_worker_shutdown"),
            note("after_worker_shutdown"),
            note("after_booted"),
            note("on_hup"),
        ];
        let [before_fork, before_worker, after_worker, boot, shutdown, after_shutdown, booted, hup] = notes;
        let master = start(&folder, 1, |settings| {
            settings
                .before_fork(before_fork)
                .before_worker_fork(move |_| before_worker())
                .after_worker_fork(move |_, _| after_worker())
                .on_worker_boot(move |_| {
                    boot();
                    io::Result::Ok(())
                })
                .on_worker_shutdown(move |_| {
                    shutdown();
                    io::Result::Ok(())
                })
                .after_worker_shutdown(move |_, _| after_shutdown())
                .after_booted(booted)
                .on_hup(hup)
        });
        let read = || fs::read_to_string(&diary).unwrap();
        wait_until("it has booted", || read().contains("after_booted"));
        kill(master.pid(), libc::SIGHUP);
        wait_until("it has heard", || read().contains("on_hup"));
        end(master);
        let diary = read();
        let mut lines: Vec<&str> = diary.lines().collect();
        // Master and worker go on at the same time.
        let boot = lines.iter().position(|line| *line == "on_worker_boot").unwrap();
        lines.remove(boot);
        assert!(boot >= 2);
        let expected = ["before_fork", "before_worker_fork", "after_worker_fork", "after_booted", "on_hup"];
        assert_eq!(lines[..5], expected);
        assert_eq!(lines[5..], ["on_worker_shutdown", "after_worker_shutdown"]);
    });
}

#[test]
fn a_pool_of_before_needs_no_hook() {
    clean_process(|| {
        let folder = Folder::new();
        let witness = Witness::start();
        let pool = kit::tested().build(witness.manager()).unwrap();
        let socket = folder.socket();
        let child = testing::child(|| {
            kit::ask(&pool);
            let settings = Builder::default().workers(3).threads(2).listen_unix(socket);
            let ended = settings.run(|worker| {
                worker.run_threads(|thread| {
                    while let Some(client) = thread.accept() {
                        let mut client = BufReader::new(client);
                        let _ = client.read_line(&mut String::new());
                        let number = kit::ask(&pool);
                        let _ = writeln!(client.get_mut(), "{} {number}", std::process::id());
                    }
                });
                io::Result::Ok(())
            });
            kit::ask(&pool);
            ended.is_ok()
        });
        let socket = folder.socket();
        wait_until("somebody answers", || call(&socket, "hello").is_ok());
        let mut by_process = std::collections::BTreeMap::<u32, BTreeSet<usize>>::new();
        wait_until("all answer", || {
            let (pid, connection) = ask(&socket);
            by_process.entry(pid).or_default().insert(connection);
            by_process.len() == 3
        });
        let all: Vec<usize> = by_process.values().flatten().copied().collect();
        assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len(), "each has its own: {by_process:?}");
        kill(child.pid(), libc::SIGTERM);
        assert!(child.join());
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

#[test]
fn a_master_with_threads_says_so_or_refuses() {
    clean_process(|| {
        let (tell, told) = std::sync::mpsc::channel::<()>();
        let (lives, alive) = std::sync::mpsc::channel();
        let body = move || {
            lives.send(()).unwrap(); // It has its name.
            told.recv()
        };
        thread::Builder::new().name("of the library".into()).spawn(body).unwrap();
        alive.recv().unwrap();
        let error = Builder::default().strict(true).run(serve).unwrap_err();
        assert!(matches!(&error, Error::Threads(names) if names.contains("of the library")), "{error}");
        drop(tell);
    });
}

#[test]
fn settings_come_from_the_environment_and_must_make_sense() {
    clean_process(|| {
        let set = |pairs: &[(&str, &str)]| {
            for name in ["WEB_CONCURRENCY", "RAILS_MAX_THREADS", "MAX_THREADS", "PUMA_MAX_THREADS", "PORT"] {
                // SAFETY: this process is the test's own, and has no thread that looks.
                unsafe { std::env::remove_var(name) };
            }
            for (name, value) in pairs {
                // SAFETY: as above.
                unsafe { std::env::set_var(name, value) };
            }
            Builder::from_env().map(|settings| format!("{settings:?}")).map_err(|error| error.to_string())
        };
        assert!(set(&[]).unwrap().contains("workers: 2, threads: 5, binds: []"));
        let some = set(&[("WEB_CONCURRENCY", "7"), ("MAX_THREADS", "3"), ("PORT", "8080")]).unwrap();
        assert!(some.contains("workers: 7, threads: 3, binds: [Tcp(0.0.0.0:8080)]"), "{some}");
        let both = set(&[("RAILS_MAX_THREADS", "4"), ("MAX_THREADS", "3")]).unwrap();
        assert!(both.contains("threads: 4"), "{both}");
        assert!(!set(&[("WEB_CONCURRENCY", "auto")]).unwrap().contains("workers: 0"));
        for wrong in [("WEB_CONCURRENCY", "0"), ("MAX_THREADS", "many"), ("PORT", "70000"), ("WEB_CONCURRENCY", "-1")] {
            let error = set(&[wrong]).unwrap_err();
            assert!(
                error.starts_with(&format!("wrong cluster setting: {}=\"{}\" is not ", wrong.0, wrong.1)),
                "{error}"
            );
        }
        assert!(Builder::default().workers(0).run(serve).unwrap_err().to_string().ends_with("workers is 0"));
        assert!(Builder::default().threads(0).run(serve).unwrap_err().to_string().ends_with("threads is 0"));
    });
}
