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

use std::net::{IpAddr, Ipv4Addr};

use rand_chacha::ChaCha8Rng;

use crate::{
    Behavior, Claim, Ended, Endpoint, Event, External, Inside, Limits, MappingInfo, PortRange, Protocol,
    Remote, SessionInfo, Time,
    behavior::{FilterScope, Filtering},
    filter::{Permission, Permissions},
    index::{Hasher, Index, NONE},
    ports::{Pool, PortSet},
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

/// An external address with the ports in use on it, by protocol.
struct Address {
    addr: IpAddr,
    pools: [Pool; Protocol::ALL.len()],
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
    addresses: Vec<Address>,
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

    // ---- External addresses and ports ----

    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().map(|address| address.addr)
    }

    pub(crate) fn is_external(&self, addr: IpAddr) -> bool {
        self.addresses.binary_search_by_key(&addr, |address| address.addr).is_ok()
    }

    pub(crate) fn add_address(&mut self, addr: IpAddr, rng: &mut ChaCha8Rng) {
        if let Err(at) = self.addresses.binary_search_by_key(&addr, |address| address.addr) {
            let pools = [Pool::new(rng), Pool::new(rng), Pool::new(rng)];
            self.addresses.insert(at, Address { addr, pools });
        }
    }

    /// Takes an address out of use, with all mappings on it.
    pub(crate) fn remove_address(&mut self, addr: IpAddr, reports: &mut Reports) {
        let on_it: Vec<u32> =
            self.mappings.iter().filter(|(_, m)| m.external.addr == addr).map(|(slot, _)| slot).collect();
        for slot in on_it {
            self.end_mapping(slot, Ended::Removed, reports);
        }
        self.addresses.retain(|address| address.addr != addr);
    }

    pub(crate) fn set_reserved(&mut self, protocol: Protocol, ports: &[u16]) {
        let reserved = &mut self.reserved[protocol as usize];
        reserved.clear();
        ports.iter().for_each(|port| reserved.insert(*port));
    }

    pub(crate) fn is_reserved(&self, protocol: Protocol, port: u16) -> bool {
        self.reserved[protocol as usize].contains(port)
    }

    /// A free external endpoint on the address with this number, for a mapping towards `remote`.
    pub(crate) fn choose_external(
        &mut self,
        behavior: &Behavior,
        (protocol, inside, remote): (Protocol, Inside, Endpoint),
        (number, range): (usize, PortRange),
        rng: &mut ChaCha8Rng,
    ) -> Option<Endpoint> {
        let Table { addresses, reserved, hasher, flows_in, by_external, sessions, mappings, .. } = self;
        let Address { addr, pools } = addresses.get_mut(number)?;
        let reserved = &reserved[protocol as usize];
        let shareable = |external: Endpoint| {
            let flow = hasher.hash(protocol, FLOWS_IN, external, remote);
            let holder = hasher.hash(protocol, BY_EXTERNAL, external, ANYBODY);
            let in_use = flows_in.find(flow, |slot| {
                let session = &sessions[slot];
                let mapping = &mappings[session.mapping];
                session.remote == remote && mapping.external == external && mapping.protocol == protocol
            });
            let is_static = by_external.find(holder, |slot| {
                let mapping = &mappings[slot];
                mapping.external == external && mapping.protocol == protocol && mapping.is_static
            });
            in_use.is_none() && is_static.is_none()
        };
        let port =
            pools[protocol as usize].choose(behavior, range, inside.endpoint.port, rng, |used, port| {
                !reserved.contains(port)
                    && (!used.contains(port) || behavior.overloading && shareable(Endpoint::new(*addr, port)))
            })?;
        Some(Endpoint::new(*addr, port))
    }

    // ---- Sessions ----

    /// The live session of a packet from inside.
    pub(crate) fn find_out(
        &mut self,
        protocol: Protocol,
        inside: Inside,
        remote: Endpoint,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let hash = self.hasher.hash(protocol, flows_out_salt(inside), inside.endpoint, remote);
        let slot = self.flows_out.find(hash, |slot| {
            let session = &self.sessions[slot];
            let mapping = &self.mappings[session.mapping];
            session.remote == remote && mapping.inside == inside && mapping.protocol == protocol
        })?;
        self.alive(slot, now, reports)
    }

    /// The live session of a packet from outside.
    pub(crate) fn find_in(
        &mut self,
        protocol: Protocol,
        external: Endpoint,
        remote: Endpoint,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let hash = self.hasher.hash(protocol, FLOWS_IN, external, remote);
        let slot = self.flows_in.find(hash, |slot| {
            let session = &self.sessions[slot];
            let mapping = &self.mappings[session.mapping];
            session.remote == remote && mapping.external == external && mapping.protocol == protocol
        })?;
        self.alive(slot, now, reports)
    }

    fn alive(&mut self, slot: u32, now: Time, reports: &mut Reports) -> Option<u32> {
        if self.sessions[slot].expires > now {
            return Some(slot);
        }
        self.end_session(slot, now, reports);
        None
    }

    /// Whether there is no room for another session.
    pub(crate) fn is_full(&self) -> bool {
        self.sessions.len() >= self.limits.sessions
    }

    /// Adds a session to a mapping; `None` when the table is full. There must be none for this remote yet.
    pub(crate) fn insert_session(
        &mut self,
        mapping_slot: u32,
        remote: Endpoint,
        state: State,
        expires: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        if self.is_full() {
            return None;
        }
        let mapping = &mut self.mappings[mapping_slot];
        let expires = expires.min(mapping.limit);
        let next = mapping.sessions;
        let (out, inward) = flow_hashes(&self.hasher, mapping, remote);
        let session =
            Session { mapping: mapping_slot, remote, state, permitted: false, expires, previous: NONE, next };
        let slot = self.sessions.insert(session);
        mapping.sessions = slot;
        mapping.session_count += 1;
        if mapping.session_count == 1 {
            self.mapping_wheel.remove(mapping_slot);
        }
        if next != NONE {
            self.sessions[next].previous = slot;
        }
        self.flows_out.insert(out, slot);
        self.flows_in.insert(inward, slot);
        self.session_wheel.insert(slot, expires);
        reports.counters.sessions_created += 1;
        Some(slot)
    }

    /// Moves a session's deadline. A later one is news to the wheel only when the old one comes; an earlier one (a
    /// connection closes, a timer was set shorter) is told at once, or what is dead would be kept until then.
    pub(crate) fn set_deadline(&mut self, slot: u32, expires: Time) {
        let session = &mut self.sessions[slot];
        if std::mem::replace(&mut session.expires, expires) > expires {
            self.session_wheel.remove(slot);
            self.session_wheel.insert(slot, expires);
        }
    }

    /// Lets the session's remote in through the filter: it has been sent to.
    pub(crate) fn permit(&mut self, slot: u32) {
        let session = &mut self.sessions[slot];
        if std::mem::replace(&mut session.permitted, true) {
            return;
        }
        if let Some(permission) = permission_of(&self.permissions, &self.sessions[slot], &self.mappings) {
            self.permissions.grant(permission, &self.hasher);
        }
    }

    /// Filters by another rule from now on; what has been sent to stays permitted.
    pub(crate) fn set_filter(&mut self, filtering: Filtering, scope: FilterScope) {
        let mut permissions = Permissions::new(filtering, scope);
        for (_, session) in self.sessions.iter().filter(|(_, session)| session.permitted) {
            if let Some(permission) = permission_of(&permissions, session, &self.mappings) {
                permissions.grant(permission, &self.hasher);
            }
        }
        self.permissions = permissions;
    }

    /// Whether the filter lets `remote` send to a mapping that has no session with it.
    pub(crate) fn admits(&self, slot: u32, remote: Endpoint) -> bool {
        let Mapping { protocol, inside, is_static, .. } = self.mappings[slot];
        is_static || self.permissions.admits(protocol, inside, slot, remote, &self.hasher)
    }

    pub(crate) fn end_session(&mut self, slot: u32, now: Time, reports: &mut Reports) {
        let mapping_slot = self.unlink_session(slot, reports);
        let mapping = &self.mappings[mapping_slot];
        if mapping.session_count > 0 {
            return;
        }
        if mapping.expires <= now {
            self.end_mapping(mapping_slot, Ended::Expired, reports);
        } else if mapping.expires != Time::NEVER {
            self.mapping_wheel.insert(mapping_slot, mapping.expires);
        }
    }

    fn unlink_session(&mut self, slot: u32, reports: &mut Reports) -> u32 {
        let session = &self.sessions[slot];
        let Session { mapping: mapping_slot, remote, previous, next, permitted, .. } = *session;
        if permitted && let Some(permission) = permission_of(&self.permissions, session, &self.mappings) {
            self.permissions.revoke(&permission, &self.hasher);
        }
        let mapping = &mut self.mappings[mapping_slot];
        let (out, inward) = flow_hashes(&self.hasher, mapping, remote);
        mapping.session_count -= 1;
        if previous == NONE {
            mapping.sessions = next;
        } else {
            self.sessions[previous].next = next;
        }
        if next != NONE {
            self.sessions[next].previous = previous;
        }
        self.flows_out.remove(out, slot);
        self.flows_in.remove(inward, slot);
        self.session_wheel.remove(slot);
        self.sessions.remove(slot);
        reports.counters.sessions_ended += 1;
        mapping_slot
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

    fn hold_port(&mut self, protocol: Protocol, external: Endpoint, held: bool, reports: &mut Reports) {
        if let Ok(at) = self.addresses.binary_search_by_key(&external.addr, |address| address.addr) {
            let used = &mut self.addresses[at].pools[protocol as usize].used;
            if held {
                used.insert(external.port);
            } else {
                used.remove(external.port);
            }
        }
        reports.claim(Claim { protocol, external: External(external), held });
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

    // ---- For people and programs ----

    pub(crate) fn mapping_slots(&self) -> impl Iterator<Item = (u32, MappingInfo)> + '_ {
        self.mappings.iter().map(|(slot, mapping)| (slot, self.mapping_info(mapping)))
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = SessionInfo> + '_ {
        self.sessions.iter().map(|(_, session)| {
            let mapping = &self.mappings[session.mapping];
            SessionInfo {
                protocol: mapping.protocol,
                inside: mapping.inside,
                external: External(mapping.external),
                remote: Remote(session.remote),
                state: session.state.word(),
                expires: session.expires,
            }
        })
    }

    fn mapping_info(&self, mapping: &Mapping) -> MappingInfo {
        let mut expires = mapping.expires;
        let mut slot = mapping.sessions;
        while slot != NONE {
            expires = expires.max(self.sessions[slot].expires);
            slot = self.sessions[slot].next;
        }
        MappingInfo {
            protocol: mapping.protocol,
            inside: mapping.inside,
            external: External(mapping.external),
            remote: (mapping.remote != ANYBODY).then_some(Remote(mapping.remote)),
            is_static: mapping.is_static,
            created: mapping.created,
            expires,
            sessions: mapping.session_count,
        }
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

fn permission_of(rule: &Permissions, session: &Session, mappings: &Slab<Mapping>) -> Option<Permission> {
    let mapping = &mappings[session.mapping];
    rule.needed(mapping.protocol, mapping.inside, session.mapping, session.remote)
}
