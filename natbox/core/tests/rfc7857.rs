//! RFC 7857, section by section. Where real NATs are known to fail, the body runs again with that axis violated, and must
//! notice.

mod common;

use std::collections::BTreeSet;

use common::*;
use natbox_core::{
    Config, DropReason, PortRange,
    Protocol::{Icmp, Tcp, Udp},
    behavior::*,
};

/// §2: the state machine of RFC 6146, and a timer of its own for opening, for being established, and for closing.
#[test]
fn section_2_connection_tracking_with_separate_timers() {
    let mut net = Net::new(rfc(|behavior| {
        behavior.tcp_opening_timeout = secs(10);
        behavior.tcp_established_timeout = secs(1000);
        behavior.tcp_closing_timeout = secs(20);
    }));
    let left = |net: &Net| net.mappings()[0].expires - net.now;
    let external = net.tcp_out(A, S, SYN).unwrap();
    assert_eq!((net.states(), left(&net)), (vec!["syn-out"], secs(10)));
    net.tcp_in(S, external, SYN_ACK).unwrap();
    assert_eq!((net.states(), left(&net)), (vec!["established"], secs(1000)));
    net.tcp_out(A, S, FIN_ACK).unwrap();
    assert_eq!((net.states(), left(&net)), (vec!["fin-out"], secs(1000)), "half-closed is still open");
    net.tcp_in(S, external, FIN_ACK).unwrap();
    assert_eq!((net.states(), left(&net)), (vec!["closed"], secs(20)));
}

#[test]
fn section_2_a_reset_is_translated_and_its_state_kept() {
    let body = |behavior: Behavior| {
        for outbound in [true, false] {
            let mut net = Net::new(behavior.clone());
            let external = net.connect(A, S);
            if outbound {
                assert_eq!(net.tcp_out(A, S, RST), Ok(external));
            } else {
                assert_eq!(net.tcp_in(S, external, RST), Ok(A));
            }
            net.wait(secs(239));
            // It may have been forged: the connection goes on.
            met(net.tcp_in(S, external, ACK) == Ok(A), "a reset connection is kept for four minutes");
            assert_eq!(net.tcp_out(A, S, ACK), Ok(external));
            assert_eq!(net.states(), ["established"]);
        }
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.tcp_reset_timeout = secs(10), body);
    violated(|behavior| behavior.tcp_reset = TcpReset::End, body);
}

/// §3: mappings to different destinations may share an external port, if one wants that.
#[test]
fn section_3_ports_may_overlap_for_different_destinations() {
    let one_port = |behavior: &mut Behavior| {
        behavior.overloading = true;
        behavior.port_parity = false;
        behavior.mapping = Mapping::AddressAndPortDependent;
        behavior.port_range = PortRange::new(2000, 2000).unwrap();
    };
    for protocol in [Udp, Tcp] {
        let mut net = Net::new(rfc(one_port));
        let a = net.send_out(protocol, A, S);
        let b = net.send_out(protocol, B, P);
        assert_eq!(a, b);
        assert_eq!(net.send_in(protocol, S, a), Some(A), "{protocol}");
        assert_eq!(net.send_in(protocol, P, a), Some(B), "{protocol}");
        assert_eq!(net.try_out(protocol, B, S), Err(DropReason::PortsExhausted), "S on this port is A's");
    }
}

#[test]
fn section_4_an_exhausted_address_drops() {
    let behavior = rfc(|behavior| behavior.port_range = PortRange::new(2000, 2007).unwrap());
    let external = vec![N.into(), [198, 51, 100, 2].into()];
    let mut net = Net::with(Config { behavior, external, ..Config::new(N.into()) });
    let results: Vec<_> = (0..16).map(|i| net.try_out(Udp, at(A, 5000 + i), S)).collect();
    let addrs: BTreeSet<_> = results.iter().flatten().map(|external| external.addr).collect();
    assert_eq!((addrs.len(), results.iter().flatten().count()), (1, 8), "no second address is taken");
    assert_eq!(results[15], Err(DropReason::PortsExhausted));
}

/// §5 and §6: what a host does with one protocol changes nothing for another.
#[test]
fn sections_5_and_6_protocols_are_apart() {
    let mut net = Net::new(rfc(|behavior| {
        behavior.ports = PortAssignment::PreserveOrRandom;
        behavior.filtering = Filtering::EndpointIndependent;
    }));
    let external = net.send_out(Udp, A, S);
    assert_eq!(
        net.try_in(Tcp, S, external),
        Err(DropReason::UnsolicitedSyn),
        "a UDP mapping is none for TCP"
    );
    assert_eq!(net.send_out(Tcp, B, S), net.send_out(Tcp, B, P));
    assert_eq!(net.send_out(Tcp, at(B, A.port), S), external, "its port is free for TCP");
    assert_eq!(net.send_out(Icmp, at(B, A.port), at(S, 0)), external, "and for ICMP");
    assert_eq!(net.send_in(Udp, P, external), Some(A));
    assert_eq!(net.send_in(Tcp, P, external), Some(at(B, A.port)));
}

