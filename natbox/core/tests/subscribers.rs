//! What a subscriber may have: mappings, sessions, and how fast. Whoever has had his share is refused and told, keeps
//! what he has, and takes nothing from the others.

mod common;

use std::time::Duration;

use common::*;
use natbox_core::{
    Behavior, Config, DropReason, Endpoint, Limits,
    Protocol::{Icmp, Tcp, Udp},
    Selection, Side,
    behavior::*,
};

fn limited(change: impl FnOnce(&mut Behavior)) -> Net {
    Net::new(rfc(change))
}

/// Ports of one host that got through, of `count` that tried.
fn passed(net: &mut Net, host: Endpoint, count: u16) -> usize {
    (0..count).filter(|i| net.try_out(Udp, at(host, 6000 + i), S).is_ok()).count()
}

#[test]
fn all_protocols_count_together() {
    let mut net = limited(|behavior| behavior.subscriber_mappings = Some(3));
    for protocol in [Udp, Tcp, Icmp] {
        net.send_out(protocol, A, at(S, 0));
    }
    for protocol in [Udp, Tcp, Icmp] {
        let refused = net.try_out(protocol, at(A, 1), at(S, 0));
        assert_eq!(refused, Err(DropReason::SubscriberMappings), "{protocol}");
        net.send_out(protocol, A, at(P, 0)); // by a mapping that stands
    }
    assert_eq!(net.dropped(DropReason::SubscriberMappings), 3);
    assert_eq!(net.nat.subscriber_count(), 1);
}

#[test]
fn what_ends_makes_room() {
    let mut net = limited(|behavior| {
        behavior.subscriber_mappings = Some(2);
        behavior.subscriber_sessions = Some(3);
    });
    assert_eq!(passed(&mut net, A, 5), 2);
    net.wait(secs(200));
    net.send_out(Udp, at(A, 6000), S); // one of the two is kept
    net.wait(secs(101));
    assert_eq!(net.mappings().len(), 1);
    assert_eq!(passed(&mut net, at(A, 0), 5), 2, "the one that stands and a new one");
    net.nat.flush(&Selection { host: Some(A.addr), ..Selection::default() }, net.now);
    assert_eq!(net.nat.subscriber_count(), 0, "nothing is kept of who has nothing");
    assert_eq!(passed(&mut net, A, 5), 2);
}

/// However many sessions its mappings have: the limit is on all of them together.
#[test]
fn sessions_are_counted_over_all_mappings() {
    let mut net = limited(|behavior| behavior.subscriber_sessions = Some(4));
    for (port, remote) in [(1, S), (1, P), (2, S), (2, Q)] {
        net.send_out(Udp, at(A, port), remote);
    }
    let refused = [net.try_out(Udp, at(A, 1), Q), net.try_out(Tcp, at(A, 3), S)];
    assert_eq!(refused, [Err(DropReason::SubscriberSessions); 2]);
    assert_eq!(net.mappings().len(), 2, "a mapping without room for its session is not made");
    net.send_out(Udp, at(A, 1), S);
    assert_eq!(passed(&mut net, B, 9), 4);
}

/// What outsiders begin counts too, or they could fill the table in a host's name; only that host feels it.
#[test]
fn connections_from_outside_count() {
    let mut net = limited(|behavior| {
        behavior.filtering = Filtering::EndpointIndependent;
        behavior.subscriber_sessions = Some(4);
        behavior.subscriber_session_rate = Rate::new(1, 2);
    });
    let (a, b) = (net.connect(A, S), net.connect(B, S));
    for i in 0..3 {
        assert_eq!(net.tcp_in(at(Q, 1000 + i), a, SYN), Ok(A), "no rate holds outsiders back");
    }
    let before = net.take_sent().len();
    assert_eq!(net.tcp_in(at(Q, 2000), a, SYN), Err(DropReason::SubscriberSessions));
    assert_eq!((before, net.take_sent().len()), (0, 0), "strangers are told nothing");
    assert_eq!(net.tcp_in(at(Q, 2000), b, SYN), Ok(B));
    assert_eq!(net.tcp_in(S, a, ACK), Ok(A), "what stands goes on");
}

