//! Changes to a NAT that runs: mappings by name, flushes, other behaviours, other addresses, while flows live.

mod common;

use common::*;
use natbox_core::{
    Config, DropReason, Ended, Endpoint, Event, External, Inside, InsideId, Limits, MappingError,
    MappingRequest, Nat,
    Protocol::{self, Icmp, Tcp, Udp},
    Selection, Time, Verdict,
    behavior::*,
};

fn request(protocol: Protocol, inside: Endpoint, port: u16) -> MappingRequest {
    let inside = Inside { port: TUN, endpoint: inside };
    MappingRequest { protocol, inside, address: None, port, until: Time::NEVER }
}

/// Claims, folded: the external endpoints that are held.
fn held(nat: &mut Nat) -> std::collections::BTreeSet<(Protocol, External)> {
    let mut held = std::collections::BTreeSet::new();
    while let Some(claim) = nat.poll_claim() {
        let key = (claim.protocol, claim.external);
        assert!(if claim.held { held.insert(key) } else { held.remove(&key) }, "{claim:?}");
    }
    held
}

#[test]
fn a_static_forward_lets_everybody_in() {
    for (mapping, filtering) in pairs() {
        let mut net = Net::new(Behavior { mapping, filtering, ..Behavior::RFC });
        let udp_port = net.forward(Udp, A, 8080);
        let tcp_port = net.forward(Tcp, A, 8080);
        assert_eq!((udp_port, tcp_port), (Endpoint::v4(N, 8080), Endpoint::v4(N, 8080)));
        for remote in [S, S2, P, Q] {
            assert_eq!(net.send_in(Udp, remote, udp_port), Some(A), "{mapping} {filtering}");
            assert_eq!(net.send_in(Tcp, remote, tcp_port), Some(A), "{mapping} {filtering}");
            assert_eq!(net.tcp_out(A, remote, SYN_ACK), Ok(tcp_port), "answers show its endpoint");
            assert_eq!(net.send_out(Udp, A, remote), udp_port, "and so does what the host begins");
        }
        net.wait(secs(1_000_000));
        assert_eq!(net.send_in(Udp, Q, udp_port), Some(A), "it does not age");
        assert!(net.mappings().iter().all(|mapping| mapping.is_static && mapping.expires == Time::NEVER));
    }
}

#[test]
fn a_static_forward_is_never_shared() {
    let mut net = Net::new(rfc(|behavior| {
        behavior.overloading = true;
        behavior.ports = PortAssignment::Preserve;
        behavior.mapping = Mapping::AddressAndPortDependent;
    }));
    net.forward(Udp, A, 8080);
    assert_ne!(net.send_out(Udp, at(B, 8080), S).port, 8080);
    let inside = |endpoint| Inside { port: TUN, endpoint };
    let taken = net.nat.add_mapping(request(Udp, B, 8080), net.now);
    assert_eq!(taken, Err(MappingError::Taken(inside(A))));
    let dynamic = net.send_out(Udp, B, P);
    let taken = net.nat.add_mapping(request(Udp, A, dynamic.port), net.now);
    assert_eq!(taken, Err(MappingError::Taken(inside(B))));
    let kept = net.mappings().iter().any(|mapping| mapping.is_static && mapping.external.0.port == 8080);
    assert!(kept, "a request that fails leaves the mapping that stood");
    assert_eq!(net.send_in(Udp, Q, Endpoint::v4(N, 8080)), Some(A));
}

#[test]
fn requests_that_cannot_be_met() {
    let limits = Limits { mappings: 2, sessions: 2 };
    let mut net = Net::with(Config { limits, ..Config::new(N.into()) });
    net.nat.set_reserved(Tcp, &[22]);
    let mut add = |request| net.nat.add_mapping(request, Time::ZERO);
    let elsewhere = Inside { port: InsideId(3), endpoint: A };
    let v6 = Inside { port: TUN, endpoint: ep("[2001:db8::1]:80") };
    assert_eq!(
        add(MappingRequest { inside: elsewhere, ..request(Tcp, A, 80) }),
        Err(MappingError::NoSuchInside(InsideId(3)))
    );
    assert_eq!(
        add(MappingRequest { inside: v6, ..request(Tcp, A, 80) }),
        Err(MappingError::NotV4(v6.endpoint.addr))
    );
    assert_eq!(
        add(MappingRequest { address: Some(S.addr), ..request(Tcp, A, 80) }),
        Err(MappingError::NotOurs(S.addr))
    );
    assert_eq!(add(request(Tcp, A, 22)), Err(MappingError::Reserved(22)));
    assert!(add(request(Udp, A, 22)).is_ok(), "TCP's ports are reserved, not UDP's");
    let external = add(request(Tcp, A, 0)).unwrap();
    assert_eq!(add(request(Tcp, B, 0)), Err(MappingError::TableFull));
    let other = if external.0.port == 8080 { 8081 } else { 8080 };
    assert_eq!(add(request(Tcp, A, other)), Err(MappingError::Forwarded(external)));
    assert_eq!(net.mappings().len(), 2);
}

