//! A hash index: from a keyed hash to a slot number.
//!
//! The records live elsewhere; the index holds `(hash, slot)` pairs, eight to a cache line, so that a lookup touches one
//! line before it touches the record, and looks at all of its hashes at once. Each pair lies in the line that is its
//! hash's home, or, when that is full, in the first one behind that is not: a lookup ends at a line with room. Deletion
//! shifts back what had to go further: there are no tombstones, and an index that has emptied is as good as new.
//!
//! An index doubles, and never at once: with every insertion the pairs of one line move to the greater table, the
//! last line's first. So one comparison tells in which of the two tables a hash is, and no packet waits until a million
//! pairs have moved. Lines lie in chunks, which a table takes when it first puts something there, and which the old one
//! gives back from its end on: the two together are never much greater than one.
//!
//! Hashes are keyed by the NAT's secret seed, and nothing iterates over an index, so no hash order ever reaches an output:
//! who cannot see the seed can neither choose what collides nor learn what does.

/// No slot.
pub(crate) const NONE: u32 = u32::MAX;

/// Pairs in a line.
const WAYS: usize = 8;
/// Pairs for each line of a table that is full; the rest lets most pairs lie at home.
const FULL: usize = 6;
const CHUNK_BITS: u32 = 9;
/// Lines in a chunk: 32 KB, which are soon cleared.
const CHUNK: usize = 1 << CHUNK_BITS;
/// A table with fewer lines moves at once.
const SMALL: usize = 128;

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

/// A cache line of pairs, those in use before the others.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    hashes: [u32; WAYS],
    /// [`NONE`] where there is no pair.
    slots: [u32; WAYS],
}

impl Line {
    const EMPTY: Line = Line { hashes: [0; WAYS], slots: [NONE; WAYS] };

    #[inline(always)]
    fn is_full(&self) -> bool {
        self.slots[WAYS - 1] != NONE
    }

    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.slots[0] == NONE
    }

    /// How many pairs there are.
    #[inline(always)]
    fn len(&self) -> usize {
        let used = |way: usize| usize::from(self.slots[way % WAYS] != NONE);
        let mut len = 4 * used(3);
        len += 2 * used(len + 1);
        len += used(len);
        len + used(WAYS - 1)
    }

    /// The places with this hash; one that is not in use may be among them.
    #[inline(always)]
    fn matches(&self, hash: u32) -> u32 {
        marks(self.hashes, hash)
    }

    /// Adds a pair; there must be room.
    #[inline(always)]
    fn push(&mut self, hash: u32, slot: u32) {
        let way = self.len() % WAYS;
        (self.hashes[way], self.slots[way]) = (hash, slot);
    }

    /// Takes a pair out.
    #[inline(always)]
    fn take(&mut self, way: usize) -> (u32, u32) {
        let (way, last) = (way % WAYS, self.len().wrapping_sub(1) % WAYS);
        let pair = (self.hashes[way], self.slots[way]);
        (self.hashes[way], self.slots[way]) = (self.hashes[last], self.slots[last]);
        self.slots[last] = NONE;
        pair
    }
}

/// Which of the words are `wanted`: a bit for each, the first one's of value 2. (With 1 there the compiler would take the
/// first one for a case of its own, and not compare four at a time.)
#[inline(always)]
fn marks(words: [u32; WAYS], wanted: u32) -> u32 {
    let bits = words.iter().enumerate().map(|(way, word)| if *word == wanted { 2 << way } else { 0 });
    bits.fold(0, |marks, bit| marks | bit)
}

/// The place of the lowest mark.
#[inline(always)]
fn way_of(marks: u32) -> usize {
    (marks.trailing_zeros() as usize).wrapping_sub(1)
}

/// Pairs, each at home or behind.
struct Table {
    /// All of [`CHUNK`] lines or none, but the last. Lines that are not there are empty.
    chunks: Vec<Vec<Line>>,
    /// Over how many lines the hashes are spread; those behind are for what found no room there.
    homes: usize,
}

