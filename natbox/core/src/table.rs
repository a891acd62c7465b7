//! Mappings and sessions, with every index over them: the one owner of the NAT's state.
//!
//! A **mapping** ties an inside endpoint to an external one. A **session** is one remote endpoint that a mapping has
//! exchanged packets with; it carries the idle timer and the TCP state. A packet of a known flow finds its session at
//! once, from either end (`table/lookup.rs`), and from there its mapping. Mappings are looked for only by packets that
//! begin something.
//!
//! So a session repeats what such a packet needs of its mapping, and fills one cache line: a known flow among a million
//! costs two cache misses, the place where its session stands and the session, and [`Nat::prefetch`](crate::Nat::prefetch) lets
//! those of a batch overlap.
//!
//! A mapping lives as long as one of its sessions does, or until its own `expires`, whichever is later. Both have a
//! `limit` that nothing extends. What has expired is gone for every lookup at once; the wheels only give back its
//! memory and its port.
//!
//! The records are here; what is done with them has files of its own.

mod carrier;
#[cfg(test)]
mod check;
mod external;
mod lookup;
mod mapping;
mod pressure;
mod session;
mod show;
mod touch;

pub(crate) use self::touch::TOGETHER;

use std::net::Ipv4Addr;

use crate::{
    Behavior, Ended, Limits, Protocol, Time,
    blocks::Blocks,
    fastpath::Exports,
    filter::Permissions,
    index::{Hasher, Index, NONE},
    packed::{Inner, Outer},
    ports::PortSet,
    quarantine::Quarantine,
    remapped::Remapped,
    report::Reports,
    slab::{Record, Slab, Sparse},
    strays::Strays,
    subscribers::{Quotas, Subscribers},
    tcp::State,
    timer::{Link, Links, Wheel},
};

/// Expired records that one `expire` call may visit, so that it never holds up a packet for long: each costs up to a
/// microsecond in a table of a million, where every line that it touches is a cache miss.
const EXPIRY_BUDGET: usize = 64;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
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
    /// The first of its sessions.
    sessions: u32,
    /// [`NONE`] on a free slot.
    session_count: u32,
    /// Whose it is; [`NONE`] where subscribers are not counted.
    subscriber: u32,
    pub(crate) is_static: bool,
    /// Its session is [lone](lookup).
    is_lone: bool,
    /// Others have its external endpoint as well, or had.
    shares: bool,
}

const _: () = assert!(size_of::<Mapping>() == 64);

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
            sessions: next,
            session_count: NONE,
            subscriber: NONE,
            is_static: false,
            is_lone: false,
            shares: false,
        }
    }

    fn next_vacant(&self) -> Option<u32> {
        (self.session_count == NONE).then_some(self.sessions)
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

/// Links of a list.
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

/// What a new session is made from.
#[derive(Clone, Copy)]
pub(crate) struct NewSession {
    pub(crate) remote: Outer,
    pub(crate) state: State,
    pub(crate) expires: Time,
}

pub(crate) struct Table {
    hasher: Hasher,
    limits: Limits,
    mappings: Slab<Mapping>,
    sessions: Slab<Session>,
    permissions: Permissions,
    /// Sessions by (inner, remote) and by (external, remote), but for lone ones.
    flows_out: Index,
    flows_in: Index,
    /// Mappings, or the lone sessions in their places, by (inner, remote).
    by_inside: Index,
    masks: lookup::Masks,
    session_wheel: Wheel,
    /// Mappings without a session, which are few.
    mapping_wheel: Wheel,
    mapping_timers: Sparse<Link>,
    /// Neighbours of a mapping on the same external endpoint, of those that share theirs.
    neighbours: Sparse<Peers>,
    /// Sorted.
    addresses: Vec<Ipv4Addr>,
    /// The ports of each of them.
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
            masks: lookup::masks(behavior),
            session_wheel: Wheel::new(),
            mapping_wheel: Wheel::new(),
            mapping_timers: Sparse::new(Link::IDLE),
            neighbours: Sparse::new(Peers::NONE),
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

    pub(crate) fn mapping_count(&self) -> usize {
        self.mappings.len()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.len()
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
