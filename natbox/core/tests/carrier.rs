//! Port quarantine, port blocks and untranslated destinations, at their edges: what is exempt, what runs out, and what
//! changes while the NAT runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use common::*;
use natbox_core::{
    Behavior, Config, DropReason, Endpoint, Event, PortBlock, PortRange,
    Protocol::{self, Icmp, Tcp, Udp},
    Selection, Side, Verdict,
    behavior::*,
};

/// Anybody may send inwards, ports are taken in their order, and rest for a minute.
fn resting(first: u16, last: u16) -> Behavior {
    Behavior {
        filtering: Filtering::EndpointIndependent,
        ports: PortAssignment::Preserve,
        port_range: PortRange::new(first, last).unwrap(),
        port_parity: false,
        udp_timeout: secs(10),
        icmp_timeout: secs(10),
        port_quarantine: Some(secs(60)),
        ..Behavior::RFC
    }
}

fn remote(protocol: Protocol) -> Endpoint {
    if protocol == Icmp { at(S, 0) } else { S }
}

// ---- Quarantine ----

#[test]
fn who_is_exempt() {
    type Change = fn(&mut Behavior);
    let cases: [(Protocol, Change, bool); 6] = [
        (Udp, |_| (), true),
        (Icmp, |_| (), true),
        (Tcp, |_| (), false),
        (Udp, |behavior| behavior.filtering = Filtering::AddressDependent, false),
        (Icmp, |behavior| behavior.filtering = Filtering::AddressAndPortDependent, false),
        (Udp, |behavior| behavior.port_quarantine = None, false),
    ];
    for (i, (protocol, change, rests)) in cases.into_iter().enumerate() {
        let mut behavior = resting(4242, 4243);
        behavior.tcp_opening_timeout = secs(10);
        change(&mut behavior);
        let mut net = Net::new(behavior);
        assert_eq!(net.send_out(protocol, A, remote(protocol)).port, 4242);
        net.wait(secs(11));
        assert_eq!(net.nat.resting_count(), usize::from(rests), "case {i}");
        let next = net.send_out(protocol, at(B, 4242), remote(protocol)).port;
        assert_eq!(next, if rests { 4243 } else { 4242 }, "case {i}");
    }
}

/// Nothing is used before its time, however many want a port; afterwards all are there again.
#[test]
fn ports_at_rest_are_not_taken() {
    let mut net = Net::new(resting(4000, 4009));
    for i in 0..10 {
        net.send_out(Udp, at(A, 4000 + i), S);
    }
    net.wait(secs(11));
    assert_eq!((net.mappings().len(), net.nat.resting_count()), (0, 10));
    for i in 0..30 {
        assert_eq!(net.try_out(Udp, at(B, 5000 + i), S), Err(DropReason::PortsExhausted));
    }
    assert_eq!(net.try_in(Udp, S, Endpoint::v4(N, 4000)), Err(DropReason::NoMapping));
    assert_eq!(net.send_out(Tcp, B, S).port, 4000, "TCP's are its own");
    net.wait(secs(58));
    assert!(net.try_out(Udp, at(B, 5000), S).is_err());
    net.wait(secs(2));
    let used: BTreeSet<_> = (0..10).map(|i| net.send_out(Udp, at(B, 5000 + i), S).port).collect();
    assert_eq!((used, net.nat.resting_count()), ((4000..=4009).collect(), 0));
}

/// The deadline is kept also where nobody calls for expiry.
#[test]
fn rest_ends_by_itself() {
    let mut net = Net::new(resting(4242, 4242));
    net.send_out(Udp, A, S);
    net.wait(secs(10) + Duration::from_millis(2));
    assert_eq!(net.nat.resting_count(), 1);
    net.now = net.now + secs(61); // and no handle_timeout
    assert_eq!(net.send_out(Udp, B, S).port, 4242);
}

#[test]
fn there_is_room_for_so_many() {
    let mut net = Net::new(Behavior { quarantine_ports: 3, ..resting(4000, 4009) });
    for i in 0..8 {
        net.send_out(Udp, at(A, 4000 + i), S);
        net.wait(secs(1));
    }
    net.wait(secs(12));
    assert_eq!((net.nat.resting_count(), net.nat.counters().quarantine_cut_short), (3, 5));
    let free: BTreeSet<_> = (0..10)
        .filter_map(|i| net.try_out(Udp, at(B, 5000 + i), S).ok())
        .map(|external| external.port)
        .collect();
    assert_eq!(free, [4000, 4001, 4002, 4003, 4004, 4008, 4009].into(), "the latest three rest");
}