#[test]
fn a_rate_is_earned_again() {
    let mut net = limited(|behavior| behavior.subscriber_mapping_rate = Rate::new(10, 5));
    assert_eq!(passed(&mut net, A, 20), 5);
    assert_eq!(net.dropped(DropReason::SubscriberRate), 15);
    net.wait(Duration::from_millis(99));
    assert_eq!(net.try_out(Udp, at(A, 7000), S), Err(DropReason::SubscriberRate));
    net.wait(Duration::from_millis(1));
    net.send_out(Udp, at(A, 7000), S);
    assert_eq!(net.try_out(Udp, at(A, 7001), S), Err(DropReason::SubscriberRate));
    for i in 0..50 {
        net.send_out(Udp, at(A, 7000), at(S, 1 + i)); // sessions of one mapping
        net.wait(Duration::from_millis(2));
    }
    net.wait(secs(60));
    assert_eq!(passed(&mut net, at(A, 0), 20), 5 + 5, "five that stand, and no more than a burst");
}

#[test]
fn sessions_have_a_rate_of_their_own() {
    let mut net = limited(|behavior| behavior.subscriber_session_rate = Rate::new(1, 3));
    let begun = (0..10).filter(|i| net.try_out(Udp, A, at(S, 1 + i)).is_ok()).count();
    assert_eq!((begun, net.mappings().len()), (3, 1));
    net.wait(secs(2));
    let begun = (0..10).filter(|i| net.try_out(Udp, A, at(P, 1 + i)).is_ok()).count();
    assert_eq!(begun, 2);
}

/// Nobody gets round a rate by letting go of everything.
#[test]
fn what_was_spent_is_remembered() {
    let mut net = limited(|behavior| behavior.subscriber_mapping_rate = Rate::new(1, 3));
    assert_eq!(passed(&mut net, A, 9), 3);
    net.nat.flush(&Selection::default(), net.now);
    assert_eq!((net.mappings().len(), net.nat.subscriber_count()), (0, 1));
    assert_eq!(passed(&mut net, A, 9), 0);
    net.wait(secs(1));
    assert_eq!(passed(&mut net, A, 9), 1);
    net.nat.flush(&Selection::default(), net.now);
    net.wait(secs(3) + Duration::from_millis(3));
    assert_eq!(net.nat.subscriber_count(), 0, "until it has been earned again");
    assert_eq!(net.nat.poll_timeout(), None);
}

#[test]
fn a_subscriber_may_be_a_network() {
    let host = |third: u8, last: u8| Endpoint::v4([10, 0, third, last].into(), 5000);
    for (prefix, expected) in [(32, 12), (24, 6), (25, 9), (16, 3), (1, 3)] {
        let mut net = limited(|behavior| {
            behavior.subscriber_prefix = prefix;
            behavior.subscriber_mappings = Some(3);
        });
        let hosts = [(0, 2), (0, 3), (0, 200), (1, 2)].map(|(third, last)| host(third, last));
        let got: usize = hosts.into_iter().map(|host| passed(&mut net, host, 5)).sum();
        assert_eq!(got, expected, "/{prefix}");
    }
    // Behind another inside port the same address is somebody else.
    let mut net = limited(|behavior| behavior.subscriber_mappings = Some(1));
    let other = net.add_inside(1, 1500);
    net.send_out(Udp, A, S);
    assert!(net.try_out(Udp, at(A, 1), S).is_err());
    let seen = net.out_via(other, &mut udp(at(A, 1), S, b""));
    assert_eq!(seen, natbox_core::Verdict::Forward(Side::Outside));
}

/// The hosts of one subscriber share an external address (RFC 6888 REQ-2).
#[test]
fn a_network_keeps_one_address() {
    let external = (1..=8).map(|last| [198, 51, 100, last].into()).collect();
    let behavior = rfc(|behavior| behavior.subscriber_prefix = 24);
    let mut net = Net::with(Config { behavior, external, ..Config::new(N.into()) });
    let mut used = std::collections::BTreeSet::new();
    for third in 0..40 {
        let addr = |last: u8| Endpoint::v4([10, 9, third, last].into(), 5000);
        let seen = [2, 3, 77].map(|last| net.send_out(Udp, addr(last), S).addr);
        assert!(seen.iter().all(|addr| *addr == seen[0]));
        used.insert(seen[0]);
    }
    assert!(used.len() > 4, "{used:?}");
}

/// A forward is the operator's: it counts, and is never refused.
#[test]
fn forwards_are_not_refused() {
    let mut net = limited(|behavior| behavior.subscriber_mappings = Some(1));
    for port in 0..3 {
        net.forward(Udp, at(A, 80 + port), 8080 + port);
    }
    assert_eq!(net.try_out(Udp, A, S), Err(DropReason::SubscriberMappings));
}

