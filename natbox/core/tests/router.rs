//! Router manners: TTL, MTU, the NAT's own addresses, networks inside, damaged packets; on addresses of its own and on
//! shared ones.

mod common;

use std::net::Ipv4Addr;

use common::*;
use natbox_core::{
    Config, ConfigError, DropReason, Endpoint, InsideId, InsidePort,
    Protocol::{Icmp, Tcp, Udp},
    Side, Time, Verdict,
    behavior::*,
};

const OUTSIDE: Side = Side::Outside;
const INSIDE: Side = Side::Inside(TUN);

/// Takes the only packet that the NAT has made.
#[track_caller]
fn only(net: &mut Net) -> (Side, View) {
    let mut sent = net.take_sent();
    assert_eq!(sent.len(), 1, "{sent:?}");
    sent.remove(0)
}

fn eif() -> Behavior {
    rfc(|behavior| behavior.filtering = Filtering::EndpointIndependent)
}

#[test]
fn ttl_runs_out_on_the_way_out() {
    let mut net = Net::new(eif());
    for protocol in [Udp, Tcp, Icmp] {
        for ttl in [0, 1] {
            let mut probe = opener(protocol, A, S).ttl(ttl);
            assert_eq!(net.forwarded(&mut probe), Err(DropReason::TtlExceeded));
            let (to, report) = only(&mut net);
            assert_eq!((to, report.icmp), (INSIDE, Some((11, 0))));
            assert_eq!(
                (report.from.addr, report.to.addr),
                (GATEWAY.into(), A.addr),
                "traceroute shows the gateway"
            );
            let quote = report.quote.unwrap();
            let to = if protocol == Icmp { at(S, 0) } else { S };
            assert_eq!((quote.protocol, quote.from, quote.to), (protocol, A, to));
        }
        assert_eq!(net.mappings(), [], "{protocol}: what does not leave makes no mapping");
    }
    assert!(net.forwarded(&mut udp(A, S, b"").ttl(2)).is_ok());
    assert_eq!(
        net.forwarded(&mut udp(A, S, b"").ttl(1)),
        Err(DropReason::TtlExceeded),
        "in a known flow too"
    );
    assert_eq!(net.take_sent().len(), 1);
}

#[test]
fn ttl_runs_out_on_the_way_in() {
    let mut net = Net::new(eif());
    for protocol in [Udp, Tcp] {
        let external = net.send_out(protocol, A, S);
        for from in [S, Q] {
            let mut probe = visitor(protocol, from, external).ttl(1);
            assert_eq!(net.delivered(&mut probe), Err(DropReason::TtlExceeded));
            let (to, report) = only(&mut net);
            assert_eq!((to, report.icmp), (OUTSIDE, Some((11, 0))));
            assert_eq!((report.from.addr, report.to.addr), (N.into(), from.addr), "no private address leaks");
            let quote = report.quote.unwrap();
            assert_eq!((quote.from, quote.to), (from, external), "as the sender sent it");
        }
    }
}

#[test]
fn ttl_runs_out_in_a_hairpin() {
    let mut net = Net::new(eif());
    let b = net.send_out(Udp, B, S);
    assert_eq!(net.hairpin(&mut udp(A, b, b"").ttl(1)), Err(DropReason::TtlExceeded));
    let (to, report) = only(&mut net);
    assert_eq!((to, report.from.addr, report.to.addr), (INSIDE, GATEWAY.into(), A.addr));
    assert_eq!(report.quote.unwrap().to, b);
}

