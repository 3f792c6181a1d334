//! What a child pays for the net: from the call of `fork` in the parent to its return in the child, with so many descriptors open,
//! with the net and without, in turns.
//!
//! Three tables: one with a hundred TCP connections that are kept, so that each is looked at and none is touched (of 20, ten are TCP); one of
//! which none is TCP; and one of which a hundred (of 20, ten) are disowned.

use forksafe::fork::{self, net::Policy};
use forksafe_benches::subject::{self, Sample, Subject};
use forksafe_benches::{descriptors, forking};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

const COUNTS: [usize; 4] = [20, 100, 1000, 10_000];
const KINDS: [&str; 3] = ["no tcp", "kept", "disowned"];

fn main() {
    descriptors::raise_limit();
    subject::serve(prepare);

    let address = serve_for_ever().to_string();
    let mut subjects = Vec::new();
    for count in COUNTS {
        for kind in KINDS {
            for net in ["off", "on"] {
                subjects.push(Subject::start(&[net, kind, &count.to_string(), &address]));
            }
        }
    }
    subject::take_turns(&mut subjects, 25, 20);

    println!("fork as the child sees it, µs (medians of 500), and the net's part of it");
    println!(
        "{:>11} {:>9} {:>5} {:>10} {:>10} {:>8} {:>15}",
        "descriptors", "kind", "tcp", "off", "on", "net", "per descriptor"
    );
    let medians: Vec<f64> = subjects.iter().map(|subject| subject::median([subject])).collect();
    let cases = COUNTS.into_iter().flat_map(|count| KINDS.map(|kind| (count, kind)));
    for ((count, kind), both) in cases.zip(medians.chunks(2)) {
        let net = both[1] - both[0];
        let tcp = connections(kind, count);
        println!(
            "{count:>11} {kind:>9} {tcp:>5} {:>10.1} {:>10.1} {net:>8.1} {:>15.3}",
            both[0],
            both[1],
            net / count as f64
        );
    }
}

fn connections(kind: &str, count: usize) -> usize {
    if kind == "no tcp" { 0 } else { (count / 2).min(100) }
}

/// Takes every connection and keeps it open.
fn serve_for_ever() -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("its address");
    thread::spawn(move || server.incoming().collect::<Vec<_>>());
    address
}

fn prepare(case: &[&str]) -> Sample {
    let &[net, kind, count, address] = case else { panic!("no such case: {case:?}") };
    let address: SocketAddr = address.parse().expect("an address");
    let count = count.parse().expect("a number of descriptors");
    fork::enter();
    if net == "on" {
        let policy = if kind == "kept" { Policy::tcp().keep(address) } else { Policy::tcp() };
        policy.set().expect("a policy");
    }
    let tcp: Vec<_> =
        (0..connections(kind, count)).map(|_| TcpStream::connect(address).expect("a connection")).collect();
    let others = descriptors::fill_up(count);
    Box::new(move || {
        let _there = (&tcp, &others);
        forking::in_child(|called| called.elapsed())
    })
}
