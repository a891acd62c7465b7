//! A network on which everything takes time: the kernel's, with every datagram held for a while in both directions.
//!
//! In a lab without latency nothing tells how many round trips something takes. With both peers on this network, each
//! `delay` away from everything, a supernode is half-way between them: a round trip takes four delays on either path.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    task::AbortHandle,
    time::Instant,
};
use traversal::{ByteStream, Connecting, Network};
use traversal_net::{
    Transmit,
    socket::{DatagramSocket, Inbound, Sink, VirtualSocket},
    udp::{BATCH_SIZE, Bind, KernelSocket, RecvBatch},
};
use traversal_proto::peer::Interface;

/// The kernel's sockets, each datagram held for so long.
#[derive(Debug)]
pub(crate) struct Slow(pub(crate) Duration);

impl Network for Slow {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn DatagramSocket>> {
        let kernel = Arc::new(KernelSocket::bind(Bind::new(address))?);
        let (local, inbound) = (kernel.local_addr()?, Inbound::new(Bind::BUFFER));
        let receiving = tokio::spawn(receive(Arc::clone(&kernel), inbound.clone(), self.0)).abort_handle();
        let sink =
            Held { delay: self.0, later: queue(move |transmit: Owned| transmit.send(&kernel)), receiving };
        Ok(Arc::new(VirtualSocket::new(local, inbound, Arc::new(sink))))
    }

    /// As the kernel has it: nothing here is measured over TCP.
    fn connect(&self, to: SocketAddr) -> Connecting {
        Box::pin(
            async move { Ok(Box::new(tokio::net::TcpStream::connect(to).await?) as Box<dyn ByteStream>) },
        )
    }

    fn interfaces(&self) -> Vec<Interface> {
        let interface = |found: if_addrs::Interface| {
            let prefix_len = match &found.addr {
                if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                if_addrs::IfAddr::V6(v6) => v6.prefixlen,
            };
            Interface { address: found.ip(), prefix_len }
        };
        if_addrs::get_if_addrs().unwrap_or_default().into_iter().map(interface).collect()
    }
}

/// Does something with each item at its time; they stay in order, because all wait equally long. What is in it is bounded
/// by what a connection sends in one delay.
fn queue<T: Send + 'static>(act: impl Fn(T) + Send + 'static) -> UnboundedSender<(Instant, T)> {
    let (later, mut waiting) = unbounded_channel::<(Instant, T)>();
    tokio::spawn(async move {
        while let Some((due, item)) = waiting.recv().await {
            tokio::time::sleep_until(due).await;
            act(item);
        }
    });
    later
}

async fn receive(kernel: Arc<KernelSocket>, inbound: Inbound, delay: Duration) {
    let later = queue(move |(meta, bytes)| {
        inbound.push_train(meta, bytes);
    });
    let mut batch = RecvBatch::new(&*kernel, BATCH_SIZE, 2048);
    while let Ok(count) = std::future::poll_fn(|cx| batch.poll_recv(&*kernel, cx)).await {
        let due = Instant::now() + delay;
        for (meta, bytes) in batch.trains(count) {
            // The queue's task ends with the runtime only.
            let _ = later.send((due, (meta, Bytes::copy_from_slice(bytes))));
        }
    }
}

/// A datagram that waits to be sent.
struct Owned {
    destination: SocketAddr,
    contents: Bytes,
}

impl Owned {
    /// One that the kernel does not take is lost, as on any network.
    fn send(&self, kernel: &KernelSocket) {
        let Owned { destination, contents } = self;
        let transmit =
            Transmit { destination: *destination, ecn: None, contents, segment_size: None, src_ip: None };
        let _ = kernel.try_send(&transmit);
    }
}

#[derive(Debug)]
struct Held {
    delay: Duration,
    later: UnboundedSender<(Instant, Owned)>,
    receiving: AbortHandle,
}

impl Sink for Held {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let due = Instant::now() + self.delay;
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for contents in transmit.contents.chunks(size) {
            let owned =
                Owned { destination: transmit.destination, contents: Bytes::copy_from_slice(contents) };
            // As above.
            let _ = self.later.send((due, owned));
        }
        Ok(())
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.receiving.abort();
    }
}