/// The last hop of a traceroute to the NAT itself answers, whatever is left of the TTL.
#[test]
fn ttl_does_not_matter_for_the_nats_own_addresses() {
    let mut net = Net::new(eif());
    let next_door = net.add_inside(1, 1500);
    for own in [GATEWAY, N, [10, 1, 0, 1].into()] {
        for from in [TUN, next_door] {
            let mut ping = echo(ep("10.0.0.77:5"), Endpoint::v4(own, 0), b"ping").ttl(1);
            assert_eq!(net.out_via(from, &mut ping), Verdict::Reply, "{own}");
            let view = look(&ping);
            assert_eq!((view.from.addr, view.to), (own.into(), ep("10.0.0.77:5")));
            assert_eq!((view.icmp, view.header.time_to_live), (Some((0, 0)), 64), "it must get back");
            let mut datagram = udp(A, Endpoint::v4(own, 9), b"").ttl(1);
            let expected = if own == N { Verdict::Drop(DropReason::NoMapping) } else { Verdict::Local };
            assert_eq!(net.out_via(from, &mut datagram), expected, "{own}");
        }
    }
    let mut ping = echo(Q, Endpoint::v4(N, 0), b"ping").ttl(1);
    assert_eq!(net.inn(&mut ping), Verdict::Reply);
    assert_eq!((look(&ping).from.addr, look(&ping).header.time_to_live), (N.into(), 64));
    let sent = net.take_sent();
    assert_eq!(sent.len(), 4, "nor does it for the last hop of one that sends datagrams: {sent:?}");
    assert!(sent.iter().all(|(to, view)| *to != OUTSIDE && view.icmp == Some((3, 3))), "{sent:?}");
    assert_eq!(net.nat.counters().replies, 7);
}

#[test]
fn ping_to_the_nats_own_addresses() {
    let mut net = Net::new(Behavior::RFC);
    let mut ping = echo(A, Endpoint::v4(GATEWAY, 0), b"payload");
    assert_eq!(net.out(&mut ping), Verdict::Reply);
    let view = look(&ping);
    assert_eq!((view.from.addr, view.to, view.payload), (GATEWAY.into(), A, b"payload".to_vec()));
    // Other packets for it are the caller's, unchanged.
    for mut raw in [
        udp(A, ep("10.0.0.1:53"), b"?"),
        tcp(A, ep("10.0.0.1:80"), SYN, b""),
        timestamp(A, ep("10.0.0.1:0"), false),
    ] {
        assert_eq!(net.out(&mut raw), Verdict::Local);
    }
    assert_eq!(net.inn(&mut timestamp(Q, Endpoint::v4(N, 0), false)), Verdict::Local);
    // Nobody answers a sender that cannot exist.
    assert_eq!(net.out(&mut echo(ep("224.0.0.1:1"), Endpoint::v4(GATEWAY, 0), b"")), Verdict::Local);
    assert_eq!(net.mappings(), []);
}

#[test]
fn too_big_in_both_directions() {
    let behavior = eif();
    let mut net = Net::with(Config { behavior, outside_mtu: 1400, ..Config::new(N.into()) });
    let inside = net.add_inside(1, 1280);
    let a = ep("10.1.0.2:4242");
    let mut first = udp(a, S, b"");
    net.out_via(inside, &mut first);
    let external = look(&first).from;
    for (raw, fits) in [(udp(a, S, &[1; 1372]), true), (udp(a, S, &[1; 1373]), false)] {
        let verdict = net.out_via(inside, &mut raw.clone());
        assert_eq!(verdict == Verdict::Forward(OUTSIDE), fits);
    }
    let (to, report) = only(&mut net);
    assert_eq!((to, report.icmp, report.mtu), (Side::Inside(inside), Some((3, 4)), 1400));
    assert_eq!((report.from, report.to.addr), (ep("10.1.0.1:0"), a.addr));
    assert!(report.header.total_len <= 576, "an error crosses every link");
    assert_eq!(report.quote.unwrap().from, a);

    for (mut raw, fits) in [(udp(S, external, &[1; 1252]), true), (udp(S, external, &[1; 1253]), false)] {
        assert_eq!(net.delivered(&mut raw).is_ok(), fits);
    }
    let (to, report) = only(&mut net);
    assert_eq!((to, report.icmp, report.mtu), (OUTSIDE, Some((3, 4)), 1280));
    assert_eq!((report.from.addr, report.to.addr), (N.into(), S.addr));
    assert_eq!(report.quote.unwrap().to, external);
}

