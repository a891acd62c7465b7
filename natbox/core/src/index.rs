//! A hash index: from a keyed hash to a slot number.
//!
//! The records live elsewhere; the index holds `(hash, slot)` pairs in one flat array with linear probing, so that a
//! lookup touches one cache line before it touches the record. Deletion shifts the cluster back: there are no
//! tombstones, and an index that has emptied is as good as new. Hashes are keyed by the NAT's secret seed, and nothing
//! iterates over an index, so no hash order ever reaches an output.

use std::net::IpAddr;

use crate::{Endpoint, Protocol};

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

const EMPTY: u64 = u64::MAX;
const SMALLEST: usize = 64;

/// A multiply-and-fold hash under a secret key.
#[derive(Clone, Copy)]
pub(crate) struct Hasher {
    keys: [u64; 2],
}

impl Hasher {
    pub(crate) fn new(first: u64, second: u64) -> Hasher {
        Hasher { keys: [first | 1, second | 1] }
    }

    /// The hash of two endpoints, or of one and a stand-in; `salt` tells key spaces and inside ports apart.
    pub(crate) fn hash(&self, protocol: Protocol, salt: u32, a: Endpoint, b: Endpoint) -> u32 {
        let tags = u64::from(salt) << 8 | protocol as u64;
        let ports = u64::from(a.port) << 48 | u64::from(b.port) << 32;
        let mut hash = self.keys[0];
        match (a.addr, b.addr) {
            (IpAddr::V4(x), IpAddr::V4(y)) => {
                hash = fold(hash ^ (u64::from(x.to_bits()) << 32 | u64::from(y.to_bits())), self.keys[1]);
            }
            (x, y) => {
                for half in [high(x), low(x), high(y), low(y)] {
                    hash = fold(hash ^ half, self.keys[1]);
                }
            }
        }
        fold(hash ^ ports ^ tags, self.keys[1] ^ self.keys[0].rotate_left(32)) as u32
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

fn high(addr: IpAddr) -> u64 {
    match addr {
        IpAddr::V4(_) => 0,
        IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
    }
}

fn low(addr: IpAddr) -> u64 {
    match addr {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits() as u64,
    }
}

/// The index itself.
pub(crate) struct Index {
    /// `hash << 32 | slot`, or [`EMPTY`]; a power of two of them, at most three quarters in use.
    entries: Vec<u64>,
    len: usize,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index { entries: vec![EMPTY; SMALLEST], len: 0 }
    }

    /// The first slot under `hash` for which `is_it` holds.
    pub(crate) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.entries.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let entry = self.entries[at];
            if entry == EMPTY {
                return None;
            }
            if (entry >> 32) as u32 == hash && is_it(entry as u32) {
                return Some(entry as u32);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds `slot`, which must not be there yet, under `hash`.
    pub(crate) fn insert(&mut self, hash: u32, slot: u32) {
        if (self.len + 1) * 4 > self.entries.len() * 3 {
            self.grow();
        }
        self.place(u64::from(hash) << 32 | u64::from(slot));
        self.len += 1;
    }

    /// Replaces slot `old` under `hash` by `new`.
    pub(crate) fn replace(&mut self, hash: u32, old: u32, new: u32) {
        if let Some(at) = self.position(hash, old) {
            self.entries[at] = u64::from(hash) << 32 | u64::from(new);
        }
    }

    /// Takes `slot` out again.
    pub(crate) fn remove(&mut self, hash: u32, slot: u32) {
        let Some(mut hole) = self.position(hash, slot) else { return };
        let mask = self.entries.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let entry = self.entries[at];
            if entry == EMPTY {
                break;
            }
            // An entry may move back to the hole unless its home lies behind the hole.
            let home = (entry >> 32) as usize & mask;
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = EMPTY;
        self.len -= 1;
    }

    fn position(&self, hash: u32, slot: u32) -> Option<usize> {
        let wanted = u64::from(hash) << 32 | u64::from(slot);
        let mask = self.entries.len() - 1;
        let mut at = hash as usize & mask;
        while self.entries[at] != EMPTY {
            if self.entries[at] == wanted {
                return Some(at);
            }
            at = (at + 1) & mask;
        }
        None
    }

    fn place(&mut self, entry: u64) {
        let mask = self.entries.len() - 1;
        let mut at = (entry >> 32) as usize & mask;
        while self.entries[at] != EMPTY {
            at = (at + 1) & mask;
        }
        self.entries[at] = entry;
    }

    fn grow(&mut self) {
        let doubled = vec![EMPTY; self.entries.len() * 2];
        for entry in std::mem::replace(&mut self.entries, doubled) {
            if entry != EMPTY {
                self.place(entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a set of pairs, with few hashes so that clusters form and wrap around.
        #[test]
        fn behaves_as_a_set(ops in proptest::collection::vec((any::<bool>(), 0u32..6, 0u32..40), 0..400)) {
            let mut index = Index::new();
            let mut model = HashSet::new();
            for (add, hash, slot) in ops {
                let hash = u32::MAX - hash;
                if add && model.insert((hash, slot)) {
                    index.insert(hash, slot);
                } else if !add && model.remove(&(hash, slot)) {
                    index.remove(hash, slot);
                }
                for hash in (0..6).map(|h| u32::MAX - h) {
                    for slot in 0..40 {
                        prop_assert_eq!(index.find(hash, |s| s == slot).is_some(), model.contains(&(hash, slot)));
                    }
                }
            }
            prop_assert_eq!(index.len, model.len());
        }
    }

    #[test]
    fn keys_change_the_hash() {
        let (a, b) = (Endpoint::v4([10, 0, 0, 2].into(), 1), Endpoint::v4([192, 0, 2, 1].into(), 2));
        let hash = |key| Hasher::new(key, key + 77).hash(Protocol::Udp, 0, a, b);
        assert_ne!(hash(12345), hash(54321));
        assert_ne!(hash(12345), Hasher::new(12345, 12422).hash(Protocol::Tcp, 0, a, b));
    }
}
