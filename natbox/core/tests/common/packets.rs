//! Packets as hosts send them, built by etherparse.

use etherparse::{Icmpv4Type, Ipv4Header, PacketBuilder, TcpHeader, checksum::Sum16BitWords};
use natbox_core::{
    Endpoint, Protocol,
    packet::{Checksum, Gso, GsoKind, Offload, Packet},
};

use super::v4;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;
pub const SYN_ACK: u8 = SYN | ACK;
pub const FIN_ACK: u8 = FIN | ACK;

/// An IP packet with its offload metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    pub bytes: Vec<u8>,
    pub offload: Offload,
}

impl Raw {
    pub fn new(bytes: Vec<u8>) -> Raw {
        Raw { bytes, offload: Offload::default() }
    }

    /// Hands the packet to `engine`; afterwards it holds what the engine left.
    pub fn through<T>(&mut self, engine: impl FnOnce(&mut Packet<'_>) -> T) -> T {
        let mut packet = Packet::new(&mut self.bytes, 0, self.offload);
        let result = engine(&mut packet);
        let len = packet.len();
        self.bytes.truncate(len);
        result
    }

    fn header_len(&self) -> usize {
        usize::from(self.bytes[0] & 0x0f) * 4
    }

    /// The IP header, whose checksum is right.
    #[track_caller]
    pub fn header(&self) -> Ipv4Header {
        let (header, _) = Ipv4Header::from_slice(&self.bytes).unwrap();
        assert_eq!(header.header_checksum, header.calc_header_checksum(), "IP header checksum");
        assert_eq!(usize::from(header.total_len), self.bytes.len(), "the total length is the packet's");
        header
    }

    /// The packet with another IP header; its checksum is computed anew.
    pub fn ip(self, change: impl FnOnce(&mut Ipv4Header)) -> Raw {
        let (mut header, payload) = Ipv4Header::from_slice(&self.bytes).unwrap();
        change(&mut header);
        header.set_payload_len(payload.len()).unwrap();
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        Raw { bytes, offload: self.offload }
    }

    pub fn ttl(self, ttl: u8) -> Raw {
        self.ip(|header| header.time_to_live = ttl)
    }

    /// With a router-alert option, so that the header is 24 bytes long.
    pub fn with_options(self) -> Raw {
        self.ip(|header| header.options = [0x94, 0x04, 0, 0].into())
    }

    /// Without a UDP checksum, as IPv4 allows.
    pub fn without_checksum(mut self) -> Raw {
        let at = self.header_len() + 6;
        self.bytes[at..at + 2].fill(0);
        self
    }

    /// As a kernel with checksum offload leaves it: the field holds the uncomplemented sum of the pseudo-header.
    pub fn partial(mut self) -> Raw {
        let header_len = self.header_len();
        let offset = if self.bytes[9] == 17 { 6 } else { 16 };
        let length = (self.bytes.len() - header_len) as u16;
        let sum = Sum16BitWords::new()
            .add_slice(&self.bytes[12..20])
            .add_2bytes([0, self.bytes[9]])
            .add_2bytes(length.to_be_bytes())
            .ones_complement();
        // etherparse sums in the machine's byte order.
        self.bytes[header_len + offset..header_len + offset + 2].copy_from_slice(&(!sum).to_ne_bytes());
        self.offload.checksum = Checksum::Partial { start: header_len as u16, offset: offset as u16 };
        self
    }

    /// As a super-frame that will be cut into pieces with so many bytes of payload.
    pub fn gso(mut self, segment: u16) -> Raw {
        let kind = if self.bytes[9] == 17 { GsoKind::Udp } else { GsoKind::TcpV4 };
        self = self.partial();
        self.offload.gso = Some(Gso { kind, segment, header_len: 0, ecn: false });
        self
    }

    pub fn flip(mut self, byte: usize) -> Raw {
        self.bytes[byte] ^= 1;
        self
    }
}

/// Whether a packet is a part of a datagram.
pub fn is_fragment(raw: &Raw) -> bool {
    Ipv4Header::from_slice(&raw.bytes).is_ok_and(|(header, _)| header.is_fragmenting_payload())
}

/// The fragments of a packet, each with so many bytes of payload, a multiple of 8.
pub fn fragments(raw: &Raw, id: u16, step: usize) -> Vec<Raw> {
    let (header, payload) = Ipv4Header::from_slice(&raw.bytes).unwrap();
    let count = payload.len().div_ceil(step);
    let piece = |(i, part): (usize, &[u8])| {
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(part);
        Raw::new(bytes).ip(|header| {
            header.dont_fragment = false;
            header.identification = id;
            header.more_fragments = i + 1 < count;
            header.fragment_offset = ((i * step / 8) as u16).try_into().unwrap();
        })
    };
    payload.chunks(step).enumerate().map(piece).collect()
}

/// The packet that fragments in any order make; `None` when one is missing.
#[track_caller]
pub fn reassembled(pieces: &[Raw]) -> Option<Raw> {
    let mut sorted: Vec<_> = pieces.iter().map(|piece| (piece.header(), piece)).collect();
    sorted.sort_by_key(|(header, _)| header.fragment_offset);
    let (first, _) = sorted.first()?.clone();
    let mut payload = Vec::new();
    for (i, (header, piece)) in sorted.iter().enumerate() {
        let same =
            |header: &Ipv4Header| (header.source, header.destination, header.protocol, header.identification);
        assert_eq!(same(header), same(&first), "one datagram's");
        if usize::from(header.fragment_offset.byte_offset()) != payload.len()
            || header.more_fragments != (i + 1 < sorted.len())
        {
            return None;
        }
        payload.extend_from_slice(&piece.bytes[header.header_len()..]);
    }
    let mut bytes = first.to_bytes().to_vec();
    bytes.extend_from_slice(&payload);
    Some(Raw::new(bytes).ip(|header| header.more_fragments = false))
}

fn written(write: impl FnOnce(&mut Vec<u8>) -> Result<(), etherparse::err::packet::BuildWriteError>) -> Raw {
    let mut bytes = Vec::new();
    write(&mut bytes).unwrap();
    Raw::new(bytes)
}

fn ip(from: Endpoint, to: Endpoint) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ipv4(v4(from).octets(), v4(to).octets(), 64)
}

