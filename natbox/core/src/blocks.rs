//! Port blocks: a subscriber's external ports come from blocks that are its own (RFC 6888 REQ-14, RFC 7422), so that one
//! line of a log says for hours whose any port was.
//!
//! The ports of an external address are cut into blocks of one size, for all protocols together. A subscriber is given a
//! block when a mapping finds no port in those that it has, up to a limit, and loses it with its last port there, when
//! that has rested. A block in which several had ports when blocks were turned on is nobody's: none of it is given out
//! until all of them are gone.

use std::{collections::BTreeMap, net::Ipv4Addr};

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use crate::{
    Behavior, Event, InsideId, PortBlock, PortRange, Time,
    index::{Hasher, NONE},
    packed::Spot,
    report::Reports,
    slab::{Record, Slab},
    subscribers::Subscribers,
};

/// One block that is not free.
#[derive(Clone, Copy)]
struct Block {
    /// The subscriber's key, which outlives its record.
    key: u64,
    /// The subscriber's slot, or [`NONE`] when it is nobody's.
    owner: u32,
    /// Ports in use or at rest, over all protocols; [`NONE`] on a free slot.
    held: u32,
    /// The owner's next block.
    next: u32,
    addr: Ipv4Addr,
    number: u16,
}

impl Record for Block {
    fn vacant(next: u32) -> Block {
        Block { key: 0, owner: NONE, held: NONE, next, addr: Ipv4Addr::UNSPECIFIED, number: 0 }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.held == NONE).then_some(self.next)
    }
}

/// Every block.
pub(crate) struct Blocks {
    /// Ports in a block; `None` where there are none.
    size: Option<u16>,
    /// Blocks of one subscriber.
    most: u32,
    /// How many bits of an address tell subscribers apart.
    prefix: u8,
    /// The slots of an address's blocks, by number; [`NONE`] for a free one.
    by_address: BTreeMap<Ipv4Addr, Vec<u32>>,
    records: Slab<Block>,
    owned: usize,
}

impl Blocks {
    pub(crate) fn new(behavior: &Behavior) -> Blocks {
        Blocks {
            size: behavior.port_block,
            most: behavior.subscriber_blocks.into(),
            prefix: behavior.subscriber_prefix,
            by_address: BTreeMap::new(),
            records: Slab::new(),
            owned: 0,
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.size.is_some()
    }

    /// Another limit for each subscriber.
    pub(crate) fn set_most(&mut self, behavior: &Behavior) {
        self.most = behavior.subscriber_blocks.into();
    }

    /// How many blocks subscribers have.
    pub(crate) fn len(&self) -> usize {
        self.owned
    }

    /// The blocks that subscribers have, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = PortBlock> + '_ {
        self.records.iter().filter_map(|(_, block)| self.shown(block))
    }

    fn shown(&self, block: &Block) -> Option<PortBlock> {
        let first = (block.key >> 32) as u32;
        let ports = self.ports(block.number).filter(|_| block.owner != NONE)?;
        Some(PortBlock {
            inside: InsideId(block.key as u16),
            subscriber: Ipv4Addr::from_bits(first).into(),
            prefix_len: self.prefix,
            address: block.addr.into(),
            ports,
            held: block.held,
        })
    }

    /// The ports of the block with this number.
    fn ports(&self, number: u16) -> Option<PortRange> {
        let size = u32::from(self.size?);
        let first = u32::from(number) * size;
        let last = (first + size - 1).min(u32::from(u16::MAX));
        PortRange::new(first.max(1) as u16, last as u16)
    }

    /// Whether a subscriber has as many blocks as it may.
    pub(crate) fn has_all(&self, owner: Option<u32>, subscribers: &Subscribers) -> bool {
        self.is_on() && owner.is_some_and(|owner| subscribers.blocks(owner).1 >= self.most)
    }

    /// The external address on which a subscriber has a block.
    pub(crate) fn address_of(&self, owner: Option<u32>, subscribers: &Subscribers) -> Option<Ipv4Addr> {
        let (first, _) = subscribers.blocks(owner?);
        (first != NONE).then(|| self.records[first].addr)
    }

    /// Whether a subscriber may have a port that is held already: where there are blocks, one of its own.
    pub(crate) fn may_use(&self, Spot { addr, port }: Spot, owner: Option<u32>) -> bool {
        !self.is_on()
            || owner.is_some() && self.slot_of(addr, port).map(|slot| self.records[slot].owner) == owner
    }

