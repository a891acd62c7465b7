//! NATs in the net: nested, hairpinned, rebound, of limited age, and as routers.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

mod common;

use std::net::{Ipv4Addr, SocketAddr};

use common::{INTERNET, at, behavior, behind, delay, deliveries, ms, probe, socket};
use natbox_sim::{
    Attachment, BuildError, Conditions, Datagram, Direction, HostId, IcmpErrorKind, Input, NatConfig, NatId,
    Net, Rebind, Time,
    natbox_core::{ConfigError, Endpoint, Inside, InsideId, MappingRequest, Protocol, Selection},
};

fn public_host(net: &mut Net) -> (HostId, SocketAddr) {
    let host = net.add_host(INTERNET, delay(5)).unwrap();
    (host, socket(net, host, 3478))
}

/// Where `from`'s port 4000 appears to the public host.
fn reflexive(net: &mut Net, from: HostId, (host, at): (HostId, SocketAddr)) -> SocketAddr {
    probe(net, (from, 4000), (host, at), b"who am I").unwrap()
}

#[test]
fn a_packet_shows_the_nats_address_and_its_answer_finds_back() {
    let mut net = Net::new(1);
    let server = public_host(&mut net);
    let (nat, host) = behind(&mut net, INTERNET, "ports=random");
    let seen = reflexive(&mut net, host, server);
    assert_eq!(seen.ip(), net.external(nat)[0]);
    assert_ne!(seen.port(), 4000);
    let answered = probe(&mut net, (server.0, 3478), (host, seen), b"you are");
    assert_eq!(answered, Some(server.1));
    assert_eq!(net.nat(nat).unwrap().mapping_count(), 1);
}

#[test]
fn two_nats_in_a_row_translate_twice() {
    let mut net = Net::new(1);
    let server = public_host(&mut net);
    let carrier = net.add_nat(INTERNET, NatConfig::carrier(behavior("filtering=eif"))).unwrap();
    let (home, host) = behind(&mut net, carrier, "filtering=eif");
    let seen = reflexive(&mut net, host, server);
    assert_eq!(seen.ip(), net.external(carrier)[0]);
    assert!(net.external(home)[0].octets().starts_with(&[100, 64]));
    assert!(probe(&mut net, (server.0, 9), (host, seen), b"in").is_some());
    let ttl = {
        net.send(host, Datagram::new(socket(&net, host, 4000), server.1, b"ttl"), net.now()).unwrap();
        let until = net.now() + ms(100);
        std::iter::from_fn(|| {
            net.poll_deliver(until).map(|(_, input)| matches!(input, Input::Datagram(d) if d.ttl == 61))
        })
        .any(|is_it| is_it)
    };
    assert!(ttl, "home, carrier and the internet take a hop each");
}

/// Two homes behind one carrier reach each other by the carrier's addresses only when it hairpins.
#[test]
fn homes_behind_one_carrier_meet_by_hairpin() {
    for (hairpin, meets) in [("external", true), ("internal", true), ("off", false)] {
        let mut net = Net::new(2);
        let server = public_host(&mut net);
        let axes = format!("filtering=eif hairpin={hairpin}");
        let carrier = net.add_nat(INTERNET, NatConfig::carrier(behavior(&axes))).unwrap();
        let (_, a) = behind(&mut net, carrier, "filtering=eif");
        let (home_b, b) = behind(&mut net, carrier, "filtering=eif");
        let (at_a, at_b) = (reflexive(&mut net, a, server), reflexive(&mut net, b, server));
        assert_eq!(at_a.ip(), at_b.ip());
        let source = probe(&mut net, (b, 4000), (a, at_a), b"neighbour");
        assert_eq!(source.is_some(), meets, "{hairpin}");
        match (hairpin, source) {
            ("external", Some(source)) => assert_eq!(source, at_b, "the source is b's external endpoint"),
            ("internal", Some(source)) => assert_eq!(source.ip(), net.external(home_b)[0]),
            _ => {}
        }
    }
}

#[test]
fn hosts_behind_one_nat_meet_by_hairpin_or_on_their_own_network() {
    for (hairpin, source_is_external) in [("external", Some(true)), ("internal", Some(false)), ("off", None)]
    {
        let mut net = Net::new(3);
        let server = public_host(&mut net);
        let (nat, a) = behind(&mut net, INTERNET, &format!("filtering=eif hairpin={hairpin}"));
        let b = net.add_host(nat, Conditions::PERFECT).unwrap();
        let (at_a, at_b) = (reflexive(&mut net, a, server), reflexive(&mut net, b, server));
        let source = probe(&mut net, (b, 4000), (a, at_a), b"round");
        let local = socket(&net, b, 4000);
        let expected = source_is_external.map(|is_external| if is_external { at_b } else { local });
        assert_eq!(source, expected, "{hairpin}");
        let before = net.nat(nat).unwrap().counters().clone();
        let directly = socket(&net, a, 4000);
        assert_eq!(probe(&mut net, (b, 4000), (a, directly), b"straight"), Some(local));
        assert_eq!(*net.nat(nat).unwrap().counters(), before, "the NAT sees nothing of it");
    }
}

