//! Records under numbers that are hard to guess and that nobody mistakes for those of an earlier record.

use std::hash::{BuildHasher, Hasher};

use siphasher::sip::SipHasher13;

/// Bits of a handle that are the slot; four million records at the most.
const SLOT_BITS: u32 = 22;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
const TAGS: u32 = 1 << (32 - SLOT_BITS);

/// The most records that a table may be made for.
pub(super) const MOST: usize = 1 << SLOT_BITS;

/// A table whose handles are a slot number and a tag; the tag is another one whenever the slot is used again, and
/// random, so that who has not been told a handle has to guess.
pub(super) struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

struct Entry<T> {
    tag: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(super) fn new() -> Slots<T> {
        Slots { entries: Vec::new(), free: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Adds a record; the caller keeps the number of records below [`MOST`].
    pub(super) fn insert(&mut self, random: u32, value: T) -> u32 {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.entries.push(Entry { tag: random % TAGS, value: None });
                (self.entries.len() - 1) as u32
            }
        };
        let entry = &mut self.entries[slot as usize];
        // Any step but a whole turn: never the tag that was just in use.
        entry.tag = (entry.tag + 1 + random % (TAGS - 1)) % TAGS;
        entry.value = Some(value);
        entry.tag << SLOT_BITS | slot
    }

    pub(super) fn get(&self, handle: u32) -> Option<&T> {
        let entry = self.entries.get((handle & SLOT_MASK) as usize)?;
        if entry.tag == handle >> SLOT_BITS { entry.value.as_ref() } else { None }
    }

    pub(super) fn get_mut(&mut self, handle: u32) -> Option<&mut T> {
        let entry = self.entries.get_mut((handle & SLOT_MASK) as usize)?;
        if entry.tag == handle >> SLOT_BITS { entry.value.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, handle: u32) -> Option<T> {
        self.get(handle)?;
        let slot = handle & SLOT_MASK;
        self.free.push(slot);
        self.entries[slot as usize].value.take()
    }

    /// Every record with its handle, in the order of the slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.entries.iter().enumerate().filter_map(|(slot, entry)| {
            entry.value.as_ref().map(|value| (entry.tag << SLOT_BITS | slot as u32, value))
        })
    }
}

/// Hashes under a key from the seed: peers choose their own ids, so an unkeyed hash could be made to collide.
#[derive(Clone, Copy)]
pub(super) struct Keyed {
    first: u64,
    second: u64,
}

impl Keyed {
    pub(super) fn new(first: u64, second: u64) -> Keyed {
        Keyed { first, second }
    }

    /// The hash of one number.
    pub(super) fn number(&self, number: u64) -> u64 {
        let mut hasher = self.build_hasher();
        hasher.write_u64(number);
        hasher.finish()
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.first, self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_dies_with_its_record() {
        let mut slots = Slots::new();
        let mut handles = Vec::new();
        for random in [0, 1, 77, u32::MAX, 1023, 1022] {
            let handle = slots.insert(random, random);
            assert_eq!(slots.get(handle), Some(&random));
            assert!(handles.iter().all(|old| slots.get(*old).is_none()), "an old handle reads a new record");
            assert_eq!(slots.remove(handle), Some(random));
            assert_eq!(slots.remove(handle), None);
            handles = vec![handle];
        }
        assert_eq!((slots.len(), slots.entries.len()), (0, 1));
    }
}
