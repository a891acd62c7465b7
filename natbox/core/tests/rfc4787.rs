//! RFC 4787, requirement by requirement, with UDP. Where real NATs are known to fail, the body runs again with that axis
//! violated, and must notice.

mod common;

use std::collections::BTreeSet;

use common::*;
use natbox_core::{Config, DropReason, PortRange, Protocol::Udp, Side, Verdict, behavior::*};

#[test]
fn req_1_endpoint_independent_mapping() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let seen: BTreeSet<_> = [S, S2, P, Q].map(|remote| net.send_out(Udp, A, remote)).into();
        met(seen.len() == 1, "one external endpoint towards everybody");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.mapping = Mapping::AddressDependent, body);
    violated(|behavior| behavior.mapping = Mapping::AddressAndPortDependent, body);
}

#[test]
fn req_2_paired_pooling() {
    let body = |behavior| {
        let external = (1..=8).map(|last| [198, 51, 100, last].into()).collect();
        let mut net = Net::with(Config { behavior, external, ..Config::new(N.into()) });
        let mut used = BTreeSet::new();
        for host in 2..60 {
            let host = ep(&format!("10.0.0.{host}:1"));
            let addrs: BTreeSet<_> =
                (5000..5008).map(|port| net.send_out(Udp, at(host, port), S).addr).collect();
            met(addrs.len() == 1, "all mappings of a host are on one address");
            used.extend(addrs);
        }
        assert_eq!(used.len(), 8, "the pool is spread over the hosts");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.pooling = Pooling::Arbitrary, body);
}

#[test]
fn req_3_no_port_overloading() {
    let body = |behavior| {
        let mut net = Net::new(rfc_ports(behavior, 2000, 2003));
        let mut seen = BTreeSet::new();
        for (i, remote) in [S, S2, P, Q].into_iter().enumerate() {
            let host = ep(&format!("10.0.0.{}:2000", i + 2));
            met(seen.insert(net.send_out(Udp, host, remote)), "no two hosts share an external endpoint");
        }
        met(net.try_out(Udp, ep("10.0.0.9:2000"), ep("192.0.2.9:9")).is_err(), "no fifth host on four ports");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.overloading = true, body);
}

fn rfc_ports(behavior: Behavior, first: u16, last: u16) -> Behavior {
    Behavior { port_range: PortRange::new(first, last).expect("a range"), port_parity: false, ..behavior }
}

#[test]
fn req_3a_port_class_is_kept() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        for port in (1..1024).step_by(20).chain((1024..65_000).step_by(1000)) {
            let external = net.send_out(Udp, at(A, port), S);
            met(
                (external.port < 1024) == (port < 1024),
                "well-known stays well-known, and the rest the rest",
            );
        }
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.port_class = PortClass::Off, body);
}

#[test]
fn req_4_parity_is_preserved() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        for port in 5000..5040 {
            met(net.send_out(Udp, at(A, port), S).port % 2 == port % 2, "odd stays odd, even stays even");
        }
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.port_parity = false, body);
}

#[test]
fn req_5_mappings_live_two_minutes() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.send_out(Udp, A, S);
        net.wait(secs(119));
        met(net.send_in(Udp, S, external) == Some(A), "a mapping lives for two minutes");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.udp_timeout = secs(30), body);
}

#[test]
fn req_5b_default_is_five_minutes_and_configurable() {
    let life = |behavior| {
        let mut net = Net::new(behavior);
        net.send_out(Udp, A, S);
        let made = net.now;
        while net.nat.mappings().next().is_some() {
            net.wait(secs(1));
        }
        net.now - made
    };
    assert_eq!(life(Behavior::RFC), secs(300));
    assert_eq!(life(rfc(|behavior| behavior.udp_timeout = secs(17))), secs(17));
}

