//! What there is one of, however many workers there are: the engine, who is next on each link, the guard, the packet log.
//!
//! Nothing here receives or sends. A worker hands a batch over frame by frame ([`State::take`]), lets the claims take effect
//! ([`State::settle`]), and fetches what the engine and ARP have made on the occasion.

use std::{io, net::Ipv4Addr};

use natbox_core::{Claim, InsideId, Nat, Side as NatSide, Time, Verdict, ends, packet::Offload};

use super::{RunError, express::Express, log};
use crate::{
    datapath::{Batch, ETHERTYPE_ARP, ETHERTYPE_IPV4, Mac},
    guard::Guard,
    host::Route,
    neighbor::{Delivery, Neighbors, Transmit},
    output::PacketLog,
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

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Out by the port of this side, to this Ethernet address.
    To(usize, Mac),
    /// It is for the NAT's own host, which does not get it from this port.
    Ignored,
    /// Nowhere, or not now.
    Gone,
}

/// What becomes of the other sides when one is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// They go on.
    Others,
    /// Somebody has said so already.
    Known,
    /// They are of no use.
    All,
}

/// The engine, and who is next on each link.
pub(super) struct State<C> {
    pub(super) nat: Nat,
    pub(super) claims: C,
    /// Of each side; `None` on a TUN, where there is nobody to ask.
    neighbors: Vec<Option<Neighbors>>,
    lost: Vec<bool>,
    log: Option<PacketLog>,
    /// Moves packets of known flows without us, where it can.
    pub(super) express: Option<Express>,
}

impl<C: Claims> State<C> {
    /// `neighbors` are those of the outside, then of the engine's inside ports in the order of their ids.
    pub(super) fn new(
        nat: Nat,
        neighbors: Vec<Option<Neighbors>>,
        claims: C,
        log: Option<PacketLog>,
    ) -> State<C> {
        let lost = vec![false; neighbors.len()];
        State { nat, claims, neighbors, lost, log, express: None }
    }

    pub(super) fn set_routes(&mut self, side: usize, routes: Vec<Route>) {
        if let Some(neighbors) = &mut self.neighbors[side] {
            neighbors.set_routes(routes);
        }
    }

    /// Answers ARP outside for these prefixes from now on.
    pub(super) fn set_owned(&mut self, owned: Vec<(Ipv4Addr, u8)>) {
        if let Some(neighbors) = &mut self.neighbors[OUTSIDE] {
            neighbors.set_owned(owned);
        }
    }

    /// A device is gone.
    pub(super) fn lose(&mut self, side: usize, now: Time) -> Loss {
        if let Some(express) = &mut self.express {
            express.forget(side, &mut self.nat, now);
        }
        let known = std::mem::replace(&mut self.lost[side], true);
        if self.lost[OUTSIDE] || self.lost[OUTSIDE + 1..].iter().all(|lost| *lost) {
            return Loss::All;
        }
        if known { Loss::Known } else { Loss::Others }
    }

    /// To be called before anything else at this time: the engine learns how long exported flows live by now.
    pub(super) fn begin(&mut self, now: Time) {
        if let Some(express) = &mut self.express {
            express.catch_up(&mut self.nat, now);
        }
    }

    /// The same for all exported flows, whenever they expire; what they have moved is counted.
    pub(super) fn catch_up_all(&mut self, now: Time) {
        if let Some(express) = &mut self.express {
            express.catch_up_all(&mut self.nat, now);
        }
    }

    /// Takes flows back whose device programs no longer reach; the side of one that they have reached until now.
    pub(super) fn check_devices(&mut self, now: Time) -> Option<usize> {
        self.express.as_mut()?.check(&mut self.nat, now)
    }

    /// Looks after exported flows; to be called every now and then.
    pub(super) fn tend(&mut self, now: Time) {
        if let Some(express) = &mut self.express {
            express.tend(&mut self.nat, &mut self.neighbors, now);
        }
    }

    /// Lets the engine read for all packets of a batch what it will need for each.
    pub(super) fn prefetch(&self, from: usize, batch: &Batch) {
        if batch.len() > 1 {
            let side = inside_id(from).map_or(NatSide::Outside, NatSide::Inside);
            self.nat.prefetch(side, (0..batch.len()).map(|index| batch.bytes(index)));
        }
    }

