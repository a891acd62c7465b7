//! Subscribers: who stands behind the mappings, and how much each may have (RFC 6888 REQ-4, REQ-5).
//!
//! A subscriber is an inside address, or a network of them, behind one inside port. What each holds is counted, and what
//! would go beyond its share is refused: nothing that it has is taken away, and nothing of what others may have is
//! touched. A rate is kept by one time stamp: when all that was spent will have been earned again.
//!
//! Nobody is counted while no axis asks for it. A subscriber is forgotten when it holds nothing and owes nothing.

use std::net::Ipv4Addr;

use crate::{
    Behavior, DropReason, InsideId, SubscriberInfo, Time,
    behavior::Rate,
    index::{Hasher, Index, NONE},
    packed::Inner,
    slab::{Record, Slab, Sparse},
    timer::{Link, Wheel},
};

/// How often a subscriber that has had its share is told so: the NAT's own messages are few, and others need them too.
const TOLD: Rate = match Rate::new(10, 20) {
    Some(rate) => rate,
    None => unreachable!(),
};

/// What one subscriber may have; `None` is no bound.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Quotas {
    /// How many bits of an inside address tell subscribers apart.
    prefix: u8,
    mappings: Option<u32>,
    sessions: Option<u32>,
    mapping_rate: Option<Rate>,
    session_rate: Option<Rate>,
    /// Ports come in blocks of this size.
    block: Option<u16>,
}

impl Quotas {
    pub(crate) fn of(behavior: &Behavior) -> Quotas {
        Quotas {
            prefix: behavior.subscriber_prefix,
            mappings: behavior.subscriber_mappings,
            sessions: behavior.subscriber_sessions,
            mapping_rate: behavior.subscriber_mapping_rate,
            session_rate: behavior.subscriber_session_rate,
            block: behavior.port_block,
        }
    }

    /// Whether subscribers have to be counted.
    fn ask(&self) -> bool {
        let bounds = [self.mappings, self.sessions];
        let rates = [self.mapping_rate, self.session_rate];
        self.block.is_some() || bounds.iter().any(Option::is_some) || rates.iter().any(Option::is_some)
    }
}

/// The inside addresses that are one subscriber, in one word.
pub(crate) fn key(inner: Inner, prefix: u8) -> u64 {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    u64::from(inner.spot().addr.to_bits() & mask) << 32 | u64::from(inner.inside_port().0)
}

/// What has been spent of a rate.
#[derive(Clone, Copy, Default)]
struct Spent {
    /// When all of it will have been earned again.
    until: Time,
}

impl Spent {
    fn may(self, rate: Option<Rate>, now: Time) -> bool {
        rate.is_none_or(|rate| self.until.as_nanos() <= now.as_nanos().saturating_add(rate.credit()))
    }

    fn spend(&mut self, rate: Option<Rate>, now: Time) {
        if let Some(rate) = rate {
            self.until = Time::from_nanos(self.until.max(now).as_nanos().saturating_add(rate.cost()));
        }
    }
}

/// One subscriber that holds something, or has lately.
#[derive(Clone, Copy)]
pub(crate) struct Subscriber {
    key: u64,
    mapped: Spent,
    begun: Spent,
    told: Spent,
    /// [`NONE`] on a free slot.
    mappings: u32,
    sessions: u32,
    /// Port blocks, and the first of them.
    blocks: u32,
    first_block: u32,
    /// New flows that were refused because it had its share.
    refused: u64,
}

impl Record for Subscriber {
    fn vacant(next: u32) -> Subscriber {
        Subscriber {
            key: 0,
            mapped: Spent::default(),
            begun: Spent::default(),
            told: Spent::default(),
            mappings: NONE,
            sessions: next,
            blocks: 0,
            first_block: NONE,
            refused: 0,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.mappings == NONE).then_some(self.sessions)
    }
}

/// Every subscriber.
pub(crate) struct Subscribers {
    quotas: Quotas,
    /// Whether they ask for it.
    counts: bool,
    /// Most records: as many as there may be mappings, for one that holds none is soon forgotten.
    most: usize,
    index: Index,
    records: Slab<Subscriber>,
    /// Those that hold nothing and still owe.
    idle: Wheel,
    timers: Sparse<Link>,
}