/// §6: who was sent to by UDP is not thereby let in by TCP.
#[test]
fn section_6_filters_of_protocols_are_apart() {
    let body = |behavior: Behavior| {
        let mut net = Net::new(Behavior { ports: PortAssignment::PreserveOrRandom, ..behavior });
        let external = net.send_out(Udp, A, S);
        assert_eq!(net.send_out(Tcp, A, P), external, "both have the host's port");
        met(net.send_in(Tcp, S2, external).is_none(), "a filter knows protocols");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.filter_protocol = FilterProtocol::Any, body);
}

#[test]
fn section_7_what_is_filtered_does_not_refresh() {
    for refresh in [Refresh::Both, Refresh::Inbound, Refresh::Outbound] {
        let mut net = Net::new(rfc(|behavior| behavior.refresh = refresh));
        let external = net.send_out(Udp, A, S);
        net.wait(secs(299));
        assert_eq!(net.try_in(Udp, P, external), Err(DropReason::Filtered));
        net.wait(secs(1));
        assert_eq!(net.mappings(), [], "{refresh}");
    }
}

#[test]
fn section_7_outbound_errors_and_resets_do_not_refresh() {
    let mut net = Net::new(rfc(|behavior| behavior.refresh = Refresh::Both));
    let external = net.send_out(Udp, A, S);
    let mut got = udp(S, external, b"to a closed port");
    net.delivered(&mut got).unwrap();
    net.wait(secs(299));
    net.forwarded(&mut error(at(A, 0), at(S, 0), (3, 3), &got, 28)).unwrap();
    net.wait(secs(1));
    assert_eq!(net.mappings(), [], "an ICMP error");

    let mut net = Net::new(rfc(|behavior| behavior.tcp_reset_timeout = secs(60)));
    net.connect(A, S);
    net.tcp_out(A, S, RST).unwrap();
    net.wait(secs(59));
    net.tcp_out(A, S, RST).unwrap();
    net.wait(secs(1));
    assert_eq!(net.nat.sessions().count(), 0, "a second reset");
}

#[test]
fn section_8_parity_may_be_off() {
    let mut net = Net::new(rfc(|behavior| behavior.port_parity = false));
    let odd = (0..40).filter(|i| net.send_out(Udp, at(A, 5000 + 2 * i), S).port % 2 == 1).count();
    assert!((5..35).contains(&odd), "{odd} of 40 even ports became odd");
}

#[test]
fn section_9_ports_are_hard_to_guess() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let ports: Vec<_> = (0..100).map(|i| net.send_out(Udp, at(A, 5000 + 2 * i), S).port).collect();
        let near = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 256).count();
        met(near < 10, "neighbours in time are no neighbours in number");
        met(ports.iter().zip(0..).all(|(port, i)| *port != 5000 + 2 * i), "no port is preserved");
        met(ports.iter().max().unwrap() - ports.iter().min().unwrap() > 50_000, "the whole range is used");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.ports = PortAssignment::Sequential, body);
    violated(|behavior| behavior.ports = PortAssignment::Preserve, body);
}

#[test]
fn section_11_a_query_mapping_dies_with_its_last_session() {
    let mut net = Net::new(Behavior::RFC);
    net.send_out(Icmp, A, at(S, 0));
    net.wait(secs(30));
    net.send_out(Icmp, A, at(P, 0));
    net.wait(secs(30));
    assert_eq!((net.mappings().len(), net.nat.sessions().count()), (1, 1), "S's session has ended");
    net.wait(secs(30));
    assert_eq!(net.mappings(), []);
    net.wait(secs(1));
    assert_eq!(net.expired(), 1, "and says so");
}

/// §12: a hairpinned error shows the NAT's address, and its quote what the sender had sent.
#[test]
fn section_12_icmp_hairpinning() {
    let mut net = Net::new(rfc(|behavior| behavior.filtering = Filtering::EndpointIndependent));
    let (a, b) = (net.send_out(Udp, A, S), net.send_out(Udp, B, S));
    let mut got = udp(A, b, b"to a closed port");
    net.hairpin(&mut got).unwrap();
    let mut report = error(at(B, 0), at(a, 0), (3, 3), &got, 28);
    assert_eq!(net.hairpin(&mut report), Ok((at(b, 0), at(A, 0))));
    // A query to the NAT's own external address is answered by the NAT.
    assert_eq!(net.out(&mut echo(A, at(b, 0), b"ping")), natbox_core::Verdict::Reply);
}

/// §10: two hosts number their datagrams alike; towards one receiver, fragments of one are never taken for the other's.
#[test]
fn section_10_identifications_never_meet() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let mut used = BTreeSet::new();
        for id in 0..300u16 {
            for host in [A, B] {
                let pieces = fragments(&udp(host, S, &[host.port as u8; 2000]), id, 800);
                let left = net.out_pieces(&pieces);
                let view = whole(&left).unwrap();
                met(used.insert(view.header.identification), "each datagram has a number of its own");
                // What may be fragmented further on is no different.
                let mut small = udp(host, S, b"").ip(|header| {
                    (header.dont_fragment, header.identification) = (false, id);
                });
                net.forwarded(&mut small).unwrap();
                met(used.insert(small.header().identification), "each whole packet as well");
            }
        }
        // RFC 6864 §4.1: an atomic datagram's means nothing, and stays.
        let mut atomic = udp(A, S, b"").ip(|header| header.identification = 7);
        net.forwarded(&mut atomic).unwrap();
        assert_eq!(atomic.header().identification, 7);
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.identification = Identification::Keep, body);
}
