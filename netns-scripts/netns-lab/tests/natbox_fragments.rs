//! Fragments through natbox, made and put together by the kernels at both ends: long datagrams and pings, fragments in
//! reverse, and what natbox itself has to cut.

mod common;

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::process::ExitCode;

use common::tools::{Echo, ping, set_option, text};
use common::{EXTERNAL, Tested, count, drops, endpoint, seen, udp};
use etherparse::{Ipv4Header, PacketBuilder};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab};
use socket2::{Domain, Protocol, Socket, Type};

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("long_datagrams_through_a_tun", || long_datagrams("one-nat", &[])),
        Test::new("long_datagrams_at_an_address_of_its_own", || long_datagrams("one-nat", &[EXTERNAL])),
        Test::new("long_datagrams_from_a_lan", || long_datagrams("lan-gateway", &[])),
        Test::new("long_datagrams_without_offload", || long_datagrams("lan-gateway", &["--no-offload"])),
        Test::new("long_datagrams_through_two_workers", || long_datagrams("one-nat", &["--workers=2"])),
        Test::new("long_datagrams_from_a_lan_through_two_workers", || {
            long_datagrams("lan-gateway", &["--workers=2"])
        }),
        Test::new("fragments_in_reverse", || fragments_in_reverse(&[])),
        Test::new("fragments_in_reverse_through_two_workers", || fragments_in_reverse(&["--workers=2"])),
        Test::new("what_is_too_big_is_cut", what_is_too_big_is_cut),
        Test::new("aws_passes_those_of_udp_only", aws_passes_those_of_udp_only),
    ])
}

/// Datagrams and pings of several fragments, there and back.
fn long_datagrams(topology: &str, flags: &[&str]) -> Tested {
    let lab = Lab::up(topology).nat("N1", "rfc").nat_args("N1", flags).start()?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let _echo = Echo::start(s, 7)?;
    let socket = udp(a, 0)?;
    for length in [1472, 1473, 4000, 9000, 65_000] {
        let sent: Vec<u8> = (0..length).map(|i| (i / 7) as u8).collect();
        socket.send_to(&sent, endpoint(s.addr(), 7))?;
        let mut heard = vec![0; 65_536];
        let (got, _) = socket.recv_from(&mut heard)?;
        assert!(heard[..got] == sent, "{length} bytes came back as {got}");
    }
    for size in ["1473", "4000", "20000"] {
        assert!(ping(a, s.addr(), &["-s", size])?, "{size} bytes");
    }
    assert!(ping(a, lab.host("P")?.addr(), &["-s", "4000", "-c", "3", "-i", "0.1"])?);
    if flags.contains(&EXTERNAL) {
        assert!(ping(s, common::OWN, &["-s", "4000"])?, "natbox itself answers");
    }
    assert_eq!(count(nat, "udp")?, 1);
    Ok(())
}

/// Sends the fragments of a UDP datagram, the last one first.
fn send_reversed(host: &Host, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Tested {
    let mut whole = Vec::new();
    PacketBuilder::ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port())
        .write(&mut whole, payload)?;
    let (header, rest) = Ipv4Header::from_slice(&whole)?;
    let raw =
        host.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))))??;
    let parts: Vec<_> = rest.chunks(1000).collect();
    for (i, part) in parts.iter().enumerate().rev() {
        let mut header = header.clone();
        (header.identification, header.dont_fragment) = (4711, false);
        header.fragment_offset = (i as u16 * 125).try_into()?;
        header.more_fragments = i + 1 < parts.len();
        header.set_payload_len(part.len())?;
        let packet = [&header.to_bytes()[..], part].concat();
        raw.send_to(&packet, &SocketAddr::V4(to).into())?;
    }
    Ok(())
}

fn v4(addr: SocketAddr) -> SocketAddrV4 {
    match addr {
        SocketAddr::V4(addr) => addr,
        SocketAddr::V6(_) => panic!("the laboratory is IPv4"),
    }
}

