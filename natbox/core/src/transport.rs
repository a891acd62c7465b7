//! What a packet says about its flow, and the rewriting of its ends.

use std::net::Ipv4Addr;

use crate::{
    DropReason, Endpoint, Ends, InsideId, Packet, Protocol,
    packed::{Inner, Outer, Spot},
    packet::{
        Checksum, Offload,
        checksum::Delta,
        fragment::Piece,
        icmp::{self, Kind},
        ipv4::{self, Invalid, put_u16, u16_at},
        tcp::{self, Flags},
        udp,
    },
};

/// What a packet is to the NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp {
        header_len: usize,
        flags: Flags,
    },
    Query {
        request: bool,
    },
    /// An ICMP error: the flow is that of the packet it quotes.
    Error,
}

/// A packet's header fields, read once. For a query the identifier stands as the port of the one who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parsed {
    pub(crate) ip: ipv4::Header,
    pub(crate) transport: Transport,
    pub(crate) protocol: Protocol,
    pub(crate) source: Spot,
    pub(crate) destination: Spot,
}

impl Parsed {
    /// Reads a whole packet. A fragment is `Err(DropReason::Fragment)`: there is another way for it.
    #[inline(always)]
    pub(crate) fn new(bytes: &[u8]) -> Result<Parsed, DropReason> {
        Parsed::read::<true>(bytes)
    }

    /// Reads the first fragment of a datagram: the transport's header is all there, the rest need not be.
    pub(crate) fn first_fragment(bytes: &[u8]) -> Result<Parsed, DropReason> {
        Parsed::read::<false>(bytes)
    }

    #[inline(always)]
    fn read<const WHOLE: bool>(bytes: &[u8]) -> Result<Parsed, DropReason> {
        let ip = ipv4::parse(bytes).map_err(invalid)?;
        if WHOLE && ip.is_fragment {
            return Err(DropReason::Fragment);
        }
        let payload = &bytes[ip.header_len..ip.total_len];
        let (protocol, transport, from, to) = match ip.protocol {
            ipv4::UDP => {
                let udp = if WHOLE { udp::parse(payload) } else { udp::parse_first(payload) };
                let udp = udp.ok_or(DropReason::Malformed)?;
                (Protocol::Udp, Transport::Udp, udp.source, udp.destination)
            }
            ipv4::TCP => {
                let tcp = tcp::parse(payload).ok_or(DropReason::Malformed)?;
                let transport = Transport::Tcp { header_len: tcp.header_len, flags: tcp.flags };
                (Protocol::Tcp, transport, tcp.source, tcp.destination)
            }
            ipv4::ICMP => match icmp::parse(payload).ok_or(DropReason::Malformed)? {
                Kind::Query { request, identifier } => {
                    let (from, to) = if request { (identifier, 0) } else { (0, identifier) };
                    (Protocol::Icmp, Transport::Query { request }, from, to)
                }
                Kind::Error => (Protocol::Icmp, Transport::Error, 0, 0),
                Kind::Other => return Err(DropReason::IcmpType),
            },
            _ => return Err(DropReason::Protocol),
        };
        let source = Spot { addr: ip.source, port: from };
        let destination = Spot { addr: ip.destination, port: to };
        Ok(Parsed { ip, transport, protocol, source, destination })
    }

    /// The sender, an inside host behind this port.
    #[inline]
    pub(crate) fn inner_source(&self, port: InsideId) -> Inner {
        Inner::new(port, self.source)
    }

    /// The sender, on the public network.
    #[inline]
    pub(crate) fn outer_source(&self) -> Outer {
        Outer::new(self.protocol, self.source)
    }

    /// The receiver, on the public network.
    #[inline]
    pub(crate) fn outer_destination(&self) -> Outer {
        Outer::new(self.protocol, self.destination)
    }

    /// Whether a query asks for an echo, which is all that the NAT answers itself.
    pub(crate) fn is_echo(&self, bytes: &[u8]) -> bool {
        bytes.get(self.ip.header_len) == Some(&icmp::ECHO)
    }

    /// The control bits of a TCP segment.
    #[inline]
    pub(crate) fn tcp_flags(&self) -> Option<Flags> {
        match self.transport {
            Transport::Tcp { flags, .. } => Some(flags),
            _ => None,
        }
    }

    /// Length of the largest packet that this one will be on the wire, in bytes.
    #[inline]
    pub(crate) fn wire_len(&self, offload: &Offload) -> usize {
        let Some(gso) = offload.gso else { return self.ip.total_len };
        let header_len = match self.transport {
            Transport::Tcp { header_len, .. } => header_len,
            _ => udp::HEADER,
        };
        (self.ip.header_len + header_len + usize::from(gso.segment)).min(self.ip.total_len)
    }
}

/// Why a packet whose IP header is of no use is dropped.
#[inline(always)]
pub(crate) fn invalid(invalid: Invalid) -> DropReason {
    match invalid {
        Invalid::Malformed => DropReason::Malformed,
        Invalid::BadChecksum => DropReason::BadChecksum,
        Invalid::Ipv6 => DropReason::Ipv6,
    }
}