/// A host behind the NAT that had such an address could not be reached, nor be heard.
#[test]
fn nothing_is_forwarded_to_the_nat_itself() {
    let mut net = Net::new(Behavior::RFC);
    let other = net.add_inside(7, 1500);
    for own in [GATEWAY, [10, 7, 0, 1].into(), N] {
        for port in [TUN, other] {
            let inside = Inside { port, endpoint: Endpoint::v4(own, 80) };
            let refused = net.nat.add_mapping(MappingRequest { inside, ..request(Tcp, A, 8080) }, net.now);
            assert_eq!(refused, Err(MappingError::OwnAddress(own.into())));
        }
    }
    assert_eq!(net.mappings(), []);
    assert_eq!(
        MappingError::OwnAddress(N.into()).to_string(),
        "198.51.100.1 is this NAT's own address: name a host behind it"
    );
}

/// What PCP and NAT-PMP clients do every few minutes: their connections must not notice.
#[test]
fn renewing_a_mapping_leaves_its_connections_alone() {
    let mut net = Net::new(Behavior::RFC);
    let until =
        |net: &Net, seconds| MappingRequest { until: net.now + secs(seconds), ..request(Tcp, A, 8080) };
    let external = net.nat.add_mapping(until(&net, 600), net.now).unwrap().0;
    net.tcp_in(S, external, SYN).unwrap();
    net.tcp_out(A, S, SYN_ACK).unwrap();
    let events = net.events.len();
    for _ in 0..10 {
        net.wait(secs(500));
        for wanted in [8080, 0] {
            let again = MappingRequest { port: wanted, ..until(&net, 600) };
            assert_eq!(net.nat.add_mapping(again, net.now), Ok(External(external)));
        }
        assert_eq!(net.tcp_in(S, external, ACK), Ok(A));
        assert_eq!(net.tcp_out(A, S, ACK), Ok(external));
    }
    assert_eq!((net.states(), net.events.len()), (vec!["established"], events));
    // A shorter lifetime counts from now on, for sessions too.
    net.nat.add_mapping(until(&net, 30), net.now).unwrap();
    net.wait(secs(29));
    assert_eq!(net.tcp_in(S, external, ACK), Ok(A));
    net.wait(secs(1));
    assert_eq!((net.mappings(), net.nat.sessions().count()), (vec![], 0));
    net.wait(secs(1));
    assert_eq!((net.nat.mapping_count(), net.expired()), (0, 1));
    assert_eq!(net.tcp_in(S, external, ACK), Err(DropReason::NoMapping));
}

#[test]
fn a_dynamic_mapping_becomes_static() {
    let mut net = Net::new(Behavior::RFC);
    let external = net.connect(A, S);
    assert_eq!(net.forward(Tcp, A, external.port), external);
    assert_eq!(net.tcp_in(Q, external, SYN), Ok(A));
    assert_eq!(net.tcp_out(A, S, ACK), Ok(external), "its connection lives on");
    net.wait(secs(100_000));
    assert_eq!(net.tcp_in(P, external, SYN), Ok(A));
    let moved = net.nat.add_mapping(request(Tcp, A, external.port ^ 2), net.now);
    assert_eq!(moved, Err(MappingError::Forwarded(External(external))));
    net.nat.flush(&Selection { statics: true, ..Selection::default() }, net.now);
    assert_eq!((net.nat.mapping_count(), net.nat.session_count()), (0, 0));
    assert_eq!(net.nat.poll_timeout(), None);
}

/// A host's own mapping gives way to one by name, and its port is free.
#[test]
fn a_forward_replaces_a_dynamic_mapping() {
    let mut net = Net::new(Behavior::RFC);
    let external = net.connect(A, S);
    let moved = net.forward(Tcp, A, external.port ^ 2);
    assert_eq!(net.mappings().len(), 1);
    assert_eq!(net.tcp_in(P, moved, SYN), Ok(A));
    assert_eq!(net.tcp_in(P, external, SYN), Err(DropReason::UnsolicitedSyn));
}

