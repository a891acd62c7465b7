//! What a carrier limits: how much the table lets a subscriber have (RFC 6888).

use super::Table;
use crate::{Behavior, DropReason, Time, packed::Inner, subscribers::Quotas};

impl Table {
    /// Whether there is room for another session of this inside endpoint.
    #[inline]
    pub(crate) fn may_begin(&self, inner: Inner, now: Time) -> Result<(), DropReason> {
        if self.is_full() {
            return Err(DropReason::TableFull);
        }
        self.subscribers.may_begin(inner, &self.hasher, now)
    }

    /// Whether there is room for another mapping of this inside endpoint.
    #[inline]
    pub(crate) fn may_map(&self, inner: Inner, now: Time) -> Result<(), DropReason> {
        if self.mappings.len() >= self.limits.mappings {
            return Err(DropReason::TableFull);
        }
        self.subscribers.may_map(inner, &self.hasher, now)
    }

    /// Whether whoever has this mapping has room for a session that somebody outside begins.
    pub(crate) fn has_room(&self, mapping: u32) -> Result<(), DropReason> {
        self.subscribers.has_room(self.mappings[mapping].subscriber)
    }

    /// Whether the subscriber of `inner` is to be told that it has had its share.
    pub(crate) fn tell(&mut self, inner: Inner, now: Time) -> bool {
        self.subscribers.tell(inner, &self.hasher, now)
    }

    /// How many subscribers are counted.
    pub(crate) fn subscriber_count(&self) -> usize {
        self.subscribers.len()
    }

    /// Limits by other rules from now on: what everybody has is counted anew, and who has more keeps it.
    pub(crate) fn set_carrier(&mut self, behavior: &Behavior, now: Time) {
        if !self.subscribers.set(Quotas::of(behavior)) {
            return;
        }
        let slots: Vec<u32> = self.mappings.iter().map(|(slot, _)| slot).collect();
        for slot in slots {
            let mapping = &mut self.mappings[slot];
            mapping.subscriber = self.subscribers.mapping_made(mapping.inner, &self.hasher, false, now);
            for _ in 0..mapping.session_count {
                self.subscribers.session_made(mapping.subscriber, false, now);
            }
        }
    }
}
