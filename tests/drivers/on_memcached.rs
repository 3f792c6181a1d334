//! The `memcache` crate: its r2d2 manager, and a client of its own.

use crate::memcached::Memcached;
use crate::scenario::is_disowned;
use forksafe::r2d2::R2d2;
use forksafe::testing::{Address, Tap, clean_process};
use memcache::exp::{self, GetOptions, MetaConnection, SetOptions};
use memcache::{ConnectionManager, Url};
use r2d2::ManageConnection as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

fn address(tap: &Tap) -> SocketAddr {
    let Address::Tcp(address) = tap.address() else { panic!("{tap:?}") };
    *address
}

/// All that this connection can be asked from outside its crate is the test.
#[test]
fn a_connection_of_its_manager_is_disowned() {
    clean_process(|| {
        let server = Memcached::start();
        let tap = Tap::before(server.address);
        let url = || Url::parse(&format!("memcache://{}", address(&tap))).unwrap();
        let asks = ConnectionManager::new(url());
        is_disowned(R2d2::new(ConnectionManager::new(url())), &tap, 50, |conn| {
            asks.is_valid(conn).unwrap();
            format!("{:p} of {}", &raw const *conn, std::process::id())
        });
    });
}

struct Manager(SocketAddr);

impl r2d2::ManageConnection for Manager {
    type Connection = MetaConnection;
    type Error = exp::Error;

    fn connect(&self) -> exp::Result<MetaConnection> {
        MetaConnection::connect(self.0)
    }
    fn is_valid(&self, conn: &mut MetaConnection) -> exp::Result<()> {
        conn.execute(&exp::build_noop()).map(drop)
    }
    fn has_broken(&self, _: &mut MetaConnection) -> bool {
        false
    }
}

/// What was written under a key that nobody else has is what is read.
fn write_and_read(conn: &mut MetaConnection) -> String {
    static TIMES: AtomicU32 = AtomicU32::new(0);
    let own = format!("{:p}-of-{}", &raw const *conn, std::process::id());
    let key = format!("{own}-{}", TIMES.fetch_add(1, Relaxed));
    conn.execute(&exp::build_set(&key, key.as_bytes(), &SetOptions::default()).unwrap()).unwrap();
    let mut options = GetOptions::default();
    options.value = true;
    let read = conn.execute(&exp::build_get(&key, &options).unwrap()).unwrap();
    assert_eq!(read.value(), Some(key.as_bytes()));
    own
}

#[test]
fn a_client_is_disowned() {
    clean_process(|| {
        let server = Memcached::start();
        let tap = Tap::before(server.address);
        is_disowned(R2d2::new(Manager(address(&tap))), &tap, 50, write_and_read);
    });
}
