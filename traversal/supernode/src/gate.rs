//! How many handshakes may go on at the same time: they cost the most and are asked for by strangers.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use traversal_proto::address::Prefix;

/// All together; at a hundred microseconds of signatures each it is a tenth of a second's work.
const TOTAL: usize = 1024;
/// From one network (/24, /56); many peers share a carrier's NAT, and after a restart all come back at once.
const PER_NETWORK: u32 = 128;

/// Counts handshakes. A source address that has proved itself (TCP, or QUIC after a Retry) may use all of the room, one
/// that may be forged only half of it: so nobody is locked out by a flood from made-up addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gate(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    networks: HashMap<Prefix, u32>,
}

/// The right to one handshake, until it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Gate,
    network: Prefix,
}

impl Gate {
    pub(crate) fn enter(&self, from: IpAddr, proven: bool) -> Option<Pass> {
        let network = Prefix::of(from);
        let share = if proven { 1 } else { 2 };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let here = counts.networks.get(&network).copied().unwrap_or(0);
        if counts.total >= TOTAL / share || here >= PER_NETWORK / share as u32 {
            return None;
        }
        counts.total += 1;
        counts.networks.insert(network, here + 1);
        Some(Pass { gate: self.clone(), network })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut counts = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total -= 1;
        if let Some(here) = counts.networks.get_mut(&self.network) {
            *here -= 1;
            if *here == 0 {
                counts.networks.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_and_forged_addresses_leave_room() {
        let gate = Gate::default();
        let ip = |n: u32| IpAddr::V4((0x0a00_0000 + (n << 8)).into());
        let one: Vec<Pass> = (0..200).filter_map(|_| gate.enter(ip(0), false)).collect();
        assert_eq!(one.len(), 64);
        let many: Vec<Pass> = (1..2000).filter_map(|n| gate.enter(ip(n), false)).collect();
        assert_eq!(one.len() + many.len(), TOTAL / 2);
        assert!(gate.enter(ip(0), true).is_some(), "a proven address still has room");
        drop((one, many));
        assert!(gate.enter(ip(0), false).is_some());
        assert!(gate.0.lock().unwrap().networks.is_empty());
    }
}