#[test]
fn rebinding_changes_ports_addresses_or_both() {
    for ports in ["random", "preserve", "sequential"] {
        let axes = format!("filtering=eif port-parity=off ports={ports}");
        for (what, port_stays, address_stays) in
            [(Rebind::Ports, false, true), (Rebind::Addresses, true, false), (Rebind::Both, false, false)]
        {
            let mut net = Net::new(4);
            let server = public_host(&mut net);
            let (nat, host) = behind(&mut net, INTERNET, &axes);
            let old = reflexive(&mut net, host, server);
            let external = net.rebind(nat, what, net.now()).unwrap();
            assert_eq!(external, net.external(nat));
            if what == Rebind::Addresses {
                let moved = SocketAddr::from((external[0], old.port()));
                assert!(probe(&mut net, (server.0, 3478), (host, moved), b"still open").is_some(), "{ports}");
            }
            let stale = probe(&mut net, (server.0, 3478), (host, old), b"to the old one");
            assert_eq!(stale, None, "{ports} {what:?}");
            let new = reflexive(&mut net, host, server);
            assert_eq!(new.ip(), external[0]);
            assert_eq!(
                (new.port() == old.port(), new.ip() == old.ip()),
                (port_stays, address_stays),
                "{ports} {what:?}"
            );
        }
    }
}

/// A mapping for each destination, each with its own port, keeps them all on another address; its filter stays shut to
/// strangers.
#[test]
fn a_new_address_keeps_every_session() {
    let mut net = Net::new(5);
    let servers = [(); 3].map(|()| public_host(&mut net));
    let (nat, host) = behind(&mut net, INTERNET, "mapping=apdm filtering=apdf ports=random");
    let old = servers.map(|server| reflexive(&mut net, host, server));
    let [new] = net.rebind(nat, Rebind::Addresses, net.now()).unwrap()[..] else { panic!() };
    for (server, old) in servers.iter().zip(old) {
        let moved = SocketAddr::from((new, old.port()));
        assert_eq!(reflexive(&mut net, host, *server), moved);
        assert_eq!(probe(&mut net, (server.0, 9), (host, moved), b"other port"), None);
        assert!(probe(&mut net, (server.0, 3478), (host, moved), b"same port").is_some());
    }
    assert_eq!(*net.behavior(nat).unwrap(), *net.nat(nat).unwrap().behavior());
}

#[test]
fn a_mapping_dies_of_age_however_busy() {
    let mut net = Net::new(6);
    let server = public_host(&mut net);
    let (nat, host) = behind(&mut net, INTERNET, "ports=random mapping-lifetime=60s");
    let mut endpoints: Vec<(SocketAddr, Time)> = Vec::new();
    for second in 0..300 {
        net.handle_timeout(at(second * 1000));
        let (from, now) = (socket(&net, host, 4000), at(second * 1000));
        net.send(host, Datagram::new(from, server.1, b"keepalive"), now).unwrap();
        let seen = deliveries(&mut net, now + ms(20))[0].from;
        if endpoints.last().is_none_or(|(last, _)| *last != seen) {
            endpoints.push((seen, now));
        }
    }
    let times: Vec<Time> = endpoints.iter().map(|(_, time)| *time).collect();
    assert_eq!(times, [at(0), at(60_000), at(120_000), at(180_000), at(240_000)]);
    assert_eq!(net.nat(nat).unwrap().mapping_count(), 1);
}

#[test]
fn an_idle_mapping_is_given_back_by_its_timer() {
    let mut net = Net::new(6);
    let server = public_host(&mut net);
    let (nat, host) = behind(&mut net, INTERNET, "udp-timeout=30s");
    reflexive(&mut net, host, server);
    assert_eq!(net.nat(nat).unwrap().mapping_count(), 1);
    net.handle_timeout(at(31_000));
    assert_eq!(net.nat(nat).unwrap().mapping_count(), 0);
    assert_eq!(net.poll_timeout(), None, "a quiet net has nothing to do");
}

