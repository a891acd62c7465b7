//! The way of a packet from link to link: through networks, routers and NATs to a host.

use std::net::Ipv4Addr;

use natbox_core::{
    DropReason, InsideId, Packet, Side, Time, Verdict,
    packet::{icmp, ipv4},
};

use crate::{
    Direction, HostId, Input, LinkDrop, LinkId, NatId, Net, Point,
    agenda::What,
    link::{Owner, happens},
    nat,
    network::{Gateway, Network},
    packet::{self, NewError},
    slab::Key,
};

impl Net {
    // ---- Links ----

    /// Puts a packet on a link.
    pub(crate) fn transmit(&mut self, link: Key, direction: Direction, packet: u32) {
        let Some(record) = self.links.get_mut(link) else { return self.lose(packet, |c| &mut c.gone) };
        let len = self.packets.bytes(packet).len();
        let fate = record.pipe_mut(direction).carry(len, self.now, &mut self.rng);
        let at = Point::Carried(LinkId(link), direction);
        let tag = u64::from(link.slot) << 8 | (direction as u64) << 4;
        self.digest.word(self.now.as_nanos());
        match fate {
            Ok((first, second)) => {
                self.digest.word(tag | 8);
                self.digest.word(first.as_nanos());
                self.see(at, packet);
                let copy = second.and_then(|second| Some((second, self.packets.copy(packet)?)));
                self.agenda.add(first, What::Arrive { link, direction, packet });
                if let Some((second, packet)) = copy {
                    self.digest.word(second.as_nanos());
                    self.agenda.add(second, What::Arrive { link, direction, packet });
                }
            }
            Err(why) => {
                self.digest.word(tag | why as u64);
                self.see(Point::Dropped(LinkId(link), direction, why), packet);
                if why == LinkDrop::TooBig {
                    self.report_too_big(link, direction, packet);
                }
                self.packets.give(packet);
            }
        }
    }

    /// A packet comes out of a link.
    pub(crate) fn arrive(&mut self, link: Key, direction: Direction, packet: u32) {
        let Some(record) = self.links.get(link) else { return self.lose(packet, |c| &mut c.gone) };
        match (direction, record.owner) {
            (Direction::Up, _) => self.enter_network(record.network, packet),
            (Direction::Down, Owner::Host(host)) => self.deliver(host, link, packet),
            (Direction::Down, Owner::Gateway(network)) => self.enter_gateway(network, packet),
        }
    }

    fn lose(&mut self, packet: u32, counter: impl FnOnce(&mut crate::Counters) -> &mut u64) {
        *counter(&mut self.counters) += 1;
        self.packets.give(packet);
    }

    // ---- Networks ----

    /// A packet is in a network, from a host there or from a gateway to it: to its destination there, or further up.
    fn enter_network(&mut self, network: Key, packet: u32) {
        let Some(record) = self.networks.get(network) else { return self.lose(packet, |c| &mut c.gone) };
        let is_internet = matches!(record.gateway, Gateway::None);
        if is_internet {
            let bytes = self.packets.bytes(packet);
            let (from, to) = (packet::source(bytes), packet::destination(bytes));
            if self.is_blocked(from, to) {
                return self.lose(packet, |c| &mut c.blocked);
            }
            if !self.hop(network, packet) {
                return;
            }
        }
        let destination = packet::destination(self.packets.bytes(packet));
        if let Some(link) = self.routes.get(network, destination) {
            return self.transmit(link, Direction::Down, packet);
        }
        match self.networks.get(network).map(|record| (&record.gateway, record.uplink)) {
            Some((Gateway::Router, uplink)) => {
                if self.hop(network, packet) {
                    self.transmit(uplink, Direction::Up, packet);
                }
            }
            Some((Gateway::Nat(_), _)) => self.nat_outbound(network, packet),
            _ => self.lose(packet, |c| &mut c.no_route),
        }
    }

    /// A packet comes down to a NAT or router.
    fn enter_gateway(&mut self, network: Key, packet: u32) {
        match self.networks.get(network).map(|record| &record.gateway) {
            Some(Gateway::Nat(_)) => self.nat_inbound(network, packet),
            Some(_) => {
                if self.hop(network, packet) {
                    self.route_inside(network, packet);
                }
            }
            None => self.lose(packet, |c| &mut c.gone),
        }
    }