/// What counts of a super-frame is the size of its pieces on the wire.
#[test]
fn too_big_for_super_frames() {
    let mut net = Net::with(Config { behavior: eif(), outside_mtu: 1400, ..Config::new(N.into()) });
    let external = net.connect(A, S);
    for (segment, fits) in [(1360, true), (1361, false)] {
        let mut up = tcp(A, S, ACK, &[3; 60_000]).gso(segment);
        let result = net.forwarded(&mut up);
        assert_eq!(result, if fits { Ok(external) } else { Err(DropReason::TooBig) });
    }
    let (_, report) = only(&mut net);
    assert_eq!((report.mtu, report.from.addr), (1400, GATEWAY.into()));
    for (segment, fits) in [(1372, true), (1373, false)] {
        assert_eq!(net.forwarded(&mut udp(A, S, &[3; 60_000]).gso(segment)).is_ok(), fits);
    }
    assert_eq!(only(&mut net).1.mtu, 1400);
    for (segment, fits) in [(1460, true), (1461, false)] {
        let result = net.delivered(&mut tcp(S, external, ACK, &[3; 60_000]).gso(segment));
        assert_eq!(result, if fits { Ok(A) } else { Err(DropReason::TooBig) });
    }
    let (to, report) = only(&mut net);
    assert_eq!((to, report.mtu, report.from.addr), (OUTSIDE, 1500, N.into()));
    // A super-frame whose only piece is shorter than its segment size says so.
    assert_eq!(net.forwarded(&mut tcp(A, S, ACK, &[3; 100]).gso(1460)), Ok(external));
}

#[test]
fn no_error_about_an_error_nor_about_what_no_host_sent() {
    let mut net = Net::new(eif());
    let mut sent = udp(A, S, b"");
    let external = net.forwarded(&mut sent).unwrap();
    let mut got = udp(S, external, b"");
    net.delivered(&mut got).unwrap();
    let outward = error(at(A, 0), at(S, 0), (3, 3), &got, 28);
    let inward = error(at(Q, 0), external, (3, 3), &sent, 28);
    assert_eq!(net.out(&mut outward.clone().ttl(1)), Verdict::Drop(DropReason::TtlExceeded));
    assert_eq!(net.inn(&mut inward.clone().ttl(1)), Verdict::Drop(DropReason::TtlExceeded));
    let long = |raw: Raw, quoted: &Raw| {
        let view = look(&raw);
        let mut quote = quoted.clone();
        quote.bytes.extend_from_slice(&[0; 1500]);
        error(view.from, view.to, (3, 3), &quote, 1480)
    };
    assert_eq!(net.out(&mut long(outward, &got)), Verdict::Drop(DropReason::TooBig));
    assert_eq!(net.inn(&mut long(inward, &sent)), Verdict::Drop(DropReason::TooBig));
    for from in ["224.0.0.5:1", "0.0.0.0:1", "255.255.255.255:1", "127.0.0.1:1"] {
        assert!(matches!(net.out(&mut udp(ep(from), S, b"").ttl(1)), Verdict::Drop(_)));
    }
    assert_eq!(net.take_sent(), []);
}

/// Errors and resets of the NAT's own making are rate-limited, and what is held back is counted.
#[test]
fn errors_are_rate_limited() {
    let mut net = Net::new(Behavior::RFC);
    for _ in 0..1000 {
        net.out(&mut udp(A, S, b"").ttl(1));
    }
    let burst = net.take_sent().len();
    assert!((200..=256).contains(&burst), "{burst}");
    net.wait(std::time::Duration::from_millis(100));
    for _ in 0..1000 {
        net.out(&mut udp(A, S, b"").ttl(1));
    }
    let refilled = net.take_sent().len();
    assert!((95..=105).contains(&refilled), "{refilled}: a thousand a second");
    let counters = net.nat.counters();
    assert_eq!(counters.generated_packets, (burst + refilled) as u64);
    assert_eq!(counters.generated_packets + counters.generated_suppressed, 2000);
}

