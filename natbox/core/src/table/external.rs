//! The external addresses, and the ports in use on them.

use std::net::Ipv4Addr;

use rand_chacha::ChaCha8Rng;

use super::Table;
use crate::{
    Behavior, Claim, Ended, External, PortRange, Protocol, Time,
    behavior::{PortAssignment, PortClass},
    packed::{Inner, Outer, Spot},
    ports::{Pool, choose},
    report::Reports,
};

/// The ports of an external address, by protocol.
pub(super) type Pools = [Pool; Protocol::ALL.len()];

impl Table {
    /// Sorted.
    pub(crate) fn addresses(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    #[inline(always)]
    pub(crate) fn is_external(&self, addr: Ipv4Addr) -> bool {
        self.number_of(addr).is_some()
    }

    /// Which of the external addresses this is. Most pools have no gaps.
    #[inline(always)]
    pub(super) fn number_of(&self, addr: Ipv4Addr) -> Option<usize> {
        let [first, .., last] = self.addresses[..] else {
            return self.addresses.first().filter(|only| **only == addr).map(|_| 0);
        };
        let number = addr.to_bits().wrapping_sub(first.to_bits()) as usize;
        match self.addresses.get(number) {
            Some(own) if *own == addr => Some(number),
            _ if first < addr && addr <= last => self.addresses.binary_search(&addr).ok(),
            _ => None,
        }
    }

    pub(crate) fn add_address(&mut self, addr: Ipv4Addr, rng: &mut ChaCha8Rng) {
        if let Err(at) = self.addresses.binary_search(&addr) {
            self.addresses.insert(at, addr);
            self.pools.insert(at, [Pool::new(rng), Pool::new(rng), Pool::new(rng)]);
        }
    }

    /// Takes an address out of use, with all mappings on it.
    pub(crate) fn remove_address(&mut self, addr: Ipv4Addr, now: Time, reports: &mut Reports) {
        let is_on_it = |external: Outer| external.spot().addr == addr;
        let on_it: Vec<u32> =
            self.mappings.iter().filter(|(_, m)| is_on_it(m.external)).map(|(slot, _)| slot).collect();
        for slot in on_it {
            self.end_mapping(slot, Ended::Removed, now, reports);
        }
        let resting: Vec<_> = self.quarantine.iter().filter(|external| is_on_it(*external)).collect();
        self.quarantine.forget_address(addr);
        for external in resting {
            self.wake_port(external, now, reports);
        }
        self.blocks.forget_address(addr);
        if let Ok(at) = self.addresses.binary_search(&addr) {
            self.addresses.remove(at);
            self.pools.remove(at);
        }
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
        (inner, remote): (Inner, Outer),
        (number, range): (usize, PortRange),
        rng: &mut ChaCha8Rng,
        now: Time,
    ) -> Option<Outer> {
        let (protocol, addr) = (remote.protocol(), *self.addresses.get(number)?);
        let endpoint = |port| Outer::new(protocol, Spot { addr, port });
        let pool = &self.pools.get(number)?[protocol as usize];
        let reserved = &self.reserved[protocol as usize];
        let free = |port| {
            (!pool.holders.hold(port) || behavior.overloading && self.is_shareable(endpoint(port), remote))
                && !reserved.contains(port)
                && !pool.resting.contains(port)
                && !self.strays.holds(endpoint(port), remote, now)
        };
        let (wanted, owner) = (inner.spot().port, self.subscribers.of(inner, &self.hasher));
        if behavior.ports == PortAssignment::Linux
            && let Some(last) = self.remapped.newest(inner, protocol).map(Outer::spot)
            && last.addr == addr
            && range.contains(last.port)
            && free(last.port)
            && self.blocks.may_use(last, owner)
        {
            return Some(endpoint(last.port));
        }
        // Only ports have classes: an identifier of a query is a number and no more.
        let classes = if protocol == Protocol::Icmp { PortClass::Off } else { behavior.port_class };
        let mut cursor = pool.cursor;
        let port = if self.blocks.is_on() {
            self.blocks.choose((owner, &self.subscribers), (addr, range), rng, |range, rng| {
                choose(behavior, (range, classes), wanted, &mut cursor, rng, free)
            })
        } else {
            choose(behavior, (range, classes), wanted, &mut cursor, rng, free)
        };
        self.pools[number][protocol as usize].cursor = cursor;
        port.map(endpoint)
    }

    /// Whether a mapping towards `remote` may share an external endpoint that others have.
    fn is_shareable(&self, external: Outer, remote: Outer) -> bool {
        let holder = self.first_external(external);
        self.lookup_in(external, remote).is_none()
            && !holder.is_some_and(|slot| self.mappings[slot].is_static)
    }

    /// A port of the address with this number is taken by its first mapping, which is `subscriber`'s.
    #[inline]
    pub(super) fn hold_port(
        &mut self,
        number: usize,
        external: Outer,
        subscriber: u32,
        reports: &mut Reports,
    ) {
        let (protocol, spot) = (external.protocol(), external.spot());
        let pool = &mut self.pools[number][protocol as usize];
        if pool.resting.contains(spot.port) {
            // Asked for by name: its block counts it already.
            pool.resting.remove(spot.port);
            self.quarantine.forget(external);
        } else {
            self.blocks.take(spot, subscriber, &mut self.subscribers, reports);
        }
        reports.claim(|| Claim { protocol, external: External(external.public()), held: true });
    }

    /// A port is let go by its last mapping; if it has to rest, nobody else gets it yet (RFC 6888 REQ-8).
    pub(super) fn let_port_go(
        &mut self,
        external: Outer,
        was_static: bool,
        now: Time,
        reports: &mut Reports,
    ) {
        let (protocol, spot) = (external.protocol(), external.spot());
        if let Some(number) = self.number_of(spot.addr) {
            let pool = &mut self.pools[number][protocol as usize];
            let is_exempt = protocol == Protocol::Tcp || was_static || !self.permissions.is_open(protocol);
            if !self.quarantine.is_on() || is_exempt {
                self.blocks.give_back(spot, &mut self.subscribers, (&self.hasher, now), reports);
            } else {
                pool.resting.insert(spot.port);
                if let Some(oldest) = self.quarantine.add(external, now) {
                    reports.counters.quarantine_cut_short += 1;
                    self.wake_port(oldest, now, reports);
                }
            }
        }
        reports.claim(|| Claim { protocol, external: External(external.public()), held: false });
    }

    /// Frees a port that has rested for long enough; false when there is none.
    pub(super) fn expire_port(&mut self, now: Time, reports: &mut Reports) -> bool {
        let rested = self.quarantine.pop(now);
        if let Some(external) = rested {
            self.wake_port(external, now, reports);
        }
        rested.is_some()
    }

    /// A port that rested is free.
    fn wake_port(&mut self, external: Outer, now: Time, reports: &mut Reports) {
        let spot = external.spot();
        if let Some(number) = self.number_of(spot.addr) {
            self.pools[number][external.protocol() as usize].resting.remove(spot.port);
        }
        self.blocks.give_back(spot, &mut self.subscribers, (&self.hasher, now), reports);
    }
}
