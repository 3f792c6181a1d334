//! A memcached for one test.

use crate::server::{self, Server};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

pub(crate) struct Memcached {
    _server: Server,
    pub(crate) address: SocketAddr,
}

impl Memcached {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], server::free_port()));
        let mut command = Command::new("memcached");
        command.args(["-u", "root", "-l", "127.0.0.1", "-U", "0", "-t", "1", "-m", "8"]);
        command.args(["-p", &address.port().to_string()]);
        let folder = tempfile::tempdir().expect("a folder");
        let server = Server::start(folder, command, |_| TcpStream::connect(address).is_ok());
        Self { _server: server, address }
    }
}
