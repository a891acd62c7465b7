//! The way of a packet.
//!
//! Every packet is parsed once, then **leaves** (from inside: find or make its mapping and session), **enters** (from
//! outside: find the session, or a mapping whose filter admits the sender), or, for a hairpin, does both. What these
//! two return is the endpoint to write into the packet.
//!
//! Most packets never come here: those of known flows go a shorter way (`known.rs`) where nothing about them is unusual.

use std::{net::Ipv4Addr, time::Duration};

use crate::{
    DropReason, InsideId, Nat, Packet, Protocol, Side, Time, Verdict,
    behavior::{Hairpin, Refresh, Unsolicited, UnsolicitedSyn},
    index::NONE,
    nat::Network,
    packed::{Inner, Outer},
    packet::{ipv4, tcp::Flags},
    table::NewSession,
    tcp::State,
    transport::{End, Parsed, Transport, forward, rewrite},
};

/// A packet that belongs to a flow through one mapping.
#[derive(Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) protocol: Protocol,
    pub(crate) remote: Outer,
    pub(crate) flags: Option<Flags>,
}

impl Nat {
    /// Translates a packet that came from the hosts behind `from`.
    pub fn outbound(&mut self, from: InsideId, packet: &mut Packet<'_>, now: Time) -> Verdict {
        let now = self.advance(now);
        self.table.exports.known = NONE;
        if let Some(verdict) = self.known_outbound(from, packet, now) {
            return verdict;
        }
        self.outbound_of_any_kind(from, packet, now)
    }

    #[inline(never)]
    pub(crate) fn outbound_of_any_kind(
        &mut self,
        from: InsideId,
        packet: &mut Packet<'_>,
        now: Time,
    ) -> Verdict {
        let routed = self.route_out(from, packet, now);
        self.conclude_outbound(routed, from, packet, now)
    }

    /// What becomes of a packet from inside, which is counted.
    pub(crate) fn conclude_outbound(
        &mut self,
        routed: Result<Verdict, DropReason>,
        from: InsideId,
        packet: &mut Packet<'_>,
        now: Time,
    ) -> Verdict {
        let side = Side::Inside(from);
        let verdict = match routed {
            Ok(verdict) if ipv4::is_atomic(packet.bytes()) => verdict,
            Ok(verdict) => {
                self.identify(verdict, packet);
                self.cut(side, verdict, packet).unwrap_or_else(Verdict::Drop)
            }
            // What is exempt from translation needs no ports.
            Err(why) => match self.unread_out(why, from, packet, now) {
                Ok(verdict) => self.cut(side, verdict, packet).unwrap_or_else(Verdict::Drop),
                Err(DropReason::Fragment) => self.fragmented(side, packet, now),
                Err(reason) => Verdict::Drop(reason),
            },
        };
        self.reports.count_outbound(verdict, packet.len());
        verdict
    }

    /// Translates a packet that came from outside.
    pub fn inbound(&mut self, packet: &mut Packet<'_>, now: Time) -> Verdict {
        let now = self.advance(now);
        self.table.exports.known = NONE;
        if let Some(verdict) = self.known_inbound(packet, now) {
            return verdict;
        }
        self.inbound_of_any_kind(packet, now)
    }

    #[inline(never)]
    pub(crate) fn inbound_of_any_kind(&mut self, packet: &mut Packet<'_>, now: Time) -> Verdict {
        let verdict = match self.route_in(packet, now) {
            Ok(verdict) if ipv4::is_atomic(packet.bytes()) => verdict,
            Ok(verdict) => self.cut(Side::Outside, verdict, packet).unwrap_or_else(Verdict::Drop),
            Err(DropReason::Fragment) => self.fragmented(Side::Outside, packet, now),
            Err(reason) => Verdict::Drop(reason),
        };
        self.reports.count_inbound(verdict, packet.len());
        verdict
    }

    // ---- Outbound ----

