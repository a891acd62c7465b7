//! Bulk traffic with and without offload: what arrives is what was sent, to the last byte and the last boundary.

mod common;

use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use common::sniffer::Sniffer;
use common::tools::{Content, connect, receive_all, send_all, set_option};
use common::{PATIENCE, Tested, endpoint, seen, udp};
use netns_lab::harness::{self, Test};
use netns_lab::{Host, Lab, LabError, Nat, wait_until};
use nix::sys::socket::sockopt::{UdpGroSegment, UdpGsoSegment};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt};

/// Bytes of each TCP transfer.
const BULK: usize = 48 << 20;

fn main() -> ExitCode {
    let mut tests = Vec::new();
    let two: &[_] = &["--workers=2"];
    for (name, flags) in [("offload", &[][..]), ("no_offload", &["--no-offload"]), ("two_workers", two)] {
        for topology in ["one-nat", "lan-gateway"] {
            let part = topology.replace('-', "_");
            tests.push(Test::new(format!("{name}_{part}_bulk_tcp"), move || bulk_tcp(topology, flags)));
            tests.push(Test::new(format!("{name}_{part}_udp_bursts"), move || udp_bursts(topology, flags)));
        }
    }
    tests.push(Test::new("bulk_tcp_through_both", bulk_tcp_through_both));
    harness::main(tests)
}

fn start(topology: &str, flags: &[&str]) -> Result<Lab, LabError> {
    // What programs in the kernel move is not seen by the datapath that is meant here.
    Lab::up(topology)
        .nat("N1", "port-restricted")
        .nat_args("N1", &[flags, &["--fast-path=off"]].concat())
        .start()
}

/// A counter of the datapath, over all ports.
fn counted(nat: &Nat, counter: &str) -> Result<u64, Box<dyn std::error::Error + Send + Sync>> {
    let state: serde_json::Value = serde_json::from_str(&nat.control(&["show", "--ports", "--json"])?)?;
    let ports = state["ports"].as_array().ok_or("natbox shows its ports")?;
    let counts =
        ports.iter().map(|port| port["counters"][counter].as_u64().ok_or(format!("no {counter} in {port}")));
    Ok(counts.sum::<Result<u64, String>>()?)
}

/// One transfer each way at the same time.
fn transfer(a: &Host, s: &Host) -> Tested {
    let listener = s.run(|| std::net::TcpListener::bind((s.addr(), 80)))??;
    let open = || -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
        let client = connect(a, endpoint(s.addr(), 80))?;
        let (server, _) = listener.accept()?;
        server.set_read_timeout(Some(PATIENCE))?;
        Ok((client, server))
    };
    let ((mut up, mut from_a), (mut down, mut to_a)) = (open()?, open()?);
    let sending_up = a.start(move || send_all(&mut up, 1, BULK))?;
    let sending_down = s.start(move || send_all(&mut to_a, 2, BULK))?;
    let receiving_down = a.start(move || receive_all(&mut down))?;
    let received_up = receive_all(&mut from_a)?;
    assert_eq!(received_up, (BULK, sending_up.join()?), "from A");
    assert_eq!(receiving_down.join()?, (BULK, sending_down.join()?), "to A");
    Ok(())
}

fn bulk_tcp(topology: &str, flags: &[&str]) -> Tested {
    let lab = start(topology, flags)?;
    let nat = lab.nat("N1")?;
    let outside = Sniffer::start(lab.host("internet")?, "to-N1")?;
    transfer(lab.host("A")?, lab.host("S")?)?;

    // Whole super-frames with offload; none without, where the wire shows what its MTU allows.
    let longest = outside.heard().iter().filter(|it| it.from == nat.addr()).map(|it| it.length).max();
    let sent = counted(nat, "sent-super-frames")?;
    if !flags.contains(&"--no-offload") {
        assert!(sent > 100 && longest > Some(1500), "{sent} super-frames, the longest packet {longest:?}");
    } else {
        assert!(sent == 0 && longest == Some(1500), "{sent} super-frames, the longest packet {longest:?}");
    }
    Ok(())
}

/// The packets of one NAT are what the other one gets: super-frames become packets between them, and the other way
/// round.
fn bulk_tcp_through_both() -> Tested {
    for (one, other) in [(&["--no-offload"][..], &[][..]), (&[][..], &["--no-offload"][..])] {
        let lab = Lab::up("double-nat")
            .nat("N1", "home")
            .nat_args("N1", one)
            .nat("N2", "cgnat")
            .nat_args("N2", other)
            .start()?;
        transfer(lab.host("A")?, lab.host("S")?)?;
    }
    Ok(())
}

const SEGMENT: usize = 1200;
const SEGMENTS: usize = 30;
const TAIL: usize = 701;
const BURST: usize = SEGMENTS * SEGMENT + TAIL;

