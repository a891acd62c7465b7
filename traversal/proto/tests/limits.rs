//! Everything is bounded, and everything is given back.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{net::SocketAddr, time::Duration};

use common::{Net, Peer, config};
use traversal_proto::{
    PeerId,
    supernode::{Outgoing, Rate},
    wire::{
        List,
        message::{Code, FromSupernode, ToSupernode},
    },
};

/// Connections that never register are closed, and one network cannot take all the places.
#[test]
fn silent_connections() {
    let mut config = config();
    config.limits.connections_per_network = 10;
    let mut net = Net::new(config);
    for n in 0..20 {
        net.dial(n, SocketAddr::from(([192, 0, 2, n as u8], 1)));
    }
    assert_eq!(net.node.gauges().connections, 10);
    let refused = net.outgoing().into_iter();
    let refused = refused.filter(|out| matches!(out, Outgoing::Close(_, Code::TooManyFromNetwork)));
    assert_eq!(refused.count(), 10);
    net.dial(99, "198.51.100.1:1".parse().unwrap());
    assert_eq!(net.node.gauges().connections, 11);
    net.pass(Duration::from_secs(10));
    assert_eq!(net.node.gauges().connections, 0);
    net.dial(100, "192.0.2.1:1".parse().unwrap());
    assert_eq!(net.node.gauges().connections, 1, "the places are free again");
}

/// When a client vanishes, everything that it held is free: as often as it likes.
#[test]
fn nothing_leaks_when_clients_vanish() {
    let mut config = config();
    config.limits.registrations = 3;
    config.limits.accounts = 4;
    config.limits.channels = 2;
    config.limits.connections = 4;
    let mut net = Net::new(config);
    let s = net.peer(1);
    for n in 0..300 {
        let (a, b) = (net.peer(2 + n % 7), net.peer(20 + n % 5));
        net.open(&a, &s);
        net.open(&a, &b);
        net.say(&a, ToSupernode::Watch { peers: List::first_of([s.id(), b.id()]) });
        net.outgoing();
        net.say(&a, ToSupernode::Connect { request: 9, peer: b.id(), hops: 0 });
        assert!(matches!(net.heard(&a)[..], [FromSupernode::Opened { .. }]), "the one that is open");
        net.say(&b, ToSupernode::Connect { request: 9, peer: s.id(), hops: 0 });
        assert!(matches!(net.heard(&b)[..], [FromSupernode::Refused { code: Code::Full, .. }]));
        net.node.handle_disconnected(a.connection, net.now);
        net.node.handle_disconnected(b.connection, net.now);
        net.outgoing();
        net.now = net.now + Duration::from_millis(100);
        let gauges = net.node.gauges();
        assert_eq!((gauges.connections, gauges.registrations, gauges.channels, gauges.watches), (1, 1, 0, 0));
        assert!(gauges.accounts <= 4);
    }
    assert!(net.node.counters().accounts_evicted > 0);
}

#[test]
fn every_table_has_its_limit() {
    let mut config = config();
    config.limits.registrations = 4;
    config.limits.channels_per_registration = 1;
    config.limits.watches_per_registration = 1;
    config.rates.incoming = Rate { per_second: 1, burst: 1 };
    let mut net = Net::new(config);
    let (a, b, c, d) = (net.peer(1), net.peer(2), net.peer(3), net.peer(4));
    let mut e = net.dial(5, "192.0.2.5:1".parse().unwrap());
    assert_eq!(net.register(&mut e, true, false).unwrap_err().0, Code::Full);
    net.open(&a, &b);
    let code = |net: &mut Net, from: &Peer, to: &Peer| {
        net.say(from, ToSupernode::Connect { request: 1, peer: to.id(), hops: 0 });
        match net.heard(from)[..] {
            [FromSupernode::Refused { code, .. }] => Some(code),
            _ => None,
        }
    };
    assert_eq!(code(&mut net, &a, &c), Some(Code::TooManyChannels));
    assert_eq!(code(&mut net, &c, &a), Some(Code::PeerBusy), "it has as many channels as it may");
    net.node.handle_disconnected(a.connection, net.now);
    net.outgoing();
    assert_eq!(code(&mut net, &c, &b), Some(Code::PeerBusy), "it is asked too often");
    net.now = net.now + Duration::from_secs(1);
    assert_eq!(code(&mut net, &c, &b), None);
    net.say(&d, ToSupernode::Watch { peers: List::first_of([a.id(), b.id()]) });
    assert!(matches!(
        net.heard(&d)[..],
        [FromSupernode::Presence { .. }, FromSupernode::Error { code: Code::TooManyWatches }]
    ));
}

#[test]
fn a_flood_of_requests_is_refused_and_counted() {
    let mut net = Net::new(config());
    let a = net.peer(1);
    for request in 0..2_000 {
        net.say(&a, ToSupernode::Lookup { request, peer: PeerId::from_bytes([1; 32]), hops: 0 });
    }
    let heard = net.heard(&a);
    let fast =
        heard.iter().filter(|m| matches!(m, FromSupernode::Refused { code: Code::TooFast, .. })).count();
    assert_eq!(heard.len(), 2_000, "each has its answer");
    assert_eq!(net.node.counters().messages_too_fast, fast as u64);
    assert!((1_000..=1_002).contains(&fast), "{fast}");
    net.now = net.now + Duration::from_secs(1);
    net.say(&a, ToSupernode::Ping { nonce: 1 });
    assert_eq!(net.heard(&a), [FromSupernode::Pong { nonce: 1 }]);
}
