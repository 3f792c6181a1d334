//! The witness: what it must see, shown to it on purpose.

use crate::kit;
use forksafe::Pool;
use forksafe::testing::{self, Address, Steps, Witness, WitnessClient, clean_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

fn both() -> [Witness; 2] {
    [Witness::start(), Witness::start_unix()]
}

#[test]
fn a_pool_over_a_unix_socket_is_as_safe_as_one_over_tcp() {
    clean_process(|| {
        let witness = Witness::start_unix();
        let pool = Pool::builder().max_size(2).build(witness.manager()).unwrap();
        let here = kit::ask(&pool);
        for way in kit::ways() {
            let there = way.child(|| kit::ask(&pool)).join();
            assert_ne!(here, there, "{way}");
            assert_eq!(kit::ask(&pool), here, "{way}");
        }
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}

#[test]
fn two_processes_on_one_connection_are_named_with_what_each_wrote() {
    clean_process(|| {
        for witness in both() {
            let mut client = Pool::builder().max_size(1).build(witness.manager()).unwrap().get().unwrap();
            let connection = client.ask("before").unwrap().connection;
            testing::unsafe_share();
            let pid = testing::child(|| {
                client.ask("in the child").unwrap();
                std::process::id()
            })
            .join();
            let [violation] = &witness.violations()[..] else { panic!("{:?}", witness.violations()) };
            assert!(violation.starts_with(&format!("connection {connection} carried the words of 2 processes")));
            let seen = &witness.connections()[&connection];
            assert_eq!(seen.pids(), [std::process::id(), pid].into());
            let child = seen.writers.iter().find(|writer| writer.starts_with(&format!("{pid}."))).unwrap();
            assert_eq!(seen.bytes[child], format!("I am {child}, 12 bytes: in the child.\n").len());
        }
    });
}

#[test]
fn a_goodbye_from_a_stranger_is_told() {
    clean_process(|| {
        for witness in both() {
            let Address::Unix(path) = witness.place() else { continue };
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(WitnessClient::frame("hello").as_bytes()).unwrap();
            witness.wait_until("the hello is seen", |seen| seen.values().any(|seen| seen.lines == 1));
            let (owner, began) = (std::process::id(), Instant::now());
            let stranger = testing::child(|| {
                stream.write_all(WitnessClient::frame("goodbye").as_bytes()).unwrap();
                std::process::id()
            })
            .join();
            drop(stream);
            witness.wait_until("its end is seen", |seen| seen[&1].ended);
            let violations = witness.violations();
            assert!(violations[1].starts_with(&format!("process {stranger}.")), "{violations:?}");
            assert!(
                violations[1].contains(&format!(" said goodbye on connection 1 of process {owner}.")),
                "{violations:?}"
            );
            let ended_at = witness.connections()[&1].ended_at.unwrap();
            assert!(began < ended_at && ended_at < Instant::now());
        }
    });
}

/// The halves of one line with a line of another process between them: what a shared socket looks like at its worst.
#[test]
fn lines_that_are_written_into_one_another_are_told_with_both_writers() {
    clean_process(|| {
        for witness in both() {
            let mut stream = testing::Stream::connect(witness.place()).unwrap();
            let steps = Steps::new(&["half", "another"]);
            let child = testing::child(|| {
                let line = WitnessClient::frame("a line of the child's");
                let (begin, end) = line.as_bytes().split_at(line.len() - 8);
                stream.write_all(begin).unwrap();
                steps.take("half");
                steps.wait_for("another");
                stream.write_all(end).unwrap();
                std::process::id()
            });
            steps.wait_for("half");
            stream.write_all(WitnessClient::frame("a line of the parent's").as_bytes()).unwrap();
            steps.take("another");
            let (there, here) = (child.join(), std::process::id());
            witness.wait_until("both halves are seen", |seen| seen.values().any(|seen| seen.garbled.len() == 2));
            let violations = witness.violations();
            let lines: Vec<_> =
                violations.iter().filter(|line| line.contains("carried interleaved lines of")).collect();
            assert_eq!(lines.len(), 1, "{violations:?}");
            assert!(
                lines[0].contains(&format!("{there}.")) && lines[0].contains(&format!(" and {here}.")),
                "{lines:?}"
            );
        }
    });
}

/// What was written before the question is in the answer, though nobody waited for it to arrive.
#[test]
fn nothing_that_was_written_is_missed() {
    clean_process(|| {
        for witness in both() {
            for round in 1..=200 {
                let mut stream = testing::Stream::connect(witness.place()).unwrap();
                stream.write_all(WitnessClient::frame("hello").as_bytes()).unwrap();
                let child = testing::child(|| {
                    stream.write_all(WitnessClient::frame("goodbye").as_bytes()).unwrap();
                });
                child.join();
                // With the answers unread, which is a reset.
                drop(stream);
                let violations = witness.violations();
                assert_eq!(violations.len(), 2 * round, "round {round}: {:?}", violations.last());
            }
        }
    });
}

/// A client that does not read its answers is heard to the end.
#[test]
fn a_goodbye_behind_a_flood_of_unread_answers_is_heard() {
    clean_process(|| {
        for witness in both() {
            let mut stream = testing::Stream::connect(witness.place()).unwrap();
            let line = WitnessClient::frame(&"word ".repeat(1000));
            (0..2000).for_each(|_| stream.write_all(line.as_bytes()).unwrap());
            stream.write_all(WitnessClient::frame("goodbye").as_bytes()).unwrap();
            // Before it is closed: a close with answers unread throws away what has not been sent yet.
            let seen = witness.connections().remove(&1).unwrap();
            assert!(seen.lines == 2001 && seen.goodbye.is_some() && !seen.ended, "{} lines", seen.lines);
            drop(stream);
            assert!(witness.connections()[&1].ended);
        }
    });
}

/// What another driver says as its goodbye has no end of a line, perhaps, and is none of the witness's words.
#[test]
fn words_without_an_end_are_judged_before_and_at_the_end() {
    clean_process(|| {
        for witness in both() {
            let open = || testing::Stream::connect(witness.place()).unwrap();
            let says = |stream: &mut testing::Stream, text: &str| stream.write_all(text.as_bytes()).unwrap();
            let (mut quits, mut begins, mut stranger) = (open(), open(), open());
            let line = WitnessClient::frame("a line that is still being written");
            says(&mut begins, &line[..line.len() - 9]);
            testing::child(|| says(&mut quits, "QUIT")).join();
            says(&mut stranger, &WitnessClient::frame("hello"));
            testing::child(|| says(&mut stranger, WitnessClient::frame("hello").split_at(20).0)).join();
            let violations = witness.violations();
            assert_eq!(violations.len(), 2, "{violations:?}");
            assert_eq!(violations[0], "connection 1 carried words that no client begins with: \"QUIT\"");
            assert!(violations[1].starts_with("connection 3 carried words that no client begins with: \"I am "));

            says(&mut begins, &line[line.len() - 9..]);
            says(&mut begins, "I am");
            drop((quits, begins, stranger));
            let seen = witness.connections();
            assert_eq!([&seen[&1].garbled[..], &seen[&2].garbled[..]], [["QUIT"], ["I am"]]);
            assert_eq!(seen[&2].lines, 1);
            assert_eq!(witness.violations().len(), 3);
        }
    });
}

/// Whoever writes first is not always who opened it.
#[test]
fn a_connection_belongs_to_who_opened_it_and_not_to_who_wrote_first() {
    clean_process(|| {
        for witness in both() {
            let mut opened_here = testing::Stream::connect(witness.place()).unwrap();
            witness.wait_until("it is accepted", |seen| seen.len() == 1);
            let me = std::process::id();
            let thief = testing::child(|| {
                opened_here.write_all(WitnessClient::frame("goodbye").as_bytes()).unwrap();
                std::process::id()
            })
            .join();
            let violations = witness.violations();
            assert!(violations.len() == 2 && violations[0].contains(" was opened by process "), "{violations:?}");
            let (opener, stranger) = (format!(" process {me}."), format!(" the words of {thief}."));
            assert!(violations[0].contains(&opener) && violations[0].contains(&stranger), "{violations:?}");
            assert!(violations[1].contains(" said goodbye ") && violations[1].contains(&opener), "{violations:?}");

            // The same one generation later, where this process holds nothing.
            let steps = Steps::new(&["accepted"]);
            let child = testing::child(|| {
                let mut opened_there = testing::Stream::connect(witness.place()).unwrap();
                steps.wait_for("accepted");
                // A process that is as old as its parent, to the hundredth of a second, is not told from it.
                thread::sleep(Duration::from_millis(30));
                let say = || opened_there.write_all(WitnessClient::frame("hello").as_bytes()).unwrap();
                (std::process::id(), testing::child(say).join())
            });
            witness.wait_until("it is accepted", |seen| seen.len() == 2);
            steps.take("accepted");
            let (opener, ()) = child.join();
            assert!(witness.connections()[&2].opened_by().unwrap().starts_with(&format!("{opener}.")));
            assert_eq!(witness.violations().len(), 3, "{:?}", witness.violations());
        }
    });
}

/// Nobody is accused who did open what he writes on, however he was made and whoever holds copies.
#[test]
fn who_opened_what_he_writes_on_is_not_accused() {
    clean_process(|| {
        for witness in both() {
            for way in kit::ways() {
                let here = testing::Stream::connect(witness.place()).unwrap();
                // The witness is at rest: whoever is made without fork handlers gets the allocator's locks as they are.
                witness.connections();
                way.child(|| {
                    let mut own = testing::Stream::connect(witness.place()).unwrap();
                    let _copies = testing::child(thread::park);
                    own.write_all(WitnessClient::frame("hello").as_bytes()).unwrap();
                })
                .join();
                { here }.write_all(WitnessClient::frame("hello").as_bytes()).unwrap();
            }
            assert_eq!(witness.violations(), Vec::<String>::new());
        }
    });
}

/// Its sockets have copies in every child. They must not keep a client waiting for ever.
#[test]
fn a_witness_that_is_dropped_ends_its_connections_whoever_has_copies() {
    clean_process(|| {
        for witness in both() {
            let mut client = testing::Stream::connect(witness.place()).unwrap();
            client.set_read_timeout(Some(testing::patience())).unwrap();
            witness.wait_until("it is accepted", |seen| seen.len() == 1);
            let child = testing::child(thread::park);
            drop(witness);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            child.kill();
        }
    });
}

/// Garbage is not taken for speech, whatever it looks like.
#[test]
fn lines_that_no_client_writes_are_told() {
    clean_process(|| {
        let garbage = [
            "",
            "hello",
            "I am 1.1, 5 bytes: hello",
            "I am 1.1, 4 bytes: hello.",
            "I am 1.1, bytes: hello.",
            "I am 1.1: hello.",
            "I am 1, 5 bytes: hello.",
            "I am 1.I am 2.1, 5 bytes: hello.",
        ];
        for witness in both() {
            let Address::Unix(path) = witness.place() else { continue };
            let mut stream = BufReader::new(UnixStream::connect(path).unwrap());
            garbage.iter().for_each(|line| writeln!(stream.get_mut(), "{line}").unwrap());
            stream.get_mut().write_all(WitnessClient::frame("the end").as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_line(&mut answer).unwrap();
            assert_eq!(answer, "1 the end\n", "only what is understood is answered");
            assert_eq!(witness.connections()[&1].garbled, garbage);
            assert_eq!(witness.violations().len(), garbage.len());
        }
    });
}

/// Its copy is no server, and the path is not its own.
#[test]
fn a_child_that_drops_its_copy_of_the_witness_ends_nothing() {
    clean_process(|| {
        for witness in both() {
            let mut witness = Some(witness);
            testing::child(|| drop(witness.take())).join();
            let witness = witness.unwrap();
            assert_eq!(witness.connections().len(), 0, "the child did not knock");
            let pool = Pool::builder().max_size(1).build(witness.manager()).unwrap();
            kit::ask(&pool);
            if let Address::Unix(path) = witness.place().clone() {
                drop(witness);
                assert!(!path.exists());
            }
        }
    });
}