    /// Takes one frame that came in on side `from`: ARP is listened to, a packet put before the engine.
    pub(super) fn take(&mut self, from: usize, batch: &mut Batch, index: usize, now: Time) -> Fate {
        if batch.frame(index).protocol != ETHERTYPE_ARP {
            return self.translate(from, batch, index, now);
        }
        if let Some(neighbors) = &mut self.neighbors[from] {
            neighbors.handle_arp(batch.bytes(index), now);
        }
        Fate::Gone
    }

    fn translate(&mut self, from: usize, batch: &mut Batch, index: usize, now: Time) -> Fate {
        let before = self.log.as_ref().and_then(|_| ends(batch.bytes(index)));
        let nat = &mut self.nat;
        let verdict = match inside_id(from) {
            None => batch.translate(index, |packet| nat.inbound(packet, now)),
            Some(id) => batch.translate(index, |packet| nat.outbound(id, packet, now)),
        };
        if let Some(log) = &self.log {
            log::took(log, from, verdict, before, batch.bytes(index));
        }
        let to = match verdict {
            Verdict::Forward(to) => {
                if let Some(express) = &mut self.express
                    && let Some(flow) = self.nat.known_flow()
                    && express.is_quick(flow, now)
                {
                    express.export(flow, &mut self.nat, &mut self.neighbors, now);
                }
                to
            }
            Verdict::Hairpin(id) => NatSide::Inside(id),
            Verdict::Reply => return Fate::To(from, batch.frame(index).source),
            // Outside, the host's own stack has a copy.
            Verdict::Local if from == OUTSIDE => return Fate::Gone,
            Verdict::Local => return Fate::Ignored,
            Verdict::Drop(_) | Verdict::Held => return Fate::Gone,
        };
        let offload = batch.frame(index).offload;
        self.deliver(to, batch.bytes(index), offload, now)
    }

    /// Decides where on the link a packet goes.
    fn deliver(&mut self, to: NatSide, packet: &[u8], offload: Offload, now: Time) -> Fate {
        let side = side_of(to);
        let Some(neighbors) = &mut self.neighbors[side] else { return Fate::To(side, [0; 6]) };
        let Some(destination) = destination(packet) else { return Fate::Gone };
        match neighbors.deliver(destination, packet, offload, now) {
            Delivery::To(mac) => Fate::To(side, mac),
            Delivery::Held | Delivery::NoRoute => Fate::Gone,
        }
    }

    /// Makes what the engine claims take effect, and what it recalls; to be done before anything is sent.
    pub(super) fn settle(&mut self, now: Time) -> Result<(), RunError> {
        if let Some(express) = &mut self.express {
            express.give_back(&mut self.nat, now);
        }
        while let Some(claim) = self.nat.poll_claim() {
            self.claims.apply(claim);
        }
        self.claims.flush().map_err(RunError::Guard)
    }

    /// The next packet of the engine's own making that can be sent, and by which side.
    pub(super) fn poll_engine(&mut self, now: Time) -> Option<(usize, Transmit)> {
        loop {
            let transmit = self.nat.poll_transmit()?;
            if let Some(log) = &self.log {
                log::made(log, &transmit);
            }
            let offload = Offload::default();
            if let Fate::To(side, to) = self.deliver(transmit.to, &transmit.packet, offload, now) {
                let packet = transmit.packet;
                return Some((side, Transmit { to, protocol: ETHERTYPE_IPV4, offload, packet }));
            }
        }
    }

    /// The next frame that ARP has made or let go on a side.
    pub(super) fn poll_link(&mut self, side: usize) -> Option<Transmit> {
        self.neighbors[side].as_mut()?.poll_transmit()
    }

    /// Packets that ARP has dropped on a side since this was last asked.
    pub(super) fn take_unresolved(&mut self, side: usize) -> u64 {
        self.neighbors[side].as_mut().map_or(0, Neighbors::take_dropped)
    }

    /// When [`handle_timeout`](State::handle_timeout) is due next.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let neighbors = self.neighbors.iter().filter_map(|neighbors| neighbors.as_ref()?.poll_timeout());
        neighbors.chain(self.nat.poll_timeout()).min()
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        self.begin(now);
        self.nat.handle_timeout(now);
        for neighbors in self.neighbors.iter_mut().flatten() {
            neighbors.handle_timeout(now);
        }
    }
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