    /// To a host, NAT or router in this very network.
    fn route_inside(&mut self, network: Key, packet: u32) {
        let destination = packet::destination(self.packets.bytes(packet));
        match self.routes.get(network, destination) {
            Some(link) => self.transmit(link, Direction::Down, packet),
            None => self.lose(packet, |c| &mut c.no_route),
        }
    }

    /// Takes a hop off the packet's TTL; false when it had none left, and its sender hears of it.
    fn hop(&mut self, network: Key, packet: u32) -> bool {
        let bytes = self.packets.buffer(packet);
        if packet::ttl(bytes) > 1 {
            ipv4::decrement_ttl(bytes);
            return true;
        }
        self.report(network, NewError::TimeExceeded, packet);
        self.lose(packet, |c| &mut c.ttl_exceeded);
        false
    }

    /// Whether the path between two addresses swallows this packet.
    fn is_blocked(&mut self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        if self.blocks.is_empty() {
            return false;
        }
        let loss = self.blocks.get(&crate::control::block_word(from, to));
        loss.is_some_and(|loss| *loss >= 1.0 || happens(*loss, &mut self.rng))
    }

    // ---- ICMP errors of routers ----

    /// An error of the router in this network, to the sender of `packet`.
    fn report(&mut self, network: Key, error: NewError, packet: u32) {
        if let Some(error) = self.write_error(network, error, packet) {
            self.enter_network(network, error);
        }
    }

    fn write_error(&mut self, network: Key, error: NewError, packet: u32) -> Option<u32> {
        let source = self.networks.get(network)?.address;
        let slot = self.packets.take()?;
        let mut buffer = std::mem::take(self.packets.buffer(slot));
        let written = packet::write_error(&mut buffer, source, error, self.packets.bytes(packet));
        *self.packets.buffer(slot) = buffer;
        if !written {
            self.packets.give(slot);
            return None;
        }
        Some(slot)
    }

    /// Whoever put a packet on a link that is too narrow for it tells the sender. A NAT's engine does so itself for the
    /// MTU that it knows; a link that has become narrower since then answers as the next router would.
    fn report_too_big(&mut self, link: Key, direction: Direction, packet: u32) {
        let Some(record) = self.links.get(link) else { return };
        let (owner, above) = (record.owner, record.network);
        let error = NewError::TooBig(record.pipe(direction).conditions.mtu);
        match (direction, owner) {
            (Direction::Down, _) => self.report(above, error, packet),
            (Direction::Up, Owner::Host(_)) => {}
            (Direction::Up, Owner::Gateway(network)) => {
                match self.networks.get(network).map(|record| &record.gateway) {
                    Some(Gateway::Nat(_)) => {
                        if let Some(error) = self.write_error(above, error, packet) {
                            self.nat_inbound(network, error);
                        }
                    }
                    _ => self.report(network, error, packet),
                }
            }
        }
    }

    // ---- NATs ----

    fn nat_outbound(&mut self, network: Key, packet: u32) {
        let verdict = self.translate(network, packet, Side::Inside(InsideId(0)));
        self.carry_out(network, packet, verdict, Side::Inside(InsideId(0)));
    }

    fn nat_inbound(&mut self, network: Key, packet: u32) {
        let verdict = self.translate(network, packet, Side::Outside);
        self.carry_out(network, packet, verdict, Side::Outside);
    }

    fn translate(&mut self, network: Key, packet: u32, from: Side) -> Option<Verdict> {
        let engine = nat::engine(&mut self.networks, &self.links, network)?.ok()?;
        let buffer = self.packets.buffer(packet);
        let mut view = Packet::plain(buffer);
        let verdict = match from {
            Side::Inside(port) => engine.outbound(port, &mut view, self.now),
            Side::Outside => engine.inbound(&mut view, self.now),
        };
        let len = view.len();
        buffer.truncate(len);
        Some(verdict)
    }

    fn carry_out(&mut self, network: Key, packet: u32, verdict: Option<Verdict>, from: Side) {
        match verdict {
            Some(Verdict::Forward(to)) => self.leave_nat(network, to, packet),
            Some(Verdict::Hairpin(port)) => self.leave_nat(network, Side::Inside(port), packet),
            Some(Verdict::Reply) => self.leave_nat(network, from, packet),
            Some(Verdict::Local) => self.lose(packet, |c| &mut c.for_gateway),
            // The NAT has a copy.
            Some(Verdict::Held) => self.packets.give(packet),
            Some(Verdict::Drop(reason)) => self.refuse(network, packet, reason),
            None => self.lose(packet, |c| &mut c.gone),
        }
        self.drain_nat(network);
    }

