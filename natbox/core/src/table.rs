//! Mappings and sessions, with every index over them: the one owner of the NAT's state.
//!
//! A **mapping** ties an inside endpoint to an external one. A **session** is one remote endpoint that a mapping has
//! exchanged packets with; it carries the idle timer and the TCP state. A packet of a known flow finds its session at
//! once, by (inside, remote) on its way out and by (external, remote) on its way in, and from there its mapping. The
//! mapping indexes serve only packets that begin something.
//!
//! So a session repeats what such a packet needs of its mapping, and fills one cache line: a known flow among a million
//! costs two cache misses, a line of the index and the session, and [`Nat::prefetch`](crate::Nat::prefetch) lets those of a batch overlap.
//!
//! A mapping lives as long as one of its sessions does, or until its own `expires`, whichever is later. Both have a
//! `limit` that nothing extends. What has expired is gone for every lookup at once; the wheels only give back its
//! memory and its port.
//!
//! Mappings are here; external addresses, sessions, and what is shown have files of their own.

mod carrier;
mod external;
mod pressure;
mod session;
mod show;
mod touch;

use std::net::Ipv4Addr;

use crate::{
    Behavior, Ended, Event, External, Limits, Protocol, Time,
    blocks::Blocks,
    fastpath::Exports,
    filter::Permissions,
    index::{Hasher, Index, NONE},
    packed::{Inner, Outer},
    ports::PortSet,
    quarantine::Quarantine,
    remapped::Remapped,
    report::Reports,
    slab::{Record, Slab},
    strays::Strays,
    subscribers::{Quotas, Subscribers},
    tcp::State,
    timer::{Link, Links, Wheel},
};

/// How many mappings on one external endpoint an inbound packet is offered to. More than one exist only under
/// overloading, where the flow itself nearly always decides.
const OVERLOAD_DEPTH: usize = 16;

/// Expired records that one `expire` call may visit, so that it never holds up a packet for long: each costs up to a
/// microsecond in a table of a million, where every line that it touches is a cache miss.
const EXPIRY_BUDGET: usize = 64;

#[derive(Clone, Copy)]
pub(crate) struct Mapping {
    pub(crate) inner: Inner,
    pub(crate) external: Outer,
    /// The destination it is for: an endpoint, an address with port 0, or [`Outer::anybody`].
    pub(crate) remote: Outer,
    created: Time,
    /// Alive until then even without sessions.
    expires: Time,
    /// Not alive after this, whatever happens.
    pub(crate) limit: Time,
    sessions: u32,
    /// [`NONE`] on a free slot.
    session_count: u32,
    /// Neighbours on the same external endpoint.
    previous: u32,
    next: u32,
    /// Whose it is; [`NONE`] where subscribers are not counted.
    subscriber: u32,
    pub(crate) is_static: bool,
}

impl Record for Mapping {
    fn vacant(next: u32) -> Mapping {
        let nobody = Outer::anybody(Protocol::Udp);
        Mapping {
            inner: Inner::NOBODY,
            external: nobody,
            remote: nobody,
            created: Time::ZERO,
            expires: Time::ZERO,
            limit: Time::ZERO,
            sessions: NONE,
            session_count: NONE,
            previous: NONE,
            next,
            subscriber: NONE,
            is_static: false,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.session_count == NONE).then_some(self.next)
    }
}

/// All that a packet of a known flow needs, in either direction: one cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Session {
    pub(crate) inner: Inner,
    pub(crate) external: Outer,
    pub(crate) remote: Outer,
    expires: Time,
    /// [`NONE`] on a free slot.
    pub(crate) mapping: u32,
    previous: u32,
    next: u32,
    timer: Link,
    /// Neighbours among the sessions that hold the same permission.
    pub(crate) peers: Peers,
    pub(crate) state: State,
    /// Has carried an outbound packet, and holds a permission where the filter counts them.
    permitted: bool,
    /// The permissions know of it. They need not as long as it is the only session of its mapping, whose own they are.
    pub(crate) granted: bool,
    /// Its mapping has a limit.
    limited: bool,
}

