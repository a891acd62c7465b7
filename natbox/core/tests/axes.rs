//! The axes of `Behavior` that decide who reaches whom: mapping × filtering, filter scope, hairpin, refresh, overloading,
//! pooling, and what may leave. Ports and timers have files of their own.

mod common;

use std::{collections::BTreeSet, time::Duration};

use common::*;
use natbox_core::{
    Config, DropReason, Endpoint, PortRange,
    Protocol::{self, Icmp, Tcp, Udp},
    behavior::*,
};

/// Deadlines are carried out within this.
const A_TICK: Duration = Duration::from_millis(2);
const UDP_AND_TCP: [Protocol; 2] = [Udp, Tcp];

fn pair(mapping: Mapping, filtering: Filtering) -> Behavior {
    Behavior { mapping, filtering, ..Behavior::RFC }
}

fn refusal(protocol: Protocol) -> DropReason {
    if protocol == Tcp { DropReason::UnsolicitedSyn } else { DropReason::Filtered }
}

/// Each of the nine pairs, seen from outside with fresh sockets, as a behaviour test does it (RFC 5780).
#[test]
fn nine_pairs_for_udp_and_tcp() {
    for protocol in UDP_AND_TCP {
        for (mapping, filtering) in pairs() {
            let mut net = Net::new(pair(mapping, filtering));
            let name = format!("{protocol} {mapping} {filtering}");
            let [to_s, to_s2, to_p] = [S, S2, P].map(|remote| net.send_out(protocol, A, remote));
            let seen = (to_s == to_s2, to_s == to_p);
            let expected = match mapping {
                Mapping::EndpointIndependent => (true, true),
                Mapping::AddressDependent => (true, false),
                Mapping::AddressAndPortDependent => (false, false),
            };
            assert_eq!(seen, expected, "{name}");

            let external = net.send_out(protocol, B, S); // a fresh socket
            let mut admits = |from| {
                let result = net.try_in(protocol, from, external);
                assert!(result == Ok(B) || result == Err(refusal(protocol)), "{name}: {result:?}");
                result.is_ok()
            };
            let seen = (admits(S), admits(S2), admits(P));
            let expected = match filtering {
                Filtering::EndpointIndependent => (true, true, true),
                Filtering::AddressDependent => (true, true, false),
                Filtering::AddressAndPortDependent => (true, false, false),
            };
            assert_eq!(seen, expected, "{name}");
        }
    }
}

/// Queries have no remote port: only addresses tell.
#[test]
fn nine_pairs_for_icmp() {
    for (mapping, filtering) in pairs() {
        let mut net = Net::new(pair(mapping, filtering));
        let [to_s, to_p] = [S, P].map(|remote| net.send_out(Icmp, A, at(remote, 0)));
        assert_eq!(to_s == to_p, mapping == Mapping::EndpointIndependent, "{mapping}");
        let external = net.send_out(Icmp, B, at(S, 0));
        assert_eq!(net.send_in(Icmp, at(S, 0), external), Some(B));
        let by_others = net.send_in(Icmp, at(P, 0), external);
        assert_eq!(by_others.is_some(), filtering == Filtering::EndpointIndependent, "{filtering}");
    }
}

#[test]
fn filter_scope_decides_which_mapping_is_opened() {
    for protocol in UDP_AND_TCP {
        for filtering in [Filtering::AddressDependent, Filtering::AddressAndPortDependent] {
            for scope in FilterScope::ALL {
                let behavior = pair(Mapping::AddressAndPortDependent, filtering);
                let mut net = Net::new(Behavior { filter_scope: *scope, ..behavior });
                let to_p = net.send_out(protocol, A, P);
                net.send_out(protocol, A, S);
                let port_matters = filtering == Filtering::AddressAndPortDependent;
                let cross = *scope == FilterScope::Endpoint;
                let name = format!("{protocol} {filtering} {scope}");
                assert_eq!(net.send_in(protocol, S2, to_p).is_some(), cross && !port_matters, "{name}");
                if protocol == Udp {
                    assert_eq!(net.send_in(protocol, S, to_p).is_some(), cross, "{name}");
                }
                assert_eq!(net.send_in(protocol, Q, to_p), None, "{name}");
                let other = net.send_out(protocol, at(A, 1 + A.port), P);
                assert_eq!(net.send_in(protocol, S2, other), None, "{name}: another socket's permission");
            }
        }
    }
}

