//! The short way of a packet of a known flow, and of one from inside that begins a flow.
//!
//! Nearly every packet has an IP header without options, is whole, is of UDP or TCP, and belongs to a session that is
//! alive. Of such a one everything lies at offsets that the compiler knows, for each transport and in each direction a
//! function of its own. Whatever is otherwise, or would end in anything but a translated packet, is left untouched and
//! goes the long way (`translate.rs`), which decides everything: the two must agree on what passes here. What is of no
//! session begins one here where there is nothing to be said of its ends.

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
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        Behavior, Config, InsidePort,
        behavior::PortAssignment,
        packet::{Gso, GsoKind, Offload},
    };

    const EXTERNAL: [u8; 4] = [198, 51, 100, 1];
    const GATEWAY: [u8; 4] = [10, 0, 0, 1];

    /// A packet and what is wrong with it.
    #[derive(Clone, Debug)]
    struct Sent {
        outward: bool,
        /// Numbers that choose among few ends, so that flows meet again.
        ends: (u8, u8),
        flags: Option<u8>,
        ttl: u8,
        dont_fragment: bool,
        payload: usize,
        offload: (bool, Option<u16>),
        /// A byte that is changed, and what is added to it.
        damage: Option<(usize, u8)>,
        /// Bytes behind the packet, or, when negative, bytes that it lacks.
        excess: i8,
        later: u64,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let damage = prop_oneof![6 => Just(None), 1 => (0usize..44, 1u8..).prop_map(Some)];
        let excess = prop_oneof![6 => Just(0), 1 => -30i8..30];
        let ttl = prop_oneof![6 => Just(64u8), 1 => 0u8..3];
        let payload = prop_oneof![6 => 0usize..40, 1 => 1400usize..1600];
        let gso = prop_oneof![4 => Just(None), 1 => (100u16..1600).prop_map(Some)];
        let flags = prop_oneof![1 => Just(None), 1 => (0u8..32).prop_map(Some), 1 => Just(Some(Flags::ACK))];
        let later = prop_oneof![3 => 0u64..20, 1 => 0u64..400];
        let what = ((any::<bool>(), 0u8..6, 0u8..6), flags, ttl, any::<bool>(), payload);
        (what, (any::<bool>(), gso), damage, excess, later).prop_map(
            |(((outward, near, far), flags, ttl, dont_fragment, payload), offload, damage, excess, later)| {
                let ends = (near, far);
                Sent { outward, ends, flags, ttl, dont_fragment, payload, offload, damage, excess, later }
            },
        )
    }

    impl Sent {
        /// Among the addresses are the NAT's own.
        fn bytes(&self) -> Vec<u8> {
            let (near, far) = self.ends;
            let inside = [[10, 0, 0, 2], [10, 0, 0, 3], GATEWAY][usize::from(near) % 3];
            let outside =
                [[203, 0, 113, 5], [203, 0, 113, 6], EXTERNAL, GATEWAY, [203, 0, 113, 5], [203, 0, 113, 5]];
            let (outside, ports) = (outside[usize::from(far)], (4000 + u16::from(near), 80));
            let ((source, from), (destination, to)) = match self.outward {
                true => ((inside, ports.0), (outside, ports.1)),
                false => ((outside, ports.1), (EXTERNAL, ports.0)),
            };
            let mut ip =
                etherparse::Ipv4Header::new(0, self.ttl, etherparse::IpNumber::UDP, source, destination)
                    .unwrap();
            ip.dont_fragment = self.dont_fragment;
            let builder = PacketBuilder::ip(etherparse::IpHeaders::Ipv4(ip, Default::default()));
            let (mut bytes, payload) = (Vec::new(), vec![7; self.payload]);
            match self.flags {
                None => builder.udp(from, to).write(&mut bytes, &payload).unwrap(),
                Some(flags) => {
                    builder.tcp(from, to, 1, 512).write(&mut bytes, &payload).unwrap();
                    bytes[MIN_HEADER + 13] = flags;
                }
            }
            if let Some((at, what)) = self.damage
                && let Some(byte) = bytes.get_mut(at)
            {
                *byte = byte.wrapping_add(what);
                if what % 2 == 0 {
                    // What it says of itself is wrong, and its checksum is right.
                    bytes[10..12].fill(0);
                    let field = crate::packet::checksum::checksum(&bytes[..MIN_HEADER]);
                    put_u16(&mut bytes, ipv4::CHECKSUM, field);
                }
            }
            bytes.resize(bytes.len().saturating_add_signed(self.excess.into()), 0);
            bytes
        }

        fn offload(&self) -> Offload {
            let (partial, segment) = self.offload;
            let kind = if self.flags.is_some() { GsoKind::TcpV4 } else { GsoKind::Udp };
            Offload {
                checksum: if partial {
                    Checksum::Partial { start: 20, offset: 6 }
                } else {
                    Checksum::Verified
                },
                gso: segment.map(|segment| Gso { kind, segment, header_len: 0, ecn: false }),
            }
        }
    }

    fn nat() -> (Nat, InsideId) {
        // What is sent inwards must know the ports.
        let behavior = Behavior { ports: PortAssignment::Preserve, ..Behavior::RFC };
        let mut nat = Nat::new(Config { behavior, ..Config::new(EXTERNAL.into()) }, 7).unwrap();
        let gateway = Ipv4Addr::from(GATEWAY).into();
        let inside = InsidePort { gateway, prefix_len: 24, mtu: 1450, shared: false };
        let inside = nat.add_inside(inside).unwrap();
        (nat, inside)
    }

    proptest! {
        /// Whatever comes, the short way and the long way make the same of it.
        #[test]
        fn both_ways_lead_to_the_same(packets in proptest::collection::vec(sent(), 1..60)) {
            let ((mut short, inside), (mut long, _)) = (nat(), nat());
            let mut now = Time::ZERO;
            for sent in packets {
                now = now + Duration::from_secs(sent.later);
                let (mut first, mut second) = (sent.bytes(), sent.bytes());
                let mut packet = Packet::new(&mut first, 0, sent.offload());
                let mut other = Packet::new(&mut second, 0, sent.offload());
                long.advance(now);
                let verdicts = match sent.outward {
                    true => (short.outbound(inside, &mut packet, now), long.outbound_of_any_kind(inside, &mut other, now)),
                    false => (short.inbound(&mut packet, now), long.inbound_of_any_kind(&mut other, now)),
                };
                prop_assert_eq!(verdicts.0, verdicts.1, "{:?}", sent);
                prop_assert_eq!(packet.bytes(), other.bytes());
                prop_assert_eq!(short.counters(), long.counters());
                prop_assert_eq!(short.poll_timeout(), long.poll_timeout());
                prop_assert!(short.sessions().eq(long.sessions()));
            }
        }
    }
}
