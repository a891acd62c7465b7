//! A hash index: from a keyed hash to a slot number.
//!
//! The records live elsewhere; the index holds `(hash, slot)` pairs in one flat array with linear probing, so that a
//! lookup touches one cache line before it touches the record. Deletion shifts the cluster back: there are no
//! tombstones, and an index that has emptied is as good as new. Hashes are keyed by the NAT's secret seed, and nothing
//! iterates over an index, so no hash order ever reaches an output.

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

const EMPTY: u64 = u64::MAX;
const SMALLEST: usize = 8;

/// A multiply-and-fold hash under a secret key.
#[derive(Clone, Copy)]
pub(crate) struct Hasher {
    keys: [u64; 2],
}

impl Hasher {
    pub(crate) fn new(first: u64, second: u64) -> Hasher {
        Hasher { keys: [first | 1, second | 1] }
    }

    /// The hash of a key of two words.
    #[inline]
    pub(crate) fn hash(&self, a: u64, b: u64) -> u32 {
        let hash = fold(self.keys[0] ^ a, self.keys[1]);
        fold(hash ^ b, self.keys[1] ^ self.keys[0].rotate_left(32)) as u32
    }
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The index itself.
pub(crate) struct Index {
    /// `hash << 32 | slot`, or [`EMPTY`]; at most three quarters in use.
    entries: Vec<u64>,
    len: usize,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index { entries: Vec::new(), len: 0 }
    }

    /// Where the entries of `hash` begin. Greater hashes have later homes: growing is one sweep through memory.
    #[inline]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.entries.len() as u64) >> 32) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.entries.len() { 0 } else { at + 1 }
    }

    /// The first slot under `hash` for which `is_it` holds.
    #[inline]
    pub(crate) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let entry = self.entries[at];
            if entry == EMPTY {
                return None;
            }
            if (entry >> 32) as u32 == hash && is_it(entry as u32) {
                return Some(entry as u32);
            }
            at = self.after(at);
        }
    }

    /// The entry at which a search for `hash` begins: reading it brings its line into the cache.
    #[inline]
    pub(crate) fn peek(&self, hash: u32) -> u64 {
        self.entries.get(self.home(hash)).copied().unwrap_or(EMPTY)
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
        let size = self.entries.len();
        let distance = |from: usize, to: usize| if to >= from { to - from } else { to + size - from };
        let mut at = hole;
        loop {
            at = self.after(at);
            let entry = self.entries[at];
            if entry == EMPTY {
                break;
            }
            // An entry may move back to the hole unless its home lies behind the hole.
            let home = self.home((entry >> 32) as u32);
            if distance(home, at) >= distance(hole, at) {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = EMPTY;
        self.len -= 1;
    }

    fn position(&self, hash: u32, slot: u32) -> Option<usize> {
        if self.len == 0 {
            return None;
        }
        let wanted = u64::from(hash) << 32 | u64::from(slot);
        let mut at = self.home(hash);
        while self.entries[at] != EMPTY {
            if self.entries[at] == wanted {
                return Some(at);
            }
            at = self.after(at);
        }
        None
    }

    fn place(&mut self, entry: u64) {
        let mut at = self.home((entry >> 32) as u32);
        while self.entries[at] != EMPTY {
            at = self.after(at);
        }
        self.entries[at] = entry;
    }

    /// By a half: between a half and three quarters of the entries are in use, eleven to sixteen bytes for a record.
    fn grow(&mut self) {
        let size = SMALLEST.max(self.entries.len() + self.entries.len() / 2);
        for entry in std::mem::replace(&mut self.entries, vec![EMPTY; size]) {
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
        let hash = |key| Hasher::new(key, key + 77).hash(0x0a00_0002_0001_0000, 0xc000_0201_0002_0000);
        assert_ne!(hash(12345), hash(54321));
        assert_ne!(hash(12345), Hasher::new(12345, 12422).hash(0x0a00_0002_0001_0000, 0xc000_0201_0002_0001));
    }
}