/// Under overloading too a port at rest is nobody's.
#[test]
fn rest_is_not_shared() {
    let behavior =
        Behavior { mapping: Mapping::AddressAndPortDependent, overloading: true, ..resting(4242, 4242) };
    let mut net = Net::new(behavior);
    net.send_out(Udp, A, S);
    net.send_out(Udp, B, P);
    net.wait(secs(11));
    assert_eq!(net.try_out(Udp, A, Q), Err(DropReason::PortsExhausted));
}

/// What the operator asks for by name he gets, and it rests no more afterwards than any forward.
#[test]
fn forwards_wake_a_port() {
    let mut net = Net::new(resting(4242, 4242));
    net.send_out(Udp, A, S);
    net.wait(secs(11));
    assert_eq!(net.forward(Udp, B, 4242).port, 4242);
    assert_eq!(net.nat.resting_count(), 0);
    net.wait(secs(61));
    assert_eq!(net.send_in(Udp, Q, Endpoint::v4(N, 4242)), Some(B));
    net.nat.flush(&Selection { statics: true, ..Selection::default() }, net.now);
    assert_eq!((net.nat.resting_count(), net.nat.poll_timeout()), (0, None));
}

#[test]
fn quarantine_of_a_running_nat() {
    let mut net = Net::new(resting(4000, 4009));
    for i in 0..5 {
        net.send_out(Udp, at(A, 4000 + i), S);
    }
    net.wait(secs(11));
    net.nat.set_behavior(Behavior { port_quarantine: Some(secs(20)), ..resting(4000, 4009) });
    net.wait(secs(18));
    assert_eq!(net.nat.resting_count(), 5);
    net.wait(secs(2));
    assert_eq!(net.nat.resting_count(), 0, "by the time that holds now");
    net.send_out(Udp, A, S);
    net.wait(secs(11));
    net.nat.set_behavior(Behavior { port_quarantine: None, ..resting(4000, 4009) });
    net.wait(Duration::from_millis(1));
    assert_eq!((net.nat.resting_count(), net.nat.poll_timeout()), (0, None));
    // An address that goes takes its resting ports along.
    net.nat.set_behavior(resting(4000, 4009));
    net.send_out(Udp, A, S);
    net.wait(secs(11));
    assert_eq!(net.nat.resting_count(), 1);
    net.nat.set_external(vec![[198, 51, 100, 9].into()], net.now).unwrap();
    assert_eq!((net.nat.resting_count(), net.nat.poll_timeout()), (0, None));
}

// ---- Blocks ----

fn blocks(size: u16, most: u16) -> Behavior {
    Behavior {
        port_range: PortRange::new(1024, 65_535).unwrap(),
        port_block: Some(size),
        subscriber_blocks: most,
        udp_timeout: secs(10),
        ..Behavior::RFC
    }
}

fn told(net: &Net) -> Vec<(bool, PortBlock)> {
    let block = |event: &Event| match event {
        Event::BlockAssigned(block) => Some((true, *block)),
        Event::BlockReleased(block) => Some((false, *block)),
        _ => None,
    };
    net.events.iter().filter_map(block).collect()
}

/// Who reads the log from its beginning knows whose a port is before a mapping has it.
#[test]
fn a_block_is_told_of_before_its_mappings() {
    let mut net = Net::new(blocks(64, 1));
    net.send_out(Udp, A, S);
    assert!(
        matches!(net.events[..], [Event::BlockAssigned(_), Event::MappingCreated { .. }]),
        "{:?}",
        net.events
    );
}

/// Whatever happens, the log says whose any external port is.
#[track_caller]
fn log_is_true(net: &Net) {
    let mut given: Vec<PortBlock> = Vec::new();
    for (is_given, block) in told(net) {
        let same = |other: &PortBlock| (other.address, other.ports) == (block.address, block.ports);
        if is_given {
            assert!(!given.iter().any(same), "given twice: {block:?}");
            given.push(block);
        } else {
            let at = given.iter().position(same).expect("it was given");
            assert_eq!(given.remove(at).subscriber, block.subscriber);
        }
    }
    assert_eq!(given.len(), net.nat.block_count());
    assert_eq!(net.nat.blocks().count(), net.nat.block_count());
    for mapping in net.mappings().iter().filter(|mapping| !mapping.is_static) {
        let external = mapping.external.0;
        let holds =
            |block: &&PortBlock| block.address == external.addr && block.ports.contains(external.port);
        let owner = given.iter().find(holds).map(|block| block.subscriber);
        assert_eq!(owner, Some(mapping.inside.endpoint.addr), "{mapping:?}");
    }
}

