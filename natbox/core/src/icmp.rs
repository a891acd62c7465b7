//! ICMP errors, in both directions, with the packet that they quote (RFC 5508 §4). Queries go the way of every flow.
//!
//! An error never refreshes, makes or ends anything (REQ-6, RFC 4787 REQ-12): it only finds its way by the state that
//! the quoted packet left behind.

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    DropReason, Endpoint, Inside, InsideId, Nat, Packet, Protocol, Side, Time, Verdict,
    behavior::Mapping,
    packet::{
        checksum::checksum,
        icmp,
        ipv4::{self, put_u16},
    },
    table::ANYBODY,
    transport::{End, Parsed, Quoted},
};

impl Nat {
    /// An error from outside about a packet that we sent: the quoted source is ours (REQ-4). Returns whose it is.
    pub(crate) fn error_in(
        &mut self,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        now: Time,
    ) -> Result<InsideId, DropReason> {
        let quoted = read_quoted(packet.bytes(), parsed)?;
        let Quoted { protocol, source, destination, .. } = quoted;
        let inside = self.sender(protocol, source, destination, now).ok_or(DropReason::IcmpUnrelated)?;
        let back = (Side::Outside, parsed.ip.destination);
        let mtu = self.inside[usize::from(inside.port.0)].mtu;
        self.check_ttl(packet, parsed, back, now)?;
        self.check_mtu(packet, parsed, mtu, back, now)?;
        let message = packet.bytes_mut();
        quoted.rewrite(&mut message[parsed.ip.header_len + icmp::HEADER..], End::Source, inside.endpoint);
        if let IpAddr::V4(addr) = inside.endpoint.addr {
            ipv4::set_addr(message, ipv4::DESTINATION, addr);
        }
        seal(message, parsed);
        Ok(inside.port)
    }

    /// An error from inside about a packet that we let in: the quoted destination is an inside endpoint, and the outer
    /// source becomes our own address (REQ-5). One about a hairpinned packet turns around (REQ-7).
    pub(crate) fn error_out(
        &mut self,
        from: InsideId,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        back: (Side, Ipv4Addr),
        now: Time,
    ) -> Result<Verdict, DropReason> {
        if !ipv4::is_host(parsed.ip.destination) {
            return Err(DropReason::BadDestination);
        }
        let turns = self.table.is_external(parsed.destination.addr);
        // An error about what was routed, not translated, is routed as well.
        if !turns && let Some(to) = self.neighbour(from, parsed.ip.destination) {
            return self.route(to, packet, parsed, back, now);
        }
        self.check_ttl(packet, parsed, back, now)?;
        let quoted = read_quoted(packet.bytes(), parsed)?;
        let Quoted { protocol, source, destination, .. } = quoted;
        let inside = Inside { port: from, endpoint: destination };
        let external = self.receiver(protocol, inside, source, now).ok_or(DropReason::IcmpUnrelated)?;
        let to = if turns {
            Some(self.sender(protocol, source, external, now).ok_or(DropReason::IcmpUnrelated)?)
        } else {
            None
        };
        let mtu = to.map_or(self.outside_mtu, |to| self.inside[usize::from(to.port.0)].mtu);
        self.check_mtu(packet, parsed, mtu, back, now)?;
        let message = packet.bytes_mut();
        let inner = &mut message[parsed.ip.header_len + icmp::HEADER..];
        quoted.rewrite(inner, End::Destination, external);
        if let Some(to) = to {
            quoted.rewrite(inner, End::Source, to.endpoint);
            if let IpAddr::V4(addr) = to.endpoint.addr {
                ipv4::set_addr(message, ipv4::DESTINATION, addr);
            }
        }
        if let IpAddr::V4(addr) = external.addr {
            ipv4::set_addr(message, ipv4::SOURCE, addr);
        }
        seal(message, parsed);
        Ok(to.map_or(Verdict::Forward(Side::Outside), |to| Verdict::Hairpin(to.port)))
    }

    /// Who sent a packet from `external` to `remote`.
    fn sender(
        &mut self,
        protocol: Protocol,
        external: Endpoint,
        remote: Endpoint,
        now: Time,
    ) -> Option<Inside> {
        let mapping = match self.table.find_in(protocol, external, remote, now, &mut self.reports) {
            Some(session) => self.table.session(session).mapping,
            None => {
                let (holders, count) = self.table.find_external(protocol, external, now, &mut self.reports);
                let for_remote = |slot: &u32| {
                    let key = self.table.mapping(*slot).remote;
                    key == ANYBODY || key == remote || key == Endpoint::new(remote.addr, 0)
                };
                holders[..count].iter().copied().find(for_remote)?
            }
        };
        Some(self.table.mapping(mapping).inside)
    }

    /// The external endpoint at which `inside` was sent a packet by `remote`.
    fn receiver(
        &mut self,
        protocol: Protocol,
        inside: Inside,
        remote: Endpoint,
        now: Time,
    ) -> Option<Endpoint> {
        if let Some(session) = self.table.find_out(protocol, inside, remote, now, &mut self.reports) {
            let mapping = self.table.session(session).mapping;
            return Some(self.table.mapping(mapping).external);
        }
        let key = match self.behavior.mapping {
            Mapping::EndpointIndependent => ANYBODY,
            Mapping::AddressDependent => Endpoint::new(remote.addr, 0),
            Mapping::AddressAndPortDependent => remote,
        };
        let keyed = self.table.find_mapping(protocol, inside, key, now, &mut self.reports);
        let slot = match keyed {
            Some(slot) => slot,
            None => self.table.find_mapping(protocol, inside, ANYBODY, now, &mut self.reports)?,
        };
        Some(self.table.mapping(slot).external)
    }
}

/// Checks the error's own checksum, and reads what it quotes (REQ-3).
fn read_quoted(bytes: &[u8], parsed: &Parsed) -> Result<Quoted, DropReason> {
    let message = &bytes[parsed.ip.header_len..parsed.ip.total_len];
    if checksum(message) != 0 {
        return Err(DropReason::BadChecksum);
    }
    Quoted::new(&message[icmp::HEADER..])
}

/// Computes the error's checksum anew and takes one hop off.
fn seal(bytes: &mut [u8], parsed: &Parsed) {
    let message = &mut bytes[parsed.ip.header_len..parsed.ip.total_len];
    put_u16(message, icmp::CHECKSUM, 0);
    let sum = checksum(message);
    put_u16(message, icmp::CHECKSUM, sum);
    ipv4::decrement_ttl(bytes);
}
