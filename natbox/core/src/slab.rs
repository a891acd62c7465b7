//! Records with stable slot numbers: freed slots are used again, the last one first.
//!
//! Records lie in chunks that never move once they are full: a table that grows copies nothing and keeps nobody waiting,
//! and a small one takes little memory. A free slot holds the number of the next free one, so that giving a record back
//! needs no memory either.

use std::ops::{Index, IndexMut};

use crate::index::NONE;

const CHUNK_BITS: u32 = 12;
const CHUNK: usize = 1 << CHUNK_BITS;
/// The first chunk doubles until it holds so many, and is then made whole: to copy more would keep a packet waiting.
const SMALL: usize = 256;

/// What a slab can hold: it has a form that means "free".
pub(crate) trait Record: Copy {
    /// The record of a free slot, of which `next` is the next free one.
    fn vacant(next: u32) -> Self;
    /// The next free slot, when this one is free.
    fn next_vacant(&self) -> Option<u32>;
}

/// A growing set of records; a slot number stays valid until it is removed.
pub(crate) struct Slab<T> {
    /// All of [`CHUNK`] records but the last.
    chunks: Vec<Vec<T>>,
    len: usize,
    /// The first free slot, or [`NONE`].
    free: u32,
}

impl<T: Record> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { chunks: Vec::new(), len: 0, free: NONE }
    }

    /// How many records there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many slots there are, free ones among them.
    pub(crate) fn slots(&self) -> u32 {
        let last = self.chunks.last().map_or(0, Vec::len);
        (self.chunks.len().saturating_sub(1) * CHUNK + last) as u32
    }

    pub(crate) fn insert(&mut self, record: T) -> u32 {
        self.len += 1;
        if self.free != NONE {
            let slot = self.free;
            self.free = self[slot].next_vacant().unwrap_or(NONE);
            self[slot] = record;
            return slot;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            // The first chunk grows as it is used; whoever needs a second will need all of it.
            let capacity = if self.chunks.is_empty() { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        let chunk = self.chunks.len() - 1;
        let records = &mut self.chunks[chunk];
        if records.len() == SMALL && records.capacity() == SMALL {
            records.reserve_exact(CHUNK - SMALL);
        }
        records.push(record);
        (chunk << CHUNK_BITS | (records.len() - 1)) as u32
    }

    /// Frees a slot that is in use.
    pub(crate) fn remove(&mut self, slot: u32) -> T {
        let vacant = T::vacant(self.free);
        let record = std::mem::replace(&mut self[slot], vacant);
        debug_assert!(record.next_vacant().is_none(), "slot {slot} is free");
        self.free = slot;
        self.len -= 1;
        record
    }

    /// The free slot after the next one that a record will be put into; [`NONE`] when none is free.
    #[inline]
    pub(crate) fn peek_free(&self) -> u32 {
        self.peek(self.free).and_then(T::next_vacant).unwrap_or(NONE)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.chunks
            .iter()
            .flatten()
            .enumerate()
            .filter(|(_, record)| record.next_vacant().is_none())
            .map(|(slot, record)| (slot as u32, record))
    }

    /// The record in this slot, if there is such a slot; it may be free.
    #[inline]
    pub(crate) fn peek(&self, slot: u32) -> Option<&T> {
        self.chunks.get(slot as usize >> CHUNK_BITS)?.get(slot as usize & (CHUNK - 1))
    }
}

/// A value for each slot, where few have another than `nothing`: they alone take memory, a few neighbours with them.
pub(crate) struct Sparse<T> {
    nothing: T,
    chunks: Vec<Option<Box<[T; FEW]>>>,
}

const FEW: usize = 32;

impl<T: Copy> Sparse<T> {
    pub(crate) fn new(nothing: T) -> Sparse<T> {
        Sparse { nothing, chunks: Vec::new() }
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> T {
        let chunk = self.chunks.get(slot as usize / FEW).and_then(Option::as_ref);
        chunk.map_or(self.nothing, |values| values[slot as usize % FEW])
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut T {
        let chunk = slot as usize / FEW;
        if chunk >= self.chunks.len() {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let values = self.chunks[chunk].get_or_insert_with(|| Box::new([self.nothing; FEW]));
        &mut values[slot as usize % FEW]
    }
}

/// Slot numbers come from the indexes and lists, which forget a slot before it is freed. Panics on one that never was.
impl<T> Index<u32> for Slab<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, slot: u32) -> &T {
        &self.chunks[slot as usize >> CHUNK_BITS][slot as usize & (CHUNK - 1)]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    #[inline(always)]
    fn index_mut(&mut self, slot: u32) -> &mut T {
        &mut self.chunks[slot as usize >> CHUNK_BITS][slot as usize & (CHUNK - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Number {
        Value(usize),
        Free(u32),
    }

    impl Record for Number {
        fn vacant(next: u32) -> Number {
            Number::Free(next)
        }

        fn next_vacant(&self) -> Option<u32> {
            if let Number::Free(next) = self { Some(*next) } else { None }
        }
    }

    #[test]
    fn few_slots_have_a_value() {
        let mut values = Sparse::new(7);
        *values.get_mut(100_000) = 8;
        assert_eq!([0, 99_999, 100_000, 100_001, u32::MAX].map(|slot| values.get(slot)), [7, 7, 8, 7, 7]);
        assert_eq!(values.chunks.iter().flatten().count(), 1);
    }

    #[test]
    fn slots_are_used_again_over_many_chunks() {
        let mut slab = Slab::new();
        for i in 0..3 * CHUNK {
            assert_eq!(slab.insert(Number::Value(i)), i as u32);
        }
        let freed = [5, CHUNK as u32, 2 * CHUNK as u32 + 7];
        for slot in freed {
            assert_eq!(slab.remove(slot), Number::Value(slot as usize));
        }
        assert_eq!((slab.len(), slab.iter().count()), (3 * CHUNK - 3, 3 * CHUNK - 3));
        for slot in freed.into_iter().rev() {
            assert_eq!(slab.insert(Number::Value(0)), slot, "the last one first");
        }
        assert_eq!(slab.insert(Number::Value(0)), 3 * CHUNK as u32);
        assert!(slab.peek(4 * CHUNK as u32).is_none());
    }
}