impl Subscribers {
    pub(crate) fn new(quotas: Quotas, most: usize) -> Subscribers {
        let (index, records) = (Index::new(), Slab::new());
        let (idle, timers) = (Wheel::new(), Sparse::new(Link::IDLE));
        Subscribers { quotas, counts: quotas.ask(), most, index, records, idle, timers }
    }

    /// Takes other quotas. True: other records are needed, and all are forgotten.
    pub(crate) fn set(&mut self, quotas: Quotas) -> bool {
        let of = |quotas: &Quotas| (quotas.prefix, quotas.block, quotas.ask());
        let is_same = of(&quotas) == of(&self.quotas);
        if is_same {
            self.quotas = quotas;
        } else {
            *self = Subscribers::new(quotas, self.most);
        }
        !is_same
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether they are counted at all.
    pub(crate) fn counts(&self) -> bool {
        self.counts
    }

    /// In no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = SubscriberInfo> + '_ {
        self.records.iter().map(|(_, subscriber)| SubscriberInfo {
            inside: InsideId(subscriber.key as u16),
            subscriber: Ipv4Addr::from_bits((subscriber.key >> 32) as u32).into(),
            prefix_len: self.quotas.prefix,
            mappings: subscriber.mappings,
            sessions: subscriber.sessions,
            blocks: subscriber.blocks,
            refused: subscriber.refused,
        })
    }

    fn find(&self, key: u64, hasher: &Hasher) -> Option<u32> {
        self.index.find(hasher.hash(key, 0), |slot| self.records[slot].key == key)
    }

    #[inline]
    pub(crate) fn of(&self, inner: Inner, hasher: &Hasher) -> Option<u32> {
        if self.counts { self.find(key(inner, self.quotas.prefix), hasher) } else { None }
    }

    // ---- What one may have ----

    /// Whether the subscriber of `inner` may begin another session from inside.
    #[inline]
    pub(crate) fn may_begin(&self, inner: Inner, hasher: &Hasher, now: Time) -> Result<(), DropReason> {
        if !self.counts {
            return Ok(());
        }
        let Some(slot) = self.of(inner, hasher) else { return Ok(()) };
        self.has_room(slot)?;
        if !self.records[slot].begun.may(self.quotas.session_rate, now) {
            return Err(DropReason::SubscriberRate);
        }
        Ok(())
    }

    /// Whether the subscriber in `slot` may have another session.
    pub(crate) fn has_room(&self, slot: u32) -> Result<(), DropReason> {
        match self.quotas.sessions {
            Some(most) if slot != NONE && self.records[slot].sessions >= most => {
                Err(DropReason::SubscriberSessions)
            }
            _ => Ok(()),
        }
    }

    /// Whether the subscriber of `inner` may have another mapping.
    #[inline]
    pub(crate) fn may_map(&self, inner: Inner, hasher: &Hasher, now: Time) -> Result<(), DropReason> {
        if !self.counts {
            return Ok(());
        }
        let Some(slot) = self.of(inner, hasher) else {
            return if self.records.len() < self.most { Ok(()) } else { Err(DropReason::TableFull) };
        };
        let subscriber = &self.records[slot];
        if self.quotas.mappings.is_some_and(|most| subscriber.mappings >= most) {
            return Err(DropReason::SubscriberMappings);
        }
        if !subscriber.mapped.may(self.quotas.mapping_rate, now) {
            return Err(DropReason::SubscriberRate);
        }
        Ok(())
    }

    /// Whether the subscriber of `inner` is to be told that it has had its share.
    pub(crate) fn tell(&mut self, inner: Inner, hasher: &Hasher, now: Time) -> bool {
        let Some(slot) = self.of(inner, hasher) else { return true };
        let told = &mut self.records[slot].told;
        let may = told.may(Some(TOLD), now);
        if may {
            told.spend(Some(TOLD), now);
        }
        may
    }

    /// The subscriber in `slot` was refused a flow.
    pub(crate) fn refused(&mut self, slot: u32) {
        if slot != NONE {
            self.records[slot].refused += 1;
        }
    }

    // ---- What one has ----

