//! What a carrier limits: how much the table lets a subscriber have, and which ports it gets (RFC 6888).

use super::Table;
use crate::{
    Behavior, DropReason, PortBlock, SubscriberInfo, Time,
    blocks::Blocks,
    index::NONE,
    packed::{Inner, Outer},
    report::Reports,
    subscribers::Quotas,
};

/// One session in so many is kept for flows that begin inside: SYNs to a forward may come from any number of
/// forged sources, and must not keep every host from beginning anything.
const KEPT_FROM_OUTSIDE: usize = 8;

impl Table {
    /// Whether there is room for another session of this inside endpoint. Its subscriber's own limits come first: room
    /// in a full table can be made, and nobody has to go for what is beyond them.
    #[inline]
    pub(crate) fn may_begin(&self, inner: Inner, now: Time) -> Result<(), DropReason> {
        self.subscribers.may_begin(inner, &self.hasher, now)?;
        if self.is_full() { Err(DropReason::TableFull) } else { Ok(()) }
    }

    /// Whether the subscriber of this inside endpoint may have another mapping, if the table has room for it.
    #[inline]
    pub(crate) fn may_map(&self, inner: Inner, now: Time) -> Result<(), DropReason> {
        self.subscribers.may_map(inner, &self.hasher, now)
    }

    /// Why there is no port for this inside endpoint.
    pub(crate) fn why_no_port(&self, inner: Inner) -> DropReason {
        let owner = self.subscribers.of(inner, &self.hasher);
        match self.blocks.has_all(owner, &self.subscribers) {
            true => DropReason::SubscriberMappings,
            false => DropReason::PortsExhausted,
        }
    }

    /// Whether whoever has this mapping has room for a session that somebody outside begins, and the table too.
    pub(crate) fn has_room(&mut self, mapping: u32) -> Result<(), DropReason> {
        let subscriber = self.mappings[mapping].subscriber;
        self.subscribers.has_room(subscriber).inspect_err(|_| self.subscribers.refused(subscriber))?;
        let kept = self.limits.sessions / KEPT_FROM_OUTSIDE;
        if self.sessions.len() + kept >= self.limits.sessions { Err(DropReason::TableFull) } else { Ok(()) }
    }

    /// A new flow of `inner` was refused.
    pub(crate) fn refused(&mut self, inner: Inner, why: DropReason) {
        let has_its_share = matches!(
            why,
            DropReason::SubscriberMappings | DropReason::SubscriberSessions | DropReason::SubscriberRate
        );
        if has_its_share && let Some(subscriber) = self.subscribers.of(inner, &self.hasher) {
            self.subscribers.refused(subscriber);
        }
    }

    /// Whether the subscriber of `inner` is to be told that it has had its share.
    pub(crate) fn tell(&mut self, inner: Inner, now: Time) -> bool {
        self.subscribers.tell(inner, &self.hasher, now)
    }

    /// How many subscribers are counted.
    pub(crate) fn subscriber_count(&self) -> usize {
        self.subscribers.len()
    }

    pub(crate) fn counts_subscribers(&self) -> bool {
        self.subscribers.counts()
    }

    pub(crate) fn subscribers(&self) -> impl Iterator<Item = SubscriberInfo> + '_ {
        self.subscribers.iter()
    }

    /// How many ports are at rest.
    pub(crate) fn resting_count(&self) -> usize {
        self.quarantine.len()
    }

    /// How many blocks subscribers have.
    pub(crate) fn block_count(&self) -> usize {
        self.blocks.len()
    }

    pub(crate) fn blocks(&self) -> impl Iterator<Item = PortBlock> + '_ {
        self.blocks.iter()
    }

    /// Whether ports come in blocks.
    pub(crate) fn has_blocks(&self) -> bool {
        self.blocks.is_on()
    }

    /// The number of the external address on which the subscriber of `inner` has a block.
    pub(crate) fn block_address(&self, inner: Inner) -> Option<usize> {
        let owner = self.subscribers.of(inner, &self.hasher);
        let addr = self.blocks.address_of(owner, &self.subscribers)?;
        self.addresses.binary_search(&addr).ok()
    }

    /// Limits by other rules from now on: what everybody has is counted anew, and who has more keeps it.
    pub(crate) fn set_carrier(&mut self, behavior: &Behavior, now: Time, reports: &mut Reports) {
        self.quarantine.set(behavior);
        self.blocks.set_most(behavior);
        if !self.subscribers.set(Quotas::of(behavior)) {
            return;
        }
        self.blocks.clear(reports);
        self.blocks = Blocks::new(behavior);
        let slots: Vec<u32> = self.mappings.iter().map(|(slot, _)| slot).collect();
        for slot in &slots {
            let mapping = &mut self.mappings[*slot];
            mapping.subscriber = self.subscribers.mapping_made(mapping.inner, &self.hasher, false, now);
            for _ in 0..mapping.session_count {
                self.subscribers.session_made(mapping.subscriber, false, now);
            }
        }
        if self.blocks.is_on() {
            self.cut_blocks(&slots, now, reports);
        }
    }

    /// Gives the blocks out in which ports are held already: to whoever has all of a block's ports.
    fn cut_blocks(&mut self, slots: &[u32], now: Time, reports: &mut Reports) {
        let firsts = slots.iter().filter(|slot| self.neighbours.get(**slot).previous == NONE);
        let held = firsts.map(|slot| (self.mappings[*slot].external, self.mappings[*slot].subscriber));
        let resting = self.quarantine.iter().map(|external| (external, NONE));
        let ports: Vec<(Outer, u32)> = held.chain(resting).collect();
        let own = |external: &Outer| self.addresses.binary_search(&external.spot().addr).is_ok();
        for (external, subscriber) in ports.iter().filter(|(external, _)| own(external)) {
            self.blocks.take(external.spot(), *subscriber, &mut self.subscribers, reports);
        }
        for (external, subscriber) in &ports {
            let time = (&self.hasher, now);
            self.blocks.share(external.spot(), *subscriber, &mut self.subscribers, time, reports);
        }
    }
}