#[test]
fn protocols_share_a_block() {
    for ports in PortAssignment::ALL {
        let mut net = Net::new(Behavior { ports: *ports, ..blocks(64, 1) });
        let seen = [Udp, Tcp, Icmp].map(|protocol| net.send_out(protocol, A, remote(protocol)).port / 64);
        assert!(seen.iter().all(|number| *number == seen[0]), "{ports}: {seen:?}");
        let blocks: Vec<_> = net.nat.blocks().collect();
        assert_eq!((blocks.len(), blocks[0].held), (1, 3), "{ports}");
        log_is_true(&net);
    }
}

#[test]
fn a_block_goes_with_its_last_port() {
    let mut net = Net::new(Behavior {
        port_quarantine: Some(secs(60)),
        filtering: Filtering::EndpointIndependent,
        ..blocks(16, 4)
    });
    for i in 0..20 {
        net.send_out(Udp, at(A, 5000 + i), S);
    }
    assert_eq!(net.nat.block_count(), 2);
    net.wait(secs(11));
    assert_eq!((net.mappings().len(), net.nat.block_count(), net.nat.resting_count()), (0, 2, 20));
    assert_eq!(net.nat.subscriber_count(), 1);
    net.send_out(Udp, at(A, 7000), S); // in a block that rests
    net.wait(secs(9));
    net.send_out(Udp, at(A, 7000), S);
    net.wait(secs(9));
    net.send_out(Udp, at(A, 7000), S);
    assert_eq!(net.nat.block_count(), 2);
    log_is_true(&net);
    net.wait(secs(120));
    assert_eq!((net.nat.block_count(), net.nat.subscriber_count(), net.nat.poll_timeout()), (0, 0, None));
    assert_eq!((net.nat.counters().blocks_assigned, net.nat.counters().blocks_released), (2, 2));
    log_is_true(&net);
}

/// All ports of all blocks are found, then the blocks run out: for the subscriber, or for everybody.
#[test]
fn blocks_run_out() {
    for parity in [false, true] {
        let range = PortRange::new(2048, 2048 + 127).unwrap();
        let behavior = Behavior { port_range: range, port_parity: parity, ..blocks(32, 3) };
        let mut net = Net::new(behavior);
        let mine: BTreeSet<_> = (0..200)
            .filter_map(|i| net.try_out(Udp, at(A, 5000 + i), S).ok())
            .map(|external| external.port)
            .collect();
        assert_eq!(mine.len(), 96, "three blocks, to the last port");
        assert_eq!(net.dropped(DropReason::SubscriberMappings), 104);
        assert_eq!((0..200).filter(|i| net.try_out(Udp, at(B, 5000 + i), S).is_ok()).count(), 32);
        assert_eq!(net.dropped(DropReason::PortsExhausted), 168, "there is no fifth block");
        log_is_true(&net);
        net.nat.flush(&Selection { host: Some(A.addr), ..Selection::default() }, net.now);
        assert_eq!(net.nat.block_count(), 1);
        net.send_out(Udp, at(B, 9000), S);
        log_is_true(&net);
    }
}

/// The range need not begin or end with a block.
#[test]
fn ranges_that_cut_blocks() {
    let range = PortRange::new(2040, 2090).unwrap();
    let mut net = Net::new(Behavior { port_range: range, port_parity: false, ..blocks(32, 9) });
    let mine: BTreeSet<_> = (0..60)
        .filter_map(|i| net.try_out(Udp, at(A, 5000 + i), S).ok())
        .map(|external| external.port)
        .collect();
    assert_eq!(mine, (2040..=2090).collect());
    assert_eq!(net.nat.block_count(), 3);
    log_is_true(&net);
}

#[test]
fn pools_and_blocks() {
    let external: Vec<IpAddr> = (1..=8).map(|last| [198, 51, 100, last].into()).collect();
    for pooling in Pooling::ALL {
        let behavior = Behavior { pooling: *pooling, ..blocks(64, 4) };
        let mut net = Net::with(Config { behavior, external: external.clone(), ..Config::new(N.into()) });
        for host in 2..60 {
            let host = ep(&format!("10.0.0.{host}:5000"));
            let used: BTreeSet<_> = (0..64).map(|i| net.send_out(Udp, at(host, 5000 + i), S).addr).collect();
            assert_eq!(used.len(), 1, "{pooling}: one block is enough");
        }
        assert_eq!(net.nat.block_count(), 58, "{pooling}");
        log_is_true(&net);
        net.nat.set_external(external[..2].to_vec(), net.now).unwrap();
        net.wait(Duration::ZERO);
        log_is_true(&net);
        net.wait(secs(11));
        assert_eq!((net.nat.block_count(), net.nat.subscriber_count()), (0, 0), "{pooling}");
    }
}

