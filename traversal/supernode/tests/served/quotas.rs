//! What peers may use, and that it is free again when they vanish.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::common::{Client, config, data, pair::Pair, start, until};
use traversal_net::memory::MemoryNet;
use traversal_proto::{
    UnixTime,
    supernode::{DropReason, Quota, Rate},
    wire::message::{FromSupernode, ToSupernode},
};

/// What one peer may send holds whatever it sends by, and is told in the metrics.
#[tokio::test]
async fn quotas_are_enforced() {
    let mut config = config(1);
    config.quotas.per_peer = Quota { packets: Some(Rate { per_second: 1, burst: 20 }), ..Quota::default() };
    let supernode = start(config).await;
    let mut pair = Pair::at(supernode.local_addresses()[0]).await;
    let started = tokio::time::Instant::now();
    for _ in 0..100 {
        pair.sockets.0.send_to(&data(pair.ends.0, b"much"), pair.to).await.unwrap();
    }
    let status = supernode.status();
    let counted = || (status.counters().relayed_packets, status.counters().dropped(DropReason::PacketRate));
    until("all are looked at", || counted().0 + counted().1 == 100).await;
    assert!((20..=21 + started.elapsed().as_secs()).contains(&counted().0), "{:?}", counted());
    assert!(matches!(pair.a.next().await, FromSupernode::Quota { .. }));
    // By the connection it is the same account.
    pair.a.send(&ToSupernode::Attach).await;
    assert_eq!(pair.a.next().await, FromSupernode::Attached);
    let before = counted();
    for _ in 0..50 {
        pair.a.send_raw(&data(pair.ends.0, b"more")).await;
    }
    until("all are looked at", || counted().0 + counted().1 == 150).await;
    assert!(counted().0 - before.0 <= 1 + started.elapsed().as_secs(), "{before:?} {:?}", counted());
    assert!(supernode.status().metrics().contains("supernode_dropped_total{reason=\"packet-rate\"}"));
    supernode.shutdown().await;
}

/// Peers whose network swallows everything from one moment on, one by QUIC and one by TLS: what they held is free again,
/// the channel, the registration, the connection; what they have used is not forgotten.
#[tokio::test(start_paused = true)]
async fn who_vanishes_holds_nothing() {
    let network = MemoryNet::new(Duration::from_millis(25));
    let address: SocketAddr = "203.0.113.10:3478".parse().unwrap();
    let mut config = config(1);
    (config.seed, config.wall_clock) = (Some([7; 32]), Some(UnixTime(1_800_000_000)));
    config.quotas.per_peer.volume = Some(100);
    config.quotas.signalling = Rate { per_second: 0, burst: 0 };
    let listener =
        supernode::Listener { external: address, udp: vec![Arc::new(network.socket(address))], tcp: None };
    let supernode = supernode::Supernode::on_sockets(config, vec![listener]).await.unwrap();
    let status = supernode.status();
    let here: SocketAddr = "192.0.2.1:5000".parse().unwrap();
    let mut a = Client::quic_from(Arc::new(network.socket(here)), address, 2).await;
    let (near, far) = tokio::io::duplex(1 << 16);
    supernode.serve_stream(far, "192.0.2.2:6000".parse().unwrap());
    let mut b = Client::tls_over(near, 3).await;
    for peer in [&mut a, &mut b] {
        let time = peer.hello().await.time;
        peer.register_at(time).await;
        peer.send(&ToSupernode::Attach).await;
        assert_eq!(peer.next().await, FromSupernode::Attached);
    }
    let (ours, theirs) = a.channel_to(&mut b).await;
    a.send_raw(&data(ours, &[7; 95])).await;
    assert_eq!(b.next_raw().await.unwrap(), data(theirs, &[7; 95]));
    let gauges = status.gauges();
    assert_eq!((gauges.connections, gauges.registrations, gauges.channels), (2, 2, 1));

    // Another socket takes the address, and reads nothing: not a word reaches the first one any more.
    let silent = network.socket(here);
    tokio::time::sleep(Duration::from_secs(61)).await;
    let gauges = status.gauges();
    assert_eq!((gauges.connections, gauges.registrations, gauges.channels), (1, 1, 0), "QUIC has given up");
    // The stream stays open, but the record is not renewed.
    tokio::time::sleep(Duration::from_secs(320)).await;
    let gauges = status.gauges();
    assert_eq!((gauges.connections, gauges.registrations), (0, 0), "the other's time is over");
    assert_eq!(status.volume(), 100);

    let mut again =
        Client::quic_from(Arc::new(network.socket("192.0.2.9:1".parse().unwrap())), address, 2).await;
    let time = again.hello().await.time;
    again.register_at(time).await;
    again.send(&ToSupernode::Attach).await;
    assert_eq!(again.next().await, FromSupernode::Attached);
    let (near, far) = tokio::io::duplex(1 << 16);
    supernode.serve_stream(far, "192.0.2.2:6000".parse().unwrap());
    let mut b = Client::tls_over(near, 3).await;
    let time = b.hello().await.time;
    b.register_at(time).await;
    b.send(&ToSupernode::Attach).await;
    assert_eq!(b.next().await, FromSupernode::Attached);
    let (ours, _) = again.channel_to(&mut b).await;
    again.send_raw(&data(ours, b"one more")).await;
    until("it is dropped", || status.counters().dropped(DropReason::SignallingOnly) == 1).await;
    drop(silent);
    supernode.shutdown().await;
}
