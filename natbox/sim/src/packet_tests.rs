use etherparse::{SlicedPacket, TransportSlice};

use super::*;

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const B: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

fn udp(payload: &[u8]) -> Vec<u8> {
    let mut buffer = Vec::new();
    write_udp(&mut buffer, (A, 4000), (B, 53), 64, payload);
    buffer
}

#[test]
fn a_datagram_is_what_etherparse_writes() {
    for payload in [&b""[..], b"x", b"query", &[0xff; 1000]] {
        let mut expected = Vec::new();
        etherparse::PacketBuilder::ipv4(A.octets(), B.octets(), 64)
            .udp(4000, 53)
            .write(&mut expected, payload)
            .unwrap();
        assert_eq!(udp(payload), expected);
    }
}

#[test]
fn a_datagram_reads_back() {
    let packet = udp(b"hello");
    let (from, to) = (SocketAddr::from((A, 4000)), SocketAddr::from((B, 53)));
    assert_eq!(read(&packet, false).unwrap(), Input::Datagram(Datagram::new(from, to, b"hello")));
    assert_eq!(read(&packet, true).unwrap(), Input::Packet(&packet));
    for at in 20..packet.len() {
        let mut damaged = packet.clone();
        damaged[at] ^= 0x10;
        assert!(read(&damaged, false).is_err(), "byte {at} may not change unseen");
    }
}

/// A payload that makes the checksum 0, which is sent as 0xffff, and a packet without a checksum.
#[test]
fn a_checksum_of_zero_has_two_forms() {
    let sum = u16::from_be_bytes(udp(&[0, 0])[26..28].try_into().unwrap());
    let packet = udp(&sum.to_be_bytes());
    assert_eq!(packet[26..28], [0xff, 0xff]);
    assert!(matches!(read(&packet, false), Ok(Input::Datagram(_))));
    let mut without = udp(b"hello");
    without[26..28].fill(0);
    assert!(matches!(read(&without, false), Ok(Input::Datagram(_))));
}

#[test]
fn an_error_reads_back() {
    let original = udp(&[7; 1400]);
    let kinds = [
        (NewError::TimeExceeded, IcmpErrorKind::TimeExceeded),
        (NewError::TooBig(1280), IcmpErrorKind::TooBig { mtu: 1280 }),
        (NewError::PortUnreachable, IcmpErrorKind::Unreachable(3)),
    ];
    for (written, kind) in kinds {
        let mut packet = Vec::new();
        assert!(write_error(&mut packet, B, written, &original));
        assert!(packet.len() <= LONGEST_ERROR);
        let Input::Error(error) = read(&packet, false).unwrap() else {
            panic!("{written:?}", written = kind)
        };
        let expected = IcmpError {
            kind,
            reporter: B.into(),
            protocol: Protocol::Udp,
            from: (A, 4000).into(),
            to: (B, 53).into(),
        };
        assert_eq!(error, expected);
        assert!(!write_error(&mut Vec::new(), A, NewError::TimeExceeded, &packet), "no error about an error");
    }
}

#[test]
fn an_echo_request_becomes_its_reply() {
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4(A.octets(), B.octets(), 9)
        .icmpv4_echo_request(77, 3)
        .write(&mut packet, b"ping")
        .unwrap();
    let header = ipv4::parse(&packet).unwrap();
    answer_echo(&mut packet, &header);
    let sliced = SlicedPacket::from_ip(&packet).unwrap();
    let Some(TransportSlice::Icmpv4(reply)) = sliced.transport else { panic!("{packet:?}") };
    assert_eq!(
        reply.icmp_type(),
        etherparse::Icmpv4Type::EchoReply(etherparse::IcmpEchoHeader { id: 77, seq: 3 })
    );
    assert_eq!((source(&packet), destination(&packet), ttl(&packet)), (B, A, 64));
    assert!(matches!(read(&packet, false), Ok(Input::Packet(_))), "its checksum is right");
}
