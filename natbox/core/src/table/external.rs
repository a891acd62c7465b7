//! The external addresses, and the ports in use on them.

use std::net::IpAddr;

use rand_chacha::ChaCha8Rng;

use super::{ANYBODY, BY_EXTERNAL, FLOWS_IN, Table};
use crate::{
    Behavior, Claim, Ended, Endpoint, External, Inside, PortRange, Protocol, ports::Pool, report::Reports,
};

/// An external address with the ports in use on it, by protocol.
pub(super) struct Address {
    addr: IpAddr,
    pools: [Pool; Protocol::ALL.len()],
}

impl Table {
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

    /// A port is taken by its first mapping, or given back by its last.
    pub(super) fn hold_port(
        &mut self,
        protocol: Protocol,
        external: Endpoint,
        held: bool,
        reports: &mut Reports,
    ) {
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
}