#[test]
fn behaviour_mappings_and_forwards_change_while_it_runs() {
    let mut net = Net::new(7);
    let (server, stranger) = (public_host(&mut net), public_host(&mut net));
    let (nat, host) = behind(&mut net, INTERNET, "filtering=apdf");
    let seen = reflexive(&mut net, host, server);
    let stranger_gets_in = |net: &mut Net| probe(net, (stranger.0, 1), (host, seen), b"stranger").is_some();
    assert!(!stranger_gets_in(&mut net));
    net.set_behavior(nat, behavior("filtering=eif"), net.now()).unwrap();
    assert!(stranger_gets_in(&mut net));
    assert_eq!(net.flush(nat, &Selection::default(), net.now()), Ok(1));
    assert!(!stranger_gets_in(&mut net));

    let inside = Inside { port: InsideId(0), endpoint: Endpoint::from(socket(&net, host, 80)) };
    let request =
        MappingRequest { protocol: Protocol::Udp, inside, address: None, port: 8080, until: Time::NEVER };
    let (other_nat, other) = behind(&mut net, INTERNET, "");
    assert!(net.nat(other_nat).is_none(), "no packet has come to it");
    let forward = net.add_mapping(nat, request, net.now()).unwrap().0;
    assert!(probe(&mut net, (stranger.0, 1), (host, forward.into()), b"forward").is_some());
    let theirs = Inside { port: InsideId(0), endpoint: Endpoint::from(socket(&net, other, 80)) };
    net.add_mapping(other_nat, MappingRequest { inside: theirs, ..request }, net.now()).unwrap();
    assert!(net.nat(other_nat).is_some());
}

#[test]
fn errors_on_the_way_reach_the_sender_through_its_nats() {
    let mut net = Net::new(8);
    let server = public_host(&mut net);
    let carrier = net.add_nat(INTERNET, NatConfig::carrier(behavior(""))).unwrap();
    let (home, host) = behind(&mut net, carrier, "");
    let from = socket(&net, host, 4000);
    let routers = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(100, 64, 0, 1), Ipv4Addr::new(11, 0, 0, 1)];
    for (hops, router) in routers.into_iter().enumerate() {
        let opener = Datagram { ttl: hops as u8 + 1, ..Datagram::new(from, server.1, b"traceroute") };
        net.send(host, opener, net.now()).unwrap();
        let Some((to, Input::Error(error))) = net.poll_deliver(net.now()) else {
            panic!("{router} is silent")
        };
        assert_eq!(
            (to, error.kind, error.from, error.to),
            (host, IcmpErrorKind::TimeExceeded, from, server.1)
        );
        assert_eq!(error.reporter, router);
    }
    // The link of the home narrows after its NAT has started: the next router speaks up.
    let uplink = net.uplink(home).unwrap();
    net.set_conditions(uplink, Direction::Up, Conditions { mtu: 1000, ..Conditions::PERFECT }, net.now())
        .unwrap();
    net.send(host, Datagram::new(from, server.1, &[0; 1200]), net.now()).unwrap();
    let Some((_, Input::Error(error))) = net.poll_deliver(net.now()) else { panic!("no error") };
    assert_eq!((error.kind, error.from), (IcmpErrorKind::TooBig { mtu: 1000 }, from));
}

#[test]
fn a_router_gives_its_hosts_public_addresses_and_one_link() {
    let mut net = Net::new(9);
    let server = public_host(&mut net);
    let site = net.add_router(INTERNET, (Ipv4Addr::new(192, 0, 2, 1), 24), delay(20)).unwrap();
    let (a, b) = (net.add_host(site, delay(1)).unwrap(), net.add_host(site, delay(1)).unwrap());
    let at_a = socket(&net, a, 4000);
    assert_eq!(at_a.to_string(), "192.0.2.2:4000");
    assert_eq!(reflexive(&mut net, a, server), at_a);
    assert!(probe(&mut net, (server.0, 1), (a, at_a), b"in").is_some());
    let before = net.now();
    net.send(b, Datagram::new(socket(&net, b, 1), at_a, b"next door"), before).unwrap();
    assert_eq!(deliveries(&mut net, before + ms(100))[0].time, before + ms(2));
    // A NAT and its host on the site, seen from outside by the site's address.
    let (nat, host) = behind(&mut net, site, "");
    assert_eq!(reflexive(&mut net, host, server).ip(), net.external(nat)[0]);
    assert_eq!(net.remove_router(site, net.now()), Err(BuildError::InUse(site.into())));
}

