//! natbox on the path as a router: ping, traceroute, path MTU discovery, and errors in both directions.

mod common;

use std::net::Ipv4Addr;
use std::process::ExitCode;

use common::pmtu::{IcmpError, Unfragmented};
use common::tools::{connect, ping, receive_all, send_all, text, traceroute};
use common::{PATIENCE, Tested, count, endpoint, reflector, udp};
use netns_lab::harness::{self, Test};
use netns_lab::probe::{self, Source};
use netns_lab::{Host, Lab};

/// ICMP destination unreachable, with two of its codes.
const UNREACHABLE: u8 = 3;
const PORT_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;

/// The private side of the NAT that A is behind, and the internet's own router as a customer sees it.
const N1_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 64, 1, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 254);

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("ping_of_every_size", ping_of_every_size),
        Test::new("the_nat_itself_answers_ping", the_nat_itself_answers_ping),
        Test::new("traceroute_shows_the_nat", traceroute_shows_the_nat),
        Test::new("traceroute_through_two_nats", traceroute_through_two_nats),
        Test::new("a_smaller_uplink_is_told", a_smaller_uplink_is_told),
        Test::new("a_smaller_link_further_out_is_told", a_smaller_link_further_out_is_told),
        Test::new("a_smaller_link_inside_is_told_outside", a_smaller_link_inside_is_told_outside),
        Test::new("a_closed_port_is_told_inside", a_closed_port_is_told_inside),
        Test::new("a_closed_port_is_told_outside", a_closed_port_is_told_outside),
        Test::new("unfragmentable_and_marked_packets_keep_their_marks", marks_are_kept),
    ])
}

fn ping_of_every_size() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "symmetric").start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    // 1,472 bytes of data fill an Ethernet packet.
    for size in ["0", "1", "56", "57", "1471", "1472"] {
        assert!(ping(a, s.addr(), &["-s", size, "-M", "do"])?, "{size} bytes");
    }
    // A hundred in one burst, all with one identifier: one mapping, every answer with its own sequence number.
    let said = text(a, "ping", &["-n", "-q", "-c", "100", "-i", "0.002", "-W", "3", &s.addr().to_string()])?;
    assert!(said.contains(" 0% packet loss") && !said.contains("duplicates"), "{said}");
    let several: Vec<_> =
        (0..4).map(|_| a.spawn("ping", &["-n", "-c", "3", "-i", "0.1", "198.51.100.30"])).collect();
    for process in several {
        let mut process = process?;
        assert!(process.wait(PATIENCE)?.success(), "{}", process.said());
    }
    assert_eq!(count(lab.nat("N1")?, "icmp")?, 11, "one mapping for each identifier");
    Ok(())
}

/// From inside at its private and its public address; from outside at the public one, which it shares with its host or
/// owns.
fn the_nat_itself_answers_ping() -> Tested {
    for (flags, public) in [(&[][..], Ipv4Addr::new(203, 0, 113, 11)), (&[common::EXTERNAL][..], common::OWN)]
    {
        let lab = Lab::up("one-nat").nat("N1", "full-cone").nat_args("N1", flags).start()?;
        let (a, s) = (lab.host("A")?, lab.host("S")?);
        assert!(ping(a, N1_INSIDE, &[])?, "{flags:?}: {N1_INSIDE} from A");
        assert!(ping(s, public, &[])?, "{flags:?}: {public} from S");
    }
    Ok(())
}

fn traceroute_shows_the_nat() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "port-restricted").start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let expected = [N1_INSIDE, ROUTER, s.addr()].map(Some);
    for method in [&[][..], &["-I"], &["-T", "-p", "80"], &["-U", "-p", "53"]] {
        assert_eq!(traceroute(a, s.addr(), method)?, expected, "traceroute {}", method.join(" "));
    }
    Ok(())
}

fn traceroute_through_two_nats() -> Tested {
    let lab = Lab::up("double-nat").nat("N1", "home").nat("N2", "cgnat").start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let expected = [N1_INSIDE, Ipv4Addr::new(100, 64, 0, 1), ROUTER, s.addr()].map(Some);
    for method in [&[][..], &["-I"]] {
        assert_eq!(traceroute(a, s.addr(), method)?, expected, "traceroute {}", method.join(" "));
    }
    Ok(())
}

fn fragmentation_needed(from: Ipv4Addr, mtu: u32) -> Option<IcmpError> {
    Some(IcmpError { from, kind: UNREACHABLE, code: FRAGMENTATION_NEEDED, mtu })
}

/// A full packet is refused by `expected`; one that fits arrives.
fn discovers(from: &Host, to: &Host, expected: Option<IcmpError>) -> Tested {
    let listener = udp(to, 5300)?;
    let probe = Unfragmented::towards(from, endpoint(to.addr(), 5300))?;
    assert_eq!(probe.refused(1500), expected);
    let mtu = expected.expect("an error").mtu;
    assert_eq!(probe.path_mtu(), mtu);
    probe.send(mtu as usize)?;
    let mut buffer = [0; 2048];
    assert_eq!(listener.recv(&mut buffer)?, mtu as usize - 28);
    Ok(())
}

