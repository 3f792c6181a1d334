//! Peers by their addresses, some parts of which may be open.

use crate::fork::handler::net::rules;
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// Peers whose connections are [kept](super::Policy::keep): an address, a host with any port, a port of any host, or a pattern of paths.
///
/// ```
/// use forksafe::fork::net::Place;
/// use std::net::{IpAddr, Ipv4Addr, SocketAddr};
///
/// let host = IpAddr::from(Ipv4Addr::new(10, 0, 0, 5));
/// assert_eq!("10.0.0.5:6379".parse(), Ok(Place::from(SocketAddr::from((host, 6379)))));
/// assert_eq!("10.0.0.5".parse(), Ok(Place::from(host)));
/// assert_eq!("*:6379".parse(), Ok(Place::port(6379)));
/// assert_eq!("unix:/run/postgresql/*".parse(), Ok(Place::unix("/run/postgresql/*")));
/// assert!("localhost:6379".parse::<Place>().is_err()); // names are not looked up
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place(pub(super) rules::Place);

impl Place {
    /// A port of any host, of TCP and UDP.
    pub fn port(port: u16) -> Self {
        Self(rules::Place::Ip { address: None, port: Some(port) })
    }

    /// Paths of unix sockets, in which `*` stands for any number of bytes, `/` included, and `?` for one. An abstract name begins
    /// with `@`.
    pub fn unix(pattern: impl AsRef<OsStr>) -> Self {
        Self(rules::Place::Unix(pattern.as_ref().as_bytes().into()))
    }
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self(rules::Place::Ip { address: Some(address.ip()), port: Some(address.port()) })
    }
}

/// Any port of it.
impl From<IpAddr> for Place {
    fn from(address: IpAddr) -> Self {
        Self(rules::Place::Ip { address: Some(address), port: None })
    }
}

/// The text names no peer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "neither an address (10.0.0.5:6379, [::1]:6379, 10.0.0.5), nor a port (*:6379), nor a path (unix:/run/redis/*)"
)]
#[non_exhaustive]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        if let Some(pattern) = text.strip_prefix("unix:").filter(|pattern| !pattern.is_empty()) {
            return Ok(Self::unix(pattern));
        }
        if let Some(port) = text.strip_prefix("*:") {
            return port.parse().map(Self::port).map_err(|_| NoPlace);
        }
        let address = text.parse().map(|address: SocketAddr| Self::from(address)).ok();
        address.or_else(|| text.parse().map(|address: IpAddr| Self::from(address)).ok()).ok_or(NoPlace)
    }
}
