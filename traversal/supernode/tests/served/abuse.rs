//! What strangers, and peers that mean ill, can do to a supernode's sockets and connections: nothing to anybody else.

use std::time::Duration;

use crate::common::{
    Client, ask, capture::initials, config, data, http, identity, pair::Pair, shell, start, udp, until,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use traversal_proto::{
    UnixTime,
    supernode::DropReason,
    wire::{
        Record, SignedRecord,
        frame::{self, Frame},
        message::{Code, FromSupernode, ToSupernode},
        stun::{ReflectorReply, ReflectorRequest, TransactionId},
    },
};

/// Numbers without a pattern, the same in every run.
struct Noise(u32);

impl Noise {
    fn byte(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 24) as u8
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = usize::from(self.byte()) * usize::from(self.byte()) % most;
        (0..length).map(|_| self.byte()).collect()
    }
}

/// Random datagrams, and good ones cut short at every length, to both UDP ports: all are dropped and counted, and
/// everybody is served as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_by_udp() {
    let supernode = start(config(2)).await;
    let ports = supernode.local_addresses().to_vec();
    let pair = Pair::at(ports[0]).await;
    let status = supernode.status();
    let before = (status.gauges(), status.counters().relayed_packets, shell(&status, "udp_received_packets"));
    let (socket, mut noise) = (udp().await, Noise(1));
    let good = [
        ReflectorRequest::new(TransactionId([7; 12])).encode(),
        Frame::Bind(frame::Bind { session: pair.near.id, sequence: 9, cookie: [0; 16], proof: [0; 16] })
            .to_vec(),
        data(pair.ends.0, b"from elsewhere"),
        initials(ports[0], 1).await.remove(0)[..100].to_vec(),
    ];
    let read = || shell(&status, "udp_received_packets") - before.2;
    let mut sent = 0;
    for port in &ports {
        let random = (0..=255).map(|first| [&[first][..], &noise.bytes(1400)].concat());
        let cut = good.iter().flat_map(|message| (1..message.len()).map(|cut| message[..cut].to_vec()));
        for bytes in random.chain(cut).collect::<Vec<_>>() {
            socket.send_to(&bytes, port).await.unwrap();
            sent += 1;
            if sent % 16 == 0 {
                // A full buffer would lose some, and nobody would have looked at those.
                until("they are read", || read() == sent).await;
            }
        }
        socket.send_to(&[], port).await.unwrap();
    }
    until("all are looked at", || read() == sent).await;
    let after = status.counters();
    assert!(after.dropped(DropReason::Malformed) > 200, "{}", after.dropped(DropReason::Malformed));
    assert!(after.dropped(DropReason::NotBound) >= 20, "{}", after.dropped(DropReason::NotBound));
    assert_eq!((status.gauges(), after.relayed_packets), (before.0, before.1), "noise leaves nothing behind");
    pair.relays().await;
    for port in &ports {
        let reply = ask(&udp().await, *port, &good[0]).await;
        assert!(matches!(ReflectorReply::decode(&reply), Ok(ReflectorReply::Success(_))));
    }
    supernode.shutdown().await;
}

/// Random bytes, other protocols and handshakes cut short at the TCP ports and the admin port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_by_tcp() {
    let mut config = config(2);
    config.admin = Some("127.0.0.1:0".parse().unwrap());
    let supernode = start(config).await;
    let (ports, admin) = (supernode.local_addresses().to_vec(), supernode.admin_address().unwrap());
    let pair = Pair::at(ports[0]).await;
    let status = supernode.status();
    let (mut noise, before) = (Noise(2), shell(&status, "handshakes_failed"));
    let mut streams: Vec<Vec<u8>> = (0..20).map(|_| noise.bytes(6000)).collect();
    streams.extend(
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0x16, 3, 1, 0, 1, 9], &[0; 4096]]
            .map(Vec::from),
    );
    streams.push([&b"GET /"[..], &[b'x'; 100_000], b" HTTP/1.1\r\n\r\n"].concat());
    streams.push([&b"GET /metrics HTTP/1.1\r\nA: "[..], &[0xff; 100_000]].concat());
    for port in ports.iter().chain([&admin]) {
        for bytes in &streams {
            let mut stream = TcpStream::connect(port).await.unwrap();
            // It may be closed before all is written.
            let _ = stream.write_all(bytes).await;
        }
    }
    let strangers = (2 * streams.len()) as u64;
    until("all have failed", || shell(&status, "handshakes_failed") - before >= strangers).await;
    assert_eq!(status.gauges().connections, 2);
    pair.relays().await;
    assert!(http(admin, "/healthz").await.starts_with("HTTP/1.1 200"));
    Client::tcp(ports[1], 4).await.register().await;
    supernode.shutdown().await;
}