    /// `Err(DropReason::Fragment)` is for a fragment: there is another way for it.
    #[inline(always)]
    fn route_out(
        &mut self,
        from: InsideId,
        packet: &mut Packet<'_>,
        now: Time,
    ) -> Result<Verdict, DropReason> {
        if usize::from(from.0) >= self.inside.len() {
            return Err(DropReason::BadSource);
        }
        let parsed = Parsed::new(packet.bytes())?;
        packet.truncate(parsed.ip.total_len);
        self.leave_by(from, packet, parsed, now)
    }

    /// A packet that could be read comes from an inside port, which there is.
    #[inline(always)]
    pub(crate) fn leave_by(
        &mut self,
        from: InsideId,
        packet: &mut Packet<'_>,
        parsed: Parsed,
        now: Time,
    ) -> Result<Verdict, DropReason> {
        let Network { gateway, shared, .. } = self.inside[usize::from(from.0)];
        if parsed.ip.destination == gateway {
            return Ok(match shared {
                true => Verdict::Local,
                false => self.local_inside(packet, &{ parsed }, Side::Inside(from), now),
            });
        }
        let back = (Side::Inside(from), gateway);
        if parsed.transport == Transport::Error {
            return self.error_out(from, packet, &{ parsed }, back, now);
        }
        let (inner, remote) = (parsed.inner_source(from), parsed.outer_destination());
        if self.table.is_external(parsed.ip.destination) {
            return self.hairpin(inner, packet, &{ parsed }, back, now);
        }
        let flow = Flow { protocol: parsed.protocol, remote, flags: parsed.tcp_flags() };
        if let Some(slot) = self.table.find_out(inner, remote, now, &mut self.reports) {
            self.check_ttl(packet, &parsed, back, now)?;
            self.check_mtu(packet, &parsed, self.outside_mtu, back, now)?;
            let external = self.leave_known(slot, flow, now);
            forward(packet, &parsed, End::Source, external.spot());
            return Ok(Verdict::Forward(Side::Outside));
        }
        self.begin_out(inner, packet, &{ parsed }, flow, back, now)
    }

    /// The first packet of a flow from inside.
    #[inline(never)]
    pub(crate) fn begin_out(
        &mut self,
        inner: Inner,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        flow: Flow,
        back: (Side, Ipv4Addr),
        now: Time,
    ) -> Result<Verdict, DropReason> {
        self.check_source(back.0, parsed)?;
        if !ipv4::is_host(parsed.ip.destination)
            || self.is_broadcast(inner.inside_port(), parsed.ip.destination)
        {
            return Err(DropReason::BadDestination);
        }
        if let Some(to) = self.neighbour(inner.inside_port(), parsed.ip.destination) {
            return self.route(to, packet, parsed, back, now);
        }
        self.check_ttl(packet, parsed, back, now)?;
        self.check_mtu(packet, parsed, self.outside_mtu, back, now)?;
        if !self.may_leave(parsed.protocol, parsed.destination.port) {
            return Err(self.turn_away(DropReason::Prohibited, packet, back, now));
        }
        if self.is_untranslated(parsed.destination) {
            return self.pass_out(packet, parsed, back, now);
        }
        let left = self.leave_new(inner, parsed.transport, flow, now);
        let external = left.map_err(|why| self.turn_away(why, packet, back, now))?;
        forward(packet, parsed, End::Source, external.spot());
        Ok(Verdict::Forward(Side::Outside))
    }

    /// A packet of a known session leaves: its state advances, its timer starts afresh.
    #[inline(always)]
    pub(crate) fn leave_known(&mut self, slot: u32, flow: Flow, now: Time) -> Outer {
        self.table.exports.known = slot;
        self.table.permit(slot);
        let session = self.table.session_mut(slot);
        let external = session.external;
        if let Some(flags) = flow.flags {
            let was = session.state;
            let is = was.after(true, flags);
            session.state = is;
            if keeps_alive(was, is) {
                self.table.refresh(slot, now + is.tcp_timeout(&self.behavior));
                if was != is {
                    self.changed(slot, was, is, now);
                }
            }
        } else if flow.protocol == Protocol::Icmp || self.behavior.refresh != Refresh::Inbound {
            let timeout = match (flow.protocol, session.state) {
                (Protocol::Icmp, _) => self.behavior.icmp_timeout,
                (_, state) => self.udp_timeout(state, flow.remote),
            };
            self.table.refresh(slot, now + timeout);
        }
        external
    }

