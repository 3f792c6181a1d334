//! Row 38, in part: signals rain on a thread that connects, tests, resets and says goodbye.

use crate::kit::{self, StopOnDrop};
use forksafe::PooledConnection;
use forksafe::postgres::{OnReturn, PostgresManager};
use forksafe::testing::{PrivatePostgres, clean_process};
use postgres::NoTls;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn counts(_: libc::c_int) {
    SIGNALS.fetch_add(1, SeqCst);
}

/// Runs it while this thread gets a thousand signals each second.
fn in_the_rain(flags: libc::c_int, body: impl FnOnce()) {
    // SAFETY: a sigaction is plain data; the handler only counts.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = counts as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut()), 0);
    }
    // SAFETY: says who this is. The thread outlives the scope.
    let me = unsafe { libc::pthread_self() };
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(SeqCst) {
                // SAFETY: the thread lives, it waits for this one.
                assert_eq!(unsafe { libc::pthread_kill(me, libc::SIGUSR1) }, 0);
                thread::sleep(Duration::from_millis(1));
            }
        });
        body();
    });
}

/// Takes 20 ms for each answer, so that the one who asks is waiting when the signals come.
fn slow(real: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || {
                let mut server = TcpStream::connect(("127.0.0.1", real)).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = server.read(&mut bytes) {
                    thread::sleep(Duration::from_millis(20));
                    if client.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    port
}

#[test]
fn signals_interrupt_nothing() {
    clean_process(|| {
        let server = PrivatePostgres::start_with(&[]);
        let port = slow(server.port().unwrap());
        let slow = format!("host=localhost port={port} user=postgres").parse().unwrap();
        let configs = [slow, server.unix_config().unwrap()];
        for (flags, config) in
            [0, libc::SA_RESTART].into_iter().flat_map(|flags| configs.each_ref().map(|c| (flags, c)))
        {
            let manager = PostgresManager::new(config.clone(), NoTls).on_return(OnReturn::DiscardAll);
            let pool = kit::tested().max_size(1).build(manager).unwrap();
            let before = SIGNALS.load(SeqCst);
            in_the_rain(flags, || {
                let mut last = 0;
                for n in 0..16 {
                    let mut conn = pool.get().unwrap();
                    let session: i32 = conn.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
                    assert_eq!(session == last, n % 4 != 0, "a reset or a test was interrupted");
                    last = session;
                    if n % 4 == 3 {
                        PooledConnection::discard(conn);
                    }
                }
                while SIGNALS.load(SeqCst) < before + 100 {
                    PooledConnection::discard(pool.get().unwrap());
                }
            });
        }
        assert_eq!(server.config().connect(NoTls).unwrap().query_one("SELECT 1", &[]).unwrap().get::<_, i32>(0), 1);
    });
}
