//! Where a packet finds its session, and a new flow its mapping.
//!
//! A mapping has two places: one by its inside endpoint and what it is for, one by its external endpoint. A session has
//! two of its own, by the words of its packets: (inner, remote) on the way out and (external, remote) on the way in.
//!
//! Most mappings have one session and keep it for good. Such a session is **lone**: it takes no place of its own, but
//! stands in both places of its mapping, where its packets find it in one step. So a new flow enters one index and one
//! table of ports, not four indexes. A session is lone only where that step is certain: its mapping is for what a packet
//! to its remote looks for first, and has the external endpoint for itself. What ends this, a second session, a second
//! mapping on the port, another behaviour, gives it its own places.

use super::{Mapping, Peers, Session, Table};
use crate::{
    Behavior, Protocol, Time,
    index::NONE,
    packed::{Inner, Mask, Outer, Spot},
    report::Reports,
};

/// How many mappings on one external endpoint an inbound packet is offered to. More than one exist only under
/// overloading, where the flow itself nearly always decides.
const OVERLOAD_DEPTH: usize = 16;

/// What stands in a mapping's place: the mapping, or its lone session.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u32);

/// It is a session. Slot numbers do not reach this bit.
const SESSION: u32 = 1 << 31;

impl Entry {
    /// Nobody has the port.
    const NONE: Entry = Entry(NONE);

    /// What an index holds.
    #[inline(always)]
    pub(super) fn of(word: u32) -> Entry {
        Entry(word)
    }

    pub(super) fn mapping(slot: u32) -> Entry {
        Entry(slot)
    }

    pub(super) fn session(slot: u32) -> Entry {
        Entry(slot | SESSION)
    }

    /// The lone session.
    #[inline(always)]
    pub(super) fn lone(self) -> Option<u32> {
        (self.0 & SESSION != 0).then_some(self.0 & !SESSION)
    }
}

/// What a mapping is for, by protocol.
pub(super) type Masks = [Mask; Protocol::ALL.len()];

pub(super) fn masks(behavior: &Behavior) -> Masks {
    Protocol::ALL.map(|protocol| Mask::new(behavior.mapping_of(protocol)))
}

impl Table {
    // ---- Sessions ----

    /// The live session of a packet from inside.
    #[inline(always)]
    pub(crate) fn find_out(
        &mut self,
        inner: Inner,
        remote: Outer,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let slot = self.lookup_out(inner, remote)?;
        self.alive(slot, now, reports)
    }

    /// The same, or one that has expired.
    #[inline(always)]
    pub(crate) fn lookup_out(&self, inner: Inner, remote: Outer) -> Option<u32> {
        let is_it = |slot: u32| {
            let session = &self.sessions[slot];
            session.inner == inner && session.remote == remote
        };
        let hash = self.hash_of(inner, self.key_of(remote));
        let lone = self.by_inside.find(hash, |entry| Entry(entry).lone().is_some_and(is_it));
        match lone {
            Some(entry) => Entry(entry).lone(),
            None if self.flows_out.is_empty() => None,
            None => self.flows_out.find(self.hash_of(inner, remote), is_it),
        }
    }

    /// The live session of a packet from outside.
    #[inline(always)]
    pub(crate) fn find_in(
        &mut self,
        external: Outer,
        remote: Outer,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let slot = self.lookup_in(external, remote)?;
        self.alive(slot, now, reports)
    }

    /// The same, or one that has expired.
    #[inline(always)]
    pub(crate) fn lookup_in(&self, external: Outer, remote: Outer) -> Option<u32> {
        match self.entry_at(external)?.lone() {
            Some(slot) => (self.sessions[slot].remote == remote).then_some(slot),
            None => self.flows_in.find(self.hasher.hash(external.word(), remote.word()), |slot| {
                let session = &self.sessions[slot];
                session.external == external && session.remote == remote
            }),
        }
    }

    #[inline(always)]
    fn alive(&mut self, slot: u32, now: Time, reports: &mut Reports) -> Option<u32> {
        if self.is_live(slot, now) {
            return Some(slot);
        }
        self.end_session(slot, now, reports);
        None
    }

