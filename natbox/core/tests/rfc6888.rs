//! RFC 6888: what a carrier-grade NAT owes beyond the requirements of each protocol, as far as it is there
//! (docs/rfc-compliance.md names the rest). Where real NATs are known to fail, the body runs again with that axis
//! violated, and must notice.

mod common;

use std::{collections::BTreeSet, net::IpAddr};

use common::*;
use natbox_core::{
    Config, DropReason, Endpoint, Event, Limits, PortRange, Protocol,
    Protocol::{Icmp, Tcp, Udp},
    Side,
    behavior::*,
    preset::Preset,
};

fn cgnat() -> Behavior {
    Preset::by_name("cgnat").expect("a preset").behavior()
}

/// Where a query goes has no port.
fn remote(protocol: Protocol, endpoint: Endpoint) -> Endpoint {
    if protocol == Icmp { at(endpoint, 0) } else { endpoint }
}

#[test]
fn req_1_each_protocol_keeps_its_requirements() {
    let body = |behavior: Behavior| {
        for (protocol, least) in [(Udp, 120), (Tcp, 240), (Icmp, 60)] {
            let mut net = Net::new(behavior.clone());
            let remotes = [S, P, Q].map(|endpoint| remote(protocol, endpoint));
            let seen = remotes.map(|endpoint| net.send_out(protocol, A, endpoint));
            met(seen.iter().all(|external| *external == seen[0]), "one external endpoint towards everybody");
            net.wait(secs(least - 1));
            met(net.send_in(protocol, remotes[0], seen[0]) == Some(A), "it lives as long as it must");
        }
    };
    body(Behavior::RFC);
    body(cgnat());
    violated(|behavior| behavior.mapping = Mapping::AddressAndPortDependent, body);
    violated(|behavior| behavior.udp_timeout = secs(30), body);
}

/// Fragments and identifications belong to the requirements of UDP, and a carrier's NAT keeps these as well.
#[test]
fn req_1_fragments_keep_theirs() {
    let body = |behavior: Behavior| {
        let mut net = Net::new(behavior);
        let mut used = BTreeSet::new();
        for host in [A, B] {
            let pieces = fragments(&udp(host, S, &[1; 2000]), 7, 800);
            let order = [1, 2, 0].map(|i| pieces[i].clone());
            let left = whole(&net.out_pieces(&order));
            met(left.is_some(), "fragments pass in any order");
            met(used.insert(left.unwrap().header.identification), "no two hosts' datagrams have one number");
        }
    };
    body(Behavior::RFC);
    body(cgnat());
    violated(|behavior| behavior.fragments = Fragments::InOrder, body);
    violated(|behavior| behavior.identification = Identification::Keep, body);
}

#[test]
fn req_3_the_pool_may_be_any_addresses() {
    let pool: Vec<IpAddr> =
        [[198, 51, 100, 1], [198, 51, 100, 200], [192, 0, 2, 1], [100, 64, 9, 9], [8, 8, 8, 8]]
            .map(IpAddr::from)
            .into();
    let mut net = Net::with(Config { behavior: cgnat(), external: pool.clone(), ..Config::new(N.into()) });
    let mut used = BTreeSet::new();
    for host in 2..100 {
        let host = ep(&format!("10.0.0.{host}:5000"));
        let external = net.send_out(Udp, host, S);
        used.insert(external.addr);
        assert_eq!(net.send_in(Udp, S, external), Some(host));
    }
    assert_eq!(used, pool.into_iter().collect(), "every address serves somebody");
}

