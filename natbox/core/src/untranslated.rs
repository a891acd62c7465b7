//! Destinations that are not translated (RFC 6888 REQ-6): what is for one of them is routed as it is, and so is what one
//! of them sends to an inside network. Of these packets nothing is remembered. A session that was translated before
//! goes on.
//!
//! A fragment, and a packet of a protocol that is not translated, pass where all ports of the address do.

use std::net::Ipv4Addr;

use crate::{
    DropReason, InsideId, Nat, Packet, Protocol, Side, Time, Verdict,
    packed::Spot,
    packet::{icmp, ipv4},
    transport::{Parsed, Quoted, Transport},
};

impl Nat {
    /// Whether packets to this endpoint are not translated.
    #[inline]
    pub(crate) fn is_untranslated(&self, remote: Spot) -> bool {
        !self.behavior.untranslated.is_empty() && self.behavior.untranslated.holds(remote.addr, remote.port)
    }

    /// A packet to such a destination leaves as it is.
    pub(crate) fn pass_out(
        &mut self,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        back: (Side, Ipv4Addr),
        now: Time,
    ) -> Result<Verdict, DropReason> {
        self.check_ttl(packet, parsed, back, now)?;
        self.check_mtu(packet, parsed, self.outside_mtu, back, now)?;
        ipv4::decrement_ttl(packet.bytes_mut());
        self.reports.counters.untranslated_packets += 1;
        Ok(Verdict::Forward(Side::Outside))
    }

    /// A packet from outside that is for none of our external addresses: it enters as it is when such a destination
    /// sends it to an inside network.
    #[inline(never)]
    pub(crate) fn pass_in(
        &mut self,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        now: Time,
    ) -> Result<Verdict, DropReason> {
        let is_from_one = self.is_from_untranslated(packet, parsed);
        let Some(to) = self.network_of(parsed.ip.destination).filter(|_| is_from_one) else {
            return if self.shared { Ok(Verdict::Local) } else { Err(DropReason::NoMapping) };
        };
        self.check_source(Side::Outside, parsed)?;
        let source = self.table.addresses().first().copied().unwrap_or(parsed.ip.destination);
        let verdict = self.route(to, packet, parsed, (Side::Outside, source), now)?;
        self.reports.counters.untranslated_packets += 1;
        Ok(verdict)
    }

    /// Whether a packet, or what an error quotes, is of a flow with such a destination.
    fn is_from_untranslated(&self, packet: &Packet<'_>, parsed: &Parsed) -> bool {
        if self.behavior.untranslated.is_empty() || parsed.transport != Transport::Error {
            return self.is_untranslated(parsed.source);
        }
        let message = packet.bytes().get(parsed.ip.header_len + icmp::HEADER..).unwrap_or_default();
        let quoted = Quoted::new(message).map(|quoted| quoted.outer_destination().spot());
        quoted.is_ok_and(|remote| self.is_untranslated(remote))
    }

    /// A packet from inside of which no ports can be read.
    #[cold]
    #[inline(never)]
    pub(crate) fn unread_out(
        &mut self,
        why: DropReason,
        from: InsideId,
        packet: &mut Packet<'_>,
        now: Time,
    ) -> Result<Verdict, DropReason> {
        let parsed = self.without_ports(why, packet)?;
        let destination = parsed.ip.destination;
        let gateway = self.inside.get(usize::from(from.0)).ok_or(why)?.gateway;
        let is_ours = self.table.is_external(destination) || self.neighbour(from, destination).is_some();
        if destination == gateway || is_ours || !self.is_untranslated(parsed.destination) {
            return Err(why);
        }
        self.check_source(Side::Inside(from), &parsed)?;
        self.pass_out(packet, &parsed, (Side::Inside(from), gateway), now)
    }

    /// The same from outside.
    #[cold]
    #[inline(never)]
    pub(crate) fn unread_in(
        &mut self,
        why: DropReason,
        packet: &mut Packet<'_>,
        now: Time,
    ) -> Result<Verdict, DropReason> {
        match self.without_ports(why, packet) {
            Ok(parsed) if !self.table.is_external(parsed.ip.destination) => {
                self.pass_in(packet, &parsed, now).map_err(|_| why)
            }
            _ if self.shared && why != DropReason::Fragment => Ok(Verdict::Local),
            _ => Err(why),
        }
    }

    /// What can be said of a packet that was turned down for `why`, when that is no fault of its IP header.
    fn without_ports(&self, why: DropReason, packet: &mut Packet<'_>) -> Result<Parsed, DropReason> {
        let is_whole = matches!(why, DropReason::Fragment | DropReason::Protocol | DropReason::IcmpType);
        if !is_whole || self.behavior.untranslated.is_empty() {
            return Err(why);
        }
        let ip = ipv4::parse(packet.bytes()).map_err(|_| why)?;
        if !ipv4::is_host(ip.destination) {
            return Err(why);
        }
        packet.truncate(ip.total_len);
        let spot = |addr| Spot { addr, port: 0 };
        let (source, destination) = (spot(ip.source), spot(ip.destination));
        Ok(Parsed { ip, transport: Transport::Udp, protocol: Protocol::Udp, source, destination })
    }
}
