//! From port to engine to port.

use std::{io, net::Ipv4Addr};

use natbox_core::{Claim, InsideId, Nat, Side as NatSide, Time, Verdict, ends, packet::Offload};

use super::RunError;
use crate::{
    datapath::{
        Batch, ETHERTYPE_ARP, ETHERTYPE_IPV4, Outgoing, Port, PortError, PortStats, coalesce::coalesce,
    },
    guard::Guard,
    host::Route,
    neighbor::{Delivery, Neighbors},
    output::{Direction, Flow, PacketLog},
};

/// The index of the outside port; inside port `n` of the engine is the one at `n + 1`.
pub(super) const OUTSIDE: usize = 0;

/// Who is told which external ports are natbox's, before the packets that use them leave.
pub(super) trait Claims {
    fn apply(&mut self, claim: Claim);
    fn flush(&mut self) -> io::Result<()>;
}

impl Claims for Guard {
    fn apply(&mut self, claim: Claim) {
        Guard::apply(self, claim);
    }

    fn flush(&mut self) -> io::Result<()> {
        Guard::flush(self)
    }
}

/// A port, and who is next on its link.
pub(super) struct Side {
    pub(super) port: Box<dyn Port + Send>,
    /// `None` on a TUN, where there is nobody to ask.
    pub(super) neighbors: Option<Neighbors>,
    /// Frames of the batch in hand that leave by this port.
    outgoing: Vec<Outgoing>,
    lost: bool,
}

impl Side {
    pub(super) fn new(port: impl Port + Send + 'static, neighbors: Option<Neighbors>) -> Side {
        Side { port: Box::new(port), neighbors, outgoing: Vec::new(), lost: false }
    }

    /// Decides where on the link frame `index` goes, and puts it down to be sent.
    fn deliver(&mut self, batch: &Batch, index: usize, now: Time) {
        let to = match &mut self.neighbors {
            None => [0; 6],
            Some(neighbors) => {
                let packet = batch.bytes(index);
                let Some(destination) = destination(packet) else { return };
                match neighbors.deliver(destination, packet, batch.frame(index).offload, now) {
                    Delivery::To(mac) => mac,
                    Delivery::Held | Delivery::NoRoute => return,
                }
            }
        };
        self.outgoing.push(Outgoing { frame: index, to });
    }

    fn send(&mut self, batch: &mut Batch) {
        if self.outgoing.is_empty() {
            return;
        }
        if self.outgoing.len() > 1 {
            let takes = self.port.takes();
            self.port.stats_mut().coalesced += coalesce(batch, &mut self.outgoing, takes);
        }
        self.port.send(batch, &self.outgoing);
        self.outgoing.clear();
    }
}

