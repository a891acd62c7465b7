//! Which flows are moved by programs in the kernel instead of by us, and for how long.
//!
//! A flow is exported when it has become quick, and taken back when it ends, when it is idle, when the engine wants it, or
//! when its next hop is another one. Programs move its deadline, so the engine hears of it before it could take the flow
//! for expired ([`Express::catch_up`]).

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use natbox_core::{FlowId, FlowKey, Moved, Nat, Time};

use super::state::OUTSIDE;
use crate::{
    control,
    datapath::{Mac, PortStats},
    fastpath::{Hop, Index, Mover, Seen},
    neighbor::Neighbors,
};

/// Packets within a [window](WINDOW_SHIFT) that make a flow quick: enough that a short exchange, which would end before it
/// paid, is not.
const QUICK: u8 = 32;

/// Windows are 2²⁷ ns, some 134 ms.
const WINDOW_SHIFT: u32 = 27;

/// Flows whose packets are counted apart; those that share a place make each other look quicker than they are.
const PLACES: usize = 1 << 16;

/// A flow that is moved, and does not move, for so long is taken back: others may want its place.
const IDLE: Duration = Duration::from_secs(10);

/// Each exported flow is looked at once in this time.
const ROUND: Duration = Duration::from_secs(1);

/// When a link has changed every rule is looked at, which costs some tenths of a microsecond for each: between two such
/// times there is this much for each, so that whoever changes his Ethernet address all the time does not keep us from the rest.
const PAUSE: Duration = Duration::from_micros(4);

/// What has become of exported flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Exported now.
    pub(super) flows: u64,
    /// Exported so far.
    pub(super) exported: u64,
    /// Not exported for want of room.
    pub(super) refused: u64,
    /// What was moved, outwards and inwards.
    pub(super) moved: [Moved; 2],
}

impl From<Totals> for control::FastPath {
    fn from(totals: Totals) -> control::FastPath {
        let [out, inn] = totals.moved;
        control::FastPath {
            flows: totals.flows,
            given: totals.exported,
            refused: totals.refused,
            packets: out.packets + inn.packets,
            bytes: out.bytes + inn.bytes,
        }
    }
}

/// A neighbour on one of the sides: the next hop and its Ethernet address there.
type Next = (Ipv4Addr, Mac);

/// Links, by side; `None` on a TUN.
type Links = [Option<Neighbors>];

struct Exported {
    flow: FlowId,
    /// The side of the inside host.
    inside: usize,
    /// Where packets outwards and inwards are addressed to, and whose turn it is then; `None` where that does not matter.
    hops: [Option<(Ipv4Addr, Next)>; 2],
    /// The deadline that the engine knows.
    deadline: Time,
    /// What was counted so far.
    counted: [Moved; 2],
    /// When there was last more to count.
    used: Time,
}

pub(super) struct Express {
    mover: Box<dyn Mover + Send>,
    /// Window and packets of the flows at each place.
    pace: Box<[(u8, u8)]>,
    /// By index.
    rules: Vec<Option<Exported>>,
    by_flow: HashMap<FlowId, Index>,
    /// The engine's deadlines of exported flows.
    deadlines: BTreeSet<(Time, Index)>,
    totals: Totals,
    /// What was moved from and to each inside side, by its index.
    by_side: Vec<[Moved; 2]>,
    /// What the links' generations were when all hops were right.
    generations: Vec<u64>,
    /// Whether they have changed since all hops were looked at, and when that may be done again.
    changed: bool,
    next_sweep: Time,
    /// Which rule is looked at next, and when the looking was last done.
    next: usize,
    looked: Time,
}

