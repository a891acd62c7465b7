//! First packets of QUIC handshakes, as bytes.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use quinn::TransportConfig;
use traversal_net::{
    Transmit,
    quic::{self, EndpointOptions},
    socket::{Inbound, Sink, VirtualSocket},
    tls,
};
use traversal_proto::wire::ALPN;

use super::{identity, until};

/// What was sent, by the connection id that its sender has chosen for the other end.
#[derive(Debug, Default)]
struct Captured(Mutex<BTreeMap<Vec<u8>, Vec<u8>>>);

impl Sink for Captured {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let bytes = transmit.contents;
        let id = bytes[6..6 + usize::from(bytes[5])].to_vec();
        self.0.lock().unwrap().entry(id).or_insert_with(|| bytes.to_vec());
        Ok(())
    }

    fn poll_writable(&self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The first packets of so many handshakes with a supernode, each of a connection of its own. They reach nobody yet.
pub(crate) async fn initials(to: SocketAddr, count: usize) -> Vec<Vec<u8>> {
    let captured = Arc::new(Captured::default());
    let sink: Arc<dyn Sink> = captured.clone();
    let socket = VirtualSocket::new("127.0.0.1:9".parse().unwrap(), Inbound::new(1 << 16), sink);
    let endpoint = quic::endpoint(Arc::new(socket), None, &EndpointOptions::default()).unwrap();
    let config = quic::client(&identity(9), None, &[ALPN], Arc::new(TransportConfig::default())).unwrap();
    let connecting: Vec<_> =
        (0..count).map(|_| endpoint.connect_with(config.clone(), to, tls::SERVER_NAME).unwrap()).collect();
    until("all first packets are there", || captured.0.lock().unwrap().len() == count).await;
    let packets: Vec<_> = captured.0.lock().unwrap().values().cloned().collect();
    drop(connecting);
    assert!(packets.iter().all(|packet| packet[0] & 0xf0 == 0xc0 && packet.len() >= 1200));
    packets
}