/// One buffer sent as a burst of datagrams (`UDP_SEGMENT`), received both as datagrams and, where the receiver asks for
/// it (`UDP_GRO`), in larger pieces whose boundaries the kernel tells.
fn udp_bursts(topology: &str, flags: &[&str]) -> Tested {
    let lab = start(topology, flags)?;
    let (a, s, nat) = (lab.host("A")?, lab.host("S")?, lab.nat("N1")?);
    let (client, server) = (udp(a, 0)?, udp(s, 53)?);
    let outside = seen(&client, endpoint(s.addr(), 53), &server, b"hello")?;
    for socket in [&client, &server] {
        // A burst must fit into the buffer while the receiver is not running.
        set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, 1 << 21)?;
        setsockopt(socket, UdpGsoSegment, &(SEGMENT as i32))?;
    }
    let up = (&client, endpoint(s.addr(), 53), &server);
    let down = (&server, outside, &client);
    for (way, by_ethernet) in [(up, topology == "lan-gateway"), (down, true)] {
        if by_ethernet && flags.contains(&"--no-offload") {
            burst_is_lost(way, nat)?;
        } else {
            bursts_arrive(way)?;
        }
    }
    for socket in [&client, &server] {
        setsockopt(socket, UdpGsoSegment, &0)?;
    }
    every_size_arrives(&client, &server, &lab)
}

type Way<'a> = (&'a UdpSocket, SocketAddr, &'a UdpSocket);

fn bursts_arrive((from, to, at): Way<'_>) -> Tested {
    for round in 0..20 {
        let mut burst = vec![0; BURST];
        Content::new(round).fill(&mut burst);
        assert_eq!(from.send_to(&burst, to)?, BURST);
        let mut buffer = [0; 2048];
        for datagram in burst.chunks(SEGMENT) {
            let length = at.recv(&mut buffer)?;
            assert!(buffer[..length] == *datagram, "{length} bytes instead of {}", datagram.len());
        }
    }
    setsockopt(at, UdpGroSegment, &true)?;
    for round in 0..20 {
        let mut burst = vec![0; BURST];
        Content::new(round).fill(&mut burst);
        from.send_to(&burst, to)?;
        let pieces = receive_pieces(at, BURST)?;
        let (arrived, datagrams) = (pieces.concat(), pieces.iter().map(Vec::len).collect::<Vec<_>>());
        assert!(arrived == burst, "another content, in datagrams of {datagrams:?}");
        assert_eq!(datagrams[..SEGMENTS], [SEGMENT; SEGMENTS]);
    }
    setsockopt(at, UdpGroSegment, &false)?;
    Ok(())
}

/// A plain packet socket is not told where the datagrams of a super-frame begin: natbox drops it and counts that, and
/// doesn't pass it on as one large datagram.
fn burst_is_lost((from, to, at): Way<'_>, nat: &Nat) -> Tested {
    let before = counted(nat, "dropped-offload")?;
    from.send_to(&[7; BURST], to)?;
    let lost =
        wait_until(PATIENCE, || counted(nat, "dropped-offload").is_ok_and(|count| count == before + 1));
    assert!(lost, "not counted");
    from.send_to(b"single", to)?;
    let mut buffer = [0; 2048];
    let length = at.recv(&mut buffer)?;
    assert_eq!(&buffer[..length], b"single", "something of it arrived");
    Ok(())
}

/// Datagrams until there are `length` bytes of them, as they were cut by the sender.
fn receive_pieces(
    socket: &UdpSocket,
    length: usize,
) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut pieces, mut have) = (Vec::new(), 0);
    let mut buffer = vec![0; 65_536];
    let mut space = nix::cmsg_space!(i32);
    while have < length {
        let (received, segment) = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let message =
                recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::empty())?;
            let segment = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::UdpGroSegments(size) => usize::try_from(size).ok(),
                _ => None,
            });
            (message.bytes, segment)
        };
        pieces.extend(buffer[..received].chunks(segment.unwrap_or(received).max(1)).map(<[u8]>::to_vec));
        have += received;
    }
    Ok(pieces)
}

/// Odd lengths (the last byte of a checksum stands alone), the empty datagram, the longest one, and none with a checksum.
fn every_size_arrives(client: &UdpSocket, server: &UdpSocket, lab: &Lab) -> Tested {
    let to = endpoint(lab.host("S")?.addr(), 53);
    for without_checksum in [0, 1] {
        set_option(client, libc::SOL_SOCKET, libc::SO_NO_CHECK, without_checksum)?;
        for length in (0..=1472).step_by(23) {
            let mut content = vec![0; length];
            Content::new(length as u64).fill(&mut content);
            let source = seen(client, to, server, &content)?;
            assert_eq!(seen(server, source, client, &content)?, to);
        }
    }
    Ok(())
}
