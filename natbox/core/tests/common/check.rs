//! The strict checker: whatever the engine forwards or makes is parsed anew by etherparse, and every checksum in it is
//! verified, those of quoted packets too. A partial checksum is completed first, as the kernel would.

use etherparse::{
    Icmpv4Slice, Ipv4Header, LaxSlicedPacket, SlicedPacket, TransportSlice, checksum::Sum16BitWords,
};
use natbox_core::{Endpoint, Protocol, packet::Checksum};

use super::packets::Raw;

/// What a packet says, as etherparse reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub protocol: Protocol,
    /// For queries the identifier is the port of the one who asks.
    pub from: Endpoint,
    pub to: Endpoint,
    pub header: Ipv4Header,
    /// TCP's control bits; 0 elsewhere.
    pub flags: u8,
    /// Of TCP.
    pub sequence: u32,
    /// Of TCP.
    pub acknowledgement: u32,
    /// ICMP's type and code.
    pub icmp: Option<(u8, u8)>,
    /// The MTU that Fragmentation Needed names; 0 elsewhere.
    pub mtu: u16,
    /// Behind the transport header.
    pub payload: Vec<u8>,
    /// What an ICMP error quotes.
    pub quote: Option<Box<View>>,
}

/// Reads a whole packet and verifies all of it.
#[track_caller]
pub fn look(raw: &Raw) -> View {
    let mut view = look_at_the_outside(raw);
    if view.icmp.is_some_and(|(kind, _)| ![0, 8, 13, 14].contains(&kind)) {
        view.quote = Some(Box::new(quoted(&view.payload)));
    }
    view
}

/// The same, but for what is quoted, which may be anybody's nonsense.
#[track_caller]
pub fn look_at_the_outside(raw: &Raw) -> View {
    let mut bytes = raw.bytes.clone();
    if let Checksum::Partial { start, offset } = raw.offload.checksum {
        complete(&mut bytes, start.into(), offset.into());
    }
    let packet = SlicedPacket::from_ip(&bytes).unwrap_or_else(|error| panic!("{error}: {bytes:02x?}"));
    let (header, _) = Ipv4Header::from_slice(&bytes).unwrap();
    assert_eq!(usize::from(header.total_len), bytes.len(), "the total length is the packet's");
    let transport = packet.transport.unwrap_or_else(|| panic!("no transport in {bytes:02x?}"));
    view(header, transport, true)
}

/// Adds the payload to the sum in the checksum field, and complements it: what whoever sends the packet does.
pub fn complete(bytes: &mut [u8], start: usize, offset: usize) {
    let sum = Sum16BitWords::new().add_slice(&bytes[start..]);
    let field = sum.to_ones_complement_with_no_zero();
    let field = if bytes[9] == 6 { sum.ones_complement() } else { field };
    bytes[start + offset..start + offset + 2].copy_from_slice(&field.to_ne_bytes());
}

#[track_caller]
fn view(header: Ipv4Header, transport: TransportSlice<'_>, whole: bool) -> View {
    assert_eq!(header.header_checksum, header.calc_header_checksum(), "IP header checksum");
    let (mut from, mut to) =
        (Endpoint::v4(header.source.into(), 0), Endpoint::v4(header.destination.into(), 0));
    let view = View {
        protocol: Protocol::Icmp,
        from,
        to,
        header: header.clone(),
        flags: 0,
        sequence: 0,
        acknowledgement: 0,
        icmp: None,
        mtu: 0,
        payload: Vec::new(),
        quote: None,
    };
    match transport {
        TransportSlice::Udp(udp) => {
            if whole && udp.checksum() != 0 {
                let right = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
                assert_eq!(udp.checksum(), right, "UDP checksum");
            }
            (from.port, to.port) = (udp.source_port(), udp.destination_port());
            View { protocol: Protocol::Udp, from, to, payload: udp.payload().to_vec(), ..view }
        }
        TransportSlice::Tcp(tcp) => {
            let head = tcp.to_header();
            if whole {
                assert_eq!(
                    tcp.checksum(),
                    head.calc_checksum_ipv4(&header, tcp.payload()).unwrap(),
                    "TCP checksum"
                );
            }
            (from.port, to.port) = (tcp.source_port(), tcp.destination_port());
            let (flags, payload) = (tcp.header_slice()[13], tcp.payload().to_vec());
            let (sequence, acknowledgement) = (head.sequence_number, head.acknowledgment_number);
            View { protocol: Protocol::Tcp, from, to, flags, sequence, acknowledgement, payload, ..view }
        }
        TransportSlice::Icmpv4(icmp) => {
            let sum = Sum16BitWords::new().add_slice(icmp.slice()).ones_complement();
            assert!(!whole || sum == 0, "ICMP checksum");
            query(view, &icmp)
        }
        other => panic!("no transport that a NAT forwards: {other:?}"),
    }
}

#[track_caller]
fn query(mut view: View, icmp: &Icmpv4Slice<'_>) -> View {
    let [a, b, c, d] = icmp.bytes5to8();
    view.icmp = Some((icmp.type_u8(), icmp.code_u8()));
    // etherparse knows the times of a timestamp as its header: they are payload to us.
    view.payload = icmp.slice()[8..].to_vec();
    match icmp.type_u8() {
        8 | 13 => view.from.port = u16::from_be_bytes([a, b]),
        0 | 14 => view.to.port = u16::from_be_bytes([a, b]),
        kind => {
            view.mtu = if (kind, icmp.code_u8()) == (3, 4) { u16::from_be_bytes([c, d]) } else { 0 };
        }
    }
    view
}

/// Reads a quoted packet; where it was quoted whole, its transport checksum must be right as well.
#[track_caller]
fn quoted(bytes: &[u8]) -> View {
    let (header, payload) = Ipv4Header::from_slice(bytes).unwrap();
    let whole = bytes.len() >= header.total_len.into() && !header.is_fragmenting_payload();
    // etherparse reads no transport in a fragment, though the first one has it.
    let mut bytes = bytes.to_vec();
    bytes[6..8].fill(0);
    let packet = LaxSlicedPacket::from_ip(&bytes).unwrap_or_else(|error| panic!("quote: {error}"));
    if let Some(transport) = packet.transport {
        return view(header, transport, whole);
    }
    // Eight bytes of TCP are no header to etherparse, but their ports are there.
    assert_eq!(header.protocol, etherparse::ip_number::TCP, "only TCP can be cut short behind its ports");
    let mut padded = payload.to_vec();
    padded.resize(20, 0);
    padded[12] = 0x50;
    let tcp = etherparse::TcpSlice::from_slice(&padded).unwrap();
    view(header, TransportSlice::Tcp(tcp), false)
}