/// Links of a list of sessions.
#[derive(Clone, Copy)]
pub(crate) struct Peers {
    pub(crate) previous: u32,
    pub(crate) next: u32,
}

impl Peers {
    pub(crate) const NONE: Peers = Peers { previous: NONE, next: NONE };
}

const _: () = assert!(size_of::<Session>() == 64);

impl Record for Session {
    fn vacant(next: u32) -> Session {
        let nobody = Outer::anybody(Protocol::Udp);
        Session {
            inner: Inner::NOBODY,
            external: nobody,
            remote: nobody,
            expires: Time::ZERO,
            mapping: NONE,
            previous: NONE,
            next,
            timer: Link::IDLE,
            peers: Peers::NONE,
            state: State::New,
            permitted: false,
            granted: false,
            limited: false,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.mapping == NONE).then_some(self.next)
    }
}

impl Links for Slab<Session> {
    fn link(&self, slot: u32) -> Link {
        self[slot].timer
    }

    fn link_mut(&mut self, slot: u32) -> &mut Link {
        &mut self[slot].timer
    }
}

/// What a new mapping is made from.
pub(crate) struct NewMapping {
    pub(crate) inner: Inner,
    pub(crate) external: Outer,
    pub(crate) remote: Outer,
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
    /// Sessions by (inner, remote) and by (external, remote).
    flows_out: Index,
    flows_in: Index,
    /// Mappings by (inner, remote), and the first of each external endpoint.
    by_inside: Index,
    by_external: Index,
    session_wheel: Wheel,
    /// Mappings without a session, which are few.
    mapping_wheel: Wheel,
    mapping_timers: Vec<Link>,
    /// Sorted.
    addresses: Vec<Ipv4Addr>,
    /// The ports in use on each of them.
    pools: Vec<external::Pools>,
    /// Ports that the host holds itself, by protocol.
    reserved: [PortSet; Protocol::ALL.len()],
    /// Tuples that nobody inside holds, and that are not free.
    pub(crate) strays: Strays,
    subscribers: Subscribers,
    blocks: Blocks,
    quarantine: Quarantine,
    pub(crate) remapped: Remapped,
    pub(crate) exports: Exports,
    pub(crate) statics: usize,
}

impl Table {
    pub(crate) fn new(hasher: Hasher, limits: Limits, behavior: &Behavior) -> Table {
        Table {
            hasher,
            limits,
            mappings: Slab::new(),
            sessions: Slab::new(),
            permissions: Permissions::new(behavior),
            flows_out: Index::new(),
            flows_in: Index::new(),
            by_inside: Index::new(),
            by_external: Index::new(),
            session_wheel: Wheel::new(),
            mapping_wheel: Wheel::new(),
            mapping_timers: Vec::new(),
            addresses: Vec::new(),
            pools: Vec::new(),
            reserved: [PortSet::new(), PortSet::new(), PortSet::new()],
            strays: Strays::default(),
            subscribers: Subscribers::new(Quotas::of(behavior), limits.mappings),
            blocks: Blocks::new(behavior),
            quarantine: Quarantine::new(behavior),
            remapped: Remapped::new(behavior.ports),
            exports: Exports::new(),
            statics: 0,
        }
    }

    #[inline]
    pub(crate) fn mapping(&self, slot: u32) -> &Mapping {
        &self.mappings[slot]
    }

    #[inline]
    pub(crate) fn session(&self, slot: u32) -> &Session {
        &self.sessions[slot]
    }

    #[inline]
    pub(crate) fn session_mut(&mut self, slot: u32) -> &mut Session {
        &mut self.sessions[slot]
    }

    /// The hash of a flow's key, of two words.
    #[inline]
    pub(crate) fn hash(&self, a: u64, b: u64) -> u32 {
        self.hasher.hash(a, b)
    }

    pub(crate) fn mapping_count(&self) -> usize {
        self.mappings.len()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    // ---- Mappings ----

    /// The live mapping of an inside endpoint for `remote` (an endpoint, an address with port 0, or anybody).
    pub(crate) fn find_mapping(
        &mut self,
        inner: Inner,
        remote: Outer,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        let hash = self.hasher.hash(inner.word(), remote.word());
        let slot = self.by_inside.find(hash, |slot| {
            let mapping = &self.mappings[slot];
            mapping.inner == inner && mapping.remote == remote
        })?;
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
            let next = self.mappings[slot].next;
            if self.is_alive(slot, now, reports) {
                found[count] = slot;
                count += 1;
            }
            slot = next;
        }
        (found, count)
    }