#[test]
fn inside_networks_are_routed() {
    let mut net = Net::new(Behavior::RFC);
    let next_door = net.add_inside(1, 1300);
    let c = ep("10.1.0.2:80");
    let mut raw = tcp(A, c, SYN, b"");
    assert_eq!(net.out(&mut raw), Verdict::Forward(Side::Inside(next_door)));
    assert_eq!((look(&raw).from, look(&raw).to), (A, c), "untranslated");
    let mut back = tcp(c, A, SYN_ACK, b"");
    assert_eq!(net.out_via(next_door, &mut back), Verdict::Forward(INSIDE));
    assert_eq!(net.nat.counters().routed_packets, 2);
    assert_eq!(net.mappings(), [], "nothing is remembered");
    assert_eq!(net.out(&mut udp(A, c, b"").ttl(1)), Verdict::Drop(DropReason::TtlExceeded));
    assert_eq!(only(&mut net).1.from, Endpoint::v4(GATEWAY, 0));
    assert_eq!(net.out(&mut udp(A, c, &[0; 1400])), Verdict::Drop(DropReason::TooBig));
    assert_eq!(only(&mut net).1.mtu, 1300);
    // An error about a routed packet goes back as it is, even where the receiver has a mapping.
    net.out_via(next_door, &mut udp(c, S, b""));
    let mut report = error(at(c, 0), at(A, 0), (3, 3), &udp(A, c, b"lost"), 28);
    assert_eq!(net.out_via(next_door, &mut report), Verdict::Forward(INSIDE));
    let view = look(&report);
    assert_eq!((view.from, view.to, view.quote.unwrap().to), (at(c, 0), at(A, 0), c));
}

/// Each kind of damaged or foreign packet is dropped under its own reason, in both directions.
#[test]
fn bad_packets_are_counted_under_their_reason() {
    let patched = |mut raw: Raw, byte: usize, value: u8| {
        raw.bytes[byte] = value;
        raw
    };
    let short = |len: usize| {
        let mut raw = udp(A, S, b"payload");
        raw.bytes.truncate(len);
        raw
    };
    let to_n = |raw: Raw| raw.ip(|header| header.destination = N.octets());
    let cases: Vec<(DropReason, Raw)> = vec![
        (DropReason::Malformed, Raw::new(Vec::new())),
        (DropReason::Malformed, Raw::new(vec![0x45])),
        (DropReason::Malformed, short(19)),
        (DropReason::Malformed, short(30)),
        (DropReason::Malformed, patched(udp(A, S, b""), 0, 0x44)),
        (DropReason::Malformed, patched(udp(A, S, b""), 0, 0x55)),
        (DropReason::Malformed, patched(udp(A, S, b""), 25, 99)),
        (DropReason::Malformed, patched(udp(A, S, b""), 25, 7)),
        (DropReason::Malformed, patched(tcp(A, S, SYN, b""), 32, 0x40)),
        (DropReason::Malformed, patched(tcp(A, S, SYN, b""), 32, 0xf0)),
        (DropReason::BadChecksum, udp(A, S, b"").flip(10)),
        (DropReason::BadChecksum, udp(A, S, b"").flip(1)),
        (DropReason::Ipv6, Raw::new(vec![0x60; 48])),
        (DropReason::Protocol, udp(A, S, b"").ip(|header| header.protocol = etherparse::ip_number::GRE)),
        (DropReason::FragmentHeader, fragments(&tcp(A, S, SYN, &[7; 64]), 5, 8)[1].clone()),
        (DropReason::FragmentHeader, fragments(&tcp(A, S, SYN, &[7; 64]), 5, 8)[2].clone()),
        (DropReason::FragmentHeader, fragments(&tcp(A, S, SYN, &[7; 64]), 5, 16)[0].clone()),
        (DropReason::Malformed, udp(A, S, &[7; 5]).ip(|header| header.more_fragments = true)),
        (
            DropReason::Malformed,
            udp(A, S, b"").ip(|header| header.fragment_offset = 8191u16.try_into().unwrap()),
        ),
        (
            DropReason::Fragment,
            error(A, S, (3, 3), &udp(S, A, &[7; 64]), 64).ip(|header| header.more_fragments = true),
        ),
        (DropReason::IcmpType, patched(echo(A, S, b""), 20, 5)),
    ];
    for (reason, raw) in cases {
        let mut net = Net::new(eif());
        assert_eq!(net.out(&mut raw.clone()), Verdict::Drop(reason), "{:02x?}", raw.bytes);
        assert_eq!(net.dropped(reason), 1);
        assert_eq!(net.inn(&mut raw.clone()), Verdict::Drop(reason), "{:02x?}", raw.bytes);
        assert_eq!(net.dropped(reason), 2);
        assert_eq!((net.mappings(), net.take_sent()), (vec![], vec![]));
    }
    let mut net = Net::new(eif());
    let reply = to_n(udp(S, S, b""));
    assert_eq!(net.inn(&mut reply.clone()), Verdict::Drop(DropReason::NoMapping));
    assert_eq!(net.inn(&mut udp(S, A, b"")), Verdict::Drop(DropReason::NoMapping), "an inside address");
    assert_eq!(net.out_via(InsideId(9), &mut udp(A, S, b"")), Verdict::Drop(DropReason::BadSource));
}