    // ---- Mappings ----

    /// What a mapping is for that a new flow to this remote goes by (RFC 4787 §4.1).
    #[inline(always)]
    pub(crate) fn key_of(&self, remote: Outer) -> Outer {
        remote.masked(self.masks[remote.protocol() as usize])
    }

    /// The live mapping of an inside endpoint for `remote` (an endpoint, an address with port 0, or anybody).
    pub(crate) fn find_mapping(
        &mut self,
        inner: Inner,
        remote: Outer,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let entry = self.by_inside.find(self.hash_of(inner, remote), |entry| {
            let mapping = &self.mappings[self.mapping_in(Entry(entry))];
            mapping.inner == inner && mapping.remote == remote
        })?;
        let slot = self.mapping_in(Entry(entry));
        self.is_alive(slot, now, reports).then_some(slot)
    }

    /// The live mappings on an external endpoint, and one past the last of them.
    pub(crate) fn find_external(
        &mut self,
        external: Outer,
        now: Time,
        reports: &mut Reports,
    ) -> ([u32; OVERLOAD_DEPTH], usize) {
        let (mut found, mut count) = ([NONE; OVERLOAD_DEPTH], 0);
        let mut slot = self.first_external(external).unwrap_or(NONE);
        while slot != NONE && count < OVERLOAD_DEPTH {
            let next = self.neighbours.get(slot).next;
            if self.is_alive(slot, now, reports) {
                found[count] = slot;
                count += 1;
            }
            slot = next;
        }
        (found, count)
    }

    /// The first of the mappings on an external endpoint.
    pub(super) fn first_external(&self, external: Outer) -> Option<u32> {
        self.entry_at(external).map(|entry| self.mapping_in(entry))
    }

    /// The mapping in whose place this stands.
    fn mapping_in(&self, entry: Entry) -> u32 {
        entry.lone().map_or(entry.0, |session| self.sessions[session].mapping)
    }

    // ---- Places ----

    /// What stands in the place of an external endpoint.
    #[inline(always)]
    pub(super) fn entry_at(&self, external: Outer) -> Option<Entry> {
        let spot = external.spot();
        let pool = &self.pools[self.number_of(spot.addr)?][external.protocol() as usize];
        let entry = pool.holders.get(spot.port);
        (entry != NONE).then_some(Entry(entry))
    }

    fn set_entry_at(&mut self, external: Outer, entry: Entry) {
        let spot = external.spot();
        if let Some(number) = self.number_of(spot.addr) {
            self.pools[number][external.protocol() as usize].holders.set(spot.port, entry.0);
        }
    }

    /// The hash of a key that begins with an inside endpoint.
    #[inline(always)]
    pub(super) fn hash_of(&self, inner: Inner, remote: Outer) -> u32 {
        self.hasher.hash(inner.word(), remote.word())
    }

    /// What stands in the places of a mapping.
    pub(super) fn entry_of(&self, slot: u32) -> Entry {
        let mapping = &self.mappings[slot];
        if mapping.is_lone { Entry::session(mapping.sessions) } else { Entry::mapping(slot) }
    }

    /// Whether a session with this remote may stand in the places of a mapping, if it is the only one.
    pub(super) fn may_be_lone(&self, mapping: &Mapping, remote: Outer) -> bool {
        mapping.session_count == 1 && !mapping.shares && mapping.remote == self.key_of(remote)
    }

    /// Gives a new mapping its places; its sessions, if it has one, has none yet.
    pub(super) fn place_mapping(&mut self, slot: u32, reports: &mut Reports) {
        let Mapping { inner, external, remote, sessions, subscriber, .. } = self.mappings[slot];
        let Spot { addr, port } = external.spot();
        let Some(number) = self.number_of(addr) else { return };
        let place = (number, external.protocol() as usize);
        match self.pools[place.0][place.1].holders.get(port) {
            NONE => self.hold_port(number, external, subscriber, reports),
            first => {
                let first = self.mapping_in(Entry(first));
                self.part(first);
                self.neighbours.get_mut(first).previous = slot;
                self.neighbours.get_mut(slot).next = first;
                self.mappings[first].shares = true;
                self.mappings[slot].shares = true;
            }
        }
        let mut entry = Entry::mapping(slot);
        if sessions != NONE {
            let session = &self.sessions[sessions];
            if self.may_be_lone(&self.mappings[slot], session.remote) {
                self.mappings[slot].is_lone = true;
                entry = Entry::session(sessions);
            } else {
                self.place_session(sessions);
            }
        }
        self.by_inside.insert(self.hash_of(inner, remote), entry.0);
        self.pools[place.0][place.1].holders.set(port, entry.0);
    }