/// Whoever floods a forward with SYNs from forged sources leaves room for those inside.
#[test]
fn outsiders_do_not_fill_the_table() {
    let limits = Limits { mappings: 80, sessions: 80 };
    let mut net = Net::with(Config { limits, ..Config::new(N.into()) });
    let forward = net.forward(Tcp, A, 80);
    let forged = |i: u32| Endpoint::v4(std::net::Ipv4Addr::from_bits(0x1400_0000 + i * 257), 9);
    let admitted = (0..500).filter(|i| net.tcp_in(forged(*i), forward, SYN) == Ok(A)).count();
    assert_eq!((admitted, net.dropped(DropReason::TableFull)), (70, 430));
    assert_eq!(passed(&mut net, B, 20), 10, "an eighth is theirs");
    assert_eq!(net.tcp_in(forged(0), forward, SYN), Ok(A), "what stands goes on");
}

/// The limits of a running NAT may change: what is there counts, and who has more keeps it.
#[test]
fn limits_of_a_running_nat() {
    let mut net = Net::new(Behavior::RFC);
    assert_eq!((passed(&mut net, A, 5), net.nat.subscriber_count()), (5, 0));
    net.send_out(Udp, B, S);
    net.nat.set_behavior(rfc(|behavior| behavior.subscriber_mappings = Some(3)));
    assert_eq!((net.mappings().len(), net.nat.subscriber_count()), (6, 2));
    assert_eq!(net.try_out(Udp, A, S), Err(DropReason::SubscriberMappings));
    assert_eq!(passed(&mut net, B, 5), 2);
    net.nat.set_behavior(rfc(|behavior| behavior.subscriber_mappings = Some(6)));
    assert_eq!(passed(&mut net, at(A, 1), 6), 6);
    net.nat.set_behavior(rfc(|behavior| {
        behavior.subscriber_mappings = Some(9);
        behavior.subscriber_prefix = 8;
    }));
    assert_eq!((net.nat.subscriber_count(), net.mappings().len()), (1, 9));
    assert!(net.try_out(Udp, at(B, 9999), S).is_err(), "A and B are one");
    net.nat.set_behavior(Behavior::RFC);
    assert_eq!((net.nat.subscriber_count(), passed(&mut net, at(B, 0), 50)), (0, 50));
    net.wait(secs(301));
    assert_eq!(net.nat.mapping_count(), 0);
}

/// Records of subscribers are bounded as mappings are.
#[test]
fn subscribers_are_bounded() {
    let behavior = rfc(|behavior| behavior.subscriber_mapping_rate = Rate::new(1, 60));
    let limits = Limits { mappings: 50, sessions: 50 };
    let mut net = Net::with(Config { behavior, limits, ..Config::new(N.into()) });
    for round in 0..3 {
        for last in 0..200 {
            let _ = net.try_out(Udp, Endpoint::v4([10, 0, 1 + round, last].into(), 5), S);
            net.nat.flush(&Selection::default(), net.now);
        }
        assert!(net.nat.subscriber_count() <= 50);
    }
    assert!(net.dropped(DropReason::TableFull) > 0);
    net.wait(secs(61));
    assert_eq!(net.nat.subscriber_count(), 0);
}

/// Whoever asks is told what each of them holds and was refused, from either side; others' troubles are not his.
#[test]
fn each_is_listed_with_what_it_was_refused() {
    let mut net = limited(|behavior| {
        behavior.filtering = Filtering::EndpointIndependent;
        behavior.subscriber_sessions = Some(3);
        behavior.subscriber_mappings = Some(2);
    });
    assert!(net.nat.counts_subscribers() && net.nat.subscribers().next().is_none());
    let open = net.send_out(Tcp, A, S);
    passed(&mut net, A, 4); // one of them: then there is no room for mappings
    net.send_out(Tcp, A, P); // nor for sessions
    assert_eq!(net.try_in(Tcp, Q, open), Err(DropReason::SubscriberSessions));
    net.send_out(Udp, B, S);
    let mut all: Vec<_> = net.nat.subscribers().collect();
    all.sort_unstable_by_key(|subscriber| subscriber.subscriber);
    let told = all.iter().map(|s| (s.subscriber, s.prefix_len, s.mappings, s.sessions, s.blocks, s.refused));
    assert_eq!(told.collect::<Vec<_>>(), [(A.addr, 32, 2, 3, 0, 4), (B.addr, 32, 1, 1, 0, 0)]);
    assert!(!Net::new(Behavior::RFC).nat.counts_subscribers());
}