/// A peer that is authenticated and then talks nonsense, by either transport, is told so and disconnected.
#[tokio::test]
async fn nonsense_on_a_connection() {
    let supernode = start(config(1)).await;
    let to = supernode.local_addresses()[0];
    let pair = Pair::at(to).await;
    let cut = ToSupernode::Ping { nonce: u64::MAX }.encode()[..3].to_vec();
    for nonsense in [&[0x7f, 1, 2][..], &[5; 3000], &[0xff], &[0x40], &cut] {
        for quic in [true, false] {
            let mut peer = if quic { Client::quic(to, 9).await } else { Client::tcp(to, 9).await };
            peer.hello().await;
            peer.send_raw(nonsense).await;
            let heard = peer.until_end().await;
            assert_eq!(
                heard.last(),
                Some(&FromSupernode::Error { code: Code::Malformed }),
                "{nonsense:02x?}"
            );
        }
    }
    // Lengths that no frame has.
    for length in [[0, 0], [0x10, 0x01], [0xff, 0xff]] {
        let mut peer = Client::tcp(to, 9).await;
        peer.hello().await;
        peer.send_plain(&length).await;
        assert_eq!(peer.until_end().await, []);
    }
    until("only the two are left", || supernode.status().gauges().connections == 2).await;
    assert!(supernode.status().counters().messages_malformed >= 8);
    pair.relays().await;
    supernode.shutdown().await;
}

/// Somebody else's record, an old one, one for another supernode; somebody else's channel.
#[tokio::test]
async fn forged_and_replayed_messages() {
    let supernode = start(config(1)).await;
    let mut pair = Pair::at(supernode.local_addresses()[0]).await;
    let mut mallory = Client::quic(pair.to, 9).await;
    let now = mallory.hello().await.time;
    let signed = |by: u8, sequence| {
        let (peer, supernode) = (identity(by).peer_id(), identity(1).peer_id());
        SignedRecord::sign(
            Record { peer, supernode, sequence, expires: UnixTime(now.0 + 300) },
            &identity(by),
        )
    };
    let elsewhere = Record { supernode: identity(7).peer_id(), ..*signed(9, 9).claims() };
    let elsewhere = SignedRecord::sign(elsewhere, &identity(9));
    let refusals = [
        (signed(2, u64::MAX), Code::WrongPeer),
        (elsewhere, Code::WrongSupernode),
        // Of two with the same number the second is a replay.
        (signed(9, 9), Code::StaleSequence),
        (signed(9, 8), Code::StaleSequence),
    ];
    for (at, (record, code)) in refusals.into_iter().enumerate() {
        if at == 2 {
            mallory.send(&ToSupernode::Register { record, accepting: true, resume: false }).await;
            assert!(matches!(mallory.next().await, FromSupernode::Registered { .. }));
        }
        mallory.send(&ToSupernode::Register { record, accepting: true, resume: false }).await;
        let FromSupernode::Refused { request: 0, code: told, .. } = mallory.next().await else {
            panic!("{code}")
        };
        assert_eq!(told, code);
    }
    for channel in [pair.ends.0, pair.ends.1] {
        mallory.send(&ToSupernode::Close { channel }).await;
        assert_eq!(mallory.next().await, FromSupernode::Error { code: Code::NoChannel });
        mallory.send_raw(&data(channel, b"forged")).await;
    }
    let status = supernode.status();
    until("forged packets are dropped", || status.counters().dropped(DropReason::NotBound) == 2).await;
    pair.relays().await;
    // The two have heard nothing of all that.
    for peer in [&mut pair.a, &mut pair.b] {
        peer.send(&ToSupernode::Lookup { request: 1, peer: identity(77).peer_id(), hops: 0 }).await;
        assert!(matches!(peer.next().await, FromSupernode::Refused { request: 1, .. }));
    }
    supernode.shutdown().await;
}