    /// The subscriber of `inner` has a mapping more; `spends` unless it was made by name. Returns its slot, [`NONE`]
    /// when it is not counted.
    #[inline]
    pub(crate) fn mapping_made(&mut self, inner: Inner, hasher: &Hasher, spends: bool, now: Time) -> u32 {
        if !self.counts {
            return NONE;
        }
        let key = key(inner, self.quotas.prefix);
        let slot = match self.find(key, hasher) {
            Some(slot) => {
                if self.records[slot].mappings == 0 {
                    self.idle.remove(&mut self.timers, slot);
                }
                slot
            }
            None if self.records.len() >= self.most => return NONE,
            None => {
                let nobody = Subscriber::vacant(NONE);
                let slot = self.records.insert(Subscriber { key, mappings: 0, sessions: 0, ..nobody });
                self.index.insert(hasher.hash(key, 0), slot);
                slot
            }
        };
        let subscriber = &mut self.records[slot];
        subscriber.mappings += 1;
        if spends {
            subscriber.mapped.spend(self.quotas.mapping_rate, now);
        }
        slot
    }

    /// One of its mappings, which has no session left, has ended.
    #[inline]
    pub(crate) fn mapping_ended(&mut self, slot: u32, hasher: &Hasher, now: Time) {
        if slot == NONE {
            return;
        }
        let subscriber = &mut self.records[slot];
        subscriber.mappings -= 1;
        self.settle(slot, hasher, now);
    }

    /// Lets go of a subscriber that holds nothing, when it owes nothing.
    fn settle(&mut self, slot: u32, hasher: &Hasher, now: Time) {
        let subscriber = &self.records[slot];
        if subscriber.mappings > 0 || subscriber.blocks > 0 {
            return;
        }
        let owes = subscriber.mapped.until.max(subscriber.begun.until);
        if owes > now {
            self.idle.insert(&mut self.timers, slot, owes);
        } else {
            self.forget(slot, hasher);
        }
    }

    /// The subscriber in `slot` has a session more; it `spends` unless the session came from outside.
    #[inline]
    pub(crate) fn session_made(&mut self, slot: u32, spends: bool, now: Time) {
        if slot == NONE {
            return;
        }
        let subscriber = &mut self.records[slot];
        subscriber.sessions += 1;
        if spends {
            subscriber.begun.spend(self.quotas.session_rate, now);
        }
    }

    /// One of its sessions has ended.
    #[inline]
    pub(crate) fn session_ended(&mut self, slot: u32) {
        if slot != NONE {
            self.records[slot].sessions -= 1;
        }
    }

    // ---- Blocks ----

    /// The first block of a subscriber, and how many it has.
    pub(crate) fn blocks(&self, slot: u32) -> (u32, u32) {
        let subscriber = &self.records[slot];
        (subscriber.first_block, subscriber.blocks)
    }

    /// Who the subscriber in `slot` is.
    pub(crate) fn key_of(&self, slot: u32) -> u64 {
        self.records[slot].key
    }

    /// A subscriber, which holds a mapping, has a block more, its first from now on.
    pub(crate) fn block_given(&mut self, slot: u32, block: u32) {
        let subscriber = &mut self.records[slot];
        subscriber.first_block = block;
        subscriber.blocks += 1;
    }

    /// It has one less; `first` is its first from now on.
    pub(crate) fn block_taken(&mut self, slot: u32, first: u32, hasher: &Hasher, now: Time) {
        let subscriber = &mut self.records[slot];
        subscriber.first_block = first;
        subscriber.blocks -= 1;
        self.settle(slot, hasher, now);
    }

    fn forget(&mut self, slot: u32, hasher: &Hasher) {
        let key = self.records.remove(slot).key;
        self.index.remove(hasher.hash(key, 0), slot);
    }

    // ---- Time ----

    /// Forgets one that holds nothing and owes nothing any more; false when there is none.
    pub(crate) fn expire(&mut self, hasher: &Hasher, now: Time) -> bool {
        let Some(slot) = self.idle.pop(&mut self.timers, now) else { return false };
        let subscriber = &self.records[slot];
        match subscriber.mapped.until.max(subscriber.begun.until) {
            owes if owes > now => self.idle.insert(&mut self.timers, slot, owes),
            _ => self.forget(slot, hasher),
        }
        true
    }

    /// When `expire` has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        self.idle.next()
    }
}
