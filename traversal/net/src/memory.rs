//! A network in memory: sockets that reach each other by address, after a fixed delay. For tests under a paused clock
//! that need no NAT; whoever needs one puts a simulated internet behind the same traits.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    RecvMeta, Transmit,
    socket::{Inbound, Sink, VirtualSocket},
};

/// What a socket holds for its reader: a flood is dropped as by a kernel.
const SOCKET_BUFFER: usize = 4 << 20;

/// A network in memory. Clones are the same network.
#[derive(Clone, Default)]
pub struct MemoryNet {
    sockets: Arc<Mutex<BTreeMap<SocketAddr, Inbound>>>,
    delay: Duration,
}

impl MemoryNet {
    /// A network in which every datagram takes `delay`; with zero it arrives at once.
    pub fn new(delay: Duration) -> MemoryNet {
        MemoryNet { delay, ..MemoryNet::default() }
    }

    /// A socket at `address`. A second one at the same address takes the place of the first.
    pub fn socket(&self, address: SocketAddr) -> VirtualSocket {
        let inbound = Inbound::new(SOCKET_BUFFER);
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner).insert(address, inbound.clone());
        let port = Port { network: self.clone(), from: address };
        VirtualSocket::new(address, inbound, Arc::new(port))
    }

    fn deliver(&self, from: SocketAddr, transmit: &Transmit<'_>) {
        let sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(to) = sockets.get(&transmit.destination).cloned() else { return };
        drop(sockets);
        let bytes = Bytes::copy_from_slice(transmit.contents);
        let (len, stride) = (bytes.len(), transmit.segment_size.unwrap_or(bytes.len()));
        let meta = RecvMeta { addr: from, len, stride, ecn: transmit.ecn, dst_ip: None };
        if self.delay.is_zero() {
            to.push_train(meta, bytes);
        } else {
            let delay = self.delay;
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                to.push_train(meta, bytes);
            });
        }
    }
}

impl fmt::Debug for MemoryNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNet").field("delay", &self.delay).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Port {
    network: MemoryNet,
    from: SocketAddr,
}

impl Sink for Port {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.network.deliver(self.from, transmit);
        Ok(())
    }

    fn poll_writable(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
