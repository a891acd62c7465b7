//! Mappings and sessions, with every index over them: the one owner of the NAT's state.
//!
//! A **mapping** ties an inside endpoint to an external one. A **session** is one remote endpoint that a mapping has
//! exchanged packets with; it carries the idle timer and the TCP state. A packet of a known flow finds its session at
//! once, by (inside, remote) on its way out and by (external, remote) on its way in, and from there its mapping. The
//! mapping indexes serve only packets that begin something.
//!
//! A mapping lives as long as one of its sessions does, or until its own `expires`, whichever is later. Both have a
//! `limit` that nothing extends. What has expired is gone for every lookup at once; the wheels only give back its
//! memory and its port.
//!
//! Mappings are here; external addresses, sessions, and what is shown have files of their own.

mod external;
mod session;
mod show;

use std::net::Ipv4Addr;

use crate::{
    Behavior, Ended, Endpoint, Event, External, Inside, Limits, Protocol, Time,
    filter::Permissions,
    index::{Hasher, Index, NONE},
    ports::PortSet,
    report::Reports,
    slab::Slab,
    tcp::State,
    timer::Wheel,
};

/// The remote endpoint of a mapping that is for every remote.
pub(crate) const ANYBODY: Endpoint = Endpoint::v4(Ipv4Addr::UNSPECIFIED, 0);

/// How many mappings on one external endpoint an inbound packet is offered to. More than one exist only under
/// overloading, where the flow itself nearly always decides.
const OVERLOAD_DEPTH: usize = 16;

/// Expired records that one `expire` call may visit, so that it never holds up a packet for long.
const EXPIRY_BUDGET: usize = 256;

pub(crate) struct Mapping {
    pub(crate) inside: Inside,
    pub(crate) external: Endpoint,
    /// The destination it is for: an endpoint, an address with port 0, or [`ANYBODY`].
    pub(crate) remote: Endpoint,
    pub(crate) protocol: Protocol,
    pub(crate) is_static: bool,
    created: Time,
    /// Alive until then even without sessions.
    expires: Time,
    /// Not alive after this, whatever happens.
    pub(crate) limit: Time,
    sessions: u32,
    session_count: u32,
    /// Neighbours on the same external endpoint.
    previous: u32,
    next: u32,
}

pub(crate) struct Session {
    pub(crate) mapping: u32,
    pub(crate) remote: Endpoint,
    pub(crate) state: State,
    /// Has carried an outbound packet, and holds a permission where the filter counts them.
    permitted: bool,
    expires: Time,
    previous: u32,
    next: u32,
}

/// What a new mapping is made from.
pub(crate) struct NewMapping {
    pub(crate) protocol: Protocol,
    pub(crate) inside: Inside,
    pub(crate) external: Endpoint,
    pub(crate) remote: Endpoint,
    pub(crate) is_static: bool,
    pub(crate) expires: Time,
    pub(crate) limit: Time,
}

pub(crate) struct Table {
    hasher: Hasher,
    limits: Limits,
    mappings: Slab<Mapping>,
    sessions: Slab<Session>,
    permissions: Permissions,
    /// Sessions by (inside, remote) and by (external, remote).
    flows_out: Index,
    flows_in: Index,
    /// Mappings by (inside, remote or [`ANYBODY`]), and the first of each external endpoint.
    by_inside: Index,
    by_external: Index,
    session_wheel: Wheel,
    /// Mappings without a session.
    mapping_wheel: Wheel,
    /// Sorted by address.
    addresses: Vec<external::Address>,
    /// Ports that the host holds itself, by protocol.
    reserved: [PortSet; Protocol::ALL.len()],
    pub(crate) statics: usize,
}