/// A permission lives as long as the session that holds it, whichever of several that is.
#[test]
fn permissions_end_with_their_last_session() {
    for scope in FilterScope::ALL {
        let mut net = Net::new(rfc(|behavior| behavior.filter_scope = *scope));
        let external = net.send_out(Udp, A, S);
        net.wait(secs(200));
        net.send_out(Udp, A, S2);
        net.wait(secs(200)); // the first of S's sessions has ended
        net.send_out(Udp, A, P);
        assert_eq!(net.send_in(Udp, at(S, 9), external), Some(A), "{scope}");
        net.wait(secs(100) + A_TICK); // now the second
        assert_eq!(net.try_in(Udp, at(S, 9), external), Err(DropReason::Filtered), "{scope}");
        assert_eq!(net.send_in(Udp, P, external), Some(A), "{scope}");
    }
}

#[test]
fn hairpin_by_filtering() {
    for protocol in UDP_AND_TCP {
        for filtering in Filtering::ALL {
            for hairpin in Hairpin::ALL {
                let behavior = pair(Mapping::EndpointIndependent, *filtering);
                let mut net = Net::new(Behavior { hairpin: *hairpin, ..behavior });
                let (a, b) = (net.send_out(protocol, A, S), net.send_out(protocol, B, S));
                let name = format!("{protocol} {filtering} {hairpin}");
                let seen = net.hairpin(&mut opener(protocol, A, b));
                if *hairpin == Hairpin::Off {
                    assert_eq!(seen, Err(DropReason::HairpinOff), "{name}");
                    continue;
                }
                let source = if *hairpin == Hairpin::External { a } else { A };
                if *filtering == Filtering::EndpointIndependent {
                    assert_eq!(seen, Ok((source, B)), "{name}");
                    continue;
                }
                // The filter knows no kinship: B must send to A's external endpoint first, as to any other.
                assert_eq!(seen, Err(DropReason::Filtered), "{name}");
                let source = if *hairpin == Hairpin::External { b } else { B };
                assert_eq!(net.hairpin(&mut opener(protocol, B, a)), Ok((source, A)), "{name}");
                assert!(net.hairpin(&mut opener(protocol, A, b)).is_ok(), "{name}");
            }
        }
    }
}

#[test]
fn hairpin_in_other_places() {
    let mut net = Net::new(rfc(|behavior| behavior.filtering = Filtering::EndpointIndependent));
    let a = net.send_out(Udp, A, S);
    // To itself.
    assert_eq!(net.hairpin(&mut udp(A, a, b"am I there?")), Ok((a, A)));
    // From another inside port.
    let other = net.add_inside(1, 1500);
    let mut raw = udp(ep("10.1.0.2:77"), a, b"from next door");
    assert_eq!(net.out_via(other, &mut raw), natbox_core::Verdict::Hairpin(TUN));
    assert_eq!((look(&raw).from.addr, look(&raw).to), (N.into(), A));
    // To nobody.
    let nobody = at(a, a.port ^ 2);
    assert_eq!(net.hairpin(&mut udp(B, nobody, b"?")), Err(DropReason::NoMapping));
    // As a super-frame with a partial checksum.
    let mut raw = udp(B, a, &[5; 4000]).gso(1000);
    net.hairpin(&mut raw).unwrap();
    assert_eq!(net.nat.counters().hairpin_packets, 3);
}