/// A forward of a port in somebody's block stays the forward's, and costs the block that one port.
#[test]
fn forwards_and_blocks() {
    let mut net = Net::new(Behavior { port_parity: false, ..blocks(16, 1) });
    let first = net.send_out(Udp, A, S).port / 16 * 16;
    let free =
        (first..first + 16).find(|port| net.mappings().iter().all(|m| m.external.0.port != *port)).unwrap();
    net.forward(Udp, B, free);
    let made = (0..20).filter(|i| net.try_out(Udp, at(A, 6000 + i), S).is_ok()).count();
    assert_eq!(made, 14);
    log_is_true(&net);
    net.wait(secs(11));
    assert_eq!((net.mappings().len(), net.nat.block_count()), (1, 1), "the forward keeps the block");
    net.nat.flush(&Selection { statics: true, ..Selection::default() }, net.now);
    assert_eq!(net.nat.block_count(), 0);
}

/// Turned on while it runs: blocks in which several have ports are nobody's until these are gone.
#[test]
fn blocks_of_a_running_nat() {
    let range = PortRange::new(2048, 2048 + 63).unwrap();
    let plain =
        |ports| Behavior { port_range: range, port_parity: false, ports, port_block: None, ..blocks(32, 2) };
    let mut net = Net::new(plain(PortAssignment::Preserve));
    for (host, port) in [(A, 2048), (B, 2050), (A, 2090), (A, 2091)] {
        assert_eq!(net.send_out(Udp, at(host, port), S).port, port);
    }
    net.nat.set_behavior(Behavior { port_block: Some(32), ..plain(PortAssignment::Random) });
    net.wait(Duration::ZERO);
    let blocks: Vec<_> =
        net.nat.blocks().map(|block| (block.subscriber, block.ports.first(), block.held)).collect();
    assert_eq!(blocks, [(A.addr, 2080, 2)]);
    assert_eq!(net.try_out(Udp, at(B, 1), S), Err(DropReason::PortsExhausted), "the other one is nobody's");
    assert_eq!(net.send_out(Udp, at(A, 1), S).port / 32, 2080 / 32);
    net.wait(secs(11));
    assert_eq!(net.nat.block_count(), 0);
    net.send_out(Udp, at(B, 1), S);
    log_is_true(&net);
    net.nat.set_behavior(plain(PortAssignment::Random));
    net.wait(Duration::ZERO);
    assert_eq!((net.nat.block_count(), net.mappings().len(), net.nat.subscriber_count()), (0, 1, 0));
    assert_eq!(net.nat.counters().blocks_assigned, net.nat.counters().blocks_released);
}

// ---- Untranslated ----

fn untranslated(destinations: &str) -> Net {
    Net::new(rfc(|behavior| behavior.set("untranslated", destinations).unwrap()))
}

/// A packet passes in this direction as it is, but for a hop.
#[track_caller]
fn passes(net: &mut Net, mut raw: Raw, out: bool) {
    let before = look(&raw);
    let verdict = if out { net.out(&mut raw) } else { net.inn(&mut raw) };
    assert_eq!(verdict, Verdict::Forward(if out { Side::Outside } else { Side::Inside(TUN) }));
    let after = look(&raw);
    assert_eq!((after.from, after.to, after.payload), (before.from, before.to, before.payload));
}

#[test]
fn router_manners_hold_for_the_untranslated() {
    let mut net = untranslated("203.0.113.0/24");
    assert_eq!(net.out(&mut udp(A, S, b"").ttl(1)), Verdict::Drop(DropReason::TtlExceeded));
    assert_eq!(net.inn(&mut udp(S, A, b"").ttl(1)), Verdict::Drop(DropReason::TtlExceeded));
    assert_eq!(net.out(&mut udp(A, S, &[0; 1600])), Verdict::Drop(DropReason::TooBig));
    let sent: Vec<_> = net.take_sent().into_iter().map(|(to, report)| (to, report.icmp)).collect();
    let inside = Side::Inside(TUN);
    assert_eq!(sent, [(inside, Some((11, 0))), (Side::Outside, Some((11, 0))), (inside, Some((3, 4)))]);
    // A forged source, and a host that is not there.
    assert_eq!(net.out(&mut udp(Endpoint::v4(N, 5), S, b"")), Verdict::Drop(DropReason::BadSource));
    assert_eq!(net.inn(&mut udp(S, ep("10.77.0.2:5"), b"")), Verdict::Drop(DropReason::NoMapping));
    assert_eq!(net.inn(&mut udp(Q, A, b"")), Verdict::Drop(DropReason::NoMapping), "a stranger");
}