    /// Chooses a port of an address for a subscriber: one of a block that it has, or else of one that is free. `choose`
    /// finds a port in a range. Nothing is taken yet.
    pub(crate) fn choose(
        &self,
        (owner, subscribers): (Option<u32>, &Subscribers),
        (addr, range): (Ipv4Addr, PortRange),
        rng: &mut ChaCha8Rng,
        mut choose: impl FnMut(PortRange, &mut ChaCha8Rng) -> Option<u16>,
    ) -> Option<u16> {
        let part = |number: u16| self.ports(number).and_then(|ports| ports.intersect(range));
        let (mut slot, count) = owner.map_or((NONE, 0), |owner| subscribers.blocks(owner));
        while slot != NONE {
            let block = &self.records[slot];
            let ports = part(block.number).filter(|_| block.addr == addr);
            if let Some(port) = ports.and_then(|ports| choose(ports, rng)) {
                return Some(port);
            }
            slot = block.next;
        }
        if count >= self.most {
            return None;
        }
        let size = self.size?;
        let (first, last) = (range.first() / size, range.last() / size);
        let numbers = u32::from(last - first) + 1;
        // As hard to guess as the ports in it.
        let start = ((u64::from(rng.next_u32()) * u64::from(numbers)) >> 32) as u32;
        let taken = self.by_address.get(&addr);
        (0..numbers).map(|i| first + ((start + i) % numbers) as u16).find_map(|number| {
            let is_free = taken.is_none_or(|slots| slots[usize::from(number)] == NONE);
            part(number).filter(|_| is_free).and_then(|ports| choose(ports, rng))
        })
    }

    /// A port is in use or at rest from now on. If its block was free, it is `owner`'s.
    pub(crate) fn take(
        &mut self,
        Spot { addr, port }: Spot,
        owner: u32,
        subscribers: &mut Subscribers,
        reports: &mut Reports,
    ) {
        let Some(size) = self.size else { return };
        let number = port / size;
        let count = usize::from(u16::MAX / size) + 1;
        let slots = self.by_address.entry(addr).or_insert_with(|| vec![NONE; count]);
        let place = &mut slots[usize::from(number)];
        if *place != NONE {
            self.records[*place].held += 1;
            return;
        }
        let (key, next) =
            if owner == NONE { (0, NONE) } else { (subscribers.key_of(owner), subscribers.blocks(owner).0) };
        *place = self.records.insert(Block { key, owner, held: 1, next, addr, number });
        if owner != NONE {
            subscribers.block_given(owner, *place);
            self.owned += 1;
            let slot = *place;
            reports.counters.blocks_assigned += 1;
            self.tell(slot, reports, Event::BlockAssigned);
        }
    }

    /// A port is free again, and with the last one of a block the block.
    pub(crate) fn give_back(
        &mut self,
        Spot { addr, port }: Spot,
        subscribers: &mut Subscribers,
        (hasher, now): (&Hasher, Time),
        reports: &mut Reports,
    ) {
        let Some(slot) = self.slot_of(addr, port) else { return };
        self.records[slot].held -= 1;
        if self.records[slot].held == 0 {
            self.free(slot, subscribers, (hasher, now), reports);
        }
    }

    /// Several have ports in this block: it is nobody's, unless all of them are `owner`'s.
    pub(crate) fn share(
        &mut self,
        Spot { addr, port }: Spot,
        owner: u32,
        subscribers: &mut Subscribers,
        (hasher, now): (&Hasher, Time),
        reports: &mut Reports,
    ) {
        let Some(slot) = self.slot_of(addr, port) else { return };
        if self.records[slot].owner != owner {
            self.disown(slot, subscribers, (hasher, now), reports);
        }
    }

    /// Takes everything from everybody.
    pub(crate) fn clear(&mut self, reports: &mut Reports) {
        let owned: Vec<u32> =
            self.records.iter().filter(|(_, block)| block.owner != NONE).map(|(slot, _)| slot).collect();
        for slot in owned {
            reports.counters.blocks_released += 1;
            self.tell(slot, reports, Event::BlockReleased);
        }
        (self.records, self.owned) = (Slab::new(), 0);
        self.by_address.clear();
    }

    /// An address is gone, and every port on it is free.
    pub(crate) fn forget_address(&mut self, addr: Ipv4Addr) {
        self.by_address.remove(&addr);
    }

    fn slot_of(&self, addr: Ipv4Addr, port: u16) -> Option<u32> {
        let slot = self.by_address.get(&addr)?[usize::from(port / self.size?)];
        (slot != NONE).then_some(slot)
    }

    fn free(
        &mut self,
        slot: u32,
        subscribers: &mut Subscribers,
        time: (&Hasher, Time),
        reports: &mut Reports,
    ) {
        self.disown(slot, subscribers, time, reports);
        let Block { addr, number, .. } = self.records.remove(slot);
        if let Some(slots) = self.by_address.get_mut(&addr) {
            slots[usize::from(number)] = NONE;
        }
    }

    fn disown(
        &mut self,
        slot: u32,
        subscribers: &mut Subscribers,
        (hasher, now): (&Hasher, Time),
        reports: &mut Reports,
    ) {
        let Block { owner, next, .. } = self.records[slot];
        if owner == NONE {
            return;
        }
        reports.counters.blocks_released += 1;
        self.tell(slot, reports, Event::BlockReleased);
        let (first, _) = subscribers.blocks(owner);
        let mut before = first;
        while before != slot && self.records[before].next != slot {
            before = self.records[before].next;
        }
        let first = if before == slot { next } else { first };
        if before != slot {
            self.records[before].next = next;
        }
        self.records[slot].owner = NONE;
        self.owned -= 1;
        subscribers.block_taken(owner, first, hasher, now);
    }

    fn tell(&self, slot: u32, reports: &mut Reports, event: fn(PortBlock) -> Event) {
        if let Some(block) = self.shown(&self.records[slot]) {
            reports.event(|| event(block));
        }
    }
}
