//! The witness: what it must see, shown to it on purpose.

use crate::kit;
use forksafe::Pool;
use forksafe::testing::{self, Address, Steps, Witness, WitnessClient, clean_process};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

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
            assert!(violations[1].contains(&format!(" said goodbye on connection 1 of [\"{owner}.")), "{violations:?}");
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