/// Errors about what passed untranslated pass so too; about what was translated they are translated.
#[test]
fn errors_about_the_untranslated() {
    let mut net = untranslated("203.0.113.0/24");
    passes(&mut net, error(A, at(S, 0), (3, 3), &udp(S, A, b"asked"), 29), true);
    passes(&mut net, error(at(Q, 0), at(A, 0), (11, 0), &udp(A, S, b"asked"), 29), false);
    let stray = net.inn(&mut error(at(Q, 0), at(A, 0), (11, 0), &udp(A, Q, b"asked"), 29));
    assert_eq!(stray, Verdict::Drop(DropReason::NoMapping));
    let external = net.send_out(Udp, A, Q);
    let mut report = error(at(S, 0), external, (11, 0), &udp(external, Q, b"asked"), 29);
    assert_eq!(net.delivered(&mut report), Ok(at(A, 0)), "who sends an error does not matter");
}

/// Where every port of an address is untranslated, so are packets without ports.
#[test]
fn packets_without_ports() {
    for (destinations, passes) in [("203.0.113.5", true), ("203.0.113.5:53", false), ("none", false)] {
        let mut net = untranslated(destinations);
        let behavior = net.nat.behavior().clone();
        net.nat.set_behavior(Behavior { fragments: Fragments::Drop, ..behavior });
        let fragment = |from, to| udp(from, to, b"8 octets").ip(|header| header.more_fragments = true);
        let gre =
            |from, to| udp(from, to, b"tunnel").ip(|header| header.protocol = etherparse::ip_number::GRE);
        for (raw, why) in [(fragment(A, S), DropReason::Fragment), (gre(A, S), DropReason::Protocol)] {
            let mut bytes = raw.clone();
            let verdict = bytes.through(|packet| net.nat.outbound(TUN, packet, net.now));
            let expected = if passes { Verdict::Forward(Side::Outside) } else { Verdict::Drop(why) };
            assert_eq!(verdict, expected, "{destinations}");
            assert_eq!(bytes.bytes[12..], raw.bytes[12..]);
        }
        for (raw, why) in [(fragment(S, A), DropReason::Fragment), (gre(S, A), DropReason::Protocol)] {
            let mut bytes = raw.clone();
            let verdict = bytes.through(|packet| net.nat.inbound(packet, net.now));
            let expected = if passes { Verdict::Forward(Side::Inside(TUN)) } else { Verdict::Drop(why) };
            assert_eq!(verdict, expected, "{destinations}");
        }
    }
}

/// What is too long for the next link is cut, whatever it is.
#[test]
fn long_packets_without_ports() {
    let mut net = untranslated("203.0.113.5");
    let gre = |from, to| {
        udp(from, to, &[7; 3000]).ip(|header| {
            header.protocol = etherparse::ip_number::GRE;
            header.dont_fragment = false;
        })
    };
    assert_eq!(net.out_pieces(&[gre(A, S)]).len(), 3);
    assert_eq!(net.in_pieces(&[gre(S, A)]).len(), 3);
}

/// On a shared address what comes from elsewhere for the inside networks is still the host's business.
#[test]
fn untranslated_on_a_shared_address() {
    let behavior = rfc(|behavior| behavior.set("untranslated", "203.0.113.0/24").unwrap());
    let mut net = Net::with(Config { behavior, shared: true, ..Config::new(N.into()) });
    passes(&mut net, udp(S, A, b"to a host"), false);
    assert_eq!(net.inn(&mut udp(Q, A, b"")), Verdict::Local);
    assert_eq!(net.inn(&mut udp(S, Endpoint::v4(N, 22), b"")), Verdict::Local);
}

/// A flow that was translated when the destination was not exempt yet goes on as it is.
#[test]
fn translated_flows_go_on() {
    let mut net = Net::new(Behavior::RFC);
    let external = net.send_out(Udp, A, S);
    net.nat.set_behavior(rfc(|behavior| behavior.set("untranslated", "203.0.113.0/24").unwrap()));
    assert_eq!(net.send_out(Udp, A, S), external);
    assert_eq!(net.send_in(Udp, S, external), Some(A));
    passes(&mut net, udp(at(A, 9), S, b"new"), true);
    assert_eq!(net.nat.counters().untranslated_packets, 1);
}