#[test]
fn req_6_outbound_packets_refresh() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.send_out(Udp, A, S);
        for _ in 0..5 {
            net.wait(secs(200));
            met(net.send_out(Udp, A, S) == external, "what goes out keeps the mapping");
        }
        met(net.send_in(Udp, S, external) == Some(A), "what goes out keeps the filter open");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.refresh = Refresh::Inbound, body);
}

/// Inbound refresh MAY be on: it is off as the RFCs have it, because a stranger could keep a mapping for ever.
#[test]
fn req_6_inbound_refresh_is_a_choice() {
    for (refresh, stays) in [(Refresh::Outbound, false), (Refresh::Both, true), (Refresh::Inbound, true)] {
        let mut net = Net::new(rfc(|behavior| behavior.refresh = refresh));
        let external = net.send_out(Udp, A, S);
        for _ in 0..5 {
            net.wait(secs(200));
            net.send_in(Udp, S, external);
        }
        assert_eq!(net.send_in(Udp, S, external).is_some(), stays, "{refresh}");
    }
}

/// The network outside has the numbers of the network inside: both are reached.
#[test]
fn req_7_overlapping_address_space() {
    let mut net = Net::new(Behavior::RFC);
    let twin = ep("10.0.0.3:5353"); // B's numbers, somewhere outside
    let external = net.send_out(Udp, A, twin);
    assert_eq!(net.send_in(Udp, twin, external), Some(A));
    let external = net.send_out(Udp, B, A); // and A's numbers outside are not A
    assert_eq!(net.send_in(Udp, A, external), Some(B));
    // Two inside networks with the same numbers do not meet either.
    let other = net.nat.add_inside(natbox_core::InsidePort {
        gateway: GATEWAY.into(),
        prefix_len: 24,
        mtu: 1500,
        shared: false,
    });
    let mut raw = udp(A, S, b"from the other A");
    net.out_via(other.unwrap(), &mut raw);
    let second = look(&raw).from;
    let first = net.send_out(Udp, A, S);
    assert_ne!(first, second);
    for (external, port) in [(first, 0), (second, 1)] {
        let verdict = net.inn(&mut udp(S, external, b"answer"));
        let to = natbox_core::Side::Inside(natbox_core::InsideId(port));
        assert_eq!(verdict, natbox_core::Verdict::Forward(to));
    }
}

#[test]
fn req_8_address_dependent_filtering() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.send_out(Udp, A, S);
        assert_eq!(net.send_in(Udp, P, external), None, "P was never sent to");
        met(net.send_in(Udp, S2, external) == Some(A), "another port of an address that was sent to");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.filtering = Filtering::AddressAndPortDependent, body);
}

#[test]
fn req_9_hairpinning_works() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let (a, b) = (net.send_out(Udp, A, S), net.send_out(Udp, B, S));
        net.hairpin(&mut udp(B, a, b"punch")).unwrap_err();
        let seen = net.hairpin(&mut udp(A, b, b"hello"));
        met(seen.is_ok_and(|(_, to)| to == B), "two hosts behind one NAT reach each other");
        let seen = net.hairpin(&mut udp(B, a, b"hello")).unwrap();
        assert_eq!(seen.1, A);
    };
    // B's first packet opens B's own filter for A's external endpoint.
    body(Behavior::RFC);
    violated(|behavior| behavior.hairpin = Hairpin::Off, body);
}

#[test]
fn req_9a_hairpinning_shows_the_external_source() {
    let body = |behavior| {
        let mut net = Net::new(rfc_filter(behavior));
        let (a, b) = (net.send_out(Udp, A, S), net.send_out(Udp, B, S));
        let seen = net.hairpin(&mut udp(A, b, b"hello")).unwrap();
        met(seen == (a, B), "the source is external, address and port");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.hairpin = Hairpin::Internal, body);
}

fn rfc_filter(behavior: Behavior) -> Behavior {
    Behavior { filtering: Filtering::EndpointIndependent, ..behavior }
}