/// A bulk transfer that has to find the path's MTU by itself.
fn transfer_finds_its_way(from: &Host, to: &Host) -> Tested {
    const LENGTH: usize = 3_000_000;
    let listener = to.run(|| std::net::TcpListener::bind((to.addr(), 80)))??;
    let mut stream = connect(from, endpoint(to.addr(), 80))?;
    let (mut accepted, _) = listener.accept()?;
    accepted.set_read_timeout(Some(PATIENCE))?;
    let receiving = to.start(move || receive_all(&mut accepted))?;
    let sent = send_all(&mut stream, 1, LENGTH)?;
    assert_eq!(receiving.join()?, (LENGTH, sent));
    Ok(())
}

/// natbox's own error: its uplink carries less than its TUN.
fn a_smaller_uplink_is_told() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "port-restricted").nat_args("N1", &["--mtu=1500"]).start()?;
    let (a, nat) = (lab.host("A")?, lab.nat("N1")?);
    text(lab.host("N1")?, "ip", &["link", "set", "eth0", "mtu", "1400"])?;
    nat.restart()?;
    discovers(a, lab.host("S")?, fragmentation_needed(N1_INSIDE, 1400))?;
    // To another host, towards which nothing is known yet: super-frames whose segments are too long.
    transfer_finds_its_way(a, lab.host("P")?)
}

/// Another router's error about a packet that natbox has translated.
fn a_smaller_link_further_out_is_told() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "symmetric").start()?;
    let (a, s, p) = (lab.host("A")?, lab.host("S")?, lab.host("P")?);
    for host in [s, p] {
        let to = host.addr().to_string();
        text(lab.host("internet")?, "ip", &["route", "add", &to, "dev", "br0", "mtu", "lock", "1300"])?;
    }
    discovers(a, s, fragmentation_needed(ROUTER, 1300))?;
    transfer_finds_its_way(a, p)
}

/// An error that comes from inside: behind the carrier's NAT, the home's one has a link that carries less. The sender
/// outside gets it from the carrier's public address, about the packet that he sent.
fn a_smaller_link_inside_is_told_outside() -> Tested {
    let lab = Lab::up("double-nat")
        .nat("N1", "full-cone")
        .nat_args("N1", &["--mtu=1300"])
        .nat("N2", "full-cone")
        .start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let reflector = reflector(&lab)?;
    let client = udp(a, 0)?;
    let external = probe::udp_mapping(reflector.endpoints(), &client, Source::Same)?;
    let server = Unfragmented::towards(s, external)?;
    assert_eq!(server.refused(1500), fragmentation_needed(lab.nat("N2")?.addr(), 1300));
    assert_eq!(server.path_mtu(), 1300);
    server.send(1300)?;
    let mut buffer = [0; 2048];
    assert_eq!(client.recv(&mut buffer)?, 1272);
    transfer_down_finds_its_way(&lab)
}

/// P sends to A, through both NATs, with super-frames that are too long for A's link.
fn transfer_down_finds_its_way(lab: &Lab) -> Tested {
    const LENGTH: usize = 3_000_000;
    let (a, p) = (lab.host("A")?, lab.host("P")?);
    let listener = p.run(|| std::net::TcpListener::bind((p.addr(), 80)))??;
    let mut stream = connect(a, endpoint(p.addr(), 80))?;
    let (mut accepted, _) = listener.accept()?;
    let sending = p.start(move || send_all(&mut accepted, 2, LENGTH))?;
    let (length, hash) = receive_all(&mut stream)?;
    assert_eq!((length, hash), (LENGTH, sending.join()?));
    Ok(())
}

fn a_closed_port_is_told_inside() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "symmetric").start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let probe = Unfragmented::towards(a, endpoint(s.addr(), 9))?;
    let expected = IcmpError { from: s.addr(), kind: UNREACHABLE, code: PORT_UNREACHABLE, mtu: 0 };
    assert_eq!(probe.refused(100), Some(expected));
    let refused = connect(a, endpoint(s.addr(), 9)).expect_err("nobody listens there");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{refused}");
    Ok(())
}

/// The stranger outside hears from the NAT's address, not from a private one.
fn a_closed_port_is_told_outside() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "full-cone").start()?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let reflector = reflector(&lab)?;
    let client = udp(a, 0)?;
    let external = probe::udp_mapping(reflector.endpoints(), &client, Source::Same)?;
    drop(client);
    let stranger = Unfragmented::towards(s, external)?;
    let expected = IcmpError { from: nat.addr(), kind: UNREACHABLE, code: PORT_UNREACHABLE, mtu: 0 };
    assert_eq!(stranger.refused(100), Some(expected));
    Ok(())
}

/// TTL goes down by one; DSCP, ECN and DF are nobody's business but the ends'. `ping` prints what it gets back.
fn marks_are_kept() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "symmetric").start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let outside = common::sniffer::Sniffer::start(lab.host("internet")?, "to-N1")?;
    let said =
        text(a, "ping", &["-n", "-c", "1", "-W", "3", "-t", "20", "-Q", "0xb9", &s.addr().to_string()])?;
    // S answers with 64; the internet's router and natbox are on the way.
    assert!(said.contains("ttl=62"), "{said}");
    let nat = lab.nat("N1")?.addr();
    assert!(outside.hears(PATIENCE, |packet| packet.from == nat && packet.to == s.addr()));
    let heard = outside.heard();
    let request = heard.iter().find(|packet| packet.from == nat).expect("it was heard");
    assert_eq!((request.ttl, request.tos), (19, 0xb9));
    Ok(())
}