#[test]
fn refresh_directions() {
    for refresh in Refresh::ALL {
        for outbound in [true, false] {
            let mut net = Net::new(rfc(|behavior| behavior.refresh = *refresh));
            let external = net.send_out(Udp, A, S);
            net.send_in(Udp, S, external).unwrap();
            for _ in 0..4 {
                net.wait(secs(299));
                if outbound {
                    net.try_out(Udp, A, S).is_ok()
                } else {
                    net.send_in(Udp, S, external).is_some()
                };
            }
            let keeps = match refresh {
                Refresh::Both => true,
                Refresh::Outbound => outbound,
                Refresh::Inbound => !outbound,
            };
            let same =
                net.mappings().first().is_some_and(|mapping| mapping.created == natbox_core::Time::ZERO);
            assert_eq!(same, keeps, "{refresh}, outbound: {outbound}");
        }
    }
}

/// Inbound packets of remotes that were never sent to keep the mapping too, where inbound packets count at all.
#[test]
fn strangers_refresh_what_admits_them() {
    for refresh in Refresh::ALL {
        let mut net = Net::new(rfc(|behavior| {
            behavior.refresh = *refresh;
            behavior.filtering = Filtering::EndpointIndependent;
        }));
        let external = net.send_out(Udp, A, S);
        for _ in 0..4 {
            net.wait(secs(299));
            net.send_in(Udp, Q, external);
        }
        assert_eq!(net.mappings().len(), usize::from(*refresh != Refresh::Outbound), "{refresh}");
        assert_eq!(net.nat.sessions().count(), 0, "and make no session");
    }
}