/// No payload is ever touched: the checker compares it for every packet; here are some that tempt.
#[test]
fn req_10_no_application_gateways() {
    let mut net = Net::new(Behavior::RFC);
    let payloads: [(u16, &[u8]); 3] = [
        (5060, b"INVITE sip:bob@example.org SIP/2.0\r\nContact: <sip:10.0.0.2:4242>\r\n"),
        (69, b"\x00\x01file\x00octet\x00"),
        (53, b"\x0a\x00\x00\x02\x10\x92"),
    ];
    for (port, payload) in payloads {
        let mut raw = udp(A, at(S, port), payload);
        net.forwarded(&mut raw).unwrap();
        assert_eq!(look(&raw).payload, payload);
    }
    let mut raw = tcp(A, at(S, 21), SYN, b"PORT 10,0,0,2,16,146\r\n");
    net.forwarded(&mut raw).unwrap();
    assert_eq!(look(&raw).payload, b"PORT 10,0,0,2,16,146\r\n");
}

/// The behaviour that a host sees does not depend on what other hosts have done before it.
#[test]
fn req_11_determinism_under_conflict() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let mut classify = |host| {
            let seen = [S, P, Q].map(|remote| net.send_out(Udp, host, remote));
            let independent = seen.iter().all(|external| *external == seen[0]);
            (independent, net.send_in(Udp, S2, seen[0]).is_some(), net.send_in(Udp, ep("9.9.9.9:9"), seen[0]))
        };
        let alone = classify(ep("10.0.0.2:6000"));
        let in_conflict = classify(ep("10.0.0.3:6000"));
        met(alone == in_conflict, "mapping and filtering are the same under conflict");
    };
    body(Behavior::RFC);
    // As Linux does: endpoint-independent for as long as ports can be preserved.
    let linux = |behavior: &mut Behavior| {
        behavior.mapping = Mapping::AddressAndPortDependent;
        behavior.ports = PortAssignment::PreserveOrRandom;
        behavior.overloading = true;
    };
    violated(linux, body);
}

#[test]
fn req_12_icmp_errors_end_nothing_and_come_from_anybody() {
    let mut net = Net::new(Behavior::RFC);
    let mut sent = udp(A, S, b"lost on its way");
    let external = net.forwarded(&mut sent).unwrap();
    let before = net.mappings();
    for (i, kind) in [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (12, 0)].into_iter().enumerate() {
        let router = ep(&format!("192.0.2.{}:0", i + 1)); // a router that nobody has sent to
        let mut report = error(router, external, kind, &sent, 28);
        assert_eq!(net.delivered(&mut report), Ok(at(A, 0)), "{kind:?} gets through");
        assert_eq!(look(&report).quote.unwrap().from, A);
        assert_eq!(net.mappings(), before, "{kind:?} leaves everything as it was");
    }
    assert_eq!(net.send_in(Udp, S, external), Some(A));
}

#[test]
fn req_13_too_big_is_reported() {
    let mut net = Net::new(Behavior::RFC);
    let external = net.send_out(Udp, A, S);
    let mut big = udp(A, S, &[7; 1473]).ip(|header| header.dont_fragment = true);
    assert_eq!(net.forwarded(&mut big), Err(natbox_core::DropReason::TooBig));
    let (to, report) = net.take_sent().pop().unwrap();
    assert_eq!((to, report.from.addr), (natbox_core::Side::Inside(TUN), GATEWAY.into()));
    assert_eq!((report.icmp, report.mtu, report.to.addr), (Some((3, 4)), 1500, A.addr));
    assert_eq!(report.quote.unwrap().from, A);
    assert_eq!(net.forwarded(&mut udp(A, S, &[7; 1472])), Ok(external), "what just fits goes");
}

