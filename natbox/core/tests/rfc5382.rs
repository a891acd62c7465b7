//! RFC 5382, requirement by requirement. Where real NATs are known to fail, the body runs again with that axis violated,
//! and must notice.

mod common;

use std::collections::BTreeSet;

use common::*;
use natbox_core::{DropReason, Endpoint, PortRange, Side, behavior::*};

#[test]
fn req_1_endpoint_independent_mapping() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let seen: BTreeSet<_> = [S, S2, P, Q].map(|remote| net.connect(A, remote)).into();
        met(seen.len() == 1, "one external endpoint towards everybody");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.mapping = Mapping::AddressDependent, body);
    violated(|behavior| behavior.mapping = Mapping::AddressAndPortDependent, body);
}

/// Figure 8 of RFC 9293, and the simultaneous open of its figure 7 in which one SYN is lost at the filter.
#[test]
fn req_2_every_valid_sequence() {
    let three_way = |behavior| {
        let mut net = Net::new(behavior);
        net.connect(A, S);
        assert_eq!(net.states(), ["established"]);
    };
    three_way(Behavior::RFC);
    let simultaneous = |behavior: Behavior| {
        let mut net = Net::new(Behavior { filtering: Filtering::AddressAndPortDependent, ..behavior });
        let external = net.tcp_out(A, P, SYN).unwrap(); // so that S can learn where A is
        met(net.tcp_in(S, external, SYN).is_err(), "S was never sent to");
        met(net.take_sent().is_empty(), "no answer that would break the simultaneous open");
        assert_eq!(net.tcp_out(A, S, SYN), Ok(external));
        met(net.tcp_in(S, external, SYN) == Ok(A), "the SYNs cross");
        met(net.tcp_out(A, S, SYN_ACK) == Ok(external), "one SYN-ACK goes");
        met(net.tcp_in(S, external, SYN_ACK) == Ok(A), "the other comes");
        met(net.states() == ["established", "syn-out"], "established");
        net.wait(secs(10));
        met(net.take_sent().is_empty(), "silence for good");
    };
    simultaneous(Behavior::RFC);
    violated(|behavior| behavior.unsolicited_syn = UnsolicitedSyn::Reset, simultaneous);
}

#[test]
fn req_3_address_dependent_filtering() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.connect(A, S);
        assert_eq!(net.tcp_in(P, external, SYN), Err(DropReason::UnsolicitedSyn));
        met(net.tcp_in(S2, external, SYN) == Ok(A), "another port of an address that was sent to");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.filtering = Filtering::AddressAndPortDependent, body);
}

#[test]
fn req_4_unsolicited_syn_waits_six_seconds() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.connect(A, S);
        let begun = net.now;
        assert_eq!(net.tcp_in(P, external, SYN), Err(DropReason::UnsolicitedSyn));
        met(net.take_sent().is_empty(), "silence at first");
        net.wait(secs(5));
        assert_eq!(net.tcp_in(P, external, SYN), Err(DropReason::UnsolicitedSyn), "sent again");
        met(net.take_sent().is_empty(), "silence after five seconds");
        while net.sent.is_empty() && net.now - begun < secs(60) {
            net.wait(secs(1));
        }
        met(!net.sent.is_empty(), "an answer in the end");
        let (to, report) = net.take_sent().remove(0);
        assert_eq!(net.now - begun, secs(6));
        met((to, report.icmp) == (Side::Outside, Some((3, 3))), "port unreachable");
        assert_eq!((report.from.addr, report.to.addr), (N.into(), P.addr));
        let quote = report.quote.unwrap();
        assert_eq!((quote.from, quote.to, quote.sequence), (P, external, 1_000));
        net.wait(secs(60));
        assert!(net.take_sent().is_empty(), "one answer for both");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.unsolicited_syn = UnsolicitedSyn::Reset, body);
    violated(|behavior| behavior.unsolicited_syn = UnsolicitedSyn::Drop, body);
}

