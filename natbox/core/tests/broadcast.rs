//! Addresses that are everybody's: the broadcast address of an inside network is no source, no destination from elsewhere,
//! and nobody that an answer is sent to.

mod common;

use std::net::Ipv4Addr;

use common::*;
use natbox_core::{
    Config, DropReason, Endpoint, Inside, InsideId, MappingError, MappingRequest,
    Protocol::{Icmp, Tcp, Udp},
    Side, Time, Verdict,
    behavior::*,
};

/// Everybody behind the first inside port.
const ALL: Endpoint = Endpoint::v4(Ipv4Addr::new(10, 0, 0, 255), 4242);

#[test]
fn a_forged_source_is_not_answered() {
    let mut net = Net::new(rfc(|behavior| behavior.hairpin = Hairpin::External));
    let external = net.send_out(Udp, B, S);
    let gateway = Endpoint::v4(GATEWAY, 0);
    for forged in [ALL, at(gateway, 7), Endpoint::v4(N, 7)] {
        for to in [gateway, at(Endpoint::v4(N, 0), 0)] {
            assert_eq!(net.out(&mut echo(forged, to, b"ping")), Verdict::Local, "{forged}");
        }
        assert_eq!(net.out(&mut udp(forged, at(gateway, 9), b"x")), Verdict::Local, "{forged}");
        assert_eq!(net.out(&mut tcp(forged, at(gateway, 9), SYN, b"")), Verdict::Local, "{forged}");
        for ttl in [1, 64] {
            for protocol in [Udp, Tcp, Icmp] {
                let dropped = net.out(&mut opener(protocol, forged, S).ttl(ttl));
                assert_eq!(dropped, Verdict::Drop(DropReason::BadSource), "{forged} {protocol}");
            }
            let dropped = net.out(&mut udp(forged, external, b"x").ttl(ttl));
            assert!(matches!(dropped, Verdict::Drop(_)), "{forged}: {dropped:?}");
        }
    }
    assert_eq!((net.take_sent(), net.nat.mapping_count()), (Vec::new(), 1));
}

/// What a host sends to all of its own network stays there; what it sends to all of another is not passed on.
#[test]
fn nobody_speaks_to_a_whole_network_through_the_nat() {
    let mut net = Net::new(rfc(|_| {}));
    let other = net.add_inside(7, 1500);
    let everybody = |third: u8| Endpoint::v4([10, third, 0, 255].into(), 137);
    for (from, host) in [(TUN, A), (other, ep("10.7.0.2:137"))] {
        for third in [0, 7] {
            for protocol in [Udp, Icmp] {
                let verdict = net.out_via(from, &mut opener(protocol, host, everybody(third)));
                assert_eq!(verdict, Verdict::Drop(DropReason::BadDestination), "{host} → 10.{third}.0.255");
            }
        }
    }
    let about = udp(at(ALL, 137), ep("10.7.0.2:137"), b"x");
    let mut forged = error(ALL, ep("10.7.0.2:137"), (3, 3), &about, 28);
    assert_eq!(net.out(&mut forged), Verdict::Drop(DropReason::BadSource), "a routed error");
    assert_eq!((net.take_sent(), net.nat.mapping_count()), (Vec::new(), 0));
}

/// Which address that is depends on the network: elsewhere, and outside, it is a host's.
#[test]
fn elsewhere_it_is_a_hosts_address() {
    let mut net = Net::new(rfc(|behavior| behavior.filtering = Filtering::EndpointIndependent));
    let wide = net
        .nat
        .add_inside(natbox_core::InsidePort {
            gateway: [10, 0, 1, 1].into(),
            prefix_len: 16,
            mtu: 1500,
            shared: false,
        })
        .unwrap();
    let pair = net
        .nat
        .add_inside(natbox_core::InsidePort {
            gateway: [10, 9, 0, 254].into(),
            prefix_len: 31,
            mtu: 1500,
            shared: false,
        })
        .unwrap();
    assert_eq!(net.out_via(wide, &mut udp(ALL, S, b"x")), Verdict::Forward(Side::Outside));
    assert_eq!(net.out_via(pair, &mut udp(ep("10.9.0.255:9"), S, b"x")), Verdict::Forward(Side::Outside));
    let external = net.send_out(Udp, A, S);
    assert_eq!(
        net.send_in(Udp, ALL, external),
        Some(A),
        "the outside has numbers of its own (RFC 4787 REQ-7)"
    );
}

#[test]
fn nothing_is_forwarded_to_everybody() {
    let mut net = Net::with(Config::new(N.into()));
    let add = |net: &mut Net, addr: &str| {
        let inside = Inside { port: InsideId(0), endpoint: ep(addr) };
        let request = MappingRequest { protocol: Udp, inside, address: None, port: 7000, until: Time::NEVER };
        net.nat.add_mapping(request, Time::ZERO)
    };
    for addr in ["10.0.0.255:9", "255.255.255.255:9", "224.0.0.1:9", "127.0.0.1:9", "0.0.0.0:9"] {
        assert_eq!(add(&mut net, addr), Err(MappingError::NotAHost(ep(addr).addr)));
    }
    assert!(add(&mut net, "10.0.0.2:9").is_ok());
}