/// One subscriber takes all that he may; nothing that he has is taken, and the next finds all of his share.
#[test]
fn req_4_a_subscribers_ports_are_limited() {
    let behavior = Behavior { subscriber_mappings: Some(100), subscriber_mapping_rate: None, ..cgnat() };
    let mut net = Net::new(behavior);
    let mine: Vec<_> = (0..100).map(|i| net.send_out(Udp, at(A, 5000 + i), S)).collect();
    let before = net.mappings();
    for i in 0..300 {
        assert_eq!(net.try_out(Udp, at(A, 6000 + i), S), Err(DropReason::SubscriberMappings));
    }
    assert_eq!(net.mappings(), before, "nothing had to go");
    let told = net.take_sent();
    assert!((1..=20).contains(&told.len()), "{}: seldom enough to leave some for the others", told.len());
    assert!(told.iter().all(|(to, report)| (*to, report.icmp) == (Side::Inside(TUN), Some((3, 1)))));
    assert_eq!(net.nat.counters().generated_suppressed, 300 - told.len() as u64);
    let refused =
        |event: &&Event| matches!(event, Event::MappingRefused { why: DropReason::SubscriberMappings, .. });
    assert_eq!(net.events.iter().filter(refused).count(), 300);
    for (i, external) in (0..).zip(mine) {
        assert_eq!(net.send_in(Udp, S, external), Some(at(A, 5000 + i)));
    }
    for i in 0..100 {
        net.send_out(Udp, at(B, 5000 + i), S);
    }
    assert!(net.try_out(Udp, at(B, 5200), S).is_err());
}

#[test]
fn req_4c_a_subscribers_rate_is_limited() {
    let behavior = Behavior { subscriber_mapping_rate: Rate::new(50, 100), ..cgnat() };
    let mut net = Net::new(behavior);
    let mut made = 0;
    for i in 0..1000 {
        made += usize::from(net.try_out(Udp, at(A, 5000 + i), S).is_ok());
        net.wait(std::time::Duration::from_millis(1));
        net.send_out(Udp, B, S);
    }
    assert!((148..=151).contains(&made), "{made}: a hundred at once, and fifty in the second that it took");
    assert_eq!(net.dropped(DropReason::SubscriberRate), 1000 - made as u64);
    net.send_out(Udp, at(B, 1), S);
}

#[test]
fn req_5_a_subscribers_state_is_limited() {
    let behavior = Behavior { subscriber_sessions: Some(10), ..cgnat() };
    for protocol in [Udp, Tcp, Icmp] {
        let mut net = Net::new(behavior.clone());
        let remote = |i: u8| remote(protocol, Endpoint::v4([192, 0, 2, i].into(), 80));
        let begun = (1..50).filter(|i| net.try_out(protocol, A, remote(*i)).is_ok()).count();
        assert_eq!((begun, net.mappings().len()), (10, 1), "{protocol}");
        assert_eq!(net.dropped(DropReason::SubscriberSessions), 39, "{protocol}");
        let others = (1..50).filter(|i| net.try_out(protocol, B, remote(*i)).is_ok()).count();
        assert_eq!(others, 10, "{protocol}");
        net.wait(secs(400));
        net.send_out(protocol, A, remote(1));
    }
}

#[test]
fn req_6_destinations_that_are_not_translated() {
    let mut behavior = cgnat();
    behavior.set("untranslated", "203.0.113.0/24,192.0.2.77:9").expect("destinations");
    let mut net = Net::new(behavior);
    for protocol in [Udp, Tcp, Icmp] {
        for there in [S, S2, P, at(ep("203.0.113.255:1"), 80)].map(|there| remote(protocol, there)) {
            for (raw, from) in [(opener(protocol, A, there), A), (visitor(protocol, there, A), there)] {
                let (mut raw, before) = (raw.clone(), look(&raw));
                let is_out = from == A;
                let verdict = if is_out { net.out(&mut raw) } else { net.inn(&mut raw) };
                let side = if is_out { Side::Outside } else { Side::Inside(TUN) };
                assert_eq!(verdict, natbox_core::Verdict::Forward(side), "{protocol} {there}");
                let after = look(&raw);
                assert_eq!((after.from, after.to), (before.from, before.to), "{protocol} {there}");
            }
        }
    }
    assert_eq!(
        (net.mappings().len(), net.nat.counters().untranslated_packets),
        (0, 24),
        "nothing is remembered"
    );
    // One port of an address alone.
    assert_eq!(net.forwarded_from(&mut udp(A, Q, b"")), Some(A));
    assert_ne!(net.send_out(Udp, A, at(Q, 10)).addr, A.addr);
    assert_ne!(net.send_out(Tcp, A, ep("192.0.2.78:9")).addr, A.addr);
}

