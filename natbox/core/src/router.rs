//! Router manners: what a NAT owes its neighbours as a router (RFC 1812). Packets for its own addresses, between inside
//! networks, with no hops left, too big for the next link, or not to be let out.

use std::net::Ipv4Addr;

use crate::{
    DropReason, InsideId, Nat, Packet, Side, Time, Verdict,
    behavior::{Exhaustion, StrayTcp},
    generate::Error,
    nat::Network,
    packed::{Inner, Spot},
    packet::ipv4,
    transport::{Parsed, Transport, answer_echo},
};

impl Nat {
    /// A packet for an address of the NAT itself: echo requests are answered, unless the host does that.
    #[inline(never)]
    pub(crate) fn local(&self, packet: &mut Packet<'_>, parsed: &Parsed, from: Side) -> Verdict {
        let hosts = self.shared && self.table.is_external(parsed.ip.destination);
        if hosts
            || !self.is_somebody(from, parsed.ip.source)
            || parsed.transport != (Transport::Query { request: true })
            || !parsed.is_echo(packet.bytes())
        {
            return Verdict::Local;
        }
        answer_echo(packet.bytes_mut(), &parsed.ip);
        Verdict::Reply
    }

    /// A packet for the NAT's own address inside, where nothing listens: a router says so as any host does (RFC 1122
    /// §4.1.3.1, RFC 9293 §3.10.7.1).
    #[inline(never)]
    pub(crate) fn local_inside(
        &mut self,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        to: Side,
        now: Time,
    ) -> Verdict {
        let verdict = self.local(packet, parsed, to);
        if verdict == Verdict::Local && self.is_somebody(to, parsed.ip.source) {
            match parsed.transport {
                Transport::Udp => {
                    self.complain(packet, Error::PortUnreachable, (to, parsed.ip.destination), now)
                }
                Transport::Tcp { .. } => {
                    self.generator.reset(to, packet.bytes(), now, &mut self.reports.counters);
                }
                Transport::Query { .. } | Transport::Error => {}
            }
        }
        verdict
    }

    /// A packet for another inside port's network, or for the NAT's own address there.
    pub(crate) fn route(
        &mut self,
        to: InsideId,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        back: (Side, Ipv4Addr),
        now: Time,
    ) -> Result<Verdict, DropReason> {
        let network = self.inside[usize::from(to.0)];
        let Network { gateway, mtu, .. } = network;
        if parsed.ip.destination == gateway {
            return Ok(match back.0 {
                Side::Outside => self.local(packet, parsed, back.0),
                Side::Inside(_) => self.local_inside(packet, parsed, back.0, now),
            });
        }
        // From another network nobody speaks to all hosts of one (RFC 2644).
        if network.is_broadcast(parsed.ip.destination) {
            return Err(DropReason::BadDestination);
        }
        self.check_ttl(packet, parsed, back, now)?;
        self.check_mtu(packet, parsed, mtu, back, now)?;
        ipv4::decrement_ttl(packet.bytes_mut());
        Ok(Verdict::Forward(Side::Inside(to)))
    }

    /// Tells the sender of a new flow why it may not leave, where that is the custom (RFC 5508 REQ-8).
    pub(crate) fn turn_away(
        &mut self,
        why: DropReason,
        packet: &Packet<'_>,
        (to, source): (Side, Ipv4Addr),
        now: Time,
    ) -> DropReason {
        match why {
            DropReason::StrayTcp if self.behavior.stray_tcp == StrayTcp::Reset => {
                self.generator.reset(to, packet.bytes(), now, &mut self.reports.counters);
            }
            DropReason::Prohibited => self.complain(packet, Error::Prohibited, (to, source), now),
            DropReason::PortsExhausted
            | DropReason::TableFull
            | DropReason::SubscriberMappings
            | DropReason::SubscriberSessions
            | DropReason::SubscriberRate => self.tell_exhausted(why, packet, (to, source), now),
            _ => {}
        }
        why
    }

    /// Tells the sender that there is no room, by the code that the behaviour has for it (RFC 6888 REQ-11b).
    fn tell_exhausted(&mut self, why: DropReason, packet: &Packet<'_>, back: (Side, Ipv4Addr), now: Time) {
        let error = match self.behavior.exhaustion {
            Exhaustion::Prohibited => Error::Prohibited,
            Exhaustion::HostUnreachable => Error::HostUnreachable,
            Exhaustion::Drop => return,
        };
        // There is enough for the others: who has had its share is told so more seldom.
        let is_own_fault = !matches!(why, DropReason::PortsExhausted | DropReason::TableFull);
        if is_own_fault
            && let (Side::Inside(port), Ok(header)) = (back.0, ipv4::read(packet.bytes()))
            && !self.table.tell(Inner::new(port, Spot { addr: header.source, port: 0 }), now)
        {
            self.reports.counters.generated_suppressed += 1;
            return;
        }
        self.complain(packet, error, back, now);
    }

    /// Whether a packet may come from this source: from inside as the first of a flow, from outside as any.
    pub(crate) fn check_source(&self, from: Side, parsed: &Parsed) -> Result<(), DropReason> {
        if self.is_somebody(from, parsed.ip.source) { Ok(()) } else { Err(DropReason::BadSource) }
    }