#[test]
fn overloading_shares_ports_between_destinations() {
    for protocol in UDP_AND_TCP {
        for overloading in [true, false] {
            let mut net = Net::new(Behavior {
                overloading,
                ports: PortAssignment::Preserve,
                port_parity: false,
                ..pair(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
            });
            let b = at(B, A.port);
            let externals =
                [(A, S), (A, P), (b, Q)].map(|(host, remote)| net.send_out(protocol, host, remote));
            let distinct = BTreeSet::from(externals).len();
            assert_eq!(distinct, if overloading { 1 } else { 3 }, "{protocol}");
            for (external, (host, remote)) in externals.into_iter().zip([(A, S), (A, P), (b, Q)]) {
                assert_eq!(net.send_in(protocol, remote, external), Some(host), "{protocol}");
            }
            let conflict = net.send_out(protocol, b, S);
            assert_ne!(conflict, externals[0], "S on this port is A's");
        }
    }
}

/// Dozens of mappings on one external endpoint come and go in any order.
#[test]
fn overloading_chains() {
    let mut net = Net::new(Behavior {
        overloading: true,
        port_range: PortRange::new(2000, 2000).unwrap(),
        ..pair(Mapping::AddressAndPortDependent, Filtering::EndpointIndependent)
    });
    let remote = |i: u16| Endpoint::v4([192, 0, 2, i as u8].into(), 1000 + i);
    let host = |i: u16| Endpoint::v4([10, 0, 0, 2 + i as u8].into(), 7);
    for i in 0..40 {
        assert_eq!(net.send_out(Udp, host(i), remote(i)), Endpoint::v4(N, 2000));
        net.wait(secs(1));
    }
    for i in (0..40).step_by(3) {
        net.nat.flush(&natbox_core::Selection { host: Some(host(i).addr), ..Default::default() }, net.now);
    }
    for i in 0..40 {
        let owner = net.send_in(Udp, remote(i), Endpoint::v4(N, 2000)).unwrap();
        assert!(i % 3 == 0 || owner == host(i), "each session finds its own");
    }
    let newest = net.send_in(Udp, Q, Endpoint::v4(N, 2000));
    assert_eq!(newest, Some(host(38)), "a stranger finds the newest mapping");
    // When all but the oldest have expired without anybody noticing, it is still found.
    net.now = net.now + secs(257);
    net.send_out(Udp, host(1), remote(1));
    net.now = net.now + secs(299);
    assert_eq!(net.send_in(Udp, Q, Endpoint::v4(N, 2000)), Some(host(1)));
    net.wait(secs(2));
    assert_eq!((net.mappings().len(), net.nat.mapping_count()), (0, 0));
    assert_eq!(net.try_in(Udp, remote(1), Endpoint::v4(N, 2000)), Err(DropReason::NoMapping));
}

/// A packet is offered to every mapping on its endpoint, not to the newest alone.
#[test]
fn overloading_finds_the_mapping_that_admits() {
    let mut net = Net::new(Behavior {
        overloading: true,
        port_range: PortRange::new(2000, 2000).unwrap(),
        ..pair(Mapping::AddressAndPortDependent, Filtering::AddressDependent)
    });
    for protocol in UDP_AND_TCP {
        let external = net.send_out(protocol, A, S);
        net.send_out(protocol, B, P);
        assert_eq!(net.send_in(protocol, S2, external), Some(A), "{protocol}");
        assert_eq!(net.send_in(protocol, at(P, 9), external), Some(B), "{protocol}");
        assert_eq!(net.try_in(protocol, Q, external), Err(refusal(protocol)), "{protocol}");
    }
}

/// A mapping that outlived its sessions gives way when another has taken its remote meanwhile.
#[test]
fn overloading_after_a_reset() {
    let mut net = Net::new(Behavior {
        overloading: true,
        ports: PortAssignment::PreserveOrRandom,
        tcp_reset_timeout: Duration::from_secs(10),
        ..pair(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent)
    });
    let twin = at(B, A.port);
    let external = net.connect(A, S);
    net.tcp_out(A, S, RST).unwrap();
    net.wait(secs(11));
    assert_eq!(net.connect(twin, S), external);
    assert_ne!(net.connect(A, S), external);
    assert_eq!(net.tcp_in(S, external, ACK), Ok(twin));
}

/// Endpoint-independent mappings that share a port: a remote that one of them has is refused to the other.
#[test]
fn overloading_with_endpoint_independent_mappings() {
    for later_off in [false, true] {
        let mut net = Net::new(Behavior {
            overloading: true,
            port_range: PortRange::new(2000, 2000).unwrap(),
            ..pair(Mapping::EndpointIndependent, Filtering::EndpointIndependent)
        });
        assert_eq!(net.send_out(Udp, A, S), net.send_out(Udp, B, P));
        if later_off {
            net.nat.set_behavior(Behavior { overloading: false, ..net.nat.behavior().clone() });
        }
        assert_eq!(net.try_out(Udp, B, S), Err(DropReason::PortsExhausted));
        assert_eq!(net.send_in(Udp, S, Endpoint::v4(N, 2000)), Some(A));
        assert_eq!(net.send_in(Udp, P, Endpoint::v4(N, 2000)), Some(B));
        net.send_out(Udp, B, Q);
    }
}

#[test]
fn pooling() {
    for protocol in [Udp, Tcp, Icmp] {
        for pooling in Pooling::ALL {
            let external = (1..=4).map(|last| [198, 51, 100, last].into()).collect();
            let behavior = rfc(|behavior| behavior.pooling = *pooling);
            let mut net = Net::with(Config { behavior, external, ..Config::new(N.into()) });
            let addrs: BTreeSet<_> =
                (0..40).map(|i| net.send_out(protocol, at(A, 5000 + i), at(S, 0)).addr).collect();
            assert_eq!(addrs.len(), if *pooling == Pooling::Paired { 1 } else { 4 }, "{protocol} {pooling}");
        }
    }
}

/// All protocols of a host share its address, and an arbitrary pool is used to its last port.
#[test]
fn pools_pair_hosts_and_are_used_up() {
    let external: Vec<_> = (1..=4).map(|last| [198, 51, 100, last].into()).collect();
    let mut net = Net::with(Config { external: external.clone(), ..Config::new(N.into()) });
    let addrs: BTreeSet<_> = [Udp, Tcp, Icmp].map(|protocol| net.send_out(protocol, A, at(S, 0)).addr).into();
    assert_eq!(addrs.len(), 1);
    let behavior = rfc(|behavior| {
        behavior.pooling = Pooling::Arbitrary;
        behavior.port_parity = false;
        behavior.port_range = PortRange::new(2000, 2009).unwrap();
    });
    let mut net = Net::with(Config { behavior, external, ..Config::new(N.into()) });
    assert_eq!((0..50).filter_map(|i| net.try_out(Udp, at(A, 5000 + i), S).ok()).count(), 40);
}

#[test]
fn what_may_leave() {
    let mut net = Net::new(rfc(|behavior| {
        behavior.set("allow-udp", "53").unwrap();
        behavior.set("allow-tcp", "80, 443").unwrap();
    }));
    for (protocol, port, may) in [
        (Udp, 53, true),
        (Udp, 443, false),
        (Tcp, 80, true),
        (Tcp, 443, true),
        (Tcp, 53, false),
        (Icmp, 0, true),
    ] {
        let result = net.try_out(protocol, A, at(S, port));
        assert_eq!(result.is_ok(), may, "{protocol} {port}");
        assert!(may || result == Err(DropReason::Prohibited));
    }
    net.nat.set_behavior(rfc(|behavior| behavior.set("allow-udp", "none").unwrap()));
    assert_eq!(net.try_out(Udp, A, P), Err(DropReason::Prohibited));
    assert!(net.try_out(Udp, A, S).is_ok(), "a flow that is there goes on");
}

/// Where the gateway's own stack takes what nothing admits, a port is not free towards who has sent there, until that has
/// timed out; a known flow goes on, and so do others.
#[test]
fn a_stray_packet_takes_its_tuple() {
    let open = natbox_core::preset::Preset::by_name("linux-open").unwrap().behavior();
    for (protocol, lasts) in [(Udp, open.udp_timeout), (Tcp, open.tcp_opening_timeout)] {
        for unsolicited in Unsolicited::ALL {
            let net = || {
                let ports = PortAssignment::PreserveOrRandom;
                let unsolicited_syn = UnsolicitedSyn::Drop;
                let mut net =
                    Net::new(Behavior { unsolicited: *unsolicited, unsolicited_syn, ports, ..open.clone() });
                let external = net.send_out(protocol, A, P);
                assert_eq!(external.port, A.port);
                assert_eq!(net.send_in(protocol, S, external), None);
                (net, external)
            };
            let is_occupied = *unsolicited == Unsolicited::Occupy;
            let (mut taken, external) = net();
            assert_eq!(taken.send_out(protocol, A, S) != external, is_occupied, "{protocol} {unsolicited}");
            assert_eq!(taken.send_out(protocol, A, P), external);
            assert_eq!(taken.send_out(protocol, A, S2), external, "another endpoint");
            assert_eq!(taken.nat.counters().tuples_occupied, u64::from(is_occupied));

            let (mut later, external) = net();
            later.wait(lasts - A_TICK);
            assert_eq!(later.send_in(protocol, S, external), None);
            later.wait(lasts - A_TICK);
            assert_eq!(later.send_out(protocol, A, S) != external, is_occupied, "it has come again");

            let (mut over, external) = net();
            over.wait(lasts);
            assert_eq!(over.send_out(protocol, A, S), external, "{protocol} {unsolicited}");
        }
    }
    // A connection that the gateway's own stack refuses is over at once, as in the kernel.
    let mut net = Net::new(open);
    let external = net.send_out(Tcp, A, P);
    assert_eq!(net.try_in(Tcp, S, external), Err(DropReason::UnsolicitedSyn));
    assert_eq!(net.send_out(Tcp, A, S), external);
    assert_eq!(net.nat.counters().tuples_occupied, 0);
}
