use forksafe::fork::net::Policy;
use forksafe::testing::{self, PrivateRedis, Steps, Tap, Witness};
use std::net::SocketAddr;

/// The program under test has a client of another library's, which it has registered nowhere. This is first in its `main`.
fn set_the_net() {
    Policy::tcp().set().expect("nobody has set another");
}

#[test]
fn a_worker_shares_no_connection_with_its_master() {
    testing::clean_process(|| {
        set_the_net();
        let server = PrivateRedis::start();
        let _client = redis::Client::open(server.url()).expect("an address").get_connection().expect("a client");
        let steps = Steps::new(&["the end"]);
        let worker = testing::child(|| steps.wait_for("the end"));
        testing::assert_nothing_shared(&[std::process::id(), worker.pid()]);
        steps.take("the end");
        worker.join();
    });
}

/// What its client makes of it is the client's: this one says so, and has to be made anew.
#[test]
fn a_worker_is_silent_on_its_masters_connection() {
    testing::clean_process(|| {
        set_the_net();
        let server = PrivateRedis::start();
        let tap = Tap::before(server.address().parse::<SocketAddr>().expect("an address"));
        let connect = || redis::Client::open(format!("redis://{}", tap.address())).and_then(|it| it.get_connection());
        let mut client = connect().expect("a client");
        let visits = |client: &mut redis::Connection| redis::cmd("INCR").arg("visits").query::<u64>(client);

        assert_eq!(visits(&mut client), Ok(1));
        tap.assert_untouched(|| {
            testing::child(|| {
                assert!(visits(&mut client).is_err_and(|error| error.is_unrecoverable_error()));
                client = connect().expect("another");
                assert_eq!(visits(&mut client), Ok(2));
            })
            .join();
        });
        assert_eq!(visits(&mut client), Ok(3));
    });
}

/// Without a server of one's own: the witness knows who has written what, and its client is any program's.
#[test]
fn the_net_of_this_program_works() {
    testing::clean_process(|| {
        set_the_net();
        let witness = Witness::start();
        let mut client = witness.client().expect("a client");
        testing::child(|| client.ask("whose connection is it?").map(drop).expect_err("its parent's").to_string())
            .join();
        client.ask("is it mine still?").expect("an answer");
        assert_eq!(witness.violations(), Vec::<String>::new());
    });
}
