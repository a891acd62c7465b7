//! Networks: the internet, and what is behind NATs and routers; their addresses and routes.
//!
//! Networks form a tree with the internet at its root. In each of them an address belongs to one link. The addresses
//! behind a router are known in every network above it up to the next NAT or the internet; those behind a NAT are known
//! behind it only.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    net::Ipv4Addr,
};

use natbox_core::packet::ipv4::is_host;

use crate::{BuildError, NetworkId, nat::NatState, slab::Key};

/// What stands between a network and the one above it.
pub(crate) enum Gateway {
    /// Nothing: this is the internet.
    None,
    Router,
    Nat(Box<NatState>),
}

pub(crate) struct Network {
    pub(crate) gateway: Gateway,
    /// The network above; the internet's own is itself.
    pub(crate) parent: Key,
    /// The gateway's link to it.
    pub(crate) uplink: Key,
    /// The gateway's address in this network: source of its ICMP errors.
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix_len: u8,
    /// Host number to try first when an address is asked for.
    next: u32,
    /// How many links attach to it.
    pub(crate) members: u32,
}

impl Network {
    pub(crate) fn new(
        gateway: Gateway,
        (parent, uplink): (Key, Key),
        (address, prefix_len): (Ipv4Addr, u8),
    ) -> Network {
        Network { gateway, parent, uplink, address, prefix_len, next: 2, members: 0 }
    }

    /// Whether an address can be a host's here. On the internet any can.
    pub(crate) fn holds(&self, addr: Ipv4Addr) -> bool {
        let is_inside = matches!(self.gateway, Gateway::None)
            || (addr.to_bits() ^ self.address.to_bits()) & self.mask() == 0;
        is_host(addr) && addr != self.address && is_inside
    }

    fn mask(&self) -> u32 {
        u32::MAX << (32 - u32::from(self.prefix_len))
    }

    /// A free address; each is given out again only when all others are taken.
    pub(crate) fn free_address(&mut self, is_taken: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        let hosts = !self.mask();
        let base = self.address.to_bits() & self.mask();
        for _ in 0..hosts {
            let number = self.next;
            // 0 is the network itself, and the last is its broadcast address.
            self.next = if number + 1 >= hosts { 1 } else { number + 1 };
            let addr = Ipv4Addr::from_bits(base | number);
            if number > 0 && number < hosts && addr != self.address && !is_taken(addr) {
                return Some(addr);
            }
        }
        None
    }
}

/// A network can be this: there is room for a host, and the gateway is one itself.
pub(crate) fn check_network(gateway: Ipv4Addr, prefix_len: u8) -> Result<(), BuildError> {
    if is_host(gateway) && (1..=30).contains(&prefix_len) {
        return Ok(());
    }
    Err(BuildError::BadNetwork { gateway, prefix_len })
}

/// No external address lies in the network inside: what is sent to it there would never reach the NAT.
pub(crate) fn check_overlap(
    external: &[Ipv4Addr],
    (gateway, prefix_len): (Ipv4Addr, u8),
) -> Result<(), BuildError> {
    let is_inside =
        |addr: &&Ipv4Addr| (addr.to_bits() ^ gateway.to_bits()) >> (32 - u32::from(prefix_len)) == 0;
    match external.iter().find(is_inside) {
        Some(addr) => Err(BuildError::Overlap { addr: *addr, gateway, prefix_len }),
        None => Ok(()),
    }
}

/// Which link an address is behind, in each network.
#[derive(Default)]
pub(crate) struct Routes {
    links: WordMap<Key>,
}

impl Routes {
    pub(crate) fn get(&self, network: Key, addr: Ipv4Addr) -> Option<Key> {
        self.links.get(&word(network, addr)).copied()
    }

    pub(crate) fn insert(&mut self, network: Key, addr: Ipv4Addr, link: Key) -> Result<(), BuildError> {
        if self.get(network, addr).is_some() {
            return Err(BuildError::AddressTaken { addr, network: NetworkId(network) });
        }
        self.links.insert(word(network, addr), link);
        Ok(())
    }

    pub(crate) fn remove(&mut self, network: Key, addr: Ipv4Addr) {
        self.links.remove(&word(network, addr));
    }
}

/// Networks that are gone have no routes, so their generation need not be told apart.
fn word(network: Key, addr: Ipv4Addr) -> u64 {
    u64::from(network.slot) << 32 | u64::from(addr.to_bits())
}

/// A map keyed by a word. Nothing iterates over one, so no hash order ever reaches an output.
pub(crate) type WordMap<T> = HashMap<u64, T, BuildHasherDefault<WordHasher>>;

/// Multiplies and folds one word: addresses are handed out in order, and must not fall into neighbouring buckets of
/// equal tags.
#[derive(Default)]
pub(crate) struct WordHasher(u64);

impl Hasher for WordHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x2545_f491_4f6c_dd1d) * 0x9e37_79b9_7f4a_7c15;
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_handed_out_once_each() {
        let addr = Ipv4Addr::new(10, 0, 0, 1);
        let mut network = Network::new(Gateway::Router, (Key::FIRST, Key::FIRST), (addr, 29));
        let mut taken = Vec::new();
        while let Some(addr) = network.free_address(|addr| taken.contains(&addr)) {
            taken.push(addr);
        }
        let last: Vec<u8> = taken.iter().map(|addr| addr.octets()[3]).collect();
        assert_eq!(last, [2, 3, 4, 5, 6]);
        taken.remove(1);
        assert_eq!(network.free_address(|addr| taken.contains(&addr)), Some(Ipv4Addr::new(10, 0, 0, 3)));
    }

    #[test]
    fn only_networks_with_room_pass() {
        let gateway = Ipv4Addr::new(10, 0, 0, 1);
        for prefix_len in [0, 31, 32, 33] {
            assert!(check_network(gateway, prefix_len).is_err());
        }
        assert_eq!(check_network(gateway, 30), Ok(()));
        assert!(check_network(Ipv4Addr::LOCALHOST, 24).is_err());
    }
}