/// The transport with this IP protocol number.
pub(crate) fn protocol_of(number: u8) -> Option<Protocol> {
    match number {
        ipv4::UDP => Some(Protocol::Udp),
        ipv4::TCP => Some(Protocol::Tcp),
        ipv4::ICMP => Some(Protocol::Icmp),
        _ => None,
    }
}

/// Which end of a packet is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    Destination,
}

impl End {
    #[inline]
    pub(crate) fn addr_offset(self) -> usize {
        match self {
            End::Source => ipv4::SOURCE,
            End::Destination => ipv4::DESTINATION,
        }
    }

    #[inline]
    pub(crate) fn port_offset(self) -> usize {
        match self {
            End::Source => udp::SOURCE_PORT,
            End::Destination => udp::DESTINATION_PORT,
        }
    }
}

/// Replaces one end of a packet that [`Parsed::new`] accepted, takes a hop off its TTL, and mends its checksums. Neither
/// IP addresses nor ports of a partial checksum's packet need more than the pseudo-header: the sender adds the rest.
#[inline(always)]
pub(crate) fn forward(packet: &mut Packet<'_>, parsed: &Parsed, end: End, new: Spot) {
    let partial = is_partial(packet, parsed);
    let Some((header, payload)) = packet.bytes_mut().split_at_mut_checked(parsed.ip.header_len) else {
        return;
    };
    let Some(header) = header.first_chunk_mut() else { return };
    let addresses = ipv4::forward(header, end.addr_offset(), new.addr);
    rewrite_transport(payload, parsed, partial, end, new.port, addresses);
}

/// The same without taking a hop off.
pub(crate) fn rewrite(packet: &mut Packet<'_>, parsed: &Parsed, end: End, new: Spot) {
    let partial = is_partial(packet, parsed);
    let old = if end == End::Source { parsed.source } else { parsed.destination };
    let bytes = packet.bytes_mut();
    ipv4::set_addr(bytes, end.addr_offset(), new.addr);
    let addresses = Delta::default().addr(old.addr, new.addr);
    rewrite_transport(&mut bytes[parsed.ip.header_len..], parsed, partial, end, new.port, addresses);
}

#[inline(always)]
fn is_partial(packet: &Packet<'_>, parsed: &Parsed) -> bool {
    matches!(packet.offload.checksum, Checksum::Partial { start, .. } if usize::from(start) == parsed.ip.header_len)
}

#[inline(always)]
fn rewrite_transport(
    payload: &mut [u8],
    parsed: &Parsed,
    partial: bool,
    end: End,
    port: u16,
    addresses: Delta,
) {
    let old = if end == End::Source { parsed.source.port } else { parsed.destination.port };
    // Headers of a known length have no bounds to be checked.
    let Some(first) = payload.first_chunk_mut::<{ udp::HEADER }>() else { return };
    if parsed.protocol == Protocol::Icmp {
        let delta = Delta::default().word(old, port);
        put_u16(first, icmp::IDENTIFIER, port);
        let field = delta.update(u16_at(first, icmp::CHECKSUM));
        put_u16(first, icmp::CHECKSUM, field);
        return;
    }
    put_u16(first, end.port_offset(), port);
    let all = addresses.word(old, port);
    if parsed.protocol == Protocol::Udp {
        mend(first, Protocol::Udp, partial, addresses, all);
    } else if let Some(header) = payload.first_chunk_mut::<{ tcp::MIN_HEADER }>() {
        mend(header, Protocol::Tcp, partial, addresses, all);
    }
}

/// Mends a UDP or TCP checksum: a partial one knows the addresses only.
#[inline(always)]
pub(crate) fn mend(payload: &mut [u8], protocol: Protocol, partial: bool, addresses: Delta, all: Delta) {
    let offset = if protocol == Protocol::Udp { udp::CHECKSUM } else { tcp::CHECKSUM };
    let field = u16_at(payload, offset);
    let field = match (protocol, partial) {
        (_, true) => addresses.update_partial(field),
        (Protocol::Udp, false) if field == 0 => 0,
        (Protocol::Udp, false) => match all.update(field) {
            0 => 0xffff,
            field => field,
        },
        _ => all.update(field),
    };
    put_u16(payload, offset, field);
}

/// The packet inside an ICMP error: its flow, as far as it was quoted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quoted {
    header_len: usize,
    protocol: Protocol,
    source: Spot,
    destination: Spot,
    /// The identification, where it means something: addresses and protocol number that it belongs to, and itself.
    pub(crate) identification: Option<((Ipv4Addr, Ipv4Addr), u8, u16)>,
}