    /// A segment has changed the state of its connection.
    #[cold]
    fn changed(&mut self, slot: u32, was: State, is: State, now: Time) {
        self.table.exports.recall(slot);
        if is == State::Reset && was.ends_by_reset(&self.behavior) {
            self.table.end_session(slot, now, &mut self.reports);
        }
    }

    /// The idle lifetime of a UDP session in this state.
    #[inline(always)]
    pub(crate) fn udp_timeout(&self, state: State, remote: Outer) -> Duration {
        match state {
            State::Replied => self.behavior.udp_replied_timeout,
            State::Brief => self.brief_timeout(remote),
            _ => self.behavior.udp_timeout,
        }
    }

    /// The idle lifetime of a UDP session whose remote port has one of its own, or had one (RFC 4787 REQ-5a).
    #[inline(never)]
    fn brief_timeout(&self, remote: Outer) -> Duration {
        let own = self.behavior.udp_port_timeouts.get(remote.spot().port);
        own.unwrap_or(self.behavior.udp_timeout)
    }

    /// Whether packets to such a port outside may leave.
    #[inline(always)]
    pub(crate) fn may_leave(&self, protocol: Protocol, port: u16) -> bool {
        match protocol {
            Protocol::Udp => self.behavior.allow_udp.permits(port),
            Protocol::Tcp => self.behavior.allow_tcp.permits(port),
            Protocol::Icmp => true,
        }
    }

    // ---- Inbound ----

    #[inline(always)]
    fn route_in(&mut self, packet: &mut Packet<'_>, now: Time) -> Result<Verdict, DropReason> {
        let parsed = match Parsed::new(packet.bytes()) {
            Ok(parsed) => parsed,
            Err(reason) if !self.behavior.untranslated.is_empty() => {
                return self.unread_in(reason, packet, now);
            }
            Err(DropReason::Fragment) => return Err(DropReason::Fragment),
            // On a shared address what the NAT does not understand is the host's.
            Err(_) if self.shared => return Ok(Verdict::Local),
            Err(reason) => return Err(reason),
        };
        packet.truncate(parsed.ip.total_len);
        self.enter_by(packet, parsed, now)
    }

    /// A packet that could be read comes from outside.
    #[inline(always)]
    pub(crate) fn enter_by(
        &mut self,
        packet: &mut Packet<'_>,
        parsed: Parsed,
        now: Time,
    ) -> Result<Verdict, DropReason> {
        if !self.table.is_external(parsed.ip.destination) {
            return self.pass_in(packet, &{ parsed }, now);
        }
        // Nobody outside has such an address, or ours (RFC 1812 §5.3.7): what claims it is forged.
        if let Err(forged) = self.check_source(Side::Outside, &parsed) {
            return if self.shared { Ok(Verdict::Local) } else { Err(forged) };
        }
        if parsed.transport == Transport::Error {
            return match self.error_in(packet, &{ parsed }, now) {
                Err(_) if self.shared => Ok(Verdict::Local),
                result => result.map(|to| Verdict::Forward(Side::Inside(to))),
            };
        }
        let (external, remote) = (parsed.outer_destination(), parsed.outer_source());
        let flow = Flow { protocol: parsed.protocol, remote, flags: parsed.tcp_flags() };
        let inner = match self.enter(external, flow, now) {
            Ok(inner) => inner,
            Err(DropReason::NoMapping) if self.shared => return Ok(Verdict::Local),
            Err(DropReason::NoMapping) if parsed.transport == (Transport::Query { request: true }) => {
                return Ok(self.local(packet, &{ parsed }, Side::Outside));
            }
            Err(DropReason::NoMapping | DropReason::Filtered) if flow.flags.is_some_and(Flags::opens) => {
                return Err(self.refuse_syn(packet, &{ parsed }, now));
            }
            Err(reason) => return Err(reason),
        };
        let back = (Side::Outside, parsed.ip.destination);
        self.check_ttl(packet, &parsed, back, now)?;
        self.check_mtu(packet, &parsed, self.mtu_of(inner.inside_port()), back, now)?;
        forward(packet, &parsed, End::Destination, inner.spot());
        Ok(Verdict::Forward(Side::Inside(inner.inside_port())))
    }

