//! A RabbitMQ for one test.

use crate::server::{self, Server};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

pub(crate) struct Broker {
    _broker: Server,
    _names: Server,
    address: SocketAddr,
}

/// Debian's own script wants to be its root or its user.
const PROGRAM: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

impl Broker {
    #[track_caller]
    pub(crate) fn start() -> Self {
        let [port, names, internal] = [(); 3].map(|()| server::free_port());
        let is_open = |port| TcpStream::connect(("127.0.0.1", port)).is_ok();
        // Otherwise Erlang starts one for all, which stays.
        let mut command = Command::new("epmd");
        command.args(["-address", "127.0.0.1", "-port", &names.to_string()]);
        let name_server = Server::start(tempfile::tempdir().expect("a folder"), command, |_| is_open(names));
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(PROGRAM);
        let inside = |name: &str| folder.path().join(name);
        command
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .env("ERL_EPMD_PORT", names.to_string())
            .env("RABBITMQ_NODENAME", format!("test{port}@localhost"))
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", port.to_string())
            .env("RABBITMQ_DIST_PORT", internal.to_string())
            .env("RABBITMQ_MNESIA_BASE", inside("data"))
            .env("RABBITMQ_LOG_BASE", inside("logs"))
            .env("RABBITMQ_CONFIG_FILE", inside("none"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", inside("none_either"))
            // One process and no shell before it.
            .env("RUNNING_UNDER_SYSTEMD", "1");
        let broker = Server::start(folder, command, |_: &Path| is_open(port));
        Self { _broker: broker, _names: name_server, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.address)
    }
}