    fn first_external(&self, external: Outer) -> Option<u32> {
        let hash = self.hasher.hash(external.word(), 0);
        self.by_external.find(hash, |slot| self.mappings[slot].external == external)
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

    /// Adds a mapping; `None` when the table is full. Its keys must be free.
    pub(crate) fn insert_mapping(
        &mut self,
        new: NewMapping,
        now: Time,
        reports: &mut Reports,
    ) -> Option<u32> {
        if self.is_full_of_mappings() {
            return None;
        }
        let NewMapping { inner, external, remote, is_static, expires, limit } = new;
        let first = if self.is_held(external) { self.first_external(external) } else { None };
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
            previous: NONE,
            next: first.unwrap_or(NONE),
            subscriber,
            is_static,
        });
        let hash = self.hasher.hash(external.word(), 0);
        match first {
            Some(first) => {
                self.mappings[first].previous = slot;
                self.by_external.replace(hash, first, slot);
            }
            None => {
                self.by_external.insert(hash, slot);
                self.hold_port(external, subscriber, reports);
            }
        }
        self.by_inside.insert(self.hasher.hash(inner.word(), remote.word()), slot);
        self.remapped.add(slot, inner, external);
        self.statics += usize::from(is_static);
        // One that would be due at once is made for a session, which follows.
        if expires != Time::NEVER && (is_static || expires > now) {
            self.mapping_wheel.insert(&mut self.mapping_timers, slot, expires.min(limit));
        }
        reports.counters.mappings_created += 1;
        reports.event(|| Event::MappingCreated {
            protocol: external.protocol(),
            inside: inner.public(),
            external: External(external.public()),
        });
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
        while self.mappings[slot].sessions != NONE {
            self.unlink_session(self.mappings[slot].sessions, reports);
        }
        self.mapping_wheel.remove(&mut self.mapping_timers, slot);
        let Mapping { inner, external, remote, previous, next, subscriber, is_static, .. } =
            self.mappings.remove(slot);
        let hash = self.hasher.hash(external.word(), 0);
        if next != NONE {
            self.mappings[next].previous = previous;
        }
        match (previous, next) {
            (NONE, NONE) => {
                self.by_external.remove(hash, slot);
                self.let_port_go(external, is_static, now, reports);
            }
            (NONE, next) => self.by_external.replace(hash, slot, next),
            (previous, next) => self.mappings[previous].next = next,
        }
        self.by_inside.remove(self.hasher.hash(inner.word(), remote.word()), slot);
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

    // ---- Time ----

    /// Gives back what has expired, as much as one call may; true when there may be more.
    pub(crate) fn expire(&mut self, now: Time, reports: &mut Reports) -> bool {
        for _ in 0..EXPIRY_BUDGET {
            if let Some(slot) = self.session_wheel.pop(&mut self.sessions, now) {
                match self.sessions[slot].expires {
                    expires if expires <= now => self.end_session(slot, now, reports),
                    expires => self.session_wheel.insert(&mut self.sessions, slot, expires),
                }
            } else if let Some(slot) = self.mapping_wheel.pop(&mut self.mapping_timers, now) {
                match self.mappings[slot].expires {
                    expires if expires <= now => self.end_mapping(slot, Ended::Expired, now, reports),
                    expires => self.mapping_wheel.insert(&mut self.mapping_timers, slot, expires),
                }
            } else if !self.expire_port(now, reports) && !self.subscribers.expire(&self.hasher, now) {
                return false;
            }
        }
        true
    }

    /// When `expire` has something to do next.
    pub(crate) fn next_expiry(&self) -> Option<Time> {
        let wheels = [self.session_wheel.next(), self.mapping_wheel.next()];
        let others = [self.quarantine.next_expiry(), self.subscribers.next_expiry()];
        wheels.into_iter().chain(others).flatten().min()
    }
}