    fn leave_nat(&mut self, network: Key, to: Side, packet: u32) {
        match (to, self.networks.get(network)) {
            (Side::Outside, Some(record)) => self.transmit(record.uplink, Direction::Up, packet),
            (Side::Inside(_), Some(_)) => self.route_inside(network, packet),
            (_, None) => self.lose(packet, |c| &mut c.gone),
        }
    }

    fn refuse(&mut self, network: Key, packet: u32, reason: DropReason) {
        self.digest.word(u64::from(network.slot) << 8 | reason as u64);
        self.see(Point::Refused(NatId(network), reason), packet);
        self.lose(packet, |c| &mut c.refused_by_nat);
    }

    /// Sends what the NAT made itself, and schedules its next timer.
    pub(crate) fn drain_nat(&mut self, network: Key) {
        while let Some(transmit) = self.nat_mut(network).and_then(|nat| nat.poll_transmit()) {
            let Some(packet) = self.packets.take() else {
                self.counters.overflow += 1;
                continue;
            };
            self.packets.buffer(packet).extend_from_slice(&transmit.packet);
            self.leave_nat(network, transmit.to, packet);
        }
        let Some(Network { gateway: Gateway::Nat(state), .. }) = self.networks.get_mut(network) else {
            return;
        };
        let Some(due) = state.existing().and_then(|nat| nat.poll_timeout()) else { return };
        let due = due.max(self.now);
        if due < state.armed {
            state.armed = due;
            self.agenda.add(due, What::NatTimer { network });
        }
    }

    pub(crate) fn nat_timer(&mut self, network: Key, due: Time) {
        let now = self.now;
        let Some(Network { gateway: Gateway::Nat(state), .. }) = self.networks.get_mut(network) else {
            return;
        };
        // An earlier event may have taken this one's place.
        if state.armed != due {
            return;
        }
        state.armed = Time::NEVER;
        if let Some(engine) = state.existing_mut() {
            engine.handle_timeout(now);
            self.drain_nat(network);
        }
    }

    // ---- Hosts ----

    /// A packet reaches a host.
    fn deliver(&mut self, host: Key, link: Key, packet: u32) {
        let Some(record) = self.hosts.get(host) else { return self.lose(packet, |c| &mut c.gone) };
        let bytes = self.packets.bytes(packet);
        match packet::read(bytes, record.is_raw) {
            Err(packet::Damaged) => return self.lose(packet, |c| &mut c.damaged),
            Ok(Input::Datagram(datagram)) if record.is_strict && !self.is_open(host, datagram.to) => {
                self.counters.port_closed += 1;
                return self.answer_closed(link, packet);
            }
            Ok(Input::Packet(bytes)) if !record.is_raw && is_echo_request(bytes) => {
                self.counters.echoes += 1;
                return self.answer_echo(link, packet);
            }
            Ok(_) => {}
        }
        self.counters.delivered += 1;
        self.digest.word(self.now.as_nanos());
        self.digest.word(u64::from(host.slot) << 8 | 1);
        self.see(Point::Delivered(HostId(host)), packet);
        self.ready.push_back((host, packet));
    }

    fn answer_closed(&mut self, link: Key, packet: u32) {
        if let Some(answer) = self.packets.take() {
            let mut buffer = std::mem::take(self.packets.buffer(answer));
            let bytes = self.packets.bytes(packet);
            let source = packet::destination(bytes);
            packet::write_error(&mut buffer, source, NewError::PortUnreachable, bytes);
            let is_empty = buffer.is_empty();
            *self.packets.buffer(answer) = buffer;
            if is_empty {
                self.packets.give(answer);
            } else {
                self.transmit(link, Direction::Up, answer);
            }
        }
        self.packets.give(packet);
    }

    fn answer_echo(&mut self, link: Key, packet: u32) {
        let bytes = self.packets.buffer(packet);
        match ipv4::parse(bytes) {
            Ok(header) => {
                packet::answer_echo(bytes, &header);
                self.transmit(link, Direction::Up, packet);
            }
            Err(_) => self.lose(packet, |c| &mut c.damaged),
        }
    }
}

fn is_echo_request(packet: &[u8]) -> bool {
    ipv4::parse(packet).is_ok_and(|header| {
        header.protocol == ipv4::ICMP
            && !header.is_fragment
            && packet.get(header.header_len) == Some(&icmp::ECHO)
    })
}
