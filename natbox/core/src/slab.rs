//! Records with stable slot numbers: freed slots are used again, the last one first.

use std::ops::{Index, IndexMut};

/// A growing array of records; a slot number stays valid until it is removed.
pub(crate) struct Slab<T> {
    records: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { records: Vec::new(), free: Vec::new() }
    }

    /// How many records there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, record: T) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.records[slot as usize] = Some(record);
            return slot;
        }
        self.records.push(Some(record));
        (self.records.len() - 1) as u32
    }

    pub(crate) fn remove(&mut self, slot: u32) -> Option<T> {
        let record = self.records.get_mut(slot as usize)?.take();
        if record.is_some() {
            self.free.push(slot);
        }
        record
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.records.iter().enumerate().filter_map(|(slot, record)| Some((slot as u32, record.as_ref()?)))
    }
}

/// Panics on a free slot: slot numbers come from the indexes, which forget a slot before it is freed.
impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, slot: u32) -> &T {
        match &self.records[slot as usize] {
            Some(record) => record,
            None => unreachable!("slot {slot} is free"),
        }
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, slot: u32) -> &mut T {
        match &mut self.records[slot as usize] {
            Some(record) => record,
            None => unreachable!("slot {slot} is free"),
        }
    }
}
