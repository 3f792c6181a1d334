//! tokio's runtimes, which no client can do without that is made for them.

use crate::threads::without_threads;
use forksafe::fork::net::Policy;
use forksafe::testing::{self, clean_process};
use std::io::Write;
use std::net::TcpListener;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// It waits on its parent's epoll, which is no connection: the net leaves it alone. What is told once is told to the child, and nobody
/// tells it to the parent.
#[test]
fn a_child_that_runs_an_inherited_runtime_takes_its_parents_events() {
    clean_process(|| {
        Policy::tcp().set().unwrap();
        let runtime = without_threads();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut made = runtime.block_on(TcpStream::connect(listener.local_addr().unwrap())).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let mut answer = |made: &mut TcpStream, run: &dyn Fn()| {
            accepted.write_all(b"an answer").unwrap();
            run();
            let mut room = [0; 100];
            let read = async { timeout(Duration::from_secs(2), made.read(&mut room)).await };
            runtime.block_on(read).map(|read| read.unwrap())
        };
        assert_eq!(
            answer(&mut made, &|| testing::child(|| ()).join()),
            Ok(9),
            "a child that does not run it does no harm"
        );
        let run = || testing::child(|| runtime.block_on(async { sleep(Duration::from_millis(10)).await })).join();
        assert!(answer(&mut made, &run).is_err(), "the limit is gone: say so in the documentation");
    });
}