    /// Takes a mapping that is gone out of its places, where `entry` stands.
    pub(super) fn unplace_mapping(
        &mut self,
        (slot, mapping): (u32, &Mapping),
        entry: Entry,
        now: Time,
        reports: &mut Reports,
    ) {
        let Mapping { inner, external, remote, is_static, shares, .. } = *mapping;
        let Peers { previous, next } = match shares {
            true => std::mem::replace(self.neighbours.get_mut(slot), Peers::NONE),
            false => Peers::NONE,
        };
        if next != NONE {
            self.neighbours.get_mut(next).previous = previous;
        }
        match (previous, next) {
            (NONE, NONE) => {
                self.set_entry_at(external, Entry::NONE);
                self.let_port_go(external, is_static, now, reports);
            }
            (NONE, next) => self.set_entry_at(external, Entry::mapping(next)),
            (previous, next) => self.neighbours.get_mut(previous).next = next,
        }
        self.by_inside.remove(self.hash_of(inner, remote), entry.0);
    }

    /// A session begins on a mapping that has its places and no lone session: lone, or in places of its own.
    pub(super) fn place_another(&mut self, mapping: u32, session: u32) {
        let remote = self.sessions[session].remote;
        if self.may_be_lone(&self.mappings[mapping], remote) {
            self.replace(mapping, Entry::session(session));
        } else {
            self.place_session(session);
        }
    }

    /// A session ends, and its mapping stays.
    pub(super) fn unplace_session(&mut self, slot: u32) {
        let Session { inner, external, remote, mapping, .. } = self.sessions[slot];
        if self.mappings[mapping].is_lone {
            self.replace(mapping, Entry::mapping(mapping));
        } else {
            self.flows_out.remove(self.hash_of(inner, remote), slot);
            self.flows_in.remove(self.hasher.hash(external.word(), remote.word()), slot);
        }
    }

    /// Maps for what this behaviour says from now on. Sessions that a packet would not find any more as lone ones get
    /// places of their own.
    pub(crate) fn set_mapping(&mut self, behavior: &Behavior) {
        let masks = masks(behavior);
        if masks == self.masks {
            return;
        }
        self.masks = masks;
        let lone = self.mappings.iter().filter(|(_, mapping)| mapping.is_lone);
        let is_hidden =
            |mapping: &Mapping| self.key_of(self.sessions[mapping.sessions].remote) != mapping.remote;
        let hidden: Vec<u32> = lone.filter(|(_, mapping)| is_hidden(mapping)).map(|(slot, _)| slot).collect();
        for mapping in hidden {
            self.part(mapping);
        }
    }

    /// The session of a mapping, if it is lone, is so no longer.
    pub(super) fn part(&mut self, mapping: u32) {
        let Some(session) = self.entry_of(mapping).lone() else { return };
        self.replace(mapping, Entry::mapping(mapping));
        self.place_session(session);
    }

    /// Something else stands in the places of a mapping from now on.
    fn replace(&mut self, slot: u32, entry: Entry) {
        let Mapping { inner, external, remote, .. } = self.mappings[slot];
        self.by_inside.replace(self.hash_of(inner, remote), self.entry_of(slot).0, entry.0);
        self.set_entry_at(external, entry);
        self.mappings[slot].is_lone = entry.lone().is_some();
    }

    fn place_session(&mut self, slot: u32) {
        let Session { inner, external, remote, .. } = self.sessions[slot];
        self.flows_out.insert(self.hash_of(inner, remote), slot);
        self.flows_in.insert(self.hasher.hash(external.word(), remote.word()), slot);
    }
}
