//! Connections that are numbers: what is left is what the pool itself costs.

use forksafe::fork::Descriptors;
use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream;

/// A manager, of any of the pools, whose connections reach nowhere.
pub struct Numbers;

impl forksafe::ManageConnection for Numbers {
    type Connection = u32;
    type Error = Infallible;

    fn connect(&self) -> Result<u32, Infallible> {
        Ok(1)
    }
    fn is_valid(&self, _: &mut u32) -> Result<(), Infallible> {
        Ok(())
    }
    fn has_broken(&self, _: &mut u32) -> bool {
        false
    }
    fn descriptors(&self, _: &u32) -> Descriptors {
        Descriptors::none()
    }
}

impl r2d2::ManageConnection for Numbers {
    type Connection = u32;
    type Error = Infallible;

    fn connect(&self) -> Result<u32, Infallible> {
        Ok(1)
    }
    fn is_valid(&self, _: &mut u32) -> Result<(), Infallible> {
        Ok(())
    }
    fn has_broken(&self, _: &mut u32) -> bool {
        false
    }
}

impl bb8::ManageConnection for Numbers {
    type Connection = u32;
    type Error = Infallible;

    async fn connect(&self) -> Result<u32, Infallible> {
        Ok(1)
    }
    async fn is_valid(&self, _: &mut u32) -> Result<(), Infallible> {
        Ok(())
    }
    fn has_broken(&self, _: &mut u32) -> bool {
        false
    }
}

impl deadpool::managed::Manager for Numbers {
    type Type = u32;
    type Error = Infallible;

    async fn create(&self) -> Result<u32, Infallible> {
        Ok(1)
    }
    async fn recycle(
        &self,
        _: &mut u32,
        _: &deadpool::managed::Metrics,
    ) -> deadpool::managed::RecycleResult<Infallible> {
        Ok(())
    }
}

/// As [`Numbers`], with one descriptor that a child has to drop: a checkout says that it is lent, a return that it is not.
pub struct Sockets;

impl forksafe::ManageConnection for Sockets {
    type Connection = UnixStream;
    type Error = io::Error;

    fn connect(&self) -> io::Result<UnixStream> {
        Ok(UnixStream::pair()?.0)
    }
    fn is_valid(&self, _: &mut UnixStream) -> io::Result<()> {
        Ok(())
    }
    fn has_broken(&self, _: &mut UnixStream) -> bool {
        false
    }
    fn descriptors(&self, socket: &UnixStream) -> Descriptors {
        Descriptors::of(socket)
    }
}

#[mobc::async_trait]
impl mobc::Manager for Numbers {
    type Connection = u32;
    type Error = Infallible;

    async fn connect(&self) -> Result<u32, Infallible> {
        Ok(1)
    }
    async fn check(&self, connection: u32) -> Result<u32, Infallible> {
        Ok(connection)
    }
}