impl Table {
    pub(crate) fn new(hasher: Hasher, limits: Limits, behavior: &Behavior) -> Table {
        Table {
            hasher,
            limits,
            mappings: Slab::new(),
            sessions: Slab::new(),
            permissions: Permissions::new(behavior.filtering, behavior.filter_scope),
            flows_out: Index::new(),
            flows_in: Index::new(),
            by_inside: Index::new(),
            by_external: Index::new(),
            session_wheel: Wheel::new(),
            mapping_wheel: Wheel::new(),
            addresses: Vec::new(),
            reserved: [PortSet::new(), PortSet::new(), PortSet::new()],
            statics: 0,
        }
    }

    pub(crate) fn mapping(&self, slot: u32) -> &Mapping {
        &self.mappings[slot]
    }

    pub(crate) fn session(&self, slot: u32) -> &Session {
        &self.sessions[slot]
    }

    pub(crate) fn session_mut(&mut self, slot: u32) -> &mut Session {
        &mut self.sessions[slot]
    }

    pub(crate) fn mapping_count(&self) -> usize {
        self.mappings.len()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    // ---- Mappings ----

    /// The live mapping of an inside endpoint for `remote` (an endpoint, an address with port 0, or [`ANYBODY`]).
    pub(crate) fn find_mapping(
        &mut self,
        protocol: Protocol,
        inside: Inside,
        remote: Endpoint,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let hash = self.hasher.hash(protocol, by_inside_salt(inside), inside.endpoint, remote);
        let slot = self.by_inside.find(hash, |slot| {
            let mapping = &self.mappings[slot];
            mapping.inside == inside && mapping.remote == remote && mapping.protocol == protocol
        })?;
        self.is_alive(slot, now, reports).then_some(slot)
    }

    /// The live mappings on an external endpoint, and one past the last of them.
    pub(crate) fn find_external(
        &mut self,
        protocol: Protocol,
        external: Endpoint,
        now: Time,
        reports: &mut Reports,
    ) -> ([u32; OVERLOAD_DEPTH], usize) {
        let (mut found, mut count) = ([NONE; OVERLOAD_DEPTH], 0);
        let mut slot = self.first_external(protocol, external).unwrap_or(NONE);
        while slot != NONE && count < OVERLOAD_DEPTH {
            let next = self.mappings[slot].next;
            if self.is_alive(slot, now, reports) {
                found[count] = slot;
                count += 1;
            }
            slot = next;
        }
        (found, count)
    }

    fn first_external(&self, protocol: Protocol, external: Endpoint) -> Option<u32> {
        let hash = self.hasher.hash(protocol, BY_EXTERNAL, external, ANYBODY);
        self.by_external.find(hash, |slot| {
            let mapping = &self.mappings[slot];
            mapping.external == external && mapping.protocol == protocol
        })
    }

    /// Whether a mapping is alive; if it is not, its end is carried out. Each expired session is visited once.
    fn is_alive(&mut self, slot: u32, now: Time, reports: &mut Reports) -> bool {
        loop {
            let mapping = &self.mappings[slot];
            if mapping.limit > now && mapping.expires > now {
                return true;
            }
            let session = mapping.sessions;
            if session == NONE {
                self.mapping_wheel.remove(slot);
                self.end_mapping(slot, Ended::Expired, reports);
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

    /// Adds a mapping; `None` when the table is full. Its keys must be free.
    pub(crate) fn insert_mapping(
        &mut self,
        new: NewMapping,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        if self.mappings.len() >= self.limits.mappings {
            return None;
        }
        let NewMapping { protocol, inside, external, remote, is_static, expires, limit } = new;
        let first = self.first_external(protocol, external);
        let slot = self.mappings.insert(Mapping {
            inside,
            external,
            remote,
            protocol,
            is_static,
            created: now,
            expires: expires.min(limit),
            limit,
            sessions: NONE,
            session_count: 0,
            previous: NONE,
            next: first.unwrap_or(NONE),
        });
        let hash = self.hasher.hash(protocol, BY_EXTERNAL, external, ANYBODY);
        match first {
            Some(first) => {
                self.mappings[first].previous = slot;
                self.by_external.replace(hash, first, slot);
            }
            None => {
                self.by_external.insert(hash, slot);
                self.hold_port(protocol, external, true, reports);
            }
        }
        let hash = self.hasher.hash(protocol, by_inside_salt(inside), inside.endpoint, remote);
        self.by_inside.insert(hash, slot);
        self.statics += usize::from(is_static);
        if expires != Time::NEVER {
            self.mapping_wheel.insert(slot, expires.min(limit));
        }
        reports.counters.mappings_created += 1;
        reports.event(Event::MappingCreated { protocol, inside, external: External(external) });
        Some(slot)
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
        self.mapping_wheel.remove(slot);
        if session == NONE && until != Time::NEVER {
            self.mapping_wheel.insert(slot, until);
        }
        while session != NONE {
            self.set_deadline(session, self.sessions[session].expires.min(until));
            session = self.sessions[session].next;
        }
    }

    /// Ends a mapping with all of its sessions.
    pub(crate) fn end_mapping(&mut self, slot: u32, why: Ended, reports: &mut Reports) {
        while self.mappings[slot].sessions != NONE {
            self.unlink_session(self.mappings[slot].sessions, reports);
        }
        self.mapping_wheel.remove(slot);
        let Some(mapping) = self.mappings.remove(slot) else { return };
        let Mapping { protocol, inside, external, remote, previous, next, is_static, .. } = mapping;
        let hash = self.hasher.hash(protocol, BY_EXTERNAL, external, ANYBODY);
        if next != NONE {
            self.mappings[next].previous = previous;
        }
        match (previous, next) {
            (NONE, NONE) => {
                self.by_external.remove(hash, slot);
                self.hold_port(protocol, external, false, reports);
            }
            (NONE, next) => self.by_external.replace(hash, slot, next),
            (previous, next) => self.mappings[previous].next = next,
        }
        let hash = self.hasher.hash(protocol, by_inside_salt(inside), inside.endpoint, remote);
        self.by_inside.remove(hash, slot);
        self.statics -= usize::from(is_static);
        reports.counters.mappings_ended += 1;
        reports.event(Event::MappingEnded { protocol, inside, external: External(external), why });
    }

    // ---- Time ----

    /// Gives back what has expired, as much as one call may; true when there may be more.
    pub(crate) fn expire(&mut self, now: Time, reports: &mut Reports) -> bool {
        for _ in 0..EXPIRY_BUDGET {
            if let Some(slot) = self.session_wheel.pop(now) {
                match self.sessions[slot].expires {
                    expires if expires <= now => self.end_session(slot, now, reports),
                    expires => self.session_wheel.insert(slot, expires),
                }
            } else if let Some(slot) = self.mapping_wheel.pop(now) {
                match self.mappings[slot].expires {
                    expires if expires <= now => self.end_mapping(slot, Ended::Expired, reports),
                    expires => self.mapping_wheel.insert(slot, expires),
                }
            } else {
                return false;
            }
        }
        true
    }

    /// When `expire` has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        [self.session_wheel.next(), self.mapping_wheel.next()].into_iter().flatten().min()
    }
}

// The key spaces of the hasher: by what a salt ends in.
const FLOWS_IN: u32 = 1;
const BY_EXTERNAL: u32 = 3;

fn flows_out_salt(inside: Inside) -> u32 {
    u32::from(inside.port.0) << 2
}

fn by_inside_salt(inside: Inside) -> u32 {
    u32::from(inside.port.0) << 2 | 2
}

fn flow_hashes(hasher: &Hasher, mapping: &Mapping, remote: Endpoint) -> (u32, u32) {
    let Mapping { protocol, inside, external, .. } = *mapping;
    (
        hasher.hash(protocol, flows_out_salt(inside), inside.endpoint, remote),
        hasher.hash(protocol, FLOWS_IN, external, remote),
    )
}
