//! A hash index: from a keyed hash to a slot number.
//!
//! The records live elsewhere; the index holds `(hash, slot)` pairs in one flat array, so that a lookup touches one cache
//! line before it touches the record. Each pair lies at its hash's home or as near behind it as there is room, and all
//! of them lie in the order of their hashes: a lookup that fails ends where the hash would be. Deletion shifts the pairs
//! behind back: there are no tombstones, and an index that has emptied is as good as new.
//!
//! An index grows by a half, and never at once: with every insertion a few pairs move to the greater table, those with the
//! greatest hashes first. So one comparison tells in which of the two tables a hash is, the old one gives its memory back
//! from its end on, and no packet waits until a million pairs have moved.
//!
//! Hashes are keyed by the NAT's secret seed, and nothing iterates over an index, so no hash order ever reaches an output:
//! who cannot see the seed can neither choose what collides nor learn what does.

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

const EMPTY: u64 = u64::MAX;
const SMALLEST: usize = 8;
/// A table with fewer homes moves at once.
const SMALL: usize = 1024;
/// Places that an insertion looks at for pairs to move: the old table has moved long before the new one is full.
const STEP: usize = 8;
/// Places that the old table gives back at a time, 64 KB of them.
const GIVEN_BACK: usize = 8192;

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

/// Pairs in the order of their hashes.
struct Table {
    /// The complements of `hash << 32 | slot`, in ascending order of these, with that of [`EMPTY`] between them: memory of
    /// zeros costs nothing until it is used. The last one is always empty.
    entries: Vec<u64>,
    /// Over how many entries the hashes are spread; what is behind them took no part in that.
    homes: usize,
}

impl Table {
    const NONE: Table = Table { entries: Vec::new(), homes: 0 };

    fn new(homes: usize) -> Table {
        Table { entries: vec![!EMPTY; homes + homes / 64 + 2], homes }
    }

    /// Where a search for `hash` begins. Greater hashes have later homes.
    #[inline(always)]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.homes as u64) >> 32) as usize
    }

    #[inline(always)]
    fn entry(&self, at: usize) -> u64 {
        !self.entries[at]
    }

    /// The place of the first entry that is not less than `wanted`; there must be entries.
    #[inline(always)]
    fn place(&self, wanted: u64) -> usize {
        let mut at = self.home((wanted >> 32) as u32).min(self.entries.len() - 1);
        while self.entry(at) < wanted {
            at += 1;
        }
        at
    }

    #[inline(always)]
    fn insert(&mut self, mut entry: u64) {
        let mut at = self.place(entry);
        while entry != EMPTY {
            entry = !std::mem::replace(&mut self.entries[at], !entry);
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
        self.entries.resize(self.entries.len() + SMALLEST, !EMPTY);
    }

    /// False: it is not there.
    fn remove(&mut self, wanted: u64) -> bool {
        let mut at = self.place(wanted);
        if self.entry(at) != wanted {
            return false;
        }
        // What is not at home moves up; the last entry is empty.
        loop {
            let next = self.entry(at + 1);
            if next == EMPTY || self.home((next >> 32) as u32) > at {
                break;
            }
            self.entries[at] = !next;
            at += 1;
        }
        self.entries[at] = !EMPTY;
        true
    }
}