#[test]
fn req_7_anybody_may_send_to_a_mapping() {
    let body = |behavior: Behavior| {
        for protocol in [Udp, Tcp] {
            let mut net = Net::new(behavior.clone());
            let external = net.send_out(protocol, A, S);
            met(net.send_in(protocol, Q, external) == Some(A), "who was never sent to may send");
        }
    };
    body(cgnat());
    violated(|behavior| behavior.filtering = Filtering::AddressAndPortDependent, body);
}

/// A port that UDP or a query has had is nobody's for two minutes, where anybody may send to it; TCP's are free at once.
#[test]
fn req_8_ports_rest_for_two_minutes() {
    let behavior = Behavior {
        ports: PortAssignment::Preserve,
        port_parity: false,
        port_range: PortRange::new(4242, 4243).expect("a range"),
        ..cgnat()
    };
    assert_eq!(behavior.port_quarantine, Some(secs(120)));
    for (protocol, life, rests) in [(Udp, 120, true), (Icmp, 60, true), (Tcp, 240, false)] {
        let mut net = Net::new(behavior.clone());
        let there = remote(protocol, S);
        let external = net.send_out(protocol, A, there);
        net.wait(secs(life) + std::time::Duration::from_millis(2));
        assert!(net.send_in(protocol, there, external).is_none());
        let other = at(B, external.port);
        if rests {
            assert_eq!(net.nat.resting_count(), 1, "{protocol}");
            for _ in 0..11 {
                net.wait(secs(10));
                assert_ne!(net.send_out(protocol, other, there), external, "{protocol}: it rests");
            }
            net.wait(secs(10));
        }
        net.nat.flush(&Default::default(), net.now);
        assert_eq!(net.send_out(protocol, other, there).port, external.port, "{protocol}");
    }
}

/// What finds no room is dropped, told, reported, and pushes nobody out.
#[test]
fn req_11_exhaustion_deletes_nothing() {
    let few_ports = Behavior { port_range: PortRange::new(2000, 2003).unwrap(), ..cgnat() };
    let small_table = Limits { mappings: 4, sessions: 4 };
    let codes = [(Exhaustion::HostUnreachable, 1), (Exhaustion::Prohibited, 13)];
    for ((behavior, limits, why), (exhaustion, code)) in [
        (few_ports, Limits::default(), DropReason::PortsExhausted),
        (cgnat(), small_table, DropReason::TableFull),
    ]
    .into_iter()
    .flat_map(|case| codes.map(|code| (case.clone(), code)))
    {
        let behavior = Behavior { exhaustion, ..behavior };
        let mut net = Net::with(Config { behavior, limits, ..Config::new(N.into()) });
        let hosts = [0, 1, 2, 3].map(|i| at(A, 5000 + i));
        let externals = hosts.map(|host| net.send_out(Udp, host, S));
        let (before, events) = (net.mappings(), net.events.len());
        for i in 0..200 {
            assert_eq!(net.try_out(Udp, at(B, 5000 + i), S), Err(why));
        }
        assert_eq!(net.mappings(), before, "{why}: nobody had to go");
        let told = net.take_sent();
        assert_eq!(told.len(), 200, "{why}");
        for (to, report) in told {
            assert_eq!(
                (to, report.icmp, report.to.addr),
                (Side::Inside(TUN), Some((3, code)), B.addr),
                "{why}"
            );
        }
        let refused = |event: &&Event| matches!(event, Event::MappingRefused { .. });
        assert_eq!(net.events[events..].iter().filter(refused).count(), 200, "{why}");
        for (host, external) in hosts.into_iter().zip(externals) {
            assert_eq!(net.send_in(Udp, S, external), Some(host), "{why}");
        }
    }
}