/// The same where no mapping exists at all, and a SYN from inside that makes it: the first SYN is forgotten silently.
#[test]
fn req_4_a_syn_from_inside_cancels_the_answer() {
    let mut net = Net::new(rfc(|behavior| behavior.ports = PortAssignment::PreserveOrRandom));
    let expected = Endpoint::v4(N, A.port);
    assert_eq!(net.tcp_in(S, expected, SYN), Err(DropReason::UnsolicitedSyn));
    assert_eq!(net.tcp_in(P, expected, SYN), Err(DropReason::UnsolicitedSyn));
    net.wait(secs(3));
    assert_eq!(net.tcp_out(A, S, SYN), Ok(expected));
    net.wait(secs(10));
    let answered: Vec<_> = net.take_sent().into_iter().map(|(_, report)| report.to.addr).collect();
    assert_eq!(answered, [P.addr], "only the other one is answered");
}

/// What the filter admits is no unsolicited SYN, and what it has come to admit is none any more.
#[test]
fn req_4_an_admitted_syn_is_not_answered() {
    let mut net = Net::new(Behavior::RFC);
    let external = net.connect(A, P);
    assert_eq!(net.tcp_in(S, external, SYN), Err(DropReason::UnsolicitedSyn));
    net.wait(secs(2));
    net.tcp_out(A, S2, SYN).unwrap(); // opens the filter for all of S
    assert_eq!(net.tcp_in(S, external, SYN), Ok(A));
    net.wait(secs(10));
    assert!(net.take_sent().is_empty());
}

/// Where an answer is against the policy, there is none, ever.
#[test]
fn req_4a_a_policy_may_be_silence() {
    let mut net = Net::new(rfc(|behavior| behavior.unsolicited_syn = UnsolicitedSyn::Drop));
    let external = net.connect(A, S);
    for target in [external, Endpoint::v4(N, 80)] {
        assert_eq!(net.tcp_in(P, target, SYN), Err(DropReason::UnsolicitedSyn));
    }
    net.wait(secs(3600));
    assert!(net.take_sent().is_empty());
    assert_eq!(net.tcp_in(S, external, ACK), Ok(A), "and the mapping is none the worse for it");
}

#[test]
fn req_5_established_connections_may_be_idle() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.connect(A, S);
        net.wait(secs(2 * 3600 + 4 * 60 - 1));
        met(net.tcp_in(S, external, ACK) == Ok(A), "idle for 2 h 4 min");
        net.wait(secs(2 * 3600 + 4 * 60 - 1));
        met(net.tcp_out(A, S, ACK) == Ok(external), "idle for 2 h 4 min, once more");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.tcp_established_timeout = secs(350), body);
}

#[test]
fn req_5_transitory_connections_live_four_minutes() {
    let opening = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.tcp_out(A, S, SYN).unwrap();
        net.wait(secs(239));
        met(net.tcp_in(S, external, SYN_ACK) == Ok(A), "the handshake may take four minutes");
    };
    opening(Behavior::RFC);
    violated(|behavior| behavior.tcp_opening_timeout = secs(30), opening);
    let closing = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.connect(A, S);
        net.tcp_out(A, S, FIN_ACK).unwrap();
        net.tcp_in(S, external, FIN_ACK).unwrap();
        net.wait(secs(239));
        met(net.tcp_out(A, S, ACK) == Ok(external), "the last acknowledgement may come late");
    };
    closing(Behavior::RFC);
    violated(|behavior| behavior.tcp_closing_timeout = secs(30), closing);
}

/// No payload is touched; sequence numbers are not either (the checker compares both for every packet).
#[test]
fn req_6_no_application_gateways() {
    let mut net = Net::new(Behavior::RFC);
    net.connect(A, at(S, 21));
    let mut raw = tcp(A, at(S, 21), ACK, b"PORT 10,0,0,2,16,146\r\n");
    net.forwarded(&mut raw).unwrap();
    assert_eq!(look(&raw).payload, b"PORT 10,0,0,2,16,146\r\n");
}

#[test]
fn req_7_no_port_overloading() {
    let body = |behavior: Behavior| {
        let port_range = PortRange::new(2000, 2003).unwrap();
        let mut net = Net::new(Behavior { port_range, port_parity: false, ..behavior });
        let hosts = (2..6).map(|last| ep(&format!("10.0.0.{last}:2000")));
        let seen: BTreeSet<_> =
            hosts.zip([S, S2, P, Q]).map(|(host, remote)| net.connect(host, remote)).collect();
        met(seen.len() == 4, "no two hosts share an external endpoint");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.overloading = true, body);
}

