//! Ways through natbox: two NATs in a row and face to face, a LAN, hosts that share an address, static forwards.

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::ExitCode;

use common::tools::{Echo, answers, connect, exchange, ping, text};
use common::{PATIENCE, Tested, drops, endpoint, instead_of, mappings, reflector, seen, udp};
use netns_lab::harness::{self, Test};
use netns_lab::probe::{self, Classification, Filtering, Mapping, Source};
use netns_lab::{Host, Lab, wait_until};

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("double_nat", double_nat),
        Test::new("the_stricter_of_two_nats_is_seen", the_stricter_of_two_nats_is_seen),
        Test::new("a_lan_gateway", a_lan_gateway),
        Test::new("hosts_with_one_address", hosts_with_one_address),
        Test::new("forwards", forwards),
        Test::new("udp_holes_are_punched", udp_holes_are_punched),
        Test::new("tcp_opens_from_both_sides", || tcp_opens_from_both_sides(["drop", "drop"])),
        Test::new("tcp_opens_from_both_sides_of_patient_nats", || {
            tcp_opens_from_both_sides(["wait", "wait"])
        }),
        Test::new("tcp_opens_although_one_nat_resets", || tcp_opens_from_both_sides(["drop", "reset"])),
    ])
}

/// UDP, TCP and ping from a host to S's echo on port 7.
fn reaches(from: &Host, to: Ipv4Addr) -> Tested {
    let name = from.name();
    assert!(ping(from, to, &[])?, "{name}: ping");
    assert!(answers(&udp(from, 0)?, endpoint(to, 7), PATIENCE), "{name}: UDP");
    exchange(&mut connect(from, endpoint(to, 7))?, b"hello")?;
    Ok(())
}

fn double_nat() -> Tested {
    let lab = Lab::up("double-nat").nat("N1", "home").nat("N2", "cgnat").start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let echo = Echo::start(s, 7)?;
    reaches(a, s.addr())?;
    drop(echo);

    // A's endpoint becomes one of N1's, and that one of N2's.
    let (listener, client) = (udp(s, 53)?, udp(a, 4242)?);
    let source = seen(&client, endpoint(s.addr(), 53), &listener, b"who am I?")?;
    assert_eq!(source.ip(), IpAddr::from(lab.nat("N2")?.addr()));
    let step = |nat: &str,
                inside: SocketAddr|
     -> Result<SocketAddr, Box<dyn std::error::Error + Send + Sync>> {
        let all = mappings(lab.nat(nat)?)?;
        let ours = all.iter().find(|it| it["protocol"] == "udp" && it["inside"] == inside.to_string());
        let external = ours.ok_or(format!("{nat} has no mapping of {inside}: {all:?}"))?["external"].as_str();
        Ok(external.ok_or("an endpoint")?.parse()?)
    };
    let between = step("N1", client.local_addr()?)?;
    assert_eq!(between.ip(), IpAddr::from(lab.nat("N1")?.addr()));
    assert_eq!(step("N2", between)?, source);
    Ok(())
}

fn the_stricter_of_two_nats_is_seen() -> Tested {
    let judged = |n1: &str, n2: &str| -> Result<Classification, Box<dyn std::error::Error + Send + Sync>> {
        let lab = Lab::up("double-nat").nat("N1", n1).nat("N2", n2).start()?;
        let (reflector, a) = (reflector(&lab)?, lab.host("A")?);
        Ok(a.run(|| probe::udp(reflector.endpoints(), a.addr().into()))??)
    };
    let class = judged("port-restricted", "full-cone")?;
    let pair = (class.mapping, class.filtering);
    assert_eq!(pair, (Mapping::EndpointIndependent, Filtering::AddressAndPortDependent), "{class}");
    let class = judged("full-cone", "symmetric")?;
    let pair = (class.mapping, class.filtering);
    assert_eq!(pair, (Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent), "{class}");
    Ok(())
}

/// Hosts on an Ethernet whose only gateway is natbox, at an address that nobody but natbox answers for.
fn a_lan_gateway() -> Tested {
    let lab = Lab::up("lan-gateway").nat("N1", "port-restricted").start()?;
    let (a, b, s, nat) = (lab.host("A")?, lab.host("B")?, lab.host("S")?, lab.nat("N1")?);
    let gateway = Ipv4Addr::new(192, 168, 1, 1);
    let _echo = [Echo::start(s, 7)?, Echo::start(b, 7)?];
    for host in [a, b] {
        reaches(host, s.addr())?;
        assert!(ping(host, gateway, &[])?, "{}: the gateway", host.name());
    }
    // The gateway's Ethernet address is that of the interface that natbox listens on.
    let known = text(a, "ip", &["neigh", "show", "192.168.1.1"])?;
    let told = text(lab.host("N1")?, "ip", &["-brief", "link", "show", "lan0"])?;
    let mac = told.split_whitespace().nth(2).unwrap_or("no address");
    assert!(known.contains(mac), "A knows {known}, lan0 is {told}");
    // Neighbours speak to each other without the NAT, also when they know its address as a router.
    let before = nat.show()?["counters"]["outbound-packets"].as_u64();
    reaches(a, b.addr())?;
    assert_eq!(nat.show()?["counters"]["outbound-packets"].as_u64(), before);
    Ok(())
}

