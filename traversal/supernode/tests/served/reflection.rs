//! What a supernode sends to addresses that have proved nothing, measured at sockets of the system: in bytes, and in
//! answers for each network.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Instant,
};

use crate::common::{Client, capture::initials, config, data, shell, start, until};
use traversal_proto::{
    supernode::{DropReason, Rate},
    wire::{
        frame::{self, ChannelId, Frame, SessionId},
        stun::{ReflectorRequest, TransactionId},
    },
};

/// A source address that never answers: what it has sent, and what has come back.
struct Victim {
    socket: UdpSocket,
    sent: usize,
}

impl Victim {
    fn at(ip: &str) -> Victim {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Victim { socket, sent: 0 }
    }

    fn send(&mut self, bytes: &[u8], to: SocketAddr) {
        self.sent += self.socket.send_to(bytes, to).unwrap();
    }

    /// Bytes that have come since this was asked last.
    fn received(&self) -> usize {
        let mut buffer = [0; 2048];
        std::iter::from_fn(|| self.socket.recv(&mut buffer).ok()).sum()
    }
}

/// Fails unless what has come back to every one of them is at most `factor` times what it has sent; tells how many got
/// something.
fn answered(victims: &[Victim], factor: usize) -> usize {
    let received = victims.iter().map(|victim| (victim.received(), victim.sent));
    received
        .filter(|(back, sent)| {
            assert!(*back <= factor * sent, "{back} bytes for {sent}");
            *back > 0
        })
        .count()
}

fn limited(burst: u64) -> supernode::Config {
    let mut config = config(2);
    config.rates.unproven_per_network = Rate { per_second: 1, burst };
    config
}

/// The burst, and one for each second since.
fn allowance(burst: u64, since: Instant) -> usize {
    usize::try_from(burst + since.elapsed().as_secs() + 1).unwrap()
}

/// QUIC handshakes that are begun and never go on: whatever is retransmitted until they are given up, it is no more than
/// three times what came in, for every address and connection (RFC 9000 §8.1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_quic_handshakes() {
    let supernode = start(config(1)).await;
    let to = supernode.local_addresses()[0];
    let mut victims = Vec::new();
    for (at, initial) in initials(to, 60).await.into_iter().enumerate() {
        let mut victim = Victim::at(&format!("127.0.{}.1", at % 2));
        // Some come twice: more may be sent back then, and still no more than that.
        for _ in 0..1 + at % 3 {
            victim.send(&initial, to);
        }
        victims.push(victim);
    }
    // Too short for a first packet (RFC 9000 §14.1), which asks for no answer at all.
    for initial in initials(to, 10).await {
        let mut victim = Victim::at("127.0.0.1");
        victim.send(&initial[..1199], to);
        victims.push(victim);
    }
    let status = supernode.status();
    until("all are given up", || shell(&status, "handshakes_failed") == 60).await;
    assert_eq!(shell(&status, "handshakes"), 60);
    assert_eq!(answered(&victims[60..], 0), 0);
    assert_eq!(answered(&victims[..60], 3), 60);
    supernode.shutdown().await;
}

/// A first packet's header until its destination id: of a version that nobody speaks, and with an id that is too short
/// (RFC 9000 §7.2).
const STRANGE: [u8; 6] = [0xc0, 0x1a, 0x2a, 0x3a, 0x4a, 8];
const SHORT: [u8; 6] = [0xc0, 0, 0, 0, 1, 7];

fn first_packet(header: [u8; 6], n: u8) -> Vec<u8> {
    let mut bytes = vec![0; 1200];
    bytes[..6].copy_from_slice(&header);
    bytes[6] = n;
    // After the id: no id of its own, no token, and all the rest is payload.
    let length = 6 + usize::from(header[5]) + 2;
    let payload = (1200 - length - 2) as u16 | 0x4000;
    bytes[length..length + 2].copy_from_slice(&payload.to_be_bytes());
    bytes
}

