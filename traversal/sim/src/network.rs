//! A host of the world, behind the seams of the crate.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use natbox_sim::{Datagram, HostId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf};
use traversal::{ByteStream, Network};
use traversal_net::{
    Transmit,
    socket::{DatagramSocket, Inbound, Sink, VirtualSocket},
};
use traversal_proto::peer::Interface;

use crate::World;

/// What a socket holds for its reader, in bytes; what comes when it is full is lost, as with a kernel.
const SOCKET_BUFFER: usize = 1 << 20;

/// A host's network, for a node.
#[derive(Clone)]
pub struct SimNetwork {
    world: World,
    host: HostId,
}

impl SimNetwork {
    pub(crate) fn new(world: &World, host: HostId) -> SimNetwork {
        SimNetwork { world: world.clone(), host }
    }

    /// Waits until the host's cable is plugged in.
    async fn online(&self) {
        while self.world.is_offline(self.host) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Carries a byte stream to a supernode: it stands still while the host is offline.
    async fn carry(self, near: DuplexStream, far: DuplexStream) {
        let ((near_read, near_write), (far_read, far_write)) =
            (tokio::io::split(near), tokio::io::split(far));
        let up = self.pump(near_read, far_write);
        let down = self.pump(far_read, near_write);
        // Either end closes both directions: TLS needs no half.
        tokio::select! {
            () = up => {}
            () = down => {}
        }
    }

    async fn pump(&self, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let mut buffer = [0; 4096];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            self.online().await;
            if to.write_all(&buffer[..len]).await.is_err() {
                return;
            }
        }
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNetwork").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Network for SimNetwork {
    fn bind(&self, at: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, at.port()));
        if at.is_ipv6() {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = match self.world.with(|net, _| net.bind(self.host, everywhere)) {
            Ok(bound) => bound.port(),
            // Another address of the same port, or a process that is gone: the net keeps the binding.
            Err(_) if at.port() != 0 && !self.world.state().sockets.contains_key(&(self.host, at)) => {
                at.port()
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let bound = SocketAddr::new(at.ip(), port);
        let inbound = Inbound::new(SOCKET_BUFFER);
        self.world.state().sockets.insert((self.host, bound), inbound.clone());
        let port = Port { network: self.clone(), bound };
        Ok(Arc::new(VirtualSocket::new(bound, inbound, Arc::new(port))))
    }

    fn connect(&self, to: SocketAddr) -> traversal::Connecting {
        let network = self.clone();
        Box::pin(async move {
            network.online().await;
            let world = &network.world;
            let supernode = world.state().supernodes.get(&to).cloned();
            let supernode = supernode.ok_or(io::ErrorKind::ConnectionRefused)?;
            let from = SocketAddr::from((world.address(network.host), 50_000));
            let (ours, near) = tokio::io::duplex(1 << 16);
            let (far, theirs) = tokio::io::duplex(1 << 16);
            supernode.serve_stream(theirs, from);
            tokio::spawn(network.carry(near, far));
            Ok(Box::new(ours) as Box<dyn ByteStream>)
        })
    }

    fn resolve(&self, name: &str) -> traversal::Resolving {
        let found = self.world.state().names.get(name).copied();
        Box::pin(async move { Ok(vec![found.ok_or(io::ErrorKind::NotFound)?]) })
    }

    fn wall_clock(&self) -> Duration {
        Duration::from_millis(self.world.wall())
    }

    fn interfaces(&self) -> Vec<Interface> {
        let addresses: Vec<_> = self.world.with(|net, _| net.addresses(self.host).collect());
        addresses.into_iter().map(|address| Interface { address: address.into(), prefix_len: 24 }).collect()
    }
}

/// One socket's way out.
struct Port {
    network: SimNetwork,
    bound: SocketAddr,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("bound", &self.bound).finish_non_exhaustive()
    }
}

impl Port {
    fn send(&self, transmit: &Transmit<'_>, ttl: u8) {
        let SimNetwork { world, host } = &self.network;
        if world.is_mute(*host) {
            return;
        }
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        world.with(|net, now| {
            for payload in transmit.contents.chunks(size) {
                // What does not fit the link is lost, as with the kernel.
                let datagram = Datagram { ttl, ..Datagram::new(self.bound, transmit.destination, payload) };
                let _ = net.send(*host, datagram, now);
            }
        });
    }
}

impl Sink for Port {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send(transmit, 64);
        Ok(())
    }

    fn try_send_near(&self, transmit: &Transmit<'_>, hops: u8) -> io::Result<()> {
        self.send(transmit, hops);
        Ok(())
    }

    fn poll_writable(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
