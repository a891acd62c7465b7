//! What a node needs of the machine that it runs on: the kernel's sockets, or a simulated network's.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::io::{AsyncRead, AsyncWrite};
use traversal_net::{
    socket::DatagramSocket,
    udp::{Bind, KernelSocket},
};
use traversal_proto::peer::Interface;

/// A connected byte stream.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// A byte stream that is being connected.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send>>;

/// A name that is being looked up.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Where sockets come from.
pub trait Network: fmt::Debug + Send + Sync + 'static {
    /// Opens a UDP socket.
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>>;

    /// Opens a UDP socket that somebody else is going to have, and the operating system's form of it, if it has one.
    fn bind_plain(
        &self,
        address: SocketAddr,
    ) -> io::Result<(Arc<dyn DatagramSocket>, Option<std::net::UdpSocket>)> {
        Ok((self.bind(address)?, None))
    }

    /// Connects by TCP.
    fn connect(&self, to: SocketAddr) -> Connecting;

    /// Looks up a name with a port; by default the system's resolver does.
    fn resolve(&self, name: &str) -> Resolving {
        let name = name.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host(name).await?.collect()) })
    }

    /// The machine's addresses, loopback included.
    fn interfaces(&self) -> Vec<Interface>;

    /// The time of day, since 1970. It need not be right: that it goes on while the monotonic clock stands still is how a
    /// node learns that its machine has slept. By default the operating system's.
    fn wall_clock(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// The kernel.
#[derive(Debug)]
pub(crate) struct Kernel;

impl Network for Kernel {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        Ok(Arc::new(KernelSocket::bind(Bind::new(address))?))
    }

    fn bind_plain(
        &self,
        address: SocketAddr,
    ) -> io::Result<(Arc<dyn DatagramSocket>, Option<std::net::UdpSocket>)> {
        let plain = std::net::UdpSocket::bind(address)?;
        Ok((Arc::new(KernelSocket::from_std(plain.try_clone()?)?), Some(plain)))
    }

    fn connect(&self, to: SocketAddr) -> Connecting {
        Box::pin(async move {
            let stream = tokio::net::TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }

    fn interfaces(&self) -> Vec<Interface> {
        // Not knowing them means no host candidates, and nothing worse.
        let found = if_addrs::get_if_addrs().unwrap_or_default();
        let interface = |found: if_addrs::Interface| {
            let prefix_len = match &found.addr {
                if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                if_addrs::IfAddr::V6(v6) => v6.prefixlen,
            };
            Interface { address: found.ip(), prefix_len }
        };
        found.into_iter().map(interface).collect()
    }
}
