//! The short way of a packet of a known flow, and of one from inside that begins a flow.
//!
//! Nearly every packet has an IP header without options, is whole, is of UDP or TCP, and belongs to a session that is
//! alive. Of such a one everything lies at offsets that the compiler knows, for each transport and in each direction a
//! function of its own. Whatever is otherwise, or would end in anything but a translated packet, is left untouched and
//! goes the long way (`translate.rs`), which decides everything: the two must agree on what passes here. What is of no
//! session begins one here where its ends are a host inside and one outside that it may reach; that there is no room for it
//! is said here as well.

use crate::{
    InsideId, Nat, Packet, Protocol, Side, Time, Verdict,
    packed::{Inner, Outer, Spot},
    packet::{
        Checksum,
        ipv4::{self, MIN_HEADER, put_u16, u16_at},
        tcp::{self, Flags},
        udp,
    },
    translate::Flow,
    transport::{End, Transport, mend},
};

/// The headers of a UDP datagram, in bytes.
const UDP: usize = MIN_HEADER + udp::HEADER;
/// Those of a TCP segment; its options, if there are any, follow.
const TCP: usize = MIN_HEADER + tcp::MIN_HEADER;

/// What the headers say, of which `HEADERS` bytes are certain to be there; the number stands for the transport.
struct Plain<const HEADERS: usize> {
    source: Spot,
    destination: Spot,
    total_len: usize,
    /// Length of the largest packet that it will be on the wire.
    wire_len: usize,
    /// Length of the transport's header.
    header_len: usize,
    flags: Option<Flags>,
    /// Its transport's checksum knows the addresses only.
    partial: bool,
}

impl<const HEADERS: usize> Plain<HEADERS> {
    const PROTOCOL: Protocol = if HEADERS == TCP { Protocol::Tcp } else { Protocol::Udp };

    /// `None`: there is something about it that the short way does not know.
    #[inline(always)]
    fn read(packet: &Packet<'_>) -> Option<Self> {
        let bytes = packet.bytes();
        let headers = bytes.first_chunk::<HEADERS>()?;
        let total_len = usize::from(u16_at(headers, ipv4::TOTAL_LEN));
        if total_len < HEADERS || total_len > bytes.len() || !ipv4::is_plain(headers.first_chunk()?) {
            return None;
        }
        let spot = |addr: usize, port: usize| Spot {
            addr: ipv4::addr_at(headers, addr),
            port: u16_at(headers, MIN_HEADER + port),
        };
        let (header_len, flags) = if HEADERS == TCP {
            let (header_len, flags) = tcp::shape(headers.last_chunk()?);
            if header_len < tcp::MIN_HEADER || header_len > total_len - MIN_HEADER {
                return None;
            }
            (header_len, Some(flags))
        } else {
            let length = usize::from(u16_at(headers, MIN_HEADER + udp::LENGTH));
            if length < udp::HEADER || length > total_len - MIN_HEADER {
                return None;
            }
            (udp::HEADER, None)
        };
        Some(Plain {
            source: spot(ipv4::SOURCE, udp::SOURCE_PORT),
            destination: spot(ipv4::DESTINATION, udp::DESTINATION_PORT),
            total_len,
            wire_len: match packet.offload.gso {
                Some(gso) => (MIN_HEADER + header_len + usize::from(gso.segment)).min(total_len),
                None => total_len,
            },
            header_len,
            flags,
            partial: matches!(packet.offload.checksum, Checksum::Partial { start, .. } if usize::from(start) == MIN_HEADER),
        })
    }

    #[inline(always)]
    fn flow(&self, remote: Outer) -> Flow {
        Flow { protocol: Self::PROTOCOL, remote, flags: self.flags }
    }

    fn transport(&self) -> Transport {
        match self.flags {
            Some(flags) => Transport::Tcp { header_len: self.header_len, flags },
            None => Transport::Udp,
        }
    }

    /// Replaces one end, takes a hop off, and mends the checksums.
    #[inline(always)]
    fn forward(&self, packet: &mut Packet<'_>, end: End, new: Spot) {
        packet.truncate(self.total_len);
        let Some((header, rest)) = packet.bytes_mut().split_first_chunk_mut::<MIN_HEADER>() else { return };
        let addresses = ipv4::forward(header, end.addr_offset(), new.addr);
        let old = if end == End::Source { self.source.port } else { self.destination.port };
        let all = addresses.word(old, new.port);
        // Arrays have no bounds to be checked.
        if HEADERS == TCP {
            let Some(header) = rest.first_chunk_mut::<{ tcp::MIN_HEADER }>() else { return };
            put_u16(header, end.port_offset(), new.port);
            mend(header, Protocol::Tcp, self.partial, addresses, all);
        } else {
            let Some(header) = rest.first_chunk_mut::<{ udp::HEADER }>() else { return };
            put_u16(header, end.port_offset(), new.port);
            mend(header, Protocol::Udp, self.partial, addresses, all);
        }
    }
}

