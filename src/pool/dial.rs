//! Connecting to one of several hosts, each of which may have several addresses.

use super::addresses::Freshness;
use super::attempt::Attempt;
use crate::Deadline;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Who waits in vain for no longer than this has learnt nothing: a distant server, or a busy one, may need it.
const HARDLY_ANY_TIME: Duration = Duration::from_millis(250);

/// No address has more time than this while there are others.
const LONGEST_SHARE: Duration = Duration::from_secs(30);

/// Of the time that is left, for one of so many.
fn share_of(deadline: Deadline, parts: usize) -> Duration {
    match u32::try_from(parts).unwrap_or(u32::MAX) {
        0 | 1 => deadline.remaining(),
        parts => (deadline.remaining() / parts).min(LONGEST_SHARE),
    }
}

impl Attempt {
    /// Opens a connection to one of several hosts, each of which may have several addresses: one after the other, in this order,
    /// but those that failed lately last. Each gets a share of the time that is left, while there are others at most 30 seconds. If
    /// none can be reached the names are looked up anew, once, and what is new is tried with the rest of the time.
    ///
    /// An address that could not be reached in a share of less than a quarter of a second is not held to have failed for that,
    /// unless it said so at once.
    ///
    /// `open` is told which host and address it is, and until when; it says whether an error means that nobody could be
    /// reached there.
    ///
    /// # Errors
    ///
    /// The last error of `open`, or of the look-up if there was no address to try.
    ///
    /// ```
    /// use forksafe::{Attempt, Dial, Deadline};
    /// use std::net::{TcpListener, TcpStream};
    /// use std::time::Duration;
    ///
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let port = server.local_addr()?.port();
    /// let at = Attempt::new(Deadline::after(Duration::from_secs(5)));
    /// let stream = at.dial(&[("localhost".into(), port)], |target| {
    ///     TcpStream::connect_timeout(&target.address, target.deadline.remaining()).map_err(Dial::Unreachable)
    /// })?;
    /// # let _ = stream;
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    pub fn dial<T, E>(
        &self,
        hosts: &[(String, u16)],
        open: impl FnMut(Target) -> Result<T, Dial<E>>,
    ) -> Result<T, DialError<E>> {
        self.dial_in_order(hosts, |_| {}, open)
    }

    /// As [`dial`](Self::dial), with the targets in an order of the caller's.
    pub(crate) fn dial_in_order<T, E>(
        &self,
        hosts: &[(String, u16)],
        order: impl Fn(&mut [(usize, SocketAddr)]),
        mut open: impl FnMut(Target) -> Result<T, Dial<E>>,
    ) -> Result<T, DialError<E>> {
        let has_names = hosts.iter().any(|(host, _)| host.parse::<std::net::IpAddr>().is_err());
        let mut tried = Vec::new();
        let mut last = None;
        let mut cut_short = None;
        for freshness in [Freshness::Known, Freshness::New] {
            let mut targets = Vec::new();
            for (number, (host, port)) in hosts.iter().enumerate() {
                match self.addresses.of(host, *port, freshness, self.deadline()) {
                    Ok(found) => targets.extend(found.into_iter().map(|address| (number, address))),
                    Err(source) if last.is_none() => last = Some(DialError::LookUp { host: host.clone(), source }),
                    Err(_) => {}
                }
            }
            targets.retain(|target| !tried.contains(target));
            order(&mut targets);
            targets.sort_by_key(|&(_, address)| self.addresses.failed_lately(address));
            let more = has_names && freshness == Freshness::Known;
            for (number, &(host, address)) in targets.iter().enumerate() {
                let left = targets.len() - number + usize::from(more);
                let deadline = self.deadline().or_sooner(share_of(self.deadline(), left));
                match self.open(Target { host, address, deadline }, &mut open) {
                    Err(Dial::Unreachable(error)) => last = Some(DialError::Connect(error)),
                    Err(Dial::Failed(error)) => return Err(DialError::Connect(error)),
                    Ok(connection) => return Ok(connection),
                }
                cut_short = Some((host, address)).filter(|_| deadline.is_over());
            }
            tried.extend(targets);
            if !more || self.deadline().is_over() {
                break;
            }
        }
        // It is slow, and nobody knows of a better one: it may have what is left.
        if let Some((host, address)) = cut_short.filter(|_| !self.deadline().is_over()) {
            match self.open(Target { host, address, deadline: self.deadline() }, &mut open) {
                Err(Dial::Unreachable(error) | Dial::Failed(error)) => last = Some(DialError::Connect(error)),
                Ok(connection) => return Ok(connection),
            }
        }
        Err(last.unwrap_or_else(|| DialError::LookUp {
            host: String::new(),
            source: io::Error::new(io::ErrorKind::InvalidInput, "there is no host to connect to"),
        }))
    }

    fn open<T, E>(&self, target: Target, open: &mut impl FnMut(Target) -> Result<T, Dial<E>>) -> Result<T, Dial<E>> {
        let (begun, had) = (Instant::now(), target.deadline.remaining());
        let opened = open(target);
        if self.is_inherited() {
            // It forked, and this is the child: it learns nothing of the address, and starts over elsewhere.
            return opened.map_err(|error| match error {
                Dial::Unreachable(error) | Dial::Failed(error) => Dial::Failed(error),
            });
        }
        match opened {
            Ok(_) => self.addresses.note(target.address, true),
            // It says nothing about an address that somebody had no time for it.
            Err(Dial::Unreachable(_)) if had < HARDLY_ANY_TIME && begun.elapsed() > had / 8 => {}
            Err(Dial::Unreachable(_)) => self.addresses.note(target.address, false),
            Err(Dial::Failed(_)) => {}
        }
        opened
    }
}

/// One address to connect to. See [`Attempt::dial`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Target {
    /// Which of the hosts it belongs to, counted from 0.
    pub host: usize,
    /// Where to.
    pub address: SocketAddr,
    /// Until when: its share of the attempt's time.
    pub deadline: Deadline,
}

/// Why an address did not do. See [`Attempt::dial`].
#[derive(Debug)]
pub enum Dial<E> {
    /// Nobody could be reached there, or nobody answered in time: the next address may do.
    Unreachable(E),
    /// Somebody was there and said no: to ask others, or to ask again, would not help.
    Failed(E),
}

/// Why no address did. See [`Attempt::dial`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError<E> {
    /// No address of the host is known.
    #[error("cannot look up host {host:?}")]
    LookUp {
        /// The name.
        host: String,
        /// What libc said.
        source: io::Error,
    },
    /// The last of the addresses that were tried.
    #[error(transparent)]
    Connect(E),
}