#[test]
fn req_11_no_mapping_is_deleted_to_make_room() {
    let body = |behavior: Behavior| {
        let limits = Limits { mappings: 4, sessions: 4 };
        let mut net = Net::with(Config { behavior, limits, ..Config::new(N.into()) });
        let hosts = [0, 1, 2, 3].map(|i| at(A, 5000 + i));
        let externals = hosts.map(|host| net.send_out(Udp, host, S));
        met(net.try_out(Udp, B, S) == Err(DropReason::TableFull), "what is new is refused");
        for (host, external) in hosts.into_iter().zip(externals) {
            assert_eq!(net.send_in(Udp, S, external), Some(host));
        }
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.pressure = Pressure::DropUnanswered, body);
    violated(|behavior| behavior.pressure = Pressure::DropOldest, body);
}

#[test]
fn req_11b_the_code_is_a_choice() {
    assert_eq!(
        (cgnat().exhaustion, Behavior::RFC.exhaustion),
        (Exhaustion::HostUnreachable, Exhaustion::Prohibited)
    );
    for (exhaustion, told) in [
        (Exhaustion::HostUnreachable, Some((3, 1))),
        (Exhaustion::Prohibited, Some((3, 13))),
        (Exhaustion::Drop, None),
    ] {
        let mut net = Net::new(Behavior { exhaustion, subscriber_mappings: Some(1), ..cgnat() });
        net.send_out(Udp, A, S);
        assert!(net.try_out(Udp, at(A, 1), S).is_err());
        let seen: Vec<_> = net.take_sent().into_iter().map(|(_, report)| report.icmp).collect();
        assert_eq!(seen, told.map(Some).into_iter().collect::<Vec<_>>(), "{exhaustion}");
    }
}

/// A subscriber's ports come from blocks that are its own: the log has a line for a block, not for a mapping.
#[test]
fn req_14_ports_come_in_blocks() {
    let behavior = Preset::by_name("cgnat-blocks").expect("a preset").behavior();
    let behavior = Behavior { subscriber_mapping_rate: None, subscriber_blocks: 2, ..behavior };
    let size = behavior.port_block.expect("blocks");
    let mut net = Net::new(behavior);
    let blocks = |net: &Net| -> Vec<_> {
        let given = |event: &Event| if let Event::BlockAssigned(block) = event { Some(*block) } else { None };
        net.events.iter().filter_map(given).collect()
    };
    for host in [A, B] {
        for i in 0..size {
            net.send_out(Udp, at(host, 2000 + i), S);
            net.send_out(Tcp, at(host, 2000 + i), S);
        }
    }
    let log = blocks(&net);
    assert_eq!(log.iter().map(|block| block.subscriber).collect::<Vec<_>>(), [A.addr, B.addr], "two lines");
    for mapping in net.mappings() {
        let external = mapping.external.0;
        let owner =
            log.iter().find(|block| block.address == external.addr && block.ports.contains(external.port));
        assert_eq!(owner.map(|block| block.subscriber), Some(mapping.inside.endpoint.addr));
    }
    net.send_out(Udp, at(A, 9000), S);
    assert_eq!(blocks(&net).len(), 3, "another block when the first is full");
    for i in 1..size {
        net.send_out(Udp, at(A, 9000 + i), S);
    }
    assert_eq!(net.try_out(Udp, at(A, 10_000), S), Err(DropReason::SubscriberMappings), "and no third");
    assert_eq!(net.nat.block_count(), 3);
    // UDP's ports go after two minutes and rest for two, TCP's go after four.
    net.wait(secs(241));
    assert_eq!((net.nat.block_count(), net.nat.subscriber_count()), (0, 0), "released with the last port");
    let released = |event: &&Event| matches!(event, Event::BlockReleased(_));
    assert_eq!(net.events.iter().filter(released).count(), 3);
}

#[test]
fn req_15_ports_are_hard_to_guess() {
    let body = |behavior: Behavior| {
        for protocol in [Udp, Tcp, Icmp] {
            let mut net = Net::new(behavior.clone());
            let port = |i: u16| net.send_out(protocol, at(A, 5000 + 2 * i), remote(protocol, S)).port;
            let ports: Vec<_> = (0..100).map(port).collect();
            let near = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 256).count();
            met(near < 10, "neighbours in time are no neighbours in number");
        }
    };
    body(Behavior::RFC);
    body(cgnat());
    violated(|behavior| behavior.ports = PortAssignment::Sequential, body);
}
