//! The token of a Retry (RFC 9000 §8.1.2) proves the address that it was sent to, and nothing else: whoever sees one go by gains
//! nothing by saying it again.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use crate::common::{Client, ask, capture::initials, config, shell, start, until};
use supernode::Supernode;
use tokio::net::UdpSocket;
use traversal_net::{
    Transmit,
    socket::{Inbound, Sink, VirtualSocket},
};
use traversal_proto::supernode::Rate;

/// Half-open handshakes of one network that are let in before the next has to prove its address.
const UNPROVEN: usize = 64;

/// A socket of the system that keeps what is sent by it.
#[derive(Debug)]
struct Recorder {
    socket: UdpSocket,
    sent: Mutex<Vec<Vec<u8>>>,
}

impl Recorder {
    async fn new() -> Arc<Recorder> {
        Arc::new(Recorder { socket: crate::common::udp().await, sent: Mutex::default() })
    }

    /// The same for QUIC.
    fn as_socket(self: &Arc<Recorder>) -> Arc<VirtualSocket> {
        let inbound = Inbound::new(1 << 20);
        let (recorder, into) = (Arc::clone(self), inbound.clone());
        tokio::spawn(async move {
            let mut buffer = vec![0; 2048];
            while let Ok((length, from)) = recorder.socket.recv_from(&mut buffer).await {
                into.push_slice(from, &buffer[..length]);
            }
        });
        let sink: Arc<dyn Sink> = Arc::clone(self) as Arc<dyn Sink>;
        Arc::new(VirtualSocket::new(self.socket.local_addr().unwrap(), inbound, sink))
    }

    /// First packets with a token in them.
    fn with_token(&self) -> Vec<Vec<u8>> {
        self.sent.lock().unwrap().iter().filter(|packet| has_token(packet)).cloned().collect()
    }
}

impl Sink for Recorder {
    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for packet in transmit.contents.chunks(size) {
            self.sent.lock().unwrap().push(packet.to_vec());
            self.socket.try_send_to(packet, transmit.destination)?;
        }
        Ok(())
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_send_ready(cx)
    }
}

/// Whether this is an Initial packet whose token is not empty (RFC 9000 §17.2.2).
fn has_token(packet: &[u8]) -> bool {
    let after = |at: usize| packet.get(at).map(|length| at + 1 + usize::from(*length));
    let token = || packet.get(after(after(5)?)?).copied();
    packet.first().is_some_and(|first| first & 0xf0 == 0xc0) && token().is_some_and(|length| length > 0)
}

/// One that counts no answers: what is refused here is refused for its token.
async fn supernode() -> Supernode {
    let mut config = config(1);
    config.rates.unproven_per_network = Rate { per_second: 1 << 20, burst: 1 << 20 };
    start(config).await
}

/// Says `packet` from an address of this network until there is an answer, and returns that.
async fn say_again(packet: &[u8], ip: &str, to: SocketAddr) -> Vec<u8> {
    let answer = ask(&UdpSocket::bind((ip, 0)).await.unwrap(), to, packet).await;
    assert!(answer.len() <= packet.len(), "{} bytes for {}", answer.len(), packet.len());
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_retry_token() {
    let supernode = supernode().await;
    let to = supernode.local_addresses()[0];
    let status = supernode.status();
    let flood = crate::common::udp().await;
    for (sent, initial) in (1..).zip(initials(to, UNPROVEN).await) {
        flood.send_to(&initial, to).await.unwrap();
        until("it is let in", || shell(&status, "handshakes") == sent).await;
    }
    // The next one has to prove its address, and does.
    let recorder = Recorder::new().await;
    let mut client = Client::quic_from(recorder.as_socket(), to, 2).await;
    client.register().await;
    assert!(shell(&status, "handshakes_retried") > 0, "nobody had to prove anything");
    let packets = recorder.with_token();
    let packet = packets.first().expect("a first packet with a token");

    // Another network's address, and another port of the same one. While the connection lives its packets are its own, wherever
    // they come from, and nobody answers.
    client.quic.take().unwrap().1.close(0u32.into(), b"");
    let handshakes = shell(&status, "handshakes");
    for ip in ["127.0.9.1", "127.0.0.1"] {
        say_again(packet, ip, to).await;
    }
    assert_eq!(shell(&status, "handshakes"), handshakes, "a token of somebody else's is believed");
    supernode.shutdown().await;
}