#[test]
fn addresses_that_no_host_has() {
    let mut net = Net::new(eif());
    let external = net.send_out(Udp, A, S);
    let before = net.mappings();
    for bad in ["0.0.0.0:5", "127.0.0.1:5", "224.0.0.251:5", "240.0.0.1:5", "255.255.255.255:5"] {
        let bad = ep(bad);
        assert_eq!(net.out(&mut udp(bad, S, b"")), Verdict::Drop(DropReason::BadSource), "{bad}");
        assert_eq!(net.out(&mut udp(A, bad, b"")), Verdict::Drop(DropReason::BadDestination), "{bad}");
        assert_eq!(net.inn(&mut udp(bad, external, b"")), Verdict::Drop(DropReason::BadSource), "{bad}");
        assert_eq!(net.hairpin(&mut udp(bad, external, b"")), Err(DropReason::BadSource), "{bad}");
        let mut report = error(at(A, 0), at(bad, 0), (3, 3), &udp(S, A, b""), 28);
        assert_eq!(net.out(&mut report), Verdict::Drop(DropReason::BadDestination), "{bad}");
    }
    // Our own addresses are nobody else's.
    for own in [Endpoint::v4(GATEWAY, 5), Endpoint::v4(N, 5), external] {
        assert_eq!(net.out(&mut udp(own, S, b"")), Verdict::Drop(DropReason::BadSource), "{own}");
        if own.addr == external.addr {
            assert_eq!(net.inn(&mut udp(own, external, b"")), Verdict::Drop(DropReason::BadSource), "{own}");
        }
    }
    assert_eq!(net.mappings(), before);
}

/// What lies behind the packet's own length is link-layer padding: it is cut off, and not counted.
#[test]
fn padding_is_cut_off() {
    let mut net = Net::new(eif());
    let mut raw = udp(A, S, b"");
    raw.bytes.extend_from_slice(&[0; 18]);
    let verdict = raw.through(|packet| net.nat.outbound(TUN, packet, net.now));
    assert_eq!((verdict, raw.bytes.len()), (Verdict::Forward(OUTSIDE), 28));
    assert_eq!(net.nat.counters().outbound_bytes, 28);
    look(&raw);
}

