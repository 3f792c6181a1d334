//! What a child pays at birth for each connection that it inherits.
//!
//! From the call of `fork` in the parent to its return in the child, with so many connections open: bare TCP connections,
//! which to a fork are what Redis connections are, and clients of PostgreSQL. Their number makes the kernel's own part
//! of a fork slower too, so the same number of connections that forksafe does not know is measured beside it, and what
//! they cost is taken off.

use forksafe::fork::Descriptors;
use forksafe::postgres::PostgresManager;
use forksafe::testing::PrivatePostgres;
use forksafe::{ManageConnection, Pool};
use forksafe_benches::subject::{self, Sample, Subject};
use forksafe_benches::{descriptors, forking};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

const TCP: [usize; 3] = [0, 100, 1000];
const POSTGRES: [usize; 3] = [0, 10, 100];
const KINDS: [&str; 3] = ["unknown", "idle", "lent"];

fn main() {
    descriptors::raise_limit();
    subject::serve(prepare);

    measure("tcp", &serve_for_ever().to_string(), TCP);
    let postgres = PrivatePostgres::start_with(&["-c", "max_connections=400"]);
    measure("postgres", postgres.url(), POSTGRES);
}

fn measure(server: &str, address: &str, counts: [usize; 3]) {
    let mut subjects = Vec::new();
    for count in counts {
        for kind in KINDS {
            subjects.push(Subject::start(&[server, kind, &count.to_string(), address]));
        }
    }
    subject::take_turns(&mut subjects, 25, 20);

    println!("{server}: fork as the child sees it, µs (medians of 500), and forksafe's part of it per connection");
    println!(
        "{:>11} {:>10} {:>10} {:>10} {:>12} {:>12}",
        "connections", "unknown", "idle", "lent", "per idle", "per lent"
    );
    let medians: Vec<f64> = subjects.iter().map(|subject| subject::median([subject])).collect();
    let none = &medians[..KINDS.len()];
    for (count, all) in counts.into_iter().zip(medians.chunks(KINDS.len())) {
        print!("{count:>11} {:>10.1} {:>10.1} {:>10.1}", all[0], all[1], all[2]);
        if count > 0 {
            let per = |kind: usize| ((all[kind] - none[kind]) - (all[0] - none[0])) / count as f64;
            print!(" {:>12.2} {:>12.2}", per(1), per(2));
        }
        println!();
    }
}

/// Takes every connection and keeps it open.
fn serve_for_ever() -> SocketAddr {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("its address");
    thread::spawn(move || server.incoming().collect::<Vec<_>>());
    address
}

fn prepare(case: &[&str]) -> Sample {
    let &[server, kind, count, address] = case else { panic!("no such case: {case:?}") };
    let count = count.parse().expect("a number of connections");
    match server {
        "tcp" => inheriting(Server(address.parse().expect("an address")), kind, count),
        _ => inheriting(PostgresManager::new(address.parse().expect("a url"), postgres::NoTls), kind, count),
    }
}

fn inheriting<M: ManageConnection>(server: M, kind: &str, count: usize) -> Sample {
    match kind {
        "unknown" => sampling((0..count).map(|_| server.connect().expect("a connection")).collect::<Vec<_>>()),
        "idle" => sampling(pool_of(count, server)),
        "lent" => {
            let pool = pool_of(count, server);
            let lent: Vec<_> = (0..count).map(|_| pool.get().expect("an idle one")).collect();
            sampling((pool, lent))
        }
        _ => panic!("no such kind: {kind}"),
    }
}

/// The time of a fork, with something at hand.
fn sampling(inherited: impl Sized + 'static) -> Sample {
    Box::new(move || {
        let _inherited = &inherited;
        forking::in_child(|called| called.elapsed())
    })
}

fn pool_of<M: ManageConnection>(count: usize, server: M) -> Pool<M> {
    let pool = Pool::builder().max_size(count.max(1) as u32).test_on_check_out(false).build(server).expect("a pool");
    assert_eq!(pool.warm_up(count as u32).expect("connections"), count as u32);
    pool
}

/// Makes bare TCP connections: one socket each.
struct Server(SocketAddr);

impl ManageConnection for Server {
    type Connection = TcpStream;
    type Error = io::Error;

    fn connect(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.0)
    }
    fn is_valid(&self, _: &mut TcpStream) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut TcpStream) -> bool {
        false
    }
    fn descriptors(&self, connection: &TcpStream) -> Descriptors {
        Descriptors::of(connection)
    }
}
