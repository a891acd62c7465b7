//! How much a supernode relays, and for whom.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{net::SocketAddr, time::Duration};

use common::{Net, config};
use traversal_proto::{
    supernode::{Config, DropReason, Event, Quota, Rate, RelayPolicy, Verdict},
    wire::{
        Identity,
        message::{FromSupernode, RelayMode, Resource, ToSupernode},
    },
};

const SECOND: Duration = Duration::from_secs(1);

fn limited(quota: Quota) -> Config {
    let mut config = config();
    config.quotas.per_peer = quota;
    config
}

#[test]
fn rates_hold_and_are_told() {
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    for (quota, reason, resource) in [
        (Quota { bytes: rate(10_000, 10_000), ..Quota::default() }, DropReason::ByteRate, Resource::Bytes),
        (Quota { packets: rate(10, 10), ..Quota::default() }, DropReason::PacketRate, Resource::Packets),
    ] {
        let mut net = Net::new(limited(quota));
        let (a, s) = (net.peer(1), net.peer(2));
        let (near, _) = net.open(&a, &s);
        let (mut passed, start) = (0, net.now);
        while net.now.since(start) < 10 * SECOND {
            net.now = net.now + Duration::from_millis(10);
            match net.send(a.addr, near, &[0; 995]).0 {
                Verdict::Relay { .. } => passed += 1,
                verdict => assert_eq!(verdict, Verdict::Drop(reason)),
            }
        }
        assert!(
            (109..=110).contains(&passed),
            "{passed} packets of 1000 bytes in ten seconds and a burst of one"
        );
        let warnings = net.heard(&a);
        assert!(!warnings.is_empty() && warnings.len() <= 2, "{warnings:?}");
        assert!(matches!(warnings[0], FromSupernode::Quota { resource: told, .. } if told == resource));
        assert_eq!(net.node.counters().dropped(reason), 1000 - passed);
    }
}

#[test]
fn everybody_together_is_limited_too() {
    let mut config = config();
    config.quotas.total.packets = Some(Rate { per_second: 1, burst: 10 });
    let mut net = Net::new(config);
    let (a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    let passed = (0..20).filter(|n| {
        let (from, channel) = if n % 2 == 0 { (a.addr, near) } else { (s.addr, far) };
        matches!(net.send(from, channel, b"x").0, Verdict::Relay { .. })
    });
    assert_eq!(passed.count(), 10);
    assert_eq!(net.node.counters().dropped(DropReason::TotalRate), 10);
}

/// At four fifths a warning, at the end another; after that a trickle for signalling, until the period is over. Coming
/// back does not help.
#[test]
fn volume_per_period() {
    let mut config = limited(Quota { volume: Some(100_000), ..Quota::default() });
    config.quotas.period = Duration::from_secs(3600);
    config.quotas.signalling = Rate { per_second: 100, burst: 5_000 };
    config.report_events = true;
    let mut net = Net::new(config);
    let (a, s) = (net.peer(1), net.peer(2));
    let (near, _) = net.open(&a, &s);
    let send = |net: &mut Net, from: SocketAddr, channel, count: u32| {
        (0..count).filter(|_| matches!(net.send(from, channel, &[0; 995]).0, Verdict::Relay { .. })).count()
    };
    assert_eq!(send(&mut net, a.addr, near, 79), 79);
    assert_eq!(net.heard(&a), []);
    assert_eq!(send(&mut net, a.addr, near, 1), 1);
    assert!(matches!(net.heard(&a)[..], [FromSupernode::Quota { used: 80_000, limit: 100_000, .. }]));
    assert_eq!(send(&mut net, a.addr, near, 40), 20 + 5, "the rest of the volume, then the signalling burst");
    let [FromSupernode::Quota { resource: Resource::Volume, used: 100_000, resets_in, .. }] =
        net.heard(&a)[..]
    else {
        panic!()
    };
    assert!(u64::from(resets_in) <= 3600);
    assert!(
        std::iter::from_fn(|| net.node.poll_event()).any(|event| event == Event::VolumeExhausted(a.id()))
    );

    net.node.handle_disconnected(a.connection, net.now);
    net.outgoing();
    let mut back = net.dial(1, a.addr);
    back.sequence = a.sequence;
    net.register(&mut back, true, false).unwrap();
    net.bind(&mut back);
    let (near, _) = net.open(&back, &s);
    assert_eq!(send(&mut net, back.addr, near, 10), 0, "the account has not forgotten");
    assert_eq!(net.node.usage().collect::<Vec<_>>(), [(a.id(), 105_000)]);

    // The period ends; the registrations have been renewed all along.
    for _ in 0..20 {
        net.pass(200 * SECOND);
        net.register(&mut back, true, false).unwrap();
    }
    net.bind(&mut back);
    let mut s = net.dial(2, s.addr);
    s.sequence = 100;
    net.register(&mut s, true, false).unwrap();
    net.bind(&mut s);
    let (near, _) = net.open(&back, &s);
    assert_eq!(send(&mut net, back.addr, near, 50), 50);
}

#[test]
fn saved_usage_counts_after_a_restart() {
    let mut config = limited(Quota { volume: Some(10_000), ..Quota::default() });
    config.quotas.signalling = Rate { per_second: 0, burst: 0 };
    let mut net = Net::new(config);
    let a = Identity::from_secret(&[0; 32]);
    net.node.restore_usage(a.peer_id(), 5);
    assert_eq!(net.node.usage().collect::<Vec<_>>(), [(a.peer_id(), 5)]);
    let (a, s) = (net.peer(1), net.peer(2));
    net.node.restore_usage(a.id(), 9_999);
    let (near, _) = net.open(&a, &s);
    assert!(matches!(net.send(a.addr, near, b"last").0, Verdict::Relay { .. }));
    assert_eq!(net.send(a.addr, near, b"more").0, Verdict::Drop(DropReason::SignallingOnly));
}

/// A supernode that relays nothing still carries the handshake, and says so.
#[test]
fn signalling_only() {
    let mut net = Net::new(Config { relay: RelayPolicy::SignallingOnly, ..config() });
    let (a, s) = (net.peer(1), net.peer(2));
    net.say(&a, ToSupernode::Connect { request: 1, peer: s.id(), hops: 0 });
    let [FromSupernode::Opened { channel, relay, .. }] = net.heard(&a)[..] else { panic!() };
    assert_eq!(relay, RelayMode::SignallingOnly { burst: 256 << 10, rate: 4 << 10 });
    let passed = |net: &mut Net| {
        (0..1000).filter(|_| matches!(net.send(a.addr, channel, &[0; 1195]).0, Verdict::Relay { .. })).count()
    };
    assert_eq!(passed(&mut net), (256 << 10) / 1200);
    net.now = net.now + 10 * SECOND;
    assert_eq!(passed(&mut net), 34, "4 KiB/s after that, and what was left");
}

#[test]
fn exceptions_have_quotas_of_their_own() {
    let mut config = limited(Quota { packets: Some(Rate { per_second: 1, burst: 1 }), ..Quota::default() });
    let special = Net::new(config.clone()).peer(1).id();
    config.quotas.exceptions.insert(special, Quota::default());
    let mut net = Net::new(config);
    let (a, s) = (net.peer(1), net.peer(2));
    let (near, far) = net.open(&a, &s);
    let count = |net: &mut Net, from, channel| {
        (0..50).filter(|_| matches!(net.send(from, channel, b"x").0, Verdict::Relay { .. })).count()
    };
    assert_eq!((count(&mut net, a.addr, near), count(&mut net, s.addr, far)), (50, 1));
}
