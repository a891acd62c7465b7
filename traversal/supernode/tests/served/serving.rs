//! A supernode on loopback, and what peers get from it.

use std::{net::SocketAddr, time::Duration};

use crate::common::{Client, SOON, ask, bind, config, data, http, identity, shell, start, udp, until};
use tokio::time::timeout;
use traversal_proto::wire::{
    frame::Frame,
    message::{Code, FromSupernode, ToSupernode},
    stun::{Change, ReflectorReply, ReflectorRequest, TransactionId},
};

/// Two peers with a session each, one by QUIC and one by TLS, and the supernode's address.
async fn two_peers(to: SocketAddr) -> ((Client, crate::common::Session), (Client, crate::common::Session)) {
    let (mut a, mut b) = (Client::quic(to, 2).await, Client::tcp(to, 3).await);
    let (near, far) = (a.register().await, b.register().await);
    ((a, near), (b, far))
}

#[tokio::test]
async fn hello_tells_where_the_peer_is_seen() {
    let supernode = start(config(2)).await;
    let to = supernode.local_addresses()[0];
    let mut quic = Client::quic(to, 2).await;
    let hello = quic.hello().await;
    assert_eq!(hello.observed, quic.quic.as_ref().unwrap().0.local_addr().unwrap());
    assert_eq!(&hello.reflectors[..], supernode.addresses());
    let mut tcp = Client::tcp(to, 3).await;
    assert_eq!(tcp.hello().await.observed.ip(), to.ip());
    assert_eq!(supernode.connect_string(), format!("{}@{to}", identity(1).peer_id()));
    supernode.shutdown().await;
}

/// Register, bind, connect; then data goes both ways, renumbered and otherwise as it was, also many packets at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_goes_between_bound_addresses() {
    let supernode = start(config(1)).await;
    let to = supernode.local_addresses()[0];
    let ((mut a, near), (mut b, far)) = two_peers(to).await;
    let (left, right) = (udp().await, udp().await);
    bind(&left, to, &near).await;
    bind(&right, to, &far).await;
    let (here, there) = a.channel_to(&mut b).await;
    let mut buffer = [0; 2048];
    for round in 0..100u8 {
        for n in 0..10u8 {
            left.send_to(&data(here, &[round, n]), to).await.unwrap();
        }
        // Loopback loses nothing below its buffers' size.
        for n in 0..10u8 {
            let (length, from) = timeout(SOON, right.recv_from(&mut buffer)).await.unwrap().unwrap();
            assert_eq!((from, &buffer[..length]), (to, &data(there, &[round, n])[..]));
        }
    }
    right.send_to(&data(there, b"back"), to).await.unwrap();
    let (length, _) = timeout(SOON, left.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..length], data(here, b"back"));
    assert_eq!(supernode.status().counters().relayed_packets, 1001);
    supernode.shutdown().await;
}

/// A train of packets that the kernel hands over joined is renumbered packet by packet and leaves joined.
#[tokio::test]
async fn trains_stay_together() {
    use std::future::poll_fn;
    use traversal_net::{
        Transmit,
        socket::{DatagramSocket, Sink},
        udp::{BATCH_SIZE, KernelSocket, RecvBatch},
    };

    let supernode = start(config(1)).await;
    let to = supernode.local_addresses()[0];
    let ((mut a, near), (mut b, far)) = two_peers(to).await;
    let (left, right) = (udp().await, udp().await);
    bind(&left, to, &near).await;
    bind(&right, to, &far).await;
    let (here, there) = a.channel_to(&mut b).await;
    let left = KernelSocket::from_std(left.into_std().unwrap()).unwrap();
    let right = KernelSocket::from_std(right.into_std().unwrap()).unwrap();
    let status = supernode.status();
    let before = shell(&status, "udp_send_calls");
    let payload = |n: u8| vec![n; if n < 40 { 1000 } else { 300 }];
    let contents: Vec<u8> = (0..=40).flat_map(|n| data(here, &payload(n))).collect();
    let transmit =
        Transmit { destination: to, ecn: None, contents: &contents, segment_size: Some(1005), src_ip: None };
    left.try_send(&transmit).unwrap();
    let mut batch = RecvBatch::new(&right, BATCH_SIZE, 2048);
    let mut heard = Vec::new();
    while heard.len() < 41 {
        let count = timeout(SOON, poll_fn(|cx| batch.poll_recv(&right, cx))).await.expect("packets are lost");
        for (meta, train) in batch.trains(count.unwrap()) {
            heard.extend(train.chunks(meta.stride).map(<[u8]>::to_vec));
        }
    }
    let expected: Vec<_> = (0..=40).map(|n| data(there, &payload(n))).collect();
    assert!(heard == expected, "packets differ");
    if left.max_transmit_segments() > 40 && right.max_receive_segments() > 40 {
        assert!(shell(&status, "udp_send_calls") - before < 5, "sent one by one");
    }
    supernode.shutdown().await;
}

