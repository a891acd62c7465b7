//! The external addresses, and the ports in use on them.

use std::net::Ipv4Addr;

use rand_chacha::ChaCha8Rng;

use super::Table;
use crate::{
    Behavior, Claim, Ended, External, PortRange, Protocol, Time,
    packed::{Inner, Outer, Spot},
    ports::Pool,
    report::Reports,
};

/// The ports in use on an external address, by protocol.
pub(super) type Pools = [Pool; Protocol::ALL.len()];

impl Table {
    /// Sorted.
    pub(crate) fn addresses(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    #[inline]
    pub(crate) fn is_external(&self, addr: Ipv4Addr) -> bool {
        match self.addresses[..] {
            [only] => only == addr,
            [first, .., last] => {
                (first..=last).contains(&addr) && self.addresses.binary_search(&addr).is_ok()
            }
            [] => false,
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
        let Table {
            addresses,
            pools,
            reserved,
            hasher,
            flows_in,
            by_external,
            sessions,
            mappings,
            strays,
            ..
        } = self;
        let (protocol, addr) = (remote.protocol(), *addresses.get(number)?);
        let reserved = &reserved[protocol as usize];
        let endpoint = |port| Outer::new(protocol, Spot { addr, port });
        let shareable = |external: Outer| {
            let in_use = flows_in.find(hasher.hash(external.word(), remote.word()), |slot| {
                let session = &sessions[slot];
                session.remote == remote && session.external == external
            });
            let is_static = by_external.find(hasher.hash(external.word(), 0), |slot| {
                let mapping = &mappings[slot];
                mapping.external == external && mapping.is_static
            });
            in_use.is_none() && is_static.is_none()
        };
        let pool = &mut pools.get_mut(number)?[protocol as usize];
        let port = pool.choose(behavior, range, inner.spot().port, rng, |used, port| {
            !reserved.contains(port)
                && !strays.holds(endpoint(port), remote, now)
                && (!used.contains(port) || behavior.overloading && shareable(endpoint(port)))
        })?;
        Some(endpoint(port))
    }

    /// Whether a mapping may have this external endpoint: on an address of ours, whether one has.
    pub(super) fn is_held(&self, external: Outer) -> bool {
        let Spot { addr, port } = external.spot();
        match self.addresses.binary_search(&addr) {
            Ok(at) => self.pools[at][external.protocol() as usize].used.contains(port),
            Err(_) => true,
        }
    }

    /// A port is taken by its first mapping, or given back by its last.
    pub(super) fn hold_port(&mut self, external: Outer, held: bool, reports: &mut Reports) {
        let (protocol, Spot { addr, port }) = (external.protocol(), external.spot());
        if let Ok(at) = self.addresses.binary_search(&addr) {
            let used = &mut self.pools[at][protocol as usize].used;
            if held {
                used.insert(port);
            } else {
                used.remove(port);
            }
        }
        reports.claim(|| Claim { protocol, external: External(external.public()), held });
    }
}