    /// Whether somebody on this side can have the address. What comes from one of ours is forged, and what is sent to a
    /// network's broadcast address goes to everybody there (RFC 1812 §5.3.7); outside we know no networks.
    #[inline(always)]
    pub(crate) fn is_somebody(&self, side: Side, addr: Ipv4Addr) -> bool {
        let is_everybody = match side {
            Side::Inside(id) => self.is_broadcast(id, addr),
            Side::Outside => false,
        };
        ipv4::is_host(addr) && !is_everybody && !self.is_own(addr)
    }

    /// Whether the address is the NAT's own, outside or inside.
    #[inline(always)]
    pub(crate) fn is_own(&self, addr: Ipv4Addr) -> bool {
        self.table.is_external(addr) || self.inside.iter().any(|port| port.gateway == addr)
    }

    /// Whether the address is that of all hosts behind this inside port.
    #[inline(always)]
    pub(crate) fn is_broadcast(&self, id: InsideId, addr: Ipv4Addr) -> bool {
        self.inside.get(usize::from(id.0)).is_some_and(|network| network.is_broadcast(addr))
    }

    #[inline(always)]
    pub(crate) fn check_ttl(
        &mut self,
        packet: &Packet<'_>,
        parsed: &Parsed,
        back: (Side, Ipv4Addr),
        now: Time,
    ) -> Result<(), DropReason> {
        if parsed.ip.ttl > 1 {
            return Ok(());
        }
        self.complain(packet, Error::TimeExceeded, back, now);
        Err(DropReason::TtlExceeded)
    }

    #[inline(always)]
    pub(crate) fn check_mtu(
        &mut self,
        packet: &Packet<'_>,
        parsed: &Parsed,
        mtu: u16,
        back: (Side, Ipv4Addr),
        now: Time,
    ) -> Result<(), DropReason> {
        if parsed.wire_len(&packet.offload) <= mtu.into() {
            return Ok(());
        }
        self.too_big(packet, parsed, mtu, back, now)
    }

    /// What may be fragmented goes on, and is cut at the end of its way (RFC 4787 REQ-13a); a super-frame is told to be
    /// smaller.
    #[cold]
    fn too_big(
        &mut self,
        packet: &Packet<'_>,
        parsed: &Parsed,
        mtu: u16,
        back: (Side, Ipv4Addr),
        now: Time,
    ) -> Result<(), DropReason> {
        if !parsed.ip.dont_fragment && packet.offload.gso.is_none() {
            return Ok(());
        }
        self.complain(packet, Error::FragmentationNeeded { mtu }, back, now);
        Err(DropReason::TooBig)
    }

    #[cold]
    fn complain(&mut self, packet: &Packet<'_>, error: Error, back: (Side, Ipv4Addr), now: Time) {
        let source = ipv4::read(packet.bytes()).map(|header| header.source);
        if source.is_ok_and(|source| self.is_somebody(back.0, source)) {
            self.send_error(back, error, packet.bytes(), now);
        }
    }

    /// Sends an ICMP error from the address `source` about `original`, where the behaviour lets errors of our own go
    /// (RFC 5508 REQ-9).
    pub(crate) fn send_error(
        &mut self,
        (to, source): (Side, Ipv4Addr),
        error: Error,
        original: &[u8],
        now: Time,
    ) {
        if self.behavior.icmp_errors.go(to) {
            self.generator.icmp_error(to, source, error, original, now, &mut self.reports.counters);
        }
    }

    /// The MTU of an inside port's link.
    #[inline(always)]
    pub(crate) fn mtu_of(&self, port: InsideId) -> u16 {
        self.inside[usize::from(port.0)].mtu
    }

    /// Whether a packet from behind this inside port goes to one host, and to none that is behind another.
    #[inline(always)]
    pub(crate) fn is_beyond(&self, from: InsideId, addr: Ipv4Addr) -> bool {
        ipv4::is_host(addr) && !self.is_broadcast(from, addr) && self.neighbour(from, addr).is_none()
    }

    /// The other inside port on whose network `addr` lies: the NAT is those networks' router.
    #[inline]
    pub(crate) fn neighbour(&self, from: InsideId, addr: Ipv4Addr) -> Option<InsideId> {
        let own = self.inside.get(usize::from(from.0)).is_some_and(|network| network.holds(addr));
        self.network_of(addr).filter(|_| !own)
    }

    /// The first inside port on whose network `addr` lies.
    pub(crate) fn network_of(&self, addr: Ipv4Addr) -> Option<InsideId> {
        let number = self.inside.iter().position(|network| network.holds(addr))?;
        Some(InsideId(number as u16))
    }
}

impl Network {
    #[inline(always)]
    fn holds(&self, addr: Ipv4Addr) -> bool {
        self.mask != 0 && (self.gateway.to_bits() ^ addr.to_bits()) & self.mask == 0
    }

    /// Networks of one or two addresses have no broadcast address (RFC 3021).
    #[inline(always)]
    fn is_broadcast(&self, addr: Ipv4Addr) -> bool {
        let hosts = !self.mask;
        hosts > 1 && addr.to_bits() & hosts == hosts && self.holds(addr)
    }
}
