//! Packets as hosts see them: UDP datagrams, ICMP errors about what they sent, and anything else raw.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use natbox_core::{
    Protocol, Time,
    packet::{
        checksum::{add, checksum, fold, pseudo_header},
        icmp,
        ipv4::{self, Header},
        udp,
    },
};

/// Bytes in front of a UDP payload.
pub(crate) const UDP_HEADERS: usize = ipv4::MIN_HEADER + udp::HEADER;
/// An ICMP error is at most this long (RFC 1812 §4.3.2.3).
const LONGEST_ERROR: usize = 576;

/// A UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// From where. For sending, an unspecified address stands for the host's first.
    pub from: SocketAddr,
    /// To where.
    pub to: SocketAddr,
    /// Hops left: a low value lets an opener die behind the sender's own NATs.
    pub ttl: u8,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// A datagram with the usual TTL of 64.
    pub fn new(from: SocketAddr, to: SocketAddr, payload: &'a [u8]) -> Datagram<'a> {
        Datagram { from, to, ttl: ipv4::FRESH_TTL, payload }
    }
}

/// What reaches a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// A UDP datagram with a right checksum.
    Datagram(Datagram<'a>),
    /// An ICMP error about a UDP datagram or TCP segment that this host sent.
    Error(IcmpError),
    /// Any other IP packet; on a raw host every packet.
    Packet(&'a [u8]),
}

/// An ICMP error as a socket hears of it. It proves nothing: anybody on the way can send one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// What went wrong.
    pub kind: IcmpErrorKind,
    /// Who says so.
    pub reporter: IpAddr,
    /// The transport of the packet it is about.
    pub protocol: Protocol,
    /// Where that packet came from: this host's own socket.
    pub from: SocketAddr,
    /// Where it was sent.
    pub to: SocketAddr,
}

/// What an ICMP error says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpErrorKind {
    /// The destination cannot be reached; with the code of RFC 792 and RFC 1812 §5.2.7.1.
    Unreachable(u8),
    /// Larger than a link on the way (RFC 1191).
    TooBig {
        /// That link's MTU in bytes; 0 when the router does not say.
        mtu: u16,
    },
    /// The TTL ran out on the way.
    TimeExceeded,
    /// Source Quench or Parameter Problem.
    Other {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
    },
}

/// A packet that a node wants to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// A UDP datagram.
    Datagram {
        /// From where; an unspecified address stands for the host's first.
        from: SocketAddr,
        /// To where.
        to: SocketAddr,
        /// Hops that it may take.
        ttl: u8,
        /// What it carries.
        payload: Vec<u8>,
    },
    /// A whole IPv4 packet, its checksums in place; its source need not be the sender's.
    Packet(Vec<u8>),
}

impl Transmit {
    /// A datagram from a port of the host's first address.
    pub fn datagram(port: u16, to: SocketAddr, payload: impl Into<Vec<u8>>) -> Transmit {
        let from = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Transmit::Datagram { from, to, ttl: ipv4::FRESH_TTL, payload: payload.into() }
    }
}

// ---- Writing ----

