//! ICMP errors, in both directions, with the packet that they quote (RFC 5508 §4). Queries go the way of every flow.
//!
//! An error never refreshes, makes or ends anything (REQ-6, RFC 4787 REQ-12): it only finds its way by the state that
//! the quoted packet left behind.

use std::net::Ipv4Addr;

use crate::{
    DropReason, InsideId, Nat, Packet, Side, Time, Verdict,
    packed::{Inner, Outer},
    packet::{
        checksum::checksum,
        icmp,
        ipv4::{self, put_u16},
    },
    transport::{End, Parsed, Quoted},
};

impl Nat {
    /// An error from outside about a packet that we sent: the quoted source is ours (REQ-4). Returns whose it is.
    #[inline(never)]
    pub(crate) fn error_in(
        &mut self,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        now: Time,
    ) -> Result<InsideId, DropReason> {
        let quoted = read_quoted(packet.bytes(), parsed)?;
        let sender = self.sender(quoted.outer_source(), quoted.outer_destination(), now);
        let inner = sender.ok_or(DropReason::IcmpUnrelated)?;
        let back = (Side::Outside, parsed.ip.destination);
        let mtu = self.mtu_of(inner.inside_port());
        self.check_ttl(packet, parsed, back, now)?;
        self.check_mtu(packet, parsed, mtu, back, now)?;
        let original = self.original_identification(&quoted);
        let message = packet.bytes_mut();
        let quote = &mut message[parsed.ip.header_len + icmp::HEADER..];
        quoted.rewrite(quote, End::Source, inner.spot());
        original.into_iter().for_each(|number| ipv4::set_identification(quote, number));
        ipv4::set_addr(message, ipv4::DESTINATION, inner.spot().addr);
        seal(message, parsed);
        Ok(inner.inside_port())
    }

    /// An error from inside about a packet that we let in: the quoted destination is an inside endpoint, and the outer
    /// source becomes our own address (REQ-5). One about a hairpinned packet turns around (REQ-7).
    #[inline(never)]
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
        let turns = self.table.is_external(parsed.ip.destination);
        // An error about what was routed, not translated, is routed as well.
        if !turns && let Some(to) = self.neighbour(from, parsed.ip.destination) {
            self.check_source(back.0, parsed)?;
            return self.route(to, packet, parsed, back, now);
        }
        self.check_ttl(packet, parsed, back, now)?;
        let quoted = read_quoted(packet.bytes(), parsed)?;
        let (inner, source) = (quoted.inner_destination(from), quoted.outer_source());
        let Some(external) = self.receiver(inner, source, now) else {
            return match self.is_untranslated(source.spot()) && !turns {
                true => self.pass_out(packet, parsed, back, now),
                false => Err(DropReason::IcmpUnrelated),
            };
        };
        let to = if turns {
            Some(self.sender(source, external, now).ok_or(DropReason::IcmpUnrelated)?)
        } else {
            None
        };
        let mtu = to.map_or(self.outside_mtu, |to| self.mtu_of(to.inside_port()));
        self.check_mtu(packet, parsed, mtu, back, now)?;
        let original = self.original_identification(&quoted);
        let message = packet.bytes_mut();
        let inner = &mut message[parsed.ip.header_len + icmp::HEADER..];
        quoted.rewrite(inner, End::Destination, external.spot());
        if let Some(to) = to {
            quoted.rewrite(inner, End::Source, to.spot());
            original.into_iter().for_each(|number| ipv4::set_identification(inner, number));
            ipv4::set_addr(message, ipv4::DESTINATION, to.spot().addr);
        }
        ipv4::set_addr(message, ipv4::SOURCE, external.spot().addr);
        seal(message, parsed);
        Ok(to.map_or(Verdict::Forward(Side::Outside), |to| Verdict::Hairpin(to.inside_port())))
    }

    /// The identification that a quoted packet of ours had before it was translated, where it had another.
    fn original_identification(&self, quoted: &Quoted) -> Option<u16> {
        let (ends, protocol, number) = quoted.identification?;
        self.identifications.original(ends, protocol, number)
    }

    /// Who sent a packet from `external` to `remote`.
    fn sender(&mut self, external: Outer, remote: Outer, now: Time) -> Option<Inner> {
        if let Some(session) = self.table.find_in(external, remote, now, &mut self.reports) {
            return Some(self.table.session(session).inner);
        }
        let (holders, count) = self.table.find_external(external, now, &mut self.reports);
        let for_remote = |slot: &u32| {
            let key = self.table.mapping(*slot).remote;
            key.is_anybody() || key == remote || key == remote.any_port()
        };
        let mapping = holders[..count].iter().copied().find(for_remote)?;
        Some(self.table.mapping(mapping).inner)
    }

    /// The external endpoint at which `inner` was sent a packet by `remote`.
    fn receiver(&mut self, inner: Inner, remote: Outer, now: Time) -> Option<Outer> {
        if let Some(session) = self.table.find_out(inner, remote, now, &mut self.reports) {
            return Some(self.table.session(session).external);
        }
        let anybody = Outer::anybody(remote.protocol());
        let keyed = self.table.find_mapping(inner, self.table.key_of(remote), now, &mut self.reports);
        let slot = match keyed {
            Some(slot) => slot,
            None => self.table.find_mapping(inner, anybody, now, &mut self.reports)?,
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