/// The engine between its ports.
pub(super) struct Forwarder {
    pub(super) nat: Nat,
    sides: Vec<Side>,
    /// Frames of our own making: ARP, ICMP errors, packets that waited for ARP.
    own: Batch,
    log: Option<PacketLog>,
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("ports", &self.stats().collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl Forwarder {
    /// `sides` are the outside port and then the engine's inside ports in the order of their ids.
    pub(super) fn new(nat: Nat, sides: Vec<Side>, log: Option<PacketLog>) -> io::Result<Forwarder> {
        Ok(Forwarder { nat, sides, own: Batch::new()?, log })
    }

    pub(super) fn sides(&self) -> usize {
        self.sides.len()
    }

    pub(super) fn port(&self, side: usize) -> &dyn Port {
        &*self.sides[side].port
    }

    pub(super) fn stats(&self) -> impl Iterator<Item = &PortStats> {
        self.sides.iter().map(|side| side.port.stats())
    }

    pub(super) fn set_routes(&mut self, side: usize, routes: Vec<Route>) {
        if let Some(neighbors) = &mut self.sides[side].neighbors {
            neighbors.set_routes(routes);
        }
    }

    /// Answers ARP outside for these prefixes from now on.
    pub(super) fn set_owned(&mut self, owned: Vec<(Ipv4Addr, u8)>) {
        if let Some(neighbors) = &mut self.sides[OUTSIDE].neighbors {
            neighbors.set_owned(owned);
        }
    }

    pub(super) fn check(&mut self, side: usize) -> Result<(), PortError> {
        let side = &mut self.sides[side];
        if side.lost { Ok(()) } else { side.port.check() }
    }

    /// Goes on without a device that is gone; false when the others are of no use without it.
    pub(super) fn lose(&mut self, side: usize) -> bool {
        self.sides[side].lost = true;
        side != OUTSIDE && self.sides[OUTSIDE + 1..].iter().any(|side| !side.lost)
    }

    /// Moves up to `budget` frames from one port to where they belong; returns how many there were.
    pub(super) fn pump(
        &mut self,
        from: usize,
        budget: usize,
        now: Time,
        claims: &mut impl Claims,
    ) -> Result<usize, RunError> {
        if self.sides[from].lost {
            return Ok(0);
        }
        let mut batch = self.sides[from].port.receive(budget)?;
        let count = batch.len();
        if count > 1 {
            let side = inside_id(from).map_or(NatSide::Outside, NatSide::Inside);
            self.nat.prefetch(side, (0..count).map(|index| batch.bytes(index)));
        }
        for index in 0..count {
            match batch.frame(index).protocol {
                ETHERTYPE_ARP => {
                    if let Some(neighbors) = &mut self.sides[from].neighbors {
                        neighbors.handle_arp(batch.bytes(index), now);
                    }
                }
                _ => self.translate(from, &mut batch, index, now),
            }
        }
        let settled = if count > 0 { settle_claims(&mut self.nat, claims) } else { Ok(()) };
        if settled.is_ok() {
            for side in &mut self.sides {
                side.send(&mut batch);
            }
        }
        self.sides[from].port.release(batch);
        settled?;
        if count > 0 {
            self.send_own(now);
        }
        Ok(count)
    }

    /// Puts one packet before the engine and carries out its verdict.
    fn translate(&mut self, from: usize, batch: &mut Batch, index: usize, now: Time) {
        let before = self.log.as_ref().and_then(|_| ends(batch.bytes(index)));
        let nat = &mut self.nat;
        let verdict = match inside_id(from) {
            None => batch.translate(index, |packet| nat.inbound(packet, now)),
            Some(id) => batch.translate(index, |packet| nat.outbound(id, packet, now)),
        };
        match verdict {
            Verdict::Forward(to) => self.sides[side_of(to)].deliver(batch, index, now),
            Verdict::Hairpin(id) => self.sides[side_of(NatSide::Inside(id))].deliver(batch, index, now),
            Verdict::Reply => {
                let to = batch.frame(index).source;
                self.sides[from].outgoing.push(Outgoing { frame: index, to });
            }
            // Outside, the host's own stack has a copy.
            Verdict::Local if from == OUTSIDE => {}
            Verdict::Local => self.sides[from].port.stats_mut().ignored_local += 1,
            Verdict::Drop(_) | Verdict::Held => {}
        }
        if let Some(log) = &self.log {
            write_log(log, from, verdict, before, batch.bytes(index));
        }
    }

    /// When [`handle_timeout`](Forwarder::handle_timeout) is due next.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let neighbors = self.sides.iter().filter_map(|side| side.neighbors.as_ref()?.poll_timeout());
        neighbors.chain(self.nat.poll_timeout()).min()
    }

    /// Does what is due, and sends what comes of it.
    pub(super) fn handle_timeout(&mut self, now: Time, claims: &mut impl Claims) -> Result<(), RunError> {
        self.nat.handle_timeout(now);
        for neighbors in self.sides.iter_mut().filter_map(|side| side.neighbors.as_mut()) {
            neighbors.handle_timeout(now);
        }
        self.settle(now, claims)
    }

    /// Drains the engine after something other than a packet has changed it.
    pub(super) fn settle(&mut self, now: Time, claims: &mut impl Claims) -> Result<(), RunError> {
        settle_claims(&mut self.nat, claims)?;
        self.send_own(now);
        Ok(())
    }

    /// Sends what the engine and ARP have made.
    fn send_own(&mut self, now: Time) {
        while let Some(transmit) = self.nat.poll_transmit() {
            if let Some(log) = &self.log {
                let direction =
                    if transmit.to == NatSide::Outside { Direction::Outbound } else { Direction::Inbound };
                let flow = ends(&transmit.packet);
                // Only what is forwarded is ever in fragments.
                match flow {
                    Some((_, ends)) if ends.piece.is_some() => log.followed(direction, flow),
                    _ => log.sent(direction, flow),
                }
            }
            let index = self.own_frame(&transmit.packet, Offload::default(), ETHERTYPE_IPV4);
            if let Some(index) = index {
                self.sides[side_of(transmit.to)].deliver(&self.own, index, now);
            }
        }
        for side in 0..self.sides.len() {
            while let Some(neighbors) = &mut self.sides[side].neighbors {
                let dropped = neighbors.take_dropped();
                let frame = neighbors.poll_transmit();
                self.sides[side].port.stats_mut().dropped_unresolved += dropped;
                let Some(frame) = frame else { break };
                if let Some(index) = self.own_frame(&frame.packet, frame.offload, frame.protocol) {
                    self.sides[side].outgoing.push(Outgoing { frame: index, to: frame.to });
                }
            }
        }
        self.flush_own();
    }

    /// Puts a packet among our own frames; `None` when it is longer than any packet.
    fn own_frame(&mut self, packet: &[u8], offload: Offload, protocol: u16) -> Option<usize> {
        if self.own.is_full() {
            self.flush_own();
        }
        self.own.push(packet, offload, protocol).then(|| self.own.len() - 1)
    }

    fn flush_own(&mut self) {
        if !self.own.is_empty() {
            for side in &mut self.sides {
                side.send(&mut self.own);
            }
            self.own.clear();
        }
    }
}

fn settle_claims(nat: &mut Nat, claims: &mut impl Claims) -> Result<(), RunError> {
    while let Some(claim) = nat.poll_claim() {
        claims.apply(claim);
    }
    claims.flush().map_err(RunError::Guard)
}

fn inside_id(side: usize) -> Option<InsideId> {
    side.checked_sub(OUTSIDE + 1).map(|id| InsideId(id as u16))
}

fn side_of(side: NatSide) -> usize {
    match side {
        NatSide::Outside => OUTSIDE,
        NatSide::Inside(id) => OUTSIDE + 1 + usize::from(id.0),
    }
}

fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    packet.get(16..20).map(|addr| Ipv4Addr::new(addr[0], addr[1], addr[2], addr[3]))
}

fn write_log(log: &PacketLog, from: usize, verdict: Verdict, before: Option<Flow>, packet: &[u8]) {
    let direction = match (from, verdict) {
        (OUTSIDE, _) => Direction::Inbound,
        (_, Verdict::Hairpin(_)) => Direction::Hairpin,
        _ => Direction::Outbound,
    };
    match (verdict, before, ends(packet)) {
        (Verdict::Forward(_) | Verdict::Hairpin(_), Some(before), Some(after)) => {
            log.translated(direction, before, after);
        }
        (Verdict::Forward(_) | Verdict::Hairpin(_), ..) => {}
        (Verdict::Held, before, _) => log.held(direction, before),
        (Verdict::Drop(reason), before, _) => log.dropped(direction, reason, before),
        (Verdict::Reply, before, _) => log.answered(direction, before),
        // Everything that the host itself sends and receives: not natbox's business.
        (Verdict::Local, ..) if from == OUTSIDE => {}
        (Verdict::Local, before, _) => log.delivered(direction, before),
    }
}