/// DNS is over with its answer: a shorter timer for a well-known port is a choice, and touches no other.
#[test]
fn req_5a_well_known_ports_may_have_shorter_timers() {
    for (timeouts, lives) in [("none", 300), ("53=10s", 10), ("123=20s,53=10s", 10)] {
        for refresh in [Refresh::Outbound, Refresh::Both] {
            let mut net = Net::new(rfc(|behavior| {
                behavior.refresh = refresh;
                behavior.set("udp-port-timeouts", timeouts).unwrap();
            }));
            let (dns, other) = (net.send_out(Udp, A, S), net.send_out(Udp, B, S2));
            net.wait(secs(lives - 1));
            assert_eq!(net.send_in(Udp, S, dns), Some(A), "{timeouts}");
            assert_eq!(net.send_out(Udp, A, S), dns, "{timeouts}");
            net.wait(secs(lives - 1));
            assert_eq!(net.send_in(Udp, S, dns), Some(A), "{timeouts}: what goes out refreshes");
            let inbound = if refresh == Refresh::Both { lives - 1 } else { 1 };
            net.wait(secs(inbound) - std::time::Duration::from_millis(1));
            assert_eq!(net.send_in(Udp, S, dns), Some(A), "{timeouts}");
            net.wait(secs(lives));
            assert_eq!(net.send_in(Udp, S, dns), None, "{timeouts}");
            if lives == 10 {
                assert_eq!(net.send_in(Udp, S2, other), Some(B), "another port keeps its own");
            }
        }
    }
    let mut behavior = Behavior::RFC;
    assert!(behavior.set("udp-port-timeouts", "1024=10s").is_err(), "of well-known ports only");
}

#[test]
fn req_13a_what_may_be_fragmented_is_fragmented_in_order() {
    let mut net = Net::new(Behavior::RFC);
    let external = net.send_out(Udp, A, S);
    let payload: Vec<u8> = (0..4000).map(|i| i as u8).collect();
    let big = udp(A, S, &payload).ip(|header| header.dont_fragment = false);
    let parts = net.out_pieces(&[big]);
    assert!(parts.iter().all(|(to, part)| *to == Side::Outside && part.bytes.len() <= 1500));
    let offsets: Vec<_> = parts.iter().map(|(_, part)| part.header().fragment_offset.byte_offset()).collect();
    met(offsets == [0, 1480, 2960], "in order");
    let arrived = whole(&parts).unwrap();
    assert_eq!((arrived.from, arrived.to, arrived.payload), (external, S, payload));
    assert_eq!(net.take_sent(), [], "nobody is told");

    // Inwards as well, where the link inside is the smaller one.
    let small = net.add_inside(7, 600);
    let host = ep("10.7.0.2:7");
    let mut opening = udp(host, S, b"");
    assert_eq!(net.out_via(small, &mut opening), Verdict::Forward(Side::Outside));
    let external = look(&opening).from;
    let big = udp(S, external, &[9; 1400]).ip(|header| header.dont_fragment = false);
    let parts = net.in_pieces(&[big]);
    assert_eq!(parts.len(), 3);
    assert!(parts.iter().all(|(to, part)| *to == Side::Inside(small) && part.bytes.len() <= 600));
    let arrived = whole(&parts).unwrap();
    assert_eq!((arrived.from, arrived.to, arrived.payload), (S, host, vec![9; 1400]));
}