impl Table {
    const NONE: Table = Table { chunks: Vec::new(), homes: 0 };

    fn new(homes: usize) -> Table {
        Table { chunks: vec![Vec::new(); homes.div_ceil(CHUNK)], homes }
    }

    /// Where a search for `hash` begins. Greater hashes have later homes.
    #[inline(always)]
    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.homes as u64) >> 32) as usize
    }

    /// The least hash whose home is this one, or a later one.
    fn first_hash(&self, home: usize) -> u64 {
        ((home as u64) << 32).div_ceil(self.homes.max(1) as u64)
    }

    #[inline(always)]
    fn line(&self, at: usize) -> Option<&Line> {
        self.chunks.get(at >> CHUNK_BITS)?.get(at & (CHUNK - 1))
    }

    #[inline(always)]
    fn line_mut(&mut self, at: usize) -> Option<&mut Line> {
        self.chunks.get_mut(at >> CHUNK_BITS)?.get_mut(at & (CHUNK - 1))
    }

    #[inline(always)]
    fn insert(&mut self, hash: u32, slot: u32) {
        let mut at = self.home(hash);
        loop {
            match self.line_mut(at) {
                Some(line) if line.is_full() => at += 1,
                Some(line) => return line.push(hash, slot),
                None => self.lengthen(at),
            }
        }
    }

    /// Makes a line, and its chunk if there is none.
    #[cold]
    #[inline(never)]
    fn lengthen(&mut self, at: usize) {
        let chunk = at >> CHUNK_BITS;
        if chunk >= self.chunks.len() {
            self.chunks.resize_with(chunk + 1, Vec::new);
        }
        // The last one is as long as it must be, and longer when its last line is full.
        let wanted =
            (self.homes - (chunk << CHUNK_BITS).min(self.homes)).max((at & (CHUNK - 1)) + 1).min(CHUNK);
        let lines = &mut self.chunks[chunk];
        lines.reserve_exact(wanted - lines.len());
        lines.resize(wanted, Line::EMPTY);
    }

    /// The place of the first slot under `hash` for which `is_it` holds: the line, and where in it.
    #[inline(always)]
    fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<(usize, usize, u32)> {
        let mut at = self.home(hash);
        while let Some(line) = self.line(at) {
            let mut matches = line.matches(hash);
            while matches != 0 {
                let way = way_of(matches) % WAYS;
                let slot = line.slots[way];
                if slot != NONE && is_it(slot) {
                    return Some((at, way, slot));
                }
                matches &= matches - 1;
            }
            if !line.is_full() {
                break;
            }
            at += 1;
        }
        None
    }

    /// False: it is not there.
    #[inline(always)]
    fn remove(&mut self, hash: u32, slot: u32) -> bool {
        let Some((at, way, _)) = self.find(hash, |other| other == slot) else { return false };
        if let Some(line) = self.line_mut(at) {
            let was_full = line.is_full();
            line.take(way);
            if was_full {
                self.shift_back(at);
            }
        }
        true
    }

    /// A line that was full has room: for one that had to go further.
    #[inline(never)]
    fn shift_back(&mut self, mut room: usize) {
        let mut at = room + 1;
        while let Some(&line) = self.line(at) {
            let strayed = |way: &usize| line.slots[*way] != NONE && self.home(line.hashes[*way]) <= room;
            if let Some(way) = (0..WAYS).find(strayed) {
                let (hash, slot) = self.line_mut(at).map_or((0, NONE), |line| line.take(way));
                if let Some(line) = self.line_mut(room) {
                    line.push(hash, slot);
                }
                room = at;
            }
            if !line.is_full() {
                break;
            }
            at += 1;
        }
    }
}

/// The index itself.
pub(crate) struct Index {
    table: Table,
    /// The table before this one, as long as there is something in it: all hashes below `moving`.
    old: Table,
    /// How many lines of the old table are still the homes of something, and the least hash that is at home behind them;
    /// 0 when nothing is in the old table.
    left: u32,
    moving: u64,
    /// At most [`FULL`] for each home. Slot numbers are as wide.
    pub(crate) len: u32,
}