#[test]
fn req_8_hairpinning_with_the_external_source() {
    let body = |behavior| {
        let mut net = Net::new(Behavior { filtering: Filtering::EndpointIndependent, ..behavior });
        let (a, b) = (net.connect(A, S), net.connect(B, S));
        let seen = net.hairpin(&mut tcp(A, b, SYN, b""));
        met(seen == Ok((a, B)), "the SYN shows the external source");
        met(net.hairpin(&mut tcp(B, a, SYN_ACK, b"")) == Ok((b, A)), "so does the answer");
        met(net.hairpin(&mut tcp(A, b, ACK, b"data")) == Ok((a, B)), "and what follows");
        assert_eq!(net.states(), ["established"; 4]);
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.hairpin = Hairpin::Off, body);
    violated(|behavior| behavior.hairpin = Hairpin::Internal, body);
}

#[test]
fn req_9_unreachables_are_translated() {
    let mut net = Net::new(Behavior::RFC);
    let mut syn = tcp(A, S, SYN, b"");
    let external = net.forwarded(&mut syn).unwrap();
    for quoted in [28, 40, 60] {
        let mut report = error(at(Q, 0), external, (3, 1), &syn, quoted);
        assert_eq!(net.delivered(&mut report), Ok(at(A, 0)));
        let quote = look(&report).quote.unwrap();
        assert_eq!((quote.from, quote.to), (A, S));
    }
}

#[test]
fn req_10_icmp_errors_end_nothing() {
    let mut net = Net::new(Behavior::RFC);
    let external = net.connect(A, S);
    let mut sent = tcp(A, S, ACK, b"data");
    net.forwarded(&mut sent).unwrap();
    let before = (net.mappings(), net.states());
    for kind in [(3, 1), (3, 2), (3, 3), (11, 0), (12, 0)] {
        net.delivered(&mut error(at(Q, 0), external, kind, &sent, 28)).unwrap();
        assert_eq!((net.mappings(), net.states()), before, "{kind:?}");
    }
    assert_eq!(net.tcp_in(S, external, ACK), Ok(A));
}

/// TCP may be filtered, and mapped, otherwise than UDP.
#[test]
fn req_3b_tcp_may_differ_from_udp() {
    use natbox_core::Protocol::{Tcp, Udp};
    for (udp_does, tcp_does) in pairs().zip(pairs().collect::<Vec<_>>().into_iter().rev()) {
        let mut net = Net::new(rfc(|behavior| {
            (behavior.mapping, behavior.filtering) = udp_does;
            behavior.tcp_mapping = ForTcp::Own(tcp_does.0);
            behavior.tcp_filtering = ForTcp::Own(tcp_does.1);
        }));
        for (protocol, (mapping, filtering)) in [(Udp, udp_does), (Tcp, tcp_does)] {
            let [to_s, to_s2, to_p] = [S, S2, P].map(|remote| net.send_out(protocol, A, remote));
            let same = (to_s == to_s2, to_s == to_p);
            let is = |least| mapping <= least;
            let expected = (is(Mapping::AddressDependent), is(Mapping::EndpointIndependent));
            assert_eq!(same, expected, "{protocol} {mapping}");
            let external = net.send_out(protocol, B, S);
            let admitted = [S2, P].map(|remote| net.send_in(protocol, remote, external).is_some());
            let expected =
                [filtering <= Filtering::AddressDependent, filtering <= Filtering::EndpointIndependent];
            assert_eq!(admitted, expected, "{protocol} {filtering}");
        }
    }
    // And `same` follows the other axis, also while it runs.
    let mut net = Net::new(Behavior::RFC);
    let external = net.send_out(Tcp, A, S);
    assert!(net.send_in(Tcp, Q, external).is_none());
    net.nat.set_behavior(rfc(|behavior| behavior.set("tcp-filtering", "eif").unwrap()));
    assert_eq!(net.send_in(Tcp, Q, external), Some(A));
    net.nat.set_behavior(rfc(|behavior| behavior.set("tcp-filtering", "same").unwrap()));
    assert!(net.send_in(Tcp, P, external).is_none());
}