impl Quoted {
    /// Reads the quoted packet, IP options and all; its transport header may be cut short behind the ports, and its
    /// transport checksum is nobody's business (RFC 5508 REQ-3).
    pub(crate) fn new(bytes: &[u8]) -> Result<Quoted, DropReason> {
        let ip = ipv4::read(bytes).map_err(|_| DropReason::Malformed)?;
        if crate::packet::checksum::checksum(&bytes[..ip.header_len]) != 0 {
            return Err(DropReason::BadChecksum);
        }
        let payload = &bytes[ip.header_len..];
        let (protocol, from, to) = match ip.protocol {
            _ if ip.fragment_offset > 0 || payload.len() < 8 => return Err(DropReason::Malformed),
            ipv4::UDP => {
                (Protocol::Udp, u16_at(payload, udp::SOURCE_PORT), u16_at(payload, udp::DESTINATION_PORT))
            }
            ipv4::TCP => {
                (Protocol::Tcp, u16_at(payload, tcp::SOURCE_PORT), u16_at(payload, tcp::DESTINATION_PORT))
            }
            ipv4::ICMP => match icmp::parse(payload) {
                Some(Kind::Query { request: true, identifier }) => (Protocol::Icmp, identifier, 0),
                Some(Kind::Query { request: false, identifier }) => (Protocol::Icmp, 0, identifier),
                _ => return Err(DropReason::IcmpUnrelated),
            },
            _ => return Err(DropReason::Protocol),
        };
        let identification = (!ipv4::is_atomic(bytes))
            .then(|| ((ip.source, ip.destination), ip.protocol, ipv4::identification(bytes)));
        Ok(Quoted {
            identification,
            header_len: ip.header_len,
            protocol,
            source: Spot { addr: ip.source, port: from },
            destination: Spot { addr: ip.destination, port: to },
        })
    }

    /// Who sent it, on the public network.
    pub(crate) fn outer_source(&self) -> Outer {
        Outer::new(self.protocol, self.source)
    }

    /// Whom it was for, on the public network.
    pub(crate) fn outer_destination(&self) -> Outer {
        Outer::new(self.protocol, self.destination)
    }

    /// Whom it was for, an inside host behind this port.
    pub(crate) fn inner_destination(&self, port: InsideId) -> Inner {
        Inner::new(port, self.destination)
    }

    /// Replaces one end of the quoted packet in `bytes`, and mends the checksums that were quoted.
    pub(crate) fn rewrite(&self, bytes: &mut [u8], end: End, new: Spot) {
        let old = if end == End::Source { self.source } else { self.destination };
        ipv4::set_addr(bytes, end.addr_offset(), new.addr);
        let payload = &mut bytes[self.header_len..];
        let ports = Delta::default().word(old.port, new.port);
        match self.protocol {
            Protocol::Icmp => {
                put_u16(payload, icmp::IDENTIFIER, new.port);
                let field = ports.update(u16_at(payload, icmp::CHECKSUM));
                put_u16(payload, icmp::CHECKSUM, field);
            }
            protocol => {
                put_u16(payload, end.port_offset(), new.port);
                let checksum = if protocol == Protocol::Udp { udp::CHECKSUM } else { tcp::CHECKSUM };
                if payload.len() >= checksum + 2 {
                    let all = ports.addr(old.addr, new.addr);
                    mend(payload, protocol, false, all, all);
                }
            }
        }
    }
}

/// Turns an echo request into its reply, in place.
pub(crate) fn answer_echo(bytes: &mut [u8], header: &ipv4::Header) {
    let (source, destination): (Ipv4Addr, Ipv4Addr) = (header.source, header.destination);
    ipv4::set_addr(bytes, ipv4::SOURCE, destination);
    ipv4::set_addr(bytes, ipv4::DESTINATION, source);
    let message = &mut bytes[header.header_len..];
    let old = u16_at(message, 0);
    put_u16(message, 0, old & 0x00ff);
    let field = Delta::default().word(old, old & 0x00ff).update(u16_at(message, icmp::CHECKSUM));
    put_u16(message, icmp::CHECKSUM, field);
    ipv4::set_ttl(bytes, ipv4::FRESH_TTL);
}

/// The protocol and the two ends of a packet, for logs; `None` for what the NAT would not translate. An ICMP error's
/// ends have port 0, and so have those of a fragment that is not the first of its datagram.
pub fn ends(packet: &[u8]) -> Option<(Protocol, Ends)> {
    let header = ipv4::parse(packet).ok()?;
    let piece = Piece::of(packet, &header);
    if piece.is_some_and(|piece| piece.offset > 0) {
        let protocol = protocol_of(header.protocol)?;
        let [from, to] = [header.source, header.destination].map(|addr| Endpoint::v4(addr, 0));
        return Some((protocol, Ends { from, to, piece }));
    }
    let parsed = if piece.is_some() { Parsed::first_fragment(packet) } else { Parsed::new(packet) }.ok()?;
    let public = |Spot { addr, port }| Endpoint::v4(addr, port);
    Some((parsed.protocol, Ends { from: public(parsed.source), to: public(parsed.destination), piece }))
}