/// Every order of four fragments, out and in, gets through; with each protocol.
#[test]
fn req_14_fragments_in_every_order() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let payload: Vec<u8> = (0..2000).map(|i| (i / 3) as u8).collect();
        let orders = orders_of_four();
        for (i, order) in orders.iter().enumerate() {
            let id = i as u16;
            let externals = [net.send_out(Udp, A, S), net.connect(A, S), {
                let asked = at(S, 0);
                net.send_out(natbox_core::Protocol::Icmp, A, asked)
            }];
            let out = [udp(A, S, &payload), tcp(A, S, ACK, &payload), echo(A, at(S, 0), &payload)];
            let back = [
                udp(S, externals[0], &payload),
                tcp(S, externals[1], ACK, &payload),
                echo_reply(at(S, 0), externals[2], &payload),
            ];
            for ((raw, answer), external) in out.iter().zip(&back).zip(externals) {
                let pieces = fragments(raw, id, 512);
                let pieces: Vec<_> = order.iter().map(|i| pieces[*i].clone()).collect();
                let left = whole(&net.out_pieces(&pieces));
                met(left.as_ref().is_some_and(|left| left.payload == payload), "all fragments leave");
                assert_eq!(left.unwrap().from, external);
                let pieces = fragments(answer, id, 512);
                let pieces: Vec<_> = order.iter().map(|i| pieces[*i].clone()).collect();
                let entered = whole(&net.in_pieces(&pieces));
                met(
                    entered.as_ref().is_some_and(|entered| entered.payload == payload),
                    "all fragments enter",
                );
                assert_eq!(entered.unwrap().to, A);
            }
        }
        assert_eq!((net.nat.fragments_held(), net.take_sent()), (0, vec![]));
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.fragments = Fragments::InOrder, body);
    violated(|behavior| behavior.fragments = Fragments::UdpOnly, body);
    violated(|behavior| behavior.fragments = Fragments::Drop, body);
}

fn orders_of_four() -> Vec<[usize; 4]> {
    let all = (0..256usize).map(|n| [n & 3, n >> 2 & 3, n >> 4 & 3, n >> 6]);
    all.filter(|order| (0..4).all(|i| order.contains(&i))).collect()
}

/// Floods of fragments that never make a datagram: memory stays within its bounds, known flows and the fragments of others
/// pass as before, in every order.
#[test]
fn req_14a_a_flood_of_fragments_takes_nothing_from_others() {
    let mut net = Net::new(rfc(|behavior| behavior.filtering = Filtering::EndpointIndependent));
    let external = net.send_out(Udp, A, S);
    let legitimate = |net: &mut Net, id| {
        for order in [[0, 1, 2, 3], [3, 1, 2, 0]] {
            let pieces = fragments(&udp(S, external, &[id as u8; 1900]), id, 480);
            let pieces: Vec<_> = order.iter().map(|i| pieces[*i].clone()).collect();
            let entered = whole(&net.in_pieces(&pieces)).expect("another source is not disturbed");
            assert_eq!((entered.to, entered.payload), (A, vec![id as u8; 1900]));
        }
        assert_eq!(net.send_in(Udp, S, external), Some(A));
    };
    let mut sent = 0u64;
    for round in 0..40u16 {
        for i in 0..500u16 {
            // From one source, from many, without a first one, with nothing but first ones.
            let (one, many) = (ep("192.0.2.1:9"), forged(u32::from(round) * 500 + u32::from(i)));
            let id = round * 500 + i;
            for (source, which, id) in [(one, 1, id), (many, 1, id), (one, 0, !id), (many, 0, !id)] {
                let piece = &fragments(&udp(source, external, &[0; 1400]), id, 704)[which];
                net.inn(&mut piece.clone());
                sent += 1;
            }
        }
        legitimate(&mut net, round);
    }
    let held = net.nat.fragments_held() as u64;
    let refused = net.dropped(DropReason::FragmentsFull);
    assert!(held <= 128 * 16, "{held} are held");
    assert!(
        held + refused > sent / 4,
        "those without a first one are held or counted: {held} {refused} {sent}"
    );
    // From inside, too: a host has no more than its place.
    for id in 0..5000 {
        net.out(&mut fragments(&udp(B, S, &[0; 1400]), id, 704)[1].clone());
    }
    assert!(net.nat.fragments_held() as u64 <= held + 16);
    legitimate(&mut net, 9999);
    net.wait(secs(16));
    assert_eq!(
        (net.nat.fragments_held(), net.nat.mapping_count()),
        (0, 1),
        "and in the end all is given back"
    );
}

/// One of many sources.
fn forged(number: u32) -> natbox_core::Endpoint {
    natbox_core::Endpoint::v4(std::net::Ipv4Addr::from_bits(0x1400_0000 + number * 257), 9)
}