fn fragments_in_reverse(flags: &[&str]) -> Tested {
    for topology in ["one-nat", "lan-gateway"] {
        let lab = Lab::up(topology).nat("N1", "rfc").nat_args("N1", flags).start()?;
        let (a, s) = (lab.host("A")?, lab.host("S")?);
        let (inside, outside) = (udp(a, 5000)?, udp(s, 5300)?);
        let external = seen(&inside, outside.local_addr()?, &outside, b"open")?;
        let payload: Vec<u8> = (0..5000).map(|i| (i / 11) as u8).collect();
        let mut heard = vec![0; 65_536];

        send_reversed(a, v4(inside.local_addr()?), v4(outside.local_addr()?), &payload)?;
        let (length, from) = outside.recv_from(&mut heard)?;
        assert!(heard[..length] == payload && from == external, "{length} bytes from {from}");

        send_reversed(s, v4(outside.local_addr()?), v4(external), &payload)?;
        let (length, from) = inside.recv_from(&mut heard)?;
        assert!(heard[..length] == payload && from == outside.local_addr()?, "{length} bytes from {from}");
        let shown = lab.nat("N1")?.show()?;
        assert_eq!(shown["counters"]["fragments-delayed"], 10, "{shown}");
    }
    Ok(())
}

/// A socket whose datagrams may be fragmented on their way.
fn fragmentable(socket: UdpSocket) -> Result<UdpSocket, Box<dyn std::error::Error + Send + Sync>> {
    set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)?;
    Ok(socket)
}

/// The uplink carries 1,400 bytes, the TUN 1,500; and then the other way round.
fn what_is_too_big_is_cut() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "rfc").nat_args("N1", &["--mtu=1500"]).start()?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    text(lab.host("N1")?, "ip", &["link", "set", "eth0", "mtu", "1400"])?;
    nat.restart()?;
    let (inside, outside) = (fragmentable(udp(a, 0)?)?, udp(s, 5300)?);
    let mut heard = vec![0; 2048];
    for length in [1372, 1373, 1472] {
        inside.send_to(&vec![length as u8; length], outside.local_addr()?)?;
        let (got, _) = outside.recv_from(&mut heard)?;
        assert!(got == length && heard[..got] == vec![length as u8; length], "{got} of {length} bytes");
    }
    assert_eq!(nat.show()?["counters"]["fragments-made"], 4);

    let lab = Lab::up("one-nat").nat("N1", "rfc").nat_args("N1", &["--mtu=1000"]).start()?;
    let (a, s) = (lab.host("A")?, lab.host("S")?);
    let (inside, outside) = (udp(a, 0)?, fragmentable(udp(s, 5300)?)?);
    let external = seen(&inside, outside.local_addr()?, &outside, b"open")?;
    for length in [972, 973, 1472] {
        outside.send_to(&vec![length as u8; length], external)?;
        let (got, _) = inside.recv_from(&mut heard)?;
        assert!(got == length && heard[..got] == vec![length as u8; length], "{got} of {length} bytes");
    }
    assert_eq!(lab.nat("N1")?.show()?["counters"]["fragments-made"], 4);
    Ok(())
}

fn aws_passes_those_of_udp_only() -> Tested {
    let lab = Lab::up("one-nat").nat("N1", "aws").start()?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let _echo = Echo::start(s, 7)?;
    let socket = udp(a, 0)?;
    socket.send_to(&[5; 4000], endpoint(s.addr(), 7))?;
    let mut heard = vec![0; 65_536];
    assert_eq!(socket.recv(&mut heard)?, 4000);
    assert!(ping(a, s.addr(), &["-s", "1000"])?);
    assert!(!ping(a, s.addr(), &["-s", "4000", "-W", "1"])?);
    assert!(drops(nat, "fragment")? >= 3);
    Ok(())
}