/// One network's handshakes are answered so often; then not at all, not by a Retry either. Other networks' are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_is_limited_by_network() {
    let supernode = start(limited(20)).await;
    let to = supernode.local_addresses()[0];
    let started = Instant::now();
    let mut victims = Vec::new();
    for initial in initials(to, 300).await {
        let mut victim = Victim::at("127.0.0.1");
        victim.send(&initial, to);
        victims.push(victim);
        tokio::task::yield_now().await;
    }
    let status = supernode.status();
    let names = ["handshakes", "handshakes_ignored", "handshakes_retried", "handshakes_refused"];
    until("all are looked at", || names.map(|name| shell(&status, name)).iter().sum::<u64>() >= 300).await;
    // Versions that nobody speaks, and ids that are too short: a Version Negotiation, or a refusal, is an answer as well.
    let ignored = || shell(&status, "handshakes_ignored");
    for kind in [STRANGE, SHORT] {
        let before = ignored();
        for n in 0..100 {
            let mut victim = Victim::at("127.0.0.1");
            victim.send(&first_packet(kind, n), to);
            victims.push(victim);
        }
        until("all are dropped", || ignored() - before >= 98).await;
    }
    let most = allowance(20, started);
    let answers = answered(&victims, 3);
    assert!((20..=most).contains(&answers), "{answers} answers, at most {most}");

    for kind in [STRANGE, SHORT] {
        let mut elsewhere = Victim::at("127.0.8.1");
        elsewhere.send(&first_packet(kind, 0), to);
        let mut back = 0;
        until("another network is answered", || {
            back += elsewhere.received();
            back > 0
        })
        .await;
        assert!(back <= elsewhere.sent, "{back} bytes for {kind:02x?}");
    }
    Client::quic_at("127.0.9.1", to, 2).await.register().await;
    supernode.shutdown().await;
}

/// STUN, at both addresses: three times what came in at the most, and one budget for a network whatever the port.
#[tokio::test]
async fn stun_is_limited_by_size_and_network() {
    let supernode = start(limited(30)).await;
    let ports = supernode.local_addresses().to_vec();
    let started = Instant::now();
    let smallest = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
    let usual = ReflectorRequest::new(TransactionId([7; 12])).encode();
    let padded = ReflectorRequest { padding: 1280, ..ReflectorRequest::new(TransactionId([7; 12])) }.encode();
    let mut victims = Vec::new();
    for n in 0..300 {
        let mut victim = Victim::at("127.0.0.1");
        victim.send([&smallest, &usual, &padded][n % 3], ports[n % 2]);
        victims.push(victim);
    }
    let status = supernode.status();
    let total = || status.counters().reflections + status.counters().dropped(DropReason::Unproven);
    until("all are looked at", || total() == 300).await;
    let most = allowance(30, started);
    let answers = answered(&victims, 3);
    assert!((30..=most).contains(&answers), "{answers} answers, at most {most}");

    let mut elsewhere = Victim::at("127.0.8.1");
    elsewhere.send(&usual, ports[1]);
    until("another network is answered", || elsewhere.received() > 0).await;
    supernode.shutdown().await;
}

/// Our own frames: never more than came in, whatever they say.
#[tokio::test]
async fn own_frames_do_not_grow() {
    let mut config = config(2);
    config.rates.unproven_per_network = Rate { per_second: 1 << 20, burst: 1 << 20 };
    let supernode = start(config).await;
    let ports = supernode.local_addresses().to_vec();
    let mut client = Client::tcp(ports[0], 2).await;
    let session = client.register().await.id;
    let mut frames: Vec<Vec<u8>> = (0..40).map(|n| data(ChannelId(n), &vec![0; n as usize])).collect();
    for (session, proof) in [(session, [0; 16]), (SessionId(77), [9; 16])] {
        let cookies = [[0; 16], [1; 16]];
        frames.extend(
            cookies.map(|cookie| Frame::Bind(frame::Bind { session, sequence: 1, cookie, proof }).to_vec()),
        );
    }
    for kind in 0x80..=0xbf {
        frames.extend([1, 5, 6, 25, 27, 41, 600].map(|length| vec![kind; length]));
    }
    let mut victims = Vec::new();
    for (at, bytes) in frames.iter().enumerate() {
        let mut victim = Victim::at("127.0.0.1");
        victim.send(bytes, ports[at % 2]);
        victims.push(victim);
    }
    let status = supernode.status();
    until("all are looked at", || shell(&status, "udp_received_packets") == frames.len() as u64).await;
    // What is answered comes before the answer to this.
    for port in &ports {
        let mut last = Victim::at("127.0.0.1");
        last.send(&ReflectorRequest::new(TransactionId([7; 12])).encode(), *port);
        until("the last is answered", || last.received() > 0).await;
    }
    let answers = answered(&victims, 1);
    assert!(answers > 40, "{answers} answers: Challenges and Errors");
    for reason in [DropReason::Malformed, DropReason::Unexpected, DropReason::NoChannel] {
        assert!(status.counters().dropped(reason) > 0, "{reason}");
    }
    assert_eq!(status.gauges().channels, 0);
    supernode.shutdown().await;
}
