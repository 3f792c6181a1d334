//! lapin.

use crate::broker::Broker;
use crate::program::{Answered, Heals, Net, answer, run, run_in_vain};
use crate::threads::with_a_thread;
use forksafe::fork::PerProcess;
use forksafe::testing::clean_process;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::mem::ManuallyDrop;
use tokio::runtime::Runtime;

struct Client {
    runtime: Runtime,
    _connection: Connection,
    channel: Channel,
    /// The broker's name for it. Nobody on another connection may use it.
    queue: ShortString,
}

impl Client {
    fn connect(broker: &Broker) -> Self {
        let runtime = with_a_thread();
        let connect = async {
            let connection = Connection::connect(&broker.url(), ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
            let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
            Ok::<_, lapin::Error>((connection, channel, queue.name().clone()))
        };
        let (connection, channel, queue) = runtime.block_on(connect).unwrap();
        Self { runtime, _connection: connection, channel, queue }
    }

    /// Through the broker, and back.
    fn ask(&self, word: &str) -> Answered {
        let Self { runtime, channel, queue, .. } = self;
        let there_and_back = async {
            let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
            channel.basic_publish("".into(), queue.clone(), options, word.as_bytes(), properties).await?.await?;
            let message = channel.basic_get(queue.clone(), BasicGetOptions { no_ack: true }).await?;
            let word = message.map(|message| String::from_utf8_lossy(&message.data).into_owned());
            Ok::<_, lapin::Error>((word.unwrap_or_default(), queue))
        };
        answer(runtime.block_on(there_and_back))
    }
}

/// The broker takes its time to start: one for both, and the net comes second.
#[test]
fn a_channel_of_lapins_hangs_and_without_the_net_as_well() {
    clean_process(|| {
        let broker = Broker::start();
        let connect = || ManuallyDrop::new(Client::connect(&broker));
        let seen = |net| run_in_vain(net, connect, |client, word| client.ask(word));
        seen(Net::Off).assert_hangs_all_the_same();
        seen(Net::On).assert_protected(Heals::Hangs);
    });
}

#[test]
fn a_channel_of_lapins_for_each_process_is_right_and_without_the_net_the_parents_stays_open_as_well() {
    clean_process(|| {
        let broker = Broker::start();
        let connect = || PerProcess::new(|| Client::connect(&broker));
        let seen = |net| run(net, connect, |client, word| client.ask(word));
        seen(Net::Off).assert_only_held();
        seen(Net::On).assert_protected(Heals::AtOnce);
    });
}