#[test]
fn what_cannot_be_built_says_why() {
    let mut net = Net::new(1);
    let host = net.add_host(INTERNET, Attachment::at([203, 0, 113, 5].into())).unwrap();
    let taken = BuildError::AddressTaken { addr: [203, 0, 113, 5].into(), network: INTERNET };
    assert_eq!(net.add_host(INTERNET, Attachment::at([203, 0, 113, 5].into())), Err(taken.clone()));
    let config = NatConfig { external: vec![[203, 0, 113, 5].into()], ..NatConfig::new(behavior("")) };
    assert_eq!(net.add_nat(INTERNET, config.clone()), Err(taken));
    let overlap = NatConfig { external: vec![[10, 0, 0, 7].into()], ..config.clone() };
    assert!(matches!(net.add_nat(INTERNET, overlap), Err(BuildError::Overlap { .. })));
    let twice = NatConfig { external: vec![[203, 0, 113, 6].into(); 2], ..config.clone() };
    assert!(matches!(net.add_nat(INTERNET, twice), Err(BuildError::AddressTaken { .. })));
    let none_left = NatConfig { prefix_len: 30, ..NatConfig::new(behavior("")) };
    let nat: NatId = net.add_nat(INTERNET, none_left).unwrap();
    net.add_host(nat, Conditions::PERFECT).unwrap();
    assert_eq!(net.add_host(nat, Conditions::PERFECT), Err(BuildError::AddressesExhausted(nat.into())));
    let outside = net.add_host(nat, Attachment::at([10, 0, 1, 2].into()));
    assert!(matches!(outside, Err(BuildError::AddressOutside { .. })));
    let mut unlimited = NatConfig::new(behavior(""));
    unlimited.limits.sessions = 0;
    assert_eq!(net.add_nat(INTERNET, unlimited), Err(BuildError::Nat(ConfigError::BadLimits)));
    assert_eq!(
        net.set_external(nat, vec![[203, 0, 113, 5].into()], at(0)).map_err(|e| e.to_string()),
        Err("203.0.113.5 is taken in network 0".to_owned())
    );
    let inside = net.set_external(nat, vec![[10, 0, 0, 3].into()], at(0));
    assert!(matches!(inside, Err(BuildError::Overlap { .. })));
    assert_eq!(net.external(nat).len(), 1, "it keeps what it had");
    net.remove_host(host, at(0));
    net.set_external(nat, vec![[203, 0, 113, 5].into()], at(0)).unwrap();
    let gone = net.add_nat(INTERNET, NatConfig::new(behavior(""))).unwrap();
    net.remove_nat(gone, at(0)).unwrap();
    let error = net.add_host(gone, Conditions::PERFECT).unwrap_err();
    assert!(matches!(error, BuildError::NoSuchNetwork(_)));
}

/// The fragments of a datagram, the last one first, as the far host gets them: sorted by their offsets.
fn reversed(net: &mut Net, from: HostId, ends: (SocketAddr, SocketAddr), to: HostId) -> Vec<(u16, Vec<u8>)> {
    let ip = |addr: SocketAddr| match addr.ip() {
        std::net::IpAddr::V4(addr) => addr.octets(),
        std::net::IpAddr::V6(addr) => panic!("{addr}"),
    };
    let mut whole = Vec::new();
    etherparse::PacketBuilder::ipv4(ip(ends.0), ip(ends.1), 64)
        .udp(ends.0.port(), ends.1.port())
        .write(&mut whole, &[7; 2400])
        .unwrap();
    let (header, payload) = etherparse::Ipv4Header::from_slice(&whole).unwrap();
    for (i, part) in payload.chunks(800).enumerate().rev() {
        let mut header = header.clone();
        (header.dont_fragment, header.more_fragments, header.identification) = (false, i < 3, 9);
        header.fragment_offset = (i as u16 * 100).try_into().unwrap();
        header.set_payload_len(part.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        let packet = [&header.to_bytes()[..], part].concat();
        net.send_packet(from, &packet, net.now()).unwrap();
    }
    let until = net.now() + ms(1000);
    let mut got = Vec::new();
    while let Some((host, input)) = net.poll_deliver(until) {
        let Input::Packet(packet) = input else { panic!("{input:?}") };
        assert_eq!(host, to);
        let (header, payload) = etherparse::Ipv4Header::from_slice(packet).unwrap();
        got.push((header.fragment_offset.byte_offset(), payload.to_vec()));
    }
    got.sort();
    got
}

#[test]
fn fragments_pass_a_nat_both_ways() {
    let mut net = Net::new(1);
    let server = public_host(&mut net);
    let (nat, host) = behind(&mut net, INTERNET, "");
    let external = reflexive(&mut net, host, server);
    let own = socket(&net, host, 4000);
    for (from, ends, to) in [(host, (own, server.1), server.0), (server.0, (server.1, external), host)] {
        let parts = reversed(&mut net, from, ends, to);
        assert_eq!(parts.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [0, 800, 1600, 2400]);
        let port = if to == host { &parts[0].1[2..4] } else { &parts[0].1[..2] };
        let expected = if to == host { own.port() } else { external.port() };
        assert_eq!(port, expected.to_be_bytes(), "the ports of the first are translated");
    }
    let engine = net.nat(nat).unwrap();
    assert_eq!((engine.counters().fragments_delayed, engine.fragments_held()), (6, 0));
    let (nat, host) = behind(&mut net, INTERNET, "fragments=drop");
    let own = socket(&net, host, 4000);
    assert_eq!(reversed(&mut net, host, (own, server.1), server.0), []);
    assert_eq!(net.nat(nat).unwrap().fragments_held(), 0);
}
