//! The moment at which a client's descriptors can be found.
//!
//! The driver asks its TLS connector for a session once per host that it tries: on the connecting thread, inside that
//! client's runtime, when the socket is there and before the first byte is sent; also when there will be no TLS. So the
//! connector is wrapped. (Not the session: whether it `can_connect` could not be passed on, and `NoTls` would ask for TLS.)

use super::alarm::Alarm;
use super::discovery;
use crate::fork::Descriptors;
use crate::{Attempt, Deadline};
use ::postgres::Socket;
use ::postgres::tls::MakeTlsConnect;
use std::os::fd::RawFd;
use std::time::Duration;

type Source = Box<dyn std::error::Error + Send + Sync>;

pub(super) struct Hook<T> {
    pub(super) tls: T,
    pub(super) at: Attempt,
    pub(super) alarm: Alarm,
    /// When all of it has to be done.
    pub(super) by: Deadline,
    /// What one host may take from here on.
    pub(super) share: Duration,
    /// The number that was free before the connect.
    pub(super) from: RawFd,
}

impl<T: MakeTlsConnect<Socket>> MakeTlsConnect<Socket> for Hook<T> {
    type Stream = T::Stream;
    type TlsConnect = T::TlsConnect;
    type Error = Source;

    fn make_tls_connect(&mut self, domain: &str) -> Result<T::TlsConnect, Source> {
        // The driver has closed the socket of the host before.
        self.at.forget_all();
        let found = discovery::event_loop_of_this_runtime(self.from).inspect_err(|why| self.at.refuse(why))?;
        self.at.own(Descriptors::none().and_event_loop(found));
        self.alarm.watch_over(found.socket.fd, self.by.or_sooner(self.share));
        self.tls.make_tls_connect(domain).map_err(Into::into)
    }
}
