//! The tap behaves as bad networks do: silent, slow, in parts, and leading elsewhere.

use forksafe::testing::{self, Tap, Witness, WitnessClient, clean_process};
use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

/// What the witness answers on a connection that goes through a tap.
fn answer(client: &mut impl Read, length: usize) -> String {
    let mut bytes = vec![0; length];
    client.read_exact(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn say(client: &mut impl Write, text: &str) {
    client.write_all(WitnessClient::frame(text).as_bytes()).unwrap();
}

/// As if a firewall had forgotten them. What is written is swallowed, and nothing is closed.
#[test]
fn connections_that_are_frozen_fall_silent_both_ways_and_new_ones_work() {
    clean_process(|| {
        for witness in [Witness::start(), Witness::start_unix()] {
            let tap = Tap::before(witness.place().clone());
            let [mut leaves, mut stays, mut later] = [(); 3].map(|()| None);
            for client in [&mut leaves, &mut stays] {
                let client = client.insert(testing::Stream::connect(tap.address()).unwrap());
                say(client, "before");
                answer(client, "1 before\n".len());
            }
            let (mut leaves, mut stays) = (leaves.unwrap(), stays.unwrap());
            tap.freeze();
            say(&mut leaves, "swallowed");
            say(&mut stays, "swallowed");
            drop(leaves);
            let later = later.insert(testing::Stream::connect(tap.address()).unwrap());
            say(later, "after");
            assert_eq!(answer(later, "3 after\n".len()), "3 after\n");

            let (relayed, seen) = (tap.connections(), witness.connections());
            for id in [1, 2] {
                assert!(
                    relayed[&id].sent.ends_with(WitnessClient::frame("swallowed").as_bytes()),
                    "it is written down"
                );
                assert!(seen[&id].lines == 1 && !seen[&id].ended, "{seen:#?}");
            }
            assert!(relayed[&1].client_ended && !relayed[&2].client_ended);
            drop(witness);
            tap.wait_until("the servers have ended", |seen| seen.values().all(|seen| seen.server_ended));
            stays.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            assert_eq!(stays.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock, "nobody told it the end");
        }
    });
}

#[test]
fn connections_that_are_cut_end_for_both_and_new_ones_work() {
    clean_process(|| {
        let witness = Witness::start();
        let tap = Tap::before(witness.address());
        let mut client = testing::Stream::connect(tap.address()).unwrap();
        client.set_read_timeout(Some(testing::patience())).unwrap();
        tap.freeze();
        tap.cut();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        witness.wait_until("the end is seen", |seen| seen.values().all(|seen| seen.ended));
        let mut later = testing::Stream::connect(tap.address()).unwrap();
        say(&mut later, "after");
        assert_eq!(answer(&mut later, "2 after\n".len()), "2 after\n");
    });
}

#[test]
fn a_tap_that_moves_takes_new_connections_with_it() {
    clean_process(|| {
        let (old, new) = (Witness::start(), Witness::start_unix());
        let tap = Tap::at("127.0.0.2:0".parse().unwrap(), old.address());
        assert!(tap.address().to_string().starts_with("127.0.0.2:"));
        let mut clients = [(); 2].map(|()| testing::Stream::connect(tap.address()).unwrap());
        tap.retarget(new.place().clone());
        let third = testing::Stream::connect(tap.address()).unwrap();
        for client in clients.iter_mut().chain([&mut { third }]) {
            say(client, "who");
            answer(client, "1 who\n".len());
        }
        assert_eq!((old.connections().len(), new.connections().len()), (2, 1));
        assert!(tap.connections().values().is_sorted_by_key(|relayed| relayed.accepted_at.unwrap()));
    });
}

/// Only that nothing comes too early is asserted: on a busy machine all takes longer.
#[test]
fn replies_come_late_or_in_parts_or_drop_by_drop() {
    clean_process(|| {
        let witness = Witness::start();
        let ask = |tap: &Tap, text: &str| {
            let mut client = testing::Stream::connect(tap.address()).unwrap();
            client.set_read_timeout(Some(testing::patience())).unwrap();
            say(&mut client, text);
            (client, Instant::now())
        };
        let tap = Tap::before(witness.address());
        let (moment, text) = (Duration::from_millis(10), "some words");
        let length = format!("1 {text}\n").len();
        tap.slow(moment * 5);
        let (mut client, asked) = ask(&tap, text);
        answer(&mut client, length);
        assert!(asked.elapsed() >= moment * 5);

        tap.drip(2, moment);
        let (mut client, asked) = ask(&tap, text);
        answer(&mut client, length);
        assert!(asked.elapsed() >= moment * (length / 2) as u32);

        // The second part does not come in the time of this test.
        tap.split_replies(3, testing::patience() * 10);
        let (mut client, _) = ask(&tap, text);
        let mut bytes = [0; 100];
        assert_eq!(client.read(&mut bytes).unwrap(), 3);
        // Behind it, and not before it.
        tap.slow(Duration::ZERO);
        say(&mut client, "more");
        tap.wait_until("the second answer is there", |seen| seen[&3].received.ends_with(b"more\n"));
        client.set_read_timeout(Some(moment)).unwrap();
        assert_eq!(client.read(&mut bytes).unwrap_err().kind(), ErrorKind::WouldBlock);

        let (mut client, _) = ask(&tap, text);
        assert_eq!(answer(&mut client, length), format!("4 {text}\n"));
    });
}