/// Writes a UDP packet into an empty buffer.
pub(crate) fn write_udp(
    buffer: &mut Vec<u8>,
    (source, source_port): (Ipv4Addr, u16),
    (destination, destination_port): (Ipv4Addr, u16),
    ttl: u8,
    payload: &[u8],
) {
    let length = (udp::HEADER + payload.len()) as u16;
    write_ipv4(buffer, source, destination, ipv4::UDP, ttl, length);
    buffer.extend_from_slice(&source_port.to_be_bytes());
    buffer.extend_from_slice(&destination_port.to_be_bytes());
    buffer.extend_from_slice(&length.to_be_bytes());
    buffer.extend_from_slice(&[0, 0]);
    buffer.extend_from_slice(payload);
    let sum = pseudo_header(source, destination, ipv4::UDP, length);
    // A checksum of 0 means none, and is sent as its other form (RFC 768).
    let field = match !fold(add(sum, &buffer[ipv4::MIN_HEADER..])) {
        0 => u16::MAX,
        field => field,
    };
    let at = ipv4::MIN_HEADER + udp::CHECKSUM;
    buffer[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

fn write_ipv4(
    buffer: &mut Vec<u8>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    ttl: u8,
    payload: u16,
) {
    let [high, low] = (payload + ipv4::MIN_HEADER as u16).to_be_bytes();
    // Version 4, five words; not to be fragmented, as every transport does that looks for the path's MTU.
    buffer.extend_from_slice(&[0x45, 0, high, low, 0, 0, 0x40, 0, ttl, protocol, 0, 0]);
    buffer.extend_from_slice(&source.octets());
    buffer.extend_from_slice(&destination.octets());
    let field = checksum(&buffer[..ipv4::MIN_HEADER]);
    buffer[10..12].copy_from_slice(&field.to_be_bytes());
}

/// The ICMP errors that hosts and routers of the net send.
#[derive(Clone, Copy)]
pub(crate) enum NewError {
    TimeExceeded,
    TooBig(u16),
    PortUnreachable,
}

/// Writes an error about `original` into an empty buffer; false where none may be sent (RFC 1812 §4.3.2.7).
pub(crate) fn write_error(buffer: &mut Vec<u8>, source: Ipv4Addr, error: NewError, original: &[u8]) -> bool {
    let Ok(header) = ipv4::parse(original) else { return false };
    let about = icmp::parse(&original[header.header_len..]);
    if header.protocol == ipv4::ICMP && !matches!(about, Some(icmp::Kind::Query { .. }))
        || header.fragment_offset > 0
        || !ipv4::is_host(header.source)
    {
        return false;
    }
    let quoted = &original[..header.total_len.min(LONGEST_ERROR - ipv4::MIN_HEADER - icmp::HEADER)];
    let (kind, code, mtu) = match error {
        NewError::TimeExceeded => (icmp::TIME_EXCEEDED, 0, 0),
        NewError::TooBig(mtu) => (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED, mtu),
        NewError::PortUnreachable => (icmp::UNREACHABLE, icmp::CODE_PORT, 0),
    };
    let length = (icmp::HEADER + quoted.len()) as u16;
    write_ipv4(buffer, source, header.source, ipv4::ICMP, ipv4::FRESH_TTL, length);
    let [high, low] = mtu.to_be_bytes();
    buffer.extend_from_slice(&[kind, code, 0, 0, 0, 0, high, low]);
    buffer.extend_from_slice(quoted);
    seal_icmp(buffer, ipv4::MIN_HEADER);
    true
}

/// Turns an echo request into its reply, in place.
pub(crate) fn answer_echo(packet: &mut [u8], header: &Header) {
    ipv4::set_addr(packet, ipv4::SOURCE, header.destination);
    ipv4::set_addr(packet, ipv4::DESTINATION, header.source);
    ipv4::set_ttl(packet, ipv4::FRESH_TTL);
    packet[header.header_len] = icmp::ECHO_REPLY;
    seal_icmp(&mut packet[..header.total_len], header.header_len);
}

fn seal_icmp(packet: &mut [u8], at: usize) {
    packet[at + icmp::CHECKSUM..at + icmp::CHECKSUM + 2].fill(0);
    let field = checksum(&packet[at..]);
    packet[at + icmp::CHECKSUM..at + icmp::CHECKSUM + 2].copy_from_slice(&field.to_be_bytes());
}

// ---- Reading ----

/// The destination of a packet that was checked when it entered the net.
pub(crate) fn destination(packet: &[u8]) -> Ipv4Addr {
    match packet.get(ipv4::DESTINATION..ipv4::DESTINATION + 4) {
        Some(&[a, b, c, d]) => Ipv4Addr::new(a, b, c, d),
        _ => Ipv4Addr::UNSPECIFIED,
    }
}

/// The source of a packet that was checked when it entered the net.
pub(crate) fn source(packet: &[u8]) -> Ipv4Addr {
    match packet.get(ipv4::SOURCE..ipv4::SOURCE + 4) {
        Some(&[a, b, c, d]) => Ipv4Addr::new(a, b, c, d),
        _ => Ipv4Addr::UNSPECIFIED,
    }
}

/// Hops left of a packet that was checked when it entered the net.
pub(crate) fn ttl(packet: &[u8]) -> u8 {
    packet.get(8).copied().unwrap_or(0)
}

/// A packet whose transport checksum is wrong, or whose headers contradict each other.
#[derive(Debug)]
pub(crate) struct Damaged;

/// What a packet is to the host that gets it.
pub(crate) fn read(packet: &[u8], is_raw: bool) -> Result<Input<'_>, Damaged> {
    let header = ipv4::parse(packet).map_err(|_| Damaged)?;
    let payload = &packet[header.header_len..header.total_len];
    if is_raw || header.is_fragment {
        return Ok(Input::Packet(packet));
    }
    match header.protocol {
        ipv4::UDP => {
            let ports = udp::parse(payload).ok_or(Damaged)?;
            let length = usize::from(u16::from_be_bytes([payload[4], payload[5]]));
            let sum = pseudo_header(header.source, header.destination, ipv4::UDP, length as u16);
            let has_checksum = payload[udp::CHECKSUM..udp::CHECKSUM + 2] != [0, 0];
            if has_checksum && fold(add(sum, &payload[..length])) != u16::MAX {
                return Err(Damaged);
            }
            Ok(Input::Datagram(Datagram {
                from: SocketAddr::from((header.source, ports.source)),
                to: SocketAddr::from((header.destination, ports.destination)),
                ttl: header.ttl,
                payload: &payload[udp::HEADER..length],
            }))
        }
        ipv4::ICMP => {
            if checksum(payload) != 0 {
                return Err(Damaged);
            }
            Ok(read_error(&header, payload).map_or(Input::Packet(packet), Input::Error))
        }
        _ => Ok(Input::Packet(packet)),
    }
}

fn read_error(outer: &Header, message: &[u8]) -> Option<IcmpError> {
    if icmp::parse(message) != Some(icmp::Kind::Error) {
        return None;
    }
    let quoted = &message[icmp::HEADER..];
    let inner = ipv4::read(quoted).ok()?;
    let protocol = match inner.protocol {
        ipv4::UDP => Protocol::Udp,
        ipv4::TCP => Protocol::Tcp,
        _ => return None,
    };
    let &[a, b, c, d] = quoted.get(inner.header_len..inner.header_len + 4)? else { return None };
    let kind = match (message[0], message[1]) {
        (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED) => {
            IcmpErrorKind::TooBig { mtu: u16::from_be_bytes([message[6], message[7]]) }
        }
        (icmp::UNREACHABLE, code) => IcmpErrorKind::Unreachable(code),
        (icmp::TIME_EXCEEDED, _) => IcmpErrorKind::TimeExceeded,
        (kind, code) => IcmpErrorKind::Other { kind, code },
    };
    Some(IcmpError {
        kind,
        reporter: outer.source.into(),
        protocol,
        from: SocketAddr::from((inner.source, u16::from_be_bytes([a, b]))),
        to: SocketAddr::from((inner.destination, u16::from_be_bytes([c, d]))),
    })
}

/// One line about a packet, for people: `udp 10.0.0.2:4000 > 203.0.113.5:3478, 20 bytes`.
pub(crate) fn describe(packet: &[u8], f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    let Ok(header) = ipv4::parse(packet) else { return write!(f, "{} damaged bytes", packet.len()) };
    let (from, to) = (header.source, header.destination);
    match read(packet, false) {
        Ok(Input::Datagram(datagram)) => {
            write!(f, "udp {} > {}, {} bytes", datagram.from, datagram.to, datagram.payload.len())
        }
        Ok(Input::Error(IcmpError { kind, from: own, to: far, protocol, .. })) => {
            write!(f, "icmp {from} > {to}, {kind:?} about {protocol} {own} > {far}")
        }
        _ => match natbox_core::ends(packet) {
            Some((protocol, ends)) => {
                write!(f, "{protocol} {} > {}, {} bytes in all", ends.from, ends.to, header.total_len)
            }
            None => write!(f, "ip {} {from} > {to}, {} bytes in all", header.protocol, header.total_len),
        },
    }
}

/// The time of a trace line, in seconds with microseconds.
pub(crate) fn write_time(time: Time, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    let micros = time.as_nanos() / 1000;
    write!(f, "{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

#[cfg(test)]
#[path = "packet_tests.rs"]
mod tests;
