//! RFC 5508, requirement by requirement. Where real NATs are known to fail, the body runs again with that axis violated,
//! and must notice.

mod common;

use std::collections::BTreeSet;

use common::*;
use natbox_core::{
    Config, DropReason, InsideId, Limits, PortRange,
    Protocol::{Icmp, Tcp, Udp},
    Side, Verdict,
    behavior::*,
};

const PORT_UNREACHABLE: (u8, u8) = (3, 3);
const TIME_EXCEEDED: (u8, u8) = (11, 0);

#[test]
fn req_1_queries_and_their_answers_pass() {
    let mut net = Net::new(Behavior::RFC);
    let external = net.forwarded(&mut echo(A, at(S, 0), b"ping")).unwrap();
    let mut reply = echo_reply(at(S, 0), external, b"ping");
    assert_eq!(net.delivered(&mut reply), Ok(A), "the identifier is the host's own again");
    assert_eq!(net.delivered(&mut timestamp(at(S, 0), external, true)), Ok(A));
    assert_eq!(net.forwarded(&mut timestamp(A, at(S, 0), false)), Ok(external));
    // An answer to nothing is no query.
    assert_eq!(net.forwarded(&mut echo_reply(A, at(P, 9), b"?")), Err(DropReason::IcmpUnrelated));
}

#[test]
fn req_1a_mapping_is_host_independent() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let seen: BTreeSet<_> = [S, P, Q].map(|remote| net.send_out(Icmp, A, at(remote, 0))).into();
        met(seen.len() == 1, "one external identifier towards everybody");
        let other = net.send_out(Icmp, at(B, A.port), at(S, 0));
        assert!(!seen.contains(&other), "the same identifier of another host has its own");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.mapping = Mapping::AddressDependent, body);
}

#[test]
fn req_2_query_sessions_live_a_minute() {
    let body = |behavior| {
        let mut net = Net::new(behavior);
        let external = net.send_out(Icmp, A, at(S, 0));
        net.wait(secs(59));
        met(net.send_in(Icmp, at(S, 0), external) == Some(A), "an answer may take a minute");
    };
    body(Behavior::RFC);
    violated(|behavior| behavior.icmp_timeout = secs(30), body);
}

#[test]
fn req_3_an_error_with_a_bad_checksum_is_dropped() {
    let mut net = Net::new(Behavior::RFC);
    let mut sent = udp(A, S, b"x");
    let external = net.forwarded(&mut sent).unwrap();
    let report = error(at(Q, 0), external, PORT_UNREACHABLE, &sent, 28);
    for byte in [21, 22, 24, 40, report.bytes.len() - 1] {
        assert_eq!(net.inn(&mut report.clone().flip(byte)), Verdict::Drop(DropReason::BadChecksum), "{byte}");
    }
    assert_eq!(net.delivered(&mut report.clone()), Ok(at(A, 0)));
}

#[test]
fn req_3a_a_quoted_header_with_a_bad_checksum_is_dropped() {
    let mut net = Net::new(Behavior::RFC);
    let mut sent = udp(A, S, b"x");
    let external = net.forwarded(&mut sent).unwrap();
    let damaged = sent.clone().flip(4);
    let mut report = error(at(Q, 0), external, PORT_UNREACHABLE, &damaged, 28);
    assert_eq!(net.inn(&mut report), Verdict::Drop(DropReason::BadChecksum));
    // The same towards the outside.
    let mut got = udp(S, external, b"y");
    net.delivered(&mut got).unwrap();
    let mut report = error(at(A, 0), at(S, 0), PORT_UNREACHABLE, &got.flip(4), 28);
    assert_eq!(net.out(&mut report), Verdict::Drop(DropReason::BadChecksum));
}

#[test]
fn req_3b_options_of_the_quoted_packet_are_walked() {
    let mut net = Net::new(Behavior::RFC);
    let mut sent = udp(A, S, b"x").with_options();
    let external = net.forwarded(&mut sent).unwrap();
    let mut report = error(at(Q, 0), external, TIME_EXCEEDED, &sent, 32).with_options();
    assert_eq!(net.delivered(&mut report), Ok(at(A, 0)));
    let quote = look(&report).quote.unwrap();
    assert_eq!((quote.from, quote.to, quote.header.options.len()), (A, S, 4));
}

#[test]
fn req_3c_the_quoted_transport_checksum_is_not_verified() {
    let mut net = Net::new(Behavior::RFC);
    let mut sent = udp(A, S, b"changed on its way");
    let external = net.forwarded(&mut sent).unwrap();
    let damaged = sent.clone().flip(30);
    // Quoted short, so that this test's checker does not verify it either.
    let mut report = error(at(Q, 0), external, PORT_UNREACHABLE, &damaged, 36);
    assert_eq!(net.delivered(&mut report), Ok(at(A, 0)));
}

