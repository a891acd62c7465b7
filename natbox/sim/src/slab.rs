//! Records with stable, never reused keys: a slot is used again under the next generation, so that a packet on its way
//! to a host that is gone does not reach the one that took its place.

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl Key {
    /// The key of the first record ever inserted.
    pub(crate) const FIRST: Key = Key { slot: 0, generation: 0 };
}

/// A growing array of records.
pub(crate) struct Slab<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }

    /// Room for another record: keys are 32 bits wide.
    pub(crate) fn has_room(&self) -> bool {
        !self.free.is_empty() || self.entries.len() < u32::MAX as usize
    }

    pub(crate) fn insert(&mut self, record: T) -> Key {
        if let Some(slot) = self.free.pop() {
            let (generation, place) = &mut self.entries[slot as usize];
            *place = Some(record);
            return Key { slot, generation: *generation };
        }
        self.entries.push((0, Some(record)));
        Key { slot: (self.entries.len() - 1) as u32, generation: 0 }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        match self.entries.get(key.slot as usize) {
            Some((generation, record)) if *generation == key.generation => record.as_ref(),
            _ => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.entries.get_mut(key.slot as usize) {
            Some((generation, record)) if *generation == key.generation => record.as_mut(),
            _ => None,
        }
    }

    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let (generation, place) = self.entries.get_mut(key.slot as usize)?;
        if *generation != key.generation {
            return None;
        }
        let record = place.take()?;
        *generation = generation.wrapping_add(1);
        self.free.push(key.slot);
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_dies_with_its_record() {
        let mut slab = Slab::new();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(a, Key::FIRST);
        assert_eq!((slab.remove(a), slab.remove(a)), (Some('a'), None));
        let c = slab.insert('c');
        assert_eq!(c.slot, a.slot);
        assert_eq!((slab.get(a), slab.get(b), slab.get(c)), (None, Some(&'b'), Some(&'c')));
        *slab.get_mut(c).unwrap() = 'd';
        assert_eq!(slab.get_mut(a), None);
        assert_eq!(slab.remove(c), Some('d'));
    }
}