/// On a shared address everything that is not the NAT's is the host's, untouched.
#[test]
fn a_shared_address() {
    let mut net = Net::with(Config { behavior: Behavior::RFC, shared: true, ..Config::new(N.into()) });
    let n = |port| Endpoint::v4(N, port);
    let external = net.send_out(Udp, A, S);
    let query = net.send_out(Icmp, A, at(S, 0));
    let mut sent = udp(A, S, b"");
    net.forwarded(&mut sent).unwrap();
    assert_eq!(net.send_in(Udp, S, external), Some(A));
    assert_eq!(net.send_in(Icmp, at(S, 0), query), Some(A));
    assert_eq!(
        net.try_in(Udp, P, external),
        Err(DropReason::Filtered),
        "the NAT's own port is not the host's"
    );
    let other = external.port ^ 0x800;
    let hosts = [
        udp(S, n(other), b"for a listener"),
        tcp(S, n(22), SYN, b""),
        tcp(S, n(22), ACK, b"ssh"),
        echo(S, n(0), b"ping"),
        echo_reply(S, n(query.port ^ 1), b"the host's own ping"),
        error(at(Q, 0), n(0), (3, 3), &udp(n(other), S, b"the host's own datagram"), 28),
        error(at(Q, 0), n(0), (3, 3), &udp(n(other), S, b"damaged on its way").flip(4), 28),
        udp(S, ep("203.0.113.255:9"), b"not even the same address"),
        udp(S, n(other), b"").ip(|header| header.more_fragments = true),
        udp(S, n(other), b"").ip(|header| header.protocol = etherparse::ip_number::GRE),
        udp(ep("0.0.0.0:68"), n(67), b"DHCP"),
    ];
    let count = hosts.len() as u64;
    for mut raw in hosts {
        assert_eq!(net.inn(&mut raw), Verdict::Local, "{:02x?}", raw.bytes);
    }
    assert_eq!(net.nat.counters().local_packets, count);
    let mut report = error(at(Q, 0), n(0), (3, 3), &sent, 28);
    assert_eq!(net.delivered(&mut report), Ok(at(A, 0)), "the NAT's errors are the NAT's");
    assert_eq!(net.take_sent(), [], "nothing answers for the host");
    // From inside the host is reached by its address; its answers are its own business.
    for mut raw in [tcp(A, n(22), SYN, b""), udp(A, n(other), b""), echo(A, n(0), b"")] {
        assert_eq!(net.out(&mut raw), Verdict::Local);
    }
    // The gateway is the NAT's own in any case.
    assert_eq!(net.out(&mut echo(A, Endpoint::v4(GATEWAY, 0), b"")), Verdict::Reply);
}

#[test]
fn configurations_that_cannot_work() {
    let error = |config| natbox_core::Nat::new(config, 1).err().map(|error| error.to_string()).unwrap();
    let base = || Config::new(N.into());
    assert!(error(Config { external: vec![], ..base() }).contains("at least one"));
    assert!(error(Config { external: vec![N.into(), N.into()], ..base() }).contains("twice"));
    assert!(error(Config { external: vec!["2001:db8::1".parse().unwrap()], ..base() }).contains("IPv4"));
    for bad in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        assert!(error(Config::new(bad.parse().unwrap())).contains(bad));
    }
    assert!(error(Config { outside_mtu: 67, ..base() }).contains("67"));
    for (mappings, sessions) in [(0, 1), (1, 0), (1 << 32, 1)] {
        let limits = natbox_core::Limits { mappings, sessions };
        assert!(error(Config { limits, ..base() }).contains("limits"));
    }
    let mut nat = natbox_core::Nat::new(base(), 1).unwrap();
    let port = InsidePort { gateway: GATEWAY.into(), prefix_len: 24, mtu: 1500, shared: false };
    assert!(nat.add_inside(InsidePort { prefix_len: 33, ..port }).is_err());
    assert!(nat.add_inside(InsidePort { mtu: 20, ..port }).is_err());
    assert!(nat.add_inside(InsidePort { gateway: "fe80::1".parse().unwrap(), ..port }).is_err());
    let refused = ConfigError::ExternalGateway(N.into());
    assert_eq!(nat.add_inside(InsidePort { gateway: N.into(), ..port }), Err(refused));
    assert_eq!(nat.add_inside(port), Ok(TUN), "and what failed has left nothing");
    let refused = ConfigError::ExternalGateway(GATEWAY.into());
    assert_eq!(nat.set_external(vec![GATEWAY.into()], Time::ZERO), Err(refused));
    assert_eq!(nat.external().collect::<Vec<_>>(), [N], "and what failed has changed nothing");
}