    /// A packet from `flow.remote` enters at `external`: whose is it?
    #[inline(always)]
    fn enter(&mut self, external: Outer, flow: Flow, now: Time) -> Result<Inner, DropReason> {
        match self.table.find_in(external, flow.remote, now, &mut self.reports) {
            Some(slot) => Ok(self.enter_known(slot, flow, now)),
            None => self.enter_new(external, flow, now),
        }
    }

    /// A packet of no session enters, if the filter lets it.
    #[inline(never)]
    fn enter_new(&mut self, external: Outer, flow: Flow, now: Time) -> Result<Inner, DropReason> {
        let Flow { protocol, remote, flags } = flow;
        // A permission does not know the time: it goes when its last session is given back.
        self.table.expire(now, &mut self.reports);
        let (holders, count) = self.table.find_external(external, now, &mut self.reports);
        let admitting = holders[..count].iter().copied().find(|slot| self.table.admits(*slot, remote));
        let Some(slot) = admitting else {
            self.leave_behind(external, flow, now);
            return Err(if count == 0 { DropReason::NoMapping } else { DropReason::Filtered });
        };
        let inner = self.table.mapping(slot).inner;
        match flags {
            // Only TCP makes a session of an inbound packet: the answer must go by the same mapping. Elsewhere an
            // outsider cannot fill the table.
            Some(flags) if flags.opens() => self.enter_syn(slot, remote, now)?,
            Some(_) => return Err(DropReason::StrayTcp),
            None if self.behavior.refresh != Refresh::Outbound && protocol == Protocol::Udp => {
                self.table.extend_mapping(slot, now + self.behavior.udp_timeout);
            }
            None => {}
        }
        Ok(inner)
    }

    /// What nothing admits may still take its tuple, as it would from a gateway whose own stack answers.
    fn leave_behind(&mut self, external: Outer, flow: Flow, now: Time) {
        let lasts = match (flow.protocol, flow.flags) {
            (Protocol::Udp, _) => self.behavior.udp_timeout,
            // One that is refused is over at once; one that gets no answer is not.
            (Protocol::Tcp, Some(flags))
                if flags.opens() && self.behavior.unsolicited_syn != UnsolicitedSyn::Reset =>
            {
                self.behavior.tcp_opening_timeout
            }
            _ => return,
        };
        if self.behavior.unsolicited == Unsolicited::Occupy {
            let taken = self.table.strays.take(external, flow.remote, now + lasts, now);
            let counters = &mut self.reports.counters;
            *if taken { &mut counters.tuples_occupied } else { &mut counters.tuples_not_occupied } += 1;
        }
    }

    /// A SYN that the filter admits makes the session of its connection.
    fn enter_syn(&mut self, mapping: u32, remote: Outer, now: Time) -> Result<(), DropReason> {
        let (inner, external) = {
            let mapping = self.table.mapping(mapping);
            (mapping.inner, mapping.external)
        };
        // The host can have only one connection with this remote; one by another mapping must be over, or the answer
        // would leave by that one.
        if let Some(other) = self.table.find_out(inner, remote, now, &mut self.reports) {
            if !matches!(self.table.session(other).state, State::Closed | State::Reset) {
                return Err(DropReason::StrayTcp);
            }
            self.table.end_session(other, now, &mut self.reports);
        }
        self.table.has_room(mapping)?;
        let expires = now + self.behavior.tcp_opening_timeout;
        let new = NewSession { remote, state: State::SynIn, expires };
        self.table.insert_session(mapping, new, now, &mut self.reports).ok_or(DropReason::TableFull)?;
        // It may have been refused before the filter let it in.
        self.pending.cancel(external, remote);
        Ok(())
    }