impl Index {
    pub(crate) fn new() -> Index {
        Index { table: Table::NONE, old: Table::NONE, left: 0, moving: 0, len: 0 }
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
    pub(crate) fn find(&self, hash: u32, is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        self.table(hash).find(hash, is_it).map(|(_, _, slot)| slot)
    }

    /// Something of the line at which a search for `hash` begins: reading it brings it into the cache.
    #[inline(always)]
    pub(crate) fn peek(&self, hash: u32) -> u32 {
        let table = self.table(hash);
        table.line(table.home(hash)).map_or(0, |line| line.slots[0])
    }

    /// A slot under `hash`, nearly always the one if there is one; [`NONE`] where the line at which a search begins has none.
    #[inline(always)]
    pub(crate) fn guess(&self, hash: u32) -> u32 {
        let table = self.table(hash);
        let Some(line) = table.line(table.home(hash)) else { return NONE };
        match line.matches(hash) {
            0 => NONE,
            matches => line.slots[way_of(matches) % WAYS],
        }
    }

    /// Adds `slot`, which must not be there yet, under `hash`.
    pub(crate) fn insert(&mut self, hash: u32, slot: u32) {
        if self.len as usize >= self.table.homes * FULL {
            self.grow();
        } else if self.left > 0 {
            self.move_one();
        }
        self.len += 1;
        self.table_mut(hash).insert(hash, slot);
    }

    /// Replaces slot `old` under `hash` by `new`.
    pub(crate) fn replace(&mut self, hash: u32, old: u32, new: u32) {
        let table = self.table_mut(hash);
        if let Some((at, way, _)) = table.find(hash, |slot| slot == old)
            && let Some(line) = table.line_mut(at)
        {
            line.slots[way % WAYS] = new;
        }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes `slot` out again.
    pub(crate) fn remove(&mut self, hash: u32, slot: u32) {
        if self.table_mut(hash).remove(hash, slot) {
            self.len -= 1;
        }
    }

    // ---- Growing ----

    /// To twice the size: between three eighths and three quarters of the places are in use, eleven to twenty-one bytes for a
    /// record. The old table has moved long before the new one is full.
    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        while self.left > 0 {
            self.move_one();
        }
        let homes = self.table.homes;
        self.old = std::mem::replace(&mut self.table, Table::new((homes * 2).max(1)));
        (self.left, self.moving) = (homes as u32, self.old.first_hash(homes));
        while homes < SMALL && self.left > 0 {
            self.move_one();
        }
    }

    /// Moves the pairs whose home is the old table's last line that is left.
    #[inline(never)]
    fn move_one(&mut self) {
        self.left -= 1;
        let home = self.left as usize;
        self.moving = self.old.first_hash(home);
        let line = self.old.line_mut(home).map(|line| std::mem::replace(line, Line::EMPTY));
        if let Some(line) = line {
            self.distribute(&line);
            if line.is_full() {
                self.move_strays(home + 1);
            }
        }
        // Where the first line behind what is left is empty, all of them are.
        let first = self.old.chunks.len().saturating_sub(1) << CHUNK_BITS;
        if home <= first && self.old.line(first).is_none_or(Line::is_empty) {
            self.old.chunks.pop();
        }
        if home == 0 {
            self.old = Table::NONE;
        }
    }

    /// Puts the pairs of a line that has been taken out where they belong now: what is at home before it stays in the old
    /// table.
    #[inline(always)]
    fn distribute(&mut self, line: &Line) {
        for (hash, slot) in line.hashes.into_iter().zip(line.slots) {
            if slot == NONE {
                break;
            }
            self.table_mut(hash).insert(hash, slot);
        }
    }

    /// The same for what has found no room before this line of the old table.
    #[cold]
    #[inline(never)]
    fn move_strays(&mut self, mut at: usize) {
        while let Some(line) = self.old.line_mut(at).map(|line| std::mem::replace(line, Line::EMPTY)) {
            self.distribute(&line);
            if !line.is_full() {
                break;
            }
            at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a set of pairs, with few hashes, the greatest, so that lines are full and pairs lie far behind their
        /// homes, and behind the last one.
        #[test]
        fn behaves_as_a_set(ops in proptest::collection::vec((any::<bool>(), 0u32..6, 0u32..40), 0..400)) {
            let mut index = Index::new();
            let mut model = HashSet::new();
            for (add, hash, slot) in ops {
                let hash = u32::MAX - (hash << 27);
                if add && model.insert((hash, slot)) {
                    index.insert(hash, slot);
                } else if !add && model.remove(&(hash, slot)) {
                    index.remove(hash, slot);
                }
                for hash in (0..6).map(|h| u32::MAX - (h << 27)) {
                    for slot in 0..40 {
                        prop_assert_eq!(index.find(hash, |s| s == slot).is_some(), model.contains(&(hash, slot)));
                    }
                }
            }
            prop_assert_eq!(index.len as usize, model.len());
        }

        /// The same while it moves: half of the hashes lie close together, over lines of the old table that are full.
        #[test]
        fn moves_crowds(
            crowd in any::<u32>(),
            hashes in proptest::collection::vec((any::<bool>(), any::<u32>(), any::<u16>()), 1500..4000),
        ) {
            let (mut index, mut live) = (Index::new(), Vec::new());
            for (slot, (is_one, hash, victim)) in hashes.into_iter().enumerate() {
                let hash = if is_one { crowd.wrapping_add(hash >> 8) } else { hash };
                index.insert(hash, slot as u32);
                live.push((hash, slot as u32));
                if slot % 4 == 3 {
                    let (hash, slot) = live.swap_remove(usize::from(victim) % live.len());
                    index.remove(hash, slot);
                    prop_assert!(index.find(hash, |other| other == slot).is_none());
                }
                if slot % 256 == 0 {
                    prop_assert!(live.iter().all(|(hash, slot)| index.find(*hash, |s| s == *slot).is_some()));
                }
            }
            prop_assert!(live.iter().all(|(hash, slot)| index.find(*hash, |s| s == *slot).is_some()));
            prop_assert_eq!(index.len as usize, live.len());
        }
    }

    /// While it moves from table to table it is used as ever, each insertion does a small share, and chunks are given back.
    #[test]
    fn grows_by_and_by() {
        let hasher = Hasher::new(0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03);
        let has = |index: &Index, hash, slot| index.find(hash, |other| other == slot).is_some();
        let lines = |table: &Table| table.chunks.iter().map(Vec::len).sum::<usize>();
        let (mut index, mut live, mut moves) = (Index::new(), Vec::new(), 0);
        for i in 0..60_000u32 {
            let (hash, homes, left) = (hasher.hash(i.into(), 0), index.table.homes, index.left);
            index.insert(hash, i);
            live.push((hash, i));
            if homes >= SMALL && homes == index.table.homes {
                assert!(left - index.left <= 1, "{left} lines, then {}", index.left);
                moves += (left - index.left) as usize;
            }
            let both = lines(&index.table) + lines(&index.old);
            assert!(both <= index.table.homes + 2 * CHUNK + 8, "{both} lines for {}", index.table.homes);
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
        assert!(moves > 10 * CHUNK && index.len as usize == live.len(), "{moves}, {}", index.len);
        live.into_iter().for_each(|(hash, slot)| index.remove(hash, slot));
        let mut left = index.table.chunks.iter().chain(&index.old.chunks).flatten();
        assert!(index.len == 0 && left.all(Line::is_empty), "nothing is left behind");
    }

    #[test]
    fn keys_change_the_hash() {
        let hash = |key| Hasher::new(key, key + 77).hash(0x0a00_0002_0001_0000, 0xc000_0201_0002_0000);
        assert_ne!(hash(12345), hash(54321));
        assert_ne!(hash(12345), Hasher::new(12345, 12422).hash(0x0a00_0002_0001_0000, 0xc000_0201_0002_0001));
    }
}