#[test]
fn the_host_answers_for_a_gateway_that_it_shares() {
    let mut net = Net::new(rfc(|_| {}));
    let gateway = Ipv4Addr::new(10, 1, 0, 1);
    let port = InsidePort { gateway: gateway.into(), prefix_len: 24, mtu: 1500, shared: true };
    let lan = net.nat.add_inside(port).unwrap();
    let ping = |from: Endpoint| echo(from, Endpoint::v4(gateway, 0), b"ping");
    assert_eq!(net.out_via(lan, &mut ping(ep("10.1.0.2:1"))), Verdict::Local, "one answer is enough");
    assert_eq!(
        net.out(&mut ping(A)),
        Verdict::Reply,
        "the host hears nothing of another inside port's packets"
    );
}

/// A closed port of the gateway's own address is told, as any host tells it; never too often, and not where the host has
/// that address and speaks for itself.
#[test]
fn nothing_listens_at_the_gateway() {
    let mut net = Net::new(rfc(|_| {}));
    let gateway = Endpoint::v4(GATEWAY, 5351);
    for (mut raw, icmp) in [
        (udp(A, gateway, b"anybody?"), Some((3, 3))),
        (tcp(A, gateway, SYN, b""), None),
        (udp(Endpoint::v4(Ipv4Addr::UNSPECIFIED, 68), at(gateway, 67), b""), Some((0, 0))),
    ] {
        let from = look(&raw).from;
        assert_eq!(net.out(&mut raw), Verdict::Local);
        let sent = net.take_sent();
        if icmp == Some((0, 0)) {
            assert_eq!(sent, [], "nobody can be told");
            continue;
        }
        let [(Side::Inside(TUN), answer)] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!((answer.from.addr, answer.to.addr, answer.icmp), (gateway.addr, from.addr, icmp));
        assert_eq!(answer.flags & RST != 0, icmp.is_none());
    }
    for _ in 0..300 {
        net.out(&mut udp(A, gateway, b"again"));
    }
    assert!(net.take_sent().len() < 256 && net.nat.counters().generated_suppressed > 40);

    let mut quiet = Net::new(rfc(|behavior| behavior.icmp_errors = IcmpErrors::Off));
    assert_eq!(quiet.out(&mut udp(A, gateway, b"")), Verdict::Local);
    assert_eq!(quiet.take_sent(), []);
    // The gateway of another inside port is the NAT's as well.
    quiet.nat.set_behavior(rfc(|_| {}));
    quiet.add_inside(7, 1500);
    assert_eq!(quiet.out(&mut udp(A, ep("10.7.0.1:9"), b"")), Verdict::Local);
    assert_eq!(quiet.take_sent().len(), 1);
}

#[test]
fn nobody_outside_has_the_address_of_a_gateway() {
    let mut net = Net::new(eif());
    let n = net.send_out(Udp, A, S);
    let forged = Endpoint::v4(GATEWAY, 9);
    assert_eq!(net.delivered(&mut udp(forged, n, b"")), Err(DropReason::BadSource));
    assert_eq!(net.delivered(&mut udp(Q, n, b"")), Ok(A));
}