/// RFC 4884: behind the padding of the quoted packet come extensions, here the label stack of an MPLS router (RFC 4950).
/// No checksum counts them, and they pass as they are, in both directions.
#[test]
fn req_3d_extensions_are_left_alone() {
    const LABELS: [u8; 12] = [0x20, 0, 0xde, 0xfe, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0xff];
    let behind = |report: &Raw| look(report).payload[128..].to_vec();
    let mut net = Net::new(Behavior::RFC);
    let mut sent = udp(A, S, b"x");
    let external = net.forwarded(&mut sent).unwrap();
    let mut report = extended_error(at(Q, 0), external, TIME_EXCEEDED, &sent, &LABELS);
    assert_eq!(net.delivered(&mut report), Ok(at(A, 0)));
    assert_eq!(look(&report).quote.unwrap().from, A);
    assert_eq!(behind(&report), LABELS);

    let mut got = udp(S, external, b"y");
    net.delivered(&mut got).unwrap();
    let mut report = extended_error(at(A, 0), at(S, 0), PORT_UNREACHABLE, &got, &LABELS);
    assert_eq!(net.forwarded(&mut report), Ok(at(external, 0)));
    assert_eq!(look(&report).quote.unwrap().to, external);
    assert_eq!(behind(&report), LABELS);
}

#[test]
fn req_4_inbound_errors_are_translated() {
    let mut net = Net::new(Behavior::RFC);
    for protocol in [Udp, Tcp, Icmp] {
        let remote = if protocol == Icmp { at(S, 0) } else { S };
        let mut sent = opener(protocol, A, remote);
        let external = net.forwarded(&mut sent).unwrap();
        for (kind, length) in
            [(TIME_EXCEEDED, 28), (PORT_UNREACHABLE, 1500), ((3, 4), 28), ((12, 0), 40), ((4, 0), 28)]
        {
            let mut report = error(at(Q, 0), external, kind, &sent, length);
            assert_eq!(net.delivered(&mut report), Ok(at(A, 0)), "{protocol} {kind:?}");
            let view = look(&report);
            assert_eq!(view.icmp, Some(kind), "type and code are kept");
            let quote = view.quote.unwrap();
            assert_eq!((quote.protocol, quote.from, quote.to), (protocol, A, remote));
        }
        // No mapping for what is quoted: dropped.
        let foreign = opener(protocol, at(external, external.port ^ 2), remote);
        let mut report = error(at(Q, 0), external, TIME_EXCEEDED, &foreign, 28);
        assert_eq!(net.delivered(&mut report), Err(DropReason::IcmpUnrelated), "{protocol}");
    }
}

#[test]
fn req_5_outbound_errors_show_the_nats_address() {
    for protocol in [Udp, Tcp] {
        let mut net = Net::new(Behavior::RFC);
        let external = net.send_out(protocol, A, S);
        let mut got = visitor(protocol, S2, external);
        assert_eq!(net.delivered(&mut got), Ok(A));
        let mut report = error(at(A, 0), at(S2, 0), PORT_UNREACHABLE, &got, 1500);
        assert_eq!(net.forwarded(&mut report), Ok(at(external, 0)), "{protocol}");
        let view = look(&report);
        assert_eq!(view.icmp, Some(PORT_UNREACHABLE));
        let quote = view.quote.unwrap();
        assert_eq!((quote.protocol, quote.from, quote.to), (protocol, S2, external));
        // By a router on the inside: still our address.
        let mut report = error(ep("10.0.0.200:0"), at(S2, 0), TIME_EXCEEDED, &got, 28);
        assert_eq!(net.forwarded(&mut report), Ok(at(external, 0)), "{protocol}");
        // About what was never let in: dropped.
        let stranger = opener(protocol, S, B);
        let mut report = error(at(B, 0), at(S, 0), PORT_UNREACHABLE, &stranger, 28);
        assert_eq!(net.forwarded(&mut report), Err(DropReason::IcmpUnrelated), "{protocol}");
    }
}

#[test]
fn req_6_errors_neither_refresh_nor_end_a_query_session() {
    let mut net = Net::new(Behavior::RFC);
    let mut sent = echo(A, at(S, 0), b"ping");
    let external = net.forwarded(&mut sent).unwrap();
    let before = net.mappings();
    net.wait(secs(30));
    net.delivered(&mut error(at(Q, 0), external, TIME_EXCEEDED, &sent, 28)).unwrap();
    assert_eq!(net.mappings(), before, "it expires when it would have");
    assert_eq!(net.send_in(Icmp, at(S, 0), external), Some(A), "and not before");
    net.wait(secs(30));
    assert_eq!(net.mappings(), []);
}

