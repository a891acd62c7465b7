//! Mappings: made, kept and ended.

use super::{Mapping, NewMapping, NewSession, Table};
use crate::{Ended, Event, External, Time, index::NONE, report::Reports};

impl Table {
    /// Whether a mapping is alive; if it is not, its end is carried out. Each expired session is visited once.
    pub(super) fn is_alive(&mut self, slot: u32, now: Time, reports: &mut Reports) -> bool {
        loop {
            let mapping = &self.mappings[slot];
            if mapping.limit > now && mapping.expires > now {
                return true;
            }
            let session = mapping.sessions;
            if session == NONE {
                self.mapping_wheel.remove(&mut self.mapping_timers, slot);
                self.end_mapping(slot, Ended::Expired, now, reports);
                return false;
            }
            if self.sessions[session].expires > now {
                return true;
            }
            let is_last = mapping.session_count == 1;
            self.end_session(session, now, reports);
            if is_last {
                return false;
            }
        }
    }

    /// Adds a mapping without sessions; `None` when the table is full. Its keys must be free.
    pub(crate) fn insert_mapping(
        &mut self,
        new: NewMapping,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        if self.is_full_of_mappings() {
            return None;
        }
        let expires = new.expires.min(new.limit);
        let slot = self.make_mapping(new, now, reports);
        if expires != Time::NEVER {
            self.mapping_wheel.insert(&mut self.mapping_timers, slot, expires);
        }
        self.settle_mapping(slot, reports);
        Some(slot)
    }

    /// Adds a mapping with its first session, whose slot this returns; `None` when the table is full.
    pub(crate) fn insert_flow(
        &mut self,
        new: NewMapping,
        first: NewSession,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        if self.is_full() || self.is_full_of_mappings() {
            return None;
        }
        let mapping = self.make_mapping(new, now, reports);
        let session = self.make_session(mapping, first, now, reports);
        self.settle_mapping(mapping, reports);
        Some(session)
    }

    /// A mapping that is in no place yet.
    #[inline]
    fn make_mapping(&mut self, new: NewMapping, now: Time, reports: &mut Reports) -> u32 {
        let NewMapping { inner, external, remote, is_static, expires, limit } = new;
        let subscriber = self.subscribers.mapping_made(inner, &self.hasher, !is_static, now);
        let slot = self.mappings.insert(Mapping {
            inner,
            external,
            remote,
            created: now,
            expires: expires.min(limit),
            limit,
            sessions: NONE,
            session_count: 0,
            subscriber,
            is_static,
            is_lone: false,
            shares: false,
        });
        self.remapped.add(slot, inner, external);
        self.statics += usize::from(is_static);
        reports.counters.mappings_created += 1;
        slot
    }

    /// Gives a new mapping its places, and tells of it: after the block that its port may have brought.
    fn settle_mapping(&mut self, slot: u32, reports: &mut Reports) {
        self.place_mapping(slot, reports);
        let Mapping { inner, external, .. } = self.mappings[slot];
        reports.event(|| Event::MappingCreated {
            protocol: external.protocol(),
            inside: inner.public(),
            external: External(external.public()),
        });
    }

    /// Whether a mapping has sessions, or was asked for by name.
    pub(crate) fn is_in_use(&self, slot: u32) -> bool {
        let mapping = &self.mappings[slot];
        mapping.is_static || mapping.session_count > 0
    }

    /// Keeps a mapping alive until `expires` even without sessions.
    pub(crate) fn extend_mapping(&mut self, slot: u32, expires: Time) {
        let mapping = &mut self.mappings[slot];
        if !mapping.is_static {
            mapping.expires = expires.min(mapping.limit).max(mapping.expires);
        }
    }

    /// Makes a mapping static, or renews it as that: it lives until then, and its sessions no longer.
    pub(crate) fn hold_until(&mut self, slot: u32, until: Time) {
        let mapping = &mut self.mappings[slot];
        self.statics += usize::from(!std::mem::replace(&mut mapping.is_static, true));
        (mapping.expires, mapping.limit) = (until, until);
        let mut session = mapping.sessions;
        self.mapping_wheel.remove(&mut self.mapping_timers, slot);
        if session == NONE && until != Time::NEVER {
            self.mapping_wheel.insert(&mut self.mapping_timers, slot, until);
        }
        while session != NONE {
            self.exports.replace(session);
            self.sessions[session].limited = until != Time::NEVER;
            self.set_deadline(session, self.sessions[session].expires.min(until));
            session = self.sessions[session].next;
        }
    }

    /// Ends a mapping with all of its sessions.
    pub(crate) fn end_mapping(&mut self, slot: u32, why: Ended, now: Time, reports: &mut Reports) {
        let entry = self.entry_of(slot);
        while self.mappings[slot].sessions != NONE {
            let session = self.mappings[slot].sessions;
            if entry.lone().is_none() {
                self.unplace_session(session);
            }
            self.drop_session(session, reports);
        }
        self.mapping_wheel.remove(&mut self.mapping_timers, slot);
        let mapping = self.mappings.remove(slot);
        self.unplace_mapping((slot, &mapping), entry, now, reports);
        let Mapping { inner, external, subscriber, is_static, .. } = mapping;
        self.remapped.remove(slot, inner, external);
        self.subscribers.mapping_ended(subscriber, &self.hasher, now);
        self.statics -= usize::from(is_static);
        reports.counters.mappings_ended += 1;
        reports.event(|| Event::MappingEnded {
            protocol: external.protocol(),
            inside: inner.public(),
            external: External(external.public()),
            why,
        });
    }
}