/// The index itself.
pub(crate) struct Index {
    table: Table,
    /// The table before this one, as long as there is something in it: all hashes below `moving`. It has been cut off
    /// behind its last pair and an empty entry.
    old: Table,
    /// 0 when nothing is in the old table.
    moving: u64,
    /// At most three quarters of the homes.
    len: usize,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index { table: Table::NONE, old: Table::NONE, moving: 0, len: 0 }
    }

    /// The table that a hash is in.
    #[inline(always)]
    fn table(&self, hash: u32) -> &Table {
        if u64::from(hash) < self.moving { &self.old } else { &self.table }
    }

    #[inline(always)]
    fn table_mut(&mut self, hash: u32) -> &mut Table {
        if u64::from(hash) < self.moving { &mut self.old } else { &mut self.table }
    }

    /// The first slot under `hash` for which `is_it` holds.
    #[inline(always)]
    pub(crate) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let table = self.table(hash);
        let mut at = table.place(u64::from(hash) << 32);
        loop {
            let entry = table.entry(at);
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
    #[inline(always)]
    pub(crate) fn peek(&self, hash: u32) -> u64 {
        let table = self.table(hash);
        table.entries.get(table.home(hash)).copied().unwrap_or_default()
    }

    /// A slot under `hash`, nearly always the one if there is one.
    #[inline(always)]
    pub(crate) fn guess(&self, hash: u32) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// Adds `slot`, which must not be there yet, under `hash`.
    pub(crate) fn insert(&mut self, hash: u32, slot: u32) {
        if (self.len + 1) * 4 > self.table.homes * 3 {
            self.grow();
        } else if self.moving > 0 {
            self.move_some(STEP);
        }
        self.len += 1;
        self.table_mut(hash).insert(u64::from(hash) << 32 | u64::from(slot));
    }

    /// Replaces slot `old` under `hash` by `new`.
    pub(crate) fn replace(&mut self, hash: u32, old: u32, new: u32) {
        self.remove(hash, old);
        self.insert(hash, new);
    }

    /// Takes `slot` out again.
    pub(crate) fn remove(&mut self, hash: u32, slot: u32) {
        if self.len > 0 && self.table_mut(hash).remove(u64::from(hash) << 32 | u64::from(slot)) {
            self.len -= 1;
        }
    }

    // ---- Growing ----

    /// By a half: between a half and three quarters of the entries are in use, eleven to sixteen bytes for a record.
    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        self.move_some(usize::MAX);
        let homes = self.table.homes;
        let table = Table::new(SMALLEST.max(homes + homes / 2));
        self.old = std::mem::replace(&mut self.table, table);
        self.moving = 1 << 32;
        if homes < SMALL {
            self.move_some(usize::MAX);
        }
    }

    /// Moves the pairs in the last places of the old table, as many places as there are, and those that have the last
    /// one's hash.
    #[inline(never)]
    fn move_some(&mut self, places: usize) {
        let mut left = self.old.entries.len();
        let stop = left.saturating_sub(places);
        while left > 0 {
            let entry = self.old.entry(left - 1);
            let is_next = entry != EMPTY && entry >> 32 < self.moving;
            if left <= stop && (is_next || entry == EMPTY) {
                break;
            }
            if entry != EMPTY {
                self.table.insert(entry);
                self.moving = entry >> 32;
            }
            left -= 1;
        }
        let entries = &mut self.old.entries;
        entries.truncate(left);
        if left == 0 {
            (self.old, self.moving) = (Table::NONE, 0);
        } else {
            entries.push(!EMPTY);
            if entries.capacity() - entries.len() > GIVEN_BACK {
                entries.shrink_to(entries.len() + SMALLEST);
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

    /// While it moves from table to table it is used as ever, and each insertion does a small share.
    #[test]
    fn grows_by_and_by() {
        let hasher = Hasher::new(0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03);
        let has = |index: &Index, hash, slot| index.find(hash, |other| other == slot).is_some();
        let (mut index, mut live, mut most) = (Index::new(), Vec::new(), 0);
        for i in 0..60_000u32 {
            let (hash, homes) = (hasher.hash(i.into(), 0), index.table.homes);
            let places = index.old.entries.len();
            index.insert(hash, i);
            live.push((hash, i));
            if homes >= SMALL && homes == index.table.homes {
                most = most.max(places.saturating_sub(index.old.entries.len()));
            }
            if i % 3 == 2 {
                // One of the older ones changes its slot, another one goes.
                let (hash, slot) = &mut live[i as usize / 7];
                index.replace(*hash, *slot, *slot + 1_000_000);
                *slot += 1_000_000;
                let (hash, slot) = live.swap_remove(i as usize / 5);
                index.remove(hash, slot);
                assert!(!has(&index, hash, slot));
            }
            if i % 5000 == 0 {
                assert!(live.iter().all(|(hash, slot)| has(&index, *hash, *slot)), "after {i}");
            }
        }
        assert!(live.iter().all(|(hash, slot)| has(&index, *hash, *slot)));
        assert!((1..=STEP + 1).contains(&most) && index.len == live.len(), "{most}, {}", index.len);
        live.into_iter().for_each(|(hash, slot)| index.remove(hash, slot));
        let mut entries = index.table.entries.iter().chain(&index.old.entries);
        assert!(index.len == 0 && entries.all(|entry| *entry == !EMPTY), "nothing is left behind");
    }

    #[test]
    fn keys_change_the_hash() {
        let hash = |key| Hasher::new(key, key + 77).hash(0x0a00_0002_0001_0000, 0xc000_0201_0002_0000);
        assert_ne!(hash(12345), hash(54321));
        assert_ne!(hash(12345), Hasher::new(12345, 12422).hash(0x0a00_0002_0001_0000, 0xc000_0201_0002_0001));
    }
}