    #[inline(always)]
    pub(crate) fn enter_known(&mut self, slot: u32, flow: Flow, now: Time) -> Inner {
        self.table.exports.known = slot;
        let session = self.table.session_mut(slot);
        let inner = session.inner;
        if let Some(flags) = flow.flags {
            let was = session.state;
            let is = was.after(false, flags);
            session.state = is;
            if keeps_alive(was, is) {
                self.table.refresh(slot, now + is.tcp_timeout(&self.behavior));
                if was != is {
                    self.changed(slot, was, is, now);
                }
            }
            return inner;
        }
        let was = session.state;
        let is = if was == State::Brief { was } else { State::Replied };
        session.state = is;
        let counts = flow.protocol == Protocol::Udp && self.behavior.refresh != Refresh::Outbound;
        if counts {
            self.table.refresh(slot, now + self.udp_timeout(is, flow.remote));
        }
        if was != is {
            self.answered(slot, counts);
        }
        inner
    }

    /// The first answer to a session's packets has come in, and may have set its timer.
    #[cold]
    fn answered(&mut self, slot: u32, was_set: bool) {
        if was_set {
            self.table.exports.recall(slot);
        } else {
            self.table.exports.replace(slot);
        }
    }

    /// An inbound SYN that found no way in (RFC 5382 REQ-4).
    #[inline(never)]
    fn refuse_syn(&mut self, packet: &Packet<'_>, parsed: &Parsed, now: Time) -> DropReason {
        match self.behavior.unsolicited_syn {
            UnsolicitedSyn::Wait => {
                self.pending.add(parsed.outer_destination(), parsed.outer_source(), packet.bytes(), now);
            }
            UnsolicitedSyn::Reset => {
                self.generator.reset(Side::Outside, packet.bytes(), now, &mut self.reports.counters);
            }
            UnsolicitedSyn::Drop => {}
        }
        DropReason::UnsolicitedSyn
    }

    // ---- Hairpin ----

    /// A packet from inside to one of our own external endpoints (RFC 4787 §6).
    #[inline(never)]
    fn hairpin(
        &mut self,
        inner: Inner,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        back: (Side, Ipv4Addr),
        now: Time,
    ) -> Result<Verdict, DropReason> {
        let target = parsed.outer_destination();
        let (_, holders) = self.table.find_external(target, now, &mut self.reports);
        if holders == 0 {
            return if self.shared || parsed.transport == (Transport::Query { request: true }) {
                Ok(self.local(packet, parsed, back.0))
            } else {
                Err(DropReason::NoMapping)
            };
        }
        self.check_ttl(packet, parsed, back, now)?;
        if self.behavior.hairpin == Hairpin::Off {
            return Err(DropReason::HairpinOff);
        }
        let out = Flow { protocol: parsed.protocol, remote: target, flags: parsed.tcp_flags() };
        let external = match self.table.find_out(inner, target, now, &mut self.reports) {
            Some(slot) => self.leave_known(slot, out, now),
            None => {
                self.check_source(back.0, parsed)?;
                let left = self.leave_new(inner, parsed.transport, out, now);
                left.map_err(|why| self.turn_away(why, packet, back, now))?
            }
        };
        let to = self.enter(target, Flow { remote: external, ..out }, now)?;
        self.check_mtu(packet, parsed, self.mtu_of(to.inside_port()), back, now)?;
        if self.behavior.hairpin == Hairpin::External {
            rewrite(packet, parsed, End::Source, external.spot());
        }
        forward(packet, parsed, End::Destination, to.spot());
        Ok(Verdict::Hairpin(to.inside_port()))
    }
}

/// Whether a segment restarts its session's timer: not once both sides have closed, and a reset only the first time
/// (RFC 7857 §2.2).
pub(crate) fn keeps_alive(was: State, is: State) -> bool {
    was != is || !matches!(is, State::Closed | State::Reset)
}