pub fn udp(from: Endpoint, to: Endpoint, payload: &[u8]) -> Raw {
    written(|bytes| ip(from, to).udp(from.port, to.port).write(bytes, payload))
}

pub fn tcp(from: Endpoint, to: Endpoint, flags: u8, payload: &[u8]) -> Raw {
    let mut header = TcpHeader::new(from.port, to.port, 1_000, 8_192);
    header.fin = flags & FIN != 0;
    header.syn = flags & SYN != 0;
    header.rst = flags & RST != 0;
    header.ack = flags & ACK != 0;
    header.acknowledgment_number = if header.ack { 5_000 } else { 0 };
    written(|bytes| ip(from, to).tcp_header(header).write(bytes, payload))
}

pub fn echo(from: Endpoint, to: Endpoint, payload: &[u8]) -> Raw {
    written(|bytes| ip(from, to).icmpv4_echo_request(from.port, 7).write(bytes, payload))
}

pub fn echo_reply(from: Endpoint, to: Endpoint, payload: &[u8]) -> Raw {
    written(|bytes| ip(from, to).icmpv4_echo_reply(to.port, 7).write(bytes, payload))
}

/// Timestamp and Timestamp Reply (RFC 792), whose 12 bytes of times nobody looks at.
pub fn timestamp(from: Endpoint, to: Endpoint, reply: bool) -> Raw {
    let (kind, id) = if reply { (14, to.port) } else { (13, from.port) };
    let [high, low] = id.to_be_bytes();
    written(|bytes| ip(from, to).icmpv4_raw(kind, 0, [high, low, 0, 1]).write(bytes, &[9; 12]))
}

/// An ICMP error about `quoted`, which is cut short behind `length` bytes.
pub fn error(from: Endpoint, to: Endpoint, kind: (u8, u8), quoted: &Raw, length: usize) -> Raw {
    let quote = &quoted.bytes[..quoted.bytes.len().min(length)];
    written(|bytes| ip(from, to).icmpv4_raw(kind.0, kind.1, [0; 4]).write(bytes, quote))
}

/// An ICMP error with extensions; the quoted packet is padded to 128 bytes, and its length stands in 32-bit words
/// (RFC 4884 §4).
pub fn extended_error(from: Endpoint, to: Endpoint, kind: (u8, u8), quoted: &Raw, extensions: &[u8]) -> Raw {
    let mut message = quoted.bytes.clone();
    message.resize(128, 0);
    message.extend_from_slice(extensions);
    written(|bytes| ip(from, to).icmpv4_raw(kind.0, kind.1, [0, 32, 0, 0]).write(bytes, &message))
}

pub fn icmp(from: Endpoint, to: Endpoint, kind: Icmpv4Type, payload: &[u8]) -> Raw {
    written(|bytes| ip(from, to).icmpv4(kind).write(bytes, payload))
}

/// A packet that begins a flow: a datagram, a SYN, an echo request.
pub fn opener(protocol: Protocol, from: Endpoint, to: Endpoint) -> Raw {
    match protocol {
        Protocol::Udp => udp(from, to, b"opener"),
        Protocol::Tcp => tcp(from, to, SYN, &[]),
        Protocol::Icmp => echo(from, to, b"opener"),
    }
}

/// A packet from outside that could begin a flow: a datagram, a SYN, an echo reply.
pub fn visitor(protocol: Protocol, from: Endpoint, to: Endpoint) -> Raw {
    match protocol {
        Protocol::Udp => udp(from, to, b"visitor"),
        Protocol::Tcp => tcp(from, to, SYN, &[]),
        Protocol::Icmp => echo_reply(from, to, b"visitor"),
    }
}