#[test]
fn flushing_selects() {
    let mut net = Net::new(rfc(|behavior| behavior.ports = PortAssignment::Preserve));
    let fill = |net: &mut Net| {
        for host in [A, B] {
            for protocol in Protocol::ALL {
                net.send_out(protocol, host, at(S, 0));
            }
        }
    };
    fill(&mut net);
    net.forward(Udp, ep("10.0.0.9:9"), 9);
    let cases = [
        (Selection::default(), 6),
        (Selection { statics: true, ..Selection::default() }, 7),
        (Selection { protocol: Some(Tcp), ..Selection::default() }, 2),
        (Selection { host: Some(A.addr), ..Selection::default() }, 3),
        (Selection { external_port: Some(A.port), ..Selection::default() }, 3),
        (
            Selection {
                protocol: Some(Icmp),
                host: Some(B.addr),
                external_port: Some(B.port),
                statics: true,
            },
            1,
        ),
        (Selection { external_port: Some(1), ..Selection::default() }, 0),
    ];
    for (selection, expected) in cases {
        fill(&mut net);
        if net.mappings().len() == 6 {
            net.forward(Udp, ep("10.0.0.9:9"), 9);
        }
        let before = net.mappings();
        assert_eq!(net.nat.flush(&selection, net.now), expected, "{selection:?}");
        let after = net.mappings();
        assert!(before.iter().all(|mapping| after.contains(mapping) != selection.selects(mapping)));
        assert_eq!(net.nat.session_count(), after.iter().filter(|mapping| !mapping.is_static).count());
    }
}

#[test]
fn flushed_flows_begin_anew() {
    let mut net = Net::new(Behavior::RFC);
    let (udp_before, tcp_before) = (net.send_out(Udp, A, S), net.connect(A, S));
    net.nat.flush(&Selection::default(), net.now);
    assert_eq!(net.try_in(Udp, S, udp_before), Err(DropReason::NoMapping));
    assert_eq!(net.tcp_out(A, S, ACK), Err(DropReason::StrayTcp));
    assert_ne!(net.send_out(Udp, A, S), udp_before);
    assert_ne!(net.connect(A, S), tcp_before);
    let removed = |event: &&Event| matches!(event, Event::MappingEnded { why: Ended::Removed, .. });
    net.wait(secs(0));
    assert_eq!(net.events.iter().filter(removed).count(), 2);
}

/// Whatever the filter becomes, what was sent to is remembered by it.
#[test]
fn filters_change_while_flows_live() {
    for from in Filtering::ALL {
        for to in Filtering::ALL {
            for scope in FilterScope::ALL {
                let mut net = Net::new(rfc(|behavior| behavior.filtering = *from));
                let external = net.send_out(Udp, A, S);
                net.nat.set_behavior(rfc(|behavior| {
                    behavior.filtering = *to;
                    behavior.filter_scope = *scope;
                }));
                let seen = [S, S2, P].map(|remote| net.send_in(Udp, remote, external).is_some());
                let expected = match to {
                    Filtering::EndpointIndependent => [true, true, true],
                    Filtering::AddressDependent => [true, true, false],
                    Filtering::AddressAndPortDependent => [true, false, false],
                };
                assert_eq!(seen, expected, "{from} → {to} {scope}");
                net.wait(secs(302));
                assert_eq!(net.nat.mapping_count(), 0, "and permissions end as ever");
            }
        }
    }
}

#[test]
fn mappings_change_while_flows_live() {
    for from in Mapping::ALL {
        for to in Mapping::ALL {
            let mut net = Net::new(rfc(|behavior| behavior.mapping = *from));
            let external = net.connect(A, S);
            net.nat.set_behavior(rfc(|behavior| behavior.mapping = *to));
            assert_eq!(net.tcp_out(A, S, ACK), Ok(external), "{from} → {to}: a connection stays where it is");
            assert_eq!(net.tcp_in(S, external, ACK), Ok(A));
            let (to_p, to_q) = (net.connect(A, P), net.connect(A, Q));
            assert_eq!(to_p == to_q, *to == Mapping::EndpointIndependent, "{from} → {to}");
            let mut got = tcp(S, external, ACK, b"");
            net.delivered(&mut got).unwrap();
            let report = net.forwarded(&mut error(at(A, 0), at(S, 0), (3, 4), &got, 28));
            assert_eq!(report, Ok(at(external, 0)), "{from} → {to}: errors find its endpoint");
        }
    }
}