/// Who sees every datagram of a peer, and has not its token, gets none of its packets.
#[tokio::test]
async fn a_relay_session_is_not_hijacked() {
    let supernode = start(config(1)).await;
    let pair = Pair::at(supernode.local_addresses()[0]).await;
    let (thief, session) = (udp().await, pair.near.id);
    let copied = |cookie| {
        let proof = pair.near.token.bind(session, 1, &[0; 16]);
        Frame::Bind(frame::Bind { session, sequence: 2, cookie, proof }).to_vec()
    };
    let challenge = ask(&thief, pair.to, &copied([0; 16])).await;
    let Ok(Frame::Challenge { cookie, .. }) = Frame::decode(&challenge) else { panic!("{challenge:?}") };
    let status = supernode.status();
    thief.send_to(&copied(cookie), pair.to).await.unwrap();
    until("the proof is refused", || status.counters().dropped(DropReason::BadProof) == 1).await;
    thief.send_to(&data(pair.ends.0, b"forged"), pair.to).await.unwrap();
    until("the packet is dropped", || status.counters().dropped(DropReason::NotBound) == 1).await;
    pair.relays().await;
    assert_eq!(status.counters().binds, 2);
    supernode.shutdown().await;
}

/// Connections that are opened and say nothing: one network's do not take all the places, and the places come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[cfg(target_os = "linux")]
async fn a_flood_of_silent_connections() {
    let mut config = config(1);
    config.admin = Some("127.0.0.1:0".parse().unwrap());
    config.timing.register_within = Duration::from_millis(300);
    let supernode = start(config).await;
    let (to, admin) = (supernode.local_addresses()[0], supernode.admin_address().unwrap());
    let status = supernode.status();
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(to).await.unwrap());
        silent.push(TcpStream::connect(admin).await.unwrap());
    }
    until("the rest is refused", || shell(&status, "handshakes_refused") == 300 - 128).await;
    let mut elsewhere = Client::tls_over(crate::common::tcp_from("127.0.9.1", to).await, 2).await;
    elsewhere.register().await;
    Client::quic_at("127.0.9.1", to, 3).await.register().await;
    assert!(http(admin, "/healthz").await.starts_with("HTTP/1.1 200"));
    until("the silent ones are given up", || shell(&status, "handshakes_failed") == 128).await;
    // Beyond the handshake: who does not register is let go.
    let mut idle = Client::tcp(to, 4).await;
    idle.hello().await;
    assert_eq!(idle.until_end().await, [FromSupernode::Error { code: Code::NotRegistered }]);
    drop(silent);
    supernode.shutdown().await;
}

/// Requests that come byte by byte, or never end, at the admin port: everybody is answered meanwhile, and they are closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_requests_at_the_admin_port() {
    let mut config = config(1);
    config.admin = Some("127.0.0.1:0".parse().unwrap());
    let supernode = start(config).await;
    let admin = supernode.admin_address().unwrap();
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        slow.push(tokio::spawn(async move {
            let mut answer = [0; 64];
            // It may be closed at any time.
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nA: ").await;
            loop {
                tokio::select! {
                    read = stream.read(&mut answer) => return matches!(read, Ok(0) | Err(_)),
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
                let _ = stream.write_all(b"a").await;
            }
        }));
    }
    for _ in 0..20 {
        assert!(http(admin, "/healthz").await.starts_with("HTTP/1.1 200"));
    }
    for slow in slow {
        let closed = tokio::time::timeout(crate::common::SOON, slow).await.expect("it may go on for ever");
        assert!(closed.unwrap(), "a request without an end is answered");
    }
    let endless = [&b"GET /metrics HTTP/1.1\r\nA: "[..], &[b'a'; 20_000], b"\r\n\r\n"].concat();
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let _ = stream.write_all(&endless).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    supernode.shutdown().await;
}
