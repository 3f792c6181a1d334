use forksafe::testing::{self, Steps, Witness, WitnessClient};
use std::io::Write;
use std::net::TcpStream;

/// An order is forced, not hoped for: here a line of the child's between the halves of one of the parent's.
#[test]
#[should_panic(expected = "carried interleaved lines of")]
fn a_socket_that_two_processes_write_on_carries_a_mixture() {
    testing::clean_process(|| {
        let witness = Witness::start();
        let mut stream = TcpStream::connect(witness.address()).expect("a connection");
        let steps = Steps::new(&["half a line is written", "another line is written"]);
        let line = WitnessClient::frame("a line of the parent's");
        let (begin, end) = line.as_bytes().split_at(20);

        stream.write_all(begin).expect("half a line");
        steps.take("half a line is written");
        let child = testing::child(|| {
            steps.wait_for("half a line is written");
            stream.write_all(WitnessClient::frame("a line of the child's").as_bytes()).expect("a line");
            steps.take("another line is written");
        });
        steps.wait_for("another line is written");
        stream.write_all(end).expect("the other half");
        child.join();
        witness.wait_until("both lines are there", |seen| seen.get(&1).is_some_and(|one| one.garbled.len() >= 2));
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}