#[test]
fn external_addresses_come_and_go() {
    let n2: std::net::IpAddr = [198, 51, 100, 2].into();
    let mut net = Net::new(Behavior::RFC);
    let external = net.connect(A, S);
    let forward = net.forward(Tcp, B, 8080);
    net.tcp_in(Q, at(external, 77), SYN).unwrap_err(); // would be answered in six seconds
    net.nat.set_external(vec![N.into(), n2], net.now).unwrap();
    assert_eq!(net.tcp_out(A, S, ACK), Ok(external), "what was there stays");
    assert_eq!(net.nat.external().collect::<Vec<_>>(), [N.into(), n2]);
    assert!(net.nat.set_external(vec![], net.now).is_err());
    assert!(net.nat.set_external(vec![n2, n2], net.now).is_err());
    assert_eq!(net.tcp_out(A, S, ACK), Ok(external), "a change that fails changes nothing");

    net.nat.set_external(vec![n2], net.now).unwrap();
    assert_eq!((net.nat.mapping_count(), net.nat.session_count()), (0, 0), "static or not");
    for gone in [external, forward] {
        assert_eq!(net.tcp_in(S, gone, ACK), Err(DropReason::NoMapping));
    }
    assert_eq!(net.connect(A, S).addr, n2);
    net.wait(secs(10));
    assert_eq!(net.take_sent(), [], "nothing is sent from an address that is ours no more");
    // A remote that becomes one of our own addresses is one from then on.
    net.send_out(Udp, A, at(S, 9));
    net.nat.set_external(vec![n2, S.addr], net.now).unwrap();
    assert_eq!(net.out(&mut udp(A, at(S, 9), b"")), Verdict::Drop(DropReason::NoMapping));
}

/// The guard's view, folded from claims, is the table's view at every moment.
#[test]
fn claims_follow_the_mappings() {
    let behavior = rfc(|behavior| {
        behavior.overloading = true;
        behavior.mapping = Mapping::AddressAndPortDependent;
        behavior.ports = PortAssignment::Preserve;
    });
    let config = Config { behavior, report_claims: true, ..Config::new(N.into()) };
    let mut nat = Nat::new(config, 3).unwrap();
    nat.add_inside(natbox_core::InsidePort {
        gateway: GATEWAY.into(),
        prefix_len: 24,
        mtu: 1500,
        shared: false,
    })
    .unwrap();
    for remote in [S, S2, P] {
        udp(A, remote, b"").through(|packet| nat.outbound(TUN, packet, Time::ZERO));
    }
    nat.add_mapping(request(Tcp, B, 8080), Time::ZERO).unwrap();
    nat.add_mapping(request(Tcp, B, 8080), Time::ZERO).unwrap();
    let mut claim = || nat.poll_claim().map(|claim| (claim.protocol, claim.external.0.port, claim.held));
    assert_eq!(claim(), Some((Udp, A.port, true)), "one claim for three mappings on one port");
    assert_eq!(claim(), Some((Tcp, 8080, true)), "and none for a renewal");
    assert_eq!(claim(), None);
    nat.handle_timeout(Time::ZERO + secs(301));
    let claim = nat.poll_claim().unwrap();
    assert_eq!((claim.external.0.port, claim.held), (A.port, false), "given back with the last");
    assert_eq!(held(&mut nat).len(), 0);
}

#[test]
fn events_tell_the_story_of_a_mapping() {
    let mut net = Net::with(Config { limits: Limits { mappings: 1, sessions: 9 }, ..Config::new(N.into()) });
    let external = External(net.send_out(Udp, A, S));
    net.try_out(Udp, B, S).unwrap_err();
    net.wait(secs(301));
    let (protocol, inside) = (Udp, Inside { port: TUN, endpoint: A });
    let refused = Inside { port: TUN, endpoint: B };
    assert_eq!(
        net.events,
        [
            Event::MappingCreated { protocol, inside, external },
            Event::MappingRefused {
                protocol,
                inside: refused,
                remote: natbox_core::Remote(S),
                why: DropReason::TableFull
            },
            Event::MappingEnded { protocol, inside, external, why: Ended::Expired },
        ]
    );
}