impl Nat {
    /// Translates a packet that came from the hosts behind `from`, if it can go the short way.
    #[inline(always)]
    pub(crate) fn known_outbound(
        &mut self,
        from: InsideId,
        packet: &mut Packet<'_>,
        now: Time,
    ) -> Option<Verdict> {
        match packet.bytes().get(ipv4::PROTOCOL) {
            Some(&ipv4::UDP) => self.leave_at_once::<UDP>(from, packet, now),
            Some(&ipv4::TCP) => self.leave_at_once::<TCP>(from, packet, now),
            _ => None,
        }
    }

    /// Translates a packet that came from outside, if it can go the short way.
    #[inline(always)]
    pub(crate) fn known_inbound(&mut self, packet: &mut Packet<'_>, now: Time) -> Option<Verdict> {
        match packet.bytes().get(ipv4::PROTOCOL) {
            Some(&ipv4::UDP) => self.enter_at_once::<UDP>(packet, now),
            Some(&ipv4::TCP) => self.enter_at_once::<TCP>(packet, now),
            _ => None,
        }
    }

    #[inline(always)]
    fn leave_at_once<const HEADERS: usize>(
        &mut self,
        from: InsideId,
        packet: &mut Packet<'_>,
        now: Time,
    ) -> Option<Verdict> {
        let plain = Plain::<HEADERS>::read(packet)?;
        let Plain { source, destination, .. } = plain;
        let gateway = self.inside.get(usize::from(from.0))?.gateway;
        let is_ours = destination.addr == gateway || self.table.is_external(destination.addr);
        if is_ours || plain.wire_len > usize::from(self.outside_mtu) {
            return None;
        }
        let (inner, remote) = (Inner::new(from, source), Outer::new(Plain::<HEADERS>::PROTOCOL, destination));
        let Some(slot) = self.table.lookup_out(inner, remote) else {
            return self.begin_at_once(inner, packet, &plain, plain.flow(remote), now);
        };
        if !self.table.is_live(slot, now) {
            return None;
        }
        let external = self.leave_known(slot, plain.flow(remote), now);
        Some(self.leave_as(external, packet, &plain))
    }

    /// A packet leaves with this source.
    #[inline(always)]
    fn leave_as<const HEADERS: usize>(
        &mut self,
        external: Outer,
        packet: &mut Packet<'_>,
        plain: &Plain<HEADERS>,
    ) -> Verdict {
        plain.forward(packet, End::Source, external.spot());
        let verdict = Verdict::Forward(Side::Outside);
        if !ipv4::is_atomic(packet.bytes()) {
            self.identify(verdict, packet);
        }
        self.reports.count_outbound(verdict, plain.total_len);
        verdict
    }

    /// The first packet of a flow, if there is nothing to be said of its ends.
    #[inline(never)]
    fn begin_at_once<const HEADERS: usize>(
        &mut self,
        inner: Inner,
        packet: &mut Packet<'_>,
        plain: &Plain<HEADERS>,
        flow: Flow,
        now: Time,
    ) -> Option<Verdict> {
        let (from, Spot { addr, port }) = (inner.inside_port(), plain.destination);
        if !self.is_somebody(Side::Inside(from), plain.source.addr)
            || !self.is_beyond(from, addr)
            || !self.may_leave(flow.protocol, port)
            || self.is_untranslated(plain.destination)
        {
            return None;
        }
        match self.leave_new(inner, plain.transport(), flow, now) {
            Ok(external) => Some(self.leave_as(external, packet, plain)),
            Err(why) => {
                packet.truncate(plain.total_len);
                let back = (Side::Inside(from), self.inside.get(usize::from(from.0))?.gateway);
                let why = self.turn_away(why, packet, back, now);
                Some(self.conclude_outbound(Err(why), from, packet, now))
            }
        }
    }

    #[inline(always)]
    fn enter_at_once<const HEADERS: usize>(&mut self, packet: &mut Packet<'_>, now: Time) -> Option<Verdict> {
        let plain = Plain::<HEADERS>::read(packet)?;
        let Plain { source, destination, .. } = plain;
        let protocol = Plain::<HEADERS>::PROTOCOL;
        let (external, remote) = (Outer::new(protocol, destination), Outer::new(protocol, source));
        let slot = self.table.lookup_in(external, remote)?;
        if !self.table.is_live(slot, now) || !self.is_somebody(Side::Outside, source.addr) {
            return None;
        }
        let port = self.table.session(slot).inner.inside_port();
        if plain.wire_len > usize::from(self.mtu_of(port)) {
            return None;
        }
        let inner = self.enter_known(slot, plain.flow(remote), now);
        plain.forward(packet, End::Destination, inner.spot());
        let verdict = Verdict::Forward(Side::Inside(port));
        self.reports.count_inbound(verdict, plain.total_len);
        Some(verdict)
    }
}

#[cfg(test)]
mod tests;