#[test]
fn req_7_hairpinned_errors_turn_around() {
    for protocol in [Udp, Tcp] {
        let mut net = Net::new(rfc(|behavior| behavior.filtering = Filtering::EndpointIndependent));
        let (a, b) = (net.send_out(protocol, A, S), net.send_out(protocol, B, S));
        let mut got = opener(protocol, A, b);
        assert_eq!(net.hairpin(&mut got), Ok((a, B)));
        let mut report = error(at(B, 0), at(a, 0), PORT_UNREACHABLE, &got, 1500);
        assert_eq!(net.hairpin(&mut report), Ok((at(b, 0), at(A, 0))), "{protocol}");
        let quote = look(&report).quote.unwrap();
        assert_eq!((quote.from, quote.to), (A, b), "A reads what it sent");
    }
}

#[test]
fn req_8_what_may_not_leave_is_answered_with_code_13() {
    let prohibited = |net: &mut Net, raw: &mut Raw, why| {
        assert_eq!(net.forwarded(raw), Err(why));
        let (to, report) = net.take_sent().pop().unwrap();
        assert_eq!((to, report.icmp), (Side::Inside(TUN), Some((3, 13))));
        assert_eq!((report.from.addr, report.to.addr), (GATEWAY.into(), look(raw).from.addr));
    };
    let mut net = Net::new(rfc(|behavior| behavior.set("allow-udp", "53").unwrap()));
    net.send_out(Udp, A, S);
    prohibited(&mut net, &mut udp(A, S2, b"not DNS"), DropReason::Prohibited);

    let mut net = Net::new(rfc(|behavior| behavior.port_range = PortRange::new(2000, 2001).unwrap()));
    net.send_out(Udp, at(A, 2), S);
    prohibited(&mut net, &mut udp(at(A, 4), S, b"no port left"), DropReason::PortsExhausted);

    let limits = Limits { mappings: 1, sessions: 1 };
    let mut net = Net::with(Config { limits, ..Config::new(N.into()) });
    net.send_out(Udp, A, S);
    prohibited(&mut net, &mut udp(A, P, b"no session left"), DropReason::TableFull);
    prohibited(&mut net, &mut udp(B, P, b"no mapping left"), DropReason::TableFull);
    assert_eq!(net.mappings().len(), 1, "and nothing was made by the way");
}

/// REQ-10 and REQ-11: Destination Unreachable, Time Exceeded and Echo of course, and of the rest what hosts still use.
#[test]
fn req_10_and_11_types() {
    let mut net = Net::new(Behavior::RFC);
    for kind in [5, 9, 10, 17, 18, 30, 42, 255] {
        let mut raw = echo(A, S, b"something else");
        raw.bytes[20] = kind;
        let verdict = raw.through(|packet| net.nat.outbound(InsideId(0), packet, net.now));
        assert_eq!(verdict, Verdict::Drop(DropReason::IcmpType), "{kind}");
    }
}

/// The NAT's own errors may be turned off towards either side; those of others pass all the same.
#[test]
fn req_9_own_errors_may_be_turned_off() {
    for (errors, inside, outside) in [
        (IcmpErrors::Both, true, true),
        (IcmpErrors::Inside, true, false),
        (IcmpErrors::Outside, false, true),
        (IcmpErrors::Off, false, false),
    ] {
        let mut net = Net::new(rfc(|behavior| {
            behavior.icmp_errors = errors;
            behavior.allow_udp = natbox_core::Allowed::Only([53, 3478, 0, 0, 0, 0, 0, 0]);
        }));
        let external = net.send_out(Udp, A, S);
        let told = |net: &mut Net, dropped: Verdict, why| {
            assert_eq!(dropped, Verdict::Drop(why), "{errors}");
            net.take_sent().into_iter().map(|(to, _)| to).collect::<Vec<_>>()
        };
        let to_inside = if inside { vec![Side::Inside(TUN)] } else { vec![] };
        let to_outside = if outside { vec![Side::Outside] } else { vec![] };
        for (mut raw, why) in [
            (udp(A, S, b"").ttl(1), DropReason::TtlExceeded),
            (udp(A, S, &[0; 1600]).ip(|header| header.dont_fragment = true), DropReason::TooBig),
            (udp(A, at(S, 7), b""), DropReason::Prohibited),
        ] {
            let verdict = net.out(&mut raw);
            assert_eq!(told(&mut net, verdict, why), to_inside, "{errors} {why}");
        }
        let verdict = net.inn(&mut udp(S, external, b"").ttl(1));
        assert_eq!(told(&mut net, verdict, DropReason::TtlExceeded), to_outside, "{errors}");
        let verdict = net.inn(&mut tcp(Q, external, SYN, b""));
        net.wait(secs(7));
        assert_eq!(told(&mut net, verdict, DropReason::UnsolicitedSyn), to_outside, "{errors}");
        let mut passing = error(at(Q, 0), external, TIME_EXCEEDED, &udp(external, S, b"probe"), 33);
        assert_eq!(net.delivered(&mut passing), Ok(at(A, 0)), "{errors}: another's");
    }
}