impl Express {
    pub(super) fn new(mover: Box<dyn Mover + Send>, sides: usize) -> Express {
        Express {
            mover,
            pace: vec![(0, 0); PLACES].into(),
            rules: Vec::new(),
            by_flow: HashMap::new(),
            deadlines: BTreeSet::new(),
            totals: Totals::default(),
            by_side: vec![[Moved::default(); 2]; sides],
            generations: vec![0; sides],
            changed: false,
            next_sweep: Time::ZERO,
            next: 0,
            looked: Time::ZERO,
        }
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// Counts a packet of a flow that came to us; whether the flow has become quick.
    #[inline]
    pub(super) fn is_quick(&mut self, key: FlowKey, now: Time) -> bool {
        let window = (now.as_nanos() >> WINDOW_SHIFT) as u8;
        let (then, packets) = &mut self.pace[key.index() % PLACES];
        if *then != window {
            (*then, *packets) = (window, 0);
        }
        *packets += 1;
        if *packets < QUICK {
            return false;
        }
        // If it comes to nothing it is worth another try only after as many packets.
        *packets = 0;
        true
    }

    /// Exports a flow, if it can be.
    pub(super) fn export(&mut self, key: FlowKey, nat: &mut Nat, links: &mut Links, now: Time) {
        // A flow that has ended in this batch may have had the same ends.
        self.give_back(nat, now);
        let Some(rule) = nat.export(key, now) else { return };
        let inside = OUTSIDE + 1 + usize::from(rule.inside.port.0);
        let out = rule.outbound.and(Some((OUTSIDE, rule.remote.0.addr)));
        let inn = rule.inbound.and(Some((inside, rule.inside.endpoint.addr)));
        let hops = [out, inn].map(|towards| hop(towards, links, now));
        if let [Ok(out), Ok(inn)] = hops
            && self.mover.serves(OUTSIDE)
            && self.mover.serves(inside)
        {
            let to = |side, hop: Option<(_, Next)>| Hop { side, mac: hop.map_or([0; 6], |(_, next)| next.1) };
            if let Some(index) = self.mover.install(&rule, (to(OUTSIDE, out), to(inside, inn)), now) {
                let exported = Exported {
                    flow: rule.flow,
                    inside,
                    hops: [out, inn],
                    deadline: rule.expires,
                    counted: Default::default(),
                    used: now,
                };
                return self.insert(index, exported);
            }
            self.totals.refused += 1;
        }
        nat.take_back(rule.flow, rule.expires);
    }

    fn insert(&mut self, index: Index, exported: Exported) {
        let at = index as usize;
        if at >= self.rules.len() {
            self.rules.resize_with(at + 1, || None);
        }
        self.by_flow.insert(exported.flow, index);
        self.deadlines.insert((exported.deadline, index));
        self.rules[at] = Some(exported);
        self.totals.flows += 1;
        self.totals.exported += 1;
    }

    /// Tells the engine how long exported flows live by now, as far as it could take them for expired at `now`; to be
    /// called before the engine is handed anything at that time.
    #[inline]
    pub(super) fn catch_up(&mut self, nat: &mut Nat, now: Time) {
        while let Some((_, index)) = self.deadlines.first().copied().filter(|(due, _)| *due <= now) {
            self.look(index, nat, now);
        }
    }

    /// The same for all, whenever they expire.
    pub(super) fn catch_up_all(&mut self, nat: &mut Nat, now: Time) {
        (0..self.rules.len() as Index).for_each(|index| self.look(index, nat, now));
    }

    /// Takes back what the engine wants, or has ended; to be called after the engine was handed something.
    #[inline]
    pub(super) fn give_back(&mut self, nat: &mut Nat, now: Time) {
        while let Some(flow) = nat.poll_recall() {
            if let Some(index) = self.by_flow.get(&flow) {
                self.take_back(*index, nat, now);
            }
        }
    }

    /// Takes back flows that are idle or whose next hop has changed. A bounded part of them at a time, unless a link has
    /// changed.
    pub(super) fn tend(&mut self, nat: &mut Nat, links: &mut Links, now: Time) {
        self.changed =
            links.iter().zip(&mut self.generations).fold(self.changed, |changed, (link, known)| {
                let generation = link.as_ref().map_or(0, Neighbors::generation);
                std::mem::replace(known, generation) != generation || changed
            });
        if self.changed && now >= self.next_sweep {
            self.changed = false;
            self.next_sweep = now + PAUSE * self.rules.len() as u32;
            for index in 0..self.rules.len() as Index {
                self.check_hops(index, nat, links, now);
            }
        }
        let share = now.since(self.looked).as_nanos() * self.rules.len() as u128 / ROUND.as_nanos();
        let share = (share as usize).min(self.rules.len());
        if share == 0 {
            return;
        }
        self.looked = now;
        for _ in 0..share {
            self.next = (self.next + 1) % self.rules.len();
            let index = self.next as Index;
            self.look(index, nat, now);
            self.check_hops(index, nat, links, now);
            let is_idle = |rule: &Exported| now.since(rule.used) >= IDLE;
            if self.rules[self.next].as_ref().is_some_and(is_idle) {
                self.take_back(index, nat, now);
            }
        }
    }

    /// A side is no more.
    pub(super) fn forget(&mut self, side: usize, nat: &mut Nat, now: Time) {
        self.mover.forget(side);
        for index in 0..self.rules.len() {
            if self.rules[index].as_ref().is_some_and(|rule| side == OUTSIDE || rule.inside == side) {
                self.take_back(index as Index, nat, now);
            }
        }
    }

    /// Forgets sides whose devices are gone, or out of reach; the first of these.
    pub(super) fn check(&mut self, nat: &mut Nat, now: Time) -> Option<usize> {
        let gone = |side: &usize| self.mover.serves(*side) && !self.mover.is_there(*side);
        let side = (0..self.by_side.len()).find(gone)?;
        self.forget(side, nat, now);
        Some(side)
    }

    /// Adds what was moved from and to a side to what its port has counted.
    pub(super) fn add_to(&self, stats: &mut PortStats, side: usize) {
        let [out, inn] = if side == OUTSIDE { self.totals.moved } else { self.by_side[side] };
        let (received, sent) = if side == OUTSIDE { (inn, out) } else { (out, inn) };
        stats.received_packets += received.packets;
        stats.received_bytes += received.bytes;
        stats.sent_packets += sent.packets;
        stats.sent_bytes += sent.bytes;
    }

    /// Reads what programs have done of a rule: counts, and renews or ends it.
    fn look(&mut self, index: Index, nat: &mut Nat, now: Time) {
        let Some(rule) = self.rules[index as usize].as_mut() else { return };
        let seen = self.mover.seen(index);
        if seen.expires <= now {
            return self.take_back(index, nat, now);
        }
        if seen.moved != rule.counted {
            rule.used = now;
        }
        if seen.expires != rule.deadline {
            self.deadlines.remove(&(rule.deadline, index));
            rule.deadline = seen.expires;
            self.deadlines.insert((rule.deadline, index));
            nat.renew(rule.flow, seen.expires);
        }
        self.count(index, seen, nat);
    }

    fn count(&mut self, index: Index, seen: Seen, nat: &mut Nat) {
        let Some(rule) = self.rules[index as usize].as_mut() else { return };
        let before = std::mem::replace(&mut rule.counted, seen.moved);
        let more = |way: usize| Moved {
            packets: seen.moved[way].packets.saturating_sub(before[way].packets),
            bytes: seen.moved[way].bytes.saturating_sub(before[way].bytes),
        };
        let more = [more(0), more(1)];
        nat.count_moved(more[0], more[1]);
        for sum in [&mut self.totals.moved, &mut self.by_side[rule.inside]] {
            for (sum, more) in sum.iter_mut().zip(more) {
                sum.packets += more.packets;
                sum.bytes += more.bytes;
            }
        }
    }

    fn take_back(&mut self, index: Index, nat: &mut Nat, now: Time) {
        if self.rules[index as usize].is_none() {
            return;
        }
        let seen = self.mover.remove(index, now);
        self.count(index, seen, nat);
        if let Some(rule) = self.rules[index as usize].take() {
            nat.take_back(rule.flow, seen.expires);
            self.by_flow.remove(&rule.flow);
            self.deadlines.remove(&(rule.deadline, index));
            self.totals.flows -= 1;
        }
    }

    /// Takes a flow back whose packets would go to another next hop by now.
    fn check_hops(&mut self, index: Index, nat: &mut Nat, links: &mut Links, now: Time) {
        let Some(rule) = &self.rules[index as usize] else { return };
        let sides = [OUTSIDE, rule.inside];
        let same = |(side, hop): (usize, Option<(Ipv4Addr, Next)>)| match (&mut links[side], hop) {
            (Some(link), Some((addr, next))) => link.next(addr, now) == Some(next),
            _ => true,
        };
        if !sides.into_iter().zip(rule.hops).all(same) {
            self.take_back(index, nat, now);
        }
    }
}

/// Who is next on the way to an address, where that matters; an error when it is not known.
fn hop(
    towards: Option<(usize, IpAddr)>,
    links: &mut Links,
    now: Time,
) -> Result<Option<(Ipv4Addr, Next)>, ()> {
    let Some((side, IpAddr::V4(addr))) = towards else { return Ok(None) };
    let Some(link) = &mut links[side] else { return Ok(None) };
    link.next(addr, now).map(|next| Some((addr, next))).ok_or(())
}
