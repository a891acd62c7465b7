//! A hash index: from a keyed hash to a slot number.
//!
//! The records live elsewhere; the index holds `(hash, slot)` pairs in one flat array, so that a lookup touches one cache
//! line before it touches the record. Each pair lies at its hash's home or as near behind it as there is room, and all
//! of them lie in the order of their hashes: a lookup that fails ends where the hash would be, and growing is one sweep
//! through memory. Deletion shifts the pairs behind back: there are no tombstones, and an index that has emptied is as
//! good as new. Hashes are keyed by the NAT's secret seed, and nothing iterates over an index, so no hash order ever
//! reaches an output.

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
    #[inline(always)]
    pub(crate) fn hash(&self, a: u64, b: u64) -> u32 {
        let hash = fold(self.keys[0] ^ a, self.keys[1]);
        fold(hash ^ b, self.keys[1] ^ self.keys[0].rotate_left(32)) as u32
    }
}

#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// The index itself.
pub(crate) struct Index {
    /// `hash << 32 | slot` in ascending order with [`EMPTY`] between them; the last one is always empty.
    entries: Vec<u64>,
    /// Over how many entries the hashes are spread; what is behind them took no part in that. At most three quarters as
    /// many are in use.
    homes: usize,
    len: usize,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index { entries: Vec::new(), homes: 0, len: 0 }
    }

    /// Where a search for `hash` begins. Greater hashes have later homes.
    #[inline(always)]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.homes as u64) >> 32) as usize
    }

    /// The place of the first entry that is not less than `wanted`; there must be entries.
    #[inline(always)]
    fn place(&self, wanted: u64) -> usize {
        let mut at = self.home((wanted >> 32) as u32);
        while self.entries[at] < wanted {
            at += 1;
        }
        at
    }

    /// The first slot under `hash` for which `is_it` holds.
    #[inline(always)]
    pub(crate) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let mut at = self.place(u64::from(hash) << 32);
        loop {
            let entry = self.entries[at];
            if (entry >> 32) as u32 != hash || entry == EMPTY {
                return None;
            }
            if is_it(entry as u32) {
                return Some(entry as u32);
            }
            at += 1;
        }
    }

    /// The entry at which a search for `hash` begins: reading it brings its line into the cache.
    #[inline]
    pub(crate) fn peek(&self, hash: u32) -> u64 {
        self.entries.get(self.home(hash)).copied().unwrap_or(EMPTY)
    }

    /// Adds `slot`, which must not be there yet, under `hash`.
    pub(crate) fn insert(&mut self, hash: u32, slot: u32) {
        if (self.len + 1) * 4 > self.homes * 3 {
            self.grow();
        }
        self.len += 1;
        let mut entry = u64::from(hash) << 32 | u64::from(slot);
        let mut at = self.place(entry);
        while entry != EMPTY {
            std::mem::swap(&mut entry, &mut self.entries[at]);
            at += 1;
        }
        if at == self.entries.len() {
            self.lengthen();
        }
    }

    /// Makes room behind the last home: seldom more than there is from the start, whatever the number of entries.
    #[cold]
    fn lengthen(&mut self) {
        self.entries.reserve_exact(SMALLEST);
        self.entries.resize(self.entries.len() + SMALLEST, EMPTY);
    }

    /// Replaces slot `old` under `hash` by `new`.
    pub(crate) fn replace(&mut self, hash: u32, old: u32, new: u32) {
        self.remove(hash, old);
        self.insert(hash, new);
    }

    /// Takes `slot` out again.
    pub(crate) fn remove(&mut self, hash: u32, slot: u32) {
        let wanted = u64::from(hash) << 32 | u64::from(slot);
        if self.len == 0 {
            return;
        }
        let mut at = self.place(wanted);
        if self.entries[at] != wanted {
            return;
        }
        // What is not at home moves up; the last entry is empty.
        loop {
            let next = self.entries[at + 1];
            if next == EMPTY || self.home((next >> 32) as u32) > at {
                break;
            }
            self.entries[at] = next;
            at += 1;
        }
        self.entries[at] = EMPTY;
        self.len -= 1;
    }

    /// By a half: between a half and three quarters of the entries are in use, eleven to sixteen bytes for a record.
    fn grow(&mut self) {
        self.homes = SMALLEST.max(self.homes + self.homes / 2);
        let old = std::mem::replace(&mut self.entries, vec![EMPTY; self.homes + self.homes / 64 + 2]);
        let mut free = 0;
        for entry in old.into_iter().filter(|entry| *entry != EMPTY) {
            let at = self.home((entry >> 32) as u32).max(free);
            free = at + 1;
            if free == self.entries.len() {
                self.lengthen();
            }
            self.entries[at] = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a set of pairs, with few hashes, the greatest, so that clusters form and reach beyond the last home.
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