/// State is soft: the successor on the same address, with the same key, serves peers that register again.
#[tokio::test]
async fn a_successor_takes_over_the_address() {
    let first = start(config(1)).await;
    let to = first.local_addresses()[0];
    let status = first.status();
    let ((_a, _), (_b, _)) = two_peers(to).await;
    first.shutdown().await;
    let mut config = config(1);
    config.listen = vec![to];
    let second = start(config).await;
    let ((mut a, _), (mut b, _)) = two_peers(to).await;
    a.channel_to(&mut b).await;
    assert_eq!((status.gauges().registrations, second.status().gauges().registrations), (0, 2));
    second.shutdown().await;
}

#[tokio::test]
async fn a_peer_without_udp_is_relayed_by_its_connection() {
    let supernode = start(config(1)).await;
    let to = supernode.local_addresses()[0];
    let ((mut a, near), (mut b, _)) = two_peers(to).await;
    let left = udp().await;
    bind(&left, to, &near).await;
    b.send(&ToSupernode::Attach).await;
    assert_eq!(b.next().await, FromSupernode::Attached);
    let (here, there) = a.channel_to(&mut b).await;

    left.send_to(&data(here, b"to the stream"), to).await.unwrap();
    assert_eq!(b.next_raw().await.unwrap(), data(there, b"to the stream"));
    b.send_raw(&data(there, b"to the address")).await;
    let mut buffer = [0; 64];
    let (length, _) = timeout(SOON, left.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(&buffer[..length], data(here, b"to the address"));
    supernode.shutdown().await;
}

/// Both peers on streams, one of which QUIC carries.
#[tokio::test]
async fn two_peers_without_udp_are_relayed() {
    let supernode = start(config(1)).await;
    let ((mut a, _), (mut b, _)) = two_peers(supernode.local_addresses()[0]).await;
    for peer in [&mut a, &mut b] {
        peer.send(&ToSupernode::Attach).await;
        assert_eq!(peer.next().await, FromSupernode::Attached);
    }
    let (here, there) = a.channel_to(&mut b).await;
    a.send_raw(&data(here, b"ping")).await;
    assert_eq!(b.next_raw().await.unwrap(), data(there, b"ping"));
    b.send_raw(&data(there, b"pong")).await;
    assert_eq!(a.next_raw().await.unwrap(), data(here, b"pong"));
    supernode.shutdown().await;
}

/// STUN (RFC 8489), and with two addresses and ports the answer from the other one (RFC 5780 §4.3).
#[tokio::test]
async fn the_reflector_answers_from_where_it_is_asked_to() {
    let mut config = config(1);
    config.listen = vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()];
    let supernode = start(config).await;
    let (first, second) = (supernode.local_addresses()[0], supernode.local_addresses()[1]);
    let socket = udp().await;
    let request = ReflectorRequest::new(TransactionId([7; 12]));
    let reply = ReflectorReply::decode(&ask(&socket, first, &request.encode()).await).unwrap();
    let ReflectorReply::Success(reflection) = reply else { panic!("{reply:?}") };
    assert_eq!(reflection.mapped, socket.local_addr().unwrap());
    assert_eq!((reflection.origin, reflection.other), (Some(first), Some(second)));

    let change = Some(Change { address: true, port: true });
    let request = ReflectorRequest { change, ..request }.encode();
    let mut buffer = [0; 2048];
    socket.send_to(&request, first).await.unwrap();
    let (_, from) = timeout(SOON, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(from, second);
    supernode.shutdown().await;
}

#[tokio::test]
async fn a_drain_asks_everybody_and_ends_early_when_they_have_left() {
    let supernode = start(config(1)).await;
    let to = supernode.local_addresses()[0];
    let ((mut a, _), (mut b, _)) = two_peers(to).await;
    let status = supernode.status();
    let draining = tokio::spawn(async move {
        supernode.drain(Duration::from_secs(600)).await;
        supernode
    });
    for peer in [&mut a, &mut b] {
        assert!(matches!(peer.next().await, FromSupernode::Drain { leave_in, .. } if leave_in < 600_000));
    }
    assert!(status.is_draining());
    let mut late = Client::tcp(to, 4).await;
    assert_eq!(late.until_end().await, [FromSupernode::Error { code: Code::Draining }]);
    drop((a, b));
    timeout(SOON, draining).await.expect("waits for nobody").unwrap().shutdown().await;
}

/// Whoever stays is told why, and disconnected.
#[tokio::test]
async fn a_shutdown_says_good_bye() {
    let supernode = start(config(1)).await;
    let ((mut a, _), (mut b, _)) = two_peers(supernode.local_addresses()[0]).await;
    supernode.shutdown().await;
    for peer in [&mut a, &mut b] {
        assert!(peer.until_end().await.contains(&FromSupernode::Error { code: Code::Draining }));
    }
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let mut config = config(1);
    config.admin = Some("127.0.0.1:0".parse().unwrap());
    let supernode = start(config).await;
    let admin = supernode.admin_address().unwrap();
    let _peers = two_peers(supernode.local_addresses()[0]).await;
    udp().await.send_to(&[0x20; 9], supernode.local_addresses()[0]).await.unwrap();
    let status = supernode.status();
    until("a drop is counted", || status.counters().drops().any(|(_, count)| count > 0)).await;

    assert!(http(admin, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(http(admin, "/other").await.starts_with("HTTP/1.1 404"));
    let metrics = http(admin, "/metrics").await;
    for line in [
        "supernode_registrations_total 2",
        "supernode_registrations_active 2",
        "supernode_connections 2",
        "supernode_handshakes_total 2",
        "supernode_dropped_total{reason=\"malformed\"} 1",
        "# TYPE supernode_dropped_total counter",
    ] {
        assert!(metrics.contains(&format!("\n{line}\n")), "{line} is not in\n{metrics}");
    }
    let mut names: Vec<_> = metrics.lines().filter(|line| line.starts_with("# TYPE")).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name is used twice");
    supernode.drain(Duration::ZERO).await;
    assert!(http(admin, "/healthz").await.starts_with("HTTP/1.1 503"));
    supernode.shutdown().await;
}

/// The reason reaches a peer that goes on talking while it is disconnected: its unread words do not reset the connection.
#[tokio::test]
async fn last_words_arrive() {
    let supernode = start(config(1)).await;
    let to = supernode.local_addresses()[0];
    for _ in 0..5 {
        let mut first = Client::tcp(to, 2).await;
        first.register().await;
        let mut second = Client::tcp(to, 2).await;
        second.register().await;
        for _ in 0..50 {
            first.send(&ToSupernode::Ping { nonce: 1 }).await;
        }
        assert!(first.until_end().await.contains(&FromSupernode::Error { code: Code::Replaced }));
    }
    supernode.shutdown().await;
}

/// A frame from an address that is bound to nothing is answered with a hint, and goes nowhere.
#[tokio::test]
async fn an_unbound_address_relays_nothing() {
    let supernode = start(config(1)).await;
    let to = supernode.local_addresses()[0];
    let ((mut a, _), (mut b, far)) = two_peers(to).await;
    let right = udp().await;
    bind(&right, to, &far).await;
    let (here, _) = a.channel_to(&mut b).await;
    let hint = ask(&udp().await, to, &data(here, b"let me in")).await;
    assert!(matches!(Frame::decode(&hint), Ok(Frame::Error { .. })), "{hint:?}");
    assert_eq!(supernode.status().counters().relayed_packets, 0);
    supernode.shutdown().await;
}

/// A peer that asks and never reads is disconnected; nobody else notices.
#[tokio::test]
async fn a_slow_reader_is_let_go() {
    let supernode = start(config(1)).await;
    let mut other = Client::tcp(supernode.local_addresses()[0], 2).await;
    other.register().await;
    // A pipe that holds little, where a kernel's TCP would hold megabytes.
    let (near, far) = tokio::io::duplex(4096);
    supernode.serve_stream(far, "192.0.2.2:6000".parse().unwrap());
    let mut slow = Client::tls_over(near, 3).await;
    slow.register().await;
    let status = supernode.status();
    let flood = tokio::spawn(async move {
        loop {
            slow.send(&ToSupernode::Ping { nonce: u64::MAX }).await;
        }
    });
    until("the slow reader is gone", || status.gauges().connections == 1).await;
    flood.abort();
    assert_eq!(shell(&status, "slow_readers"), 1);
    other.send(&ToSupernode::Lookup { request: 1, peer: identity(3).peer_id(), hops: 0 }).await;
    assert!(matches!(other.next().await, FromSupernode::Refused { code: Code::UnknownPeer, .. }));
    supernode.shutdown().await;
}

/// The same over byte streams and datagrams in memory, under a paused clock: no socket of the system is involved.
#[tokio::test(start_paused = true)]
async fn it_runs_in_a_simulation() {
    use std::sync::Arc;
    use traversal_net::memory::MemoryNet;
    use traversal_proto::UnixTime;

    let network = MemoryNet::new(Duration::from_millis(25));
    let address: SocketAddr = "203.0.113.10:3478".parse().unwrap();
    let mut config = config(1);
    (config.seed, config.wall_clock) = (Some([7; 32]), Some(UnixTime(1_800_000_000)));
    let listener =
        supernode::Listener { external: address, udp: vec![Arc::new(network.socket(address))], tcp: None };
    let supernode = supernode::Supernode::on_sockets(config, vec![listener]).await.unwrap();
    let socket = network.socket("192.0.2.1:5000".parse().unwrap());
    let mut a = Client::quic_from(Arc::new(socket), address, 2).await;
    let (near, far) = tokio::io::duplex(1 << 16);
    supernode.serve_stream(far, "192.0.2.2:6000".parse().unwrap());
    let mut b = Client::tls_over(near, 3).await;
    let hello = a.hello().await;
    assert_eq!((hello.observed, hello.time.0 / 10), ("192.0.2.1:5000".parse().unwrap(), 180_000_000));
    a.register_at(hello.time).await;
    b.register().await;
    a.channel_to(&mut b).await;
    // Nobody renews; after the lifetime of the records nobody is registered.
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(supernode.status().gauges().registrations, 0);
    supernode.shutdown().await;
}