/// Two namespaces that both are 10.64.1.2, behind TUNs of the same name: the NAT tells them apart by their uplinks.
fn hosts_with_one_address() -> Tested {
    let lab = Lab::up("hairpin").start()?;
    let (a, b, s, nat) = (lab.host("A")?, lab.host("B")?, lab.host("S")?, lab.nat("N1")?);
    let inside = |host: &Host| format!("--inside=tun0@{}=10.64.1.2/24", host.netns());
    let arguments = ["--outside=eth0", &inside(a), &inside(b), "--nat=full-cone"];
    let _natbox = instead_of(nat, lab.host("N1")?, &arguments)?;

    let _echo = Echo::start(s, 7)?;
    let listener = udp(s, 53)?;
    let address = Ipv4Addr::new(10, 64, 1, 2);
    let mut sources = Vec::new();
    for (host, word) in [(a, b"I am A"), (b, b"I am B")] {
        assert!(ping(host, s.addr(), &[])?);
        let client = host.run(|| UdpSocket::bind((address, 4242)))??;
        client.set_read_timeout(Some(PATIENCE))?;
        let source = seen(&client, endpoint(s.addr(), 53), &listener, word)?;
        sources.push((client, source, word));
        let mut stream = connect(host, endpoint(s.addr(), 7))?;
        exchange(&mut stream, word)?;
    }
    let [(_, one, _), (_, other, _)] = &sources[..] else { unreachable!("two hosts") };
    assert_ne!(one, other, "two hosts, one external endpoint");
    for (client, source, word) in &sources {
        assert_eq!(seen(&listener, *source, client, *word)?, endpoint(s.addr(), 53));
    }
    let udp: Vec<_> =
        mappings(nat)?.into_iter().filter(|mapping| mapping["inside"] == "10.64.1.2:4242").collect();
    let mut ports: Vec<_> = udp.iter().map(|mapping| mapping["inside_port"].as_u64()).collect();
    ports.sort();
    assert_eq!(ports, [Some(0), Some(1)], "{udp:?}");
    Ok(())
}

/// From the start and while it runs; on the shared address; flushed only when that is asked for.
fn forwards() -> Tested {
    let lab = Lab::up("one-nat")
        .nat("N1", "symmetric")
        .nat_args("N1", &["--forward=tcp:8080=10.64.1.2:80", "--forward=udp:5353=10.64.1.2:53"])
        .start()?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let _servers = [Echo::start(a, 80)?, Echo::start(a, 53)?];
    let tcp = |port| {
        connect(s, endpoint(nat.addr(), port)).and_then(|mut stream| exchange(&mut stream, b"forward"))
    };
    let udp_to = |port| {
        Ok::<_, netns_lab::LabError>(answers(
            &udp(s, 0).expect("a port"),
            endpoint(nat.addr(), port),
            PATIENCE,
        ))
    };
    tcp(8080)?;
    assert!(udp_to(5353)?);
    nat.flush()?;
    tcp(8080)?;

    nat.control(&["forward", "add", "tcp:8081=10.64.1.2:53"])?;
    tcp(8081)?;
    nat.control(&["forward", "remove", "tcp:8080"])?;
    let refused = tcp(8080).expect_err("the forward is gone");
    assert_eq!(
        refused.kind(),
        std::io::ErrorKind::ConnectionRefused,
        "the port is the host's again: {refused}"
    );
    nat.control(&["flush", "--forwards"])?;
    assert!(tcp(8081).is_err());
    Ok(())
}

/// A and S learn each other's external endpoints from P and send to each other: any two port-restricted cones.
fn udp_holes_are_punched() -> Tested {
    let lab = Lab::up("two-nats").nat("N1", "port-restricted").nat("N2", "port-restricted").start()?;
    let reflector = reflector(&lab)?;
    let (at_a, at_s, n2) = (udp(lab.host("A")?, 0)?, udp(lab.host("S")?, 0)?, lab.nat("N2")?);
    let external = |socket: &UdpSocket| probe::udp_mapping(reflector.endpoints(), socket, Source::Same);
    let (a, s) = (external(&at_a)?, external(&at_s)?);
    // Dropped by N2, whose host has not yet sent anything to A; it opens N1's filter.
    at_a.send_to(b"opener", s)?;
    assert!(
        wait_until(PATIENCE, || drops(n2, "filtered").is_ok_and(|count| count > 0)),
        "N2 lets strangers in"
    );
    assert_eq!(seen(&at_s, a, &at_a, b"from S")?, s);
    assert_eq!(seen(&at_a, s, &at_s, b"from A")?, a);
    Ok(())
}

/// Neither side listens (RFC 5382 §4.2). A NAT that answers a stray SYN by a reset only makes it take longer.
fn tcp_opens_from_both_sides(unsolicited: [&str; 2]) -> Tested {
    let [n1, n2] = unsolicited.map(|what| format!("--unsolicited-syn={what}"));
    let lab = Lab::up("two-nats")
        .nat("N1", "port-restricted")
        .nat_args("N1", &[n1])
        .nat("N2", "port-restricted")
        .nat_args("N2", &[n2])
        .start()?;
    let reflector = reflector(&lab)?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let mapping = |host: &Host| host.run(|| probe::tcp_mapping(reflector.endpoints(), host.addr().into()));
    let (at_a, at_s) = (mapping(a)??, mapping(s)??);
    let (local, remote) = (at_a.local, at_s.external);
    let calling = a.start(move || probe::tcp_simultaneous_open(local, remote, PATIENCE))?;
    let called = s.run(|| probe::tcp_simultaneous_open(at_s.local, at_a.external, PATIENCE))?;
    let (mut calling, mut called): (TcpStream, TcpStream) = (calling.join()?, called?);
    assert_eq!((calling.peer_addr()?, called.peer_addr()?), (at_s.external, at_a.external));
    // More than a handshake crosses it.
    let sent = common::tools::send_all(&mut calling, 3, 500_000)?;
    assert_eq!(common::tools::receive_all(&mut called)?, (500_000, sent));
    Ok(())
}
